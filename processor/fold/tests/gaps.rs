//! Gaps: what a host numbered and the log lacks is opened, asked for and closed; received, open and lost are together all there is.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_fold::durable::{Entry, StateTable};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, Tick as Beat};
use plimsoll_schemas::ctl::{Class, Repair};
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::inventory::{EventKind, HostEvent};
use plimsoll_schemas::out::{CloudEvent, GapState, Payload};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{GapRow, Row};
use plimsoll_schemas::settings::Settings;
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};
use support::{Plan, Rng, START_S, cell, frame, gpu, host_id, inventory, scenario};

use GapState::{Loss, Opened, Repaired};

/// The agent's first life.
const EPOCH: u64 = 1_000;

/// A fold of hosts with one GPU each, and every record it was given.
struct World {
    state: State,
    now_ns: i64,
    records: Vec<Record>,
    events: BTreeMap<(usize, u64), u64>,
    effects: Effects,
    outputs_told: usize,
    repairs_told: usize,
}

impl World {
    fn new(hosts: usize) -> Self {
        let (state, effects) = (State::new(cell()), Effects::default());
        let mut world =
            Self { state, now_ns: START_S * NS_PER_S, records: Vec::new(), events: BTreeMap::new(), effects, outputs_told: 0, repairs_told: 0 };
        (0..hosts).for_each(|host| world.announce(host, EPOCH));
        world.told();
        world
    }

    fn push(&mut self, body: Body) {
        let position = Position { epoch: LogEpoch(0), sequence: self.records.len() as u64 + 1 };
        let record = Record { position, logged_at: LogTime(self.now_ns), body };
        self.state.step(&record, &mut self.effects);
        self.records.push(record);
    }

    fn event_sequence(&mut self, host: usize, epoch: u64) -> u64 {
        let sequence = self.events.entry((host, epoch)).or_default();
        *sequence += 1;
        *sequence
    }

    fn announce(&mut self, host: usize, epoch: u64) {
        let sequence = self.event_sequence(host, epoch);
        self.push(Body::Inventory(Box::new(inventory(host, epoch, sequence, 1, vec![gpu(host, 0)]))));
    }

    fn event(&mut self, host: usize, epoch: u64, sequence: u64, kind: EventKind) {
        let happened_at = EventTime(self.now_ns);
        self.push(Body::Event(Box::new(HostEvent {
            schema_version: 1,
            host: host_id(host),
            epoch,
            sequence,
            happened_at,
            uuid: None,
            kind,
            detail: None,
        })));
    }

    /// The agent's word that it no longer has some frames of a life.
    fn gone(&mut self, host: usize, of_epoch: u64, class: Class, from_sequence: u64, to_sequence: u64) {
        let sequence = self.event_sequence(host, EPOCH);
        let kind =
            EventKind::Gap { from_sequence, to_sequence, class, of_epoch: (of_epoch != EPOCH).then_some(of_epoch), cause: "not kept".to_owned() };
        self.event(host, EPOCH, sequence, kind);
    }

    /// Sends one frame of one sample; `true` if the fold took it.
    fn send(&mut self, host: usize, epoch: u64, sequence: u64) -> bool {
        let before = self.state.summary().samples_duplicate;
        self.push(Body::Frame(Box::new(frame(host, epoch, sequence, self.now_ns))));
        self.state.summary().samples_duplicate == before
    }

    fn frames(&mut self, sequences: impl IntoIterator<Item = u64>) {
        for sequence in sequences {
            assert!(self.send(0, EPOCH, sequence), "{sequence} is new");
        }
    }

    fn set(&mut self, settings: Settings) {
        self.push(Body::Control(Box::new(Control::Settings(settings))));
    }

    fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now_ns += NS_PER_S;
            self.push(Body::Tick(Beat { replica: "a".to_owned(), second: 0 }));
        }
    }

    /// What OUT was told about gaps since the last time.
    fn told(&mut self) -> Vec<(GapState, u64, u64)> {
        let fresh = self.effects.outputs.iter().skip(self.outputs_told);
        let told = gaps_in(fresh.map(|output| output.bytes.as_slice())).into_iter().map(|(_, state, from, to)| (state, from, to)).collect();
        self.outputs_told = self.effects.outputs.len();
        told
    }

    /// What agents were to be asked for since the last time.
    fn asked(&mut self) -> Vec<Repair> {
        let fresh = self.effects.repairs[self.repairs_told..].to_vec();
        self.repairs_told = self.effects.repairs.len();
        fresh
    }

    fn asked_ranges(&mut self) -> Vec<(u64, u64)> {
        self.asked().into_iter().map(|repair| (repair.from_sequence, repair.to_sequence)).collect()
    }

    /// The table as SQL shows it: of every key the newest version.
    fn table(&self) -> Vec<(GapState, u64, u64)> {
        table(&self.effects).into_values().map(|row| (row.state, row.from_seq, row.to_seq)).collect()
    }
}

type Numbering = (String, u64, Class);

fn gaps_in<'a>(outputs: impl Iterator<Item = &'a [u8]>) -> Vec<(Numbering, GapState, u64, u64)> {
    let event = |bytes| serde_json::from_slice::<CloudEvent>(bytes).expect("an event").data;
    outputs
        .filter_map(|bytes| {
            let Payload::Gap(gap) = event(bytes) else { return None };
            Some(((gap.host?.to_string(), gap.epoch?, gap.class?), gap.state, gap.from_sequence, gap.to_sequence))
        })
        .collect()
}

fn table(effects: &Effects) -> BTreeMap<(Numbering, u64), GapRow> {
    let mut newest = BTreeMap::new();
    for row in &effects.rows {
        if let Row::Gap(gap) = &row.row
            && let (Some(host), Some(class)) = (&gap.host, gap.class)
        {
            newest.insert(((host.to_string(), gap.epoch, class), gap.from_seq), (**gap).clone());
        }
    }
    newest
}

#[test]
fn disorder_within_the_grace_is_no_gap() {
    let mut world = World::new(1);
    world.frames([1, 4, 3]);
    world.pass(4);
    world.frames([2]);
    world.pass(1_000);
    assert_eq!((world.told(), world.asked().len(), world.table().len()), (vec![], 0, 0));
}

#[test]
fn a_gap_opens_after_the_grace_is_asked_for_and_closes_when_what_was_missing_has_come() {
    let mut world = World::new(1);
    world.frames([1, 5]);
    world.pass(4);
    assert_eq!(world.told(), []);
    world.pass(1);
    assert_eq!(world.told(), [(Opened, 2, 4)]);
    let asked = Repair { host: host_id(0), epoch: EPOCH, class: Class::Sample, from_sequence: 2, to_sequence: 4 };
    assert_eq!(world.asked(), [asked]);
    world.frames([3, 4]);
    assert_eq!((world.told(), world.state.summary().gaps_open), (vec![], 1));
    world.frames([2]);
    assert_eq!((world.told(), world.state.summary().gaps_open), (vec![(Repaired, 2, 4)], 0));
    world.pass(1_000);
    assert_eq!((world.told(), world.asked()), (vec![], vec![]));
    let rows: Vec<_> = table(&world.effects).into_values().collect();
    assert_eq!(rows.len(), 1);
    let at = |seconds: i64| LogTime((START_S + seconds) * NS_PER_S);
    assert_eq!((rows[0].state, rows[0].opened_at, rows[0].closed_at), (Repaired, at(5), Some(at(5))));
}

#[test]
fn a_gap_is_asked_for_again_with_growing_pauses_and_only_for_what_it_still_misses() {
    let mut world = World::new(1);
    world.frames([1, 5]);
    world.pass(5);
    assert_eq!(world.asked_ranges(), [(2, 4)]);
    world.frames([2]);
    let mut asked = Vec::new();
    for second in 1..=900 {
        world.pass(1);
        asked.extend(world.asked_ranges().into_iter().map(|range| (second, range)));
    }
    let expected = [5, 15, 35, 75, 155, 275, 395, 515, 635, 755, 875].map(|second| (second, (3, 4)));
    assert_eq!(asked, expected);
}

#[test]
fn what_the_agent_no_longer_has_is_lost_and_the_rest_of_the_gap_goes_on() {
    let mut world = World::new(1);
    world.frames([1, 10]);
    world.pass(5);
    assert_eq!(world.told(), [(Opened, 2, 9)]);
    world.gone(0, EPOCH, Class::Sample, 4, 5);
    assert_eq!(world.told(), [(Loss, 4, 5)]);
    assert_eq!(world.table(), [(Opened, 2, 3), (Loss, 4, 5), (Opened, 6, 9)]);
    world.frames([3, 7, 2]);
    assert_eq!(world.told(), [(Repaired, 2, 3)]);
    world.gone(0, EPOCH, Class::Sample, 5, 6);
    world.gone(0, EPOCH, Class::Sample, 1, 10);
    assert_eq!(world.told(), [(Loss, 6, 6), (Repaired, 7, 7), (Loss, 8, 9)]);
    assert!(!world.send(0, EPOCH, 8), "what is lost stays lost");
    assert_eq!(world.table(), [(Repaired, 2, 3), (Loss, 4, 5), (Loss, 6, 6), (Repaired, 7, 7), (Loss, 8, 9)]);
}

#[test]
fn what_the_agent_gave_up_before_anybody_missed_it_is_lost_without_a_gap() {
    let mut world = World::new(1);
    world.frames([1]);
    world.gone(0, EPOCH, Class::Sample, 2, 3);
    world.frames([4]);
    world.pass(10);
    assert_eq!((world.told(), world.asked()), (vec![(Loss, 2, 3)], vec![]));
    // A range further on leaves a hole before it, which is missing like any other.
    world.gone(0, EPOCH, Class::Sample, 8, 9);
    world.pass(5);
    assert_eq!((world.told(), world.asked_ranges()), (vec![(Loss, 8, 9), (Opened, 5, 7)], vec![(5, 7)]));
}

#[test]
fn what_is_missing_after_a_quarter_of_an_hour_is_lost() {
    let mut world = World::new(1);
    world.frames([1, 6]);
    world.pass(5);
    world.frames([3]);
    world.told();
    world.pass(899);
    assert_eq!(world.told(), []);
    world.pass(1);
    assert_eq!(world.told(), [(Loss, 2, 2), (Repaired, 3, 3), (Loss, 4, 5)]);
}

#[test]
fn a_shorter_grace_opens_at_once_what_has_waited_longer() {
    let mut world = World::new(1);
    world.set(Settings { gap_grace_ms: Some(60_000), ..Settings::default() });
    world.frames([1, 3]);
    world.pass(20);
    assert_eq!(world.told(), []);
    world.set(Settings { gap_grace_ms: Some(20_000), ..Settings::default() });
    world.pass(1);
    assert_eq!(world.told(), [(Opened, 2, 2)]);
    world.set(Settings { gap_grace_ms: Some(0), ..Settings::default() });
    world.frames([5]);
    world.pass(1);
    assert_eq!(world.told(), [(Opened, 4, 4)]);
}

#[test]
fn a_shorter_pause_asks_at_once_and_a_longer_one_waits() {
    let mut world = World::new(1);
    world.frames([1, 3]);
    world.pass(5 + 5 + 10);
    assert_eq!(world.asked().len(), 3, "the next one is due in 20 s");
    let mut seconds_until_asked = |settings: Settings, seconds: i64| {
        world.set(settings);
        (1..=seconds).find(|_| {
            world.pass(1);
            !world.asked().is_empty()
        })
    };
    let pauses = |ask: u64, most: u64| Settings { gap_ask_ms: Some(ask), gap_ask_ms_max: Some(most), ..Settings::default() };
    assert_eq!(seconds_until_asked(pauses(30_000, 120_000), 119), None);
    assert_eq!(seconds_until_asked(pauses(30_000, 120_000), 9), Some(1), "setting what is set changes nothing");
    assert_eq!(seconds_until_asked(pauses(1_000, 3_600_000), 9), Some(8), "the fourth pause of 1, 2, 4, 8");
    assert_eq!(seconds_until_asked(pauses(1_000, 2_000), 9), Some(2));
    assert_eq!(seconds_until_asked(pauses(1_000, 2_000), 9), Some(2));
}

#[test]
fn a_shorter_life_of_gaps_gives_up_at_once_what_was_open_longer() {
    let mut world = World::new(1);
    world.frames([1, 3]);
    world.pass(5 + 99);
    world.told();
    world.set(Settings { gap_open_ms_max: Some(100_000), ..Settings::default() });
    assert_eq!(world.told(), []);
    world.pass(1);
    assert_eq!(world.told(), [(Loss, 2, 2)]);
    world.frames([5]);
    world.pass(5);
    world.set(Settings { gap_open_ms_max: Some(2_000_000), ..Settings::default() });
    world.pass(1_999);
    assert_eq!(world.told(), [(Opened, 4, 4)]);
    world.pass(1);
    assert_eq!(world.told(), [(Loss, 4, 4)]);
}

#[test]
fn an_outage_of_the_broker_gives_nothing_up() {
    let mut world = World::new(1);
    world.frames([1, 3]);
    world.pass(5);
    world.told();
    world.now_ns += 365 * 86_400 * NS_PER_S;
    world.pass(10);
    world.frames([2]);
    assert_eq!(world.told(), [(Repaired, 2, 2)]);
}

#[test]
fn what_came_before_the_first_sequence_ever_seen_is_missing_and_only_the_newest_of_it_is_asked_for() {
    let mut world = World::new(1);
    world.frames([40_001]);
    world.pass(5);
    assert_eq!(world.told(), [(Loss, 1, 23_616), (Opened, 23_617, 40_000)]);
    assert_eq!(world.asked_ranges(), [(23_617, 40_000)]);
}

#[test]
fn events_and_inventories_are_missed_like_frames() {
    let mut world = World::new(1);
    world.event_sequence(0, EPOCH);
    world.event_sequence(0, EPOCH);
    world.announce(0, EPOCH);
    world.pass(5);
    assert_eq!((world.told(), world.asked()[0].class), (vec![(Opened, 2, 3)], Class::Event));
    world.event(0, EPOCH, 3, EventKind::Stopping);
    world.gone(0, EPOCH, Class::Event, 2, 2);
    assert_eq!(world.told(), [(Loss, 2, 2), (Repaired, 3, 3)]);
}

#[test]
fn a_later_life_answers_for_an_earlier_one() {
    let mut world = World::new(1);
    world.announce(0, EPOCH - 1);
    for sequence in [1, 2, 5] {
        world.send(0, EPOCH - 1, sequence);
    }
    world.pass(5);
    assert_eq!(world.told(), [(Opened, 3, 4)]);
    world.gone(0, EPOCH - 1, Class::Sample, 3, 4);
    assert_eq!(world.told(), [(Loss, 3, 4)]);
    assert!(world.send(0, EPOCH, 3), "the life that speaks lost nothing");
}

#[test]
fn holes_beyond_the_bound_are_lost_oldest_first() {
    let mut world = World::new(1);
    world.frames((1..=1_026).map(|n| 2 * n));
    assert_eq!(world.told(), [(Loss, 1, 1), (Loss, 3, 3)]);
}

#[test]
fn what_a_forgotten_epoch_misses_is_lost() {
    let mut world = World::new(1);
    world.send(0, 1, 3);
    (2..80).for_each(|epoch| assert!(world.send(0, epoch, 1)));
    assert_eq!(world.told(), [(Loss, 1, 2)]);
}

#[test]
fn few_ranges_are_asked_for_at_once_and_all_of_them_in_time() {
    let mut world = World::new(20);
    for host in 0..20 {
        (0..40).for_each(|n| assert!(world.send(host, EPOCH, 2 * n + 1)));
    }
    let (mut most, mut hosts_most, mut asked) = (0, 0, BTreeSet::new());
    for _ in 0..40 {
        world.pass(1);
        let now = world.asked();
        let of_one = |host: usize| now.iter().filter(|repair| repair.host == host_id(host)).count();
        hosts_most = hosts_most.max((0..20).map(of_one).max().unwrap_or(0));
        most = most.max(now.len());
        asked.extend(now.into_iter().map(|repair| (repair.host, repair.from_sequence)));
    }
    assert_eq!((most, hosts_most, asked.len()), (64, 8, 20 * 39));
}

#[test]
fn a_hole_in_the_log_is_a_row_without_a_host() {
    let mut world = World::new(1);
    let position = Position { epoch: LogEpoch(0), sequence: 10 };
    let body = Body::Tick(Beat { replica: "a".to_owned(), second: 0 });
    world.state.step(&Record { position, logged_at: LogTime(world.now_ns), body }, &mut world.effects);
    let rows: Vec<&GapRow> = world.effects.rows.iter().filter_map(|row| if let Row::Gap(gap) = &row.row { Some(&**gap) } else { None }).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0].host, rows[0].class, rows[0].state, rows[0].from_seq, rows[0].to_seq), (&None, None, Loss, 2, 9));
}

/// An agent that forgets some of what it sent, behind a network that loses, doubles and reorders.
struct Fate {
    rng: Rng,
    /// (when it arrives, sequence), of frames and of the agent's word that it has them no longer.
    flying: Vec<(i64, u64)>,
    gone: Vec<(i64, u64, u64)>,
    kept: BTreeSet<u64>,
    sent: u64,
}

impl Fate {
    fn sends(&mut self, world: &World) {
        for _ in 0..self.rng.below(3) {
            self.sent += 1;
            if self.rng.chance(80) {
                self.kept.insert(self.sent);
            }
            self.flies(world, self.sent);
        }
    }

    fn flies(&mut self, world: &World, sequence: u64) {
        for _ in 0..[0, 1, 1, 1, 1, 1, 2][self.rng.below(7) as usize] {
            let delay_s = [0, 0, 0, 2, 8, 30, 1_000][self.rng.below(7) as usize];
            self.flying.push((world.now_ns + delay_s * NS_PER_S, sequence));
        }
    }

    /// Answers what it was asked for, mostly.
    fn answers(&mut self, world: &World, repair: &Repair) {
        for sequence in repair.from_sequence..=repair.to_sequence {
            if self.kept.contains(&sequence) {
                self.flies(world, sequence);
            } else if self.rng.chance(70) {
                self.gone.push((world.now_ns + self.rng.below(20) as i64 * NS_PER_S, sequence, sequence + self.rng.below(2)));
            }
        }
    }
}

/// Runs a seed; returns the world and which sequences the fold took.
fn live(seed: u64) -> (World, BTreeSet<u64>) {
    let mut world = World::new(1);
    let mut fate = Fate { rng: Rng::new(seed), flying: vec![], gone: vec![], kept: BTreeSet::new(), sent: 0 };
    let mut taken = BTreeSet::new();
    for second in 0..3_500 {
        if second < 150 {
            fate.sends(&world);
        }
        let (due, later) = std::mem::take(&mut fate.flying).into_iter().partition(|(at, _)| *at <= world.now_ns);
        fate.flying = later;
        let due: Vec<(i64, u64)> = due;
        for (_, sequence) in due {
            if world.send(0, EPOCH, sequence) {
                assert!(taken.insert(sequence), "seed {seed}: {sequence} was folded twice");
            }
        }
        let (due, later) = std::mem::take(&mut fate.gone).into_iter().partition(|(at, ..)| *at <= world.now_ns);
        fate.gone = later;
        let due: Vec<(i64, u64, u64)> = due;
        // Its word is true: what it says is gone does not fly any more.
        for (_, from, to) in due {
            if (from..=to).all(|sequence| !fate.kept.contains(&sequence) && sequence <= fate.sent) {
                world.gone(0, EPOCH, Class::Sample, from, to);
            }
        }
        for repair in world.asked() {
            fate.answers(&world, &repair);
        }
        world.pass(1);
    }
    (world, taken)
}

/// Every sequence of a numbering that was told to be in a state; none twice.
fn sequences(told: &[(Numbering, GapState, u64, u64)], of: &Numbering, wanted: &[GapState]) -> BTreeSet<u64> {
    let mut all = BTreeSet::new();
    for (_, state, from, to) in told.iter().filter(|(numbering, state, ..)| numbering == of && wanted.contains(state)) {
        (*from..=*to).for_each(|sequence| assert!(all.insert(sequence), "{of:?}: {sequence} is {state:?} twice"));
    }
    all
}

#[test]
fn received_and_lost_are_together_every_sequence_and_no_gap_is_opened_or_closed_twice() {
    let (mut repaired_in_all, mut lost_in_all) = (0, 0);
    for seed in 1..=60 {
        let (world, taken) = live(seed);
        let told = gaps_in(world.effects.outputs.iter().map(|output| output.bytes.as_slice()));
        let of = (host_id(0).to_string(), EPOCH, Class::Sample);
        let (opened, closed) = (sequences(&told, &of, &[Opened]), sequences(&told, &of, &[Repaired, Loss]));
        let (repaired, lost) = (sequences(&told, &of, &[Repaired]), sequences(&told, &of, &[Loss]));
        assert!(opened.is_subset(&closed), "seed {seed}: open for ever: {:?}", opened.difference(&closed));
        assert!(repaired.is_subset(&opened) && repaired.is_subset(&taken), "seed {seed}");
        assert!(lost.is_disjoint(&taken), "seed {seed}: lost and received: {:?}", lost.intersection(&taken));
        let all: BTreeSet<u64> = taken.union(&lost).copied().collect();
        let top = *all.last().expect("some");
        assert!(
            all.iter().copied().eq(1..=top),
            "seed {seed}: neither received nor lost: {:?}",
            (1..=top).filter(|s| !all.contains(s)).collect::<Vec<_>>()
        );
        let rows: BTreeSet<u64> = world.table().into_iter().filter(|(state, ..)| *state == Loss).flat_map(|(_, from, to)| from..=to).collect();
        assert_eq!(rows, lost, "seed {seed}: the table and OUT differ");
        assert!(world.table().iter().all(|(state, ..)| *state != Opened), "seed {seed}: a row is open for ever");
        (repaired_in_all, lost_in_all) = (repaired_in_all + repaired.len(), lost_in_all + lost.len());
    }
    assert!(repaired_in_all > 500 && lost_in_all > 500, "{repaired_in_all} repaired, {lost_in_all} lost: the scenario must misbehave");
}

#[test]
fn a_restart_at_any_moment_opens_asks_and_closes_the_same() {
    for seed in 1..=20 {
        let (world, _) = live(seed);
        let mut rng = Rng::new(seed ^ 0xdead);
        let (mut state, mut effects) = (State::new(cell()), Effects::default());
        let mut store: BTreeMap<(StateTable, Vec<u8>), Vec<u8>> = BTreeMap::new();
        for record in &world.records {
            state.step(record, &mut effects);
            if rng.below(40) == 0 {
                for Entry { table, key, value } in state.take_dirty() {
                    match value {
                        Some(value) => store.insert((table, key), value),
                        None => store.remove(&(table, key)),
                    };
                }
                let entries = store.iter().map(|((table, key), value)| Entry { table: *table, key: key.clone(), value: Some(value.clone()) });
                state = State::restore(cell(), entries).expect("own entries");
            }
        }
        assert_eq!(effects, world.effects, "seed {seed}");
        assert_eq!(state.hash(), world.state.hash(), "seed {seed}");
    }
}

#[test]
fn a_misbehaving_fleet_is_accounted_for_to_the_last_frame() {
    for seed in 400..=403 {
        let records = scenario(seed, Plan { hosts: 3, gpus: 2, seconds: 2_500, stalls: true, tenants: false, churn: false });
        let (mut state, mut effects) = (State::new(cell()), Effects::default());
        let mut received: BTreeMap<Numbering, BTreeSet<u64>> = BTreeMap::new();
        for record in &records {
            let before = state.summary().samples_duplicate;
            state.step(record, &mut effects);
            if let Body::Frame(frame) = &record.body
                && state.summary().samples_duplicate == before
            {
                received.entry((frame.host.to_string(), frame.epoch, Class::Sample)).or_default().insert(frame.sequence);
            }
        }
        let told = gaps_in(effects.outputs.iter().map(|output| output.bytes.as_slice()));
        for (of, received) in received {
            let lost = sequences(&told, &of, &[Loss]);
            assert!(lost.is_disjoint(&received), "seed {seed}: {of:?}");
            let all: BTreeSet<u64> = received.union(&lost).copied().collect();
            assert!(all.iter().copied().eq(1..=*all.last().expect("some")), "seed {seed}: {of:?}: {all:?}");
        }
    }
}
