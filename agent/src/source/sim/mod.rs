//! A simulated fleet: N hosts × G GPUs in one process, seeded, with a fault script. The same seed and tick give the same readings;
//! only the time stamps are the machine's own. Hosts tick spread over the interval, so that a thousand of them are a stream, not a burst.

pub mod faults;
pub mod fleet;
pub mod mig;

use plimsoll_schemas::id::HostId;
use plimsoll_schemas::inventory::{Gpu, Placement};
use plimsoll_schemas::time::EventTime;

use self::faults::Script;
use self::fleet::Fleet;
use super::{Delivery, GpuReading, Held, HostEvent, HostFacts, HostTick, Outlet, Signal, Source};
use crate::clock::{Moment, Stop, boot_ns};
use crate::metrics::Metrics;

use std::sync::Arc;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hosts, at least 1.
    pub hosts: u32,
    /// GPUs per host, 1..=256.
    pub gpus: u32,
    /// How many of them, the last ones, have MIG mode on where their model can.
    pub mig_gpus: u32,
    /// Seed of everything.
    pub seed: u64,
    /// Spacing of ticks, ms.
    pub interval_ms: u32,
    /// Stop after that many ticks; absent = run on.
    pub ticks: Option<u64>,
    /// Simulated seconds per second: jobs come and go that much faster.
    pub speed: f64,
    /// Faults.
    pub script: Script,
}

/// The source.
#[derive(Debug)]
pub struct Sim {
    settings: Settings,
    metrics: Arc<Metrics>,
}

/// Widest slice of an interval in which several hosts tick together, ns.
const SLICE_NS: u64 = 10_000_000;

impl Sim {
    /// A fleet as set.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Self {
        Self { settings, metrics }
    }

    fn facts(fleet: &Fleet, host: usize) -> HostFacts {
        let simulated = &fleet.hosts[host];
        HostFacts {
            host: simulated.id.clone(),
            hostname: simulated.id.to_string(),
            placement: Placement {
                cluster: Some("sim".to_owned()),
                zone: Some(format!("sim-{}", char::from(b'a' + (host / 64 % 3) as u8))),
                rack: Some(format!("rack-{:02}", host / 8)),
                pool: Some(simulated.model.pool.to_owned()),
            },
            cpu_cores: Some(simulated.model.cpu_cores),
            ram_bytes: Some(simulated.model.ram_gib << 30),
            gpus: (0..simulated.gpus.len()).map(|gpu| fleet.describe(host, gpu)).collect::<Vec<Gpu>>(),
        }
    }
}

impl Source for Sim {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn run(self: Box<Self>, out: Outlet, stop: Stop) {
        let Settings { hosts, gpus, mig_gpus, seed, interval_ms, ticks, speed, script } = self.settings;
        let mut fleet = Fleet::new(seed, hosts, gpus).with_mig(mig_gpus);
        for host in 0..fleet.hosts.len() {
            if !out.say(Signal::Host(Self::facts(&fleet, host))) {
                return;
            }
        }
        let interval_ns = u64::from(interval_ms) * 1_000_000;
        let step_ms = (f64::from(interval_ms) * speed).round().max(1.0) as u64;
        let start_ns = boot_ns();
        for tick in 0..ticks.unwrap_or(u64::MAX) {
            let tick_ns = start_ns + tick * interval_ns;
            // A whole interval late: the machine cannot keep up, and old news is worth nothing. The fleet itself lives on.
            let late = boot_ns() > tick_ns + 2 * interval_ns;
            let mut slept_ns = 0;
            for host in 0..fleet.hosts.len() {
                fleet.step(host, step_ms);
                if late {
                    self.metrics.ticks_missed.inc();
                    continue;
                }
                let due_ns = tick_ns + interval_ns / u64::from(hosts) * host as u64;
                if due_ns >= slept_ns + SLICE_NS || slept_ns == 0 {
                    if stop.wait_until(due_ns) {
                        return;
                    }
                    slept_ns = due_ns;
                }
                if !say_tick(&fleet, host, tick, &script, &out) {
                    return;
                }
            }
        }
        out.say(Signal::Finished);
    }
}

/// Says one tick of one host as the fault script has it; false = nobody listens.
fn say_tick(fleet: &Fleet, host: usize, tick: u64, script: &Script, out: &Outlet) -> bool {
    let now = Moment::now();
    let mut sampled_at = now.wall;
    let id: &HostId = &fleet.hosts[host].id;
    let mut gpus: Vec<GpuReading> = (0..fleet.hosts[host].gpus.len()).map(|gpu| fleet.read(host, gpu)).collect();
    let mut delivery = Delivery::Normal;
    for fault in script.active(id.as_str(), tick) {
        let first = tick == fault.from_tick;
        match &fault.kind {
            faults::Kind::Vanish if fault.gpus.is_empty() => return true,
            faults::Kind::Vanish => faults::vanish(&mut gpus, fault),
            faults::Kind::BadValues => faults::spoil(&mut gpus, fault, tick, faults::BAD_VALUES),
            faults::Kind::Sentinels => faults::spoil(&mut gpus, fault, tick, faults::SENTINELS),
            faults::Kind::Xid { code } => {
                for uuid in fault.uuids(&gpus).into_iter().filter(|_| first) {
                    let event = xid(id, sampled_at, uuid, *code);
                    if !out.say(Signal::Event(event)) {
                        return false;
                    }
                }
            }
            faults::Kind::Late { ticks, backfill } => delivery = Delivery::After { ticks: *ticks, backfill: *backfill },
            faults::Kind::Duplicate => delivery = Delivery::Twice,
            faults::Kind::ClockStep { step_ms } => sampled_at = sampled_at.plus_ms(*step_ms),
        }
    }
    out.say(Signal::Tick(HostTick { host: id.clone(), sampled_at, held: Held::SinceBoot(now.boot_ns), gpus, delivery }))
}

fn xid(host: &HostId, happened_at: EventTime, uuid: plimsoll_schemas::id::GpuUuid, code: u32) -> HostEvent {
    HostEvent {
        host: host.clone(),
        happened_at,
        uuid: Some(uuid),
        kind: plimsoll_schemas::inventory::EventKind::Xid { code },
        detail: Some("fault script".to_owned()),
    }
}
