//! How fast the fold is: `fold_rate [hosts] [gpus] [seconds]` folds that many hosts at 1 Hz, with a commit every ten seconds, and prints one line.
#![expect(clippy::disallowed_methods, reason = "this measures real time")]

use std::io::Write;
use std::time::Instant;

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{LogEpoch, Position, Slot};
use plimsoll_schemas::inventory::{Gpu, Inventory, Placement};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};

const START_S: i64 = 1_800_000_000;
const TOTAL: u64 = 80 << 30;

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let (hosts, gpus, seconds) = (args.next().unwrap_or(1_000), args.next().unwrap_or(8), args.next().unwrap_or(60));
    let mut state = State::new("bench".parse().expect("valid"));
    let mut effects = Effects::default();
    let mut sequence = 0;
    let mut step = |state: &mut State, effects: &mut Effects, second: u64, body: Body| {
        sequence += 1;
        let record = Record { position: Position { epoch: LogEpoch(0), sequence }, logged_at: LogTime((START_S + second as i64) * NS_PER_S), body };
        let started = Instant::now();
        state.step(&record, effects);
        started.elapsed()
    };
    step(&mut state, &mut effects, 0, Body::Control(Box::new(Control::Enrol { hosts: vec![] })));
    for host in 0..hosts {
        step(&mut state, &mut effects, 0, Body::Inventory(Box::new(inventory(host, gpus))));
    }
    let (mut folding, mut committing, mut rows, mut bytes) = (std::time::Duration::ZERO, std::time::Duration::ZERO, 0, 0);
    for second in 1..=seconds {
        for host in 0..hosts {
            folding += step(&mut state, &mut effects, second, Body::Frame(Box::new(frame(host, gpus, second))));
        }
        rows += effects.rows.len();
        effects = Effects::default();
        if second % 10 == 0 {
            let started = Instant::now();
            bytes += state.take_dirty().iter().map(|entry| entry.value.as_ref().map_or(0, Vec::len)).sum::<usize>();
            committing += started.elapsed();
        }
    }
    let samples = (hosts * gpus * seconds) as f64;
    writeln!(
        std::io::stdout(),
        "{samples} samples, {rows} rows: fold {:.2} M samples/s, with commits {:.2} M samples/s, commit {:.1} ms and {:.1} MB each",
        samples / folding.as_secs_f64() / 1e6,
        samples / (folding + committing).as_secs_f64() / 1e6,
        committing.as_secs_f64() * 1e3 / (seconds / 10).max(1) as f64,
        bytes as f64 / 1e6 / (seconds / 10).max(1) as f64,
    )
    .expect("stdout");
}

fn inventory(host: u64, gpus: u64) -> Inventory {
    let gpu = |g: u64| Gpu {
        slot: Slot(g as u8),
        uuid: format!("GPU-{host:08x}-{g:04x}").parse().expect("valid"),
        index: g as u16,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory_total_bytes: Some(TOTAL),
        mig_parent_uuid: None,
        mig_profile: None,
        arch: None,
        nvlink_domain: None,
        numa_node: None,
        pci_bus_id: None,
        driver_version: None,
        power_limit_mw: None,
        power_limit_max_mw: Some(700_000),
        slowdown_temperature_mk: None,
    };
    Inventory {
        schema_version: 1,
        host: format!("host-{host}").parse().expect("valid"),
        epoch: 1,
        sequence: 1,
        revision: 1,
        sent_at: EventTime(START_S * NS_PER_S),
        hostname: String::new(),
        agent_version: String::new(),
        source: "sim".to_owned(),
        interval_ms: 1_000,
        placement: Placement::default(),
        cpu_cores: None,
        ram_bytes: None,
        gpus: (0..gpus).map(gpu).collect(),
    }
}

fn frame(host: u64, gpus: u64, second: u64) -> Frame {
    let noise = |g: u64| (host * 31 + g * 17 + second * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let sample = |g: u64| {
        Sample::default()
            .with(Field::UtilPercent, noise(g) % 101)
            .with(Field::MemoryUtilPercent, noise(g) % 60)
            .with(Field::MemoryUsedBytes, (40 << 30) + (noise(g) << 10))
            .with(Field::MemoryTotalBytes, TOTAL)
            .with(Field::PowerMw, 300_000 + noise(g) % 300_000)
            .with(Field::EnergyMj, 400_000 + noise(g) % 1_000)
            .with(Field::TemperatureMk, 320_000 + noise(g) % 30_000)
            .with(Field::SmClockMhz, 1_900)
            .with(Field::ThrottleBits, 0)
    };
    Frame {
        host: format!("host-{host}").parse().expect("valid"),
        epoch: 1,
        sequence: second,
        boot_id: None,
        inventory_revision: 1,
        interval_ms: 1_000,
        backfill: false,
        slots: (0..gpus).map(|g| Slot(g as u8)).collect(),
        ticks: vec![Tick { sampled_at: EventTime((START_S + second as i64) * NS_PER_S), held_ms: 1_000 }],
        samples: (0..gpus).map(sample).collect(),
        rejected: vec![],
        rejected_more: 0,
    }
}
