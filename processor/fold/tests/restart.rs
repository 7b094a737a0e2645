//! A state that is stored, dropped and rebuilt at any moments goes on exactly as one that was never interrupted.

mod support;

use std::collections::BTreeMap;

use plimsoll_fold::durable::{Entry, FORMAT, StateTable};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, NewEpoch};
use plimsoll_schemas::id::{LogEpoch, Position, TenantId};
use plimsoll_schemas::pace::{Mode, Pace, Preset};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{PlacedRow, Row};
use plimsoll_schemas::settings::Settings;
use plimsoll_schemas::tables::{CELLS, Learned, Tables};
use support::{Log, Plan, Rng, START_S, cell, frame, gpu, inventory, scenario, tenant};

type Store = BTreeMap<(StateTable, Vec<u8>), Vec<u8>>;

fn commit(state: &mut State, store: &mut Store) {
    for Entry { table, key, value } in state.take_dirty() {
        match value {
            Some(value) => store.insert((table, key), value),
            None => store.remove(&(table, key)),
        };
    }
}

fn restore(store: &Store) -> State {
    let entries = store.iter().map(|((table, key), value)| Entry { table: *table, key: key.clone(), value: Some(value.clone()) });
    State::restore(cell(), entries).expect("own entries")
}

/// Folds with commits and crashes at random moments; what was not committed is folded again.
fn fold_with_crashes(records: &[Record], seed: u64) -> (State, Effects, u32) {
    let mut rng = Rng::new(seed ^ 0xdead_beef);
    let (mut state, mut store, mut kept) = (State::new(cell()), Store::new(), Effects::default());
    let (mut pending, mut at, mut committed, mut crashes) = (Effects::default(), 0, 0, 0);
    commit(&mut state, &mut store);
    while at < records.len() {
        state.step(&records[at], &mut pending);
        at += 1;
        match rng.below(400) {
            0..4 => {
                commit(&mut state, &mut store);
                kept.rows.append(&mut pending.rows);
                kept.outputs.append(&mut pending.outputs);
                kept.repairs.append(&mut pending.repairs);
                committed = at;
            }
            4 => {
                state = restore(&store);
                assert_eq!(state.position(), if committed == 0 { Position::default() } else { records[committed - 1].position });
                pending = Effects::default();
                at = committed;
                crashes += 1;
            }
            _ => {}
        }
    }
    kept.rows.append(&mut pending.rows);
    kept.outputs.append(&mut pending.outputs);
    kept.repairs.append(&mut pending.repairs);
    (state, kept, crashes)
}

#[test]
fn crashes_and_commits_at_any_moment_leave_no_trace() {
    for seed in 200..=205 {
        let records = scenario(seed, Plan { hosts: 3, gpus: 2, seconds: 2_000, stalls: true, tenants: true, churn: true });
        let (mut whole, mut effects) = (State::new(cell()), Effects::default());
        records.iter().for_each(|record| whole.step(record, &mut effects));
        let (state, crashed, crashes) = fold_with_crashes(&records, seed);
        assert!(crashes > 5, "seed {seed}: only {crashes} crashes");
        for (n, (a, b)) in effects.rows.iter().zip(&crashed.rows).enumerate() {
            assert_eq!(a, b, "seed {seed}: row {n}");
        }
        assert_eq!(effects.rows.len(), crashed.rows.len(), "seed {seed}");
        assert_eq!(effects.outputs, crashed.outputs, "seed {seed}");
        assert_eq!(whole.hash(), state.hash(), "seed {seed}");
        assert_eq!(whole.summary(), state.summary(), "seed {seed}");
    }
}

/// Found by the simulation: the state then began without its defaults and without the timer of the minute, which only a restored one had.
#[test]
fn a_log_that_is_replaced_before_anything_was_folded_begins_like_the_first_one() {
    let records = scenario(301, Plan { hosts: 2, gpus: 2, seconds: 300, stalls: false, tenants: true, churn: true });
    let mut state = State::new(cell());
    let base_hash = format!("{:016x}", state.hash());
    let new = NewEpoch { epoch: LogEpoch(1), base: Position::default(), base_hash, after: 0, out_seq: 0, adopted: vec![] };
    let mut effects = Effects::default();
    state.begin_epoch(&new, &mut effects).expect("its own base");
    let mut store = Store::new();
    commit(&mut state, &mut store);
    let mut restored = restore(&store);
    for record in records {
        let record = Record { position: Position { epoch: LogEpoch(1), ..record.position }, ..record };
        state.step(&record, &mut effects);
        restored.step(&record, &mut Effects::default());
        assert_eq!(state.hash(), restored.hash(), "at {}", record.position);
    }
    let policies = effects.rows.iter().filter(|row| matches!(&row.row, Row::Policy(policy) if policy.kind == "logic")).count();
    assert_eq!(policies, 1, "what holds by default is said once");
}

/// The records with an operator among them who changes settings and paces all the time.
fn with_changes(records: Vec<Record>, seed: u64) -> Vec<Record> {
    let mut rng = Rng::new(seed ^ 0x005e_7715);
    let mut changed = Vec::new();
    for record in records {
        let control = match rng.below(600) {
            0 | 1 => Some(Control::Settings(any_settings(&mut rng))),
            2 => Some(Control::Pace { tenant: any_scope(&mut rng), pace: any_pace(&mut rng) }),
            3 if rng.chance(30) => Some(Control::EndPace { tenant: any_scope(&mut rng) }),
            _ => None,
        };
        changed.extend(control.map(|control| Record { body: Body::Control(Box::new(control)), ..record.clone() }));
        changed.push(record);
    }
    for (sequence, record) in (1..).zip(&mut changed) {
        record.position.sequence = sequence;
    }
    changed
}

/// The cell, or a tenant.
fn any_scope(rng: &mut Rng) -> Option<TenantId> {
    rng.chance(60).then(|| tenant(rng.below(2)))
}

/// A pace that a busy hour of two GPUs passes now and then.
fn any_pace(rng: &mut Rng) -> Pace {
    Pace {
        mode: if rng.chance(50) { Mode::Refuse } else { Mode::Queue },
        min_request_interval_ms: rng.below(30_000) as u32,
        util_high_bp: 1_500 + rng.below(6_000) as u32,
        check_ms: 1_000 * (1 + rng.below(20) as u32),
        checks: 1 + rng.below(2) as u32,
        pause_ms: 1_000 * (1 + rng.below(60) as u32),
        ..Preset::Default.pace()
    }
}

/// Some settings that agree: those on which deadlines depend, and those of episodes.
fn any_settings(rng: &mut Rng) -> Settings {
    let mut ms = |least: u64, most: u64| Some(1_000 * (least + rng.below(most - least)));
    Settings {
        gap_grace_ms: ms(0, 30),
        gap_ask_ms: ms(1, 20),
        gap_ask_ms_max: ms(20, 200),
        gap_open_ms_max: ms(20, 1_200),
        late_part_ms: ms(1, 120),
        stale_extra_ms: ms(0, 20),
        lost_ms: ms(1, 200),
        close_delay_ms: ms(1, 120),
        free_after_ms: ms(0, 60),
        load_episode_ms: ms(1, 90),
        throttle_episode_ms: ms(1, 90),
        idle_below_percent: Some(1 + rng.below(9) as u32),
        busy_from_percent: Some(10 + rng.below(9) as u32),
        ..Settings::default()
    }
}

#[test]
fn settings_and_paces_that_change_all_the_time_hold_the_same_after_a_restart() {
    let mut paused = 0;
    for seed in 210..=217 {
        let plan = Plan { hosts: 3, gpus: 2, seconds: 1_500, stalls: true, tenants: true, churn: true };
        let records = with_changes(scenario(seed, plan), seed);
        let (mut whole, mut effects) = (State::new(cell()), Effects::default());
        records.iter().for_each(|record| whole.step(record, &mut effects));
        let refused = |row: &&PlacedRow| if let Row::Rejected(rejected) = &row.row { rejected.reason == Reason::OutOfRange } else { false };
        assert_eq!(effects.rows.iter().filter(refused).count(), 0, "seed {seed}: every change agrees");
        let (state, crashed, crashes) = fold_with_crashes(&records, seed);
        assert!(crashes > 5, "seed {seed}: only {crashes} crashes");
        for (n, (a, b)) in effects.rows.iter().zip(&crashed.rows).enumerate() {
            assert_eq!(a, b, "seed {seed}: row {n}");
        }
        assert_eq!(effects.outputs, crashed.outputs, "seed {seed}");
        assert_eq!(effects.repairs, crashed.repairs, "seed {seed}");
        assert_eq!(whole.hash(), state.hash(), "seed {seed}");
        paused += effects.outputs.iter().filter(|output| String::from_utf8_lossy(&output.bytes).contains("\"cause\":\"load_high\"")).count();
    }
    assert!(paused > 10, "load paused placements {paused} times");
}

fn learned(idle: i32) -> Control {
    let mut tables = Tables::untaught(&["H100".to_owned()]);
    tables.cells[CELLS - 1] = idle;
    Control::Tables(Box::new(Learned { hash: tables.hash_hex(), unallocated_ppm: 1, incumbent_unallocated_ppm: 2, incumbent_hash: None, tables }))
}

#[test]
fn learned_tables_are_the_same_after_a_restart() {
    let mut log = Log::starting_at(START_S);
    let tables = [learned(1), learned(2)].map(|control| Body::Control(Box::new(control)));
    tables.iter().chain(&tables[1..]).for_each(|body| log.push(body.clone()));
    let (mut whole, mut store, mut said) = (State::new(cell()), Store::new(), Vec::new());
    assert_eq!(whole.tables(), None);
    for record in &log.records {
        let (mut a, mut b) = (Effects::default(), Effects::default());
        commit(&mut whole, &mut store);
        let mut restored = restore(&store);
        whole.step(record, &mut a);
        restored.step(record, &mut b);
        assert_eq!(a, b, "{}", record.position);
        assert_eq!((whole.tables(), whole.hash()), (restored.tables(), restored.hash()), "{}", record.position);
        said.push(a.outputs.len());
    }
    assert_eq!(whole.tables().map(|tables| tables.cells[CELLS - 1]), Some(2));
    assert_eq!(said, [1, 1, 0], "what is in force already changes nothing");
}

#[test]
fn more_timers_than_one_record_serves_act_in_the_same_order_after_a_restart() {
    let hosts = 5_000;
    let mut log = Log::starting_at(START_S);
    (0..hosts).for_each(|host| log.push(Body::Inventory(Box::new(inventory(host, 1, 1, 1, vec![gpu(host, 0)])))));
    log.pass(4);
    // Nearly all go on speaking, so that the timers set when they came wake nobody; the last ones do not.
    (0..hosts - 10).for_each(|host| log.push(Body::Frame(Box::new(frame(host, 1, 1, log.now_ns)))));
    log.pass(3);
    let committed = log.records.len();
    // Then all fall silent at once: more timers act than one record may serve.
    log.pass(10);
    let (mut whole, mut store) = (State::new(cell()), Store::new());
    log.records[..committed].iter().for_each(|record| whole.step(record, &mut Effects::default()));
    commit(&mut whole, &mut store);
    let mut restored = restore(&store);
    let (mut served, mut at_once) = (0, 0);
    for record in &log.records[committed..] {
        let (mut a, mut b) = (Effects::default(), Effects::default());
        whole.step(record, &mut a);
        restored.step(record, &mut b);
        assert_eq!(a.outputs.len(), b.outputs.len(), "{}", record.position);
        assert_eq!(a, b, "{}", record.position);
        let stale = a.rows.iter().filter(|row| matches!(&row.row, Row::DeviceEvent(event) if event.device_key.is_none() && event.kind == "stale"));
        let stale = stale.count();
        (served, at_once) = (served + stale, at_once.max(stale));
    }
    assert_eq!((served, at_once), (hosts, 4_096), "each host is stale once, and the bound was met");
}

#[test]
fn what_is_stored_after_many_commits_is_what_is_stored_after_one() {
    let records = scenario(300, Plan { hosts: 3, gpus: 2, seconds: 1_500, stalls: true, tenants: true, churn: true });
    let (mut often, mut once) = (Store::new(), Store::new());
    let (mut a, mut b) = (State::new(cell()), State::new(cell()));
    for (n, record) in records.iter().enumerate() {
        a.step(record, &mut Effects::default());
        b.step(record, &mut Effects::default());
        if n % 7 == 0 {
            commit(&mut a, &mut often);
        }
    }
    commit(&mut a, &mut often);
    commit(&mut b, &mut once);
    assert_eq!(often.keys().collect::<Vec<_>>(), once.keys().collect::<Vec<_>>());
    assert_eq!(often, once);
}

#[test]
fn a_record_that_was_folded_before_changes_nothing() {
    let records = scenario(301, Plan { hosts: 2, gpus: 2, seconds: 300, stalls: false, tenants: true, churn: false });
    let (mut state, mut effects) = (State::new(cell()), Effects::default());
    records.iter().for_each(|record| state.step(record, &mut effects));
    let (hash, rows) = (state.hash(), effects.rows.len());
    records.iter().for_each(|record| state.step(record, &mut effects));
    assert_eq!((state.hash(), effects.rows.len()), (hash, rows));
}

#[test]
fn damaged_entries_are_refused_and_named() {
    let records = scenario(302, Plan { hosts: 2, gpus: 2, seconds: 300, stalls: false, tenants: true, churn: false });
    let (mut state, mut store) = (State::new(cell()), Store::new());
    records.iter().for_each(|record| state.step(record, &mut Effects::default()));
    commit(&mut state, &mut store);
    let check = |change: &dyn Fn(&mut Store), expected: &str| {
        let mut damaged = store.clone();
        change(&mut damaged);
        let entries = damaged.into_iter().map(|((table, key), value)| Entry { table, key, value: Some(value) });
        let error = State::restore(cell(), entries).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    let key = |part: u8| (StateTable::Devices, vec![0, 0, 0, 0, part]);
    let other = FORMAT as u8 + 1;
    check(&|s| s.get_mut(&key(0)).expect("there")[0] = other, &format!("format {other}, this build reads {FORMAT}"));
    check(&|s| s.get_mut(&key(0)).expect("there").truncate(5), "table devices, key 0000000000");
    check(&|s| drop(s.remove(&key(0))), "no such device");
    check(&|s| drop(s.remove(&(StateTable::Hosts, vec![0, 0, 0, 0]))), "without a hole");
    check(&|s| drop(s.insert((StateTable::Meta, b"strange".to_vec()), vec![1])), "unknown key");
}
