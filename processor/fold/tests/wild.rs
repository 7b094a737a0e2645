//! Any record is folded: extreme numbers in every field neither panic nor break the counts, and a state that met them can be stored.

mod support;

use plimsoll_fold::placement::policy::catalogue::Name;
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::alert::{Limit, Rule, Severity, Signal};
use plimsoll_schemas::control::{Control, Cordon};
use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::frame::{Frame, Rejected, Tick};
use plimsoll_schemas::id::{LogEpoch, Position, Slot};
use plimsoll_schemas::inventory::{EventKind, HostEvent, Remap};
use plimsoll_schemas::pace::{Mode, Pace, Preset};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Body, Record, Refused};
use plimsoll_schemas::request::{
    Bundle, Cancel, Constraints, Distribute, Domain, Locality, Place, Release, Renew, Request, Spread, Strategy as Split, Topology,
};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::settings::{Settings, Thresholds};
use plimsoll_schemas::tables::{CELLS, Learned, Tables};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};
use proptest::prelude::*;
use support::{START_S, cell, gpu, host_id, inventory, tenant, uuid};

fn wild_u64() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..4, 0u64..200, Just(u64::MAX), Just(u64::MAX - 1), Just(i64::MAX as u64), any::<u64>()]
}

fn wild_u32() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..4, Just(1_000), Just(u32::MAX), any::<u32>()]
}

fn instant() -> impl Strategy<Value = i64> {
    prop_oneof![
        6 => (-8_000i64..20).prop_map(|s| (START_S + s) * NS_PER_S),
        1 => Just(i64::MAX), 1 => Just(i64::MIN), 1 => Just(0), 1 => any::<i64>()
    ]
}

fn sample() -> impl Strategy<Value = Sample> {
    proptest::collection::vec((0..Field::COUNT, wild_u64()), 0..5)
        .prop_map(|fields| fields.into_iter().fold(Sample::default(), |sample, (f, value)| sample.with(Field::ALL[f], value)))
}

prop_compose! {
    fn frame()(
        host in 0usize..3, epoch in wild_u64(), sequence in wild_u64(), revision in 0u32..3, interval_ms in wild_u32(), backfill in any::<bool>(),
        slots in proptest::collection::btree_set(0u8..4, 0..3), ticks in proptest::collection::vec((instant(), wild_u32()), 0..4),
    )(
        samples in proptest::collection::vec(sample(), slots.len() * ticks.len()),
        rejected in proptest::collection::vec((0usize..5, 0usize..5), 0..2), rejected_more in wild_u64(),
        host in Just(host), epoch in Just(epoch), sequence in Just(sequence), revision in Just(revision), interval_ms in Just(interval_ms),
        backfill in Just(backfill), slots in Just(slots), ticks in Just(ticks),
    ) -> Body {
        Body::Frame(Box::new(Frame {
            host: host_id(host), epoch: epoch.max(1), sequence: sequence.max(1), boot_id: None, inventory_revision: revision, interval_ms, backfill,
            slots: slots.into_iter().map(Slot).collect(),
            ticks: ticks.into_iter().map(|(at, held_ms)| Tick { sampled_at: EventTime(at), held_ms }).collect(),
            samples,
            rejected: rejected.into_iter().map(|(tick, gpu)| Rejected { field: None, tick, gpu, reason: Reason::Late, raw: String::new() }).collect(),
            rejected_more,
        }))
    }
}

fn announcement() -> impl Strategy<Value = Body> {
    (0usize..3, wild_u64(), wild_u64(), 0u32..3, wild_u32(), proptest::collection::vec((0usize..3, 0usize..4, 0u8..4), 0..3)).prop_map(
        |(host, epoch, sequence, revision, interval_ms, gpus)| {
            let limit_mk = |slot: u8| [None, Some(0), Some(363_150), Some(u64::MAX)][usize::from(slot % 4)];
            let gpus = gpus
                .into_iter()
                .map(|(h, g, slot)| plimsoll_schemas::inventory::Gpu { slot: Slot(slot), slowdown_temperature_mk: limit_mk(slot), ..gpu(h, g) })
                .collect();
            let mut inventory = inventory(host, epoch, sequence, revision, gpus);
            inventory.interval_ms = if interval_ms % 3 == 0 { 1_000 } else { interval_ms };
            Body::Inventory(Box::new(inventory))
        },
    )
}

fn event() -> impl Strategy<Value = Body> {
    let kind = prop_oneof![
        wild_u32().prop_map(|code| EventKind::Xid { code }),
        (wild_u64(), wild_u64()).prop_map(|(volatile, aggregate)| EventKind::Ecc { volatile, aggregate }),
        wild_u64().prop_map(|rows| EventKind::Remap { state: [Remap::Clean, Remap::Pending, Remap::Failed][(rows % 3) as usize], rows }),
        Just(EventKind::GpuLost),
        Just(EventKind::GpuReturned),
        any::<i64>().prop_map(|step_ms| EventKind::ClockStep { step_ms }),
        (wild_u64(), wild_u64(), any::<bool>(), proptest::option::of(wild_u64())).prop_map(|(from_sequence, to_sequence, sample, of_epoch)| {
            let class = if sample { Class::Sample } else { Class::Event };
            EventKind::Gap { from_sequence, to_sequence, class, of_epoch, cause: String::new() }
        }),
        Just(EventKind::Stopping),
    ];
    (0usize..3, wild_u64(), wild_u64(), instant(), proptest::option::of(0usize..4), kind).prop_map(|(host, epoch, sequence, at, gpu, kind)| {
        let event = HostEvent {
            schema_version: 1,
            host: host_id(host),
            epoch,
            sequence,
            happened_at: EventTime(at),
            uuid: gpu.map(|g| uuid(host, g)),
            kind,
            detail: None,
        };
        Body::Event(Box::new(event))
    })
}

fn request() -> impl Strategy<Value = Body> {
    let id = || prop_oneof![4 => (0u32..30).prop_map(|n| format!("r{n}")), 1 => Just(String::new()), 1 => Just("x".repeat(300))];
    let lease = || (0u32..9).prop_map(|n| format!("lease-test-{n}"));
    let bundle = (wild_u32(), wild_u32(), wild_u64(), prop_oneof![4 => 1u32..4, 1 => wild_u32()], wild_u64(), wild_u64()).prop_map(
        |(count, milli, vram_bytes, members, cpu_milli, memory_bytes)| Bundle {
            count,
            milli,
            vram_bytes,
            members,
            cpu_milli,
            memory_bytes,
            ..Bundle::default()
        },
    );
    let small = (1u32..3, 1u32..4).prop_map(|(count, members)| Bundle { count, members, ..Bundle::default() });
    let bundles = proptest::collection::vec(prop_oneof![bundle, small], 0..3);
    let waits = (proptest::option::of(wild_u64()), proptest::option::of(any::<i64>()), any::<i16>(), any::<bool>());
    let place = (id(), bundles, proptest::option::of(wild_u64()), proptest::option::of(wild_u64()), waits, any_constraints()).prop_map(
        |(request_id, bundles, lease_ttl_ms, duration_ms, (max_wait_ms, not_before, priority, preemptible), constraints)| {
            let not_before = not_before.map(EventTime);
            let place = Place { request_id, bundles, duration_ms, priority, lease_ttl_ms, max_wait_ms, not_before, preemptible, ..Place::default() };
            Request::Place(Place { constraints, ..place })
        },
    );
    let request = prop_oneof![
        4 => place,
        1 => (id(), proptest::collection::vec(lease(), 0..3)).prop_map(|(request_id, lease_ids)| Request::Renew(Renew { request_id, lease_ids })),
        1 => (id(), id()).prop_map(|(request_id, cancels)| Request::Cancel(Cancel { request_id, cancels })),
        1 => (id(), lease()).prop_map(|(request_id, lease_id)| Request::Release(Release { request_id, lease_id })),
        1 => (id(), wild_u64(), proptest::option::of(any::<i64>())).prop_map(|(request_id, items, max_per_device)| {
            Request::Distribute(Distribute { request_id, items, strategy: Split::Capacity, devices: None, weights: None, max_per_device })
        }),
    ];
    (0u64..2, request).prop_map(|(n, request)| Body::Request(tenant(n), Box::new(request)))
}

/// Half of them can be kept.
fn any_constraints() -> impl Strategy<Value = Constraints> {
    let version = || proptest::option::of(prop_oneof![Just("1.2".to_owned()), Just("?".to_owned())]);
    let domain = || prop_oneof![Just(Domain::Host), Just(Domain::Rack), Just(Domain::Zone)];
    let scope = prop_oneof![Just(Locality::Nvlink), Just(Locality::Numa), Just(Locality::Host), Just(Locality::Rack)];
    let topology = proptest::option::of((scope, any::<bool>()).prop_map(|(scope, required)| Topology { scope, required }));
    let spread = proptest::option::of((domain(), any::<bool>()).prop_map(|(over, required)| Spread { over, required }));
    let limits = (version(), version(), topology, spread).prop_map(|(driver_min, compute_capability_min, topology, spread)| Constraints {
        driver_min,
        compute_capability_min,
        topology,
        spread,
        ..Constraints::default()
    });
    prop_oneof![Just(Constraints::default()), limits]
}

/// Any number for any setting; most are refused, some hold.
fn any_settings() -> impl Strategy<Value = Settings> {
    let value = prop_oneof![Just(0u64), Just(1), Just(1_000), Just(60_000), wild_u64()];
    (0..Thresholds::NAMES.len(), value).prop_map(|(n, value)| {
        let mut change = Settings::default();
        // A value beyond the setting's type cannot be sent either.
        let _ = change.set(Thresholds::NAMES[n], &value.to_string());
        change
    })
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let limit = prop_oneof![any::<i64>(), -1i64..100].prop_flat_map(|value| prop_oneof![Just(Limit::Above(value)), Just(Limit::Below(value))]);
    let seconds = || prop_oneof![Just(0u32), Just(10), Just(60), wild_u32()];
    (0..Signal::ALL.len(), limit, proptest::option::of(-1i64..100), seconds(), seconds()).prop_map(|(n, limit, clear, for_s, cooldown_s)| Rule {
        name: "wild".to_owned(),
        severity: Severity::Emergency,
        signal: Signal::ALL[n],
        limit,
        clear,
        for_s,
        cooldown_s,
        summary: None,
    })
}

/// Any numbers for the limits that are enforced; half of the paces can be kept.
fn any_pace() -> impl Strategy<Value = Pace> {
    let bp = || prop_oneof![2u32..10_000, wild_u32()];
    let ms = || prop_oneof![(1u32..90).prop_map(|s| s * 1_000), wild_u32()];
    (any::<bool>(), any::<bool>(), prop_oneof![0u32..60_000, wild_u32()], (bp(), bp()), ms(), 1u32..4, ms()).prop_map(
        |(queue, adaptive, min_request_interval_ms, (util_high_bp, memory_high_bp), check_ms, checks, pause_ms)| Pace {
            mode: if queue { Mode::Queue } else { Mode::Refuse },
            min_request_interval_ms,
            adaptive,
            util_high_bp,
            memory_high_bp,
            check_ms,
            checks,
            pause_ms,
            ..Preset::Default.pace()
        },
    )
}

/// Tables of one model with any cell changed, so that some hold and most do not.
fn any_tables() -> impl Strategy<Value = Learned> {
    (0..CELLS, prop_oneof![Just(0i32), 0i32..1_000, any::<i32>()], wild_u32(), any::<bool>()).prop_map(|(cell, value, ppm, hashed)| {
        let mut tables = Tables::untaught(&["H100".to_owned()]);
        tables.cells[cell] = value;
        let hash = if hashed { tables.hash_hex() } else { String::new() };
        Learned { hash, unallocated_ppm: ppm, incumbent_unallocated_ppm: ppm / 2, incumbent_hash: None, tables }
    })
}

fn control() -> impl Strategy<Value = Body> {
    let control = prop_oneof![
        Just(Control::Enrol { hosts: vec![] }),
        (0usize..4).prop_map(|h| Control::Enrol { hosts: vec![host_id(h)] }),
        (0usize..4).prop_map(|h| Control::Expel { host: host_id(h) }),
        (0usize..4).prop_map(|h| Control::Cordon(Cordon::Host(host_id(h)))),
        (0usize..4, 0usize..4).prop_map(|(h, g)| Control::Uncordon(Cordon::Gpu(uuid(h, g)))),
        (0usize..4, 0usize..4).prop_map(|(h, g)| Control::Free { uuid: uuid(h, g) }),
        (proptest::option::of(wild_u32()), proptest::option::of(wild_u64()), proptest::option::of(wild_u64())).prop_map(
            |(vram_limit_bp, free_memory_bytes_max, free_after_ms)| Control::Settings(Settings {
                vram_limit_bp,
                free_memory_bytes_max,
                free_after_ms,
                ..Settings::default()
            })
        ),
        wild_u64().prop_map(|version| Control::Sealed { version, position: Position::default() }),
        (0usize..4, proptest::option::of(wild_u64())).prop_map(|(h, grace_ms)| Control::Drain { what: Cordon::Host(host_id(h)), grace_ms }),
        any_settings().prop_map(Control::Settings),
        any_rule().prop_map(Control::AlertRule),
        (0usize..3).prop_map(|n| Control::RemoveAlertRule { name: ["gpu_hot", "wild", "no_such"][n].to_owned() }),
        (wild_u32()).prop_map(|version| Control::Placement { policy: "headroom".to_owned(), version, power_weight: 0 }),
        (0..Name::ALL.len(), prop_oneof![0..=100u32, wild_u32()]).prop_map(|(n, power_weight)| Control::Placement {
            policy: Name::ALL[n].code().to_owned(),
            version: 1,
            power_weight
        }),
        (0u32..9).prop_map(|n| Control::Revoke { lease_id: format!("lease-test-{n}") }),
        (0u64..2, proptest::option::of(wild_u64())).prop_map(|(n, gpu_milli_max)| Control::Quota { tenant: tenant(n), gpu_milli_max }),
        (wild_u32()).prop_map(|version| Control::Logic { version }),
        (proptest::option::of(0u64..2), any_pace()).prop_map(|(n, pace)| Control::Pace { tenant: n.map(tenant), pace }),
        proptest::option::of(0u64..2).prop_map(|n| Control::EndPace { tenant: n.map(tenant) }),
        any_tables().prop_map(|learned| Control::Tables(Box::new(learned))),
    ];
    control.prop_map(|control| Body::Control(Box::new(control)))
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        6 => frame(),
        3 => announcement(),
        2 => event(),
        2 => request(),
        1 => control(),
        2 => Just(Body::Tick(plimsoll_schemas::control::Tick { replica: String::new(), second: i64::MIN })),
        1 => Just(Body::Refused(Refused { host: None, tenant: None, source: "?".repeat(128), reason: Reason::UnknownSubject, detail: String::new() })),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn any_record_is_folded_counted_and_stored(records in proptest::collection::vec((0u64..3, prop_oneof![8 => 0i64..30, 1 => 0i64..10_000, 1 => -5i64..0], body()), 1..120)) {
        let (mut state, mut effects) = (State::new(cell()), Effects::default());
        let (mut at, mut sequence) = (START_S * NS_PER_S, 0);
        state.step(&Record { position: Position { epoch: LogEpoch(0), sequence: 1 }, logged_at: LogTime(at), body: Body::Control(Box::new(Control::Enrol { hosts: vec![] })) }, &mut effects);
        for (skip, seconds, body) in records {
            at += seconds * NS_PER_S;
            sequence += 1 + skip / 2;
            state.step(&Record { position: Position { epoch: LogEpoch(0), sequence }, logged_at: LogTime(at), body }, &mut effects);
        }
        let summary = state.summary();
        prop_assert_eq!(summary.samples, summary.samples_folded + summary.samples_late + summary.samples_rejected + summary.samples_duplicate);
        for (n, output) in (1..).zip(&effects.outputs) {
            prop_assert_eq!(output.out_seq, n);
        }
        let entries = state.take_dirty();
        let mut restored = State::restore(cell(), entries.into_iter().filter(|entry| entry.value.is_some())).map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(restored.summary(), state.summary());
        for _ in 0..200 {
            at += NS_PER_S;
            sequence += 1;
            let record = Record { position: Position { epoch: LogEpoch(0), sequence }, logged_at: LogTime(at), body: Body::Tick(plimsoll_schemas::control::Tick { replica: String::new(), second: 0 }) };
            let (mut a, mut b) = (Effects::default(), Effects::default());
            state.step(&record, &mut a);
            restored.step(&record, &mut b);
            prop_assert_eq!(a, b);
        }
        prop_assert_eq!(restored.hash(), state.hash());
    }
}
