//! Power as a modifier of any policy: of hosts that are worth about the same, the one where less that sleeps must be woken. A GPU
//! draws little while nothing is placed on it, and is taken to draw all its board allows as soon as anything is, however small;
//! a host draws something on top while any of its GPUs is in use. CPUs are left out.
//!
//! The score is 100 where nothing is woken, and 0 where that adds as much as it possibly could in this fleet. The weight says
//! how many of 100 parts of a decision it makes; the others are the policy's. What a policy's key is worth differs: a point of the score is
//! worth a percent of `fgd`'s or `headroom`'s, or 40 thousandths of a GPU in `hybrid` and `tw`.
//!
//! In a living cell what waking adds is worked out from the limits that GPUs announce. Of a GPU that announces none it is taken for the most
//! that any other adds: unknown is never free. Where none announces any, power does not count.
//!
//! Source: Lettich et al., "Power- and Fragmentation-aware Online Scheduling for GPU Datacenters", arXiv 2412.17484.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::out::ScoreParts;
use plimsoll_schemas::validate::POWER_MAX_MW;

use super::fleet::{Fleet, MILLI};
use super::host::Host;
use super::shape::{Models, Shape};
use super::{Bid, Policy};

/// The score where nothing is woken, and all parts of a decision.
const FULL: i64 = 100;
/// A GPU on which nothing is placed is taken to draw an eighth of what its board may: in the published table it is a tenth to a fifth.
const IDLE_PART: u32 = 8;

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
}

/// What waking a GPU adds whose board may draw so much, thousandths of a watt; absent where such a limit cannot be.
pub fn wakes_mw(limit_mw: u64) -> Option<u32> {
    let known = u32::try_from(limit_mw).ok().filter(|limit| (1..=POWER_MAX_MW).contains(&u64::from(*limit)));
    known.map(|limit| limit - limit / IDLE_PART)
}

/// Says of every host of a fleet what its model draws; one that nobody named draws nothing.
pub fn announce(fleet: &mut Fleet, powers: &Powers) {
    let within = |mw: i64| u32::try_from(mw.max(0)).unwrap_or(u32::MAX);
    let of_models = of_models(fleet, powers);
    for index in 0..fleet.len() {
        let draws = of_models[usize::from(fleet.host(index).model)];
        fleet.wakes(index, std::iter::repeat(Some(within(draws.active_mw - draws.idle_mw))), within(draws.host_mw));
    }
}

/// What each model of a fleet draws, by its number; one that nobody named draws nothing.
fn of_models(fleet: &Fleet, powers: &Powers) -> Vec<Draws> {
    fleet.models().iter().map(|model| powers.get(model).copied().unwrap_or_default()).collect()
}

/// A policy that also looks at power.
pub struct Powered {
    policy: Box<dyn Policy + Send>,
    weight_percent: i64,
    /// What waking a GPU of which nothing is known is taken to add: the most that any adds; 0 = nothing is known of any.
    unknown_mw: u32,
    /// What a GPU and its host add, where no other host has more of one and no less of the other.
    pairs: Vec<(u32, u32)>,
}

/// The policy itself where power counts for nothing, otherwise one that also looks at it, as far as the fleet says what waking adds. A policy
/// that draws lots gives no scores to weigh, and stays what it is.
pub fn modified(policy: Box<dyn Policy + Send>, weight_percent: u32) -> Box<dyn Policy + Send> {
    if weight_percent == 0 || !policy.bids_last() {
        return policy;
    }
    let weight_percent = i64::from(weight_percent).min(FULL);
    Box::new(Powered { policy, weight_percent, unknown_mw: 0, pairs: Vec::new() })
}

impl Powered {
    /// What taking these GPUs adds.
    fn added_mw(&self, host: &Host<'_>, gpus: u64) -> i64 {
        let wakes = |&(gpu, &left): &(usize, &i32)| gpus >> gpu & 1 == 1 && left == MILLI;
        let mw = |gpu: usize| i64::from(host.wakes_mw.get(gpu).copied().flatten().unwrap_or(self.unknown_mw));
        let mut woken = host.gpus.iter().enumerate().filter(wakes).peekable();
        let wakes_host = woken.peek().is_some() && host.gpus.iter().all(|&left| left == MILLI);
        woken.map(|(gpu, _)| mw(gpu)).sum::<i64>() + if wakes_host { i64::from(host.host_mw) } else { 0 }
    }

    /// 100 where nothing is woken, 0 where most is.
    fn score(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> i64 {
        let most = self.pairs.iter().map(|&(gpu, host)| i64::from(shape.gpus) * i64::from(gpu) + i64::from(host)).max().unwrap_or(0);
        FULL - FULL * self.added_mw(host, gpus) / most.max(1)
    }

    fn weighed(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let bid = self.policy.bid(host, shape);
        let power = self.policy.key_per_percent() * self.score(host, shape, bid.gpus);
        Bid { key: (FULL - self.weight_percent) * bid.key + self.weight_percent * power, ..bid }
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
        let parts = self.policy.parts(host, shape, gpus);
        if self.pairs.is_empty() {
            return parts;
        }
        Some(ScoreParts { power_mw: Some(self.added_mw(host, gpus).unsigned_abs()), ..parts.unwrap_or_default() })
    }

    fn worth_micro(&self, key: i64) -> i64 {
        self.policy.worth_micro(key) / FULL
    }

    fn rehearse(&mut self) {
        self.policy.rehearse();
    }

    fn start(&mut self, fleet: &Fleet) {
        let greatest = |host: &Host<'_>| host.wakes_mw.iter().copied().flatten().max();
        let pairs: BTreeSet<(u32, u32)> = fleet.hosts().filter_map(|host| Some((greatest(&host)?, host.host_mw))).collect();
        self.unknown_mw = pairs.last().map_or(0, |&(gpu, _)| gpu);
        self.pairs.clear();
        for &(gpu, host) in pairs.iter().rev() {
            if self.pairs.last().is_none_or(|&(_, before)| host > before) {
                self.pairs.push((gpu, host));
            }
        }
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
        let mut fleet = Fleet::new(models.into_iter().enumerate().map(spec).collect()).expect("valid");
        announce(&mut fleet, &powers());
        fleet
    }

    fn placer(fleet: Fleet, name: Name, weight_percent: u32) -> Placer {
        let (typical, tables) = (Typical::default(), Tables::untaught(&[]));
        let policy = name.policy(Parts { typical: &typical, requests: &[], tables: &tables, seed: 3, turn: 0 });
        Placer::new(fleet, modified(policy, weight_percent))
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
