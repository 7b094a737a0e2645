//! Power as a modifier of any policy: of hosts that are worth about the same, the one where less that sleeps must be woken. A GPU
//! draws little while nothing is placed on it, and is taken to draw all its board allows as soon as anything is, however small;
//! a host draws something on top while any of its GPUs is in use. CPUs are left out.
//!
//! The score is 100 where nothing is woken, and 0 where that adds as much as it possibly could in this fleet. The weight says
//! how many of 100 parts of a decision it makes; the others are the policy's. What a policy's key is worth differs: 1 is a percent of
//! `fgd`'s score, or 40 thousandths of a GPU in `hybrid`.
//!
//! Source: Lettich et al., "Power- and Fragmentation-aware Online Scheduling for GPU Datacenters", arXiv 2412.17484.

use std::collections::BTreeMap;

use plimsoll_schemas::out::ScoreParts;

use super::fleet::{Fleet, MILLI};
use super::host::Host;
use super::shape::{Models, Shape};
use super::{Bid, Policy};

/// The score where nothing is woken, and all parts of a decision.
const FULL: i64 = 100;

/// What a GPU of a model draws, thousandths of a watt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Draws {
    /// With nothing placed on it.
    pub idle_mw: i64,
    /// With anything placed on it.
    pub active_mw: i64,
    /// What its host draws on top while any of its GPUs is in use.
    pub host_mw: i64,
}

/// What GPUs draw, by model.
pub type Powers = BTreeMap<String, Draws>;

impl Draws {
    /// What a host with this left draws.
    fn of(&self, gpus: &[i32]) -> i64 {
        let active = gpus.iter().filter(|&&left| left < MILLI).count() as i64;
        active * self.active_mw + (gpus.len() as i64 - active) * self.idle_mw + if active > 0 { self.host_mw } else { 0 }
    }

    /// What taking these GPUs adds.
    fn added(&self, host: &Host<'_>, gpus: u64) -> i64 {
        let woken = host.gpus.iter().enumerate().filter(|&(gpu, &left)| gpus >> gpu & 1 == 1 && left == MILLI).count() as i64;
        let wakes_host = woken > 0 && host.gpus.iter().all(|&left| left == MILLI);
        woken * self.step() + if wakes_host { self.host_mw } else { 0 }
    }

    /// What waking one GPU adds.
    fn step(&self) -> i64 {
        (self.active_mw - self.idle_mw).max(0)
    }
}

/// What each model of a fleet draws, by its number; one that nobody named draws nothing.
fn of_models(fleet: &Fleet, powers: &Powers) -> Vec<Draws> {
    fleet.models().iter().map(|model| powers.get(model).copied().unwrap_or_default()).collect()
}

/// A policy that also looks at power.
pub struct Powered {
    policy: Box<dyn Policy + Send>,
    powers: Powers,
    weight_percent: i64,
    draws: Vec<Draws>,
}

/// The policy itself where power counts for nothing, otherwise one that also looks at it. A policy that draws lots gives no scores to
/// weigh, and stays what it is.
pub fn modified(policy: Box<dyn Policy + Send>, powers: &Powers, weight_percent: u32) -> Box<dyn Policy + Send> {
    if weight_percent == 0 || !policy.bids_last() {
        return policy;
    }
    let weight_percent = i64::from(weight_percent).min(FULL);
    Box::new(Powered { policy, powers: powers.clone(), weight_percent, draws: Vec::new() })
}

impl Powered {
    /// 100 where nothing is woken, 0 where most is.
    fn score(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> i64 {
        let most = self.draws.iter().map(|draws| i64::from(shape.gpus) * draws.step() + draws.host_mw).max().unwrap_or(0);
        let added = self.draws.get(usize::from(host.model)).map_or(0, |draws| draws.added(host, gpus));
        FULL - FULL * added / most.max(1)
    }

    fn weighed(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let bid = self.policy.bid(host, shape);
        let key = (FULL - self.weight_percent) * bid.key + self.weight_percent * self.score(host, shape, bid.gpus);
        Bid { key, ..bid }
    }
}

impl Policy for Powered {
    fn name(&self) -> &'static str {
        self.policy.name()
    }

    fn version(&self) -> u32 {
        self.policy.version()
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let best = self.weighed(host, shape);
        let asleep = host.gpus.iter().enumerate().filter(|&(_, &left)| left == MILLI).fold(0_u64, |set, (gpu, _)| set | 1 << gpu);
        if best.gpus & asleep == 0 {
            return best;
        }
        // Where it would wake one: what it would do with those that are awake.
        let awake = Host { open: host.open & !asleep, ..*host };
        if awake.fits(shape).is_err() {
            return best;
        }
        let other = self.weighed(&awake, shape);
        if other.key > best.key { other } else { best }
    }

    fn parts(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> Option<ScoreParts> {
        self.policy.parts(host, shape, gpus)
    }

    fn micro_per_key(&self) -> i64 {
        (self.policy.micro_per_key() / FULL).max(1)
    }

    fn rehearse(&mut self) {
        self.policy.rehearse();
    }

    fn start(&mut self, fleet: &Fleet) {
        self.draws = of_models(fleet, &self.powers);
        self.policy.start(fleet);
    }

    fn before_change(&mut self, host: &Host<'_>) {
        self.policy.before_change(host);
    }

    fn after_change(&mut self, host: &Host<'_>) -> Models {
        self.policy.after_change(host)
    }
}

/// Estimates what a fleet draws, as it changes.
#[derive(Debug, Clone)]
pub struct Meter {
    draws: Vec<Draws>,
    /// By host.
    mw: Vec<i64>,
    total_mw: i64,
}

impl Meter {
    /// On a fleet. Absent where it has a model that nobody named.
    pub fn new(fleet: &Fleet, powers: &Powers) -> Option<Self> {
        if fleet.models().iter().any(|model| !powers.contains_key(model)) {
            return None;
        }
        let draws = of_models(fleet, powers);
        let mw: Vec<i64> = fleet.hosts().map(|host| draws[usize::from(host.model)].of(host.gpus)).collect();
        Some(Self { total_mw: mw.iter().sum(), mw, draws })
    }

    /// A host has changed.
    pub fn changed(&mut self, host: &Host<'_>) {
        let now = self.draws[usize::from(host.model)].of(host.gpus);
        self.total_mw += now - std::mem::replace(&mut self.mw[host.index], now);
    }

    /// What the fleet draws now, thousandths of a watt.
    pub fn mw(&self) -> i64 {
        self.total_mw
    }
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::{Name, Parts};
    use super::super::fleet::{HostSpec, Place};
    use super::super::placer::Placer;
    use super::super::tables::Tables;
    use super::super::typical::Typical;
    use super::*;

    fn powers() -> Powers {
        let draws = |idle_mw, active_mw, host_mw| Draws { idle_mw, active_mw, host_mw };
        [("A", draws(30, 150, 0)), ("B", draws(50, 400, 60))].map(|(model, draws)| (model.to_owned(), draws)).into()
    }

    fn fleet(models: [&str; 2]) -> Fleet {
        let spec = |(rank, model): (usize, &str)| HostSpec {
            name: format!("h{rank}"),
            rank: rank as u32,
            cpu_milli: 64_000,
            memory_mib: 0,
            gpus: 2,
            model: model.to_owned(),
        };
        Fleet::new(models.into_iter().enumerate().map(spec).collect()).expect("valid")
    }

    fn placer(fleet: Fleet, name: Name, weight_percent: u32) -> Placer {
        let (typical, tables) = (Typical::default(), Tables::untaught(&[]));
        let policy = name.policy(Parts { typical: &typical, requests: &[], tables: &tables, seed: 3, turn: 0 });
        Placer::new(fleet, modified(policy, &powers(), weight_percent))
    }

    const fn asked(gpus: u32, milli: i32) -> Shape {
        Shape { cpu_milli: 0, memory_mib: 0, gpus, milli, models: Models::ANY }
    }

    #[test]
    fn of_hosts_worth_the_same_the_one_that_is_awake_or_adds_less_is_taken() {
        // Which GPUs are in use on the second host, which `first_fit` takes only if the first one counts for less.
        let check = |models: [&str; 2], in_use: u64, shape: Shape, weight_percent: u32, expected: (usize, u64)| {
            let mut placer = placer(fleet(models), Name::FirstFit, weight_percent);
            if in_use > 0 {
                let place = Place { host: 1, gpus: in_use };
                placer.take(place, &Shape { gpus: in_use.count_ones(), ..asked(1, 400) });
            }
            let (host, gpus) = expected;
            assert_eq!(placer.choose(&shape), Some(Place { host, gpus }), "{models:?} {in_use:b} {shape:?} {weight_percent}");
        };
        check(["A", "A"], 0b10, asked(1, 500), 0, (0, 0b01));
        check(["A", "A"], 0b10, asked(1, 500), 10, (1, 0b10));
        // Too much for what is awake: both would wake one.
        check(["A", "A"], 0b10, asked(1, 700), 10, (0, 0b01));
        // Where the host is awake, only the GPU is woken.
        check(["B", "B"], 0b10, asked(1, 700), 10, (1, 0b01));
        check(["B", "A"], 0, asked(2, 1_000), 10, (1, 0b11));
        check(["A", "B"], 0, asked(2, 1_000), 10, (0, 0b11));
        // Who asks for no GPU wakes none.
        check(["B", "A"], 0, asked(0, 0), 10, (0, 0));
    }

    #[test]
    fn without_a_weight_every_policy_decides_as_before_and_with_one_the_estimate_is_kept() {
        for name in Name::BY_CAPACITY {
            let (mut with, mut without) = (placer(fleet(["A", "B"]), name, 0), placer(fleet(["A", "B"]), name, 0));
            let mut heeding = placer(fleet(["A", "B"]), name, 30);
            let mut meter = Meter::new(heeding.fleet(), &powers()).expect("both models are named");
            assert_eq!(meter.mw(), 2 * 30 + 2 * 50);
            for shape in [asked(1, 300), asked(0, 0), asked(1, 1_000), asked(1, 500), asked(2, 1_000), asked(1, 600)] {
                assert_eq!(with.place(&shape), without.place(&shape), "{name:?}");
                if let Some(place) = heeding.place(&shape) {
                    meter.changed(&heeding.fleet().host(place.host));
                }
                let again = Meter::new(heeding.fleet(), &powers()).expect("both models are named");
                assert_eq!(meter.mw(), again.mw(), "{name:?}");
            }
        }
        assert!(Meter::new(&fleet(["A", "C"]), &powers()).is_none());
    }
}
