//! Paces, one story per sentence: who is refused and how often, when load pauses placements, and what `policies` and OUT say of it.

mod support;

use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Decided, Outcome, PaceChanged, PaceCounts, PaceState, Payload};
use plimsoll_schemas::pace::{Mode, Pace, Preset};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::Body;
use plimsoll_schemas::request::{Bundle, Cancel, Place, Request};
use plimsoll_schemas::row::{DecisionRow, PolicyRow, Row};
use plimsoll_schemas::sample::Field;
use plimsoll_schemas::time::{LogTime, NS_PER_MS};
use support::fleet::Fleet;
use support::{GIB, TOTAL, tenant};

fn pace(tenant: Option<TenantId>, pace: Pace) -> Control {
    Control::Pace { tenant, pace }
}

/// One request every so often, and no look at the load.
fn every(min_request_interval_ms: u32) -> Pace {
    Pace { min_request_interval_ms, adaptive: false, ..Preset::Default.pace() }
}

/// A request of a tenant for one part in a hundred of a GPU.
fn ask(fleet: &mut Fleet, n: u64, id: String) {
    let place = Place { request_id: id, bundles: vec![Bundle { milli: 10, ..Bundle::default() }], ..Place::default() };
    fleet.push(Body::Request(tenant(n), Box::new(Request::Place(place))));
}

fn decisions(fleet: &Fleet) -> Vec<Decided> {
    fleet.payloads().into_iter().filter_map(|payload| if let Payload::Decided(decided) = payload { Some(decided) } else { None }).collect()
}

/// Reasons of the decisions; absent = placed.
fn reasons(fleet: &Fleet) -> Vec<Option<Reason>> {
    decisions(fleet).into_iter().map(|decided| decided.reason).collect()
}

fn changes(fleet: &Fleet) -> Vec<PaceChanged> {
    fleet.payloads().into_iter().filter_map(|payload| if let Payload::Pace(pace) = payload { Some(*pace) } else { None }).collect()
}

/// What was said, as `<state> <scope> <cause>`.
fn said(fleet: &Fleet) -> Vec<String> {
    let state = |state| if state == PaceState::Paused { "paused" } else { "resumed" };
    changes(fleet).iter().map(|change| format!("{} {} {}", state(change.state), change.scope, change.cause)).collect()
}

fn busy(fleet: &mut Fleet, util: u64) {
    fleet.sample.set(Field::UtilPercent, util);
}

#[test]
fn as_many_requests_are_admitted_as_the_pace_in_force_says_and_all_others_are_answered() {
    let mut fleet = Fleet::with_hosts(4);
    fleet.control(pace(None, every(50)));
    fleet.clear();
    (0..100).for_each(|n| ask(&mut fleet, n % 7, format!("at-once-{n}")));
    let answers = reasons(&fleet);
    assert_eq!((answers.len(), answers.iter().filter(|reason| reason.is_none()).count()), (100, 1));
    assert!(answers[1..].iter().all(|&reason| reason == Some(Reason::Paced)), "{answers:?}");
    // The next five seconds, a request each 10 ms: every fifth finds a slot.
    fleet.clear();
    for n in 0..500 {
        fleet.now_ns += 10 * NS_PER_MS;
        ask(&mut fleet, n % 7, format!("later-{n}"));
    }
    let admitted: Vec<usize> = reasons(&fleet).iter().enumerate().filter(|(_, reason)| reason.is_none()).map(|(n, _)| n).collect();
    assert_eq!(admitted, (4..500).step_by(5).collect::<Vec<_>>());
}

#[test]
fn what_was_offered_is_admitted_refused_withdrawn_or_waits_and_counts_are_shown_by_pace() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(pace(None, every(1_000)));
    fleet.control(pace(Some(tenant(1)), Pace { mode: Mode::Queue, ..every(1_000) }));
    ask(&mut fleet, 0, "a".to_owned());
    ask(&mut fleet, 0, "b".to_owned());
    let counts = |fleet: &Fleet| fleet.state.summary().paces;
    let cell = PaceCounts { admitted: 1, refused: 1, ..PaceCounts::default() };
    assert_eq!(counts(&fleet), [("cell".to_owned(), cell), ("tenant/tenant-1".to_owned(), PaceCounts::default())].into());
    fleet.control(Control::EndPace { tenant: None });
    (0..3).for_each(|n| ask(&mut fleet, 1, format!("q{n}")));
    let cancel = Request::Cancel(Cancel { request_id: "c".to_owned(), cancels: "q2".to_owned() });
    fleet.push(Body::Request(tenant(1), Box::new(cancel)));
    let own = PaceCounts { admitted: 1, cancelled: 1, waiting: 1, refused: 0 };
    assert_eq!(counts(&fleet), [("tenant/tenant-1".to_owned(), own)].into());
    assert_eq!(own.offered(), 3);
}

#[test]
fn a_refusal_is_a_decision_with_a_sentence_and_a_row() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(pace(Some(tenant(1)), every(1_000)));
    ask(&mut fleet, 1, "a".to_owned());
    fleet.clear();
    fleet.now_ns += 250 * NS_PER_MS;
    ask(&mut fleet, 1, "b".to_owned());
    ask(&mut fleet, 0, "c".to_owned());
    let decided = decisions(&fleet);
    assert_eq!((decided[0].outcome, decided[0].reason), (Outcome::Rejected, Some(Reason::Paced)));
    assert_eq!(decided[0].detail.as_deref(), Some("the pace of tenant/tenant-1 has its next slot in 750 ms"));
    assert_eq!(decided[1].outcome, Outcome::Placed, "nobody paces the other tenant");
    let row = |row: &Row| if let Row::Decision(decision) = row { Some(DecisionRow::clone(decision)) } else { None };
    let rows: Vec<_> = fleet.effects.rows.iter().filter_map(|placed| row(&placed.row)).collect();
    assert_eq!((rows[0].reason, &rows[0].request_id), (Some(Reason::Paced), &"b".to_owned()));
}

#[test]
fn a_request_must_keep_both_paces_and_a_refusal_of_one_costs_the_other_nothing() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(pace(None, every(100)));
    fleet.control(pace(Some(tenant(1)), every(1_000)));
    ask(&mut fleet, 1, "a".to_owned());
    fleet.now_ns += 100 * NS_PER_MS;
    ask(&mut fleet, 1, "b".to_owned());
    ask(&mut fleet, 0, "c".to_owned());
    ask(&mut fleet, 0, "d".to_owned());
    fleet.now_ns += 900 * NS_PER_MS;
    ask(&mut fleet, 1, "e".to_owned());
    assert_eq!(reasons(&fleet), [None, Some(Reason::Paced), None, Some(Reason::Paced), None]);
}

#[test]
fn load_pauses_placements_until_it_is_low_and_each_change_says_why() {
    let mut fleet = Fleet::with_hosts(2);
    fleet.control(pace(None, Preset::Default.pace()));
    fleet.live(60, &[0, 1]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "half used");
    busy(&mut fleet, 91);
    fleet.clear();
    fleet.live(40, &[0, 1]);
    assert_eq!(said(&fleet), ["paused cell load_high"]);
    let change = changes(&fleet).remove(0);
    assert_eq!((change.util_bp, change.memory_bp, change.gpus), (Some(9_100), Some(1_250), 4));
    assert_eq!(change.pace, Preset::Default.pace(), "the limits that are enforced are those that are said");
    fleet.clear();
    ask(&mut fleet, 0, "a".to_owned());
    assert_eq!(reasons(&fleet), [Some(Reason::Paused)]);
    let detail = decisions(&fleet).remove(0).detail.expect("said");
    let (before, after) = detail.split_once(", for ").expect("how long");
    assert_eq!(before, "load has paused the placements of cell");
    let wait_ms: i64 = after.strip_suffix(" ms at least").and_then(|ms| ms.parse().ok()).expect("a number");
    assert_eq!(LogTime(fleet.now_ns).plus_ms(wait_ms).rfc3339(), change.until.expect("it is paused"), "as was said when it began");
    // Low at once, but a pause lasts its time.
    busy(&mut fleet, 10);
    fleet.live(wait_ms / 1_000 - 1, &[0, 1]);
    assert_eq!(said(&fleet), Vec::<String>::new());
    fleet.live(2, &[0, 1]);
    assert_eq!(said(&fleet), ["resumed cell load_low"]);
    let change = changes(&fleet).remove(0);
    assert!(change.util_bp.is_some_and(|util| util < 7_000), "{change:?}");
    assert_eq!((change.until, change.counts.refused), (None, 1));
    ask(&mut fleet, 0, "b".to_owned());
    assert_eq!(reasons(&fleet)[1..], [None]);
}

#[test]
fn between_low_and_high_and_where_nothing_is_known_a_pause_goes_on_and_none_begins() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(pace(None, Preset::Default.pace()));
    busy(&mut fleet, 91);
    fleet.live(40, &[0]);
    assert_eq!(said(&fleet), ["paused cell load_high"]);
    busy(&mut fleet, 75);
    fleet.live(120, &[0]);
    fleet.live(300, &[]);
    assert_eq!(said(&fleet).len(), 1, "neither is low");
    fleet.control(Control::EndPace { tenant: None });
    busy(&mut fleet, 91);
    fleet.live(2, &[0]);
    fleet.control(pace(None, Preset::Default.pace()));
    fleet.clear();
    fleet.live(300, &[]);
    assert_eq!(said(&fleet), Vec::<String>::new(), "two seconds that were busy are no closed windows");
}

#[test]
fn full_memory_pauses_like_a_busy_gpu() {
    let mut fleet = Fleet::with_hosts(1);
    fleet.control(pace(None, Preset::Default.pace()));
    fleet.sample.set(Field::MemoryUsedBytes, TOTAL - 7 * GIB);
    fleet.live(60, &[0]);
    assert_eq!(changes(&fleet).remove(0).memory_bp, Some(9_125));
}

#[test]
fn what_a_tenant_uses_itself_does_not_pause_it() {
    let mut fleet = Fleet::with_hosts(2);
    // Both GPUs of one host, by which tenant 0 makes the cell half busy.
    fleet.place("mine", 2, 3_600_000);
    let own = usize::from(decisions(&fleet)[0].assignments[0].host == support::host_id(1));
    let half = Pace { util_high_bp: 4_000, ..Preset::Default.pace() };
    for second in 0..60 {
        if second == 30 {
            fleet.control(pace(Some(tenant(0)), half));
            fleet.control(pace(Some(tenant(1)), half));
        }
        busy(&mut fleet, 0);
        fleet.live(1, &[1 - own]);
        busy(&mut fleet, 90);
        let frame = fleet.frame(own);
        fleet.send(frame);
    }
    assert_eq!(said(&fleet), ["paused tenant/tenant-1 load_high"]);
    let change = changes(&fleet).remove(0);
    assert_eq!((change.util_bp, change.gpus), (Some(4_500), 4));
    fleet.clear();
    ask(&mut fleet, 0, "a".to_owned());
    ask(&mut fleet, 1, "b".to_owned());
    assert_eq!(reasons(&fleet), [None, Some(Reason::Paused)]);
}

#[test]
fn a_pause_is_over_when_its_pace_changes_or_ends() {
    let mut fleet = Fleet::with_hosts(1);
    busy(&mut fleet, 91);
    fleet.control(pace(None, Preset::Default.pace()));
    fleet.live(40, &[0]);
    fleet.control(pace(None, Preset::Default.pace()));
    fleet.control(pace(None, Preset::Conservative.pace()));
    fleet.live(40, &[0]);
    fleet.control(Control::EndPace { tenant: None });
    ask(&mut fleet, 0, "a".to_owned());
    let expected = ["paused cell load_high", "resumed cell pace_changed", "paused cell load_high", "resumed cell pace_ended"];
    assert_eq!((said(&fleet), reasons(&fleet)), (expected.map(str::to_owned).to_vec(), vec![None]));
}

#[test]
fn which_pace_was_in_force_then_is_a_question_to_policies() {
    let mut fleet = Fleet::with_hosts(0);
    let mut instants = vec![LogTime(fleet.now_ns)];
    let scope = || Some(tenant(1));
    for control in [pace(scope(), every(50)), pace(scope(), every(200)), pace(scope(), every(200)), Control::EndPace { tenant: scope() }] {
        fleet.live(5, &[]);
        fleet.control(control);
        fleet.live(5, &[]);
        instants.push(LogTime(fleet.now_ns));
    }
    let row = |row: &Row| if let Row::Policy(policy) = row { Some(PolicyRow::clone(policy)) } else { None };
    let rows: Vec<PolicyRow> = fleet.effects.rows.iter().filter_map(|placed| row(&placed.row)).filter(|row| row.kind == "pace").collect();
    assert!(rows.iter().all(|row| row.name == "tenant/tenant-1"));
    let in_force = |at: LogTime| {
        let newest: std::collections::BTreeMap<_, _> = rows.iter().map(|row| (row.valid_from, row)).collect();
        let row = newest.into_values().find(|row| row.valid_from <= at && row.valid_to.is_none_or(|to| to > at))?;
        let pace: Pace = serde_json::from_str(&row.params).expect("its own JSON");
        Some((row.version, pace.min_request_interval_ms))
    };
    assert_eq!(instants.into_iter().map(in_force).collect::<Vec<_>>(), [None, Some((1, 50)), Some((2, 200)), Some((2, 200)), None]);
    let events: Vec<bool> = fleet
        .payloads()
        .into_iter()
        .filter_map(|p| if let Payload::Policy(p) = p { (p.policy.kind() == "pace").then_some(p.in_force) } else { None })
        .collect();
    assert_eq!(events, [true, true, false]);
}

#[test]
fn there_are_never_more_paces_of_tenants_than_the_limit() {
    let mut fleet = Fleet::with_hosts(0);
    (0..10_000).for_each(|n| fleet.control(pace(Some(tenant(n)), every(50))));
    assert_eq!(fleet.reasons(), []);
    fleet.control(pace(Some(tenant(10_000)), every(50)));
    assert_eq!(fleet.reasons(), [Reason::LimitReached]);
    fleet.control(pace(Some(tenant(9_999)), every(60)));
    fleet.control(pace(None, every(50)));
    assert_eq!(fleet.reasons().len(), 1, "one that is there can be replaced, and the cell is no tenant");
    (0..10_000).for_each(|n| ask(&mut fleet, n, "r".to_owned()));
    let counts = fleet.state.summary().paces;
    let offered = |scope: &str| counts[scope].offered();
    assert_eq!((counts.len(), offered("cell"), offered("tenant/tenant-0"), offered("others")), (102, 10_000, 1, 9_900));
}
