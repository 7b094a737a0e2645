//! The fold against an independent model: every window is computed again from the raw frames, in one pass and with sets, and compared
//! column by column; and what must hold of every output is checked on what really came out.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::id::{DeviceKey, HostId, Position};
use plimsoll_schemas::out::{CloudEvent, DeviceState, GapState, Outcome, Payload};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{Last, Row, StateTime, Stats, Tier, WindowRow};
use plimsoll_schemas::sample::{Sample, celsius};
use plimsoll_schemas::sketch::Sketch;
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use support::{Plan, TOTAL, cell, scenario, uuid};

type Key = (Tier, DeviceKey, i64);

/// One sample as the model believes it.
#[derive(Debug, Clone)]
struct Believed {
    device: DeviceKey,
    at: EventTime,
    epoch: u64,
    sequence: u64,
    held_ms: i64,
    sample: Sample,
}

/// Where each lost frame was given up, by (host, epoch, sequence).
fn given_up(effects: &Effects) -> BTreeMap<(HostId, u64, u64), Position> {
    let mut lost = BTreeMap::new();
    for placed in &effects.rows {
        if let Row::Gap(gap) = &placed.row
            && let (GapState::Loss, Some(host), Some(Class::Sample)) = (gap.state, &gap.host, gap.class)
        {
            lost.extend((gap.from_seq..=gap.to_seq).map(|sequence| ((host.clone(), gap.epoch, sequence), placed.position)));
        }
    }
    lost
}

/// Every sample that must count, by the rules a reader of the documents would apply: once per (host, epoch, sequence), power above
/// twice the limit not believed, late by at most an hour unless it is backfill, of a GPU that an inventory has named, in a frame that
/// came before it was given up (what is given up and why, `gaps.rs` checks).
fn believe(records: &[Record], given_up: &BTreeMap<(HostId, u64, u64), Position>) -> Vec<Believed> {
    let mut seen = BTreeSet::new();
    let mut inventories: BTreeMap<(String, u64, u32), BTreeMap<u8, DeviceKey>> = BTreeMap::new();
    let mut believed = Vec::new();
    for record in records {
        match &record.body {
            Body::Inventory(inventory) => {
                let slots = inventory.gpus.iter().map(|gpu| (gpu.slot.0, gpu.uuid.key())).collect();
                let host = inventory.host.to_string();
                inventories.insert((host.clone(), inventory.epoch, inventory.revision), slots);
                let of_host: Vec<_> = inventories.keys().filter(|(other, ..)| *other == host).cloned().collect();
                // Only the newest eight are remembered.
                of_host.iter().rev().skip(8).for_each(|key| drop(inventories.remove(key)));
            }
            Body::Frame(frame) => {
                let id = (frame.host.clone(), frame.epoch, frame.sequence);
                if given_up.get(&id).is_some_and(|at| *at <= record.position) || !seen.insert(id) {
                    continue;
                }
                let Some(slots) = inventories.get(&(frame.host.to_string(), frame.epoch, frame.inventory_revision)) else { continue };
                for (t, tick) in frame.ticks.iter().enumerate() {
                    let age_s = (record.logged_at.0 - tick.sampled_at.0) / NS_PER_S;
                    if !frame.backfill && age_s >= 3_600 {
                        continue;
                    }
                    for (g, slot) in frame.slots.iter().enumerate() {
                        let mut sample = *frame.sample(t, g);
                        if sample.power_mw().is_some_and(|power| power > 1_400_000) {
                            sample.clear(plimsoll_schemas::sample::Field::PowerMw);
                        }
                        if !sample.is_empty() {
                            let held_ms = i64::from(tick.held_ms).min(2_500);
                            let device = slots[&slot.0];
                            believed.push(Believed { device, at: tick.sampled_at, epoch: frame.epoch, sequence: frame.sequence, held_ms, sample });
                        }
                    }
                }
            }
            Body::Event(_) | Body::Request(..) | Body::Control(_) | Body::Tick(_) | Body::Check(_) | Body::Epoch(_) | Body::Refused(_) => {}
        }
    }
    believed
}

/// The stats of the samples of one window, each column by its own sentence.
fn stats_of(samples: &[&Believed]) -> Stats {
    let known = |get: fn(&Sample) -> Option<u64>| samples.iter().filter_map(move |b| get(&b.sample).map(|value| (value as i64, b.held_ms)));
    let sketch = |values: Vec<u64>| {
        let mut sketch = Sketch::default();
        values.into_iter().for_each(|value| sketch.add(value));
        sketch
    };
    let mib = |b: &&&Believed| b.sample.memory_used_bytes().map(|bytes| bytes / 1_048_576);
    let throttled = |bits: u64| samples.iter().filter(|b| b.sample.throttle_bits().is_some_and(|t| t & bits != 0)).map(|b| b.held_ms).sum();
    let energy = |b: &&Believed| match (b.sample.energy_mj(), b.sample.power_mw()) {
        (Some(energy), _) => energy as i64,
        (None, Some(power)) => power as i64 * b.held_ms / 1_000,
        (None, None) => 0,
    };
    let last = samples.iter().max_by_key(|b| (b.at, b.epoch, b.sequence)).map(|b| Last {
        at: b.at,
        epoch: b.epoch,
        sequence: b.sequence,
        util_percent: b.sample.util_percent().map(|v| v as i16),
        memory_used_bytes: b.sample.memory_used_bytes().map(|v| v as i64),
        memory_total_bytes: b.sample.memory_total_bytes().map(|v| v as i64),
    });
    Stats {
        received: samples.len() as u32,
        duplicate: 0,
        late: 0,
        covered_ms: samples.iter().map(|b| b.held_ms).sum(),
        gap_ms_max: samples.iter().map(|b| b.held_ms - 1_000).max().unwrap_or(0).max(0),
        util_percent_ms: known(Sample::util_percent).map(|(v, ms)| v * ms).sum(),
        util_percent_min: known(Sample::util_percent).map(|(v, _)| v as i16).min(),
        util_percent_max: known(Sample::util_percent).map(|(v, _)| v as i16).max(),
        util_sketch: sketch(samples.iter().filter_map(|b| b.sample.util_percent()).collect()),
        memory_used_mib_ms: samples.iter().filter_map(|b| mib(&b).map(|mib| mib as i64 * b.held_ms)).sum(),
        memory_used_bytes_min: known(Sample::memory_used_bytes).map(|(v, _)| v).min(),
        memory_used_bytes_max: known(Sample::memory_used_bytes).map(|(v, _)| v).max(),
        memory_sketch: sketch(samples.iter().filter_map(|b| mib(&b)).collect()),
        energy_mj: samples.iter().map(energy).sum(),
        power_mw_max: known(Sample::power_mw).map(|(v, _)| v).max(),
        temperature_c_max: samples.iter().filter_map(|b| b.sample.temperature_mk().map(celsius)).max(),
        throttle_thermal_ms: throttled(0x60),
        throttle_power_ms: throttled(0x84),
        xid_count: 0,
        last,
    }
}

/// What the rows say about a window once its parts are added.
#[derive(Debug, Clone, Default)]
struct Whole {
    stats: Stats,
    state: StateTime,
    expected: u32,
    parts: BTreeSet<u32>,
}

fn add_part(whole: &mut Whole, row: &WindowRow, seed: u64) {
    assert!(whole.parts.insert(row.part), "seed {seed}: part {} of {:?} {} twice", row.part, row.window_at, row.device_key);
    let (w, r) = (&mut whole.stats, &row.stats);
    let least = |a: Option<i64>, b: Option<i64>| a.into_iter().chain(b).min();
    w.received += r.received;
    w.duplicate += r.duplicate;
    w.late += r.late;
    w.covered_ms += r.covered_ms;
    w.gap_ms_max = w.gap_ms_max.max(r.gap_ms_max);
    w.util_percent_ms += r.util_percent_ms;
    w.util_percent_min = w.util_percent_min.into_iter().chain(r.util_percent_min).min();
    w.util_percent_max = w.util_percent_max.max(r.util_percent_max);
    w.util_sketch.merge(&r.util_sketch);
    w.memory_used_mib_ms += r.memory_used_mib_ms;
    w.memory_used_bytes_min = least(w.memory_used_bytes_min, r.memory_used_bytes_min);
    w.memory_used_bytes_max = w.memory_used_bytes_max.max(r.memory_used_bytes_max);
    w.memory_sketch.merge(&r.memory_sketch);
    w.energy_mj += r.energy_mj;
    w.power_mw_max = w.power_mw_max.max(r.power_mw_max);
    w.temperature_c_max = w.temperature_c_max.max(r.temperature_c_max);
    w.throttle_thermal_ms += r.throttle_thermal_ms;
    w.throttle_power_ms += r.throttle_power_ms;
    w.xid_count += r.xid_count;
    w.last = w.last.into_iter().chain(r.last).max_by_key(Last::order);
    whole.expected += row.expected;
    let (w, r) = (&mut whole.state, &row.state);
    w.allocated_ms += r.allocated_ms;
    w.allocated_idle_ms += r.allocated_idle_ms;
    w.free_ms += r.free_ms;
    w.unhealthy_ms += r.unhealthy_ms;
    w.drained_ms += r.drained_ms;
}

fn fold(records: &[Record]) -> (State, Effects) {
    let (mut state, mut effects) = (State::new(cell()), Effects::default());
    records.iter().for_each(|record| state.step(record, &mut effects));
    (state, effects)
}

fn check(seed: u64, plan: Plan) {
    let records = scenario(seed, plan);
    let (state, effects) = fold(&records);
    numbers_are_dense(seed, &effects);
    let wholes = windows_equal_the_model(seed, &records, &effects);
    tiers_add_up(seed, &wholes, state.logged_at().0 - 200 * NS_PER_S);
    counts_add_up(seed, &records, &state, &wholes);
    placements_hold(seed, &effects);
}

fn numbers_are_dense(seed: u64, effects: &Effects) {
    let (mut decision_seq, mut previous) = (0, None);
    for (n, output) in (1..).zip(&effects.outputs) {
        assert_eq!(output.out_seq, n, "seed {seed}: out_seq");
        let event: CloudEvent = serde_json::from_slice(&output.bytes).expect("an event");
        assert_eq!((event.outseq, &event.id), (n, &output.id), "seed {seed}");
        if let Some(number) = decision(&event.data).map(|(number, _)| number) {
            decision_seq += 1;
            assert_eq!(number, decision_seq, "seed {seed}: decision_seq");
        }
    }
    for row in &effects.rows {
        let expected =
            if previous.is_some_and(|(position, _)| position == row.position) { previous.map_or(0, |(_, ordinal)| ordinal + 1) } else { 0 };
        assert_eq!(row.ordinal, expected, "seed {seed}: ordinal at {}", row.position);
        previous = Some((row.position, row.ordinal));
    }
}

fn decision(data: &Payload) -> Option<(u64, String)> {
    match data {
        Payload::Decided(d) => Some((d.decision_seq, format!("{}/{}", d.tenant, d.request_id))),
        Payload::Distributed(d) => Some((d.decision_seq, format!("{}/{}", d.tenant, d.request_id))),
        Payload::Lease(_)
        | Payload::Device(_)
        | Payload::Host(_)
        | Payload::Rejected(_)
        | Payload::Gap(_)
        | Payload::Alert(_)
        | Payload::Policy(_)
        | Payload::Preemption(_)
        | Payload::Pace(_) => None,
    }
}

fn windows_equal_the_model(seed: u64, records: &[Record], effects: &Effects) -> BTreeMap<Key, Whole> {
    let mut wholes: BTreeMap<Key, Whole> = BTreeMap::new();
    for row in &effects.rows {
        if let Row::Window(tier, window) = &row.row {
            add_part(wholes.entry((*tier, window.device_key, window.window_at.0)).or_default(), window, seed);
        }
    }
    let believed = believe(records, &given_up(effects));
    let mut expected: BTreeMap<Key, Vec<&Believed>> = BTreeMap::new();
    for sample in &believed {
        for tier in [Tier::TenSeconds, Tier::Minute, Tier::Hour] {
            let length_ns = tier.seconds() * NS_PER_S;
            expected.entry((tier, sample.device, sample.at.0 / length_ns * length_ns)).or_default().push(sample);
        }
    }
    for (key, whole) in &wholes {
        let mut stats = whole.stats.clone();
        (stats.duplicate, stats.late, stats.xid_count) = (0, 0, 0);
        let model = expected.get(key).map(|samples| stats_of(samples)).unwrap_or_default();
        assert_eq!(stats, model, "seed {seed}: {key:?}");
    }
    for key in expected.keys() {
        assert!(wholes.contains_key(key), "seed {seed}: no row for {key:?}");
    }
    wholes
}

fn tiers_add_up(seed: u64, wholes: &BTreeMap<Key, Whole>, until_ns: i64) {
    for (fine, coarse) in [(Tier::TenSeconds, Tier::Minute), (Tier::Minute, Tier::Hour)] {
        let mut sums: BTreeMap<Key, Whole> = BTreeMap::new();
        for ((_, device, at), whole) in wholes.iter().filter(|((tier, ..), _)| *tier == fine) {
            let length_ns = coarse.seconds() * NS_PER_S;
            if at / length_ns * length_ns + length_ns > until_ns {
                continue; // Still open.
            }
            let sum = sums.entry((coarse, *device, at / length_ns * length_ns)).or_default();
            sum.expected += whole.expected;
            (sum.stats.duplicate, sum.stats.late, sum.stats.xid_count) =
                (sum.stats.duplicate + whole.stats.duplicate, sum.stats.late + whole.stats.late, sum.stats.xid_count + whole.stats.xid_count);
            let (s, w) = (&mut sum.state, &whole.state);
            (s.allocated_ms, s.allocated_idle_ms, s.free_ms) =
                (s.allocated_ms + w.allocated_ms, s.allocated_idle_ms + w.allocated_idle_ms, s.free_ms + w.free_ms);
            (s.unhealthy_ms, s.drained_ms) = (s.unhealthy_ms + w.unhealthy_ms, s.drained_ms + w.drained_ms);
        }
        for (key, sum) in sums {
            let whole = &wholes[&key];
            assert_eq!(whole.state, sum.state, "seed {seed}: {key:?}");
            assert_eq!(whole.expected, sum.expected, "seed {seed}: {key:?}");
            let counts = |stats: &Stats| (stats.duplicate, stats.late, stats.xid_count);
            assert_eq!(counts(&whole.stats), counts(&sum.stats), "seed {seed}: {key:?}");
        }
    }
    for ((tier, device, at), whole) in wholes {
        let state = &whole.state;
        let known = state.allocated_ms + state.free_ms + state.unhealthy_ms + state.drained_ms;
        assert!((0..=tier.seconds() * 1_000).contains(&known), "seed {seed}: {tier:?} {device} {at}: {state:?}");
        assert!(state.allocated_idle_ms <= state.allocated_ms, "seed {seed}: {tier:?} {device} {at}: {state:?}");
    }
}

fn counts_add_up(seed: u64, records: &[Record], state: &State, wholes: &BTreeMap<Key, Whole>) {
    let summary = state.summary();
    let sent: u64 = records
        .iter()
        .map(|record| match &record.body {
            Body::Frame(frame) => frame.samples.iter().filter(|sample| !sample.is_empty()).count() as u64,
            Body::Inventory(_)
            | Body::Event(_)
            | Body::Request(..)
            | Body::Control(_)
            | Body::Tick(_)
            | Body::Check(_)
            | Body::Epoch(_)
            | Body::Refused(_) => 0,
        })
        .sum();
    assert_eq!(summary.samples, sent, "seed {seed}");
    let counted = summary.samples_folded + summary.samples_late + summary.samples_rejected + summary.samples_duplicate;
    assert_eq!(counted, sent, "seed {seed}: {summary:?}");
    let finest = || wholes.iter().filter(|((tier, ..), _)| *tier == Tier::TenSeconds).map(|(_, whole)| &whole.stats);
    assert_eq!(finest().map(|stats| u64::from(stats.received)).sum::<u64>(), summary.samples_folded + summary.samples_late, "seed {seed}");
    assert_eq!(finest().map(|stats| u64::from(stats.late)).sum::<u64>(), summary.samples_late, "seed {seed}");
    assert!(summary.samples_late > 0 && summary.samples_duplicate > 0, "seed {seed}: the scenario must misbehave: {summary:?}");
}

/// P1 reserved at most the limit; P2 a gang whole; P3 one final decision per request; P4 only on GPUs that stand well.
fn placements_hold(seed: u64, effects: &Effects) {
    let mut reserved: BTreeMap<DeviceKey, BTreeMap<String, (u32, u64)>> = BTreeMap::new();
    let mut states: BTreeMap<DeviceKey, DeviceState> = BTreeMap::new();
    let mut decided = BTreeSet::new();
    let mut outputs = effects
        .outputs
        .iter()
        .map(|output| (output.position, serde_json::from_slice::<CloudEvent>(&output.bytes).expect("an event").data))
        .peekable();
    let mut rows = effects.rows.iter().peekable();
    while rows.peek().is_some() || outputs.peek().is_some() {
        let position =
            rows.peek().map(|row| row.position).into_iter().chain(outputs.peek().map(|(position, _)| *position)).min().expect("one is left");
        let here: Vec<Payload> = std::iter::from_fn(|| outputs.next_if(|(at, _)| *at == position)).map(|(_, data)| data).collect();
        // A record can grant a lease and take it back, so what is held follows the rows in their order.
        let mut parts = BTreeMap::new();
        for data in &here {
            let waits = matches!(data, Payload::Decided(d) if d.outcome == Outcome::Deferred);
            if let Some((_, request)) = decision(data).filter(|_| !waits) {
                assert!(decided.insert(request.clone()), "seed {seed}: {request} decided twice");
            }
            if let Payload::Decided(d) = data
                && d.outcome == Outcome::Placed
            {
                let lease = d.lease.as_ref().expect("a lease");
                let members: BTreeSet<_> = d.assignments.iter().map(|a| (a.member, &a.host)).collect();
                let numbers: Vec<u32> = members.iter().map(|(member, _)| *member).collect();
                assert_eq!(numbers, (0..members.len() as u32).collect::<Vec<_>>(), "seed {seed}: every member once, each on one host");
                for a in &d.assignments {
                    let part: &mut (u32, u64) = parts.entry((lease.lease_id.clone(), a.device_key)).or_default();
                    *part = (part.0 + a.milli, part.1 + a.vram_bytes);
                }
            }
        }
        let mut leased = BTreeSet::new();
        while let Some(row) = rows.next_if(|row| row.position == position) {
            match &row.row {
                Row::Device(device) if device.valid_to.is_none() => {
                    states.insert(device.device_key, device.state);
                }
                Row::LeaseDevice(lease) if lease.to_at.is_some() => {
                    let was = reserved.get_mut(&lease.device_key).and_then(|leases| leases.remove(&lease.lease_id));
                    assert!(was.is_some(), "seed {seed}: {} given back twice", lease.lease_id);
                }
                Row::LeaseDevice(lease) => {
                    assert_eq!(states.get(&lease.device_key), Some(&DeviceState::Ok), "seed {seed}: {} at {position}", lease.lease_id);
                    let part = parts.get(&(lease.lease_id.clone(), lease.device_key)).copied();
                    reserved.entry(lease.device_key).or_default().insert(lease.lease_id.clone(), part.expect("granted by a decision"));
                    leased.insert(lease.device_key);
                }
                Row::Window(..)
                | Row::Device(_)
                | Row::Host(_)
                | Row::Request(_)
                | Row::Decision(_)
                | Row::Lease(_)
                | Row::Rejected(_)
                | Row::DeviceEvent(_)
                | Row::Gap(_)
                | Row::Policy(_)
                | Row::Alert(_)
                | Row::HostWindow(_)
                | Row::Episode(_) => {}
            }
        }
        for device in leased {
            let held = &reserved[&device];
            assert!(held.values().map(|(milli, _)| milli).sum::<u32>() <= 1_000, "seed {seed}: {device} {held:?}");
            assert!(held.values().map(|(_, bytes)| bytes).sum::<u64>() <= TOTAL, "seed {seed}: {device} {held:?}");
        }
    }
}

#[test]
fn windows_of_a_misbehaving_fleet_equal_the_model() {
    for seed in 1..=6 {
        check(seed, Plan { hosts: 3, gpus: 2, seconds: 3_000, stalls: false, tenants: true, churn: false });
    }
}

#[test]
fn windows_equal_the_model_when_log_time_jumps_and_gpus_come_and_go() {
    for seed in 100..=106 {
        check(seed, Plan { hosts: 2, gpus: 3, seconds: 3_000, stalls: true, tenants: true, churn: true });
    }
}

#[test]
fn something_is_placed_so_that_the_checks_above_mean_something() {
    let plan = Plan { hosts: 3, gpus: 2, seconds: 3_000, stalls: false, tenants: true, churn: false };
    let rows: Vec<_> = (1..=3).flat_map(|seed| fold(&scenario(seed, plan)).1.rows).collect();
    let outcomes = |wanted: Outcome| rows.iter().filter(|row| matches!(&row.row, Row::Decision(d) if d.outcome == wanted)).count();
    let drained = rows.iter().filter(|row| matches!(&row.row, Row::Device(device) if device.state == DeviceState::Drained)).count();
    let fired = rows.iter().filter(|row| matches!(&row.row, Row::Alert(_))).count();
    assert!(drained > 0 && fired > 20, "{drained} drained, {fired} alerts");
    assert!(outcomes(Outcome::Placed) > 10, "{} placed", outcomes(Outcome::Placed));
    assert!(outcomes(Outcome::Rejected) > 3, "{} rejected", outcomes(Outcome::Rejected));
    assert!(outcomes(Outcome::Deferred) > 3, "{} waited", outcomes(Outcome::Deferred));
    assert!(outcomes(Outcome::Cancelled) > 0, "{} withdrawn", outcomes(Outcome::Cancelled));
    let waited = rows.iter().filter(|row| matches!(&row.row, Row::Decision(d) if d.outcome == Outcome::Placed && d.attempt > 1)).count();
    assert!(waited > 0, "nothing was placed that had waited");
    assert_ne!(uuid(0, 0).key(), uuid(0, 1).key());
}
