//! `random`: any host on which the request fits, each equally likely, and any GPU with room. To compare with.

use super::draw::mix;
use super::host::Host;
use super::shape::Shape;
use super::{Bid, Policy};

/// Random, from a seed.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    turn: u64,
}

impl Random {
    /// The same seed gives the same places.
    pub fn new(seed: u64) -> Self {
        Self::at(seed, 0)
    }

    /// The same after so many turns.
    pub fn at(seed: u64, turn: u64) -> Self {
        Self { seed: mix(seed), turn }
    }

    fn number(&self, host: usize, gpu: usize) -> u64 {
        mix(self.seed ^ mix(self.turn ^ mix((host as u64) << 8 | gpu as u64)))
    }
}

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let gpus = match host.with_room(shape.milli).max_by_key(|&(gpu, _)| self.number(host.index, gpu)) {
            Some((gpu, _)) if shape.is_share() => 1 << gpu,
            Some(_) | None => host.tightest(shape),
        };
        Bid { key: (self.number(host.index, 0xff) >> 1) as i64, gpus }
    }

    fn bids_last(&self) -> bool {
        false
    }

    fn next_turn(&mut self) {
        self.turn += 1;
    }
}
