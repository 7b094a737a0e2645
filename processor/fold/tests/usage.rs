//! What GPUs were used for, against an independent model: state time, idle time, holders, promised samples and XIDs of every window are
//! computed again from the rows that say where GPUs and leases stood, and from the raw records.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::id::DeviceKey;
use plimsoll_schemas::inventory::EventKind;
use plimsoll_schemas::out::{DeviceState, GapState, LeaseState};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{PlacedRow, Row, StateTime, Tier};
use plimsoll_schemas::time::{NS_PER_MS, NS_PER_S};
use support::{Plan, TOTAL, cell, scenario};

const TIERS: [Tier; 3] = [Tier::TenSeconds, Tier::Minute, Tier::Hour];
/// A sample whose frame is this old may or may not be a sign of life: the exact bound depends on the host's clock, ns.
const PERHAPS_FRESH_NS: std::ops::Range<i64> = 6 * NS_PER_S..10 * NS_PER_S;
/// Log time that jumps by more than this is time nobody watched, ms.
const STALL_MS: i64 = 60_000;

type Key = (Tier, DeviceKey, i64);

/// What a GPU is used for, as the documents say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Using {
    Unknown,
    Allocated,
    Free,
    Unhealthy,
    Drained,
}

/// A stretch of log time in ms, what the GPU was used for in it, and by which leases.
#[derive(Debug, Clone)]
struct Stretch {
    from_ms: i64,
    to_ms: i64,
    using: Using,
    leases: Vec<(String, String)>,
    /// Whether the model cannot know if the GPU had been heard.
    unsure: bool,
}

/// One GPU through the log.
#[derive(Debug, Default)]
struct Track {
    state: Option<DeviceState>,
    retired: bool,
    live: bool,
    unsure: bool,
    since_ms: i64,
    leases: BTreeMap<String, String>,
    stretches: Vec<Stretch>,
    /// From when to when an inventory named it, ms.
    registered: Vec<(i64, i64)>,
    /// Whenever a lease began or ended on it, ms.
    turns: Vec<i64>,
    /// Utilisation below 5 %: (sampled_at in ns, held_ms).
    idle: Vec<(i64, i64)>,
}

impl Track {
    fn using(&self, draining: &BTreeSet<String>) -> Using {
        let Some(state) = self.state.filter(|_| !self.retired) else { return Using::Unknown };
        let drains = self.leases.keys().any(|lease| draining.contains(lease));
        match state {
            DeviceState::Draining => Using::Drained,
            _ if !drains && !self.leases.is_empty() => Using::Allocated,
            DeviceState::Failed | DeviceState::Degraded | DeviceState::Lost | DeviceState::Stale => Using::Unhealthy,
            DeviceState::Cordoned | DeviceState::Drained => Using::Drained,
            DeviceState::Ok if self.live => Using::Free,
            DeviceState::Ok => Using::Unknown,
        }
    }

    fn cut(&mut self, at_ms: i64, draining: &BTreeSet<String>) {
        if at_ms > self.since_ms {
            let leases: Vec<_> = self.leases.iter().map(|(lease, tenant)| (lease.clone(), tenant.clone())).collect();
            let (using, from_ms, unsure) = (self.using(draining), self.since_ms, self.unsure);
            match self.stretches.last_mut() {
                Some(last) if (last.to_ms, last.using, last.unsure) == (from_ms, using, unsure) && last.leases == leases => last.to_ms = at_ms,
                Some(_) | None => self.stretches.push(Stretch { from_ms, to_ms: at_ms, using, leases, unsure }),
            }
        }
        self.since_ms = self.since_ms.max(at_ms);
    }
}

/// The whole fleet, and XIDs by window.
#[derive(Default)]
struct Model {
    tracks: BTreeMap<DeviceKey, Track>,
    draining: BTreeSet<String>,
    xids: BTreeMap<Key, u32>,
    seen: BTreeSet<(String, u64, u64)>,
    slots: BTreeMap<(String, u64, u32), BTreeMap<u8, DeviceKey>>,
    now_ms: i64,
}

impl Model {
    fn of(records: &[Record], rows: &[PlacedRow]) -> Self {
        let mut model = Self::default();
        let mut rows = rows.iter().peekable();
        for record in records {
            let at_ms = record.logged_at.millis();
            let until_ms = if model.now_ms > 0 && at_ms - model.now_ms > STALL_MS { model.now_ms } else { at_ms };
            let here: Vec<&Row> = std::iter::from_fn(|| rows.next_if(|row| row.position == record.position)).map(|row| &row.row).collect();
            if until_ms < at_ms || !here.is_empty() || matches!(record.body, Body::Frame(_)) {
                let draining = &model.draining;
                model.tracks.values_mut().for_each(|track| track.cut(until_ms, draining));
                model.tracks.values_mut().for_each(|track| track.since_ms = at_ms);
            }
            model.now_ms = at_ms;
            here.into_iter().for_each(|row| model.row(row, at_ms));
            model.record(record);
        }
        let (now_ms, draining) = (model.now_ms, &model.draining);
        model.tracks.values_mut().for_each(|track| track.cut(now_ms, draining));
        model
    }

    fn row(&mut self, row: &Row, at_ms: i64) {
        match row {
            Row::Device(device) if device.valid_to.is_none() => {
                let track = self.tracks.entry(device.device_key).or_default();
                if track.state.is_none() || track.retired {
                    (track.retired, track.live, track.unsure, track.since_ms) = (false, false, false, at_ms);
                    track.registered.push((at_ms, i64::MAX));
                }
                track.state = Some(device.state);
            }
            Row::DeviceEvent(event) if matches!(event.kind.as_str(), "retired" | "moved") => {
                let track = event.device_key.and_then(|key| self.tracks.get_mut(&key)).expect("a GPU that was registered");
                track.retired = true;
                track.registered.last_mut().expect("registered").1 = at_ms;
            }
            Row::Lease(lease) => {
                if lease.state == LeaseState::Draining {
                    self.draining.insert(lease.lease_id.clone());
                }
            }
            Row::LeaseDevice(lease) => {
                let track = self.tracks.get_mut(&lease.device_key).expect("a GPU that was registered");
                track.turns.push(at_ms);
                if lease.to_at.is_some() {
                    track.leases.remove(&lease.lease_id);
                } else {
                    track.leases.insert(lease.lease_id.clone(), lease.tenant.to_string());
                }
            }
            // A frame that was given up does not count when it comes after all.
            Row::Gap(gap) => {
                if let (GapState::Loss, Some(host), Some(Class::Sample)) = (gap.state, &gap.host, gap.class) {
                    self.seen.extend((gap.from_seq..=gap.to_seq).map(|sequence| (host.to_string(), gap.epoch, sequence)));
                }
            }
            Row::Window(..)
            | Row::Device(_)
            | Row::Host(_)
            | Row::Request(_)
            | Row::Decision(_)
            | Row::Rejected(_)
            | Row::DeviceEvent(_)
            | Row::Policy(_)
            | Row::Alert(_)
            | Row::HostWindow(_)
            | Row::Episode(_) => {}
        }
    }

    fn record(&mut self, record: &Record) {
        match &record.body {
            Body::Inventory(inventory) => {
                let slots = inventory.gpus.iter().map(|gpu| (gpu.slot.0, gpu.uuid.key())).collect();
                self.slots.insert((inventory.host.to_string(), inventory.epoch, inventory.revision), slots);
            }
            Body::Event(event) => {
                if let (EventKind::Xid { .. }, Some(uuid)) = (&event.kind, &event.uuid) {
                    for tier in TIERS {
                        let length_ns = tier.seconds() * NS_PER_S;
                        *self.xids.entry((tier, uuid.key(), event.happened_at.0 / length_ns * length_ns)).or_default() += 1;
                    }
                }
            }
            Body::Frame(frame) => {
                if !self.seen.insert((frame.host.to_string(), frame.epoch, frame.sequence)) {
                    return;
                }
                let newest = frame.ticks.iter().map(|tick| tick.sampled_at.0).max().unwrap_or(0);
                let age_ns = record.logged_at.0 - newest;
                let slots = self.slots[&(frame.host.to_string(), frame.epoch, frame.inventory_revision)].clone();
                for (t, tick) in frame.ticks.iter().enumerate() {
                    for (g, slot) in frame.slots.iter().enumerate() {
                        let sample = frame.sample(t, g);
                        let track = self.tracks.get_mut(&slots[&slot.0]).expect("a GPU that was registered");
                        if sample.is_empty() {
                            continue;
                        }
                        if !frame.backfill && !track.retired && age_ns < PERHAPS_FRESH_NS.end && !track.live {
                            track.live = age_ns < PERHAPS_FRESH_NS.start;
                            track.unsure = !track.live;
                        }
                        if sample.util_percent().is_some_and(|util| util < 5) {
                            track.idle.push((tick.sampled_at.0, i64::from(tick.held_ms).min(2_500)));
                        }
                    }
                }
            }
            Body::Request(..) | Body::Control(_) | Body::Tick(_) | Body::Check(_) | Body::Epoch(_) | Body::Refused(_) => {}
        }
    }
}

/// What the rows say about a window once its parts are added.
#[derive(Debug, Clone, Default)]
struct Whole {
    state: StateTime,
    expected: u32,
    xid_count: u32,
    late_xids: u32,
    late: u32,
    /// Of the first part.
    holder: Option<(String, String)>,
    parts: BTreeSet<u32>,
}

fn wholes(rows: &[PlacedRow]) -> BTreeMap<Key, Whole> {
    let mut wholes: BTreeMap<Key, Whole> = BTreeMap::new();
    for row in rows {
        let Row::Window(tier, row) = &row.row else { continue };
        let whole = wholes.entry((*tier, row.device_key, row.window_at.0)).or_default();
        let (sum, part) = (&mut whole.state, &row.state);
        sum.allocated_ms += part.allocated_ms;
        sum.allocated_idle_ms += part.allocated_idle_ms;
        sum.free_ms += part.free_ms;
        sum.unhealthy_ms += part.unhealthy_ms;
        sum.drained_ms += part.drained_ms;
        whole.expected += row.expected;
        whole.xid_count += row.stats.xid_count;
        whole.late += row.stats.late;
        whole.late_xids += if row.part > 0 { row.stats.xid_count } else { 0 };
        if row.part == 0 {
            whole.holder = row.lease_id.clone().zip(row.tenant.as_ref().map(ToString::to_string));
        }
        whole.parts.insert(row.part);
    }
    wholes
}

/// What the model says about a window, from `from_ms` to `to_ms`.
fn expected(track: &Track, from_ms: i64, to_ms: i64) -> (StateTime, BTreeMap<(String, String), i64>, bool) {
    let (mut state, mut holders, mut unsure) = (StateTime::default(), BTreeMap::new(), false);
    for stretch in &track.stretches {
        let ms = stretch.to_ms.min(to_ms) - stretch.from_ms.max(from_ms);
        if ms <= 0 {
            continue;
        }
        unsure |= stretch.unsure;
        match stretch.using {
            Using::Unknown => {}
            Using::Allocated => {
                state.allocated_ms += ms;
                stretch.leases.iter().for_each(|lease| *holders.entry(lease.clone()).or_default() += ms);
            }
            Using::Free => state.free_ms += ms,
            Using::Unhealthy => state.unhealthy_ms += ms,
            Using::Drained => state.drained_ms += ms,
        }
    }
    (state, holders, unsure)
}

/// Every host window against the stretches of its GPUs: which were free throughout, and how many at once.
fn host_windows_equal_the_model(seed: u64, model: &Model, rows: &[PlacedRow]) -> u32 {
    let mut keys: BTreeSet<(String, i64)> = BTreeSet::new();
    let mut memory: BTreeMap<(DeviceKey, i64), i64> = BTreeMap::new();
    let mut free_bits = 0;
    for row in rows {
        if let Row::Window(Tier::Minute, window) = &row.row
            && window.part == 0
        {
            memory.extend(window.stats.memory_used_bytes_max.map(|used| ((window.device_key, window.window_at.0), TOTAL as i64 - used)));
        }
        let Row::HostWindow(row) = &row.row else { continue };
        assert!(keys.insert((row.host.to_string(), row.window_at.0)), "seed {seed}: {} twice at {:?}", row.host, row.window_at);
        let (from_ms, to_ms) = (row.window_at.millis(), row.window_at.millis() + 60_000);
        let of_host: BTreeMap<u8, DeviceKey> =
            model.slots.iter().filter(|((host, ..), _)| host == row.host.as_str()).flat_map(|(_, slots)| slots.clone()).collect();
        // Who leaves the host, or comes, around the minute is in it or not by the moment it closes.
        let settled = |track: &Track| {
            let near = from_ms..to_ms + 200_000;
            track.registered.iter().all(|(from, to)| !near.contains(from) && !near.contains(to)) && !track.stretches.iter().any(|s| s.unsure)
        };
        if !of_host.values().all(|device| settled(&model.tracks[device])) {
            continue;
        }
        let within = |device: &DeviceKey, using: Using| -> Vec<(i64, i64)> {
            let stretches = model.tracks[device].stretches.iter().filter(move |stretch| stretch.using == using);
            stretches.map(|s| (s.from_ms.max(from_ms), s.to_ms.min(to_ms))).filter(|(from, to)| from < to).collect()
        };
        let (mut free, mut roomy) = (0, 0);
        for (slot, device) in &of_host {
            let throughout = within(device, Using::Free).iter().map(|(from, to)| to - from).sum::<i64>() == 60_000;
            free |= u64::from(throughout) << slot;
            let spare = memory.get(&(*device, row.window_at.0)).copied().unwrap_or(0);
            roomy |= u64::from(throughout && spare >= 64 << 30) << slot;
        }
        let about = format!("seed {seed}: {row:?}");
        assert_eq!((row.free.words(), row.free_by_memory[2].words()), (&[free][..], &[roomy][..]), "{about}");
        free_bits += free.count_ones();
        // At once: between any two changes of any GPU.
        let edges: BTreeSet<i64> = of_host
            .values()
            .flat_map(|device| model.tracks[device].stretches.iter().flat_map(|s| [s.from_ms, s.to_ms]))
            .filter(|ms| (from_ms..to_ms).contains(ms))
            .chain([from_ms])
            .collect();
        let stalled = of_host.values().any(|device| !covered(&model.tracks[device], from_ms, to_ms));
        if stalled {
            continue;
        }
        let at_once =
            |using: Using, ms: i64| of_host.values().filter(|d| within(d, using).iter().any(|(from, to)| (*from..*to).contains(&ms))).count() as u16;
        let (frees, leased): (Vec<u16>, Vec<u16>) = edges.iter().map(|&ms| (at_once(Using::Free, ms), at_once(Using::Allocated, ms))).unzip();
        let (least, most) = (frees.iter().min().copied(), frees.iter().max().copied());
        assert_eq!((row.gpus_free_min, row.gpus_free_max, row.gpus_alloc_max), (least, most, leased.iter().max().copied()), "{about}");
    }
    free_bits
}

/// Whether the model knows of all of that time.
fn covered(track: &Track, from_ms: i64, to_ms: i64) -> bool {
    track.stretches.iter().map(|s| (s.to_ms.min(to_ms) - s.from_ms.max(from_ms)).max(0)).sum::<i64>() == to_ms - from_ms
}

/// How much was compared, so that a test can say that it meant something.
#[derive(Debug, Default)]
struct Compared {
    windows: u32,
    idle: u32,
    held: u32,
    late_xids: u32,
    free_bits: u32,
}

fn check(seed: u64, plan: Plan) -> Compared {
    let records = scenario(seed, plan);
    let (mut state, mut effects) = (State::new(cell()), Effects::default());
    records.iter().for_each(|record| state.step(record, &mut effects));
    let model = Model::of(&records, &effects.rows);
    let wholes = wholes(&effects.rows);
    let mut compared = Compared { free_bits: host_windows_equal_the_model(seed, &model, &effects.rows), ..Compared::default() };
    for (key @ &(tier, device, at_ns), whole) in &wholes {
        let track = &model.tracks[&device];
        let (from_ms, to_ms) = (at_ns / NS_PER_MS, at_ns / NS_PER_MS + tier.seconds() * 1_000);
        let about = format!("seed {seed}: {key:?} {whole:?}");
        let (state, holders, unsure) = expected(track, from_ms, to_ms);
        if !unsure {
            assert_eq!(StateTime { allocated_idle_ms: 0, ..whole.state }, state, "{about}");
            compared.windows += 1;
        }
        assert!(whole.state.allocated_idle_ms <= whole.state.allocated_ms, "{about}");
        let most = holders.iter().max_by(|a, b| a.1.cmp(b.1).then_with(|| b.0.cmp(a.0)));
        if whole.parts.len() == 1 && whole.parts.contains(&0) {
            assert_eq!(whole.holder.as_ref(), most.map(|(holder, _)| holder), "{about}");
            compared.held += u32::from(most.is_some());
        }
        let near = from_ms - 15_000..to_ms + 15_000;
        if tier == Tier::TenSeconds && whole.late == 0 && !track.turns.iter().any(|turn| near.contains(turn)) {
            let idle_ms: i64 = track.idle.iter().filter(|(at, _)| (at_ns..at_ns + 10 * NS_PER_S).contains(at)).map(|(_, held_ms)| held_ms).sum();
            assert_eq!(whole.state.allocated_idle_ms, idle_ms.min(whole.state.allocated_ms), "{about}");
            compared.idle += u32::from(whole.state.allocated_idle_ms > 0);
        }
        // Time that nobody watched has no 10 s window, and promises nothing.
        let watched = |ms: i64| wholes.get(&(Tier::TenSeconds, device, ms / 10_000 * 10_000 * NS_PER_MS)).is_some_and(|fine| fine.parts.contains(&0));
        let promised = |ms: &i64| track.registered.iter().any(|&(from, to)| (from..to).contains(ms)) && watched(*ms);
        assert_eq!(whole.expected as usize, (from_ms..to_ms).step_by(1_000).filter(promised).count(), "{about}");
        assert_eq!(whole.xid_count, model.xids.get(key).copied().unwrap_or(0), "{about}");
        compared.late_xids += whole.late_xids;
    }
    // What has no row had no content.
    let until_ns = state.logged_at().0 - 200 * NS_PER_S;
    for key in model.xids.keys().filter(|(tier, _, at)| at + tier.seconds() * NS_PER_S <= until_ns) {
        assert!(wholes.contains_key(key), "seed {seed}: no row for {key:?}");
    }
    for (&device, track) in &model.tracks {
        for stretch in track.stretches.iter().filter(|stretch| stretch.using != Using::Unknown && !stretch.unsure) {
            for at_ms in (stretch.from_ms..stretch.to_ms).step_by(10_000).filter(|ms| ms * NS_PER_MS < until_ns) {
                let at_ns = at_ms * NS_PER_MS / (10 * NS_PER_S) * (10 * NS_PER_S);
                assert!(wholes.contains_key(&(Tier::TenSeconds, device, at_ns)), "seed {seed}: {device} has no window at {at_ns} for {stretch:?}");
            }
        }
    }
    compared
}

#[test]
fn state_time_holders_and_xids_equal_the_model() {
    let mut sum = Compared::default();
    for seed in 400..=407 {
        let compared = check(seed, Plan { hosts: 3, gpus: 2, seconds: 3_000, stalls: false, tenants: seed % 4 != 0, churn: false });
        sum.windows += compared.windows;
        sum.idle += compared.idle;
        sum.held += compared.held;
        sum.late_xids += compared.late_xids;
        sum.free_bits += compared.free_bits;
    }
    assert!(sum.windows > 10_000 && sum.idle > 100 && sum.held > 100 && sum.late_xids > 0 && sum.free_bits > 100, "{sum:?}");
}

#[test]
fn state_time_equals_the_model_when_log_time_jumps_and_gpus_come_and_go() {
    for seed in 500..=506 {
        check(seed, Plan { hosts: 2, gpus: 3, seconds: 3_000, stalls: true, tenants: true, churn: true });
    }
}
