//! A host's clock is its own: however wrong it is, it is seen, and changes no other host's numbers.

mod support;

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, Tick as Beat};
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{HostId, LogEpoch, Position, Slot};
use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{HostRow, Row};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS, NS_PER_S};
use support::{Plan, START_S, cell, gpu, host_id, inventory, scenario};

const YEAR_NS: i64 = 365 * 86_400 * NS_PER_S;

/// The rows of all hosts but one, in order, and how many there were of that one.
fn rows_of_others(records: &[Record], host: &HostId) -> (Vec<Row>, usize) {
    let (mut state, mut effects) = (State::new(cell()), Effects::default());
    records.iter().for_each(|record| state.step(record, &mut effects));
    let is_of = |row: &Row| match row {
        Row::Window(_, row) => row.host == *host,
        Row::Device(row) => row.host == *host,
        Row::Host(row) => row.host == *host,
        Row::Rejected(row) => row.host.as_ref() == Some(host),
        Row::DeviceEvent(row) => row.host == *host,
        Row::HostWindow(row) => row.host == *host,
        Row::Episode(row) => row.host == *host,
        Row::Gap(row) => row.host.as_ref() == Some(host),
        // An alert about the whole cell is about this host too.
        Row::Alert(row) => row.host.as_ref().is_none_or(|of| of == host),
        Row::Request(_) | Row::Decision(_) | Row::Lease(_) | Row::LeaseDevice(_) | Row::Policy(_) => false,
    };
    let all = effects.rows.len();
    let others: Vec<Row> = effects.rows.into_iter().map(|row| row.row).filter(|row| !is_of(row)).collect();
    let own = all - others.len();
    (others, own)
}

#[test]
fn moving_one_hosts_clock_by_a_year_changes_no_other_hosts_numbers() {
    for seed in 700..=703 {
        let records = scenario(seed, Plan { hosts: 3, gpus: 2, seconds: 1_500, stalls: true, tenants: false, churn: true });
        let wrong = host_id(1);
        let (right, own) = rows_of_others(&records, &wrong);
        assert!(right.len() > 1_000 && own > 300, "seed {seed}: {} and {own} rows", right.len());
        for step_ns in [-YEAR_NS, -3_600 * NS_PER_S, 10 * NS_PER_S, YEAR_NS] {
            let mut moved = records.clone();
            for record in &mut moved {
                if let Body::Frame(frame) = &mut record.body {
                    let shift_ns = if frame.host == wrong { step_ns } else { 0 };
                    frame.ticks.iter_mut().for_each(|tick| tick.sampled_at.0 += shift_ns);
                } else if let Body::Event(event) = &mut record.body {
                    event.happened_at.0 += if event.host == wrong { step_ns } else { 0 };
                }
            }
            let (others, _) = rows_of_others(&moved, &wrong);
            assert_eq!(others.len(), right.len(), "seed {seed}, {step_ns} ns");
            assert!(others == right, "seed {seed}, {step_ns} ns");
        }
    }
}

/// What one host looks like after two minutes with its clock ahead by so much.
struct Seen {
    host: Vec<HostRow>,
    gpu: DeviceState,
    refused: Vec<Reason>,
    said: Vec<String>,
}

fn run(ahead_ms: i64) -> Seen {
    let (mut state, mut effects, mut sequence) = (State::new(cell()), Effects::default(), 0);
    let mut push = |now_ns: i64, body: Body| {
        sequence += 1;
        state.step(&Record { position: Position { epoch: LogEpoch(0), sequence }, logged_at: LogTime(now_ns), body }, &mut effects);
    };
    push(START_S * NS_PER_S, Body::Control(Box::new(Control::Enrol { hosts: vec![] })));
    push(START_S * NS_PER_S, Body::Inventory(Box::new(inventory(0, 1, 1, 1, vec![gpu(0, 0)]))));
    for second in 1..=120 {
        let now_ns = (START_S + second) * NS_PER_S;
        push(now_ns, Body::Tick(Beat { replica: "a".to_owned(), second }));
        // A frame is 20 ms under way at the least, and often longer.
        let way_ms = 20 + second % 3 * 200;
        let frame = Frame {
            host: host_id(0),
            epoch: 1,
            sequence: second as u64,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: 1_000,
            backfill: false,
            slots: vec![Slot(0)],
            ticks: vec![Tick { sampled_at: EventTime(now_ns + (ahead_ms - way_ms) * NS_PER_MS), held_ms: 1_000 }],
            samples: vec![Sample::default().with(Field::UtilPercent, 50)],
            rejected: vec![],
            rejected_more: 0,
        };
        push(now_ns, Body::Frame(Box::new(frame)));
    }
    let (mut host, mut gpu, mut refused, mut said) = (Vec::new(), DeviceState::Ok, Vec::new(), Vec::new());
    for row in effects.rows {
        if let Row::Host(row) = row.row {
            host.extend(row.valid_to.is_none().then_some(*row));
        } else if let Row::Device(row) = row.row {
            gpu = if row.valid_to.is_none() { row.state } else { gpu };
        } else if let Row::Rejected(row) = row.row {
            refused.push(row.reason);
        } else if let Row::DeviceEvent(row) = row.row {
            said.extend(Some(row.kind).filter(|kind| kind.starts_with("clock")));
        }
    }
    refused.dedup();
    Seen { host, gpu, refused, said }
}

#[test]
fn a_clock_that_is_off_shows_in_hosts_and_only_one_too_far_ahead_silences_its_host() {
    let check = |ahead_ms: i64, gpu: DeviceState, refused: &[Reason], said: &[&str]| {
        let seen = run(ahead_ms);
        let shown: Vec<_> = seen.host.iter().filter_map(|row| row.clock_skew_ms).collect();
        assert_eq!(shown.last(), Some(&(ahead_ms - 20)), "{shown:?}");
        assert_eq!((seen.gpu, seen.refused.as_slice()), (gpu, refused), "{ahead_ms} ms");
        assert_eq!(seen.said, said, "{ahead_ms} ms");
    };
    check(0, DeviceState::Ok, &[], &[]);
    check(4_000, DeviceState::Ok, &[], &[]);
    check(-4_000, DeviceState::Ok, &[], &[]);
    check(-20_000, DeviceState::Ok, &[], &["clock_skew"]);
    check(-1_800_000, DeviceState::Ok, &[], &["clock_skew"]);
    check(6_000, DeviceState::Lost, &[Reason::TimestampInFuture], &["clock_skew"]);
    check(YEAR_NS / NS_PER_MS, DeviceState::Lost, &[Reason::TimestampInFuture], &["clock_skew"]);
}
