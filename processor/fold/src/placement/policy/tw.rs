//! `tw`: the host and the GPU on which what will stay idle falls most, as learned tables say (terminal waste), less what is
//! taken away from rare requests. Made for filling a fleet; where requests come and go, `hybrid` is better.

use plimsoll_schemas::out::ScoreParts;

use super::fleet::{Fleet, GPUS_PER_HOST_MAX};
use super::host::Host;
use super::hybrid::STEP_MILLI;
use super::scarcity::Scarcity;
use super::shape::{Models, Shape};
use super::tables::{CENTI, Tables, Waste};
use super::{Bid, Policy};

/// Share of the places of rare requests that costs nothing, thousandths.
pub const FREE_SHARE: i64 = 400;

/// Terminal waste.
#[derive(Debug, Clone)]
pub struct Tw {
    tables: Tables,
    waste: Waste,
    scarcity: Scarcity,
}

impl Tw {
    /// With these tables, for requests like these.
    pub fn new(tables: &Tables, requests: &[(Shape, i64)]) -> Self {
        Self { tables: tables.clone(), waste: Waste::new(tables, &tables.models), scarcity: Scarcity::new(requests, FREE_SHARE) }
    }
}

impl Policy for Tw {
    fn name(&self) -> &'static str {
        "tw"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parts(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> Option<ScoreParts> {
        Some(ScoreParts {
            fragmentation_milli: 0,
            waste_milli: self.waste.drop(host, shape, gpus) / CENTI,
            scarcity_milli: self.scarcity.cost_milli(host, shape, gpus),
            power_mw: None,
        })
    }

    fn key_per_percent(&self) -> i64 {
        STEP_MILLI * CENTI
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let price = |gpus: u64| CENTI * self.scarcity.cost_milli(host, shape, gpus);
        if !shape.is_share() {
            let gpus = host.tightest(shape);
            return Bid { key: self.waste.drop(host, shape, gpus) - price(gpus), gpus };
        }
        let (mut lefts, mut first, mut drops) = ([0; GPUS_PER_HOST_MAX], [0; GPUS_PER_HOST_MAX], [0; GPUS_PER_HOST_MAX]);
        let mut count = 0;
        for (gpu, left) in host.distinct(shape.milli) {
            (lefts[count], first[count]) = (left, gpu);
            count += 1;
        }
        self.waste.drops_of_share(host, shape, &lefts[..count], &mut drops[..count]);
        let bids = first[..count].iter().zip(&drops).map(|(&gpu, &drop)| Bid { key: drop - price(1 << gpu), gpus: 1 << gpu });
        bids.reduce(|best, bid| if bid.key > best.key { bid } else { best }).unwrap_or(Bid { key: 0, gpus: 0 })
    }

    fn start(&mut self, fleet: &Fleet) {
        self.waste = Waste::new(&self.tables, fleet.models());
        self.scarcity.start(fleet);
    }

    fn before_change(&mut self, host: &Host<'_>) {
        self.scarcity.before_change(host);
    }

    fn after_change(&mut self, host: &Host<'_>) -> Models {
        self.scarcity.after_change(host)
    }
}
