//! Replays a recorded trace: our own record format, or a CSV of timestamp, device, utilisation and memory.
//!
//! - **Record format** (`*.ndjson`, `*.jsonl`): one JSON object per device and tick:
//!   `{"t_ms":0,"host":"gpu-1","device":"gpu0","model":"NVIDIA H100","util_percent":97,"memory_used_bytes":1073741824,"power_mw":350000}`.
//!   `t_ms` and `device` are needed, `host` and `model` are not; every other key is a field by its name in `schemas::sample::Field`.
//!   `energy_counter_mj` is the counter, from which deltas are made. `--record FILE` writes it.
//! - **CSV**: a header, then rows. Columns are found by name (`timestamp`, `device`, `utilisation`/`util`, `memory`, with the usual
//!   variants), or named by `--replay-columns timestamp=..,device=..,util=..,memory=..`; utilisation in percent, memory in bytes.
//!   A time is RFC 3339, or a number: below 1e11 seconds, below 1e14 milliseconds, below 1e17 microseconds, else nanoseconds.
//!
//! Times are shifted and scaled: sampled_at = start + (t − t0)/speed, and held_ms from the same scaled spacing, at most 2.5 spacings, so that a
//! gap stays a gap. `--keep-time` keeps the recorded times and sends everything as backfill. Rows that cannot be used are counted, named
//! by file and line, and skipped. The whole trace is held in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::{Gpu, Placement};
use plimsoll_schemas::reading::{Number, Reading};
use plimsoll_schemas::sample::Field;
use plimsoll_schemas::time::{EventTime, NS_PER_MS, parse_rfc3339_ns};

use super::{Delivery, GpuReading, Held, HostFacts, HostTick, Outlet, Signal, Source};
use crate::clock::{Stop, boot_ns, wall_now};
use crate::metrics::{Metrics, by};

/// Most rows of a trace.
const ROWS_MAX: usize = 20_000_000;
/// Most bad rows that are named one by one.
const NAMED_MAX: u64 = 10;
/// GPUs of one host; a trace with more devices under one host gets several.
const GPUS_PER_HOST: usize = 256;

/// What to replay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The trace.
    pub file: PathBuf,
    /// Recorded seconds per second.
    pub speed: f64,
    /// Keep the recorded times.
    pub keep_time: bool,
    /// CSV columns by role (`timestamp`, `device`, `util`, `memory`, `host`).
    pub columns: BTreeMap<String, String>,
    /// Host of rows that name none.
    pub host: String,
}

/// Why a trace cannot be replayed at all.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("trace {file}: {error}")]
    Io {
        /// Which file.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// A column is not there.
    #[error("trace {file}: no column for {role} in the header {header:?}; name it with --replay-columns {role}=NAME")]
    Column {
        /// Which file.
        file: String,
        /// What is looked for.
        role: &'static str,
        /// What there is.
        header: String,
    },
    /// Nothing usable in it.
    #[error("trace {file}: no usable row ({bad} bad ones)")]
    Empty {
        /// Which file.
        file: String,
        /// Bad rows.
        bad: u64,
    },
    /// More rows than are held.
    #[error("trace {file}: more than {ROWS_MAX} rows; split it")]
    TooLong {
        /// Which file.
        file: String,
    },
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    at_ns: i64,
    device: usize,
    fields: Vec<(Field, Number)>,
    energy_counter_mj: Option<Number>,
}

/// One device of the trace.
#[derive(Debug, Clone)]
struct Device {
    host: String,
    name: String,
    model: String,
    memory_total: Option<u64>,
}

/// One tick of one host.
#[derive(Debug, PartialEq)]
struct TraceTick {
    host: usize,
    at_ns: i64,
    held_ns: i64,
    rows: std::ops::Range<usize>,
}

/// The source.
#[derive(Debug)]
pub struct Replay {
    settings: Settings,
    rows: Vec<Row>,
    ticks: Vec<TraceTick>,
    hosts: Vec<HostFacts>,
    /// Host and UUID of each device.
    devices: Vec<(usize, GpuUuid)>,
    spacing_ns: i64,
}

impl Replay {
    /// Reads the whole trace.
    pub fn open(settings: Settings, metrics: &Arc<Metrics>) -> Result<Self, ReplayError> {
        let file = settings.file.display().to_string();
        let mut reader =
            Reader { file: &file, metrics, rows: Vec::new(), devices: Vec::new(), numbers: BTreeMap::new(), bad: 0, host: &settings.host };
        let opened = File::open(&settings.file).map_err(|error| ReplayError::Io { file: file.clone(), error })?;
        if is_record(&settings.file) {
            reader.read_record(opened)?
        } else {
            reader.read_csv(opened, &settings.columns)?
        }
        let Reader { mut rows, devices, bad, .. } = reader;
        if bad > NAMED_MAX {
            tracing::warn!(file, bad, "rows skipped in all");
        }
        if rows.is_empty() {
            return Err(ReplayError::Empty { file, bad });
        }
        rows.sort_by_key(|row| row.at_ns);
        let spacing_ns = spacing(&rows, devices.len());
        let (hosts, devices) = register(devices);
        // Each host's rows stand together, in time order, so that a tick is a range.
        rows.sort_by_key(|row| (devices[row.device].0, row.at_ns));
        let ticks = cut(&rows, &devices, spacing_ns);
        tracing::info!(
            file,
            rows = rows.len(),
            ticks = ticks.len(),
            hosts = hosts.len(),
            devices = devices.len(),
            spacing_ms = spacing_ns / NS_PER_MS,
            "trace read"
        );
        Ok(Self { settings, rows, ticks, hosts, devices, spacing_ns })
    }

    /// Spacing of the ticks that will be sent, ms.
    pub fn interval_ms(&self) -> u32 {
        let spacing = if self.settings.keep_time { self.spacing_ns as f64 } else { self.spacing_ns as f64 / self.settings.speed };
        (spacing / NS_PER_MS as f64).round().clamp(1.0, 3_600_000.0) as u32
    }

    fn tick(&self, tick: &TraceTick, start: EventTime, first_ns: i64) -> HostTick {
        let gpus = self.rows[tick.rows.clone()]
            .iter()
            .map(|row| {
                let mut reading = Reading::default();
                row.fields.iter().for_each(|&(field, number)| reading.set(field, number));
                GpuReading { reading, energy_counter_mj: row.energy_counter_mj, ..GpuReading::new(self.devices[row.device].1.clone()) }
            })
            .collect();
        let scale = if self.settings.keep_time { 1.0 } else { self.settings.speed };
        let held_ms = u32::try_from((tick.held_ns as f64 / scale) as i64 / NS_PER_MS).unwrap_or(u32::MAX);
        let sampled_at =
            if self.settings.keep_time { EventTime(tick.at_ns) } else { EventTime(start.0 + ((tick.at_ns - first_ns) as f64 / scale) as i64) };
        let held = Held::Recorded { held_ms, live: !self.settings.keep_time };
        HostTick { host: self.hosts[tick.host].host.clone(), sampled_at, held, gpus, delivery: Delivery::Normal }
    }
}

impl Source for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn run(mut self: Box<Self>, out: Outlet, stop: Stop) {
        self.ticks.sort_by_key(|tick| tick.at_ns);
        let first_ns = self.ticks.first().map_or(0, |tick| tick.at_ns);
        let (start, start_ns) = (wall_now(), boot_ns());
        if !self.hosts.iter().all(|facts| out.say(Signal::Host(facts.clone()))) {
            return;
        }
        for tick in &self.ticks {
            let due_ns = start_ns + ((tick.at_ns - first_ns) as f64 / self.settings.speed) as u64;
            if stop.wait_until(due_ns) || !out.say(Signal::Tick(self.tick(tick, start, first_ns))) {
                return;
            }
        }
        out.say(Signal::Finished);
    }
}

fn is_record(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["ndjson", "jsonl", "json"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

struct Reader<'a> {
    file: &'a str,
    metrics: &'a Metrics,
    rows: Vec<Row>,
    devices: Vec<Device>,
    numbers: BTreeMap<(String, String), usize>,
    bad: u64,
    host: &'a str,
}

impl Reader<'_> {
    fn io(&self, error: std::io::Error) -> ReplayError {
        ReplayError::Io { file: self.file.to_owned(), error }
    }

    fn skip(&mut self, line: u64, why: &str) {
        self.bad += 1;
        self.metrics.source_lines_skipped.get_or_create(&by("reason", "bad_row")).inc();
        if self.bad <= NAMED_MAX {
            tracing::warn!("{}:{line}: {why}; row skipped", self.file);
        }
    }

    fn push(&mut self, row: Row) -> Result<(), ReplayError> {
        if self.rows.len() == ROWS_MAX {
            return Err(ReplayError::TooLong { file: self.file.to_owned() });
        }
        let device = &mut self.devices[row.device];
        let total = row.fields.iter().find(|(field, _)| *field == Field::MemoryTotalBytes).map(|(_, number)| number.as_f64());
        device.memory_total = device.memory_total.or(total.filter(|bytes| (1.0..1e18).contains(bytes)).map(|bytes| bytes as u64));
        self.rows.push(row);
        Ok(())
    }

    fn device(&mut self, host: &str, name: &str, model: Option<&str>) -> usize {
        let devices = &mut self.devices;
        *self.numbers.entry((host.to_owned(), name.to_owned())).or_insert_with(|| {
            devices.push(Device { host: host.to_owned(), name: name.to_owned(), model: model.unwrap_or("recorded").to_owned(), memory_total: None });
            devices.len() - 1
        })
    }

    fn read_record(&mut self, file: File) -> Result<(), ReplayError> {
        for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
            let line = line.map_err(|error| self.io(error))?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match self.record_row(&line) {
                Ok(row) => self.push(row)?,
                Err(why) => self.skip(number as u64 + 1, &why),
            }
        }
        Ok(())
    }

    fn record_row(&mut self, line: &[u8]) -> Result<Row, String> {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let t_ms = object.get("t_ms").and_then(serde_json::Value::as_i64).ok_or("no integer t_ms")?;
        let name = object.get("device").and_then(serde_json::Value::as_str).ok_or("no device")?;
        let text = |key: &str| object.get(key).and_then(serde_json::Value::as_str);
        let mut fields = Vec::new();
        for &field in Field::ALL {
            if let Some(value) = object.get(field.name()) {
                let number = number(value).ok_or_else(|| format!("{} is no number: {value}", field.name()))?;
                fields.push((field, number));
            }
        }
        let energy_counter_mj = object.get("energy_counter_mj").and_then(number);
        let host = self.host;
        let device = self.device(text("host").unwrap_or(host), name, text("model"));
        Ok(Row { at_ns: t_ms.saturating_mul(NS_PER_MS), device, fields, energy_counter_mj })
    }

    fn read_csv(&mut self, file: File, named: &BTreeMap<String, String>) -> Result<(), ReplayError> {
        let mut csv = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(BufReader::new(file));
        let header = csv.headers().map_err(|error| self.io(error.into()))?.clone();
        let columns = Columns::find(self.file, &header, named)?;
        let mut record = csv::StringRecord::new();
        loop {
            match csv.read_record(&mut record) {
                Ok(false) => return Ok(()),
                Ok(true) => match self.csv_row(&record, &columns) {
                    Ok(row) => self.push(row)?,
                    Err(why) => self.skip(record.position().map_or(0, csv::Position::line), &why),
                },
                Err(error) => {
                    let line = error.position().map_or(0, csv::Position::line);
                    if error.is_io_error() {
                        return Err(self.io(error.into()));
                    }
                    self.skip(line, &error.to_string());
                }
            }
        }
    }

    fn csv_row(&mut self, record: &csv::StringRecord, columns: &Columns) -> Result<Row, String> {
        let at_ns = time(record.get(columns.timestamp).unwrap_or_default())?;
        let name = record.get(columns.device).filter(|name| !name.is_empty()).ok_or("no device")?;
        let mut fields = Vec::new();
        for (column, field) in
            [(columns.util, Field::UtilPercent), (columns.memory, Field::MemoryUsedBytes), (columns.memory_total, Field::MemoryTotalBytes)]
        {
            if let Some(text) = column.and_then(|column| record.get(column)).filter(|text| !text.is_empty()) {
                fields.push((field, Number::parse(text).map_err(|_| format!("{} is no number: {text:?}", field.name()))?));
            }
        }
        if fields.is_empty() {
            return Err("no value".to_owned());
        }
        let default = self.host;
        let host = columns.host.and_then(|column| record.get(column)).filter(|host| !host.is_empty()).unwrap_or(default).to_owned();
        let device = self.device(&host, name, None);
        Ok(Row { at_ns, device, fields, energy_counter_mj: None })
    }
}

/// Where the columns of a CSV stand.
struct Columns {
    timestamp: usize,
    device: usize,
    util: Option<usize>,
    memory: Option<usize>,
    memory_total: Option<usize>,
    host: Option<usize>,
}

impl Columns {
    fn find(file: &str, header: &csv::StringRecord, named: &BTreeMap<String, String>) -> Result<Self, ReplayError> {
        let find = |role: &'static str, usual: &[&str]| {
            let is_it = |column: &str| match named.get(role) {
                Some(name) => column == name,
                None => usual.iter().any(|usual| column.trim_start_matches('\u{feff}').eq_ignore_ascii_case(usual)),
            };
            header.iter().position(is_it)
        };
        let missing = |role| ReplayError::Column { file: file.to_owned(), role, header: header.iter().collect::<Vec<_>>().join(",") };
        let columns = Self {
            timestamp: find("timestamp", &["timestamp", "time", "ts", "t", "timestamp_anon"]).ok_or_else(|| missing("timestamp"))?,
            device: find("device", &["device", "gpu", "gpu_id", "uuid", "gpu_uuid", "container_ip"]).ok_or_else(|| missing("device"))?,
            util: find("util", &["utilisation", "utilization", "util", "util_percent", "gpu_util", "gpu_utilization", "duty_cycle"]),
            memory: find("memory", &["memory", "memory_used", "memory_used_bytes", "mem", "mem_used"]),
            memory_total: find("memory_total", &["memory_total", "memory_total_bytes"]),
            host: find("host", &["host", "hostname", "node"]),
        };
        // A column that was named has to be there, also one that may be left out.
        for (role, column) in [("util", columns.util), ("memory", columns.memory), ("memory_total", columns.memory_total), ("host", columns.host)] {
            if named.contains_key(role) && column.is_none() {
                return Err(missing(role));
            }
        }
        if columns.util.is_none() && columns.memory.is_none() { Err(missing("util")) } else { Ok(columns) }
    }
}

fn number(value: &serde_json::Value) -> Option<Number> {
    let number = value.as_number()?;
    number.as_i128().map(Number::Int).or_else(|| number.as_f64().map(Number::Float))
}

/// Nanoseconds UTC of a time in a CSV.
fn time(text: &str) -> Result<i64, String> {
    let bad = || format!("no time: {text:?}");
    if let Ok(number) = text.parse::<f64>() {
        let unit = match number.abs() {
            n if n < 1e11 => 1e9,
            n if n < 1e14 => 1e6,
            n if n < 1e17 => 1e3,
            n if n < 9e18 => 1.0,
            _ => return Err(bad()),
        };
        // Through milliseconds where a double would round the nanoseconds.
        return Ok(if unit >= 1e6 { (number * unit / 1e6).round() as i64 * NS_PER_MS } else { (number * unit) as i64 });
    }
    let spaced = text.replacen(' ', "T", 1);
    parse_rfc3339_ns(text).or_else(|| parse_rfc3339_ns(&spaced)).or_else(|| parse_rfc3339_ns(&format!("{spaced}Z"))).ok_or_else(bad)
}

/// The usual time between two rows of a device: the (lower) median; a second if there are no two rows. `rows` are in time order.
fn spacing(rows: &[Row], devices: usize) -> i64 {
    let mut last: Vec<Option<i64>> = vec![None; devices];
    let mut gaps: Vec<i64> = Vec::new();
    for row in rows {
        if let Some(before) = last[row.device].replace(row.at_ns)
            && row.at_ns > before
        {
            gaps.push(row.at_ns - before);
        }
    }
    gaps.sort_unstable();
    gaps.get(gaps.len().saturating_sub(1) / 2).copied().unwrap_or(1_000 * NS_PER_MS)
}

/// Hosts of the trace, and each device's host and UUID.
fn register(devices: Vec<Device>) -> (Vec<HostFacts>, Vec<(usize, GpuUuid)>) {
    let mut hosts: Vec<HostFacts> = Vec::new();
    let mut open: BTreeMap<String, usize> = BTreeMap::new();
    let mut placed = Vec::new();
    for device in devices {
        let full = open.get(&device.host).is_some_and(|&host| hosts[host].gpus.len() == GPUS_PER_HOST);
        if full {
            open.remove(&device.host);
        }
        let number = *open.entry(device.host.clone()).or_insert_with(|| {
            let same = hosts.iter().filter(|facts| facts.hostname == device.host).count();
            let name = if same == 0 { device.host.clone() } else { format!("{}-{}", device.host, same + 1) };
            let host = HostId::escape(&name).unwrap_or_else(|_| "replay".parse().expect("a plain word is a token"));
            let hostname = device.host.clone();
            hosts.push(HostFacts { host, hostname, placement: Placement::default(), cpu_cores: None, ram_bytes: None, gpus: Vec::new() });
            hosts.len() - 1
        });
        let facts = &mut hosts[number];
        let uuid = device.name.parse().ok().filter(|_| device.name.starts_with("GPU-")).unwrap_or_else(|| GpuUuid::derive(&facts.host, &device.name));
        facts.gpus.push(gpu(&device, facts.gpus.len(), uuid.clone()));
        placed.push((number, uuid));
    }
    (hosts, placed)
}

fn gpu(device: &Device, index: usize, uuid: GpuUuid) -> Gpu {
    Gpu {
        slot: Slot(0),
        uuid,
        index: index as u16,
        model: device.model.clone(),
        memory_total_bytes: device.memory_total,
        mig_parent_uuid: None,
        mig_profile: None,
        mig: None,
        arch: None,
        nvlink_domain: None,
        numa_node: None,
        pci_bus_id: None,
        driver_version: None,
        compute_capability: None,
        power_limit_mw: None,
        power_limit_max_mw: None,
        slowdown_temperature_mk: None,
    }
}

/// Cuts rows (by host, then time) into ticks: rows of different devices that are less than half a spacing apart are one tick.
fn cut(rows: &[Row], devices: &[(usize, GpuUuid)], spacing_ns: i64) -> Vec<TraceTick> {
    let mut ticks: Vec<TraceTick> = Vec::new();
    let mut seen: Vec<usize> = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let host = devices[row.device].0;
        let before = ticks.last_mut().filter(|tick| tick.host == host);
        match before {
            Some(tick) if (row.at_ns - tick.at_ns) * 2 < spacing_ns && !seen.contains(&row.device) => tick.rows.end = number + 1,
            before => {
                let held_ns = before.map_or(0, |tick| (row.at_ns - tick.at_ns).min(spacing_ns.saturating_mul(5) / 2));
                ticks.push(TraceTick { host, at_ns: row.at_ns, held_ns, rows: number..number + 1 });
                seen.clear();
            }
        }
        seen.push(row.device);
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn open(name: &str, text: &str, settings: impl FnOnce(&mut Settings)) -> Result<(Replay, Arc<Metrics>), ReplayError> {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(name);
        File::create(&file).expect("created").write_all(text.as_bytes()).expect("written");
        let mut given = Settings { file, speed: 1.0, keep_time: false, columns: BTreeMap::new(), host: "trace".to_owned() };
        settings(&mut given);
        let metrics = Arc::new(Metrics::default());
        Replay::open(given, &metrics).map(|replay| (replay, metrics))
    }

    fn ticks(replay: &Replay) -> Vec<(i64, u32, usize)> {
        let start = EventTime(1_000_000 * NS_PER_MS);
        let first = replay.ticks[0].at_ns;
        replay
            .ticks
            .iter()
            .map(|tick| replay.tick(tick, start, first))
            .map(|tick| match tick.held {
                Held::Recorded { held_ms, .. } => (tick.sampled_at.millis() - 1_000_000, held_ms, tick.gpus.len()),
                Held::SinceBoot(_) => unreachable!("recorded"),
            })
            .collect()
    }

    const CSV: &str = "timestamp,device,utilisation,memory\n\
        1662858720.0,a,10,1000\n1662858720.0,b,20,2000\n1662858777.0,a,30,1000\n1662858777.2,b,40,2000\n\
        1662859000,a,50,1000\nnonsense,a,1,1\n1662859057,,1,1\n1662859057,a,x,1\n1662859057,a,60,\n";

    #[test]
    fn a_csv_becomes_ticks_at_the_speed_asked_and_a_gap_stays_a_gap() {
        let (replay, metrics) = open("trace.csv", CSV, |_| {}).expect("a trace");
        assert_eq!(replay.interval_ms(), 57_000);
        assert_eq!(ticks(&replay), [(0, 0, 2), (57_000, 57_000, 2), (280_000, 142_500, 1), (337_000, 57_000, 1)]);
        assert!(metrics.text().contains("source_lines_skipped_total{reason=\"bad_row\"} 3"), "{}", metrics.text());
        let (fast, _) = open("trace.csv", CSV, |settings| settings.speed = 57.0).expect("a trace");
        assert_eq!(fast.interval_ms(), 1_000);
        assert_eq!(ticks(&fast)[..2], [(0, 0, 2), (1_000, 1_000, 2)]);
    }

    #[test]
    fn kept_times_are_the_recorded_ones_and_travel_as_backfill() {
        let (replay, _) = open("trace.csv", CSV, |settings| (settings.keep_time, settings.speed) = (true, 57.0)).expect("a trace");
        let tick = replay.tick(&replay.ticks[1], EventTime(0), replay.ticks[0].at_ns);
        assert_eq!(tick.sampled_at.millis(), 1_662_858_777_000);
        assert_eq!(tick.held, Held::Recorded { held_ms: 57_000, live: false });
    }

    #[test]
    fn columns_are_found_by_their_usual_names_or_by_the_names_given() {
        let text = "value,timestamp_anon,container_ip\n0.0,1662858720.0,23b8\n5.5,1662858777.0,23b8\n";
        let error = open("t.csv", text, |_| {}).expect_err("no utilisation").to_string();
        assert!(error.contains("--replay-columns util=NAME") && error.contains("value,timestamp_anon"), "{error}");
        let (replay, _) =
            open("t.csv", text, |settings| settings.columns = BTreeMap::from([("util".to_owned(), "value".to_owned())])).expect("a trace");
        assert_eq!(replay.rows[1].fields, [(Field::UtilPercent, Number::Float(5.5))]);
        assert!(open("t.csv", CSV, |settings| settings.columns = BTreeMap::from([("memory".to_owned(), "nope".to_owned())])).is_err());
    }

    #[test]
    fn our_own_records_keep_every_field() {
        let text = "{\"t_ms\":0,\"host\":\"n.1\",\"device\":\"GPU-a\",\"model\":\"M\",\"util_percent\":97,\"power_mw\":350000,\"energy_counter_mj\":5}\n\
                    {\"t_ms\":0}\nnot json\n{\"t_ms\":1000,\"host\":\"n.1\",\"device\":\"GPU-a\",\"util_percent\":\"x\"}\n\
                    {\"t_ms\":1000,\"host\":\"n.1\",\"device\":\"GPU-a\",\"util_percent\":98,\"memory_total_bytes\":1024}\n";
        let (replay, metrics) = open("trace.ndjson", text, |_| {}).expect("a trace");
        assert_eq!((replay.hosts[0].host.as_str(), replay.hosts[0].gpus[0].uuid.as_str()), ("n_d1", "GPU-a"));
        assert_eq!((replay.hosts[0].gpus[0].model.as_str(), replay.hosts[0].gpus[0].memory_total_bytes), ("M", Some(1_024)));
        assert_eq!(replay.rows[0].fields, [(Field::UtilPercent, Number::Int(97)), (Field::PowerMw, Number::Int(350_000))]);
        assert_eq!(replay.rows[0].energy_counter_mj, Some(Number::Int(5)));
        assert!(metrics.text().contains("bad_row\"} 3"), "{}", metrics.text());
    }

    #[test]
    fn times_are_read_in_their_usual_forms() {
        let check = |text: &str, expected: i64| assert_eq!(time(text), Ok(expected), "{text}");
        check("1662858720.5", 1_662_858_720_500_000_000);
        check("1662858720500", 1_662_858_720_500_000_000);
        check("1662858720500000", 1_662_858_720_500_000_000);
        check("2022-09-11T01:12:00Z", 1_662_858_720_000_000_000);
        check("2022-09-11 01:12:00", 1_662_858_720_000_000_000);
        assert!(time("NaN").is_err() && time("").is_err() && time("1e300").is_err());
    }
}
