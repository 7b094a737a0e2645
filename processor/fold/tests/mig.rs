//! MIG instances that a lease may make, told as stories: where they go, what never overlaps, whose they are once they exist, when they are free.

mod support;

use std::collections::BTreeMap;

use plimsoll_fold::durable::{Entry, StateTable};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::inventory::Gpu;
use plimsoll_schemas::mig::{Instance, Mig, Profile};
use plimsoll_schemas::out::{Decided, LeaseState, Outcome, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Distribute, Place, Renew, Request, Strategy};
use plimsoll_schemas::row::{Row, Tier};
use plimsoll_schemas::sample::Field;
use plimsoll_schemas::time::NS_PER_S;
use support::fleet::Fleet;
use support::placing::{ask, decided, lease_id, outcome, proposed, release};
use support::{GIB, cell, gpu, tenant, uuid};

/// A board of eight memory slices with these instances: (profile, start, the GPU it is announced as).
fn board(slot: usize, instances: &[(&str, u8, Option<usize>)]) -> Gpu {
    let profile = |name: &str, gib: u64, size, starts: &[u8]| Profile {
        name: name.to_owned(),
        memory_bytes: gib * GIB,
        size,
        starts: starts.to_vec(),
        instances_max: None,
    };
    let profiles = vec![
        profile("1g.10gb", 10, 1, &[0, 1, 2, 3, 4, 5, 6]),
        profile("1g.20gb", 20, 2, &[0, 2, 4, 6]),
        profile("2g.20gb", 20, 2, &[0, 2, 4]),
        profile("3g.40gb", 40, 4, &[0, 4]),
        profile("4g.40gb", 40, 4, &[0]),
        profile("7g.80gb", 80, 8, &[0]),
    ];
    let size = |name: &str| profiles.iter().find(|profile| profile.name == name).map_or(1, |profile| profile.size);
    let instance = |&(name, start, as_gpu): &(&str, u8, Option<usize>)| Instance {
        profile: name.to_owned(),
        start,
        size: size(name),
        uuid: as_gpu.map(|slot| uuid(0, slot)),
    };
    let instances = instances.iter().map(instance).collect();
    Gpu { mig: Some(Mig { profiles, instances }), ..gpu(0, slot) }
}

/// An instance as a GPU of its own.
fn instance(slot: usize, board: usize, profile: &str) -> Gpu {
    Gpu { mig_profile: Some(profile.to_owned()), mig_parent_uuid: Some(uuid(0, board)), ..gpu(0, slot) }
}

/// A cell with one host whose GPUs are these.
fn cell_of(gpus: Vec<Gpu>) -> Fleet {
    let mut fleet = Fleet::with_hosts(1);
    fleet.announce(0, 2, gpus);
    fleet.live(5, &[0]);
    fleet
}

fn mig(profile: &str) -> Bundle {
    Bundle { mig_profile: Some(profile.to_owned()), ..Bundle::default() }
}

fn request(id: &str, bundle: Bundle) -> Place {
    Place { request_id: id.to_owned(), bundles: vec![bundle], lease_ttl_ms: Some(60_000), ..Place::default() }
}

/// What was given: the slot of the GPU and, of a new instance, where it is to stand.
fn given(decided: &Decided) -> Vec<(u8, Option<u8>)> {
    decided.assignments.iter().map(|gpu| (gpu.slot.0, gpu.mig.as_ref().map(|made| made.start))).collect()
}

/// Goes on with what was written, on top of what a restart before this one had read.
fn restarted(fleet: &mut Fleet, store: &mut BTreeMap<(StateTable, Vec<u8>), Entry>) {
    for entry in fleet.state.take_dirty() {
        store.insert((entry.table, entry.key.clone()), entry);
    }
    let hash = fleet.state.hash();
    let written = store.values().filter(|entry| entry.value.is_some()).cloned();
    fleet.state = State::restore(cell(), written).expect("what was written is read back");
    assert_eq!(fleet.state.hash(), hash);
    fleet.effects = Effects::default();
}

#[test]
fn a_chain_of_profiles_fills_a_board_exactly() {
    let check = |profiles: &[&str], starts: &[u8]| {
        let mut fleet = cell_of(vec![board(0, &[])]);
        for (number, (profile, &start)) in profiles.iter().zip(starts).enumerate() {
            let placed = ask(&mut fleet, request(&number.to_string(), mig(profile)));
            assert_eq!(given(&placed), [(0, Some(start))], "{profile} of {profiles:?}: {:?}", placed.detail);
        }
        let more = ask(&mut fleet, request("more", mig("1g.10gb")));
        assert_eq!(outcome(&more), (Outcome::Rejected, Some(Reason::MigNoSlice)), "{profiles:?}");
        let detail = "of 1 GPUs 0 are left for the 1 needed: a new 1g.10gb takes 1 memory slices, the most free on one board are 0";
        assert!(more.detail.as_deref().is_some_and(|said| said.starts_with(detail)), "{:?}", more.detail);
    };
    check(&["7g.80gb"], &[0]);
    check(&["3g.40gb", "4g.40gb"], &[4, 0]);
    check(&["3g.40gb", "3g.40gb"], &[4, 0]);
    check(&["2g.20gb", "2g.20gb", "2g.20gb", "1g.20gb"], &[4, 0, 2, 6]);
    check(&["1g.10gb", "2g.20gb", "4g.40gb"], &[6, 4, 0]);
    check(&["1g.10gb"; 7], &[6, 4, 5, 0, 1, 2, 3]);
}

#[test]
fn slices_that_are_free_where_the_profile_may_not_start_are_said_to_be_so() {
    let mut fleet = cell_of(vec![board(0, &[("1g.10gb", 1, None), ("1g.10gb", 5, None)])]);
    let none = ask(&mut fleet, request("a", mig("3g.40gb")));
    assert_eq!(outcome(&none), (Outcome::Rejected, Some(Reason::MigStart)));
    let detail = "a new 3g.40gb takes 4 memory slices, the most free on one board are 6, but not where one may start";
    assert!(none.detail.as_deref().is_some_and(|said| said.contains(detail)), "{:?}", none.detail);
    assert_eq!(outcome(&ask(&mut fleet, request("b", mig("7g.80gb")))), (Outcome::Rejected, Some(Reason::MigNoSlice)));
    assert_eq!(given(&ask(&mut fleet, request("c", mig("1g.20gb")))), [(0, Some(6))]);
}

#[test]
fn a_board_with_mig_mode_on_is_not_used_as_a_whole_nor_shared() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    for (id, milli) in [("whole", 1_000), ("share", 250)] {
        let none = ask(&mut fleet, request(id, Bundle { milli, ..Bundle::default() }));
        assert_eq!(outcome(&none), (Outcome::Rejected, Some(Reason::MigProfile)));
    }
    let none = ask(&mut fleet, request("share-of-new", Bundle { milli: 250, ..mig("1g.10gb") }));
    assert_eq!(outcome(&none), (Outcome::Rejected, Some(Reason::MigProfile)));
    assert_eq!(outcome(&ask(&mut fleet, request("unknown", mig("5g.50gb")))), (Outcome::Rejected, Some(Reason::MigProfile)));
    let large = ask(&mut fleet, request("large", Bundle { vram_bytes: 11 * GIB, ..mig("1g.10gb") }));
    assert_eq!(outcome(&large), (Outcome::Rejected, Some(Reason::InsufficientMemory)));
    let placed = ask(&mut fleet, request("fits", Bundle { vram_bytes: 9 * GIB, ..mig("1g.10gb") }));
    assert_eq!((placed.assignments[0].vram_bytes, placed.assignments[0].milli), (10 * GIB, 1_000));
}

#[test]
fn a_board_with_mig_mode_on_is_no_free_gpu_and_no_work_is_split_over_it() {
    let mut fleet = cell_of(vec![board(0, &[]), gpu(0, 1)]);
    fleet.clear();
    fleet.live(200, &[0]);
    let windows = fleet.effects.rows.iter().filter_map(|row| if let Row::HostWindow(window) = &row.row { Some(window) } else { None });
    let said: Vec<_> = windows.map(|of| (of.free.words(), of.gpus_free_min, of.gpus_free_max, of.gpus_alloc_max, of.gpus_up)).collect();
    assert_eq!(said[1..], [(&[0b10][..], Some(1), Some(1), Some(0), 2); 2]);
    fleet.clear();
    let split =
        Distribute { request_id: "split".to_owned(), items: 8, strategy: Strategy::Uniform, devices: None, weights: None, max_per_device: None };
    fleet.ask(Request::Distribute(split));
    let said = fleet.payloads().into_iter().find_map(|payload| if let Payload::Distributed(said) = payload { Some(said.counts) } else { None });
    assert_eq!(said, Some([(uuid(0, 1), 8)].into()));
}

#[test]
fn a_board_is_neither_free_nor_leased_as_a_whole_however_it_is_cut_and_again_once_it_is_not() {
    let counts = |fleet: &Fleet| {
        let mut windows = fleet.effects.rows.iter().filter_map(|row| if let Row::HostWindow(window) = &row.row { Some(window) } else { None });
        let last = windows.next_back().expect("a minute has closed");
        (last.gpus_total, last.gpus_up, last.gpus_free_min, last.gpus_free_max, last.gpus_alloc_max)
    };
    let free_ms = |fleet: &Fleet, slot: usize| {
        let of = |row: &Row| {
            if let Row::Window(Tier::Minute, of) = row { (of.device_key == uuid(0, slot).key()).then_some(of.state.free_ms) } else { None }
        };
        fleet.effects.rows.iter().rev().find_map(|row| of(&row.row)).expect("a minute has closed")
    };
    let mut fleet = cell_of(vec![board(0, &[]), gpu(0, 1)]);
    let placed = ask(&mut fleet, request("new", mig("1g.10gb")));
    fleet.live(200, &[0]);
    assert_eq!(counts(&fleet), (2, 2, Some(1), Some(1), Some(0)), "a place on a board is no GPU that is leased");
    release(&mut fleet, &placed);
    // One that says only what it is cut into, as where nobody can ask its driver.
    fleet.announce(0, 3, vec![gpu(0, 0), gpu(0, 1), instance(2, 0, "1g.10gb")]);
    fleet.live(200, &[0]);
    assert_eq!((counts(&fleet), free_ms(&fleet, 0), free_ms(&fleet, 1)), ((2, 2, Some(1), Some(1), Some(0)), 0, 60_000));
    fleet.announce(0, 4, vec![gpu(0, 0), gpu(0, 1)]);
    fleet.live(200, &[0]);
    assert_eq!((counts(&fleet), free_ms(&fleet, 0)), ((2, 2, Some(2), Some(2), Some(0)), 60_000));
}

#[test]
fn a_board_counts_as_placeable_as_long_as_an_instance_can_be_made_on_it() {
    let placeable = |instances: &[(&str, u8, Option<usize>)]| cell_of(vec![board(0, instances)]).state.summary().devices_placeable;
    assert_eq!((placeable(&[]), placeable(&[("4g.40gb", 0, None)]), placeable(&[("7g.80gb", 0, None)])), (1, 1, 0));
}

#[test]
fn what_exists_is_given_before_something_new_and_the_fuller_board_before_the_empty_one() {
    let mut fleet = cell_of(vec![board(0, &[]), board(1, &[("3g.40gb", 4, None)])]);
    assert_eq!(given(&ask(&mut fleet, request("a", mig("4g.40gb")))), [(1, Some(0))]);
    assert_eq!(given(&ask(&mut fleet, request("b", mig("3g.40gb")))), [(0, Some(4))]);

    let mut fleet = cell_of(vec![board(0, &[("1g.10gb", 0, Some(1))]), instance(1, 0, "1g.10gb")]);
    assert_eq!(given(&ask(&mut fleet, request("a", mig("1g.10gb")))), [(1, None)]);
    assert_eq!(given(&ask(&mut fleet, request("b", mig("1g.10gb")))), [(0, Some(1))]);
}

#[test]
fn a_gang_gets_an_instance_for_each_member_the_largest_first_or_none() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    let gang = |id: &str, small| Place { bundles: vec![Bundle { members: small, ..mig("1g.10gb") }, mig("4g.40gb")], ..request(id, mig("")) };
    let none = ask(&mut fleet, gang("too-many", 4));
    assert_eq!(outcome(&none), (Outcome::Rejected, Some(Reason::GangPartial)), "{:?}", none.detail);
    let all = ask(&mut fleet, gang("gang", 3));
    assert_eq!(given(&all), [(0, Some(6)), (0, Some(4)), (0, Some(5)), (0, Some(0))]);
    assert!(all.score_micro.is_some_and(|micro| (-4_000_000..0).contains(&micro)), "{:?}", all.score_micro);
    assert_eq!(fleet.state.summary().leases, 1);
    release(&mut fleet, &all);
    assert_eq!(given(&ask(&mut fleet, request("all", mig("7g.80gb")))), [(0, Some(0))]);
}

#[test]
fn a_member_gets_at_most_one_new_instance_of_each_board() {
    let mut fleet = cell_of(vec![board(0, &[]), board(1, &[])]);
    assert_eq!(given(&ask(&mut fleet, request("two", Bundle { count: 2, ..mig("1g.10gb") }))), [(0, Some(6)), (1, Some(6))]);
    let three = ask(&mut fleet, request("three", Bundle { count: 3, ..mig("1g.10gb") }));
    assert_eq!(outcome(&three), (Outcome::Rejected, Some(Reason::TooFewDevices)));
}

#[test]
fn an_instance_that_was_made_belongs_to_its_lease_and_is_free_once_that_is_released() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    let first = ask(&mut fleet, request("a", mig("1g.10gb")));
    assert_eq!(given(&first), [(0, Some(6))]);
    fleet.announce(0, 3, vec![board(0, &[("1g.10gb", 6, Some(1))]), instance(1, 0, "1g.10gb")]);
    fleet.live(5, &[0]);
    let rows = fleet.state.recent(Some(&[uuid(0, 1).key()]), 1);
    assert_eq!(rows[0].lease_id, Some(lease_id(&first)), "its samples are the lease's");
    let second = ask(&mut fleet, request("b", mig("1g.10gb")));
    assert_eq!(given(&second), [(0, Some(4))], "neither the lease's instance nor its slices");
    assert_eq!(second.refused.get(&Reason::LeaseConflict), Some(&1));
    release(&mut fleet, &first);
    let third = ask(&mut fleet, request("c", mig("1g.10gb")));
    assert_eq!(given(&third), [(1, None)]);
    release(&mut fleet, &third);
    // Other than promised, and across what is promised: nobody else's either.
    fleet.announce(0, 4, vec![board(0, &[("2g.20gb", 4, Some(1))]), instance(1, 0, "2g.20gb")]);
    assert_eq!(given(&ask(&mut fleet, request("d", mig("2g.20gb")))), [(0, Some(0))]);
}

#[test]
fn the_slices_of_a_lease_that_ran_out_are_free_once_they_are_shown_to_be_empty_whatever_else_stands_there() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    let keep = ask(&mut fleet, Place { lease_ttl_ms: Some(3_600_000), ..request("keep", mig("3g.40gb")) });
    let short = ask(&mut fleet, Place { lease_ttl_ms: Some(10_000), ..request("short", mig("4g.40gb")) });
    assert_eq!((given(&keep), given(&short)), (vec![(0, Some(4))], vec![(0, Some(0))]));
    fleet.live(12, &[0]);
    assert_eq!(outcome(&ask(&mut fleet, request("a", mig("4g.40gb")))), (Outcome::Rejected, Some(Reason::MigNoSlice)));
    fleet.live(115, &[0]);
    assert_eq!(fleet.state.summary().leases, 2);
    fleet.clear();
    fleet.live(10, &[0]);
    assert_eq!(fleet.leases(), [(LeaseState::Ended, "observed_free".to_owned())]);

    // Once more, with an instance that was made and is still in use.
    let short = ask(&mut fleet, Place { lease_ttl_ms: Some(10_000), ..request("b", mig("4g.40gb")) });
    assert_eq!(given(&short), [(0, Some(0))]);
    fleet.announce(0, 3, vec![board(0, &[("4g.40gb", 0, Some(1))]), instance(1, 0, "4g.40gb")]);
    fleet.live(300, &[0]);
    assert_eq!(fleet.state.summary().leases, 2);
    let busy = fleet.sample;
    let quiet = |fleet: &mut Fleet, seconds: i64| {
        for _ in 0..seconds {
            fleet.now_ns += NS_PER_S;
            let mut frame = fleet.frame(0);
            frame.samples = vec![busy, busy.with(Field::MemoryUsedBytes, 0)];
            fleet.send(frame);
        }
    };
    quiet(&mut fleet, 35);
    assert_eq!(fleet.state.summary().leases, 1);
    assert_eq!(given(&ask(&mut fleet, request("c", mig("4g.40gb")))), [(1, None)]);
    fleet.ask(Request::Renew(Renew { request_id: "renew".to_owned(), lease_ids: vec![lease_id(&keep)] }));
}

#[test]
fn a_restart_keeps_what_is_promised() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    let mut store = BTreeMap::new();
    let first = ask(&mut fleet, request("a", mig("3g.40gb")));
    restarted(&mut fleet, &mut store);
    assert_eq!(given(&ask(&mut fleet, request("b", mig("3g.40gb")))), [(0, Some(0))]);
    restarted(&mut fleet, &mut store);
    assert_eq!(outcome(&ask(&mut fleet, request("c", mig("3g.40gb")))), (Outcome::Rejected, Some(Reason::MigNoSlice)));
    release(&mut fleet, &first);
    assert_eq!(given(&ask(&mut fleet, request("d", mig("3g.40gb")))), [(0, Some(4))]);
}

#[test]
fn what_a_board_was_leased_as_when_mig_mode_was_off_stays_leased() {
    let mut fleet = Fleet::with_hosts(1);
    let whole = ask(&mut fleet, request("whole", Bundle { count: 2, ..Bundle::default() }));
    fleet.announce(0, 2, vec![board(0, &[("1g.10gb", 0, Some(1))]), instance(1, 0, "1g.10gb")]);
    assert_eq!(ask(&mut fleet, request("a", mig("1g.10gb"))).outcome, Outcome::Rejected);
    release(&mut fleet, &whole);
    assert_eq!(given(&ask(&mut fleet, request("b", mig("1g.10gb")))), [(1, None)]);
}

#[test]
fn only_leases_on_the_slices_that_are_needed_are_proposed_to_end() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    let low = |id: &str, profile| Place { preemptible: true, ..request(id, mig(profile)) };
    let _three = ask(&mut fleet, low("three", "3g.40gb"));
    let four = ask(&mut fleet, low("four", "4g.40gb"));
    let high = ask(&mut fleet, Place { priority: 1, ..request("high", mig("4g.40gb")) });
    assert_eq!(high.outcome, Outcome::Rejected);
    let said = proposed(&fleet);
    assert_eq!(said[0].victims.iter().map(|victim| victim.lease_id.clone()).collect::<Vec<_>>(), [lease_id(&four)]);
}

#[test]
fn a_request_for_an_instance_waits_for_slices_and_counts_against_the_quota_like_a_gpu() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    let first = ask(&mut fleet, request("a", mig("7g.80gb")));
    let waits = ask(&mut fleet, Place { max_wait_ms: Some(30_000), ..request("b", mig("1g.10gb")) });
    assert_eq!(outcome(&waits), (Outcome::Deferred, Some(Reason::MigNoSlice)));
    assert!(waits.earliest_at.is_some());
    fleet.clear();
    release(&mut fleet, &first);
    assert_eq!(given(&decided(&fleet)[0]), [(0, Some(6))]);
    fleet.control(Control::Quota { tenant: tenant(0), gpu_milli_max: Some(2_000) });
    let gang = |members| Bundle { members, ..mig("1g.10gb") };
    assert_eq!(ask(&mut fleet, request("c", gang(2))).reason, Some(Reason::QuotaExceeded));
    assert_eq!(ask(&mut fleet, request("d", gang(1))).outcome, Outcome::Placed);
}

#[test]
fn of_a_board_only_the_slices_that_a_waiting_request_needs_are_kept_for_it() {
    let waits = |fleet: &mut Fleet, profile: &str| {
        ask(fleet, Place { max_wait_ms: Some(600_000), ..request("waits", mig(profile)) });
        fleet.live(2, &[0]);
    };
    let mut fleet = cell_of(vec![board(0, &[])]);
    let first = ask(&mut fleet, request("first", mig("4g.40gb")));
    waits(&mut fleet, "4g.40gb");
    assert_eq!(given(&ask(&mut fleet, request("beside", mig("1g.10gb")))), [(0, Some(6))]);
    let mut store = BTreeMap::new();
    restarted(&mut fleet, &mut store);
    fleet.clear();
    release(&mut fleet, &first);
    let placed = decided(&fleet);
    assert_eq!((placed[0].request_id.as_str(), given(&placed[0])), ("waits", vec![(0, Some(0))]));

    let mut fleet = cell_of(vec![board(0, &[])]);
    let first = ask(&mut fleet, request("first", mig("1g.10gb")));
    waits(&mut fleet, "7g.80gb");
    assert_eq!(outcome(&ask(&mut fleet, request("beside", mig("1g.10gb")))), (Outcome::Rejected, Some(Reason::Reserved)));
    let short = Place { duration_ms: Some(1_000), ..request("short", mig("1g.10gb")) };
    assert_eq!(ask(&mut fleet, short).outcome, Outcome::Placed, "it says that it ends before");
    release(&mut fleet, &first);
}

#[test]
fn an_inventory_of_a_board_that_cannot_be_changes_nothing() {
    let mut fleet = cell_of(vec![board(0, &[])]);
    fleet.clear();
    fleet.announce(0, 3, vec![board(0, &[("2g.20gb", 0, None), ("1g.10gb", 1, None)])]);
    assert_eq!(fleet.reasons(), [Reason::Inconsistent]);
    assert_eq!(given(&ask(&mut fleet, request("a", mig("7g.80gb")))), [(0, Some(0))]);
}
