//! Alerts, one story per sentence: what fires, what resolves, what stays quiet.

mod support;

use std::collections::BTreeMap;

use plimsoll_fold::durable::Entry;
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::alert::{Limit, Rule, Scope, Severity, Signal};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::inventory::EventKind;
use plimsoll_schemas::out::AlertState;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{AlertRow, Row};
use plimsoll_schemas::sample::{Field, ZERO_CELSIUS_MK};
use plimsoll_schemas::time::{LogTime, NS_PER_S};
use support::fleet::Fleet;
use support::{GIB, cell, gpu, host_id, uuid};

fn rule(name: &str, signal: Signal, limit: Limit, for_s: u32) -> Rule {
    Rule { name: name.to_owned(), severity: Severity::Warning, signal, limit, clear: None, for_s, cooldown_s: 0, summary: None }
}

/// What was said, as `<state> <dedup key> <cause>`.
fn said(fleet: &Fleet) -> Vec<String> {
    let mut alerts = fleet.alerts();
    // In the order of their keys, each key's in the order of time.
    alerts.sort_by(|a, b| a.dedup_key.cmp(&b.dedup_key));
    alerts.iter().map(|alert| format!("{} {} {}", alert.state.code(), alert.dedup_key, alert.cause)).collect()
}

fn rows(fleet: &Fleet) -> Vec<&AlertRow> {
    fleet.effects.rows.iter().filter_map(|row| if let Row::Alert(alert) = &row.row { Some(&**alert) } else { None }).collect()
}

fn hot(celsius: u64) -> u64 {
    celsius * 1_000 + ZERO_CELSIUS_MK as u64
}

#[test]
fn a_hot_gpu_fires_after_its_time_once_and_resolves_at_the_clear_value() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.sample.set(Field::TemperatureMk, hot(91));
    fleet.live(61, &[0]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "five hot windows have closed");
    fleet.live(1, &[0]);
    assert_eq!(said(&fleet), ["firing gpu_hot/GPU-0-0 limit_passed", "firing gpu_hot/GPU-0-1 limit_passed"]);
    let by_key = |fleet: &Fleet| fleet.alerts().into_iter().find(|alert| alert.device_uuid == Some(uuid(0, 0))).expect("said");
    let first = by_key(&fleet);
    assert_eq!((first.value, first.limit, first.scope, first.host), (91, Limit::Above(90), Scope::Gpu, Some(host_id(0))));
    fleet.clear();
    fleet.sample.set(Field::TemperatureMk, hot(88));
    fleet.live(120, &[0]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "between the clear value and the limit nothing moves");
    fleet.sample.set(Field::TemperatureMk, hot(85));
    fleet.live(25, &[0]);
    assert_eq!(said(&fleet), ["resolved gpu_hot/GPU-0-0 cleared", "resolved gpu_hot/GPU-0-1 cleared"]);
    assert_eq!(by_key(&fleet).alert_id, first.alert_id, "one life has one id");
    let rows = rows(&fleet);
    assert_eq!((rows[0].state, rows[0].value, rows[0].resolved_at.is_some()), (AlertState::Resolved, 85, true));
    assert_eq!(rows[0].began_at.0 % (10 * NS_PER_S), 0, "it began with a window");
}

#[test]
fn a_rule_without_data_neither_fires_nor_resolves() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(Control::AlertRule(rule("cold", Signal::TemperatureC, Limit::Below(10), 0)));
    fleet.live(60, &[0]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "no GPU says how warm it is");
    fleet.sample.set(Field::TemperatureMk, hot(5));
    fleet.live(25, &[0]);
    assert_eq!(said(&fleet).len(), 2);
    fleet.sample = fleet.sample.with(Field::TemperatureMk, hot(5));
    fleet.clear();
    fleet.live(600, &[]);
    let silence = ["firing fleet_full/cell limit_passed", "firing host_lost/host-0 limit_passed", "firing no_samples/cell limit_passed"];
    assert_eq!(said(&fleet), silence, "silence has rules of its own");
}

#[test]
fn a_lost_host_is_one_alert_and_its_return_resolves_it() {
    let mut fleet = Fleet::with_hosts(2);
    fleet.live(89, &[1]);
    assert_eq!(said(&fleet), Vec::<String>::new());
    fleet.live(3, &[1]);
    assert_eq!(said(&fleet), ["firing host_lost/host-0 limit_passed"]);
    fleet.live(5, &[0, 1]);
    assert_eq!(said(&fleet)[1..], ["resolved host_lost/host-0 cleared"]);
    fleet.clear();
    fleet.live(95, &[1]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "it cools down for five minutes");
    fleet.live(210, &[1]);
    assert_eq!(said(&fleet), ["firing host_lost/host-0 limit_passed"], "and is still lost");
}

#[test]
fn a_gpu_that_fails_fires_and_an_operators_word_resolves_it() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.event(0, 1, EventKind::Xid { code: 79 });
    assert_eq!(said(&fleet), ["firing gpu_degraded/GPU-0-1 limit_passed", "firing gpu_failed/GPU-0-1 limit_passed"]);
    fleet.clear();
    fleet.control(Control::Free { uuid: uuid(0, 1) });
    assert_eq!(said(&fleet), ["resolved gpu_degraded/GPU-0-1 cleared", "resolved gpu_failed/GPU-0-1 cleared"]);
}

#[test]
fn a_state_must_last_for_its_time_on_the_live_clock() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(Control::AlertRule(rule("quiet", Signal::HostSilence, Limit::Above(0), 30)));
    fleet.live(37, &[]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "stale since 29 s");
    fleet.now_ns += 365 * 86_400 * NS_PER_S;
    fleet.push(Body::Tick(plimsoll_schemas::control::Tick { replica: "a".to_owned(), second: 0 }));
    assert_eq!(said(&fleet), ["firing quiet/host-0 limit_passed"], "a year of log time is two seconds of live clock");
}

#[test]
fn leased_and_idle_fires_and_the_end_of_the_lease_resolves() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.place("a", 1, 3_600_000);
    fleet.sample_empty();
    fleet.live(890, &[0]);
    assert_eq!(said(&fleet), Vec::<String>::new());
    fleet.live(40, &[0]);
    let firing = said(&fleet);
    assert!(firing.len() == 1 && firing[0].starts_with("firing gpu_idle_leased/"), "{firing:?}");
    fleet.ask(plimsoll_schemas::request::Request::Release(plimsoll_schemas::request::Release {
        request_id: "b".to_owned(),
        lease_id: "lease-test-1".to_owned(),
    }));
    fleet.live(30, &[0]);
    assert!(said(&fleet)[1].starts_with("resolved gpu_idle_leased/"));
}

#[test]
fn a_rule_that_is_replaced_or_removed_and_a_gpu_that_leaves_resolve_what_fires() {
    let mut fleet = Fleet::with_hosts(1);
    let busy = rule("busy", Signal::UtilPercent, Limit::Above(40), 0);
    fleet.control(Control::AlertRule(busy.clone()));
    fleet.live(20, &[0]);
    assert_eq!(said(&fleet), ["firing busy/GPU-0-0 limit_passed", "firing busy/GPU-0-1 limit_passed"]);
    fleet.clear();
    fleet.control(Control::AlertRule(busy.clone()));
    assert_eq!(said(&fleet), Vec::<String>::new(), "the same rule again changes nothing");
    fleet.control(Control::AlertRule(Rule { severity: Severity::Critical, ..busy }));
    assert_eq!(said(&fleet), ["resolved busy/GPU-0-0 rule_changed", "resolved busy/GPU-0-1 rule_changed"]);
    fleet.live(20, &[0]);
    fleet.clear();
    fleet.announce(0, 2, vec![gpu(0, 1)]);
    assert_eq!(said(&fleet), ["resolved busy/GPU-0-0 retired"]);
    fleet.clear();
    fleet.control(Control::RemoveAlertRule { name: "busy".to_owned() });
    assert_eq!(said(&fleet), ["resolved busy/GPU-0-1 rule_removed"]);
    assert_eq!(fleet.state.summary().alerts_firing, 0);
}

#[test]
fn a_rule_about_states_looks_at_how_things_stand_when_it_comes() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.live(20, &[]);
    fleet.control(Control::AlertRule(rule("quiet", Signal::HostSilence, Limit::Above(0), 0)));
    assert_eq!(said(&fleet), ["firing quiet/host-0 limit_passed"]);
}

#[test]
fn memory_headroom_and_refusals_have_their_rules() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.sample.set(Field::MemoryUsedBytes, 73 * GIB);
    fleet.live(72, &[0]);
    assert_eq!(said(&fleet), ["firing gpu_memory_high/GPU-0-0 limit_passed", "firing gpu_memory_high/GPU-0-1 limit_passed"]);
    fleet.clear();
    fleet.place("a", 2, 3_600_000);
    fleet.sample.set(Field::PowerMw, 9_000_000);
    fleet.live(400, &[0]);
    assert_eq!(said(&fleet), ["firing fleet_full/cell limit_passed"], "a refused field is no refused sample");
    fleet.clear();
    for _ in 0..100 {
        let frame = plimsoll_schemas::frame::Frame { inventory_revision: 9, ..fleet.frame(0) };
        fleet.send(frame);
    }
    fleet.live(60, &[0]);
    assert_eq!(said(&fleet), ["firing samples_refused/cell limit_passed"]);
}

#[test]
fn no_sample_ever_is_no_alert() {
    let mut fleet = Fleet::with_hosts(0);
    fleet.live(600, &[]);
    assert_eq!(said(&fleet), Vec::<String>::new());
}

#[test]
fn alerts_survive_a_restart_at_any_record() {
    // Every record is followed by a commit, a crash and a restore; the other fold is never interrupted.
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(Control::AlertRule(Rule { cooldown_s: 20, ..rule("busy", Signal::UtilPercent, Limit::Above(60), 20) }));
    fleet.control(Control::AlertRule(Rule { cooldown_s: 40, ..rule("quiet", Signal::HostSilence, Limit::Above(0), 15) }));
    let mut store = BTreeMap::new();
    let mut other = restore(&mut fleet.state, &mut store);
    let mut effects = Effects::default();
    fleet.clear();
    for round in 0..12 {
        fleet.sample.set(Field::UtilPercent, if round % 3 == 2 { 20 } else { 90 });
        for _ in 0..35 {
            fleet.live(1, if round % 4 == 3 { &[] } else { &[0] });
            let records = fleet.sequence - other.position().sequence;
            replay(&fleet, &mut other, records, &mut effects);
            other = restore(&mut other, &mut store);
        }
    }
    assert!(said(&fleet).len() > 8, "{:?}", said(&fleet));
    assert_eq!(fleet.effects.outputs, effects.outputs);
    assert_eq!(fleet.state.hash(), other.hash());
    assert_eq!(fleet.state.summary(), other.summary());
}

/// Folds what the fleet folded in its last second into another state: a beat, and a frame if there was one.
fn replay(fleet: &Fleet, other: &mut State, records: u64, effects: &mut Effects) {
    for n in 0..records {
        let sequence = fleet.sequence - records + 1 + n;
        let body = fleet.bodies[fleet.bodies.len() - (records - n) as usize].clone();
        other.step(&Record { position: Position { epoch: LogEpoch(0), sequence }, logged_at: LogTime(fleet.now_ns), body }, effects);
    }
}

type Store = BTreeMap<(plimsoll_fold::durable::StateTable, Vec<u8>), Vec<u8>>;

fn restore(state: &mut State, store: &mut Store) -> State {
    for Entry { table, key, value } in state.take_dirty() {
        match value {
            Some(value) => store.insert((table, key), value),
            None => store.remove(&(table, key)),
        };
    }
    let entries = store.iter().map(|((table, key), value)| Entry { table: *table, key: key.clone(), value: Some(value.clone()) });
    State::restore(cell(), entries).expect("own entries")
}
