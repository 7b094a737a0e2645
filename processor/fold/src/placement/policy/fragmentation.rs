//! How much of what is idle on a host the usual mix of requests could not use: the expected fragmentation.
//!
//! For one shape, all that is idle counts if the shape does not fit, otherwise what is idle on GPUs with too little left for
//! it. The expectation weighs the shapes by how often they come. Memory of the host plays no part.
//!
//! Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, section 4.

use super::fleet::{GPUS_PER_HOST_MAX, MODELS_MAX};
use super::host::Host;
use super::shape::Shape;
use super::typical::Typical;

/// What the typical shapes mean on a host of one model.
#[derive(Debug, Clone, Default)]
struct OfModel {
    /// The shapes that its GPUs may take.
    demands: Vec<Demand>,
    /// Weight of all others: CPU only, or another model.
    unable: i64,
}

#[derive(Debug, Clone, Copy)]
struct Demand {
    cpu_milli: i64,
    gpus: i32,
    milli: i32,
    weight: i64,
}

/// Measures fragmentation against a mix of requests. Unit of every amount: thousandths of a GPU × weight of the whole mix.
#[derive(Debug, Clone)]
pub struct Fragmentation {
    models: Vec<OfModel>,
    weight: i64,
}

impl Fragmentation {
    /// Against this mix.
    pub fn new(typical: &Typical) -> Self {
        let of_model = |model: usize| {
            let mut of_model = OfModel::default();
            for shape in &typical.shapes {
                if shape.gpus > 0 && shape.models.allow(model as u8) {
                    of_model.demands.push(Demand {
                        cpu_milli: shape.cpu_milli,
                        gpus: i32::try_from(shape.gpus).unwrap_or(i32::MAX),
                        milli: shape.milli,
                        weight: shape.weight,
                    });
                } else {
                    of_model.unable += shape.weight;
                }
            }
            of_model
        };
        Self { models: (0..MODELS_MAX).map(of_model).collect(), weight: typical.weight.max(1) }
    }

    /// The weight of the whole mix, at least 1: an amount divided by it is thousandths of a GPU.
    pub fn weight(&self) -> i64 {
        self.weight
    }

    /// The expected fragmentation of a host.
    pub fn of(&self, host: &Host<'_>) -> i64 {
        self.amount(host.model, host.cpu_milli, host.gpus, host.idle_milli)
    }

    /// By how much it falls if the shape takes these GPUs. It fits.
    pub fn drop(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> i64 {
        let mut left = [0_i32; GPUS_PER_HOST_MAX];
        let left = &mut left[..host.gpus.len()];
        for (gpu, (after, before)) in left.iter_mut().zip(host.gpus).enumerate() {
            *after = before - shape.milli * (gpus >> gpu & 1) as i32;
        }
        self.of(host) - self.amount(host.model, host.cpu_milli - shape.cpu_milli, left, host.idle_milli - shape.total_milli())
    }

    /// By how much it falls if a share is taken from a GPU with this much left, for each of these amounts; in the same order.
    pub fn drops_of_share(&self, host: &Host<'_>, shape: &Shape, lefts: &[i32], drops: &mut [i64]) {
        let of_model = &self.models[usize::from(host.model)];
        let (cpu_after, idle, idle_after) = (host.cpu_milli - shape.cpu_milli, host.idle_milli, host.idle_milli - shape.total_milli());
        drops[..lefts.len()].fill(of_model.unable * (idle - idle_after));
        for demand in &of_model.demands {
            let (room, small) = room(host.gpus, demand.milli);
            let before = if demand.cpu_milli <= host.cpu_milli && room >= demand.gpus { i64::from(small) } else { idle };
            let enough_cpu = demand.cpu_milli <= cpu_after;
            for (drop, &left) in drops.iter_mut().zip(lefts) {
                let now = left - shape.milli;
                let (had, has) = (left >= demand.milli, now >= demand.milli);
                let room_after = room - i32::from(had) + i32::from(has);
                let small_after = small - if had { 0 } else { left } + if has { 0 } else { now };
                let after = if enough_cpu && room_after >= demand.gpus { i64::from(small_after) } else { idle_after };
                *drop += demand.weight * (before - after);
            }
        }
    }

    fn amount(&self, model: u8, cpu_milli: i64, gpus: &[i32], idle_milli: i64) -> i64 {
        let of_model = &self.models[usize::from(model)];
        let demands = of_model.demands.iter().map(|demand| {
            let (room, small) = room(gpus, demand.milli);
            demand.weight * if demand.cpu_milli <= cpu_milli && room >= demand.gpus { i64::from(small) } else { idle_milli }
        });
        of_model.unable * idle_milli + demands.sum::<i64>()
    }
}

/// How many GPUs have this much left, and the sum of what the others have left.
fn room(gpus: &[i32], milli: i32) -> (i32, i32) {
    gpus.iter().fold((0, 0), |(room, small), &left| {
        let enough = left >= milli;
        (room + i32::from(enough), small + if enough { 0 } else { left })
    })
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{Fleet, HostSpec, Place};
    use super::super::shape::Models;
    use super::super::typical::Weighted;
    use super::*;
    use proptest::prelude::*;

    fn fleet(cpu_milli: i64) -> Fleet {
        Fleet::new(vec![HostSpec { name: "h".to_owned(), rank: 0, cpu_milli, memory_mib: 0, gpus: 4, model: "T4".to_owned() }]).expect("valid")
    }

    fn share(cpu_milli: i64, milli: i32) -> Shape {
        Shape { cpu_milli, memory_mib: 0, gpus: 1, milli, models: Models::ANY }
    }

    fn mix(shapes: &[(i64, u32, i32, i64)]) -> Fragmentation {
        let shapes: Vec<_> =
            shapes.iter().map(|&(cpu_milli, gpus, milli, weight)| Weighted { cpu_milli, gpus, milli, models: Models::ANY, weight }).collect();
        let weight = shapes.iter().map(|shape| shape.weight).sum();
        Fragmentation::new(&Typical { shapes, weight, requests: weight })
    }

    #[test]
    fn what_a_shape_cannot_use_counts_and_all_of_it_where_the_shape_does_not_fit() {
        let check = |shapes: &[(i64, u32, i32, i64)], expected: i64| {
            let mut fleet = fleet(10);
            fleet.place(Place { host: 0, gpus: 1 }, &share(0, 700));
            assert_eq!(mix(shapes).of(&fleet.host(0)), expected, "{shapes:?}");
        };
        check(&[(10, 1, 300, 2)], 0);
        check(&[(10, 1, 301, 2)], 600);
        check(&[(11, 1, 300, 1)], 3_300);
        check(&[(0, 0, 0, 1)], 3_300);
        check(&[(0, 3, 1_000, 1)], 300);
        check(&[(0, 4, 1_000, 1)], 3_300);
        check(&[(10, 1, 300, 2), (0, 4, 1_000, 1), (10, 1, 301, 2)], 3_900);
    }

    proptest! {
        #[test]
        fn the_drop_is_the_difference_of_before_and_after(
            shapes in prop::collection::vec((0..6i64, 0..5u32, 1..=1_000i32, 1..9i64), 0..12),
            placed in prop::collection::vec((0..4u64, 1..=500i32), 0..4),
            cpu in 0..6i64, milli in 1..=500i32,
        ) {
            let fragmentation = mix(&shapes);
            let mut fleet = fleet(5);
            for (gpu, milli) in placed {
                if fleet.host(0).gpus[gpu as usize] >= milli {
                    fleet.place(Place { host: 0, gpus: 1 << gpu }, &share(0, milli));
                }
            }
            let shape = share(cpu, milli);
            let before = fleet.clone();
            for gpu in 0..4 {
                let left = before.host(0).gpus[gpu];
                if left < milli {
                    continue;
                }
                let (mut after, place) = (before.clone(), Place { host: 0, gpus: 1 << gpu });
                after.place(place, &shape);
                let expected = fragmentation.of(&before.host(0)) - fragmentation.of(&after.host(0));
                prop_assert_eq!(fragmentation.drop(&before.host(0), &shape, place.gpus), expected);
                let mut drops = [0];
                fragmentation.drops_of_share(&before.host(0), &shape, &[left], &mut drops);
                prop_assert_eq!(drops[0], expected);
            }
        }
    }
}
