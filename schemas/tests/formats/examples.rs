//! One value of every message, with every optional field in use somewhere.

use std::collections::BTreeMap;

use plimsoll_schemas::alert::{Limit, Rule, Scope, Severity, Signal};
use plimsoll_schemas::candidates::Candidates;
use plimsoll_schemas::control::{Check, Control, Cordon, NewEpoch, Tick};
use plimsoll_schemas::ctl::{Class, Ctl, Repair};
use plimsoll_schemas::frame::{self, Frame, Rejected};
use plimsoll_schemas::id::{CellId, DeviceKey, GpuUuid, HostId, LogEpoch, Position, Slot, TenantId};
use plimsoll_schemas::inventory::{EventKind, Gpu, HostEvent, Inventory, Placement, Remap};
use plimsoll_schemas::mig::{Instance, Mig, Profile, Promise};
use plimsoll_schemas::out::{
    AlertChanged, AlertState, Assignment, Decided, DeviceChanged, DeviceState, Distributed, Gap, GapState, HostChanged, HostShare, LeaseChanged,
    LeaseGrant, LeaseState, NearestMiss, Outcome, Output, PaceChanged, PaceCounts, PaceState, Payload, PolicyChanged, PreemptionProposed,
    RejectedOut, RunnerUp, ScoreParts, Victim,
};
use plimsoll_schemas::pace::{Mode, Pace, Preset};
use plimsoll_schemas::policy::{Cordoned, Placing, Policy, Quota, SetBy};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::Body;
use plimsoll_schemas::request::{
    AntiAffinity, Bundle, Cancel, Constraints, Distribute, Domain, Locality, Place, Release, Renew, Request, Spread, Strategy, Topology,
};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::settings::Settings;
use plimsoll_schemas::subject::{LogSubject, OutSubject};
use plimsoll_schemas::tables::{Learned, Tables};
use plimsoll_schemas::time::{EventTime, LogTime};

/// 2026-01-02T03:04:05.678901234Z
const AT: i64 = 1_767_323_045_678_901_234;

pub fn cell() -> CellId {
    "east-1".parse().expect("valid")
}

pub fn host() -> HostId {
    "gpu-1_dexample".parse().expect("valid")
}

fn tenant() -> TenantId {
    "research".parse().expect("valid")
}

fn uuid(number: u32) -> GpuUuid {
    format!("GPU-00000000-0000-0000-0000-{number:012}").parse().expect("valid")
}

fn position() -> Position {
    Position { epoch: LogEpoch(1), sequence: 4_711 }
}

pub fn frame() -> Frame {
    let full = Field::ALL.iter().fold(Sample::default(), |sample, &field| sample.with(field, field.max()));
    let usual = Sample::default()
        .with(Field::UtilPercent, 87)
        .with(Field::MemoryUsedBytes, 42_949_672_960)
        .with(Field::MemoryTotalBytes, 85_520_809_984)
        .with(Field::PowerMw, 512_345)
        .with(Field::EnergyMj, 0)
        .with(Field::TemperatureMk, 338_150);
    Frame {
        host: host(),
        epoch: 3,
        sequence: 1_000_000,
        boot_id: Some(*b"0123456789abcdef"),
        inventory_revision: 2,
        interval_ms: 1_000,
        backfill: true,
        slots: vec![Slot(0), Slot(255)],
        ticks: vec![
            frame::Tick { sampled_at: EventTime(AT), held_ms: 0 },
            frame::Tick { sampled_at: EventTime(AT + 1_000_000_000), held_ms: 1_000 },
            frame::Tick { sampled_at: EventTime(AT - 5_000_000), held_ms: 2_500 },
        ],
        samples: vec![full, usual, Sample::default(), usual.with(Field::UtilPercent, 0), usual, full],
        rejected: vec![
            Rejected { field: Some(Field::UtilPercent), tick: 1, gpu: 0, reason: Reason::UtilizationOutOfRange, raw: "808334905".to_owned() },
            Rejected { field: None, tick: 2, gpu: 1, reason: Reason::TimestampInFuture, raw: String::new() },
        ],
        rejected_more: 7,
    }
}

fn inventory() -> Inventory {
    let plain = Gpu {
        slot: Slot(0),
        uuid: uuid(1),
        index: 0,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory_total_bytes: Some(85_520_809_984),
        mig_parent_uuid: None,
        mig_profile: None,
        mig: None,
        arch: Some("hopper".to_owned()),
        nvlink_domain: Some(0),
        numa_node: Some(1),
        pci_bus_id: Some("00000000:1B:00.0".to_owned()),
        driver_version: Some("570.86.15".to_owned()),
        compute_capability: None,
        power_limit_mw: Some(700_000),
        power_limit_max_mw: Some(700_000),
        slowdown_temperature_mk: Some(360_150),
    };
    let instance = Gpu {
        slot: Slot(1),
        uuid: "MIG-5fd15f09-d04c-5e64-a8a1-c9b3d1aaf5f0".parse().expect("valid"),
        mig_parent_uuid: Some(uuid(1)),
        mig_profile: Some("1g.10gb".to_owned()),
        memory_total_bytes: None,
        arch: None,
        nvlink_domain: None,
        numa_node: None,
        pci_bus_id: None,
        compute_capability: None,
        driver_version: None,
        power_limit_mw: None,
        power_limit_max_mw: None,
        slowdown_temperature_mk: None,
        ..plain.clone()
    };
    let text = |text: &str| Some(text.to_owned());
    Inventory {
        schema_version: 1,
        host: host(),
        epoch: 3,
        sequence: 1,
        revision: 2,
        sent_at: EventTime(AT),
        hostname: "gpu-1.example".to_owned(),
        agent_version: "0.1.0".to_owned(),
        source: "nvml".to_owned(),
        interval_ms: 1_000,
        placement: Placement { cluster: text("c"), zone: text("z"), rack: text("r"), pool: text("p") },
        cpu_cores: Some(128),
        ram_bytes: Some(2_164_663_517_184),
        gpus: vec![plain, instance],
    }
}

/// A board with MIG mode on, an instance that jobs can use and one that they cannot use yet.
fn inventory_mig() -> Inventory {
    let said = inventory();
    let profile = |name: &str, gib: u64, size: u8, starts: &[u8], instances_max| Profile {
        name: name.to_owned(),
        memory_bytes: gib << 30,
        size,
        starts: starts.to_vec(),
        instances_max,
    };
    let instance = |start, size, profile: &str, uuid| Instance { profile: profile.to_owned(), start, size, uuid };
    let mig = Mig {
        profiles: vec![
            profile("1g.10gb", 10, 1, &[0, 1, 2, 3, 4, 5, 6], None),
            profile("1g.10gb+me", 10, 1, &[0, 1, 2, 3, 4, 5, 6], Some(1)),
            profile("2g.20gb", 20, 2, &[0, 2, 4], None),
            profile("3g.40gb", 40, 4, &[0, 4], None),
        ],
        instances: vec![instance(6, 1, "1g.10gb", Some(said.gpus[1].uuid.clone())), instance(0, 2, "2g.20gb", None)],
    };
    let [board, one] = <[Gpu; 2]>::try_from(said.gpus.clone()).expect("two");
    Inventory { gpus: vec![Gpu { mig: Some(mig), ..board }, one], ..said }
}

fn event(sequence: u64, kind: EventKind) -> HostEvent {
    let about_a_gpu = matches!(kind, EventKind::Xid { .. } | EventKind::Ecc { .. } | EventKind::Remap { .. } | EventKind::GpuLost);
    HostEvent {
        schema_version: 1,
        host: host(),
        epoch: 3,
        sequence,
        happened_at: EventTime(AT),
        uuid: about_a_gpu.then(|| uuid(1)),
        kind,
        detail: about_a_gpu.then(|| "GPU has fallen off the bus".to_owned()),
    }
}

fn place() -> Place {
    Place {
        request_id: "train-42".to_owned(),
        bundles: vec![Bundle { count: 8, milli: 1_000, vram_bytes: 68_719_476_736, ..Bundle::default() }],
        model: Some("NVIDIA H100 80GB HBM3".to_owned()),
        workload: Some("train".to_owned()),
        duration_ms: Some(3_600_000),
        priority: -1,
        lease_ttl_ms: Some(600_000),
        labels: [("team".to_owned(), "nlp".to_owned())].into(),
        ..Place::default()
    }
}

/// Everything a placement request can say.
fn gang() -> Place {
    let labels: BTreeMap<String, String> = [("app".to_owned(), "db".to_owned())].into();
    Place {
        request_id: "gang-1".to_owned(),
        bundles: vec![
            Bundle { name: Some("worker".to_owned()), count: 8, members: 4, cpu_milli: 64_000, memory_bytes: 1 << 39, ..Bundle::default() },
            Bundle { mig_profile: Some("1g.10gb".to_owned()), ..Bundle::default() },
        ],
        models: vec!["NVIDIA H100 80GB HBM3".to_owned(), "NVIDIA H200".to_owned()],
        constraints: Constraints {
            driver_min: Some("550.54".to_owned()),
            compute_capability_min: Some("9.0".to_owned()),
            within: [(Domain::Pool, "blue".to_owned())].into(),
            anti_affinity: Some(AntiAffinity { labels: labels.clone(), over: Domain::Rack }),
            topology: Some(Topology { scope: Locality::Nvlink, required: true }),
            spread: Some(Spread { over: Domain::Host, required: false }),
        },
        priority: 3,
        preemptible: true,
        not_before: Some(EventTime(AT)),
        max_wait_ms: Some(3_600_000),
        policy: Some("best_fit@1".to_owned()),
        labels,
        ..Place::default()
    }
}

/// A message of the LOG: a name for its file, where it goes, what it says.
pub struct LogExample {
    pub name: &'static str,
    pub subject: LogSubject,
    pub body: Body,
}

/// One of every message of the LOG and of every kind within it.
pub fn log_messages() -> Vec<LogExample> {
    let event_of = |name, sequence, kind| (name, LogSubject::Event(host()), Body::Event(Box::new(event(sequence, kind))));
    let request_of = |name, request| (name, LogSubject::Request(tenant()), Body::Request(tenant(), Box::new(request)));
    let control_of = |name, control| (name, LogSubject::Control, Body::Control(Box::new(control)));
    let distribute = Distribute {
        request_id: "split-1".to_owned(),
        items: 1_000_000,
        strategy: Strategy::Capacity,
        devices: Some(vec![uuid(1), uuid(2)]),
        weights: Some([(uuid(1), 3), (uuid(2), i64::MAX)].into()),
        max_per_device: Some(600_000),
    };
    let uniform = Distribute { strategy: Strategy::Uniform, devices: None, weights: None, max_per_device: None, ..distribute.clone() };
    let settings =
        Settings { vram_limit_bp: Some(9_000), free_memory_bytes_max: Some(536_870_912), free_after_ms: Some(30_000), ..Settings::default() };
    let minimal = Place { model: None, workload: None, duration_ms: None, priority: 0, lease_ttl_ms: None, labels: BTreeMap::new(), ..place() };
    [
        ("sample", LogSubject::Sample(host()), Body::Frame(Box::new(frame()))),
        ("inventory", LogSubject::Inventory(host()), Body::Inventory(Box::new(inventory()))),
        event_of("event-xid", 2, EventKind::Xid { code: 79 }),
        event_of("event-gpu_lost", 3, EventKind::GpuLost),
        event_of("event-gpu_returned", 4, EventKind::GpuReturned),
        event_of("event-clock_step", 5, EventKind::ClockStep { step_ms: -3_600_000 }),
        event_of("event-sampler_hung", 6, EventKind::SamplerHung { hung_ms: 31_000 }),
        event_of("event-gap", 7, gap_event(Class::Sample, None)),
        event_of("event-refused", 8, EventKind::Refused { reason: Reason::Undecodable, raw: "<html>".to_owned() }),
        event_of("event-stopping", 9, EventKind::Stopping),
        event_of("event-ecc", 10, EventKind::Ecc { volatile: 2, aggregate: 17 }),
        event_of("event-remap", 11, EventKind::Remap { state: Remap::Pending, rows: 3 }),
        event_of("event-gap-of-events", 12, gap_event(Class::Event, Some(2))),
        request_of("request-place", Request::Place(place())),
        request_of("request-place-minimal", Request::Place(minimal)),
        request_of("request-renew", Request::Renew(Renew { request_id: "n-1".to_owned(), lease_ids: vec!["l-1".to_owned(), "l-2".to_owned()] })),
        request_of("request-release", Request::Release(Release { request_id: "n-2".to_owned(), lease_id: "l-1".to_owned() })),
        request_of("request-distribute", Request::Distribute(distribute)),
        request_of("request-distribute-uniform", Request::Distribute(uniform)),
        control_of("control-enrol", Control::Enrol { hosts: vec![host()] }),
        control_of("control-enrol-all", Control::Enrol { hosts: Vec::new() }),
        control_of("control-expel", Control::Expel { host: host() }),
        control_of("control-cordon", Control::Cordon(Cordon::Host(host()))),
        control_of("control-uncordon", Control::Uncordon(Cordon::Gpu(uuid(1)))),
        control_of("control-free", Control::Free { uuid: uuid(1) }),
        control_of("control-sealed", Control::Sealed { version: 9, position: position() }),
        control_of("control-settings", Control::Settings(settings)),
        control_of("control-drain", Control::Drain { what: Cordon::Host(host()), grace_ms: Some(600_000) }),
        control_of("control-placement", Control::Placement { policy: "headroom".to_owned(), version: 1, power_weight: 0 }),
        control_of("control-placement-power", Control::Placement { policy: "hybrid".to_owned(), version: 1, power_weight: 5 }),
        control_of("control-alert_rule", Control::AlertRule(rule())),
        control_of("control-remove_alert_rule", Control::RemoveAlertRule { name: "gpu_hot".to_owned() }),
        control_of("control-logic", Control::Logic { version: 1 }),
        control_of("control-pace", Control::Pace { tenant: None, pace: Preset::Default.pace() }),
        control_of("control-pace-tenant", Control::Pace { tenant: Some(tenant()), pace: pace() }),
        control_of("control-end_pace", Control::EndPace { tenant: Some(tenant()) }),
        request_of("request-place-gang", Request::Place(gang())),
        request_of("request-cancel", Request::Cancel(Cancel { request_id: "cancel-1".to_owned(), cancels: "train-42".to_owned() })),
        control_of("control-revoke", Control::Revoke { lease_id: "lease-east-1-7".to_owned() }),
        control_of("control-quota", Control::Quota { tenant: tenant(), gpu_milli_max: Some(64_000) }),
        control_of("control-tables", Control::Tables(Box::new(learned()))),
        ("tick", LogSubject::Tick, Body::Tick(Tick { replica: "p-1".to_owned(), second: 1_767_323_045 })),
        (
            "check",
            LogSubject::Check,
            Body::Check(Check { replica: "p-1".to_owned(), position: position(), hash: "00ff00ff00ff00ff".to_owned(), logic: 1 }),
        ),
        ("epoch", LogSubject::Epoch, Body::Epoch(Box::new(new_epoch()))),
        ("inventory-mig", LogSubject::Inventory(host()), Body::Inventory(Box::new(inventory_mig()))),
    ]
    .into_iter()
    .map(|(name, subject, body)| LogExample { name, subject, body })
    .collect()
}

fn gap_event(class: Class, of_epoch: Option<u64>) -> EventKind {
    EventKind::Gap { from_sequence: 10, to_sequence: 12, class, of_epoch, cause: "buffer_full".to_owned() }
}

/// One of every request to an agent: a name for its file, what it says.
pub fn ctl_messages() -> Vec<(&'static str, Ctl)> {
    let repair = Repair { host: host(), epoch: 3, class: Class::Sample, from_sequence: 10, to_sequence: 12 };
    vec![("repair", Ctl::Repair(repair))]
}

fn new_epoch() -> NewEpoch {
    let adopted = ["place.decided-placed", "place.decided-rejected", "lease.changed"];
    let adopted = outputs().into_iter().filter(|example| adopted.contains(&example.name));
    NewEpoch {
        epoch: LogEpoch(2),
        base: position(),
        base_hash: "00ff00ff00ff00ff".to_owned(),
        after: 17,
        out_seq: 8,
        adopted: adopted.map(|example| serde_json::from_slice(&example.output.bytes).expect("an output is an event")).collect(),
    }
}

/// The bytes of a message of the LOG as its sender makes them.
pub fn to_bytes(body: &Body) -> Vec<u8> {
    let json = match body {
        Body::Frame(frame) => return frame.encode(),
        Body::Inventory(inventory) => serde_json::to_vec(inventory),
        Body::Event(event) => serde_json::to_vec(event),
        Body::Request(_, request) => serde_json::to_vec(request),
        Body::Control(control) => serde_json::to_vec(control),
        Body::Tick(tick) => serde_json::to_vec(tick),
        Body::Check(check) => serde_json::to_vec(check),
        Body::Epoch(epoch) => serde_json::to_vec(epoch),
        Body::Refused(refused) => panic!("nobody sends a refusal: {refused:?}"),
    };
    json.expect("plain structs serialise")
}

/// The file of the JSON Schema that a message of the LOG follows; none for frames.
pub fn schema_of(subject: &LogSubject) -> Option<&'static str> {
    match subject {
        LogSubject::Sample(_) => None,
        LogSubject::Inventory(_) => Some("inventory"),
        LogSubject::Event(_) => Some("event"),
        LogSubject::Request(_) => Some("request"),
        LogSubject::Control => Some("control"),
        LogSubject::Tick => Some("tick"),
        LogSubject::Check => Some("check"),
        LogSubject::Epoch => Some("epoch"),
    }
}

/// An event of OUT: a name for its file, the content, the whole output.
pub struct OutExample {
    pub name: &'static str,
    pub payload: Payload,
    pub output: Output,
}

/// One of every payload of OUT, with and without its optional parts.
pub fn outputs() -> Vec<OutExample> {
    let decision = || OutSubject::Decision(tenant());
    let payloads = [
        ("place.decided-placed", decision(), Payload::Decided(placed())),
        ("place.decided-rejected", decision(), Payload::Decided(rejected())),
        ("work.distributed", decision(), Payload::Distributed(distributed())),
        ("lease.changed", OutSubject::Lease(tenant()), Payload::Lease(lease_changed())),
        ("device.changed", OutSubject::Device, Payload::Device(device_changed())),
        ("host.changed", OutSubject::Device, Payload::Host(host_changed())),
        ("rejected", OutSubject::Rejected, Payload::Rejected(rejected_out())),
        ("gap-host", OutSubject::Gap, Payload::Gap(gap(Some(host())))),
        ("gap-log", OutSubject::Gap, Payload::Gap(gap(None))),
        ("gap-repaired", OutSubject::Gap, Payload::Gap(Gap { class: Some(Class::Event), state: GapState::Repaired, ..gap(Some(host())) })),
        ("alert.changed-gpu", OutSubject::Alert, Payload::Alert(Box::new(alert_changed()))),
        ("alert.changed-cell", OutSubject::Alert, Payload::Alert(Box::new(cell_alert()))),
        ("policy.changed-logic", OutSubject::Policy, policy_changed(Policy::Logic, "fold")),
        ("policy.changed-alert_rule", OutSubject::Policy, policy_changed(Policy::AlertRule(rule()), "gpu_hot")),
        ("policy.changed-cordon", OutSubject::Policy, policy_changed(Policy::Cordon(cordoned()), "host/gpu-1_dexample")),
        ("policy.changed-enrolment", OutSubject::Policy, policy_changed(Policy::Enrolment, "*")),
        ("policy.changed-pace", OutSubject::Policy, policy_changed(Policy::Pace(pace()), "tenant/research")),
        ("pace.changed-paused", OutSubject::Policy, Payload::Pace(Box::new(paused()))),
        ("pace.changed-resumed", OutSubject::Policy, Payload::Pace(Box::new(resumed()))),
        ("policy.changed-tables", OutSubject::Policy, policy_changed(Policy::Tables(Box::new(learned())), "placement")),
        ("policy.changed-quota", OutSubject::Policy, policy_changed(Policy::Quota(Quota { gpu_milli_max: 64_000 }), "research")),
        ("place.decided-gang", decision(), Payload::Decided(gang_placed())),
        ("place.decided-deferred", decision(), Payload::Decided(deferred())),
        ("preemption.proposed", decision(), Payload::Preemption(Box::new(preemption()))),
        ("place.decided-mig", decision(), Payload::Decided(mig_placed())),
        ("place.decided-power", decision(), Payload::Decided(power_placed())),
        ("policy.changed-placement-power", OutSubject::Policy, policy_changed(Policy::Placement(Placing { power_weight: 5 }), "hybrid")),
    ];
    let make = |(place, (name, to, payload)): (u32, (&'static str, OutSubject, Payload))| {
        let output = Output::new(&cell(), u64::from(place) + 1, position(), place, LogTime(AT), &to, payload.clone());
        OutExample { name, payload, output }
    };
    (0..).zip(payloads).map(make).collect()
}

fn gang_placed() -> Decided {
    let one = placed();
    let gpu = |member| Assignment { member, bundle: Some("worker".to_owned()), ..one.assignments[0].clone() };
    let share = HostShare { host: host(), cpu_milli: 128_000, memory_bytes: 1 << 40 };
    let lease = one.lease.clone().map(|lease| LeaseGrant {
        hosts: vec![share],
        priority: 3,
        preemptible: true,
        labels: [("app".to_owned(), "db".to_owned())].into(),
        ..lease
    });
    Decided {
        state_hash: "00c0ffee00c0ffee".to_owned(),
        policy: "hybrid@1".to_owned(),
        tables_hash: Some("0123456789abcdef".to_owned()),
        mix_hash: Some("fedcba9876543210".to_owned()),
        attempt: 3,
        queue_ms: 2_000,
        assignments: vec![gpu(0), gpu(1)],
        lease,
        score_micro: Some(-2_000_000),
        parts: Some(parts()),
        runners_up: vec![RunnerUp { host: host(), score_micro: -3_000_000, parts: Some(parts()) }],
        candidates: Some(Candidates::of([Some(Reason::Stale), None, None, Some(Reason::LeaseConflict)])),
        by_gpu_alone: true,
        ..one
    }
}

/// A place for an instance that is to be made.
fn mig_placed() -> Decided {
    let one = placed();
    let promise = Promise { profile: "2g.20gb".to_owned(), start: 4, size: 2 };
    let assignments = vec![Assignment { vram_bytes: 20 << 30, mig: Some(promise), ..one.assignments[0].clone() }];
    Decided { refused: [(Reason::MigNoSlice, 3), (Reason::MigStart, 1)].into(), assignments, score_micro: Some(-333_333), ..one }
}

/// A decision in which power counted.
fn power_placed() -> Decided {
    let with = ScoreParts { power_mw: Some(612_500), ..parts() };
    Decided { policy: "hybrid@1".to_owned(), power_weight: 5, score_micro: Some(3_500_000), parts: Some(with), ..placed() }
}

fn parts() -> ScoreParts {
    ScoreParts { fragmentation_milli: 120, waste_milli: -40, scarcity_milli: 250, power_mw: None }
}

fn deferred() -> Decided {
    let miss = NearestMiss { host: host(), gpus: 7, gpus_needed: 8, reason: Reason::LeaseConflict, hosts: 14 };
    Decided { outcome: Outcome::Deferred, nearest_miss: Some(miss), earliest_at: Some(LogTime(AT).rfc3339()), ..rejected() }
}

fn preemption() -> PreemptionProposed {
    PreemptionProposed {
        request_id: "train-42".to_owned(),
        tenant: tenant(),
        priority: 3,
        position: position(),
        victims: vec![Victim { lease_id: "lease-east-1-7".to_owned(), tenant: tenant(), priority: -1 }],
        device_uuids: vec![uuid(1), uuid(2)],
    }
}

fn placed() -> Decided {
    Decided {
        decision_id: "east-1-1-4711-0".to_owned(),
        decision_seq: 17,
        request_id: "train-42".to_owned(),
        tenant: tenant(),
        outcome: Outcome::Placed,
        reason: None,
        detail: None,
        position: position(),
        state_hash: String::new(),
        policy: "headroom@1".to_owned(),
        power_weight: 0,
        tables_hash: None,
        mix_hash: None,
        attempt: 1,
        queue_ms: 0,
        hosts_considered: 16,
        hosts_feasible: 3,
        refused: [(Reason::Stale, 2), (Reason::LeaseConflict, 40)].into(),
        assignments: vec![Assignment {
            device_uuid: uuid(1),
            device_key: DeviceKey::of(&uuid(1)),
            host: host(),
            slot: Slot(0),
            gpu_index: 0,
            milli: 1_000,
            vram_bytes: 68_719_476_736,
            score_micro: 987_654,
            member: 0,
            bundle: None,
            mig: None,
        }],
        lease: Some(LeaseGrant {
            lease_id: "l-1".to_owned(),
            fence: 17,
            ttl_ms: 600_000,
            expires_at: LogTime(AT).plus_ms(600_000).rfc3339(),
            hosts: Vec::new(),
            priority: 0,
            preemptible: false,
            labels: BTreeMap::new(),
        }),
        score_micro: None,
        parts: None,
        runners_up: vec![RunnerUp { host: host(), score_micro: 900_000, parts: None }],
        candidates: None,
        nearest_miss: None,
        earliest_at: None,
        by_gpu_alone: false,
    }
}

fn rejected() -> Decided {
    Decided {
        outcome: Outcome::Rejected,
        reason: Some(Reason::TooFewDevices),
        detail: Some("8 GPUs on one host are needed: 6 of 8 could take it, at most 6 on one host".to_owned()),
        assignments: Vec::new(),
        lease: None,
        runners_up: Vec::new(),
        ..placed()
    }
}

fn distributed() -> Distributed {
    Distributed {
        decision_id: "east-1-1-4711-2".to_owned(),
        decision_seq: 18,
        request_id: "split-1".to_owned(),
        tenant: tenant(),
        outcome: Outcome::Placed,
        reason: None,
        detail: None,
        position: position(),
        counts: [(uuid(1), 600_000), (uuid(2), 400_000)].into(),
        unassigned: 0,
    }
}

fn lease_changed() -> LeaseChanged {
    LeaseChanged {
        lease_id: "l-1".to_owned(),
        request_id: "train-42".to_owned(),
        tenant: tenant(),
        state: LeaseState::Draining,
        cause: "expired".to_owned(),
        fence: 17,
        device_uuids: vec![uuid(1)],
    }
}

fn device_changed() -> DeviceChanged {
    DeviceChanged {
        device_uuid: uuid(1),
        device_key: DeviceKey::of(&uuid(1)),
        host: host(),
        slot: Slot(0),
        state: DeviceState::Failed,
        cause: "xid".to_owned(),
        detail: Some("79".to_owned()),
    }
}

fn host_changed() -> HostChanged {
    HostChanged { host: host(), state: DeviceState::Lost, cause: "silent".to_owned(), gpu_count: 8 }
}

fn rule() -> Rule {
    Rule {
        name: "gpu_hot".to_owned(),
        severity: Severity::Warning,
        signal: Signal::TemperatureC,
        limit: Limit::Above(90),
        clear: Some(85),
        for_s: 60,
        cooldown_s: 300,
        summary: Some("Hotter than 90 °C".to_owned()),
    }
}

fn alert_changed() -> AlertChanged {
    AlertChanged {
        alert_id: "east-1-1-4711-9".to_owned(),
        dedup_key: format!("gpu_hot/{}", uuid(1)),
        rule: "gpu_hot".to_owned(),
        severity: Severity::Warning,
        state: AlertState::Firing,
        cause: "limit_passed".to_owned(),
        scope: Scope::Gpu,
        host: Some(host()),
        device_uuid: Some(uuid(1)),
        device_key: Some(DeviceKey::of(&uuid(1))),
        signal: Signal::TemperatureC,
        value: 93,
        limit: Limit::Above(90),
        began_at: EventTime(AT).rfc3339(),
        summary: Some("Hotter than 90 °C".to_owned()),
    }
}

fn cell_alert() -> AlertChanged {
    AlertChanged {
        dedup_key: "no_samples/cell".to_owned(),
        rule: "no_samples".to_owned(),
        severity: Severity::Emergency,
        state: AlertState::Resolved,
        cause: "cleared".to_owned(),
        scope: Scope::Cell,
        host: None,
        device_uuid: None,
        device_key: None,
        signal: Signal::SamplesPerMin,
        value: 480,
        limit: Limit::Below(1),
        summary: None,
        ..alert_changed()
    }
}

fn cordoned() -> Cordoned {
    Cordoned { drain: true, grace_ms: None }
}

fn learned() -> Learned {
    let tables = Tables::untaught(&["NVIDIA H100 80GB HBM3".to_owned()]);
    let incumbent_hash = Some("00ff00ff00ff00ff".to_owned());
    Learned { hash: tables.hash_hex(), unallocated_ppm: 40_000, incumbent_unallocated_ppm: 47_000, incumbent_hash, tables }
}

fn policy_changed(policy: Policy, name: &str) -> Payload {
    Payload::Policy(Box::new(PolicyChanged {
        in_force: policy != Policy::Enrolment,
        policy,
        name: name.to_owned(),
        version: 3,
        set_by: SetBy::Operator,
    }))
}

fn pace() -> Pace {
    Pace { mode: Mode::Queue, util_low_bp: Some(5_500), ..Preset::Conservative.pace() }
}

fn paused() -> PaceChanged {
    PaceChanged {
        scope: "tenant/research".to_owned(),
        state: PaceState::Paused,
        cause: "load_high".to_owned(),
        util_bp: Some(6_123),
        memory_bp: Some(4_000),
        gpus: 120,
        until: Some(LogTime(AT).plus_ms(60_000).rfc3339()),
        pace: pace(),
        counts: PaceCounts { admitted: 900, refused: 90, cancelled: 9, waiting: 1 },
    }
}

fn resumed() -> PaceChanged {
    PaceChanged {
        scope: "cell".to_owned(),
        state: PaceState::Resumed,
        cause: "pace_ended".to_owned(),
        util_bp: None,
        memory_bp: None,
        gpus: 0,
        until: None,
        pace: Preset::Default.pace(),
        counts: PaceCounts::default(),
    }
}

fn rejected_out() -> RejectedOut {
    RejectedOut { source: "sample.gpu-1".to_owned(), reason: Reason::Undecodable, count: 12, raw: "invalid wire type".to_owned() }
}

fn gap(host: Option<HostId>) -> Gap {
    let epoch = host.is_some().then_some(3);
    Gap { epoch, host, class: None, from_sequence: 10, to_sequence: 12, state: GapState::Opened, cause: "sequence".to_owned() }
}
