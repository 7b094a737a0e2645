//! The guard of rare requests: of those for several GPUs or for certain models, it counts how many the fleet could still host
//! and how many are to be expected. Where places run short, a placement that takes one away pays for it.

use std::collections::BTreeMap;

use super::fleet::Fleet;
use super::host::Host;
use super::shape::{Models, Shape};

/// Steps from no charge to the full one.
const STEPS: i64 = 4;
/// One, in thousandths.
const ONE: i64 = 1_000;

/// One kind of rare request.
#[derive(Debug, Clone)]
struct Watched {
    shape: Shape,
    /// How many of the recorded requests had it.
    count: i64,
    /// How many the fleet could host now.
    places: i64,
    /// Charge for each place taken away, in steps.
    step: i64,
}

/// Watches the places of rare requests.
#[derive(Debug, Clone)]
pub struct Scarcity {
    watched: Vec<Watched>,
    /// Those with a charge: what they ask for, and thousandths of GPU to be paid per place.
    charged: Vec<(Shape, i64)>,
    /// Thousandths of GPU asked for by all recorded requests.
    asked_milli: i64,
    /// Share of the places that may be needed before a charge begins, thousandths.
    free_share: i64,
    idle_milli: i64,
}

impl Scarcity {
    /// For the recorded requests: each shape, and how often it came. Charges begin where more than `free_share` thousandths of the places will be needed.
    pub fn new(requests: &[(Shape, i64)], free_share: i64) -> Self {
        let (mut counts, mut asked_milli) = (BTreeMap::new(), 0);
        for (shape, count) in requests {
            asked_milli += count * shape.total_milli();
            if shape.gpus > 1 || (shape.gpus > 0 && shape.models.is_constraint()) {
                // Memory of the host is seldom what is short; without it fewer kinds are to be watched.
                *counts.entry(Shape { memory_mib: 0, ..*shape }).or_insert(0) += count;
            }
        }
        let watched = counts.into_iter().map(|(shape, count)| Watched { shape, count, places: 0, step: 0 }).collect();
        Self { watched, charged: Vec::new(), asked_milli: asked_milli.max(1), free_share: free_share.clamp(0, ONE - 1), idle_milli: 0 }
    }

    /// Counts the places on a fleet.
    pub fn start(&mut self, fleet: &Fleet) {
        self.watched.iter_mut().for_each(|watched| watched.places = 0);
        self.idle_milli = 0;
        fleet.hosts().for_each(|host| self.count(&host, 1));
        self.charge();
    }

    /// A host is about to change.
    pub fn before_change(&mut self, host: &Host<'_>) {
        self.count(host, -1);
    }

    /// A host has changed. Comes back with the models for which some charge did too.
    pub fn after_change(&mut self, host: &Host<'_>) -> Models {
        self.count(host, 1);
        self.charge()
    }

    /// What a placement of the shape on these GPUs costs, thousandths of a GPU.
    pub fn cost_milli(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> i64 {
        if self.charged.is_empty() {
            return 0;
        }
        let left_after = |gpu: usize, left: i32| left - shape.milli * (gpus >> gpu & 1) as i32;
        let cost = |(rare, charge): &(Shape, i64)| {
            let before = places(host, rare, host.cpu_milli, |_, left| left);
            let after = if before > 0 { places(host, rare, host.cpu_milli - shape.cpu_milli, left_after) } else { 0 };
            charge * (before - after)
        };
        self.charged.iter().map(cost).sum()
    }

    fn count(&mut self, host: &Host<'_>, sign: i64) {
        self.idle_milli += sign * host.idle_milli;
        for watched in &mut self.watched {
            watched.places += sign * places(host, &watched.shape, host.cpu_milli, |_, left| left);
        }
    }

    /// Sets the charges anew, and comes back with the models on which one changed. Charges depend on nothing but the fleet as it is.
    fn charge(&mut self) -> Models {
        let mut changed = Models::NONE;
        for watched in &mut self.watched {
            let step = step(watched.count, self.idle_milli, self.asked_milli, watched.places, self.free_share);
            if step != watched.step {
                changed.0 |= watched.shape.models.0;
            }
            watched.step = step;
        }
        if changed != Models::NONE {
            let with_charge = self.watched.iter().filter(|watched| watched.step > 0);
            self.charged = with_charge.map(|watched| (watched.shape, watched.step * watched.shape.total_milli() / STEPS)).collect();
        }
        changed
    }
}

/// The charge for a kind of request: none while its need, and a margin of two standard deviations, is a small share of the places.
fn step(count: i64, idle_milli: i64, asked_milli: i64, places: i64, free_share: i64) -> i64 {
    if places == 0 {
        return 0;
    }
    let expected = count.saturating_mul(idle_milli).saturating_mul(ONE) / asked_milli;
    let margin = 2 * (expected * ONE).max(0).isqrt();
    let used = (expected + margin) / places;
    if used <= free_share { 0 } else { (1 + (used - free_share) * STEPS / (ONE - free_share)).min(STEPS) }
}

/// How many requests of a shape a host could take, with this much CPU and these amounts left.
fn places(host: &Host<'_>, rare: &Shape, cpu_milli: i64, left: impl Fn(usize, i32) -> i32) -> i64 {
    if host.excluded || !rare.models.allow(host.model) || cpu_milli < rare.cpu_milli || host.idle_milli < rare.total_milli() {
        return 0;
    }
    let fit: i64 = host.gpus.iter().enumerate().map(|(gpu, &now)| i64::from(left(gpu, now) / rare.milli)).sum();
    // Whole GPUs count once, parts as often as they fit; several parts on one GPU are no several GPUs, which matters little.
    let by_gpu = fit / i64::from(rare.gpus);
    if rare.cpu_milli > 0 { by_gpu.min(cpu_milli / rare.cpu_milli) } else { by_gpu }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{HostSpec, Place};
    use super::super::shape::counted;
    use super::*;

    #[test]
    fn the_charge_grows_as_places_run_short() {
        // 9 expected and a margin of 6: 15.
        let check = |places: i64, expected: i64| assert_eq!(step(9, 100, 100, places, 200), expected, "{places}");
        check(0, 0);
        check(75, 0);
        check(74, 1);
        check(37, 2);
        check(15, 4);
        check(1, 4);
    }

    #[test]
    fn what_takes_the_last_places_of_a_rare_request_pays_and_a_change_of_charge_is_told() {
        let host = |name: &str| HostSpec { name: name.to_owned(), rank: 0, cpu_milli: 64_000, memory_mib: 0, gpus: 2, model: "G2".to_owned() };
        let mut fleet = Fleet::new(vec![host("a"), host("b")]).expect("valid");
        let pair = Shape { cpu_milli: 32_000, memory_mib: 0, gpus: 2, milli: 1_000, models: Models::ANY };
        let share = Shape { cpu_milli: 1_000, memory_mib: 0, gpus: 1, milli: 500, models: Models::ANY };
        let requests: Vec<Shape> = std::iter::repeat_n(share, 60).chain([pair]).collect();
        let mut scarcity = Scarcity::new(&counted(&requests), 400);
        scarcity.start(&fleet);
        assert_eq!(scarcity.cost_milli(&fleet.host(0), &share, 1), 500);
        let place = Place { host: 0, gpus: 1 };
        scarcity.before_change(&fleet.host(0));
        fleet.place(place, &share);
        assert_eq!(scarcity.after_change(&fleet.host(0)), Models::ANY);
        assert_eq!(scarcity.cost_milli(&fleet.host(0), &share, 1), 0);
        assert_eq!(scarcity.cost_milli(&fleet.host(1), &share, 1), 1_500);
    }
}
