//! Episodes: stories of one GPU, and against a naive pass over the samples of a fleet that misbehaves.

mod support;

use std::collections::BTreeMap;

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, Tick as Beat};
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{DeviceKey, LogEpoch, Position, Slot};
use plimsoll_schemas::inventory::{EventKind, HostEvent};
use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::request::{Bundle, Place, Release, Request};
use plimsoll_schemas::row::{EpisodeKind, PlacedRow, Row, Tier};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::settings::{Settings, Thresholds};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS, NS_PER_S};
use support::{Plan, Rng, START_S, TOTAL, cell, gpu, host_id, inventory, scenario, tenant, uuid};

const FOLLOWED: [EpisodeKind; 3] = [EpisodeKind::Busy, EpisodeKind::Idle, EpisodeKind::Throttled];

/// One host with one GPU, a fold, and one hand on the clock.
struct World {
    state: State,
    effects: Effects,
    sequence: u64,
    frames: u64,
    now_ns: i64,
    sample: Sample,
}

impl World {
    fn new() -> Self {
        let sample = Sample::default().with(Field::MemoryUsedBytes, 0).with(Field::MemoryTotalBytes, TOTAL).with(Field::ThrottleBits, 0);
        let mut world = Self { state: State::new(cell()), effects: Effects::default(), sequence: 0, frames: 0, now_ns: START_S * NS_PER_S, sample };
        world.push(Body::Control(Box::new(Control::Enrol { hosts: vec![] })));
        world.push(Body::Inventory(Box::new(inventory(0, 1, 1, 1, vec![gpu(0, 0)]))));
        world
    }

    fn push(&mut self, body: Body) {
        self.sequence += 1;
        let position = Position { epoch: LogEpoch(0), sequence: self.sequence };
        self.state.step(&Record { position, logged_at: LogTime(self.now_ns), body }, &mut self.effects);
    }

    /// A frame of the GPU, taken now, with its number.
    fn frame(&mut self) -> Frame {
        self.frames += 1;
        Frame {
            host: host_id(0),
            epoch: 1,
            sequence: self.frames,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: 1_000,
            backfill: false,
            slots: vec![Slot(0)],
            ticks: vec![Tick { sampled_at: EventTime(self.now_ns), held_ms: 1_000 }],
            samples: vec![self.sample],
            rejected: vec![],
            rejected_more: 0,
        }
    }

    /// Lets a second pass.
    fn tick(&mut self) {
        self.now_ns += NS_PER_S;
        self.push(Body::Tick(Beat { replica: "a".to_owned(), second: 0 }));
    }

    /// Lets seconds pass in which the GPU says this utilisation and these throttle reasons.
    fn live(mut self, seconds: i64, util: u64, bits: u64) -> Self {
        for _ in 0..seconds {
            self.tick();
            self.sample = self.sample.with(Field::UtilPercent, util).with(Field::ThrottleBits, bits);
            let frame = self.frame();
            self.push(Body::Frame(Box::new(frame)));
        }
        self
    }

    fn set(mut self, settings: Settings) -> Self {
        self.push(Body::Control(Box::new(Control::Settings(settings))));
        self
    }

    fn silent(mut self, seconds: i64) -> Self {
        (0..seconds).for_each(|_| self.tick());
        self
    }

    fn event(mut self, sequence: u64, kind: EventKind) -> Self {
        let happened_at = EventTime(self.now_ns);
        let event = HostEvent { schema_version: 1, host: host_id(0), epoch: 1, sequence, happened_at, uuid: Some(uuid(0, 0)), kind, detail: None };
        self.push(Body::Event(Box::new(event)));
        self
    }

    fn place(mut self) -> Self {
        let place = Place {
            request_id: "r".to_owned(),
            bundles: vec![Bundle { count: 1, milli: 1_000, vram_bytes: 1, ..Bundle::default() }],
            lease_ttl_ms: Some(600_000),
            ..Place::default()
        };
        self.push(Body::Request(tenant(0), Box::new(Request::Place(place))));
        self
    }

    fn release(mut self) -> Self {
        let release = Release { request_id: "over".to_owned(), lease_id: "lease-test-1".to_owned() };
        self.push(Body::Request(tenant(0), Box::new(Request::Release(release))));
        self
    }

    /// The episodes of a kind: from and to in seconds since the start (none = goes on), and why.
    fn episodes(&self, kind: EpisodeKind) -> Vec<(i64, Option<i64>, String)> {
        let seconds = |ns: i64| ns / NS_PER_S - START_S;
        let episodes = last_versions(&self.effects.rows);
        let of_kind = episodes.into_iter().filter(|((_, other, _), _)| *other == kind);
        of_kind.map(|((.., from), (to, evidence))| (seconds(from), to.map(seconds), evidence)).collect()
    }
}

type Versions = BTreeMap<(DeviceKey, EpisodeKind, i64), (Option<i64>, String)>;

fn last_versions(rows: &[PlacedRow]) -> Versions {
    let mut last = Versions::new();
    for row in rows {
        if let Row::Episode(episode) = &row.row {
            let version = (episode.ended_at.map(|at| at.0), episode.evidence.clone().unwrap_or_default());
            last.insert((episode.device_key, episode.kind, episode.started_at.0), version);
        }
    }
    last
}

fn check(kind: EpisodeKind, story: &dyn Fn(World) -> World, expected: &[(i64, Option<i64>, &str)]) {
    let world = story(World::new());
    let expected: Vec<_> = expected.iter().map(|&(from, to, why)| (from, to, why.to_owned())).collect();
    assert_eq!(world.episodes(kind), expected);
}

#[test]
fn work_with_short_pauses_is_one_episode_and_with_long_ones_two() {
    let busy = EpisodeKind::Busy;
    check(busy, &|w| w.live(60, 90, 0).live(25, 0, 0).live(60, 70, 0).live(100, 0, 0), &[(0, Some(145), "mean 80 %")]);
    check(busy, &|w| w.live(60, 90, 0).live(31, 0, 0).live(60, 70, 0), &[(0, Some(60), "mean 90 %"), (91, None, "mean 70 %")]);
    check(busy, &|w| w.live(29, 90, 0).live(60, 0, 0), &[]);
}

#[test]
fn between_the_thresholds_a_gpu_stays_what_it_was() {
    check(EpisodeKind::Idle, &|w| w.live(60, 4, 0).live(60, 9, 0).live(40, 10, 0), &[(0, Some(120), "mean 6 %")]);
    check(EpisodeKind::Busy, &|w| w.live(60, 10, 0).live(60, 5, 0).live(40, 4, 0), &[(0, Some(120), "mean 7 %")]);
    check(EpisodeKind::Idle, &|w| w.live(100, 7, 0), &[]);
}

#[test]
fn what_is_busy_and_idle_and_how_long_an_episode_is_are_settings() {
    let percent = Settings { idle_below_percent: Some(20), busy_from_percent: Some(40), ..Settings::default() };
    check(EpisodeKind::Idle, &|w| w.set(percent).live(60, 19, 0).live(60, 39, 0).live(40, 40, 0), &[(0, Some(120), "mean 29 %")]);
    check(EpisodeKind::Busy, &|w| w.set(percent).live(60, 40, 0).live(60, 20, 0).live(40, 19, 0), &[(0, Some(120), "mean 30 %")]);
    let short = Settings { load_episode_ms: Some(5_000), throttle_episode_ms: Some(10_000), ..Settings::default() };
    check(EpisodeKind::Busy, &|w| w.set(short).live(5, 90, 0).live(6, 0, 0).live(4, 90, 0).live(9, 0, 0), &[(0, Some(5), "mean 90 %")]);
    check(EpisodeKind::Idle, &|w| w.set(short).live(5, 90, 0).live(6, 0, 0).live(4, 90, 0), &[(5, Some(11), "mean 0 %")]);
    check(EpisodeKind::Throttled, &|w| w.set(short).live(9, 90, 4).live(11, 90, 0).live(10, 90, 4), &[(20, None, "sw_power_cap")]);
    check(EpisodeKind::AllocatedIdle, &|w| w.set(percent).live(5, 0, 0).place().live(60, 19, 0).live(5, 40, 0), &[(5, Some(65), "mean 19 %")]);
}

#[test]
fn idle_time_of_windows_follows_the_same_setting() {
    let idle_ms = |w: &World| -> i64 {
        let of_window = |row: &PlacedRow| if let Row::Window(Tier::TenSeconds, window) = &row.row { window.state.allocated_idle_ms } else { 0 };
        w.effects.rows.iter().map(of_window).sum()
    };
    let story = |below: u32| {
        World::new().set(Settings { idle_below_percent: Some(below), busy_from_percent: Some(50), ..Settings::default() }).live(20, 0, 0).place()
    };
    assert_eq!(idle_ms(&story(20).live(60, 19, 0)), 49_000, "the samples from the grant to the last window that has closed");
    assert_eq!(idle_ms(&story(19).live(60, 19, 0)), 0);
}

#[test]
fn a_pause_that_is_made_longer_does_not_join_what_an_episode_of_idling_has_parted() {
    let longer = Settings { load_episode_ms: Some(600_000), ..Settings::default() };
    let story = |w: World| w.live(60, 90, 0).live(30, 0, 0).set(longer).live(700, 90, 0);
    check(EpisodeKind::Busy, &story, &[(0, Some(60), "mean 90 %"), (90, None, "mean 90 %")]);
    check(EpisodeKind::Idle, &story, &[(60, Some(90), "mean 0 %")]);
    // Nobody has been told that it idled, so it was a pause.
    let story = |w: World| w.live(60, 90, 0).live(29, 0, 0).set(longer).live(700, 90, 0);
    check(EpisodeKind::Busy, &story, &[(0, None, "mean 90 %")]);
    check(EpisodeKind::Idle, &story, &[]);
}

#[test]
fn a_leased_gpu_that_idles_is_an_episode_from_the_lease_to_its_end() {
    let story = |w: World| w.live(50, 0, 0).place().live(100, 0, 0).release().live(50, 0, 0);
    check(EpisodeKind::AllocatedIdle, &story, &[(50, Some(150), "mean 0 %")]);
    check(EpisodeKind::Idle, &story, &[(0, None, "mean 0 %")]);
    check(EpisodeKind::AllocatedIdle, &|w| w.live(5, 0, 0).place().live(100, 50, 0), &[]);
}

#[test]
fn throttling_names_its_reasons_and_is_said_in_device_events() {
    let world = World::new().live(20, 90, 0x1).live(40, 90, 0x4).live(10, 90, 0).live(40, 90, 0x44).live(60, 90, 0x100);
    let episodes = world.episodes(EpisodeKind::Throttled);
    assert_eq!(episodes, [(20, Some(110), "sw_power_cap,hw_thermal_slowdown".to_owned())]);
    let events = world.effects.rows.iter().filter_map(|row| if let Row::DeviceEvent(event) = &row.row { Some(event.kind.as_str()) } else { None });
    assert_eq!(events.filter(|kind| kind.starts_with("throttle")).collect::<Vec<_>>(), ["throttle_enter", "throttle_leave"]);
}

#[test]
fn an_episode_of_a_lost_host_ends_with_its_last_sample_and_goes_on_if_nothing_is_missing() {
    let busy = EpisodeKind::Busy;
    check(busy, &|w| w.live(60, 90, 0).silent(100), &[(0, Some(60), "mean 90 %")]);
    check(busy, &|w| w.live(60, 90, 0).silent(100).live(60, 90, 0), &[(0, Some(60), "mean 90 %"), (160, None, "mean 90 %")]);
    let backlog = |w: World| {
        let mut w = w.live(60, 90, 0);
        let frames: Vec<Frame> = (0..120)
            .map(|_| {
                w.tick();
                Frame { backfill: true, ..w.frame() }
            })
            .collect();
        frames.into_iter().for_each(|frame| w.push(Body::Frame(Box::new(frame))));
        w.live(10, 90, 0)
    };
    check(busy, &backlog, &[(0, None, "mean 90 %")]);
}

#[test]
fn being_unwell_is_one_episode_whatever_else_happens_meanwhile() {
    let story = |w: World| {
        let w = w.live(10, 0, 0).event(2, EventKind::Xid { code: 79 }).live(10, 0, 0).event(3, EventKind::GpuLost).silent(100);
        w.live(5, 0, 0).event(4, EventKind::GpuReturned).live(5, 0, 0)
    };
    check(EpisodeKind::Unhealthy, &story, &[(10, Some(125), "xid 79: restart the machine")]);
    check(EpisodeKind::Unhealthy, &|w| w.live(10, 0, 0).silent(20).live(5, 0, 0), &[(18, Some(31), "stale")]);
}

/// A sample as the naive pass sees it, in the order of arrival.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at_ns: i64,
    held_ms: i64,
    sample: Sample,
}

/// A GPU that changes its load and its throttling every now and then, on a host that loses frames, sends them late, and goes silent; and
/// an operator who changes the settings in some seconds.
fn wander(seed: u64, seconds: i64, settings: &mut dyn FnMut(i64) -> Option<Settings>) -> (Vec<Record>, Vec<Sent>) {
    let mut rng = Rng::new(seed);
    let mut log = support::Log::starting_at(START_S);
    log.push(Body::Inventory(Box::new(inventory(0, 1, 1, 1, vec![gpu(0, 0)]))));
    let (mut util, mut bits, mut silent_s, mut last_ns, mut sequence) = (0, 0, 0, 0, 0);
    let (mut waiting, mut sent): (Vec<(i64, Frame)>, Vec<Sent>) = (Vec::new(), Vec::new());
    for second in 0..seconds {
        log.now_ns += NS_PER_S;
        log.beat();
        if let Some(change) = settings(second) {
            log.push(Body::Control(Box::new(Control::Settings(change))));
        }
        if rng.below(40) == 0 {
            util = [0, 2, 4, 7, 9, 12, 50, 100][rng.below(8) as usize];
        }
        if rng.below(40) == 0 {
            bits = [0, 0, 1, 4, 0x60, 0x84][rng.below(6) as usize];
        }
        // At the end it speaks.
        if rng.below(400) == 0 && second < seconds - 250 {
            silent_s = rng.below(200) as i64;
        }
        // Some hosts sample to the millisecond, so that pauses are met exactly.
        let at_ns = log.now_ns + if seed.is_multiple_of(3) { 0 } else { rng.below(900) as i64 * NS_PER_MS };
        let held_ms = if last_ns == 0 { 0 } else { ((at_ns - last_ns) / NS_PER_MS).min(2_500) };
        let mut sample = Sample::default().with(Field::MemoryUsedBytes, 0);
        if !rng.chance(4) {
            sample.set(Field::UtilPercent, if rng.chance(5) { rng.below(101) } else { util });
        }
        if !rng.chance(4) {
            sample.set(Field::ThrottleBits, bits);
        }
        if !rng.chance(3) {
            (last_ns, sequence) = (at_ns, sequence + 1);
            silent_s -= 1;
            let arrives_ns = match silent_s {
                1.. => log.now_ns + silent_s * NS_PER_S,
                _ if rng.chance(5) => log.now_ns + rng.below(8) as i64 * NS_PER_S,
                _ => log.now_ns,
            };
            let frame = Frame {
                host: host_id(0),
                epoch: 1,
                sequence,
                boot_id: None,
                inventory_revision: 1,
                interval_ms: 1_000,
                backfill: silent_s > 0,
                slots: vec![Slot(0)],
                ticks: vec![Tick { sampled_at: EventTime(at_ns), held_ms: held_ms as u32 }],
                samples: vec![sample],
                rejected: vec![],
                rejected_more: 0,
            };
            // Half of what waits while the host is silent is given up.
            if silent_s <= 0 || rng.chance(50) {
                waiting.push((arrives_ns, frame));
            }
        }
        let (due, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(at, _)| *at <= log.now_ns);
        waiting = later;
        for (_, frame) in due {
            sent.push(Sent { at_ns: frame.ticks[0].sampled_at.0, held_ms: i64::from(frame.ticks[0].held_ms), sample: frame.samples[0] });
            log.push(Body::Frame(Box::new(frame)));
        }
    }
    log.pass(200);
    (log.records, sent)
}

/// All sessions at least as long as a pause, by looking at the whole list at once.
fn naive(sent: &[Sent], kind: EpisodeKind, settings: &Thresholds) -> Vec<(i64, i64)> {
    let pause_ms = if kind == EpisodeKind::Throttled { settings.throttle_episode_ms } else { settings.load_episode_ms };
    let pause_ns = pause_ms as i64 * NS_PER_MS;
    let mut busy = None;
    let (mut runs, mut newest_ns, mut broken): (Vec<(i64, i64)>, i64, bool) = (Vec::new(), 0, true);
    for &Sent { at_ns, held_ms, sample } in sent {
        if at_ns <= newest_ns {
            continue;
        }
        if let Some(util) = sample.util_percent() {
            busy = if util < u64::from(settings.idle_below_percent) {
                Some(false)
            } else if util >= u64::from(settings.busy_from_percent) {
                Some(true)
            } else {
                busy
            };
        }
        let holds = match kind {
            EpisodeKind::Busy => sample.util_percent().map(|_| busy == Some(true)),
            EpisodeKind::Idle => sample.util_percent().map(|_| busy == Some(false)),
            EpisodeKind::Throttled => sample.throttle_bits().map(|bits| bits & 0xec != 0),
            EpisodeKind::AllocatedIdle | EpisodeKind::Unhealthy => None,
        };
        if holds == Some(true) {
            match runs.last_mut() {
                Some((_, end_ns)) if !broken && at_ns - *end_ns <= pause_ns => *end_ns = at_ns,
                Some(_) | None => runs.push(((at_ns - held_ms * NS_PER_MS).max(newest_ns), at_ns)),
            }
            broken = false;
        }
        broken |= holds == Some(false) && kind == EpisodeKind::Idle;
        newest_ns = at_ns;
    }
    runs.retain(|(start_ns, end_ns)| end_ns - start_ns >= pause_ns);
    runs
}

#[test]
fn episodes_equal_a_naive_pass_over_the_samples_and_never_overlap() {
    let mut found = BTreeMap::new();
    let set = Settings {
        idle_below_percent: Some(3),
        busy_from_percent: Some(12),
        load_episode_ms: Some(12_000),
        throttle_episode_ms: Some(45_000),
        ..Settings::default()
    };
    for seed in 1..=40 {
        let settings = if seed % 2 == 0 { set } else { Settings::default() };
        let in_force = Thresholds::default().with(&settings).expect("they agree");
        let (records, sent) = wander(seed, 3_000, &mut |second| (second == 0).then_some(settings));
        let (mut state, mut effects) = (State::new(cell()), Effects::default());
        records.iter().for_each(|record| state.step(record, &mut effects));
        let versions = last_versions(&effects.rows);
        let of = |kind: EpisodeKind| -> Vec<(i64, i64)> {
            let of_kind = versions.iter().filter(|((_, other, _), _)| *other == kind);
            of_kind.map(|((.., from), (to, _))| (*from, to.expect("everything ends when the host is lost"))).collect()
        };
        for kind in FOLLOWED {
            let episodes = of(kind);
            assert_eq!(episodes, naive(&sent, kind, &in_force), "seed {seed}: {kind:?}");
            assert!(episodes.windows(2).all(|pair| pair[0].1 <= pair[1].0), "seed {seed}: {kind:?} overlap: {episodes:?}");
            *found.entry(kind).or_insert(0) += episodes.len();
        }
        let mut both = [of(EpisodeKind::Busy), of(EpisodeKind::Idle)].concat();
        both.sort_unstable();
        assert!(both.windows(2).all(|pair| pair[0].1 <= pair[1].0), "seed {seed}: busy and idle at once: {both:?}");
    }
    assert!(FOLLOWED.iter().all(|kind| found[kind] > 100), "{found:?}");
}

#[test]
fn busy_and_idle_never_overlap_however_the_settings_change() {
    let mut found = 0;
    for seed in 1..=60 {
        let mut operator = Rng::new(seed ^ 0x0b5e_55ed);
        let (records, _) = wander(seed, 3_000, &mut |_| {
            let (idle, above, ms) = (1 + operator.below(12) as u32, operator.below(5) as u32, 1_000 * (1 + operator.below(90)));
            operator.chance(10).then_some(Settings {
                idle_below_percent: Some(idle),
                busy_from_percent: Some(idle + above),
                load_episode_ms: Some(ms),
                ..Settings::default()
            })
        });
        let (mut state, mut effects) = (State::new(cell()), Effects::default());
        records.iter().for_each(|record| state.step(record, &mut effects));
        let mut both: Vec<(i64, i64, EpisodeKind)> = last_versions(&effects.rows)
            .into_iter()
            .filter(|((_, kind, _), _)| matches!(kind, EpisodeKind::Busy | EpisodeKind::Idle))
            .map(|((_, kind, from), (to, _))| (from, to.expect("everything ends when the host is lost"), kind))
            .collect();
        both.sort_unstable_by_key(|&(from, to, _)| (from, to));
        assert!(both.windows(2).all(|pair| pair[0].1 <= pair[1].0), "seed {seed}: {both:?}");
        found += both.windows(2).filter(|pair| pair[0].2 != pair[1].2).count();
    }
    assert!(found > 500, "{found} changes between busy and idle");
}

#[test]
fn unhealthy_episodes_equal_the_states_of_the_gpus() {
    let mut found = 0;
    for seed in 600..=605 {
        let records = scenario(seed, Plan { hosts: 2, gpus: 3, seconds: 3_000, stalls: true, tenants: true, churn: true });
        let (mut state, mut effects) = (State::new(cell()), Effects::default());
        records.iter().for_each(|record| state.step(record, &mut effects));
        let mut unwell: BTreeMap<DeviceKey, Vec<(i64, Option<i64>)>> = BTreeMap::new();
        for row in &effects.rows {
            let (device, ill, at_ns) = if let Row::Device(device) = &row.row
                && device.valid_to.is_none()
            {
                let ill = matches!(device.state, DeviceState::Degraded | DeviceState::Failed | DeviceState::Stale | DeviceState::Lost);
                (device.device_key, ill, device.valid_from.0)
            } else if let Row::DeviceEvent(event) = &row.row
                && matches!(event.kind.as_str(), "retired" | "moved")
            {
                (event.device_key.expect("a GPU"), false, event.happened_at.0)
            } else {
                continue;
            };
            let of_device = unwell.entry(device).or_default();
            match of_device.last_mut() {
                Some((_, to @ None)) if !ill => *to = Some(at_ns),
                Some((_, None)) => {}
                // What ends and begins at one instant has not ended.
                Some((from, to)) if ill && *from == at_ns => *to = None,
                Some(_) | None if ill => of_device.push((at_ns, None)),
                Some(_) | None => {}
            }
        }
        let mut episodes: BTreeMap<DeviceKey, Vec<(i64, Option<i64>)>> = BTreeMap::new();
        for ((device, _, from), (to, _)) in last_versions(&effects.rows).into_iter().filter(|((_, kind, _), _)| *kind == EpisodeKind::Unhealthy) {
            episodes.entry(device).or_default().push((from, to));
        }
        unwell.retain(|_, of_device| !of_device.is_empty());
        assert_eq!(episodes, unwell, "seed {seed}");
        found += episodes.values().map(Vec::len).sum::<usize>();
    }
    assert!(found > 50, "{found}");
}
