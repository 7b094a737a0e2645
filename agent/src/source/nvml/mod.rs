//! Reads the GPUs of this host through NVML. The library is loaded when it is there: without it the agent says so, stays healthy and
//! tries again. Once loaded it stays for life, because each opening may cost a full GPU initialisation. Of a MIG instance only memory is read
//! (NVML has no utilisation for it below Hopper's GPM); everything else is its board's.

mod mig;
mod raw;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::{Device, Nvml};
use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::{EventKind, Gpu, Placement};
use plimsoll_schemas::reading::Number;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Field, ZERO_CELSIUS_MK};
use plimsoll_schemas::validate::Violation;

use self::mig::{as_gpus, of_board};
use super::rate::Beat;
use super::{Delivery, GpuReading, Held, HostEvent, HostFacts, HostTick, Outlet, Signal, Source};
use crate::clock::{Moment, Stop, wall_now};
use crate::metrics::{Metrics, by};
use crate::sampler::Samplers;
use crate::wear::Wear;

/// First and longest pause between two attempts to load the library.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A call that takes longer is hung, ms.
const HUNG_AFTER_MS: u64 = 5_000;
/// How long the event thread waits inside NVML, ms.
const EVENT_WAIT_MS: u32 = 500;
/// Field 82: memory temperature, which has no call of its own.
const MEMORY_TEMPERATURE: FieldId = FieldId(82);
/// Fields 143 to 145: rows remapped after uncorrected errors, whether some wait for a reset, whether that has failed.
const REMAPPED: [FieldId; 3] = [FieldId(143), FieldId(144), FieldId(145)];
/// Slow tier: every this many ticks.
const SLOW_EVERY: u32 = 15;
/// GPUs and MIG instances are looked for every this many ticks. The cell waits for two looks before it takes slices that nobody names for empty.
const LOOK_EVERY: u64 = 60;

/// The source.
#[derive(Debug)]
pub struct NvmlSource {
    /// Host of the GPUs.
    pub host: HostId,
    /// Its own name.
    pub hostname: String,
    /// Path of the library; absent = the usual places.
    pub library: Option<PathBuf>,
    /// Spacing of ticks, ms.
    pub interval_ms: u32,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

impl Source for NvmlSource {
    fn name(&self) -> &'static str {
        "nvml"
    }

    fn run(self: Box<Self>, out: Outlet, stop: Stop) {
        let Some(nvml) = self.load(&stop) else { return };
        let mut samplers: Samplers<GpuReading> = Samplers::default();
        let mut gpus: Vec<Found> = Vec::new();
        let mut beat = Beat::new(self.interval_ms);
        let deadline = Duration::from_millis(u64::from(self.interval_ms) / 2).min(Duration::from_millis(500));
        let (mut looked, mut watcher) = (false, Stop::default());
        while let Some(number) = beat.next(&stop) {
            if !looked || number.is_multiple_of(LOOK_EVERY) {
                looked = true;
                let boards = |gpus: &[Found]| gpus.iter().filter(|found| found.gpu.mig_parent_uuid.is_none()).count();
                let before = boards(&gpus);
                if self.discover(nvml, &mut gpus, &mut samplers) && !out.say(Signal::Host(self.facts(&gpus))) {
                    break;
                }
                // The set of watched GPUs is fixed when the waiting starts: new GPUs, new watcher.
                if boards(&gpus) > before {
                    watcher.stop();
                    watcher = Stop::default();
                    self.watch_events(nvml, &out, &watcher);
                }
            }
            if gpus.is_empty() {
                continue;
            }
            let at = Moment::now();
            let readings = samplers.read(deadline).into_iter().flatten().filter(|reading| reading.reading != Default::default()).collect();
            for hung in samplers.newly_hung(HUNG_AFTER_MS) {
                let kind = EventKind::SamplerHung { hung_ms: hung.hung_ms };
                let uuid = Some(gpus[hung.number].gpu.uuid.clone());
                out.say(Signal::Event(HostEvent { host: self.host.clone(), happened_at: wall_now(), uuid, kind, detail: None }));
            }
            let held = Held::SinceBoot(at.boot_ns);
            let tick = HostTick { host: self.host.clone(), sampled_at: at.wall, held, gpus: readings, delivery: Delivery::Normal };
            if !out.say(Signal::Tick(tick)) {
                break;
            }
        }
        watcher.stop();
    }
}

impl NvmlSource {
    /// The library, as soon as it can be loaded; nothing when asked to stop first.
    fn load(&self, stop: &Stop) -> Option<&'static Nvml> {
        let mut pause = RETRY.0;
        let mut said = String::new();
        let up = self.metrics.source_up.get_or_create(&by("endpoint", "nvml")).clone();
        loop {
            let mut errors = Vec::new();
            for path in self.places() {
                match Nvml::builder().lib_path(path.as_os_str()).init() {
                    Ok(nvml) => {
                        tracing::info!(library = %path.display(), driver = nvml.sys_driver_version().unwrap_or_default(), "NVML loaded");
                        up.set(1);
                        // For life: re-opening costs a GPU initialisation, and threads borrow it.
                        return Some(Box::leak(Box::new(nvml)));
                    }
                    Err(error) => errors.push(format!("{}: {error}", path.display())),
                }
            }
            up.set(0);
            self.metrics.source_errors.get_or_create(&by("cause", "nvml_absent")).inc();
            let text = errors.join("; ");
            if text != said {
                tracing::warn!("no NVML, trying again ({text})");
                said = text;
            }
            if stop.wait(pause) {
                return None;
            }
            pause = (pause * 2).min(RETRY.1);
        }
    }

    fn places(&self) -> Vec<PathBuf> {
        match &self.library {
            Some(path) => vec![path.clone()],
            None => ["libnvidia-ml.so.1", "/run/nvidia/driver/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"]
                .iter()
                .map(PathBuf::from)
                .collect(),
        }
    }

    /// Adds GPUs that were not there before, and notes how boards are cut now; whether something changed. One that has gone keeps its place and
    /// its thread.
    fn discover(&self, nvml: &'static Nvml, gpus: &mut Vec<Found>, samplers: &mut Samplers<GpuReading>) -> bool {
        let mut changed = false;
        for index in 0..nvml.device_count().unwrap_or(0) {
            let described = nvml.device_by_index(index).and_then(|device| describe(nvml, &device, index).map(|gpu| (device, gpu)));
            let (device, mut gpu) = match described {
                Ok(found) => found,
                Err(error) => {
                    self.metrics.source_errors.get_or_create(&by("cause", "nvml_device")).inc();
                    tracing::warn!(index, %error, "a GPU cannot be described");
                    continue;
                }
            };
            let instances = as_gpus(nvml, &mut gpu);
            for known in gpus.iter_mut().filter(|known| known.gpu.mig_parent_uuid.as_ref() == Some(&gpu.uuid)) {
                let is_there = instances.iter().any(|instance| instance.uuid == known.gpu.uuid);
                changed |= std::mem::replace(&mut known.is_there, is_there) != is_there;
            }
            let mut reader = Reader { device, uuid: gpu.uuid.clone(), unsupported: BTreeMap::new(), ticks: 0, metrics: self.metrics.clone() };
            changed |= found(gpu, gpus, samplers, move || reader.read());
            for instance in instances {
                let uuid = instance.uuid.clone();
                changed |= found(instance, gpus, samplers, move || read_instance(nvml, &uuid));
            }
        }
        changed
    }

    fn facts(&self, gpus: &[Found]) -> HostFacts {
        HostFacts {
            host: self.host.clone(),
            hostname: self.hostname.clone(),
            placement: Placement::default(),
            cpu_cores: std::thread::available_parallelism().ok().and_then(|cores| u32::try_from(cores.get()).ok()),
            ram_bytes: ram_bytes(),
            gpus: gpus.iter().filter(|found| found.is_there).map(|found| found.gpu.clone()).collect(),
        }
    }

    /// Starts the thread that waits for XIDs.
    fn watch_events(&self, nvml: &'static Nvml, out: &Outlet, stop: &Stop) {
        let (host, out, stop) = (self.host.clone(), out.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("nvml-events".to_owned());
        if let Err(error) = thread.spawn(move || watch(nvml, &host, &out, &stop)) {
            tracing::error!(%error, "no thread for NVML events");
        }
    }
}

/// A GPU or MIG instance that was found.
#[derive(Debug)]
struct Found {
    gpu: Gpu,
    /// Whether its board still names it; always so of a board.
    is_there: bool,
}

/// Notes what was found, and starts its thread if it is new; whether something changed. Of what is known already only how it is cut can change.
fn found(gpu: Gpu, gpus: &mut Vec<Found>, samplers: &mut Samplers<GpuReading>, read: impl FnMut() -> GpuReading + Send + 'static) -> bool {
    if let Some(known) = gpus.iter_mut().find(|known| known.gpu.uuid == gpu.uuid) {
        let (is_cut, is_of) = ((&gpu.mig, &gpu.mig_profile), &gpu.mig_parent_uuid);
        let changed = (is_cut, is_of) != ((&known.gpu.mig, &known.gpu.mig_profile), &known.gpu.mig_parent_uuid);
        (known.gpu.mig, known.gpu.mig_profile, known.gpu.mig_parent_uuid) = (gpu.mig, gpu.mig_profile, gpu.mig_parent_uuid);
        return changed;
    }
    let uuid = gpu.uuid.clone();
    match samplers.add(format!("gpu-{}", samplers.len()), read) {
        Ok(_) => gpus.push(Found { gpu, is_there: true }),
        Err(error) => {
            tracing::error!(%uuid, %error, "no thread for this GPU");
            return false;
        }
    }
    true
}

/// What a MIG instance says of itself. Its handle goes stale whenever its board is cut anew, so it is asked for each time.
fn read_instance(nvml: &Nvml, uuid: &GpuUuid) -> GpuReading {
    let mut out = GpuReading::new(uuid.clone());
    if let Ok(device) = nvml.device_by_uuid(uuid.as_str()) {
        if let Ok(memory) = device.memory_info() {
            out.reading.set(Field::MemoryUsedBytes, memory.used);
            out.reading.set(Field::MemoryTotalBytes, memory.total);
        }
        if let Ok(processes) = device.running_compute_processes_count() {
            out.reading.set(Field::Procs, u64::from(processes));
        }
    }
    out
}

/// Waits for XIDs of all GPUs until asked to stop.
fn watch(nvml: &'static Nvml, host: &HostId, out: &Outlet, stop: &Stop) {
    let Ok(mut set) = nvml.create_event_set() else { return };
    for index in 0..nvml.device_count().unwrap_or(0) {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        if !device.supported_event_types().is_ok_and(|types| types.contains(EventTypes::CRITICAL_XID_ERROR)) {
            continue;
        }
        set = match device.register_events(EventTypes::CRITICAL_XID_ERROR, set) {
            Ok(set) => set,
            Err(error) => {
                tracing::warn!(index, error = %error.error, "XIDs of this host are not watched");
                return;
            }
        };
    }
    while !stop.is_stopped() {
        let event = match set.wait(EVENT_WAIT_MS) {
            Ok(event) => event,
            Err(NvmlError::Timeout) => continue,
            Err(error) => {
                tracing::warn!(%error, "NVML events end");
                return;
            }
        };
        let code = match event.event_data {
            Some(XidError::Value(code)) => u32::try_from(code).unwrap_or(u32::MAX),
            Some(XidError::Unknown) => 999,
            None => continue,
        };
        let uuid = event.device.uuid().ok().and_then(|text| text.parse().ok());
        let event = HostEvent { host: host.clone(), happened_at: wall_now(), uuid, kind: EventKind::Xid { code }, detail: None };
        if !out.say(Signal::Event(event)) {
            return;
        }
    }
}

fn describe(nvml: &Nvml, device: &Device<'_>, index: u32) -> Result<Gpu, NvmlError> {
    let text = device.uuid()?;
    let uuid = text.parse::<GpuUuid>().map_err(|_| NvmlError::InvalidArg)?;
    Ok(Gpu {
        slot: Slot(0),
        mig: of_board(device, &uuid),
        uuid,
        index: u16::try_from(index).unwrap_or(u16::MAX),
        model: device.name().unwrap_or_else(|_| "unknown".to_owned()),
        memory_total_bytes: device.memory_info().ok().map(|memory| memory.total),
        mig_parent_uuid: None,
        mig_profile: None,
        arch: device.architecture().ok().map(|arch| arch.to_string().to_ascii_lowercase()),
        nvlink_domain: None,
        numa_node: device.numa_node_id().ok().and_then(|node| u16::try_from(node).ok()),
        pci_bus_id: device.pci_info().ok().map(|pci| pci.bus_id),
        driver_version: nvml.sys_driver_version().ok(),
        compute_capability: device.cuda_compute_capability().ok().map(|known| format!("{}.{}", known.major, known.minor)),
        power_limit_mw: device.enforced_power_limit().ok().map(u64::from),
        power_limit_max_mw: device.power_management_limit_constraints().ok().map(|limits| u64::from(limits.max_limit)),
        slowdown_temperature_mk: device.temperature_threshold(TemperatureThreshold::Slowdown).ok().map(millikelvin),
    })
}

fn millikelvin(celsius: u32) -> u64 {
    u64::from(celsius) * 1_000 + ZERO_CELSIUS_MK.unsigned_abs()
}

/// Reads one GPU, on its own thread.
struct Reader {
    device: Device<'static>,
    uuid: GpuUuid,
    /// What the driver said it does not have, and why.
    unsupported: BTreeMap<Field, Reason>,
    ticks: u32,
    metrics: Arc<Metrics>,
}

impl Reader {
    fn read(&mut self) -> GpuReading {
        let mut out = GpuReading::new(self.uuid.clone());
        // A driver may learn: what it did not have is asked for again hourly.
        if self.ticks.is_multiple_of(3_600) {
            self.unsupported.clear();
        }
        let device = &self.device;
        let (util, memory) = (device.utilization_rates(), device.memory_info());
        let values = [
            (Field::UtilPercent, util.as_ref().map(|util| u64::from(util.gpu)).map_err(reason)),
            (Field::MemoryUtilPercent, util.as_ref().map(|util| u64::from(util.memory)).map_err(reason)),
            (Field::MemoryUsedBytes, memory.as_ref().map(|memory| memory.used).map_err(reason)),
            (Field::MemoryTotalBytes, memory.as_ref().map(|memory| memory.total).map_err(reason)),
        ];
        for (field, value) in values {
            self.put(&mut out, field, value);
        }
        self.ask(&mut out, Field::PowerMw, |device| device.power_usage().map(u64::from));
        self.ask(&mut out, Field::TemperatureMk, |device| device.temperature(TemperatureSensor::Gpu).map(millikelvin));
        self.ask(&mut out, Field::MemoryTemperatureMk, memory_temperature);
        self.ask(&mut out, Field::SmClockMhz, |device| device.clock_info(Clock::SM).map(u64::from));
        self.ask(&mut out, Field::MemoryClockMhz, |device| device.clock_info(Clock::Memory).map(u64::from));
        self.ask(&mut out, Field::ThrottleBits, |device| device.current_throttle_reasons().map(|reasons| reasons.bits()));
        if self.ticks.is_multiple_of(SLOW_EVERY) {
            self.ask(&mut out, Field::EccUncorrected, |device| device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile));
            out.wear = wear(&self.device);
            self.ask(&mut out, Field::Procs, |device| device.running_compute_processes_count().map(u64::from));
        }
        if !self.unsupported.contains_key(&Field::EnergyMj) {
            match self.device.total_energy_consumption() {
                Ok(counter) => out.energy_counter_mj = Some(Number::from(counter)),
                Err(error) => self.put(&mut out, Field::EnergyMj, Err(reason(&error))),
            }
        }
        self.ticks = self.ticks.wrapping_add(1);
        out
    }

    fn ask(&mut self, out: &mut GpuReading, field: Field, call: impl Fn(&Device<'static>) -> Result<u64, NvmlError>) {
        if let Some(&reason) = self.unsupported.get(&field) {
            out.refused.push(Violation { field: Some(field), reason, raw: String::new() });
            return;
        }
        let value = call(&self.device).map_err(|error| reason(&error));
        self.put(out, field, value);
    }

    fn put(&mut self, out: &mut GpuReading, field: Field, value: Result<u64, Option<Reason>>) {
        match value {
            Ok(value) => out.reading.set(field, value),
            Err(Some(reason)) => {
                self.unsupported.insert(field, reason);
                out.refused.push(Violation { field: Some(field), reason, raw: String::new() });
            }
            Err(None) => {
                self.metrics.source_errors.get_or_create(&by("cause", "nvml_call")).inc();
                out.refused.push(Violation { field: Some(field), reason: Reason::Blank, raw: String::new() });
            }
        }
    }
}

/// A lasting reason to have no value; absent = the call may work next time.
fn reason(error: &NvmlError) -> Option<Reason> {
    if matches!(error, NvmlError::NotSupported | NvmlError::FunctionNotFound | NvmlError::FailedToLoadSymbol(_)) {
        Some(Reason::NotSupported)
    } else {
        matches!(error, NvmlError::NoPermission).then_some(Reason::NotPermitted)
    }
}

fn memory_temperature(device: &Device<'static>) -> Result<u64, NvmlError> {
    let sample = device.field_values_for(&[MEMORY_TEMPERATURE])?.into_iter().next().ok_or(NvmlError::NotFound)??;
    match sample.value? {
        SampleValue::U32(celsius) => Ok(millikelvin(celsius)),
        SampleValue::U64(celsius) => Ok(millikelvin(u32::try_from(celsius).unwrap_or(u32::MAX))),
        SampleValue::F64(_) | SampleValue::I64(_) => Err(NvmlError::NotSupported),
    }
}

/// What the board says about its memory; what it does not have stays absent.
fn wear(device: &Device<'static>) -> Wear {
    let remapped = device.field_values_for(&REMAPPED).unwrap_or_default();
    let value = |at: usize| match remapped.get(at)?.as_ref().ok()?.value {
        Ok(SampleValue::U32(value)) => Some(u64::from(value)),
        Ok(SampleValue::U64(value)) => Some(value),
        Ok(SampleValue::F64(_) | SampleValue::I64(_)) | Err(_) => None,
    };
    Wear {
        ecc_aggregate: device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Aggregate).ok(),
        remap: Wear::remap_of(value(1).map(|pending| pending != 0), value(2).map(|failed| failed != 0)),
        rows: value(0),
    }
}

fn ram_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib << 10)
}
