//! `fgd`: the host and the GPU on which fragmentation falls most, or grows least. As published: in percent of a logistic
//! function, so that amounts closer than about 40 thousandths of a GPU are equal, and the first host wins.
//!
//! Source: Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", USENIX
//! ATC 2023.

use plimsoll_schemas::out::ScoreParts;

use super::fleet::{GPUS_PER_HOST_MAX, MILLI};
use super::fragmentation::Fragmentation;
use super::host::Host;
use super::level::Level;
use super::shape::Shape;
use super::sigmoid::Sigmoid;
use super::typical::Typical;
use super::{Bid, Policy};

/// Fragmentation gradient descent.
#[derive(Debug, Clone)]
pub struct Fgd {
    fragmentation: Fragmentation,
    sigmoid: Sigmoid,
    level: Level,
}

impl Fgd {
    /// Against this mix of requests.
    pub fn new(typical: &Typical) -> Self {
        let fragmentation = Fragmentation::new(typical);
        let sigmoid = Sigmoid::per(fragmentation.weight() * i64::from(MILLI));
        Self { fragmentation, sigmoid, level: Level::new(typical) }
    }

    fn key(&self, host: &Host<'_>, shape: &Shape, gpus: u64, drop: i64) -> i64 {
        self.sigmoid.percent(drop) - i64::from(drop == 0 && self.level.seen_as_loss(host, shape, gpus))
    }
}

impl Policy for Fgd {
    fn name(&self) -> &'static str {
        "fgd"
    }

    fn version(&self) -> u32 {
        1
    }

    fn parts(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> Option<ScoreParts> {
        let fragmentation_milli = self.fragmentation.drop(host, shape, gpus) / self.fragmentation.weight();
        Some(ScoreParts { fragmentation_milli, waste_milli: 0, scarcity_milli: 0, power_mw: None })
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        if !shape.is_share() {
            let gpus = host.tightest(shape);
            return Bid { key: self.key(host, shape, gpus, self.fragmentation.drop(host, shape, gpus)), gpus };
        }
        let (mut lefts, mut first, mut drops) = ([0; GPUS_PER_HOST_MAX], [0; GPUS_PER_HOST_MAX], [0; GPUS_PER_HOST_MAX]);
        let mut count = 0;
        for (gpu, left) in host.distinct(shape.milli) {
            (lefts[count], first[count]) = (left, gpu);
            count += 1;
        }
        self.fragmentation.drops_of_share(host, shape, &lefts[..count], &mut drops[..count]);
        let mut best = Bid { key: i64::MIN + 1, gpus: 0 };
        for (&gpu, &drop) in first[..count].iter().zip(&drops) {
            let key = self.key(host, shape, 1 << gpu, drop);
            if key > best.key {
                best = Bid { key, gpus: 1 << gpu };
            }
        }
        best
    }
}
