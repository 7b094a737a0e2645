//! One scrape: from text to hosts, boards and MIG instances with their readings. Pure.
//!
//! - A board's values (power, energy, temperatures, clocks, XID) are taken once per board, also when the exporter repeats them on the row of
//!   every MIG instance. The repeated rows are not read at one instant (112.3, 106.5, 106.5, 112.3 W on one board); the greatest counts.
//! - The same series under several pod labels is the same series: equal values count once, of different ones the greatest is taken, because
//!   shares of one board never add up to more than the board, and the conflict is counted.
//! - A MIG instance is a device of its own. Its UUID is `MIG-<board>/<instance id>`, stable while the instance keeps its id.

use std::collections::BTreeMap;

use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::Gpu;
use plimsoll_schemas::reading::Number;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Field, ZERO_CELSIUS_MK};
use plimsoll_schemas::validate::Violation;

use super::names::Metric;
use super::prom::{Series, parse_line};
use crate::source::GpuReading;
use crate::wear::Wear;

/// What GPU_UTIL is printed in. Distributors rescale it under the same name, so it has to be said, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum UtilUnit {
    /// 0..100, as DCGM has it under every name.
    Percent,
    /// 0..1.
    Ratio,
}

/// A device in a scrape.
#[derive(Debug, Clone)]
pub struct Device {
    /// What is known of it; the slot is not.
    pub gpu: Gpu,
    /// Its values.
    pub reading: GpuReading,
    /// Its last XID, 0 = none; absent = not printed.
    pub xid: Option<u32>,
}

/// A scrape, taken apart.
#[derive(Debug, Default)]
pub struct Scrape {
    /// Devices by host name.
    pub hosts: BTreeMap<String, Vec<Device>>,
    /// Lines that carry nothing usable, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
}

/// A value, or the text that stood in its place and what it means.
type Value = Result<Number, (Reason, String)>;

#[derive(Debug, Default)]
struct Found {
    gpu: Option<Gpu>,
    values: BTreeMap<Metric, Value>,
}

/// Board UUID, then the MIG instance: boards stand before their instances.
type Key = (GpuUuid, Option<String>);

/// Takes a scrape apart. `host` is used for rows without a host label, or for all rows if `always`.
pub fn read(text: &str, host: &str, always: bool, unit: UtilUnit) -> Scrape {
    let mut scrape = Scrape::default();
    let mut found: BTreeMap<String, BTreeMap<Key, Found>> = BTreeMap::new();
    let mut order: BTreeMap<(String, GpuUuid), usize> = BTreeMap::new();
    for line in text.lines() {
        let series = match parse_line(line) {
            Ok(Some(series)) => series,
            Ok(None) => continue,
            Err(error) => {
                scrape.skip(error.reason());
                continue;
            }
        };
        let Some(metric) = Metric::of(series.name) else {
            scrape.skip("unknown_family");
            continue;
        };
        let name = if always { host } else { series.label(&["Hostname", "hostname"]).unwrap_or(host) }.to_owned();
        let Some(board) = board_uuid(&series, &name) else {
            scrape.skip("no_device");
            continue;
        };
        let next = order.len();
        order.entry((name.clone(), board.clone())).or_insert(next);
        let instance = series.label(&["GPU_I_ID", "gpu_i_id"]).map(str::to_owned);
        let devices = found.entry(name).or_default();
        let parent = devices.entry((board.clone(), None)).or_default();
        parent.gpu.get_or_insert_with(|| describe(&series, board.clone()));
        let target = match instance {
            Some(id) if !metric.is_of_board() => {
                let child = devices.entry((board.clone(), Some(id.clone()))).or_default();
                child.gpu.get_or_insert_with(|| describe_instance(&series, &board, &id));
                child
            }
            Some(_) | None => parent,
        };
        if !target.put(metric, value(series.value)) {
            scrape.skip("conflicting_value");
        }
    }
    for (name, devices) in found {
        let mut list: Vec<(usize, Device)> = devices
            .into_iter()
            .map(|((board, instance), found)| {
                let place = order.get(&(name.clone(), board)).copied().unwrap_or(0);
                (place, found.finish(instance.is_some(), unit))
            })
            .collect();
        // In the order of the scrape, so that slots follow the exporter's indices; a board's instances stand behind it.
        list.sort_by_key(|(place, _)| *place);
        scrape.hosts.insert(name, list.into_iter().map(|(_, device)| device).collect());
    }
    scrape
}

impl Scrape {
    fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }
}

fn value(text: &str) -> Value {
    Number::parse(text).map_err(|reason| (reason, text.to_owned()))
}

/// The board's UUID; derived from host and device name where the exporter gives none that parses.
fn board_uuid(series: &Series<'_>, host: &str) -> Option<GpuUuid> {
    let given = series.label(&["UUID", "uuid", "gpu_uuid"]);
    if let Some(uuid) = given.and_then(|text| text.parse().ok()) {
        return Some(uuid);
    }
    let device = given.or_else(|| series.label(&["device", "gpu", "pci_bus_id"]))?;
    Some(GpuUuid::derive(&HostId::escape(host).ok()?, device))
}

fn describe(series: &Series<'_>, uuid: GpuUuid) -> Gpu {
    Gpu {
        slot: Slot(0),
        uuid,
        index: series.label(&["gpu"]).and_then(|text| text.parse().ok()).unwrap_or(0),
        model: series.label(&["modelName", "model_name"]).unwrap_or("unknown").to_owned(),
        memory_total_bytes: None,
        mig_parent_uuid: None,
        mig_profile: None,
        mig: None,
        arch: None,
        nvlink_domain: None,
        numa_node: None,
        pci_bus_id: series.label(&["pci_bus_id"]).map(str::to_owned),
        driver_version: series.label(&["DCGM_FI_DRIVER_VERSION"]).map(str::to_owned),
        compute_capability: None,
        power_limit_mw: None,
        power_limit_max_mw: None,
        slowdown_temperature_mk: None,
    }
}

fn describe_instance(series: &Series<'_>, board: &GpuUuid, id: &str) -> Gpu {
    let text = format!("MIG-{board}/{id}");
    let uuid = text.parse().unwrap_or_else(|_| {
        let board: HostId = HostId::escape(board.as_str()).or_else(|_| "mig".parse()).expect("a plain word is a token");
        GpuUuid::derive(&board, id)
    });
    Gpu { mig_parent_uuid: Some(board.clone()), mig_profile: series.label(&["GPU_I_PROFILE"]).map(str::to_owned), ..describe(series, uuid) }
}

impl Found {
    /// Adds a value; false = another one stood there already.
    fn put(&mut self, metric: Metric, value: Value) -> bool {
        let Some(before) = self.values.get(&metric) else {
            self.values.insert(metric, value);
            return true;
        };
        // NaN differs from itself, but repeating it is no conflict.
        let text = |value: &Value| value.as_ref().map_or_else(|(_, raw)| raw.clone(), Number::to_string);
        let same = text(before) == text(&value);
        if rank(&value) > rank(before) {
            self.values.insert(metric, value);
        }
        same
    }

    fn finish(mut self, is_instance: bool, unit: UtilUnit) -> Device {
        let mut gpu = self.gpu.take().expect("described when first seen");
        let mut reading = GpuReading::new(gpu.uuid.clone());
        let (mut xid, mut pending, mut failed) = (None, None, None);
        for (&metric, value) in &self.values {
            let number = match value {
                Ok(number) => *number,
                Err((reason, raw)) => {
                    reading.refused.extend(metric.field().map(|field| Violation { field: Some(field), reason: *reason, raw: raw.clone() }));
                    continue;
                }
            };
            if metric.zero_is_unsupported() && number.as_f64() == 0.0 {
                reading.refused.push(Violation { field: metric.field(), reason: Reason::NotSupported, raw: number.to_string() });
                continue;
            }
            match metric {
                Metric::Util if unit == UtilUnit::Ratio => reading.reading.set(Field::UtilPercent, scale(number, 100.0)),
                Metric::Util => reading.reading.set(Field::UtilPercent, number),
                // A whole board has GPU_UTIL, which counts the same thing NVML's way.
                Metric::EngineActive if is_instance => reading.reading.set(Field::UtilPercent, scale(ratio(number), 100.0)),
                Metric::EngineActive => {}
                Metric::MemoryUtil => reading.reading.set(Field::MemoryUtilPercent, number),
                Metric::FbUsed => reading.reading.set(Field::MemoryUsedBytes, scale(number, MIB)),
                Metric::FbTotal | Metric::FbFree | Metric::FbReserved => {}
                Metric::Power => reading.reading.set(Field::PowerMw, scale(number, 1_000.0)),
                Metric::EnergyMillijoules => reading.energy_counter_mj = Some(number),
                Metric::EnergyJoules => reading.energy_counter_mj = Some(scale(number, 1_000.0)),
                Metric::Temperature => reading.reading.set(Field::TemperatureMk, millikelvin(number)),
                Metric::MemoryTemperature => reading.reading.set(Field::MemoryTemperatureMk, millikelvin(number)),
                Metric::SmClock => reading.reading.set(Field::SmClockMhz, number),
                Metric::SmClockHertz => reading.reading.set(Field::SmClockMhz, scale(number, 1e-6)),
                Metric::MemoryClock => reading.reading.set(Field::MemoryClockMhz, number),
                Metric::MemoryClockHertz => reading.reading.set(Field::MemoryClockMhz, scale(number, 1e-6)),
                Metric::ThrottleBits => reading.reading.set(Field::ThrottleBits, number),
                Metric::SmActive => reading.reading.set(Field::SmActiveBp, scale(ratio(number), 10_000.0)),
                Metric::PcieTx => reading.reading.set(Field::PcieTxBytesS, number),
                Metric::PcieRx => reading.reading.set(Field::PcieRxBytesS, number),
                Metric::EccUncorrected => reading.reading.set(Field::EccUncorrected, number),
                Metric::EccAggregate => reading.wear.ecc_aggregate = fact(number),
                Metric::RemappedRows => reading.wear.rows = fact(number),
                Metric::RemapPending => pending = fact(number).map(|flag| flag != 0),
                Metric::RemapFailure => failed = fact(number).map(|flag| flag != 0),
                Metric::Xid => xid = fact(number).and_then(|code| u32::try_from(code).ok()).or(xid),
                Metric::PowerLimit => gpu.power_limit_mw = fact(scale(number, 1_000.0)),
                Metric::PowerLimitMax => gpu.power_limit_max_mw = fact(scale(number, 1_000.0)),
                Metric::SlowdownTemperature => gpu.slowdown_temperature_mk = fact(millikelvin(number)),
            }
        }
        reading.wear.remap = Wear::remap_of(pending, failed);
        self.take_total(&mut gpu, &mut reading);
        Device { gpu, reading, xid }
    }

    /// Memory on board: printed as such, or the sum of its parts, each floored to MiB by DCGM.
    fn take_total(&self, gpu: &mut Gpu, reading: &mut GpuReading) {
        let part = |metric| self.values.get(&metric).and_then(|value| value.as_ref().ok()).copied();
        let total = match (part(Metric::FbTotal), part(Metric::FbUsed), part(Metric::FbFree)) {
            (Some(total), _, _) => scale(total, MIB),
            (None, Some(used), Some(free)) => {
                let parts = [used, free, part(Metric::FbReserved).unwrap_or(Number::Int(0))];
                match parts.into_iter().find(|part| !is_plain(*part)) {
                    // A part that is no value makes the total none, for the part's reason.
                    Some(bad) => bad,
                    None => scale(Number::Float(parts.iter().map(|part| part.as_f64()).sum()), MIB),
                }
            }
            (None, _, _) => return,
        };
        reading.reading.set(Field::MemoryTotalBytes, total);
        gpu.memory_total_bytes = fact(total).filter(|&bytes| bytes > 0);
    }
}

const MIB: f64 = 1_048_576.0;

/// Whether a number is one: finite and not a sentinel.
fn is_plain(number: Number) -> bool {
    number.sentinel().is_none() && number.as_f64().is_finite()
}

/// Of two values of one thing: a number before none, then the greater.
fn rank(value: &Value) -> (bool, f64) {
    match value {
        Ok(number) if is_plain(*number) => (true, number.as_f64()),
        Ok(_) | Err(_) => (false, 0.0),
    }
}

/// In another unit. What is no value stays what it is, so that the validator can name it.
fn scale(number: Number, factor: f64) -> Number {
    if !is_plain(number) {
        return number;
    }
    match number {
        Number::Int(int) if factor >= 1.0 => Number::Int(int.saturating_mul(factor as i128)),
        Number::Int(int) => Number::Float(int as f64 * factor),
        Number::Float(float) => Number::Float(float * factor),
    }
}

fn millikelvin(number: Number) -> Number {
    match scale(number, 1_000.0) {
        scaled if !is_plain(number) => scaled,
        Number::Int(int) => Number::Int(int.saturating_add(i128::from(ZERO_CELSIUS_MK))),
        Number::Float(float) => Number::Float(float + ZERO_CELSIUS_MK as f64),
    }
}

/// A ratio that measures a hair more than 1 is 1.
fn ratio(number: Number) -> Number {
    if (1.0..=1.001).contains(&number.as_f64()) { Number::Int(1) } else { number }
}

/// A fact of the board, if the number is one.
fn fact(number: Number) -> Option<u64> {
    (is_plain(number) && (0.0..1e18).contains(&number.as_f64())).then(|| number.as_f64().round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(text: &str) -> Vec<Device> {
        let scrape = read(text, "fallback", false, UtilUnit::Percent);
        assert_eq!(scrape.hosts.len(), 1, "{:?}", scrape.hosts.keys());
        scrape.hosts.into_values().next().expect("one host")
    }

    fn refusals(device: &Device) -> Vec<(Option<Field>, Reason)> {
        device.reading.refused.iter().map(|violation| (violation.field, violation.reason)).collect()
    }

    #[test]
    fn units_are_turned_into_ours() {
        let text = r#"
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-a",modelName="NVIDIA X",Hostname="n1",pci_bus_id="00000000:31:00.0",DCGM_FI_DRIVER_VERSION="580.1"} 37
DCGM_FI_DEV_POWER_USAGE{gpu="1",UUID="GPU-a",Hostname="n1"} 35.686000
DCGM_FI_DEV_GPU_TEMP{gpu="1",UUID="GPU-a",Hostname="n1"} 31
DCGM_FI_DEV_MEMORY_TEMP{gpu="1",UUID="GPU-a",Hostname="n1"} 0
DCGM_FI_DEV_FB_USED{gpu="1",UUID="GPU-a",Hostname="n1"} 100
DCGM_FI_DEV_FB_FREE{gpu="1",UUID="GPU-a",Hostname="n1"} 45359
DCGM_FI_DEV_FB_RESERVED{gpu="1",UUID="GPU-a",Hostname="n1"} 608
DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{gpu="1",UUID="GPU-a",Hostname="n1"} 5551899580
DCGM_FI_PROF_SM_ACTIVE{gpu="1",UUID="GPU-a",Hostname="n1"} 0.25
DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu="1",UUID="GPU-a",Hostname="n1"} 0.9
DCGM_FI_DEV_VGPU_LICENSE_STATUS{gpu="1",UUID="GPU-a",Hostname="n1"} 1
"#;
        let all = devices(text);
        let device = &all[0];
        let get = |field| device.reading.reading.get(field).map(Number::as_f64);
        assert_eq!(get(Field::UtilPercent), Some(37.0));
        assert_eq!(get(Field::PowerMw), Some(35_686.0));
        assert_eq!(get(Field::TemperatureMk), Some(304_150.0));
        assert_eq!(get(Field::MemoryUsedBytes), Some(100.0 * MIB));
        assert_eq!(device.gpu.memory_total_bytes, Some(46_067 << 20));
        assert_eq!(get(Field::SmActiveBp), Some(2_500.0));
        assert_eq!(device.reading.energy_counter_mj, Some(Number::Int(5_551_899_580)));
        assert_eq!(refusals(device), [(Some(Field::MemoryTemperatureMk), Reason::NotSupported)]);
        assert_eq!((device.gpu.index, device.gpu.model.as_str(), device.gpu.driver_version.as_deref()), (1, "NVIDIA X", Some("580.1")));
        assert_eq!(read(text, "x", false, UtilUnit::Percent).skipped, BTreeMap::from([("unknown_family", 1)]));
    }

    #[test]
    fn names_and_labels_of_dcgm_4_6_mean_the_same() {
        let text = r#"
DCGM_FI_DEV_GPU_UTIL_RATIO{gpu="0",uuid="GPU-a",model_name="NVIDIA X",hostname="n1"} 37
DCGM_FI_DEV_BOARD_POWER_WATTS{gpu="0",uuid="GPU-a",hostname="n1"} 300.5
DCGM_FI_DEV_GPU_TEMP_CELSIUS{gpu="0",uuid="GPU-a",hostname="n1"} 60
DCGM_FI_DEV_MEMORY_TEMP_CELSIUS{gpu="0",gpu_uuid="GPU-a",hostname="n1"} 70
DCGM_FI_DEV_SM_CLOCK_HERTZ{gpu="0",uuid="GPU-a",hostname="n1"} 1980000000
DCGM_FI_DEV_GPU_ENERGY_JOULES_TOTAL{gpu="0",uuid="GPU-a",hostname="n1"} 5.5
DCGM_FI_PROF_SM_UTIL_RATIO{gpu="0",uuid="GPU-a",hostname="n1"} 1.0005
DCGM_FI_DEV_XID_ERROR{gpu="0",uuid="GPU-a",hostname="n1",err_code="79"} 79
"#;
        let all = devices(text);
        assert_eq!(all.len(), 1);
        let get = |field| all[0].reading.reading.get(field).map(Number::as_f64);
        assert_eq!(get(Field::UtilPercent), Some(37.0), "RATIO is still printed as percent");
        assert_eq!(get(Field::PowerMw), Some(300_500.0));
        assert_eq!(get(Field::TemperatureMk), Some(333_150.0));
        assert_eq!(get(Field::MemoryTemperatureMk), Some(343_150.0));
        assert_eq!(get(Field::SmClockMhz), Some(1_980.0));
        assert_eq!(get(Field::SmActiveBp), Some(10_000.0));
        assert_eq!(all[0].reading.energy_counter_mj.map(Number::as_f64), Some(5_500.0));
        assert_eq!(all[0].xid, Some(79));
        let ratio = read("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 0.37", "h", false, UtilUnit::Ratio);
        let value = ratio.hosts["h"][0].reading.reading.get(Field::UtilPercent).expect("read").as_f64();
        assert!((value - 37.0).abs() < 1e-9, "{value}");
    }

    #[test]
    fn board_power_is_counted_once_and_not_per_mig_instance() {
        let row = |family: &str, id: &str, value: &str| {
            format!("{family}{{gpu=\"0\",UUID=\"GPU-b\",GPU_I_PROFILE=\"1g.5gb\",GPU_I_ID=\"{id}\",Hostname=\"n\"}} {value}\n")
        };
        let mut text = String::new();
        for (id, power, used) in [("7", "112.252000", "6"), ("8", "106.463000", "4384"), ("9", "106.463000", "6")] {
            text += &row("DCGM_FI_DEV_POWER_USAGE", id, power);
            text += &row("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", id, "6890956");
            text += &row("DCGM_FI_DEV_FB_USED", id, used);
            text += &row("DCGM_FI_DEV_FB_FREE", id, "480");
            text += &row("DCGM_FI_PROF_GR_ENGINE_ACTIVE", id, "0.408493");
        }
        let all = devices(&text);
        let uuids: Vec<_> = all.iter().map(|device| device.gpu.uuid.as_str()).collect();
        assert_eq!(uuids, ["GPU-b", "MIG-GPU-b/7", "MIG-GPU-b/8", "MIG-GPU-b/9"]);
        let powers: Vec<_> = all.iter().filter_map(|device| device.reading.reading.get(Field::PowerMw)).map(Number::as_f64).collect();
        assert_eq!(powers, [112_252.0]);
        assert_eq!(all.iter().filter(|device| device.reading.energy_counter_mj.is_some()).count(), 1);
        assert_eq!(all[0].gpu.mig_parent_uuid, None);
        let instance = &all[2];
        assert_eq!(instance.gpu.mig_parent_uuid.as_ref().map(GpuUuid::as_str), Some("GPU-b"));
        assert_eq!(instance.gpu.mig_profile.as_deref(), Some("1g.5gb"));
        assert_eq!(instance.gpu.memory_total_bytes, Some(4_864 << 20));
        let util = instance.reading.reading.get(Field::UtilPercent).expect("engine activity").as_f64();
        assert!((util - 40.8493).abs() < 1e-9, "{util}");
        assert_eq!(read(&text, "n", false, UtilUnit::Percent).skipped.get("conflicting_value"), Some(&2));
    }

    #[test]
    fn sentinels_and_texts_are_no_values() {
        let text = "DCGM_FI_DEV_MEMORY_TEMP{gpu=\"0\", UUID=\"GPU-a\"} 9223372036854775794\n\
                    DCGM_FI_DEV_POWER_USAGE{gpu=\"0\",UUID=\"GPU-a\"} NaN\n\
                    DCGM_FI_DEV_SM_CLOCK{gpu=\"0\",UUID=\"GPU-a\"} ERROR - FAILED TO CONVERT TO STRING\n\
                    DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\"} 5\n\
                    DCGM_FI_DEV_FB_FREE{gpu=\"0\",UUID=\"GPU-a\"} 2147483634\n";
        let all = devices(text);
        let device = &all[0];
        let sentinel = |field| device.reading.reading.get(field).and_then(Number::sentinel);
        assert_eq!(sentinel(Field::MemoryTemperatureMk), Some(Reason::NotSupported), "handed on as it is, for the validator to name");
        assert_eq!(sentinel(Field::MemoryTotalBytes), Some(Reason::NotSupported));
        assert!(device.reading.reading.get(Field::PowerMw).is_some_and(|power| power.as_f64().is_nan()));
        assert_eq!(refusals(device), [(Some(Field::SmClockMhz), Reason::ParseError)]);
        assert_eq!(device.gpu.memory_total_bytes, None);
    }

    #[test]
    fn the_same_series_under_several_pods_counts_once() {
        let text = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-a\",pod=\"x\"} 40\n\
                    DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",UUID=\"GPU-a\",pod=\"y\"} 40\n\
                    DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",pod=\"x\"} 100\n\
                    DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",pod=\"y\"} 300\n";
        let scrape = read(text, "h", false, UtilUnit::Percent);
        let all = &scrape.hosts["h"];
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].reading.reading.get(Field::UtilPercent), Some(Number::Int(40)));
        assert_eq!(all[0].reading.reading.get(Field::MemoryUsedBytes), Some(Number::Int(300 << 20)));
        assert_eq!(scrape.skipped, BTreeMap::from([("conflicting_value", 1)]));
    }

    #[test]
    fn hosts_are_told_apart_by_label_and_devices_without_uuid_by_name() {
        let text = "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\",Hostname=\"n1\"} 1\nDCGM_FI_DEV_GPU_UTIL{gpu=\"0\",Hostname=\"n2\"} 2\nDCGM_FI_DEV_GPU_UTIL 3\n";
        let scrape = read(text, "h", false, UtilUnit::Percent);
        assert_eq!(scrape.hosts.keys().collect::<Vec<_>>(), ["n1", "n2"]);
        assert_ne!(scrape.hosts["n1"][0].gpu.uuid, scrape.hosts["n2"][0].gpu.uuid);
        assert_eq!(scrape.skipped, BTreeMap::from([("no_device", 1)]));
        assert_eq!(read(text, "mine", true, UtilUnit::Percent).hosts.keys().collect::<Vec<_>>(), ["mine"]);
    }

    proptest::proptest! {
        #[test]
        fn no_scrape_makes_the_reader_panic(values in proptest::collection::vec(("[A-Z_]{0,8}", "[a-z0-9\"]{0,4}", ".{0,12}"), 0..20)) {
            let text: String = values.iter().map(|(name, uuid, value)| format!("DCGM_FI_DEV_{name}{{gpu=\"0\",UUID=\"{uuid}\"}} {value}\n")).collect();
            read(&text, "h", false, UtilUnit::Percent);
            let text: String = values.iter().map(|(_, id, value)| format!("DCGM_FI_DEV_FB_USED{{UUID=\"G\",GPU_I_ID=\"{id}\"}} {value}\n")).collect();
            read(&text, "h", false, UtilUnit::Ratio);
        }
    }
}
