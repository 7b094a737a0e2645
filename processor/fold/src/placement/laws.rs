//! What every choice must keep, whatever the policy prefers: tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_schemas::id::{HostId, Slot};
use plimsoll_schemas::inventory;
use plimsoll_schemas::mig::{Instance, Mig, Profile, Promise, SLICES_MAX, Slices};
use plimsoll_schemas::out::Outcome;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Constraints, Domain, Locality, Place, Spread, Topology, WHOLE_MILLI};
use proptest::prelude::*;

use super::Settings;
use super::ask::Ask;
use super::candidate::Candidate;
use super::cell::{Cell, Chooser, Hashed, Host};
use super::mig::Board;
use super::plan::Neighbours;
use super::policy::catalogue::{Bidder, Name};
use super::policy::host::CLASSES;
use super::policy::mix::Mix;
use super::reputation::Reputation;
use super::select::{Choice, choose};

const GIB: u64 = 1 << 30;
/// Memory of every MIG instance, GiB.
const INSTANCE_GIB: u64 = 30;

/// A GPU that owns what a candidate borrows.
#[derive(Debug, Clone)]
struct Gpu {
    number: u32,
    slot: u8,
    model: &'static str,
    used_gib: u64,
    hot: bool,
    gate: Option<Reason>,
    kept: bool,
    reserved_milli: u32,
    reserved_gib: u64,
    numa_node: u16,
    kind: Kind,
    limit_mw: Option<u64>,
}

/// What MIG makes of a GPU.
#[derive(Debug, Clone)]
enum Kind {
    Plain,
    Instance(&'static str),
    Board(Mig, Vec<Promise>, Vec<Slices>),
}

#[derive(Debug, Clone)]
struct Owned {
    id: HostId,
    stands: inventory::Placement,
    cpu_milli: Option<i64>,
    gpus: Vec<Gpu>,
}

impl Owned {
    fn host(&self) -> Host {
        Host {
            id: self.id.clone(),
            stands: self.stands.clone(),
            cpu_milli: self.cpu_milli,
            memory_bytes: None,
            gpus: self.gpus.iter().map(Gpu::candidate).collect(),
            classes: [0; CLASSES],
            reputation: Reputation::default(),
        }
    }
}

impl Gpu {
    fn board(&self) -> Option<Board> {
        let Kind::Board(mig, promised, kept) = &self.kind else { return None };
        let mut board = Board::new(Arc::new(mig.clone()));
        promised.iter().for_each(|promise| board.promise(promise));
        kept.iter().for_each(|&slices| board.keep(slices));
        Some(board)
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            number: self.number,
            slot: Slot(self.slot),
            model: self.model.into(),
            driver: None,
            compute_capability: None,
            mig_profile: if let Kind::Instance(profile) = self.kind { Some(profile.into()) } else { None },
            mig: self.board(),
            is_cut: false,
            nvlink_domain: None,
            numa_node: Some(self.numa_node),
            memory_total_bytes: Some(80 * GIB),
            memory_used_bytes: Some(self.used_gib * GIB),
            util_percent: Some(self.used_gib),
            temperature_mk: Some(if self.hot { 365_000 } else { 320_000 }),
            slowdown_temperature_mk: Some(363_150),
            power_limit_mw: self.limit_mw,
            gate: self.gate,
            kept: self.kept,
            reserved_milli: self.reserved_milli,
            reserved_vram_bytes: self.reserved_gib * GIB,
            unseen_vram_bytes: 0,
        }
    }
}

/// A board of up to twelve slices: random profiles, instances and promises wherever they are legal and still fit, and slices that are kept.
fn any_board() -> impl Strategy<Value = Kind> {
    let profile = (1..6u8, prop::collection::btree_set(0..7u8, 1..6), prop::option::of(1..3u8));
    let wishes = prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..4u8), 0..6);
    (prop::collection::vec(profile, 1..4), wishes).prop_map(|(profiles, wishes)| {
        let profile = |((size, starts, instances_max), name): (_, &&str)| Profile {
            name: (*name).to_owned(),
            memory_bytes: INSTANCE_GIB * GIB,
            size,
            starts: BTreeSet::<u8>::into_iter(starts).collect(),
            instances_max,
        };
        let profiles: Vec<Profile> = profiles.into_iter().zip(&PROFILES).map(profile).collect();
        let (mut instances, mut promised, mut kept, mut taken) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (which, at, is) in wishes {
            let profile = &profiles[which.index(profiles.len())];
            let (name, start, size) = (profile.name.clone(), profile.starts[at.index(profile.starts.len())], profile.size);
            let instance = Instance { profile: name.clone(), start, size, uuid: None };
            if is == 0 {
                kept.push(instance.slices());
            } else if taken & instance.slices().mask() == 0 {
                taken |= instance.slices().mask();
                if is == 1 { instances.push(instance) } else { promised.push(Promise { profile: name, start, size }) }
            }
        }
        Kind::Board(Mig { profiles, instances }, promised, kept)
    })
}

/// Every profile there is.
const PROFILES: [&str; 3] = ["small", "middle", "large"];

fn any_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![4 => Just(Kind::Plain), 1 => prop::sample::select(&PROFILES[..]).prop_map(Kind::Instance), 2 => any_board()]
}

prop_compose! {
    fn any_gpu()(
        model in prop::sample::select(vec!["H100", "A100"]), used_gib in 0..=70u64, hot in prop::bool::weighted(0.05), kept in prop::bool::weighted(0.05),
        gate in prop::option::weighted(0.1, prop::sample::select(vec![Reason::Stale, Reason::Cordoned, Reason::Draining])),
        reserved_milli in prop::sample::select(vec![0, 0, 0, 300, 1_000]), reserved_gib in 0..=40u64, numa_node in 0..2u16,
        kind in any_kind(), limit_mw in prop::option::weighted(0.8, prop::sample::select(vec![70_000, 400_000, 700_000])),
    ) -> Gpu {
        Gpu { number: 0, slot: 0, model, limit_mw, used_gib, hot, gate, kept, reserved_milli, reserved_gib, numa_node, kind }
    }
}

fn any_cell() -> impl Strategy<Value = Vec<Owned>> {
    let host = (prop::collection::vec(any_gpu(), 0..6), prop::option::of(0..40i64), 0..2u8);
    prop::collection::vec(host, 1..5).prop_map(|hosts| {
        let mut number = 0;
        let mut owned = |(at, (mut gpus, cores, rack)): (usize, (Vec<Gpu>, Option<i64>, u8))| {
            for (slot, gpu) in gpus.iter_mut().enumerate() {
                (gpu.number, gpu.slot) = (number, slot as u8);
                number += 1;
            }
            let stands = inventory::Placement { rack: Some(format!("r{rack}")), ..inventory::Placement::default() };
            Owned { id: format!("h{at}").parse().expect("valid"), stands, cpu_milli: cores.map(|cores| cores * 1_000), gpus }
        };
        hosts.into_iter().enumerate().map(&mut owned).collect()
    })
}

/// Every policy, alone and with power beside it.
fn any_bidder() -> impl Strategy<Value = Bidder> {
    (prop::sample::select(Name::ALL.to_vec()), prop::sample::select(vec![0, 0, 5, 60, 100]))
        .prop_map(|(policy, power_weight)| Bidder { policy, power_weight })
}

fn any_place() -> impl Strategy<Value = Place> {
    let profile = prop::option::of(prop::sample::select(&PROFILES[..]).prop_map(str::to_owned));
    let bundle = (1..4u32, 1..4u32, prop::sample::select(vec![250, 700, 1_000, 1_000]), 0..=40u64, 0..20u64, profile).prop_map(
        |(count, members, milli, vram_gib, cores, mig_profile)| Bundle {
            count,
            members,
            milli,
            vram_bytes: vram_gib * GIB,
            cpu_milli: cores * 1_000,
            mig_profile,
            ..Bundle::default()
        },
    );
    let near = prop::option::of((prop::sample::select(vec![Locality::Numa, Locality::Host, Locality::Rack]), any::<bool>()));
    let apart = prop::option::of((prop::sample::select(vec![Domain::Host, Domain::Rack]), any::<bool>()));
    let model = prop::option::of(Just("H100".to_owned()));
    (prop::collection::vec(bundle, 1..3), near, apart, model).prop_map(|(bundles, near, apart, model)| Place {
        request_id: "r".to_owned(),
        bundles,
        model,
        constraints: Constraints {
            topology: near.map(|(scope, required)| Topology { scope, required }),
            spread: apart.map(|(over, required)| Spread { over, required }),
            ..Constraints::default()
        },
        ..Place::default()
    })
}

fn choice(cell: &mut Cell, place: &Place, bidder: Bidder, mix: &Mix) -> Choice {
    let ask = Ask::new(place).expect("within bounds");
    let mix = Hashed { of: mix, hash: mix.hash() };
    choose(cell, &ask, Chooser { bidder, mix, tables: None, turn: 3 }, &Neighbours::new())
}

fn mix_of(places: &[Place]) -> Mix {
    let mut mix = Mix::default();
    places.iter().for_each(|place| Ask::new(place).expect("within bounds").asked().for_each(|asked| mix.note(asked)));
    mix
}

fn cell_of(owned: &[Owned], backwards: bool) -> Cell {
    let mut hosts: Vec<Host> = owned.iter().map(Owned::host).collect();
    if backwards {
        hosts.iter_mut().for_each(|host| host.gpus.reverse());
    }
    Cell::new(hosts, Settings { vram_limit_bp: 9_000 })
}

/// A new instance stands where its profile may, on nothing that exists, is promised or was given before, and there are not too many of it.
fn is_legal(
    (mig, promised, kept): (&Mig, &[Promise], &[Slices]),
    bundle: &Bundle,
    made: Option<Promise>,
    given: &mut Vec<Promise>,
) -> Result<(), TestCaseError> {
    let made = made.expect("a place on a board is a promise");
    let profile = mig.profiles.iter().find(|profile| profile.name == made.profile).expect("a profile of the board");
    prop_assert_eq!(Some(&made.profile), bundle.mig_profile.as_ref());
    prop_assert!(profile.places().any(|place| place == made.slices()) && made.start + made.size <= SLICES_MAX);
    prop_assert!(kept.iter().all(|slices| slices.mask() & made.slices().mask() == 0), "{:?} is kept", made);
    let existing = mig.instances.iter().map(|of| (&of.profile, of.slices()));
    let others: Vec<_> = existing.chain(promised.iter().chain(given.iter()).map(|of| (&of.profile, of.slices()))).collect();
    prop_assert!(others.iter().all(|(_, place)| place.mask() & made.slices().mask() == 0), "{:?} overlaps one of {:?}", made, others);
    let there = others.iter().filter(|(name, _)| **name == made.profile).count();
    prop_assert!(profile.instances_max.is_none_or(|most| there < usize::from(most)), "too many of one profile");
    given.push(made);
    Ok(())
}

/// What a placement must keep.
fn holds(cell: &[Owned], place: &Place, choice: &Choice) -> Result<(), TestCaseError> {
    let bundles: Vec<&Bundle> = place.bundles.iter().flat_map(|bundle| std::iter::repeat_n(bundle, bundle.members as usize)).collect();
    let gpus: BTreeMap<u32, (&Owned, &Gpu)> = cell.iter().flat_map(|host| host.gpus.iter().map(move |gpu| (gpu.number, (host, gpu)))).collect();
    let (mut taken, mut cpu) = (BTreeMap::<u32, (u32, u64)>::new(), BTreeMap::<&HostId, i64>::new());
    let mut stands = Vec::new();
    let mut given = BTreeMap::<u32, Vec<Promise>>::new();
    for (member, bundle) in (0..).zip(&bundles) {
        let of_member: Vec<_> = choice.picks.iter().filter(|pick| pick.member == member).collect();
        let distinct: BTreeSet<u32> = of_member.iter().map(|pick| pick.number).collect();
        let hosts: BTreeSet<&HostId> = distinct.iter().map(|number| &gpus[number].0.id).collect();
        prop_assert_eq!((distinct.len(), of_member.len(), hosts.len()), (bundle.count as usize, bundle.count as usize, 1), "member {}", member);
        let host = gpus[&of_member[0].number].0;
        *cpu.entry(&host.id).or_default() += bundle.cpu_milli as i64;
        stands.push(host);
        for pick in of_member {
            let gpu = gpus[&pick.number].1;
            prop_assert_eq!(matches!(gpu.kind, Kind::Board(..)), pick.slices.is_some(), "a board is used through new instances and nothing else");
            if let Kind::Board(mig, promised, kept) = &gpu.kind {
                is_legal((mig, promised, kept), bundle, choice.promise(place, pick), given.entry(pick.number).or_default())?;
                prop_assert!(pick.milli == WHOLE_MILLI && pick.vram_bytes == INSTANCE_GIB * GIB && pick.vram_bytes >= bundle.vram_bytes);
                prop_assert!(gpu.gate.is_none() && !gpu.hot && !gpu.kept && place.model.as_deref().is_none_or(|model| model == gpu.model));
                continue;
            }
            let is_of = if let Kind::Instance(profile) = gpu.kind { Some(profile) } else { None };
            prop_assert_eq!(bundle.mig_profile.as_deref(), is_of);
            let sum = taken.entry(pick.number).or_default();
            *sum = (sum.0 + pick.milli, sum.1 + pick.vram_bytes);
            prop_assert!(pick.vram_bytes >= bundle.vram_bytes && pick.milli == bundle.milli);
        }
        let near = place.constraints.topology.as_ref().filter(|near| near.required && near.scope == Locality::Numa && bundle.count > 1);
        prop_assert!(near.is_none() || distinct.iter().map(|number| gpus[number].1.numa_node).collect::<BTreeSet<_>>().len() == 1);
    }
    for (number, (milli, vram_bytes)) in taken {
        let gpu = gpus[&number].1;
        prop_assert!(gpu.gate.is_none() && !gpu.hot && !gpu.kept && place.model.as_deref().is_none_or(|model| model == gpu.model));
        prop_assert!(gpu.reserved_milli + milli <= WHOLE_MILLI);
        prop_assert!(gpu.reserved_gib * GIB + vram_bytes <= 72 * GIB, "beyond the limit");
        prop_assert!(vram_bytes <= (80 - gpu.used_gib) * GIB, "beyond what others leave");
    }
    for host in cell {
        prop_assert!(host.cpu_milli.is_none_or(|left| cpu.get(&host.id).is_none_or(|&asked| asked <= left)), "beyond the host's CPU");
    }
    let of = |domain: Domain| {
        stands.iter().map(move |host| if domain == Domain::Host { host.id.as_str() } else { host.stands.rack.as_deref().unwrap_or("") })
    };
    if let Some(spread) = place.constraints.spread.as_ref().filter(|spread| spread.required) {
        prop_assert_eq!(of(spread.over).collect::<BTreeSet<_>>().len(), bundles.len(), "members apart");
    }
    let together = place.constraints.topology.as_ref().filter(|near| near.required && bundles.len() > 1);
    match together.map(|near| near.scope) {
        Some(Locality::Host) => prop_assert_eq!(of(Domain::Host).collect::<BTreeSet<_>>().len(), 1),
        Some(Locality::Rack) => prop_assert_eq!(of(Domain::Rack).collect::<BTreeSet<_>>().len(), 1),
        Some(Locality::Numa | Locality::Nvlink) | None => {}
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_choice_keeps_every_limit_says_why_for_every_gpu_and_does_not_depend_on_any_order(
        (cell, shuffled) in any_cell().prop_flat_map(|cell| (Just(cell.clone()), Just(cell).prop_shuffle())),
        place in any_place(),
        bidder in any_bidder(),
    ) {
        let choice_of = |owned: &[Owned], backwards: bool| choice(&mut cell_of(owned, backwards), &place, bidder, &mix_of(std::slice::from_ref(&place)));
        let choice = choice_of(&cell, false);
        prop_assert_eq!(&choice, &choice_of(&shuffled, true));
        if cell.iter().all(|host| host.gpus.is_empty()) {
            prop_assert_eq!(choice.reason, Some(Reason::NoDevices));
            return Ok(());
        }
        let candidates = choice.candidates.as_ref().expect("candidates were looked at");
        let reasons = candidates.reasons().expect("readable");
        prop_assert_eq!(reasons.len(), cell.iter().map(|host| host.gpus.len()).sum::<usize>());
        match choice.outcome {
            Outcome::Placed => holds(&cell, &place, &choice)?,
            Outcome::Deferred | Outcome::Rejected | Outcome::Preempted | Outcome::Cancelled => {
                prop_assert!(choice.picks.is_empty() && choice.reason.is_some() && choice.detail.is_some());
                prop_assert!(reasons.iter().all(Option::is_some), "{:?}: {:?}", choice.reason, reasons);
            }
        }
    }

    #[test]
    fn what_is_remembered_from_one_choice_to_the_next_makes_no_difference(
        mut owned in any_cell(),
        places in prop::collection::vec(any_place(), 1..4),
        steps in prop::collection::vec((any::<(usize, usize, usize)>(), any_gpu(), any_bidder(), 0..8u8), 1..12),
    ) {
        owned.sort_by(|a, b| a.id.cmp(&b.id));
        let mut kept = cell_of(&owned, false);
        for ((host, gpu, place), new, bidder, learns) in steps {
            let (host, place) = (host % owned.len(), &places[place % places.len()]);
            let here = &mut owned[host];
            if !here.gpus.is_empty() {
                let gpu = gpu % here.gpus.len();
                let old = &here.gpus[gpu];
                here.gpus[gpu] = Gpu { number: old.number, slot: old.slot, model: old.model, ..new };
            }
            here.cpu_milli = here.cpu_milli.map(|cpu| (cpu + 1_000) % 40_000);
            kept.update(host, |seen| *seen = here.host());
            // Now and then the mix is another one.
            let mix = if learns == 0 { Mix::default() } else { mix_of(&places) };
            prop_assert_eq!(choice(&mut kept, place, bidder, &mix), choice(&mut cell_of(&owned, false), place, bidder, &mix));
        }
    }
}
