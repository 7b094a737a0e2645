//! Measuring, and the fleet that is measured. Benchmarks print figures for people; nothing here passes or fails by time.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and prints its table")]

pub mod cell;

use std::time::{Duration, Instant};

use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::{Gpu, Inventory, Placement, VERSION};
use plimsoll_schemas::request::{Bundle, Place};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, NS_PER_S};

/// How long one line of a table is measured.
const MEASURED_FOR: Duration = Duration::from_secs(1);
/// Most calls that are timed one by one.
const CALLS_MAX: usize = 1_000_000;
/// When the measured fleet's time begins, seconds.
pub const BEGIN_S: i64 = 1_767_225_600;

/// How long calls took, nanoseconds each.
#[derive(Debug, Clone, Copy)]
pub struct Measured {
    /// How many were timed.
    pub calls: usize,
    /// Half were faster.
    pub median_ns: u64,
    /// 99 of 100 were faster.
    pub p99_ns: u64,
    /// All of them over their number.
    pub mean_ns: u64,
}

/// Calls `work` for about a second, after a tenth of it to warm up.
pub fn measure<T>(mut work: impl FnMut() -> T) -> Measured {
    let begin = Instant::now();
    while begin.elapsed() < MEASURED_FOR / 10 {
        std::hint::black_box(work());
    }
    measure_after(|| (), |()| work())
}

/// Calls `work` for about a second, each time after something that is not timed.
pub fn measure_after<P, T>(mut prepare: impl FnMut() -> P, mut work: impl FnMut(P) -> T) -> Measured {
    let begin = Instant::now();
    let mut took = Vec::new();
    while begin.elapsed() < MEASURED_FOR && took.len() < CALLS_MAX {
        let prepared = prepare();
        let call = Instant::now();
        std::hint::black_box(work(prepared));
        took.push(call.elapsed().as_nanos() as u64);
    }
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Measured { calls: took.len(), median_ns: at(0.5), p99_ns: at(0.99), mean_ns: took.iter().sum::<u64>() / took.len() as u64 }
}

/// How long `work` took, once.
pub fn time<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed())
}

/// Prints a row of columns, the first one left, the others right.
pub fn row(cells: &[&str]) {
    let line: String = cells.iter().enumerate().map(|(n, cell)| if n == 0 { format!("{cell:<36}") } else { format!("{cell:>14}") }).collect();
    println!("{}", line.trim_end());
}

/// The name of a host of the measured fleet.
pub fn host(number: usize) -> HostId {
    format!("host-{number:05}").parse().expect("a token")
}

/// The UUID of a GPU of the measured fleet.
pub fn uuid(host: usize, gpu: usize) -> GpuUuid {
    format!("GPU-{host:08x}-{gpu:04x}").parse().expect("a UUID")
}

/// A sample with the usual fields of a data centre GPU, different for each `seed`.
pub fn sample(seed: usize) -> Sample {
    let wave = (seed.wrapping_mul(2_654_435_761) >> 7) as u64;
    Sample::default()
        .with(Field::UtilPercent, wave % 101)
        .with(Field::MemoryUtilPercent, wave % 67)
        .with(Field::MemoryUsedBytes, (wave % 80) << 30)
        .with(Field::MemoryTotalBytes, 80 << 30)
        .with(Field::PowerMw, 80_000 + wave % 620_000)
        .with(Field::EnergyMj, 80_000 + wave % 620_000)
        .with(Field::TemperatureMk, 303_150 + wave % 45_000)
        .with(Field::SmClockMhz, 345 + wave % 1_635)
        .with(Field::MemoryClockMhz, 2_619)
        .with(Field::ThrottleBits, wave % 2 * 4)
        .with(Field::Procs, wave % 3)
}

/// The frame of one host: `ticks` seconds from `second` on.
pub fn frame(number: usize, gpus: usize, second: i64, ticks: usize, sequence: u64) -> Frame {
    Frame {
        host: host(number),
        epoch: 1,
        sequence,
        boot_id: Some([7; 16]),
        inventory_revision: 1,
        interval_ms: 1_000,
        backfill: false,
        slots: (0..gpus).map(|gpu| Slot(gpu as u8)).collect(),
        ticks: (0..ticks as i64).map(|tick| Tick { sampled_at: EventTime((BEGIN_S + second + tick) * NS_PER_S), held_ms: 1_000 }).collect(),
        samples: (0..gpus * ticks).map(|row| sample(number * 31 + second as usize * 7 + row)).collect(),
        rejected: Vec::new(),
        rejected_more: 0,
    }
}

/// A request for so many GPUs of one host, thousandths of each and GiB of its memory.
pub fn place(request_id: &str, count: u32, milli: u32, vram_gib: u64) -> Place {
    Place {
        request_id: request_id.to_owned(),
        bundles: vec![Bundle { count, milli, vram_bytes: vram_gib << 30, ..Bundle::default() }],
        ..Place::default()
    }
}

/// The registration of one host.
pub fn inventory(number: usize, gpus: usize) -> Inventory {
    let gpu = |gpu: usize| Gpu {
        slot: Slot(gpu as u8),
        uuid: uuid(number, gpu),
        index: gpu as u16,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory_total_bytes: Some(80 << 30),
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
        power_limit_max_mw: Some(700_000),
        slowdown_temperature_mk: Some(363_150),
    };
    Inventory {
        schema_version: VERSION,
        host: host(number),
        epoch: 1,
        sequence: 1,
        revision: 1,
        sent_at: EventTime(BEGIN_S * NS_PER_S),
        hostname: format!("host-{number:05}.example"),
        agent_version: "0".to_owned(),
        source: "sim".to_owned(),
        interval_ms: 1_000,
        placement: Placement::default(),
        cpu_cores: None,
        ram_bytes: None,
        gpus: (0..gpus).map(gpu).collect(),
    }
}
