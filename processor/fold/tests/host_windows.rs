//! Host windows: what a minute of a host says, with boards of several sizes, MIG instances and many slots.

mod support;

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, Cordon};
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::Slot;
use plimsoll_schemas::inventory::Gpu;
use plimsoll_schemas::record::Body;
use plimsoll_schemas::request::{Bundle, Place, Request};
use plimsoll_schemas::row::{HostWindowRow, Row};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use support::{GIB, Log, START_S, cell, gpu, host_id, inventory, tenant, uuid};

/// Board 0 and 1 share a domain, board 1 is cut into an instance in slot 2, board 3 stands in slot 70 and another domain, board 4 is
/// of another model.
fn boards() -> Vec<Gpu> {
    let board = |n: usize, slot: u8, domain: u32| Gpu { slot: Slot(slot), nvlink_domain: Some(domain), ..gpu(0, n) };
    let instance = Gpu { mig_parent_uuid: Some(uuid(0, 1)), mig_profile: Some("1g.10gb".to_owned()), nvlink_domain: None, ..gpu(0, 2) };
    vec![board(0, 0, 0), board(1, 1, 0), instance, board(3, 70, 1), Gpu { model: "NVIDIA T4".to_owned(), nvlink_domain: None, ..board(4, 4, 0) }]
}

/// Three minutes of the host from a full minute on, in which `act` happens after so many seconds; what its minutes say.
fn minutes(act: &[(i64, Body)]) -> Vec<HostWindowRow> {
    let mut log = Log::starting_at(START_S);
    log.push(Body::Control(Box::new(Control::Enrol { hosts: vec![] })));
    log.push(Body::Inventory(Box::new(inventory(0, 1, 1, 1, boards()))));
    for second in 1..=240 {
        log.now_ns += NS_PER_S;
        for (_, body) in act.iter().filter(|(at, _)| *at == second - 60) {
            log.push(body.clone());
        }
        // Board 0 uses 10 GiB, board 3 uses 50 GiB, the rest does not say.
        let used = |gib: Option<u64>| gib.map_or(Sample::default(), |gib| Sample::default().with(Field::MemoryUsedBytes, gib * GIB));
        log.push(Body::Frame(Box::new(Frame {
            host: host_id(0),
            epoch: 1,
            sequence: second as u64,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: 1_000,
            backfill: false,
            slots: [0, 1, 2, 70, 4].map(Slot).to_vec(),
            ticks: vec![Tick { sampled_at: EventTime(log.now_ns), held_ms: 1_000 }],
            samples: [Some(10), None, None, Some(50), None].map(|gib| used(gib).with(Field::UtilPercent, 2)).to_vec(),
            rejected: vec![],
            rejected_more: 0,
        })));
    }
    log.pass(100);
    let (mut state, mut effects) = (State::new(cell()), Effects::default());
    log.records.iter().for_each(|record| state.step(record, &mut effects));
    let of_host = effects.rows.into_iter().filter_map(|row| if let Row::HostWindow(row) = row.row { Some(*row) } else { None });
    of_host.filter(|row| (START_S + 60..START_S + 240).contains(&(row.window_at.0 / NS_PER_S))).collect()
}

fn whole(n: u32) -> Body {
    let place = Place {
        request_id: format!("r{n}"),
        bundles: vec![Bundle { count: 1, milli: 1_000, vram_bytes: 60 * GIB, ..Bundle::default() }],
        lease_ttl_ms: Some(600_000),
        ..Place::default()
    };
    Body::Request(tenant(0), Box::new(Request::Place(place)))
}

#[test]
fn a_minute_says_which_slots_were_free_and_with_how_much_memory() {
    let rows = minutes(&[]);
    assert_eq!(rows.iter().map(|row| row.model.as_str()).collect::<Vec<_>>(), ["NVIDIA H100 80GB HBM3", "NVIDIA T4"].repeat(3));
    let (big, small) = (&rows[0], &rows[1]);
    assert_eq!(big.window_at, EventTime((START_S + 60) * NS_PER_S));
    assert_eq!(big.pool.as_deref(), Some("blue"));
    let counts = |row: &HostWindowRow| (row.gpus_total, row.gpus_up, row.gpus_free_min, row.gpus_free_max, row.gpus_alloc_max);
    assert_eq!(counts(big), (3, 3, Some(2), Some(2), Some(0)));
    assert_eq!(counts(small), (1, 1, Some(1), Some(1), Some(0)));
    // Board 1 is cut: nobody's as a whole.
    assert_eq!(big.free.words(), [1, 1 << 6]);
    let by_memory: Vec<Vec<u64>> = big.free_by_memory.iter().map(|mask| mask.words().to_vec()).collect();
    assert_eq!(by_memory, [vec![1, 1 << 6], vec![1, 0], vec![1, 0], vec![0, 0], vec![0, 0]]);
    assert_eq!((big.mig_total, big.mig_free.words()), (1, &[4, 0][..]));
    assert_eq!((big.largest_free_nvlink, small.largest_free_nvlink), (Some(1), None));
    assert_eq!((small.free.words(), small.free_by_memory[0].words()), (&[16, 0][..], &[0, 0][..]), "unknown memory is not free memory");
}

#[test]
fn a_gpu_that_was_not_free_for_a_moment_is_not_in_the_mask_and_counts_at_the_least() {
    let cordon = |on: bool| {
        let what = Cordon::Gpu(uuid(0, 0));
        Body::Control(Box::new(if on { Control::Cordon(what) } else { Control::Uncordon(what) }))
    };
    let rows: Vec<_> = minutes(&[(70, cordon(true)), (71, cordon(false))]).into_iter().step_by(2).collect();
    let said: Vec<_> = rows.iter().map(|row| (row.free.words()[0], row.gpus_free_min, row.gpus_free_max, row.gpus_up)).collect();
    assert_eq!(said, [(1, Some(2), Some(2), 3), (0, Some(1), Some(2), 3), (1, Some(2), Some(2), 3)]);
}

#[test]
fn leased_gpus_count_at_the_most_and_idle_ones_only_if_they_idle_throughout() {
    let rows: Vec<_> = minutes(&[(30, whole(1))]).into_iter().step_by(2).collect();
    let said: Vec<_> = rows.iter().map(|row| (row.free.count(), row.gpus_alloc_max, row.gpus_idle_alloc_min, row.gpus_free_min)).collect();
    assert_eq!(said, [(1, Some(1), 0, Some(1)), (1, Some(1), 1, Some(1)), (1, Some(1), 1, Some(1))]);
}
