//! A seeded fleet that misbehaves: the records of a log, drawn from a seed, with everything that hosts, networks and tenants do.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod fleet;
pub mod placing;

use std::collections::BTreeMap;

use plimsoll_schemas::alert::{Limit, Rule, Severity, Signal};
use plimsoll_schemas::control::{Control, Cordon, Tick as Beat};
use plimsoll_schemas::frame::{Frame, Rejected, Tick};
use plimsoll_schemas::id::{CellId, GpuUuid, HostId, LogEpoch, Position, Slot, TenantId};
use plimsoll_schemas::inventory::{EventKind, Gpu, HostEvent, Inventory, Placement, Remap};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::request::{Bundle, Cancel, Distribute, Place, Release, Renew, Request, Strategy};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS, NS_PER_S};

/// Ten minutes before an hour begins, 2026.
pub const START_S: i64 = 1_799_999_400;
pub const GIB: u64 = 1 << 30;
pub const TOTAL: u64 = 80 * GIB;

pub fn cell() -> CellId {
    "test".parse().expect("valid")
}

/// A frame of one sample of a host's first GPU, taken now.
pub fn frame(host: usize, epoch: u64, sequence: u64, now_ns: i64) -> Frame {
    Frame {
        host: host_id(host),
        epoch,
        sequence,
        boot_id: None,
        inventory_revision: 1,
        interval_ms: 1_000,
        backfill: false,
        slots: vec![Slot(0)],
        ticks: vec![Tick { sampled_at: EventTime(now_ns), held_ms: 1_000 }],
        samples: vec![Sample::default().with(Field::UtilPercent, 50)],
        rejected: vec![],
        rejected_more: 0,
    }
}

/// xorshift64*: small, seeded, good enough to shake a fold.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// True in `percent` of 100.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub fn uuid(host: usize, gpu: usize) -> GpuUuid {
    format!("GPU-{host}-{gpu}").parse().expect("valid")
}

pub fn host_id(host: usize) -> HostId {
    format!("host-{host}").parse().expect("valid")
}

pub fn tenant(n: u64) -> TenantId {
    format!("tenant-{n}").parse().expect("valid")
}

pub fn gpu(host: usize, slot: usize) -> Gpu {
    Gpu {
        slot: Slot(slot as u8),
        uuid: uuid(host, slot),
        index: slot as u16,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory_total_bytes: Some(TOTAL),
        mig_parent_uuid: None,
        mig_profile: None,
        mig: None,
        arch: None,
        nvlink_domain: None,
        numa_node: None,
        pci_bus_id: None,
        driver_version: None,
        compute_capability: None,
        power_limit_mw: Some(700_000),
        power_limit_max_mw: Some(700_000),
        slowdown_temperature_mk: None,
    }
}

pub fn inventory(host: usize, epoch: u64, sequence: u64, revision: u32, gpus: Vec<Gpu>) -> Inventory {
    Inventory {
        schema_version: 1,
        host: host_id(host),
        epoch,
        sequence,
        revision,
        sent_at: EventTime(START_S * NS_PER_S),
        hostname: format!("host-{host}.example"),
        agent_version: "0.1.0".to_owned(),
        source: "sim".to_owned(),
        interval_ms: 1_000,
        placement: Placement { pool: Some("blue".to_owned()), ..Placement::default() },
        cpu_cores: Some(64),
        ram_bytes: None,
        gpus,
    }
}

/// Builds a log, record by record.
#[derive(Debug, Default)]
pub struct Log {
    pub records: Vec<Record>,
    pub now_ns: i64,
}

impl Log {
    pub fn starting_at(seconds: i64) -> Self {
        Self { records: Vec::new(), now_ns: seconds * NS_PER_S }
    }

    pub fn push(&mut self, body: Body) {
        let sequence = self.records.len() as u64 + 1;
        self.records.push(Record { position: Position { epoch: LogEpoch(0), sequence }, logged_at: LogTime(self.now_ns), body });
    }

    pub fn beat(&mut self) {
        self.push(Body::Tick(Beat { replica: "a".to_owned(), second: self.now_ns / NS_PER_S }));
    }

    /// Lets seconds pass, a beat each.
    pub fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now_ns += NS_PER_S;
            self.beat();
        }
    }
}

/// One simulated host.
#[derive(Debug)]
struct Sim {
    epoch: u64,
    sequence: u64,
    event_sequence: u64,
    revision: u32,
    gpus: Vec<usize>,
    last_tick_ns: Option<i64>,
    ticks: Vec<(Tick, Vec<Sample>)>,
    /// Frames on their way: (log time at which they arrive, frame).
    flying: Vec<(i64, Frame)>,
    silent_until_ns: i64,
    backlog: bool,
    skew_ns: i64,
}

/// How a scenario runs.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub hosts: usize,
    pub gpus: usize,
    /// How long it runs, seconds of log time, before everything is left to drain for an hour and a bit.
    pub seconds: i64,
    /// Whether log time stalls and jumps now and then.
    pub stalls: bool,
    /// Whether tenants ask for GPUs.
    pub tenants: bool,
    /// Whether GPUs vanish and return.
    pub churn: bool,
}

/// The records of one seed.
pub fn scenario(seed: u64, plan: Plan) -> Vec<Record> {
    let mut rng = Rng::new(seed);
    let mut log = Log::starting_at(START_S);
    log.push(Body::Control(Box::new(Control::Enrol { hosts: Vec::new() })));
    let mut sims: Vec<Sim> = (0..plan.hosts)
        .map(|n| Sim {
            epoch: 1_000,
            sequence: 0,
            event_sequence: 0,
            revision: 0,
            gpus: (0..plan.gpus).collect(),
            last_tick_ns: None,
            ticks: Vec::new(),
            flying: Vec::new(),
            silent_until_ns: 0,
            backlog: false,
            skew_ns: [0, -700_000_000, 900_000_000][n % 3],
        })
        .collect();
    for (n, sim) in sims.iter_mut().enumerate() {
        announce(n, sim, &mut log);
    }
    let mut tenants = Tenants::default();
    // Draws of its own, so that what the fleet does is the same with and without an operator.
    let mut operator = Rng::new(seed ^ 0x0b5e_55ed);
    for second in 0..plan.seconds {
        log.now_ns += NS_PER_S;
        if plan.stalls && rng.below(900) == 0 {
            log.now_ns += [3, 45, 200][rng.below(3) as usize] * NS_PER_S;
        }
        log.beat();
        for (n, sim) in sims.iter_mut().enumerate() {
            live(n, sim, second, plan, &mut rng, &mut log);
        }
        if plan.tenants {
            tenants.act(&mut rng, &mut log, plan);
            operate(&mut operator, &mut log, plan);
        }
    }
    for sim in &mut sims {
        arrive(sim, i64::MAX, &mut log);
    }
    log.pass(3_600 + 300);
    log.records
}

fn announce(n: usize, sim: &mut Sim, log: &mut Log) {
    sim.revision += 1;
    sim.event_sequence += 1;
    // Boards in odd slots know their limit, and come near it now and then.
    let limit_mk = |g: usize| (g % 2 == 1).then_some(366_150);
    // What boards may draw changes with every announcement.
    let power_limit_mw = [Some(300_000), None, Some(500_000)][(n + sim.revision as usize) % 3];
    let gpus = sim.gpus.iter().map(|&g| Gpu { slowdown_temperature_mk: limit_mk(g), power_limit_mw, ..gpu(n, g) }).collect();
    log.push(Body::Inventory(Box::new(inventory(n, sim.epoch, sim.event_sequence, sim.revision, gpus))));
}

/// One second of a host: sample, perhaps send, perhaps misbehave.
fn live(n: usize, sim: &mut Sim, second: i64, plan: Plan, rng: &mut Rng, log: &mut Log) {
    arrive(sim, log.now_ns, log);
    if rng.below(1_500) == 0 {
        // The agent restarts: what it had not sent is lost.
        sim.epoch += 1;
        (sim.sequence, sim.event_sequence, sim.revision, sim.last_tick_ns) = (0, 0, 0, None);
        sim.ticks.clear();
        announce(n, sim, log);
    }
    if plan.churn && rng.below(700) == 0 {
        sim.ticks.clear();
        if sim.gpus.len() < plan.gpus {
            sim.gpus = (0..plan.gpus).collect();
        } else {
            sim.gpus.remove(rng.below(plan.gpus as u64) as usize);
        }
        announce(n, sim, log);
    }
    if rng.below(900) == 0 {
        // The network goes away for up to eight minutes; then everything comes as backlog.
        sim.silent_until_ns = log.now_ns + rng.below(480) as i64 * NS_PER_S;
    }
    if rng.below(400) == 0 {
        let code = [13, 31, 79, 48, 43][rng.below(5) as usize];
        // Now and then the event waits on the host.
        let age_s = if rng.chance(20) { rng.below(300) as i64 } else { 0 };
        host_event(n, sim, rng.below(plan.gpus as u64) as usize, EventKind::Xid { code }, age_s, log);
    }
    if rng.below(150) == 0 {
        // Mostly cures.
        let kinds = [
            EventKind::GpuLost,
            EventKind::GpuReturned,
            EventKind::GpuReturned,
            EventKind::Ecc { volatile: rng.below(2), aggregate: 17 },
            EventKind::Remap { state: [Remap::Pending, Remap::Failed][rng.below(2) as usize], rows: 2 },
            EventKind::Remap { state: Remap::Clean, rows: 2 },
            EventKind::Remap { state: Remap::Clean, rows: 2 },
        ];
        let kind = kinds[rng.below(7) as usize].clone();
        host_event(n, sim, rng.below(plan.gpus as u64) as usize, kind, 0, log);
    }
    if rng.below(60) != 0 {
        let at_ns = log.now_ns + sim.skew_ns + rng.below(200) as i64 * NS_PER_MS;
        sample(sim, rng, at_ns);
    }
    if second % 3 == n as i64 % 3 || rng.chance(10) {
        send(n, sim, rng, log);
    }
}

fn host_event(n: usize, sim: &mut Sim, gpu: usize, kind: EventKind, age_s: i64, log: &mut Log) {
    sim.event_sequence += 1;
    log.push(Body::Event(Box::new(HostEvent {
        schema_version: 1,
        host: host_id(n),
        epoch: sim.epoch,
        sequence: sim.event_sequence,
        happened_at: EventTime(log.now_ns - age_s * NS_PER_S),
        uuid: Some(uuid(n, gpu)),
        kind,
        detail: None,
    })));
}

fn sample(sim: &mut Sim, rng: &mut Rng, at_ns: i64) {
    let held_ms = sim.last_tick_ns.map_or(0, |last| ((at_ns - last) / NS_PER_MS).clamp(0, 2_500)) as u32;
    sim.last_tick_ns = Some(at_ns);
    let samples = sim
        .gpus
        .iter()
        .map(|_| {
            let mut sample = Sample::default();
            let mut maybe = |field: Field, value: u64, rng: &mut Rng| {
                if !rng.chance(8) {
                    sample.set(field, value);
                }
            };
            let (util, used) = (rng.below(101), rng.below(2 * TOTAL / 3));
            maybe(Field::UtilPercent, if rng.chance(30) { rng.below(5) } else { util }, rng);
            maybe(Field::MemoryUsedBytes, if rng.chance(40) { rng.below(GIB) } else { used }, rng);
            maybe(Field::MemoryTotalBytes, TOTAL, rng);
            maybe(Field::PowerMw, 60_000 + rng.below(640_000) + u64::from(rng.chance(1)) * 2_000_000, rng);
            if rng.chance(50) {
                maybe(Field::EnergyMj, rng.below(1_000_000), rng);
            }
            maybe(Field::TemperatureMk, 293_150 + rng.below(70_000), rng);
            maybe(Field::EccUncorrected, u64::from(rng.below(400) == 0), rng);
            maybe(Field::ThrottleBits, [0, 0, 4, 0x20, 0x40, 0x80, 0x24][rng.below(7) as usize], rng);
            sample
        })
        .collect();
    sim.ticks.push((Tick { sampled_at: EventTime(at_ns), held_ms }, samples));
}

fn send(n: usize, sim: &mut Sim, rng: &mut Rng, log: &mut Log) {
    let silent = log.now_ns < sim.silent_until_ns;
    if sim.ticks.is_empty() || (silent && sim.ticks.len() < 500) {
        sim.backlog |= silent;
        return;
    }
    let backlog = std::mem::take(&mut sim.backlog);
    let ticks = std::mem::take(&mut sim.ticks);
    // A change of inventory clears the ticks, so all samples have the width of the present one.
    let (ticks, samples): (Vec<Tick>, Vec<Vec<Sample>>) = ticks.into_iter().unzip();
    sim.sequence += 1;
    let rejected = (rng.chance(3))
        .then(|| Rejected { field: Some(Field::PowerMw), tick: 0, gpu: 0, reason: Reason::PowerTooHigh, raw: "9999".to_owned() })
        .into_iter()
        .collect();
    let frame = Frame {
        host: host_id(n),
        epoch: sim.epoch,
        sequence: sim.sequence,
        boot_id: None,
        inventory_revision: sim.revision,
        interval_ms: 1_000,
        backfill: backlog,
        slots: sim.gpus.iter().map(|&g| Slot(g as u8)).collect(),
        ticks,
        samples: samples.concat(),
        rejected,
        rejected_more: 0,
    };
    if rng.chance(2) {
        return; // Lost for good.
    }
    let delay_s = match rng.below(100) {
        0..85 => 0,
        85..95 => rng.below(10),
        95..99 => rng.below(200),
        _ => rng.below(3_000),
    };
    if rng.chance(6) {
        sim.flying.push((log.now_ns + rng.below(900) as i64 * NS_PER_S, frame.clone()));
    }
    sim.flying.push((log.now_ns + delay_s as i64 * NS_PER_S, frame));
    arrive(sim, log.now_ns, log);
}

fn arrive(sim: &mut Sim, now_ns: i64, log: &mut Log) {
    let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut sim.flying).into_iter().partition(|(at, _)| *at <= now_ns);
    sim.flying = later;
    for (_, frame) in due {
        log.push(Body::Frame(Box::new(frame)));
    }
}

/// An operator who drains hosts, puts them back and changes the alert rules.
fn operate(rng: &mut Rng, log: &mut Log, plan: Plan) {
    let control = match rng.below(400) {
        0 => {
            let what = Cordon::Host(host_id(rng.below(plan.hosts as u64) as usize));
            let grace_ms = rng.chance(50).then(|| rng.below(120_000));
            Control::Drain { what, grace_ms }
        }
        1..=4 => Control::Uncordon(Cordon::Host(host_id(rng.below(plan.hosts as u64) as usize))),
        5 | 6 => Control::AlertRule(Rule {
            name: format!("rule_{}", rng.below(3)),
            severity: Severity::Warning,
            signal: Signal::ALL[rng.below(Signal::ALL.len() as u64) as usize],
            limit: if rng.chance(50) { Limit::Above(rng.below(60) as i64) } else { Limit::Below(rng.below(60) as i64) },
            clear: None,
            for_s: rng.below(3) as u32 * 20,
            cooldown_s: rng.below(3) as u32 * 45,
            summary: None,
        }),
        8 => {
            let policy = ["hybrid", "best_fit", "random", "headroom"][rng.below(4) as usize].to_owned();
            Control::Placement { policy, version: 1, power_weight: rng.below(3) as u32 * 10 }
        }
        10 => Control::Revoke { lease_id: format!("lease-test-{}", rng.below(9)) },
        9 => Control::Quota { tenant: tenant(rng.below(2)), gpu_milli_max: rng.chance(50).then(|| rng.below(6) * 1_000) },
        7 => Control::RemoveAlertRule { name: format!("rule_{}", rng.below(3)) },
        _ => return,
    };
    log.push(Body::Control(Box::new(control)));
}

/// Tenants that ask, renew, release, repeat themselves and talk nonsense.
#[derive(Debug, Default)]
struct Tenants {
    asked: u64,
    requests: BTreeMap<u64, (TenantId, Request)>,
}

impl Tenants {
    fn act(&mut self, rng: &mut Rng, log: &mut Log, plan: Plan) {
        match rng.below(60) {
            0 | 1 => {
                let place = Place {
                    request_id: format!("r{}", self.asked),
                    bundles: vec![Bundle {
                        count: 1 + rng.below(2) as u32,
                        milli: [1_000, 500, 300][rng.below(3) as usize],
                        vram_bytes: rng.below(40) * GIB,
                        members: 1 + rng.below(8) as u32 / 6,
                        cpu_milli: rng.below(40) * 1_000,
                        ..Bundle::default()
                    }],
                    lease_ttl_ms: Some([10_000, 60_000, 600_000][rng.below(3) as usize]),
                    max_wait_ms: rng.chance(50).then(|| rng.below(120_000)),
                    not_before: rng.chance(10).then(|| EventTime(log.now_ns + rng.below(60) as i64 * NS_PER_S)),
                    duration_ms: rng.chance(50).then(|| rng.below(60_000)),
                    priority: rng.below(3) as i16,
                    preemptible: rng.chance(50),
                    policy: rng.chance(10).then(|| ["random", "headroom", "fgd", "tw@1", "none"][rng.below(5) as usize].to_owned()),
                    ..Place::default()
                };
                self.ask(rng, Request::Place(place), log);
            }
            2 => {
                // Leases are numbered, so a tenant can guess; often it is not its own.
                let lease_id = format!("lease-test-{}", rng.below(self.asked + 1));
                self.ask(rng, Request::Release(Release { request_id: format!("r{}", self.asked), lease_id }), log);
            }
            3 => {
                let lease_ids = (0..5).map(|_| format!("lease-test-{}", rng.below(self.asked + 1))).collect();
                self.ask(rng, Request::Renew(Renew { request_id: format!("r{}", self.asked), lease_ids }), log);
            }
            4 => {
                let request = Distribute {
                    request_id: format!("r{}", self.asked),
                    items: rng.below(1_000),
                    strategy: if rng.chance(50) { Strategy::Uniform } else { Strategy::Capacity },
                    devices: None,
                    weights: None,
                    max_per_device: None,
                };
                self.ask(rng, Request::Distribute(request), log);
            }
            8 => {
                let cancels = format!("r{}", self.asked.saturating_sub(1 + rng.below(3)));
                self.ask(rng, Request::Cancel(Cancel { request_id: format!("r{}", self.asked), cancels }), log);
            }
            5 if self.asked > 0 => {
                let (tenant, request) = self.requests[&rng.below(self.asked)].clone();
                log.push(Body::Request(tenant, Box::new(request)));
            }
            6 => {
                let what = Cordon::Gpu(uuid(rng.below(plan.hosts as u64) as usize, rng.below(plan.gpus as u64) as usize));
                log.push(Body::Control(Box::new(if rng.chance(40) { Control::Cordon(what) } else { Control::Uncordon(what) })));
            }
            7 if rng.chance(10) => {
                let uuid = uuid(rng.below(plan.hosts as u64) as usize, rng.below(plan.gpus as u64) as usize);
                log.push(Body::Control(Box::new(Control::Free { uuid })));
            }
            _ => {}
        }
    }

    fn ask(&mut self, rng: &mut Rng, request: Request, log: &mut Log) {
        let tenant = tenant(rng.below(2));
        self.requests.insert(self.asked, (tenant.clone(), request.clone()));
        self.asked += 1;
        log.push(Body::Request(tenant, Box::new(request)));
    }
}
