//! Rows made by hand.

use plimsoll_schemas::id::{CellId, DeviceKey, GpuUuid, HostId, LogEpoch, Position, Slot, TenantId};
use plimsoll_schemas::inventory::{Gpu, Placement};
use plimsoll_schemas::out::{DeviceState, LeaseState, Outcome};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::row::{
    DecisionRow, DeviceEventRow, DeviceRow, EpisodeKind, EpisodeRow, HostRow, HostWindowRow, Last, LeaseDeviceRow, LeaseRow, PlacedRow, RejectedRow,
    RequestRow, Row, SlotMask, StateTime, Stats, Tier, WindowRow,
};
use plimsoll_schemas::sketch::Sketch;
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};

pub const MODEL: &str = "NVIDIA H100 80GB HBM3";
pub const GIB: i64 = 1 << 30;

pub fn cell() -> CellId {
    "local".parse().expect("a token")
}

pub fn at(sequence: u64) -> Position {
    Position { epoch: LogEpoch(0), sequence }
}

pub fn placed(sequence: u64, ordinal: u32, row: Row) -> PlacedRow {
    PlacedRow { position: at(sequence), ordinal, row }
}

pub fn uuid(gpu: u16) -> GpuUuid {
    format!("GPU-{gpu:08}").parse().expect("a UUID")
}

pub fn key(gpu: u16) -> DeviceKey {
    uuid(gpu).key()
}

pub fn host(gpu: u16) -> HostId {
    format!("host-{}", gpu / 8).parse().expect("a token")
}

fn tenant(name: &str) -> TenantId {
    name.parse().expect("a token")
}

/// A window of one GPU with a sample a second at this percent, all of it leased to `lease` where one is given.
pub fn window(tier: Tier, gpu: u16, window_s: i64, percent: i16, lease: Option<&str>) -> WindowRow {
    let ms = tier.seconds() * 1_000;
    let mut sketch = Sketch::default();
    (0..tier.seconds()).for_each(|_| sketch.add(percent as u64));
    let used = 10 * GIB + i64::from(percent) * (GIB >> 4);
    let state = match lease {
        Some(_) => StateTime { allocated_ms: ms, allocated_idle_ms: if percent < 5 { ms } else { 0 }, ..StateTime::default() },
        None => StateTime { free_ms: ms, ..StateTime::default() },
    };
    WindowRow {
        window_at: EventTime(window_s * NS_PER_S),
        device_key: key(gpu),
        host: host(gpu),
        gpu_index: gpu % 8,
        model: MODEL.to_owned(),
        pool: None,
        part: 0,
        expected: tier.seconds() as u32,
        stats: Stats {
            received: tier.seconds() as u32,
            covered_ms: ms,
            util_percent_ms: i64::from(percent) * ms,
            util_percent_min: Some(percent),
            util_percent_max: Some(percent),
            util_sketch: sketch,
            memory_used_mib_ms: (used >> 20) * ms,
            memory_used_bytes_min: Some(used),
            memory_used_bytes_max: Some(used),
            energy_mj: 300 * ms,
            power_mw_max: Some(300_000),
            temperature_c_max: Some(60),
            throttle_thermal_ms: if percent > 90 { ms } else { 0 },
            last: Some(Last {
                at: EventTime((window_s + tier.seconds() - 1) * NS_PER_S),
                epoch: 1,
                sequence: window_s as u64,
                util_percent: Some(percent),
                memory_used_bytes: Some(used),
                memory_total_bytes: Some(80 * GIB),
            }),
            ..Stats::default()
        },
        state,
        tenant: lease.map(|_| tenant("acme")),
        lease_id: lease.map(str::to_owned),
    }
}

pub fn minute(sequence: u64, gpu: u16, window_s: i64, percent: i16) -> PlacedRow {
    placed(sequence, u32::from(gpu), Row::Window(Tier::Minute, Box::new(window(Tier::Minute, gpu, window_s, percent, None))))
}

pub fn device(sequence: u64, gpu: u16, valid_from_s: i64, valid_to_s: Option<i64>, state: DeviceState) -> PlacedRow {
    let row = DeviceRow {
        device_key: key(gpu),
        valid_from: LogTime(valid_from_s * NS_PER_S),
        valid_to: valid_to_s.map(|at| LogTime(at * NS_PER_S)),
        device_uuid: uuid(gpu),
        host: host(gpu),
        slot: Slot((gpu % 8) as u8),
        state,
        gpu: Gpu {
            slot: Slot((gpu % 8) as u8),
            uuid: uuid(gpu),
            index: gpu % 8,
            model: MODEL.to_owned(),
            memory_total_bytes: Some(80 * GIB as u64),
            mig_parent_uuid: None,
            mig_profile: None,
            mig: None,
            arch: Some("hopper".to_owned()),
            nvlink_domain: None,
            numa_node: None,
            pci_bus_id: None,
            driver_version: None,
            compute_capability: None,
            power_limit_mw: Some(700_000),
            power_limit_max_mw: None,
            slowdown_temperature_mk: None,
        },
    };
    placed(sequence, u32::from(gpu), Row::Device(Box::new(row)))
}

pub fn host_row(sequence: u64, gpu: u16, valid_from_s: i64) -> PlacedRow {
    let row = HostRow {
        host: host(gpu),
        valid_from: LogTime(valid_from_s * NS_PER_S),
        valid_to: None,
        hostname: format!("{}.example.com", host(gpu)),
        placement: Placement::default(),
        agent_version: "0.1.0".to_owned(),
        gpu_count: 8,
        cpu_cores: Some(96),
        ram_bytes: Some(1 << 40),
        state: DeviceState::Ok,
        clock_skew_ms: None,
    };
    placed(sequence, 900, Row::Host(Box::new(row)))
}

pub fn request(sequence: u64, id: &str, at_s: i64, n_gpus: u32) -> PlacedRow {
    let row = RequestRow {
        request_id: id.to_owned(),
        requested_at: LogTime(at_s * NS_PER_S),
        tenant: tenant("acme"),
        workload: Some("train".to_owned()),
        n_gpus,
        memory_per_gpu_bytes: 40 * GIB,
        model: None,
        same_host: true,
        same_nvlink: false,
        duration_ms: None,
        priority: 0,
        labels: None,
    };
    placed(sequence, 901, Row::Request(Box::new(row)))
}

pub fn decision(sequence: u64, number: u64, request: &str, at_s: i64, outcome: Outcome, queue_ms: i64) -> PlacedRow {
    let row = DecisionRow {
        decision_id: format!("local-0-{sequence}-0"),
        decision_seq: number,
        request_id: request.to_owned(),
        tenant: tenant("acme"),
        decided_at: LogTime(at_s * NS_PER_S),
        outcome,
        reason: (outcome != Outcome::Placed).then_some(Reason::ALL[0]),
        attempt: 1,
        queue_ms,
        score_micro: (outcome == Outcome::Placed).then_some(250_000),
        candidates: None,
        policy: "headroom".to_owned(),
        policy_version: 1,
        hosts_considered: 2,
        hosts_feasible: 1,
        lease_id: (outcome == Outcome::Placed).then(|| format!("lease-{request}")),
    };
    placed(sequence, 902, Row::Decision(Box::new(row)))
}

pub fn lease(sequence: u64, request: &str, granted_s: i64, state: LeaseState) -> PlacedRow {
    let row = LeaseRow {
        lease_id: format!("lease-{request}"),
        request_id: request.to_owned(),
        tenant: tenant("acme"),
        n_gpus: 1,
        state,
        granted_at: LogTime(granted_s * NS_PER_S),
        expires_at: LogTime((granted_s + 600) * NS_PER_S),
        ended_at: (state == LeaseState::Ended).then_some(LogTime((granted_s + 60) * NS_PER_S)),
        end_reason: (state == LeaseState::Ended).then(|| "released".to_owned()),
    };
    placed(sequence, 903, Row::Lease(Box::new(row)))
}

pub fn lease_device(sequence: u64, request: &str, gpu: u16, from_s: i64, to_s: Option<i64>) -> PlacedRow {
    let row = LeaseDeviceRow {
        lease_id: format!("lease-{request}"),
        device_key: key(gpu),
        host: host(gpu),
        tenant: tenant("acme"),
        from_at: LogTime(from_s * NS_PER_S),
        to_at: to_s.map(|at| LogTime(at * NS_PER_S)),
        memory_reserved_bytes: 40 * GIB,
    };
    placed(sequence, 904, Row::LeaseDevice(Box::new(row)))
}

pub fn rejected(sequence: u64, at_s: i64) -> PlacedRow {
    let row = RejectedRow {
        rejected_at: EventTime(at_s * NS_PER_S),
        logged_at: LogTime(at_s * NS_PER_S),
        host: Some(host(0)),
        device_key: Some(key(0)),
        field: Some(plimsoll_schemas::sample::Field::UtilPercent),
        reason: Reason::ALL[0],
        raw_value: "101".to_owned(),
        source: "agent".to_owned(),
        epoch: Some(1),
        seq: Some(7),
    };
    placed(sequence, 905, Row::Rejected(Box::new(row)))
}

pub fn event(sequence: u64, at_s: i64) -> PlacedRow {
    let row = DeviceEventRow {
        happened_at: EventTime(at_s * NS_PER_S),
        device_key: Some(key(0)),
        host: host(0),
        kind: "xid".to_owned(),
        code: Some(79),
        severity: "fatal".to_owned(),
        detail: None,
    };
    placed(sequence, 906, Row::DeviceEvent(Box::new(row)))
}

/// A minute of a host with slots 0..=65, in which those given were free, and of them the first one with memory to spare.
pub fn host_window(sequence: u64, window_s: i64, free: &[u8]) -> PlacedRow {
    let mask = |slots: &[u8]| {
        let mut mask = SlotMask::of_words(2);
        slots.iter().for_each(|&slot| mask.set_if(Slot(slot), true));
        mask
    };
    let row = HostWindowRow {
        window_at: EventTime(window_s * NS_PER_S),
        host: host(0),
        model: MODEL.to_owned(),
        pool: None,
        gpus_total: 66,
        gpus_up: 66,
        gpus_free_min: Some(free.len() as u16),
        gpus_free_max: Some(free.len() as u16 + 1),
        gpus_alloc_max: None,
        gpus_idle_alloc_min: 0,
        free: mask(free),
        free_by_memory: std::array::from_fn(|class| mask(if class == 0 { &free[..1] } else { &[] })),
        largest_free_nvlink: None,
        mig_total: 0,
        mig_free: mask(&[]),
    };
    placed(sequence, 907, Row::HostWindow(Box::new(row)))
}

pub fn episode(sequence: u64, kind: EpisodeKind, from_s: i64, to_s: Option<i64>, evidence: &str) -> PlacedRow {
    let row = EpisodeRow {
        device_key: key(0),
        host: host(0),
        kind,
        started_at: EventTime(from_s * NS_PER_S),
        ended_at: to_s.map(|at| EventTime(at * NS_PER_S)),
        evidence: Some(evidence.to_owned()),
    };
    placed(sequence, 908, Row::Episode(Box::new(row)))
}
