//! What the fold does, one story per sentence: records in, rows and outputs out.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, Cordon};
use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{LogEpoch, Position, Slot};
use plimsoll_schemas::inventory::{EventKind, Gpu, HostEvent, Inventory, Remap};
use plimsoll_schemas::out::{CloudEvent, DeviceState, GapState, LeaseState, Outcome, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Body, Record, Refused};
use plimsoll_schemas::request::{Bundle, Place, Release, Renew, Request};
use plimsoll_schemas::row::{DeviceEventRow, RejectedRow, Row, Tier, WindowRow};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::settings::Settings;
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS, NS_PER_S};
use support::{GIB, START_S, TOTAL, cell, gpu, host_id, inventory, tenant, uuid};

/// A fold with one hand on the clock.
struct World {
    state: State,
    sequence: u64,
    now_ns: i64,
    frames: BTreeMap<usize, u64>,
    events: BTreeMap<(usize, u64), u64>,
    /// What each host's GPUs say.
    sample: Sample,
    effects: Effects,
}

impl World {
    /// An empty cell in which every host is enrolled.
    fn new() -> Self {
        let sample = Sample::default().with(Field::UtilPercent, 50).with(Field::MemoryUsedBytes, 10 * GIB).with(Field::MemoryTotalBytes, TOTAL);
        let mut world = Self {
            state: State::new(cell()),
            sequence: 0,
            now_ns: START_S * NS_PER_S,
            frames: BTreeMap::new(),
            events: BTreeMap::new(),
            sample,
            effects: Effects::default(),
        };
        world.control(Control::Enrol { hosts: vec![] });
        world
    }

    /// The same with hosts of two GPUs, heard for ten seconds.
    fn with_hosts(hosts: usize) -> Self {
        let mut world = Self::new();
        for host in 0..hosts {
            world.announce(host, 1, 1, vec![gpu(host, 0), gpu(host, 1)]);
        }
        let all: Vec<usize> = (0..hosts).collect();
        world.live(10, &all);
        world
    }

    fn push(&mut self, body: Body) {
        self.sequence += 1;
        let position = Position { epoch: LogEpoch(0), sequence: self.sequence };
        self.state.step(&Record { position, logged_at: LogTime(self.now_ns), body }, &mut self.effects);
    }

    fn control(&mut self, control: Control) {
        self.push(Body::Control(Box::new(control)));
    }

    fn announce(&mut self, host: usize, epoch: u64, revision: u32, gpus: Vec<Gpu>) {
        let sequence = self.events.entry((host, epoch)).or_default();
        *sequence += 1;
        let inventory: Inventory = inventory(host, epoch, *sequence, revision, gpus);
        self.push(Body::Inventory(Box::new(inventory)));
    }

    fn event(&mut self, host: usize, gpu: Option<usize>, kind: EventKind) {
        self.event_at(host, gpu, kind, self.now_ns);
    }

    fn event_at(&mut self, host: usize, gpu: Option<usize>, kind: EventKind, at_ns: i64) {
        let sequence = self.events.entry((host, 1)).or_default();
        *sequence += 1;
        let event = HostEvent {
            schema_version: 1,
            host: host_id(host),
            epoch: 1,
            sequence: *sequence,
            happened_at: EventTime(at_ns),
            uuid: gpu.map(|g| uuid(host, g)),
            kind,
            detail: None,
        };
        self.push(Body::Event(Box::new(event)));
    }

    /// A frame of two GPUs and one tick, the next of its host.
    fn frame(&mut self, host: usize) -> Frame {
        let sequence = self.frames.entry(host).or_default();
        *sequence += 1;
        Frame {
            host: host_id(host),
            epoch: 1,
            sequence: *sequence,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: 1_000,
            backfill: false,
            slots: vec![Slot(0), Slot(1)],
            ticks: vec![Tick { sampled_at: EventTime(self.now_ns), held_ms: 1_000 }],
            samples: vec![self.sample; 2],
            rejected: vec![],
            rejected_more: 0,
        }
    }

    fn send(&mut self, frame: Frame) {
        self.push(Body::Frame(Box::new(frame)));
    }

    /// Lets seconds pass in which the given hosts speak.
    fn live(&mut self, seconds: i64, hosts: &[usize]) {
        for _ in 0..seconds {
            self.now_ns += NS_PER_S;
            self.push(Body::Tick(plimsoll_schemas::control::Tick { replica: "a".to_owned(), second: 0 }));
            for &host in hosts {
                let frame = self.frame(host);
                self.send(frame);
            }
        }
    }

    fn ask(&mut self, tenant_number: u64, request: Request) {
        self.push(Body::Request(tenant(tenant_number), Box::new(request)));
    }

    fn place(&mut self, id: &str, count: u32, milli: u32, vram_bytes: u64, ttl_ms: u64) {
        self.ask(0, place(id, count, milli, vram_bytes, ttl_ms));
    }

    /// Forgets what came out so far.
    fn clear(&mut self) {
        self.effects = Effects::default();
    }

    fn windows(&self, wanted: Tier) -> Vec<&WindowRow> {
        self.effects
            .rows
            .iter()
            .filter_map(|row| if let Row::Window(tier, window) = &row.row { (*tier == wanted).then_some(&**window) } else { None })
            .collect()
    }

    fn rejected(&self) -> Vec<&RejectedRow> {
        self.effects.rows.iter().filter_map(|row| if let Row::Rejected(rejected) = &row.row { Some(&**rejected) } else { None }).collect()
    }

    fn reasons(&self) -> Vec<Reason> {
        self.rejected().iter().map(|row| row.reason).collect()
    }

    fn payloads(&self) -> Vec<Payload> {
        self.effects.outputs.iter().map(|output| serde_json::from_slice::<CloudEvent>(&output.bytes).expect("an event").data).collect()
    }

    /// What GPUs moved to and why.
    fn moves(&self) -> Vec<(String, DeviceState, String)> {
        let device = |payload| if let Payload::Device(d) = payload { Some((d.device_uuid.to_string(), d.state, d.cause)) } else { None };
        self.payloads().into_iter().filter_map(device).collect()
    }

    fn device_events(&self) -> Vec<DeviceEventRow> {
        self.effects.rows.iter().filter_map(|row| if let Row::DeviceEvent(event) = &row.row { Some((**event).clone()) } else { None }).collect()
    }

    fn leases(&self) -> Vec<(LeaseState, String)> {
        self.payloads()
            .into_iter()
            .filter_map(|payload| if let Payload::Lease(lease) = payload { Some((lease.state, lease.cause)) } else { None })
            .collect()
    }

    fn decisions(&self) -> Vec<(Outcome, Option<Reason>)> {
        self.payloads().into_iter().filter_map(|payload| if let Payload::Decided(d) = payload { Some((d.outcome, d.reason)) } else { None }).collect()
    }
}

fn place(id: &str, count: u32, milli: u32, vram_bytes: u64, ttl_ms: u64) -> Request {
    Request::Place(Place {
        request_id: id.to_owned(),
        bundles: vec![Bundle { count, milli, vram_bytes, ..Bundle::default() }],
        lease_ttl_ms: Some(ttl_ms),
        ..Place::default()
    })
}

#[test]
fn a_frame_of_an_unknown_host_is_refused_once_and_every_sample_counted() {
    let mut world = World::new();
    let frame = world.frame(7);
    world.send(frame);
    assert_eq!(world.reasons(), [Reason::DeviceNotRegistered]);
    assert_eq!(world.state.summary().samples_rejected, 2);
}

#[test]
fn a_frame_of_an_unknown_revision_is_refused_and_not_taken_twice() {
    let mut world = World::with_hosts(1);
    world.clear();
    let frame = Frame { inventory_revision: 9, ..world.frame(0) };
    world.send(frame.clone());
    world.send(frame);
    assert_eq!(world.reasons(), [Reason::DeviceNotRegistered]);
    let summary = world.state.summary();
    assert_eq!((summary.samples_rejected, summary.samples_duplicate), (2, 2));
}

#[test]
fn a_duplicate_of_any_age_counts_once_and_is_shown_in_its_window_while_that_is_open() {
    let mut world = World::with_hosts(1);
    let frame = world.frame(0);
    world.send(frame.clone());
    world.send(frame.clone());
    world.live(30, &[0]);
    world.send(frame);
    world.live(30, &[0]);
    let duplicates: u32 = world.windows(Tier::TenSeconds).iter().map(|window| window.stats.duplicate).sum();
    assert_eq!(duplicates, 2, "one per GPU, the third came after the window had closed");
    assert_eq!(world.state.summary().samples_duplicate, 4);
}

#[test]
fn a_sample_from_the_future_is_refused_and_moves_no_watermark() {
    let mut world = World::with_hosts(2);
    world.clear();
    let mut frame = world.frame(0);
    frame.ticks[0].sampled_at = EventTime(world.now_ns + 365 * 86_400 * NS_PER_S);
    world.send(frame);
    assert_eq!(world.reasons(), [Reason::TimestampInFuture; 2]);
    assert_eq!(world.windows(Tier::TenSeconds).len(), 0);
    let mut frame = world.frame(0);
    frame.ticks[0].sampled_at = EventTime(world.now_ns + 5 * NS_PER_S);
    world.clear();
    world.send(frame);
    assert_eq!(world.reasons(), [], "five seconds ahead is allowed");
}

#[test]
fn a_refused_field_is_absent_and_the_rest_of_the_sample_lives() {
    let mut world = World::with_hosts(1);
    world.clear();
    let mut frame = world.frame(0);
    frame.samples[0].set(Field::PowerMw, 1_400_001);
    frame.samples[1].set(Field::PowerMw, 1_400_000);
    world.send(frame);
    world.live(15, &[0]);
    let rejected: Vec<_> = world.rejected().iter().map(|row| (row.field, row.reason, row.raw_value.clone(), row.source.clone())).collect();
    assert_eq!(rejected, [(Some(Field::PowerMw), Reason::PowerTooHigh, "1400001".to_owned(), "processor".to_owned())]);
    let window = |g: usize| {
        world.windows(Tier::TenSeconds).into_iter().find(|w| w.device_key == uuid(0, g).key() && w.stats.received > 9).expect("closed").clone()
    };
    assert_eq!(window(0).stats.power_mw_max, None);
    assert_eq!(window(1).stats.power_mw_max, Some(1_400_000));
    assert_eq!(window(0).stats.received, window(1).stats.received);
}

#[test]
fn rows_about_refusals_are_bounded_and_the_rest_is_shown_as_a_number() {
    let mut world = World::with_hosts(1);
    world.clear();
    for _ in 0..100 {
        let mut frame = world.frame(0);
        frame.samples[0].set(Field::PowerMw, 9_000_000);
        frame.samples[1].set(Field::PowerMw, 9_000_000);
        world.send(frame);
    }
    assert_eq!(world.rejected().len(), 100);
    world.live(20, &[0]);
    assert_eq!(world.rejected().last().map(|row| row.raw_value.as_str()), Some("+100 more"));
    assert_eq!(world.rejected().len(), 101);
    let outputs: Vec<u64> = world.payloads().into_iter().filter_map(|p| if let Payload::Rejected(r) = p { Some(r.count) } else { None }).collect();
    assert_eq!(outputs, [2], "the first frame's; the rest of the ten seconds is held back");
}

#[test]
fn two_hosts_cannot_both_own_a_gpu_until_one_of_them_is_lost() {
    let mut world = World::with_hosts(2);
    world.clear();
    world.announce(1, 1, 2, vec![gpu(1, 0), gpu(1, 1), Gpu { slot: Slot(2), ..gpu(0, 0) }]);
    assert_eq!(world.reasons(), [Reason::DuplicateUuid]);
    world.live(91, &[]);
    world.clear();
    world.announce(1, 1, 3, vec![gpu(1, 0), gpu(1, 1), Gpu { slot: Slot(2), ..gpu(0, 0) }]);
    assert_eq!(world.reasons(), []);
    let moves: Vec<(String, String)> = world.moves().into_iter().map(|(uuid, _, cause)| (uuid, cause)).collect();
    assert!(
        moves.contains(&("GPU-0-0".to_owned(), "moved".to_owned())) && moves.contains(&("GPU-0-0".to_owned(), "registered".to_owned())),
        "{moves:?}"
    );
    let row = world.effects.rows.iter().rev().find_map(|row| if let Row::Device(d) = &row.row { Some((d.host.clone(), d.valid_to)) } else { None });
    assert_eq!(row, Some((host_id(1), None)));
}

#[test]
fn an_inventory_that_says_nothing_new_says_nothing() {
    let mut world = World::with_hosts(1);
    world.clear();
    world.announce(0, 1, 1, vec![gpu(0, 0), gpu(0, 1)]);
    world.announce(0, 1, 2, vec![gpu(0, 0), gpu(0, 1)]);
    assert_eq!((world.effects.rows.len(), world.effects.outputs.len()), (0, 0));
}

#[test]
fn a_gpu_that_vanishes_is_retired_and_what_was_open_for_it_is_closed() {
    let mut world = World::with_hosts(1);
    world.live(5, &[0]);
    world.clear();
    world.announce(0, 1, 2, vec![gpu(0, 1)]);
    assert_eq!(world.moves(), [("GPU-0-0".to_owned(), DeviceState::Ok, "retired".to_owned())]);
    for tier in [Tier::TenSeconds, Tier::Minute, Tier::Hour] {
        assert!(world.windows(tier).iter().any(|window| window.device_key == uuid(0, 0).key() && window.stats.received > 0), "{tier:?}");
    }
    assert_eq!(world.state.summary().devices, 1);
}

#[test]
fn silence_makes_stale_then_lost_and_a_word_undoes_it() {
    let mut world = World::with_hosts(1);
    world.clear();
    let states = |world: &World| -> Vec<(DeviceState, String)> {
        world.moves().into_iter().filter(|(uuid, ..)| uuid == "GPU-0-0").map(|(_, s, c)| (s, c)).collect()
    };
    world.live(7, &[]);
    assert_eq!(states(&world), []);
    world.live(1, &[]);
    assert_eq!(states(&world), [(DeviceState::Stale, "stale".to_owned())]);
    world.live(81, &[]);
    assert_eq!(states(&world).len(), 1);
    world.live(1, &[]);
    assert_eq!(states(&world)[1], (DeviceState::Lost, "lost".to_owned()));
    assert_eq!(world.state.summary().hosts_silent, 1);
    world.live(1, &[0]);
    assert_eq!(states(&world)[2], (DeviceState::Ok, "returned".to_owned()));
    let versions: Vec<_> = world.effects.rows.iter().filter_map(|row| if let Row::Device(d) = &row.row { Some(d) } else { None }).collect();
    let of_one: Vec<_> = versions.iter().filter(|d| d.device_key == uuid(0, 0).key()).map(|d| (d.state, d.valid_to.is_some())).collect();
    use DeviceState::{Lost, Ok, Stale};
    assert_eq!(of_one, [(Ok, true), (Stale, false), (Stale, true), (Lost, false), (Lost, true), (Ok, false)]);
}

#[test]
fn a_gpu_that_says_nothing_is_stale_though_its_host_speaks() {
    let mut world = World::with_hosts(1);
    world.clear();
    for _ in 0..12 {
        world.live(1, &[]);
        let mut frame = world.frame(0);
        frame.samples[1] = Sample::default();
        world.send(frame);
    }
    assert_eq!(world.moves(), [("GPU-0-1".to_owned(), DeviceState::Stale, "stale".to_owned())]);
    assert_eq!(world.state.summary().hosts_silent, 0);
}

#[test]
fn a_host_that_drains_its_backlog_is_not_alive() {
    let mut world = World::with_hosts(1);
    world.live(20, &[]);
    world.clear();
    for old_s in (0..600).rev().step_by(60) {
        let mut frame = world.frame(0);
        frame.backfill = true;
        frame.ticks[0].sampled_at = EventTime(world.now_ns - old_s * NS_PER_S);
        world.send(frame);
    }
    world.place("r", 1, 1_000, GIB, 60_000);
    assert_eq!(world.decisions(), [(Outcome::Rejected, Some(Reason::Stale))]);
    world.live(1, &[0]);
    world.place("r2", 1, 1_000, GIB, 60_000);
    assert_eq!(world.decisions()[1], (Outcome::Placed, None));
}

#[test]
fn a_year_ahead_of_the_broker_expires_nothing() {
    let mut world = World::with_hosts(1);
    world.place("r", 1, 1_000, GIB, 10_000);
    world.live(1, &[0]);
    world.clear();
    world.now_ns += 365 * 86_400 * NS_PER_S;
    world.live(2, &[0]);
    assert_eq!((world.leases(), world.moves()), (vec![], vec![]));
    let unknown: i64 = world.windows(Tier::TenSeconds).iter().map(|w| w.state.allocated_ms).sum();
    assert!(unknown <= 20_000, "time that nobody watched belongs to nobody, {unknown} ms were credited");
    assert!(world.effects.rows.len() < 100, "{} rows for a year in which nothing was seen", world.effects.rows.len());
}

#[test]
fn a_released_gpu_is_free_at_once_and_an_expired_one_drains_until_it_is_seen_empty() {
    let mut world = World::with_hosts(1);
    world.place("r1", 1, 1_000, GIB, 600_000);
    world.ask(0, Request::Release(Release { request_id: "x".to_owned(), lease_id: "lease-test-1".to_owned() }));
    assert_eq!(world.leases(), [(LeaseState::Active, "granted".to_owned()), (LeaseState::Ended, "released".to_owned())]);
    world.clear();
    world.place("r2", 2, 1_000, GIB, 10_000);
    world.live(10, &[0]);
    assert_eq!(world.leases(), [(LeaseState::Active, "granted".to_owned())], "at the very end it still lives");
    world.live(1, &[0]);
    assert_eq!(world.leases()[1], (LeaseState::Draining, "expired".to_owned()));
    world.live(300, &[0]);
    assert_eq!(world.leases().len(), 2, "10 GiB in use: not free, however long it takes");
    world.place("r3", 1, 100, GIB, 10_000);
    assert_eq!(world.decisions()[1], (Outcome::Rejected, Some(Reason::Draining)));
    world.sample.set(Field::MemoryUsedBytes, GIB - 1);
    world.live(30, &[0]);
    assert_eq!(world.leases().len(), 2);
    world.live(1, &[0]);
    assert_eq!(world.leases()[2..], [(LeaseState::Ended, "observed_free".to_owned())]);
    world.place("r4", 2, 1_000, GIB, 10_000);
    assert_eq!(world.decisions()[2], (Outcome::Placed, None));
}

#[test]
fn processes_on_a_gpu_mean_that_it_is_not_free() {
    let mut world = World::with_hosts(1);
    world.place("r", 1, 1_000, GIB, 10_000);
    world.sample.set(Field::MemoryUsedBytes, 0);
    world.sample.set(Field::Procs, 1);
    world.live(100, &[0]);
    assert_eq!(world.leases().len(), 2);
    world.sample.set(Field::Procs, 0);
    world.live(31, &[0]);
    assert_eq!(world.leases()[2..], [(LeaseState::Ended, "observed_free".to_owned())]);
}

#[test]
fn an_operator_may_say_that_a_draining_gpu_is_free() {
    let mut world = World::with_hosts(1);
    world.place("r", 1, 1_000, GIB, 10_000);
    world.live(11, &[0]);
    world.clear();
    for g in 0..2 {
        world.control(Control::Free { uuid: uuid(0, g) });
    }
    assert_eq!(world.leases(), [(LeaseState::Ended, "operator".to_owned())]);
}

#[test]
fn leases_on_a_lost_host_are_suspended_and_go_on_when_it_returns() {
    let mut world = World::with_hosts(1);
    world.place("r", 1, 1_000, GIB, 600_000);
    world.live(90, &[]);
    world.live(1, &[0]);
    let states: Vec<LeaseState> = world.leases().into_iter().map(|(state, _)| state).collect();
    assert_eq!(states, [LeaseState::Active, LeaseState::Suspended, LeaseState::Active]);
}

#[test]
fn renewing_extends_from_now_and_only_the_holder_can() {
    let mut world = World::with_hosts(1);
    let renew = |id: &str| Request::Renew(Renew { request_id: "n".to_owned(), lease_ids: vec![id.to_owned()] });
    world.place("r", 1, 1_000, GIB, 10_000);
    for _ in 0..5 {
        world.live(9, &[0]);
        world.ask(0, renew("lease-test-1"));
    }
    assert_eq!(world.leases(), [(LeaseState::Active, "granted".to_owned())]);
    world.clear();
    world.ask(1, renew("lease-test-1"));
    world.ask(0, renew("lease-test-9"));
    assert_eq!(world.leases(), [(LeaseState::Ended, "not_holder".to_owned()), (LeaseState::Ended, "unknown_lease".to_owned())]);
    world.live(11, &[0]);
    world.clear();
    world.ask(0, renew("lease-test-1"));
    assert_eq!(world.leases(), [(LeaseState::Draining, "lease_expired".to_owned())]);
}

#[test]
fn a_repeated_request_is_the_same_request_and_a_reused_id_is_refused() {
    let mut world = World::with_hosts(1);
    world.clear();
    world.place("r", 1, 1_000, GIB, 10_000);
    let once = world.effects.clone();
    world.place("r", 1, 1_000, GIB, 10_000);
    assert_eq!(world.effects, once);
    world.place("r", 2, 1_000, GIB, 10_000);
    assert_eq!(world.reasons(), [Reason::RequestIdReused]);
    world.ask(1, place("r", 1, 1_000, GIB, 10_000));
    assert_eq!(world.decisions(), [(Outcome::Placed, None); 2], "ids belong to tenants");
}

#[test]
fn a_request_out_of_bounds_gets_a_decision_that_says_so() {
    let mut world = World::with_hosts(1);
    world.place("r", 0, 1_000, GIB, 10_000);
    world.place(&"x".repeat(500), 1, 1_000, GIB, 10_000);
    world.place("r2", 3, 1_000, GIB, 10_000);
    let reject = |reason| (Outcome::Rejected, Some(reason));
    assert_eq!(world.decisions(), [reject(Reason::InvalidRequest), reject(Reason::InvalidRequest), reject(Reason::TooFewDevices)]);
}

#[test]
fn a_tenant_has_a_burst_and_then_a_rate() {
    let mut world = World::with_hosts(1);
    world.clear();
    for n in 0..2_100 {
        world.place(&format!("r{n}"), 1, 1_000, 200 * GIB, 10_000);
    }
    assert_eq!(world.decisions().len(), 2_000);
    assert!(world.reasons().iter().all(|&reason| reason == Reason::RateLimited));
    world.live(1, &[0]);
    world.clear();
    for n in 2_000..2_300 {
        world.place(&format!("r{n}"), 1, 1_000, 200 * GIB, 10_000);
    }
    assert_eq!(world.decisions().len(), 200);
}

#[test]
fn hardware_faults_stop_placement_and_application_errors_do_not() {
    let check = |code: u32, expected: (Outcome, Option<Reason>)| {
        let mut world = World::with_hosts(1);
        world.event(0, Some(0), EventKind::Xid { code });
        world.place("r", 2, 1_000, GIB, 10_000);
        assert_eq!(world.decisions(), [expected], "XID {code}");
        world.announce(0, 2, 1, vec![gpu(0, 0), gpu(0, 1)]);
        world.ask(0, Request::Release(Release { request_id: "x".to_owned(), lease_id: "lease-test-1".to_owned() }));
        world.place("r2", 2, 1_000, GIB, 10_000);
        assert_eq!(world.decisions()[1], (Outcome::Placed, None), "a new life of the agent clears it");
        world.live(30, &[0]);
        assert_eq!(world.windows(Tier::TenSeconds).iter().map(|window| window.stats.xid_count).sum::<u32>(), 1);
        let events =
            world.effects.rows.iter().filter(|row| matches!(&row.row, Row::DeviceEvent(e) if e.kind == "xid" && e.code == Some(code as i32)));
        assert_eq!(events.count(), 1);
    };
    check(79, (Outcome::Rejected, Some(Reason::Xid)));
    check(74, (Outcome::Rejected, Some(Reason::Xid)));
    for code in [13, 31, 43, 45, 68, 109] {
        check(code, (Outcome::Placed, None));
    }
}

#[test]
fn a_lost_gpu_that_returns_is_well_again() {
    let mut world = World::with_hosts(1);
    world.clear();
    world.event(0, Some(0), EventKind::GpuLost);
    world.event(0, Some(0), EventKind::GpuReturned);
    let states: Vec<_> = world.moves().into_iter().map(|(_, state, cause)| (state, cause)).collect();
    assert_eq!(states, [(DeviceState::Failed, "gpu_lost".to_owned()), (DeviceState::Ok, "gpu_returned".to_owned())]);
}

/// Why the cell's only host cannot take a request for both of its GPUs; nothing if it can.
fn refusal(world: &mut World, id: &str) -> Option<Reason> {
    world.place(id, 2, 1_000, GIB, 10_000);
    let (outcome, reason) = world.decisions().last().copied().expect("a decision");
    if outcome == Outcome::Placed {
        let lease_id = world.payloads().into_iter().rev().find_map(|p| if let Payload::Lease(lease) = p { Some(lease.lease_id) } else { None });
        world.ask(0, Request::Release(Release { request_id: format!("{id}-over"), lease_id: lease_id.expect("a lease") }));
    }
    reason
}

#[test]
fn every_cause_of_ill_health_has_its_own_reason_and_its_own_cure() {
    let check = |ill: &dyn Fn(&mut World), reason: Reason, state: DeviceState, cure: &dyn Fn(&mut World)| {
        let mut world = World::with_hosts(1);
        ill(&mut world);
        assert_eq!(refusal(&mut world, "ill"), Some(reason));
        assert_eq!(world.moves().last().map(|(_, state, _)| *state), Some(state), "{reason}");
        cure(&mut world);
        assert_eq!(refusal(&mut world, "well"), None, "{reason}");
    };
    let event = |kind: EventKind| move |world: &mut World| world.event(0, Some(1), kind.clone());
    let remap = |state: Remap| event(EventKind::Remap { state, rows: 1 });
    let ecc = |errors: u64| {
        move |world: &mut World| {
            world.sample.set(Field::EccUncorrected, errors);
            world.live(1, &[0]);
        }
    };
    let restart = |world: &mut World| world.announce(0, 2, 1, vec![gpu(0, 0), gpu(0, 1)]);
    let operator = |world: &mut World| [0, 1].into_iter().for_each(|g| world.control(Control::Free { uuid: uuid(0, g) }));
    check(&event(EventKind::GpuLost), Reason::GpuLost, DeviceState::Failed, &event(EventKind::GpuReturned));
    check(&event(EventKind::GpuLost), Reason::GpuLost, DeviceState::Failed, &restart);
    check(&event(EventKind::Xid { code: 79 }), Reason::Xid, DeviceState::Failed, &event(EventKind::GpuReturned));
    check(&event(EventKind::Xid { code: 48 }), Reason::Xid, DeviceState::Degraded, &restart);
    check(&event(EventKind::Xid { code: 74 }), Reason::Xid, DeviceState::Degraded, &operator);
    check(&remap(Remap::Pending), Reason::RowRemap, DeviceState::Degraded, &remap(Remap::Clean));
    check(&remap(Remap::Failed), Reason::RowRemap, DeviceState::Failed, &operator);
    check(&ecc(1), Reason::Ecc, DeviceState::Degraded, &ecc(0));
    check(&ecc(1), Reason::Ecc, DeviceState::Degraded, &operator);
    check(
        &event(EventKind::Ecc { volatile: 1, aggregate: 9 }),
        Reason::Ecc,
        DeviceState::Degraded,
        &event(EventKind::Ecc { volatile: 0, aggregate: 9 }),
    );
}

#[test]
fn a_cure_of_one_cause_leaves_the_others_and_errors_beyond_those_accepted_count_again() {
    let mut world = World::with_hosts(1);
    world.event(0, Some(0), EventKind::Xid { code: 79 });
    world.event(0, Some(0), EventKind::Remap { state: Remap::Pending, rows: 1 });
    assert_eq!(refusal(&mut world, "both"), Some(Reason::Xid));
    world.event(0, Some(0), EventKind::GpuReturned);
    assert_eq!(refusal(&mut world, "one"), Some(Reason::RowRemap));
    world.event(0, Some(0), EventKind::Ecc { volatile: 2, aggregate: 2 });
    world.control(Control::Free { uuid: uuid(0, 0) });
    assert_eq!(refusal(&mut world, "accepted"), None);
    world.announce(0, 2, 1, vec![gpu(0, 0), gpu(0, 1)]);
    assert_eq!(refusal(&mut world, "restarted"), None);
    world.event(0, Some(0), EventKind::Ecc { volatile: 3, aggregate: 3 });
    let kinds: Vec<_> = world.device_events().into_iter().map(|event| event.kind).collect();
    assert!(kinds.ends_with(&["ecc".to_owned()]), "{kinds:?}");
}

#[test]
fn a_hot_gpu_takes_nothing_new_until_it_is_well_below_its_limit() {
    let mut world = World::new();
    let limit = Some(363_150);
    world.announce(0, 1, 1, [0, 1].map(|g| Gpu { slowdown_temperature_mk: limit, ..gpu(0, g) }).to_vec());
    world.live(10, &[0]);
    let mut at = |celsius: u64, expected: Option<Reason>| {
        world.sample.set(Field::TemperatureMk, 273_150 + celsius * 1_000);
        world.live(1, &[0]);
        let id = format!("r{}", world.now_ns);
        assert_eq!(refusal(&mut world, &id), expected, "{celsius} °C");
    };
    at(85, None);
    at(86, Some(Reason::Thermal));
    at(85, Some(Reason::Thermal));
    at(80, Some(Reason::Thermal));
    at(79, None);
    at(84, None);
    world.sample.set(Field::TemperatureMk, 273_150 + 88_000);
    world.clear();
    world.live(1, &[0]);
    world.sample.clear(Field::TemperatureMk);
    world.live(100, &[0]);
    let causes: BTreeSet<_> = world.moves().into_iter().map(|(_, state, cause)| (state, cause)).collect();
    assert_eq!(causes, [(DeviceState::Degraded, "thermal_pause".to_owned())].into(), "unknown is not cool");
    let unhealthy: i64 = world.windows(Tier::Minute).iter().map(|window| window.state.unhealthy_ms).sum();
    assert!(unhealthy > 60_000, "a paused GPU is not free: {unhealthy} ms");
}

#[test]
fn an_xid_that_arrives_late_counts_in_a_late_part_of_its_window() {
    let mut world = World::with_hosts(1);
    world.live(100, &[0]);
    let at_ns = world.now_ns - 60 * NS_PER_S;
    world.clear();
    world.event_at(0, Some(0), EventKind::Xid { code: 13 }, at_ns);
    world.live(200, &[0]);
    for tier in [Tier::TenSeconds, Tier::Minute] {
        let length_ns = tier.seconds() * NS_PER_S;
        let windows = world.windows(tier);
        let counted: Vec<_> = windows.iter().filter(|w| w.stats.xid_count > 0).map(|w| (w.window_at.0, w.part, w.stats.xid_count)).collect();
        assert_eq!(counted, [(at_ns / length_ns * length_ns, 1, 1)], "{tier:?}");
    }
}

#[test]
fn operators_cordon_and_expel_and_only_enrolled_hosts_are_placeable() {
    let refused = |prepare: &dyn Fn(&mut World), expected: Option<Reason>| {
        let mut world = World::with_hosts(1);
        prepare(&mut world);
        world.place("r", 2, 1_000, GIB, 10_000);
        assert_eq!(world.decisions()[0].1, expected);
    };
    refused(&|_| {}, None);
    refused(&|w| w.control(Control::Cordon(Cordon::Host(host_id(0)))), Some(Reason::Cordoned));
    refused(&|w| w.control(Control::Cordon(Cordon::Gpu(uuid(0, 1)))), Some(Reason::Cordoned));
    refused(
        &|w| {
            w.control(Control::Cordon(Cordon::Host(host_id(0))));
            w.control(Control::Uncordon(Cordon::Host(host_id(0))));
        },
        None,
    );
    let mut world = World { state: State::new(cell()), ..World::new() };
    world.sequence = 0;
    world.announce(0, 1, 1, vec![gpu(0, 0), gpu(0, 1)]);
    world.live(4, &[0]);
    world.place("r", 1, 1_000, GIB, 10_000);
    world.control(Control::Enrol { hosts: vec![host_id(0)] });
    world.place("r2", 1, 1_000, GIB, 10_000);
    assert_eq!(world.decisions(), [(Outcome::Rejected, Some(Reason::NotEnrolled)), (Outcome::Placed, None)]);
    world.control(Control::Expel { host: host_id(0) });
    world.place("r3", 1, 1_000, GIB, 10_000);
    assert_eq!(world.decisions()[2].1, Some(Reason::NotEnrolled));
}

#[test]
fn settings_out_of_bounds_are_refused_and_change_nothing() {
    let mut world = World::with_hosts(1);
    world.clear();
    world.control(Control::Settings(Settings { vram_limit_bp: Some(0), ..Settings::default() }));
    world.control(Control::Settings(Settings { free_after_ms: Some(u64::MAX), ..Settings::default() }));
    assert_eq!(world.reasons(), [Reason::OutOfRange; 2]);
    world.control(Control::Settings(Settings { vram_limit_bp: Some(5_000), ..Settings::default() }));
    world.place("r", 1, 1_000, TOTAL / 2 + 1, 10_000);
    world.place("r2", 1, 1_000, TOTAL / 2 - 10 * GIB, 10_000);
    assert_eq!(world.decisions(), [(Outcome::Rejected, Some(Reason::InsufficientMemory)), (Outcome::Placed, None)]);
}

#[test]
fn a_hole_in_the_log_and_frames_given_up_are_events() {
    let mut world = World::with_hosts(1);
    world.clear();
    world.sequence += 5;
    world.live(1, &[0]);
    world.event(
        0,
        None,
        EventKind::Gap { from_sequence: 100, to_sequence: 110, class: Class::Sample, of_epoch: None, cause: "buffer full".to_owned() },
    );
    let gaps: Vec<_> = world
        .payloads()
        .into_iter()
        .filter_map(|p| if let Payload::Gap(gap) = p { Some((gap.host, gap.to_sequence - gap.from_sequence, gap.state)) } else { None })
        .collect();
    assert_eq!(gaps, [(None, 4, GapState::Loss), (Some(host_id(0)), 10, GapState::Loss)]);
    let frame = Frame { sequence: 105, ..world.frame(0) };
    world.send(frame);
    assert_eq!(world.state.summary().samples_duplicate, 2, "what was given up stays given up");
}

#[test]
fn a_message_that_nobody_can_read_is_a_row_and_outputs_about_it_are_bounded() {
    let mut world = World::with_hosts(1);
    world.clear();
    for _ in 0..50 {
        let refused = Refused {
            host: Some(host_id(0)),
            tenant: None,
            source: "sample.host-0".to_owned(),
            reason: Reason::Undecodable,
            detail: "garbage".to_owned(),
        };
        world.push(Body::Refused(refused));
    }
    assert_eq!((world.rejected().len(), world.effects.outputs.len()), (50, 1));
    world.live(10, &[0]);
    let refused = Refused {
        host: Some(host_id(0)),
        tenant: None,
        source: "sample.host-0".to_owned(),
        reason: Reason::Undecodable,
        detail: "garbage".to_owned(),
    };
    world.push(Body::Refused(refused));
    let counts: Vec<u64> = world.payloads().into_iter().filter_map(|p| if let Payload::Rejected(r) = p { Some(r.count) } else { None }).collect();
    assert_eq!(counts, [1, 50]);
}

#[test]
fn a_late_sample_is_counted_and_leaves_the_closed_window_unchanged() {
    let mut world = World::with_hosts(1);
    let late = world.frame(0);
    world.live(40, &[0]);
    world.clear();
    world.send(late.clone());
    assert_eq!(world.windows(Tier::TenSeconds).len(), 0);
    world.live(60, &[0]);
    let at = EventTime(late.ticks[0].sampled_at.0 / (10 * NS_PER_S) * (10 * NS_PER_S));
    let parts: Vec<_> = world
        .windows(Tier::TenSeconds)
        .into_iter()
        .filter(|window| window.window_at == at)
        .map(|w| (w.part, w.stats.received, w.stats.late, w.expected))
        .collect();
    assert_eq!(parts, [(1, 1, 1, 0); 2]);
    let mut too_late = world.frame(0);
    too_late.ticks[0].sampled_at = EventTime(world.now_ns - 3_601 * NS_PER_S);
    world.clear();
    world.send(too_late);
    assert_eq!(world.reasons(), [Reason::Late; 2]);
}

#[test]
fn windows_of_a_silent_host_close_a_minute_after_log_time_passed_their_end() {
    let mut world = World::with_hosts(1);
    world.clear();
    // Log time passed the end of the first window just now; the watermark stays two seconds behind the last sample, before it.
    world.live(59, &[]);
    assert_eq!(world.windows(Tier::TenSeconds).len(), 0);
    world.live(1, &[]);
    assert_eq!(world.windows(Tier::TenSeconds).len(), 2);
}

#[test]
fn a_windows_time_is_leased_idle_free_or_not_well_and_no_more_than_there_is() {
    let mut world = World::with_hosts(1);
    world.sample.set(Field::UtilPercent, 4);
    world.now_ns += 2_500 * NS_PER_MS;
    world.place("r", 2, 1_000, GIB, 600_000);
    world.now_ns -= 500 * NS_PER_MS;
    world.live(28, &[0]);
    let windows = world.windows(Tier::TenSeconds);
    let at =
        |second: i64| windows.iter().find(|w| w.window_at.0 == (START_S + second) * NS_PER_S && w.device_key == uuid(0, 0).key()).expect("closed");
    let (first, second) = (at(10), at(20));
    assert_eq!((first.state.free_ms, first.state.allocated_ms), (2_500, 7_500));
    assert_eq!((second.state.free_ms, second.state.allocated_ms, second.state.allocated_idle_ms), (0, 10_000, 10_000));
    assert_eq!((second.lease_id.as_deref(), second.tenant.as_ref()), (Some("lease-test-1"), Some(&tenant(0))));
    assert_eq!((second.expected, second.stats.received, second.stats.covered_ms), (10, 10, 10_000));
    assert_eq!((second.model.as_str(), second.pool.as_deref(), second.gpu_index), ("NVIDIA H100 80GB HBM3", Some("blue"), 0));
}

#[test]
fn the_recent_ring_gives_the_newest_samples_of_the_gpus_asked_for() {
    let mut world = World::with_hosts(2);
    world.live(200, &[0, 1]);
    let rows = world.state.recent(Some(&[uuid(0, 1).key()]), 1_000);
    assert_eq!(rows.len(), 100);
    assert!(rows.iter().all(|row| row.device_key == uuid(0, 1).key()));
    assert_eq!(rows.last().map(|row| row.sampled_at), Some(EventTime(world.now_ns)));
    assert_eq!(world.state.recent(None, 40).len(), 40);
    assert_eq!(world.state.recent(None, 0).len(), 0);
    assert_eq!(world.state.recent(None, 3).len(), 3);
}

#[test]
fn the_cluster_sums_only_gpus_that_are_heard_from_and_counts_the_silent_ones() {
    let mut world = World::with_hosts(2);
    world.live(3, &[0, 1]);
    let all = world.state.summary().cluster.expect("two hosts have sent samples");
    world.live(30, &[0]);
    let half = world.state.summary().cluster.expect("one host still sends");
    assert_eq!((all.stale_count, half.stale_count), (0, all.device_count / 2));
    assert_eq!(half.device_count, all.device_count / 2);
    assert!(half.memory_total_bytes.sum < all.memory_total_bytes.sum);
}

#[test]
fn what_a_gpu_said_before_it_left_is_not_its_newest_sample_when_it_is_back() {
    let mut world = World::with_hosts(1);
    let mut ahead = world.frame(0);
    ahead.ticks[0].sampled_at = EventTime(world.now_ns + 4 * NS_PER_S);
    world.send(ahead);
    let said = |world: &World| world.state.recent(None, 100).iter().filter(|row| row.gpu_index == 0).map(|row| row.sampled_at.0).collect::<Vec<_>>();
    assert_eq!(said(&world).last(), Some(&(world.now_ns + 4 * NS_PER_S)));
    world.announce(0, 1, 2, vec![gpu(0, 1)]);
    world.announce(0, 1, 3, vec![gpu(0, 0), gpu(0, 1)]);
    let frame = Frame { inventory_revision: 3, ..world.frame(0) };
    world.send(frame);
    assert_eq!(said(&world), [world.now_ns]);
}
