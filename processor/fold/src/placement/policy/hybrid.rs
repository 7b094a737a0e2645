//! `hybrid`, the default: what fragmentation falls by and what will no longer stay idle, less what is taken away from rare
//! requests; in steps of 40 thousandths of a GPU, and of equals the first host. What will no longer stay idle counts only as long
//! as a filling is ahead. So it fills a fleet better than `fgd`, and where requests come and go it loses no more of them.

use plimsoll_schemas::out::ScoreParts;

use super::ahead::Ahead;
use super::fleet::{Fleet, GPUS_PER_HOST_MAX};
use super::fragmentation::Fragmentation;
use super::host::Host;
use super::scarcity::Scarcity;
use super::shape::{Models, Shape};
use super::tables::{CENTI, Tables, Waste};
use super::typical::Typical;
use super::{Bid, Policy};

/// Amounts closer than this are equal to `hybrid@1`, thousandths of a GPU.
pub const STEP_MILLI: i64 = 40;

/// How much each part counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Amounts closer than this are equal, thousandths of a GPU.
    pub step_milli: i64,
    /// Share of the fall of fragmentation that counts, percent.
    pub fragmentation_percent: i64,
    /// Share of the fall of terminal waste that counts while a filling is ahead, percent.
    pub waste_percent: i64,
    /// Share of the places of rare requests that costs nothing, thousandths.
    pub free_share: i64,
}

impl Default for Settings {
    /// What `hybrid@1` is.
    fn default() -> Self {
        Self { step_milli: STEP_MILLI, fragmentation_percent: 100, waste_percent: 100, free_share: 200 }
    }
}

/// Fragmentation and terminal waste.
#[derive(Debug, Clone)]
pub struct Hybrid {
    settings: Settings,
    fragmentation: Fragmentation,
    tables: Tables,
    waste: Waste,
    ahead: Ahead,
    /// Share of the fall of terminal waste that counts now, percent.
    counts_percent: i64,
    /// Nothing will leave.
    rehearses: bool,
    scarcity: Scarcity,
}

impl Hybrid {
    /// Against this mix, with these tables, for requests like these.
    pub fn new(typical: &Typical, tables: &Tables, requests: &[(Shape, i64)], settings: Settings) -> Self {
        Self {
            settings,
            fragmentation: Fragmentation::new(typical),
            tables: tables.clone(),
            waste: Waste::new(tables, &tables.models),
            ahead: Ahead::default(),
            counts_percent: settings.waste_percent,
            rehearses: false,
            scarcity: Scarcity::new(requests, settings.free_share),
        }
    }

    /// Sets anew how much terminal waste counts, and says whether that changed.
    fn weigh(&mut self) -> bool {
        let percent = if self.rehearses || self.ahead.is_filling() { self.settings.waste_percent } else { 0 };
        std::mem::replace(&mut self.counts_percent, percent) != percent
    }

    /// All parts together, in steps.
    fn steps(&self, host: &Host<'_>, shape: &Shape, gpus: u64, fragmentation_drop: i64, waste_drop: i64) -> i64 {
        let weight = self.fragmentation.weight();
        let Settings { step_milli, fragmentation_percent, .. } = self.settings;
        let waste = self.counts_percent * waste_drop - 100 * CENTI * self.scarcity.cost_milli(host, shape, gpus);
        (fragmentation_percent * CENTI * fragmentation_drop + waste * weight).div_euclid(100 * step_milli * CENTI * weight)
    }
}

impl Policy for Hybrid {
    fn name(&self) -> &'static str {
        "hybrid"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parts(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> Option<ScoreParts> {
        Some(ScoreParts {
            fragmentation_milli: self.fragmentation.drop(host, shape, gpus) / self.fragmentation.weight(),
            waste_milli: self.counts_percent * self.waste.drop(host, shape, gpus) / (100 * CENTI),
            scarcity_milli: self.scarcity.cost_milli(host, shape, gpus),
            power_mw: None,
        })
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        if !shape.is_share() {
            let gpus = host.tightest(shape);
            let key = self.steps(host, shape, gpus, self.fragmentation.drop(host, shape, gpus), self.waste.drop(host, shape, gpus));
            return Bid { key, gpus };
        }
        let (mut lefts, mut first) = ([0; GPUS_PER_HOST_MAX], [0; GPUS_PER_HOST_MAX]);
        let (mut drops, mut waste_drops) = ([0; GPUS_PER_HOST_MAX], [0; GPUS_PER_HOST_MAX]);
        let mut count = 0;
        for (gpu, left) in host.distinct(shape.milli) {
            (lefts[count], first[count]) = (left, gpu);
            count += 1;
        }
        self.fragmentation.drops_of_share(host, shape, &lefts[..count], &mut drops[..count]);
        self.waste.drops_of_share(host, shape, &lefts[..count], &mut waste_drops[..count]);
        let bids = (0..count).map(|at| (self.steps(host, shape, 1 << first[at], drops[at], waste_drops[at]), lefts[at], first[at]));
        // Of equally good GPUs the one with the least left, then the first.
        match bids.reduce(|best, bid| if (bid.0, -bid.1) > (best.0, -best.1) { bid } else { best }) {
            Some((key, _, gpu)) => Bid { key, gpus: 1 << gpu },
            None => Bid { key: 0, gpus: 0 },
        }
    }

    fn rehearse(&mut self) {
        self.rehearses = true;
    }

    fn start(&mut self, fleet: &Fleet) {
        self.waste = Waste::new(&self.tables, fleet.models());
        self.ahead = Ahead::of(fleet, &self.waste);
        self.weigh();
        self.scarcity.start(fleet);
    }

    fn before_change(&mut self, host: &Host<'_>) {
        self.ahead.before_change(host, &self.waste);
        self.scarcity.before_change(host);
    }

    fn after_change(&mut self, host: &Host<'_>) -> Models {
        self.ahead.after_change(host, &self.waste);
        let charges = self.scarcity.after_change(host);
        if self.weigh() { Models::ANY } else { charges }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::{HostSpec, Place};
    use super::*;

    #[test]
    fn terminal_waste_counts_until_half_of_what_is_idle_is_expected_to_stay_idle_and_always_in_a_rehearsal() {
        let spec = HostSpec { name: "h".to_owned(), rank: 0, cpu_milli: 9_000, memory_mib: 0, gpus: 2, model: "G2".to_owned() };
        let share = Shape { cpu_milli: 0, memory_mib: 0, gpus: 1, milli: 300, models: Models::ANY };
        // Of what is left beside a share nothing will be used.
        let mut tables = Tables::untaught(&["G2".to_owned()]);
        tables.cells.iter_mut().filter(|cell| **cell == 21_000).for_each(|cell| *cell = 70_000);
        let check = |shares: usize, rehearses: bool, expected: bool| {
            let mut fleet = Fleet::new(vec![spec.clone()]).expect("valid");
            let mut hybrid = Hybrid::new(&Typical::default(), &tables, &[], Settings::default());
            if rehearses {
                hybrid.rehearse();
            }
            hybrid.start(&fleet);
            for gpu in 0..shares {
                hybrid.before_change(&fleet.host(0));
                fleet.place(Place { host: 0, gpus: 1 << gpu }, &share);
                // Whoever bid before is asked again where it made a difference.
                assert_eq!(hybrid.after_change(&fleet.host(0)) == Models::ANY, gpu == 1 && !rehearses);
            }
            let parts = hybrid.parts(&fleet.host(0), &share, 1).expect("parts");
            assert_eq!(parts.waste_milli != 0, expected, "{shares} {rehearses}: {parts:?}");
        };
        check(0, false, true);
        check(1, false, true);
        check(2, false, false);
        check(2, true, true);
    }
}
