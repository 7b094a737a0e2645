//! Placement policies: which host, and which part of which GPU, takes a request. Integers only; the same fleet and the same
//! requests give the same places, in whatever order the hosts were named.
//!
//! A policy bids for one host at a time and does not know the others. `Placer` asks the hosts and takes the first greatest bid.

pub mod draw;
pub mod shape;
pub mod host;
pub mod fleet;
pub mod typical;
pub mod mix;
pub mod fragmentation;
pub mod placer;
mod double;
pub mod random;
pub mod by_score;
pub mod fit;
pub mod dot_product;
pub mod gpu_packing;
pub mod gpu_clustering;
pub mod sigmoid;
mod level;
pub mod fgd;
pub mod tables;
pub mod scarcity;
pub mod ahead;
pub mod tw;
pub mod hybrid;
pub mod power;
pub mod catalogue;
pub mod learn;
pub mod curve;
pub mod workload;
pub mod lesson;
pub mod train;
pub mod recorded;
pub mod backtest;
#[cfg(test)]
mod laws;

use fleet::Fleet;
use host::Host;
use plimsoll_schemas::out::ScoreParts;
use shape::{Models, Shape};

/// What a policy would do with a shape on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bid {
    /// The greater wins; of equals the host that comes first.
    pub key: i64,
    /// The GPUs it would take: bit i = GPU i.
    pub gpus: u64,
}

/// A way to choose among hosts.
pub trait Policy {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Its version: whoever changes a decision changes it.
    fn version(&self) -> u32;

    /// Its bid for a host on which the shape fits.
    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid;

    /// What its bid for these GPUs is made of, where it weighs parts.
    fn parts(&self, _host: &Host<'_>, _shape: &Shape, _gpus: u64) -> Option<ScoreParts> {
        None
    }

    /// What a key is worth, in millionths of the policy's unit.
    fn worth_micro(&self, key: i64) -> i64 {
        key.saturating_mul(1_000_000)
    }

    /// How much of a key is a hundredth of the most that power can count.
    fn key_per_percent(&self) -> i64 {
        1
    }

    /// Whether a bid stays the same as long as the host stays the same, and depends on nothing else of the host but what is left.
    fn bids_last(&self) -> bool {
        true
    }

    /// Called before the start of a rehearsal, in which nothing leaves.
    fn rehearse(&mut self) {}

    /// Called once, with the fleet as it is.
    fn start(&mut self, _fleet: &Fleet) {}

    /// Called before each decision.
    fn next_turn(&mut self) {}

    /// Called with a host that is about to change.
    fn before_change(&mut self, _host: &Host<'_>) {}

    /// Called with a host that has changed. Comes back with the models for whose hosts no earlier bid holds.
    fn after_change(&mut self, _host: &Host<'_>) -> Models {
        Models::NONE
    }
}
