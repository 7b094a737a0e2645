//! Control records: what they change, what they refuse, and what `policies` says was in force.

mod support;

use plimsoll_fold::{Effects, LOGIC};
use plimsoll_schemas::alert::{Limit, Rule, Severity, Signal};
use plimsoll_schemas::control::{Control, Cordon};
use plimsoll_schemas::out::{DeviceState, LeaseState, Payload};
use plimsoll_schemas::pace::{Pace, Preset};
use plimsoll_schemas::policy::{Policy, SetBy};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Renew, Request};
use plimsoll_schemas::row::{PolicyRow, Row, Table};
use plimsoll_schemas::settings::Settings;
use plimsoll_schemas::tables::{Learned, Tables};
use plimsoll_schemas::time::{LogTime, NS_PER_S};
use support::fleet::Fleet;
use support::{gpu, host_id, tenant, uuid};

fn rule(name: &str) -> Rule {
    let limit = Limit::Above(60);
    Rule { name: name.to_owned(), severity: Severity::Info, signal: Signal::UtilPercent, limit, clear: None, for_s: 0, cooldown_s: 0, summary: None }
}

fn policies(effects: &Effects) -> Vec<&PolicyRow> {
    effects.rows.iter().filter_map(|row| if let Row::Policy(policy) = &row.row { Some(&**policy) } else { None }).collect()
}

/// What `SELECT … WHERE valid_from <= at AND (valid_to IS NULL OR valid_to > at)` shows: version and content, newest version of a key.
fn in_force(effects: &Effects, kind: &str, name: &str, at: LogTime) -> Option<(u32, String)> {
    let versions = policies(effects).into_iter().filter(|row| row.kind == kind && row.name == name);
    let newest: std::collections::BTreeMap<LogTime, &PolicyRow> = versions.map(|row| (row.valid_from, row)).collect();
    newest.into_values().find(|row| row.valid_from <= at && row.valid_to.is_none_or(|to| to > at)).map(|row| (row.version, row.params.clone()))
}

#[test]
fn what_holds_without_anybodys_word_stands_in_policies_from_the_first_record_on() {
    let fleet = Fleet::with_hosts(0);
    let rows = policies(&fleet.effects);
    let shipped = |kind: &str| rows.iter().filter(|row| row.kind == kind && row.set_by == SetBy::Default && row.valid_to.is_none()).count();
    assert_eq!((shipped("settings"), shipped("placement"), shipped("logic")), (1, 1, 1));
    assert_eq!(shipped("alert_rule"), plimsoll_schemas::alert::defaults().len());
    assert!(fleet.payloads().iter().all(|payload| !matches!(payload, Payload::Policy(p) if p.set_by == SetBy::Default)), "nothing has changed");
}

#[test]
fn what_was_in_force_at_any_time_is_a_question_to_policies() {
    let mut fleet = Fleet::with_hosts(1);
    let before = LogTime(fleet.now_ns);
    fleet.live(10, &[0]);
    fleet.control(Control::Settings(Settings { lost_ms: Some(30_000), ..Settings::default() }));
    let between = LogTime(fleet.now_ns + 5 * NS_PER_S);
    fleet.live(10, &[0]);
    fleet.control(Control::Settings(Settings { lost_ms: Some(60_000), lateness_ms: Some(0), ..Settings::default() }));
    fleet.control(Control::Settings(Settings { lost_ms: Some(60_000), ..Settings::default() }));
    let now = LogTime(fleet.now_ns);
    let lost_ms = |at| {
        let (version, params) = in_force(&fleet.effects, "settings", "fold", at).expect("always in force");
        let params: serde_json::Value = serde_json::from_str(&params).expect("an object");
        (version, params["lost_ms"].clone(), params["lateness_ms"].clone())
    };
    assert_eq!(lost_ms(before), (1, 90_000.into(), 3_600_000.into()));
    assert_eq!(lost_ms(between), (2, 30_000.into(), 3_600_000.into()));
    assert_eq!(lost_ms(now), (3, 60_000.into(), 0.into()), "setting what is set changes nothing");
    let said = fleet.payloads().into_iter().filter(|payload| matches!(payload, Payload::Policy(p) if p.policy.kind() == "settings")).count();
    assert_eq!(said, 2);
}

#[test]
fn a_control_record_that_cannot_be_carried_out_is_refused_by_name_and_changes_nothing() {
    let mut fleet = Fleet::with_hosts(1);
    let mut check = |control: Control, reason: Reason, words: &str| {
        fleet.clear();
        fleet.control(control);
        let sequence = fleet.sequence;
        let rejected: Vec<_> = fleet.rejected();
        assert_eq!(rejected.iter().map(|row| (row.reason, row.seq)).collect::<Vec<_>>(), [(reason, Some(sequence))]);
        assert!(rejected[0].raw_value.contains(words), "{}", rejected[0].raw_value);
        assert_eq!(policies(&fleet.effects), Vec::<&PolicyRow>::new());
    };
    let settings = |settings| Control::Settings(settings);
    check(settings(Settings { lost_ms: Some(10), ..Settings::default() }), Reason::OutOfRange, "lost_ms is 10, expected 1000 to 86400000");
    check(settings(Settings { vram_limit_bp: Some(0), free_after_ms: Some(1), ..Settings::default() }), Reason::OutOfRange, "vram_limit_bp is 0");
    let thermal = Settings { thermal_pause_mk: Some(8_000), thermal_resume_mk: Some(7_000), ..Settings::default() };
    check(settings(thermal), Reason::OutOfRange, "thermal_resume_mk is 7000, expected at least thermal_pause_mk, which is 8000");
    let gaps = Settings { gap_open_ms_max: Some(2_000), ..Settings::default() };
    check(settings(gaps), Reason::OutOfRange, "gap_open_ms_max is 2000, expected at least gap_ask_ms, which is 5000");
    let placement = |policy: &str, version, power_weight| Control::Placement { policy: policy.to_owned(), version, power_weight };
    check(placement("best", 2, 0), Reason::UnknownPolicy, "no policy best@2, this build has random@1, first_fit@1, ");
    check(placement("fgd", 1, 101), Reason::OutOfRange, "power_weight 101, at most 100");
    check(placement("random", 1, 1), Reason::InvalidPolicy, "power_weight 1 of random, which draws lots: there is nothing to weigh");
    check(Control::Logic { version: LOGIC + 1 }, Reason::UnknownPolicy, &format!("logic {}, this build knows {LOGIC}", LOGIC + 1));
    check(Control::AlertRule(Rule { clear: Some(61), ..rule("busy") }), Reason::InvalidPolicy, "fires above 60 but clears at 61");
    check(Control::AlertRule(rule("Busy!")), Reason::InvalidPolicy, "is not 1 to 64 of a-z 0-9 _");
    check(Control::RemoveAlertRule { name: "nobody".to_owned() }, Reason::UnknownPolicy, "no alert rule \"nobody\"");
    let pace = |tenant, change: &dyn Fn(&mut Pace)| {
        let mut pace = Preset::Default.pace();
        change(&mut pace);
        Control::Pace { tenant, pace }
    };
    check(pace(None, &|p| p.max_vram_bp = 0), Reason::InvalidPolicy, "max_vram_bp is 0, expected 1 to 10000");
    check(pace(Some(tenant(0)), &|p| p.pause_ms = 1), Reason::InvalidPolicy, "pause_ms is 1, expected 1000 to 86400000");
    check(Control::EndPace { tenant: None }, Reason::UnknownPolicy, "no pace of cell");
    check(Control::EndPace { tenant: Some(tenant(0)) }, Reason::UnknownPolicy, "no pace of tenant/tenant-0");
    check(Control::Cordon(Cordon::Host(host_id(9))), Reason::DeviceNotRegistered, "no host host-9");
    check(Control::Uncordon(Cordon::Gpu(uuid(9, 9))), Reason::DeviceNotRegistered, "no gpu GPU-9-9");
    check(Control::Drain { what: Cordon::Host(host_id(0)), grace_ms: Some(u64::MAX) }, Reason::OutOfRange, "at most 2592000000");
    check(Control::Expel { host: host_id(9) }, Reason::DeviceNotRegistered, "no host host-9");
    let tables = |change: &dyn Fn(&mut Learned)| {
        let mut learned = learned();
        change(&mut learned);
        Control::Tables(Box::new(learned))
    };
    check(tables(&|l| l.tables.cells.truncate(9)), Reason::InvalidPolicy, "9 cells for 1 models, expected 3030 for each");
    check(tables(&|l| l.hash = "00".to_owned()), Reason::InvalidPolicy, "the hash says \"00\", models and cells give");
    check(tables(&|l| l.tables.cells[30] = 1_001), Reason::InvalidPolicy, "cell 30 is 1001, expected 0 to 1000");
}

fn learned() -> Learned {
    let tables = Tables::untaught(&["H100".to_owned()]);
    Learned { hash: tables.hash_hex(), unallocated_ppm: 40_000, incumbent_unallocated_ppm: 47_000, incumbent_hash: None, tables }
}

#[test]
fn learned_tables_come_into_force_with_their_cells_in_out_and_their_scores_in_sql() {
    let mut fleet = Fleet::with_hosts(0);
    fleet.clear();
    fleet.control(Control::Tables(Box::new(learned())));
    assert_eq!(fleet.state.tables(), Some(&learned().tables));
    let said = fleet.payloads().into_iter().find_map(|payload| if let Payload::Policy(p) = payload { Some(p.policy) } else { None });
    assert_eq!(said, Some(Policy::Tables(Box::new(learned()))));
    let (version, params) = in_force(&fleet.effects, "tables", "placement", LogTime(fleet.now_ns)).expect("in force");
    assert_eq!(version, 1);
    let params: serde_json::Value = serde_json::from_str(&params).expect("an object");
    let expected = serde_json::json!({
        "hash": learned().hash, "models": ["H100"], "unallocated_ppm": 40_000, "incumbent_unallocated_ppm": 47_000
    });
    assert_eq!(params, expected);
}

#[test]
fn how_much_power_counts_is_in_force_with_the_policy_and_what_was_is_a_question() {
    let mut fleet = Fleet::with_hosts(0);
    let mut times = vec![LogTime(fleet.now_ns)];
    for (policy, power_weight) in [("hybrid", 5), ("hybrid", 5), ("hybrid", 8), ("fgd", 8)] {
        fleet.live(1, &[]);
        fleet.control(Control::Placement { policy: policy.to_owned(), version: 1, power_weight });
        times.push(LogTime(fleet.now_ns));
    }
    let then = |name: &str| times.iter().map(|&at| in_force(&fleet.effects, "placement", name, at).map(|(_, params)| params)).collect::<Vec<_>>();
    let weight = |weight: u32| Some(format!("{{\"power_weight\":{weight}}}"));
    assert_eq!(then("hybrid"), [weight(0), weight(5), weight(5), weight(8), None]);
    assert_eq!(then("fgd"), [None, None, None, None, weight(8)]);
    let changes = fleet.payloads().into_iter().filter(|p| matches!(p, Payload::Policy(p) if matches!(p.policy, Policy::Placement(_))));
    assert_eq!(changes.count(), 4, "two new weights of hybrid, its end, and fgd; nothing where nothing changed");
}

#[test]
fn a_setting_is_judged_by_those_in_force_and_not_by_the_defaults() {
    let mut fleet = Fleet::with_hosts(0);
    let mut change = |settings: Settings| {
        fleet.clear();
        fleet.control(Control::Settings(settings));
        fleet.reasons().is_empty()
    };
    assert!(!change(Settings { thermal_pause_mk: Some(12_000), ..Settings::default() }));
    assert!(change(Settings { thermal_resume_mk: Some(15_000), ..Settings::default() }));
    assert!(change(Settings { thermal_pause_mk: Some(12_000), ..Settings::default() }));
    assert!(!change(Settings { thermal_resume_mk: Some(10_000), ..Settings::default() }), "the default, but no longer enough");
}

#[test]
fn there_are_never_more_alert_rules_than_the_limit() {
    let mut fleet = Fleet::with_hosts(0);
    for n in 0..200 {
        fleet.control(Control::AlertRule(rule(&format!("rule_{n}"))));
    }
    assert!(fleet.reasons().iter().all(|&reason| reason == Reason::LimitReached) && !fleet.reasons().is_empty());
    let open = in_force(&fleet.effects, "alert_rule", "rule_113", LogTime(fleet.now_ns));
    let full = in_force(&fleet.effects, "alert_rule", "rule_114", LogTime(fleet.now_ns));
    assert!(open.is_some() && full.is_none(), "128 with the 14 shipped ones");
    fleet.clear();
    fleet.control(Control::AlertRule(Rule { for_s: 5, ..rule("rule_7") }));
    assert_eq!(fleet.reasons(), [], "one that is there can always be replaced");
}

#[test]
fn a_changed_threshold_of_silence_holds_at_once() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.live(20, &[]);
    fleet.clear();
    fleet.control(Control::Settings(Settings { lost_ms: Some(20_000), lost_intervals: Some(1), ..Settings::default() }));
    fleet.live(1, &[]);
    let lost = |fleet: &Fleet| fleet.payloads().into_iter().filter(|p| matches!(p, Payload::Host(h) if h.state == DeviceState::Lost)).count();
    assert_eq!(lost(&fleet), 1, "silent for 21 s of 20");
    fleet.control(Control::Settings(Settings { stale_intervals: Some(1_000), ..Settings::default() }));
    fleet.live(1, &[0]);
    fleet.clear();
    fleet.live(600, &[]);
    assert_eq!(lost(&fleet), 0, "never lost before it is stale");
}

#[test]
fn samples_later_than_the_lateness_are_refused() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(Control::Settings(Settings { lateness_ms: Some(60_000), ..Settings::default() }));
    let old = fleet.frame(0);
    fleet.live(50, &[0]);
    fleet.clear();
    fleet.send(old);
    assert_eq!(fleet.reasons(), []);
    let old = fleet.frame(0);
    fleet.live(70, &[0]);
    fleet.clear();
    fleet.send(old);
    assert_eq!(fleet.reasons(), [Reason::Late; 2]);
}

#[test]
fn a_drain_ends_leases_after_its_grace_refuses_renewals_and_leaves_the_gpus_drained() {
    let mut fleet = Fleet::with_hosts(2);
    fleet.place("a", 2, 600_000);
    let Some(Payload::Decided(decided)) = fleet.payloads().into_iter().rev().find(|p| matches!(p, Payload::Decided(_))) else {
        panic!("no decision")
    };
    let (host, lease_id) = (decided.assignments[0].host.clone(), decided.lease.expect("placed").lease_id);
    let number = usize::from(host == host_id(1));
    fleet.clear();
    fleet.control(Control::Drain { what: Cordon::Host(host.clone()), grace_ms: Some(60_000) });
    assert_eq!(fleet.leases(), [(LeaseState::Active, "drain".to_owned())], "its holder is told");
    fleet.clear();
    fleet.ask(Request::Renew(Renew { request_id: "b".to_owned(), lease_ids: vec![lease_id] }));
    assert_eq!((fleet.reasons(), fleet.leases()), (vec![Reason::Draining], vec![(LeaseState::Active, "draining".to_owned())]));
    fleet.sample_empty();
    fleet.live(59, &[0, 1]);
    assert_eq!(fleet.leases().len(), 1);
    fleet.live(40, &[0, 1]);
    assert_eq!(fleet.leases()[1..], [(LeaseState::Draining, "expired".to_owned()), (LeaseState::Ended, "observed_free".to_owned())]);
    let states = fleet.states();
    assert_eq!([states[&uuid(number, 0)], states[&uuid(number, 1)]], [DeviceState::Drained; 2]);
    assert_eq!(states[&uuid(1 - number, 0)], DeviceState::Ok);
    fleet.place("c", 2, 60_000);
    fleet.place("d", 1, 60_000);
    let outcomes: Vec<_> =
        fleet.payloads().into_iter().filter_map(|p| if let Payload::Decided(d) = p { Some((d.reason, d.refused)) } else { None }).collect();
    assert_eq!(outcomes[0].0, None);
    assert_eq!(outcomes[1].1[&Reason::Cordoned], 2);
    fleet.control(Control::Uncordon(Cordon::Host(host)));
    assert_eq!(fleet.states()[&uuid(number, 0)], DeviceState::Ok);
}

#[test]
fn a_cordon_leaves_leases_alone_and_a_drain_is_more() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.place("a", 1, 600_000);
    fleet.control(Control::Cordon(Cordon::Gpu(uuid(0, 0))));
    fleet.control(Control::Cordon(Cordon::Gpu(uuid(0, 1))));
    fleet.clear();
    fleet.ask(Request::Renew(Renew { request_id: "b".to_owned(), lease_ids: vec!["lease-test-1".to_owned()] }));
    fleet.control(Control::Cordon(Cordon::Gpu(uuid(0, 0))));
    assert_eq!((fleet.effects.rows.len(), fleet.effects.outputs.len()), (0, 0));
    fleet.control(Control::Drain { what: Cordon::Gpu(uuid(0, 0)), grace_ms: None });
    fleet.control(Control::Drain { what: Cordon::Gpu(uuid(0, 1)), grace_ms: None });
    fleet.clear();
    fleet.control(Control::Cordon(Cordon::Gpu(uuid(0, 0))));
    assert_eq!(policies(&fleet.effects), Vec::<&PolicyRow>::new(), "it is out of service already");
    fleet.control(Control::Uncordon(Cordon::Gpu(uuid(0, 0))));
    assert_eq!(in_force(&fleet.effects, "cordon", "gpu/GPU-0-0", LogTime(fleet.now_ns)), None);
}

#[test]
fn an_expelled_host_takes_nothing_although_every_host_is_enrolled() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(Control::Expel { host: host_id(0) });
    fleet.place("a", 1, 60_000);
    fleet.control(Control::Enrol { hosts: vec![host_id(0)] });
    fleet.place("b", 1, 60_000);
    let reasons: Vec<_> = fleet
        .payloads()
        .into_iter()
        .filter_map(|p| if let Payload::Decided(d) = p { Some((d.refused.get(&Reason::NotEnrolled).copied(), d.reason.is_none())) } else { None })
        .collect();
    assert_eq!(reasons, [(Some(2), false), (None, true)]);
    assert_eq!(gpu(0, 0).uuid, uuid(0, 0));
    assert!(fleet.effects.rows.iter().any(|row| row.row.table() == Table::Policies));
}
