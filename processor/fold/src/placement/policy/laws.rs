//! What every policy must keep, whatever it prefers: tests only.

use proptest::prelude::*;

use super::Policy;
use super::catalogue::{Name, Parts};
use super::draw::Draw;
use super::fleet::{Fleet, HostSpec, MILLI, Place};
use super::placer::Placer;
use super::shape::{Models, Shape, counted};
use super::tables::Tables;
use super::typical::Typical;

fn policies<'a>(typical: &'a Typical, requests: &'a [(Shape, i64)], tables: &'a Tables) -> impl Iterator<Item = Box<dyn Policy + Send>> + 'a {
    Name::BY_CAPACITY.into_iter().map(move |name| name.policy(Parts { typical, requests, tables, seed: 7, turn: 0 }))
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Shape),
    Release(usize),
    Exclude(usize, bool),
}

fn any_shape() -> impl Strategy<Value = Shape> {
    let gpus =
        prop_oneof![Just((0, 0)), (1..=10_i32).prop_map(|tenths| (1, tenths * 100)), (2..=4_u32).prop_map(|gpus| (gpus, MILLI)), Just((2, 300))];
    let models = prop_oneof![3 => Just(Models::ANY), 1 => (0..4_u64).prop_map(Models)];
    (0..20_i64, 0..20_i64, gpus, models).prop_map(|(cpu, memory_mib, (gpus, milli), models)| Shape {
        cpu_milli: cpu * 500,
        memory_mib,
        gpus,
        milli,
        models,
    })
}

fn any_host() -> impl Strategy<Value = HostSpec> {
    (0..5_u32, 0..64_i64, 0..200_i64, 0..=4_usize, prop::sample::select(vec!["G2", "T4"])).prop_map(|(rank, cores, memory_mib, gpus, model)| {
        HostSpec { name: String::new(), rank, cpu_milli: cores * 1_000, memory_mib, gpus, model: model.to_owned() }
    })
}

/// Hosts, the same in another order, and what happens to them.
fn any_story() -> impl Strategy<Value = (Vec<HostSpec>, Vec<HostSpec>, Vec<Step>)> {
    let hosts = prop::collection::vec(any_host(), 1..12).prop_map(|mut hosts| {
        for (number, host) in hosts.iter_mut().enumerate() {
            host.name = format!("h{number}");
        }
        hosts
    });
    let step = prop_oneof![
        8 => any_shape().prop_map(Step::Ask),
        2 => any::<usize>().prop_map(Step::Release),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(host, excluded)| Step::Exclude(host, excluded))
    ];
    (hosts, prop::collection::vec(step, 1..80)).prop_flat_map(|(hosts, steps)| (Just(hosts.clone()), Just(hosts).prop_shuffle(), Just(steps)))
}

/// Tables that make no sense, which no policy may mind.
fn any_tables() -> Tables {
    let mut tables = Tables::untaught(&["G2".to_owned()]);
    let mut draw = Draw::new(5);
    tables.cells.iter_mut().for_each(|cell| *cell = draw.below(100_000) as i32 - 20_000);
    tables
}

/// The placement if it keeps every promise to the host as it was before.
fn check_place(before: &Fleet, place: Place, shape: &Shape) -> Result<(), TestCaseError> {
    let host = before.host(place.host);
    prop_assert_eq!(host.fits(shape), Ok(()));
    prop_assert!(!host.excluded && host.cpu_milli >= shape.cpu_milli && host.memory_mib >= shape.memory_mib);
    prop_assert!(shape.gpus == 0 || shape.models.allow(host.model));
    prop_assert_eq!(place.gpus.count_ones(), shape.gpus);
    let taken = (0..64).filter(|gpu| place.gpus >> gpu & 1 == 1);
    for gpu in taken {
        prop_assert!(host.gpus.get(gpu).is_some_and(|&left| left >= shape.milli), "GPU {} of {:?}", gpu, host);
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_policy_places_beyond_capacity_and_every_host_that_is_passed_over_has_a_reason((hosts, shuffled, steps) in any_story()) {
        let shapes: Vec<Shape> = steps.iter().filter_map(|step| if let Step::Ask(shape) = step { Some(*shape) } else { None }).collect();
        let typical = Typical::of(shapes.iter().map(|shape| (shape, "")));
        let tables = any_tables();
        let requests = counted(&shapes);
        for (policy, again) in policies(&typical, &requests, &tables).zip(policies(&typical, &requests, &tables)) {
            let name = policy.name();
            let mut placer = Placer::new(Fleet::new(hosts.clone()).expect("valid"), policy);
            let mut other = Placer::new(Fleet::new(shuffled.clone()).expect("valid"), again);
            let mut living: Vec<(Place, Shape)> = Vec::new();
            for step in &steps {
                match step {
                    Step::Ask(shape) => {
                        let before = placer.fleet().clone();
                        let misfits = placer.misfits(shape);
                        let place = placer.place(shape);
                        // The other one has its hosts in another order and remembers nothing.
                        other.forget();
                        prop_assert_eq!(place, other.place(shape), "{}", name);
                        match place {
                            Some(place) => {
                                check_place(&before, place, shape)?;
                                living.push((place, *shape));
                            }
                            None => prop_assert_eq!(misfits.len(), before.len(), "{}: a host could have taken {:?}", name, shape),
                        }
                        prop_assert!(misfits.iter().all(|&(host, misfit)| before.host(host).fits(shape) == Err(misfit)));
                    }
                    Step::Release(which) if !living.is_empty() => {
                        let (place, shape) = living.swap_remove(which % living.len());
                        placer.release(place, &shape);
                        other.release(place, &shape);
                    }
                    Step::Release(_) => {}
                    Step::Exclude(host, excluded) => {
                        placer.exclude(host % hosts.len(), *excluded);
                        other.exclude(host % hosts.len(), *excluded);
                    }
                }
            }
            for host in 0..hosts.len() {
                placer.exclude(host, false);
            }
            for (place, shape) in living {
                placer.release(place, &shape);
            }
            let empty = Fleet::new(hosts.clone()).expect("valid");
            prop_assert!(placer.fleet().hosts().zip(empty.hosts()).all(|(host, new)| host.is_like(&new)), "{}: not all came back", name);
        }
    }
}
