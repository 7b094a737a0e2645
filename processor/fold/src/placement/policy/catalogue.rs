//! The policies by name.

use super::Policy;
use super::by_score::ByScore;
use super::dot_product::DotProduct;
use super::fgd::Fgd;
use super::fit::{BestFit, FirstFit, WorstFit};
use super::gpu_clustering::GpuClustering;
use super::gpu_packing::GpuPacking;
use super::hybrid::{self, Hybrid};
use super::power::modified;
use super::random::Random;
use super::shape::Shape;
use super::tables::Tables;
use super::tw::Tw;
use super::typical::Typical;

/// A policy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Anywhere.
    Random,
    /// The first host.
    FirstFit,
    /// The fullest host.
    BestFit,
    /// The emptiest host.
    WorstFit,
    /// The host least in the request's direction.
    DotProduct,
    /// GPUs in use first.
    GpuPacking,
    /// Classes together.
    GpuClustering,
    /// Least fragmentation.
    Fgd,
    /// Least terminal waste.
    Tw,
    /// Both: the default.
    Hybrid,
    /// The most room by telemetry.
    Headroom,
    /// A balance of what telemetry says.
    Balanced,
    /// The most reliable.
    Reliability,
}

/// What policies are made of. Not every policy needs all of it.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The mix of requests.
    pub typical: &'a Typical,
    /// The recorded requests: each shape, and how often it came.
    pub requests: &'a [(Shape, i64)],
    /// What was learned.
    pub tables: &'a Tables,
    /// Seed of `random`.
    pub seed: u64,
    /// Turns that `random` has had.
    pub turn: u64,
}

impl Name {
    /// All of them, those by capacity first.
    pub const ALL: [Self; 13] = [
        Self::Random,
        Self::FirstFit,
        Self::BestFit,
        Self::WorstFit,
        Self::DotProduct,
        Self::GpuPacking,
        Self::GpuClustering,
        Self::Fgd,
        Self::Tw,
        Self::Hybrid,
        Self::Headroom,
        Self::Balanced,
        Self::Reliability,
    ];

    /// Those that look at capacity alone, simplest first.
    pub const BY_CAPACITY: [Self; 10] = [
        Self::Random,
        Self::FirstFit,
        Self::BestFit,
        Self::WorstFit,
        Self::DotProduct,
        Self::GpuPacking,
        Self::GpuClustering,
        Self::Fgd,
        Self::Tw,
        Self::Hybrid,
    ];

    /// The snake_case name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::FirstFit => "first_fit",
            Self::BestFit => "best_fit",
            Self::WorstFit => "worst_fit",
            Self::DotProduct => "dot_product",
            Self::GpuPacking => "gpu_packing",
            Self::GpuClustering => "gpu_clustering",
            Self::Fgd => "fgd",
            Self::Tw => "tw",
            Self::Hybrid => "hybrid",
            Self::Headroom => "headroom",
            Self::Balanced => "balanced",
            Self::Reliability => "reliability",
        }
    }

    /// Whether it needs tables.
    pub const fn learns(self) -> bool {
        match self {
            Self::Tw | Self::Hybrid => true,
            Self::Random
            | Self::FirstFit
            | Self::BestFit
            | Self::WorstFit
            | Self::DotProduct
            | Self::GpuPacking
            | Self::GpuClustering
            | Self::Fgd
            | Self::Headroom
            | Self::Balanced
            | Self::Reliability => false,
        }
    }

    /// Whether its bids can be weighed against anything: lots cannot.
    pub fn weighs(self) -> bool {
        self != Self::Random
    }

    /// Whether it goes by what telemetry says of GPUs.
    pub fn goes_by_telemetry(self) -> bool {
        !Self::BY_CAPACITY.contains(&self)
    }

    /// The policy of this name, if there is one.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.code() == code)
    }

    /// The policy.
    pub fn policy(self, parts: Parts<'_>) -> Box<dyn Policy + Send> {
        match self {
            Self::Random => Box::new(Random::at(parts.seed, parts.turn)),
            Self::FirstFit => Box::new(FirstFit),
            Self::BestFit => Box::new(BestFit),
            Self::WorstFit => Box::new(WorstFit),
            Self::DotProduct => Box::new(DotProduct),
            Self::GpuPacking => Box::new(GpuPacking),
            Self::GpuClustering => Box::new(GpuClustering),
            Self::Fgd => Box::new(Fgd::new(parts.typical)),
            Self::Tw => Box::new(Tw::new(parts.tables, parts.requests)),
            Self::Hybrid => Box::new(Hybrid::new(parts.typical, parts.tables, parts.requests, hybrid::Settings::default())),
            Self::Headroom | Self::Balanced | Self::Reliability => Box::new(ByScore { name: self.code() }),
        }
    }
}

/// Who bids: a policy, and how much power counts besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bidder {
    /// The policy.
    pub policy: Name,
    /// How many of 100 parts of a decision power has; the policy has the others.
    pub power_weight: u32,
}

impl Bidder {
    /// A policy to which power counts for nothing.
    pub const fn alone(policy: Name) -> Self {
        Self { policy, power_weight: 0 }
    }

    /// The policy with what counts besides.
    pub fn made_of(self, parts: Parts<'_>) -> Box<dyn Policy + Send> {
        modified(self.policy.policy(parts), self.power_weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_is_found_under_the_name_it_gives_itself() {
        let (typical, tables) = (Typical::default(), Tables::untaught(&[]));
        for name in Name::ALL {
            assert_eq!(Name::from_code(name.code()), Some(name));
            let policy = name.policy(Parts { typical: &typical, requests: &[], tables: &tables, seed: 0, turn: 0 });
            assert_eq!((policy.name(), policy.bids_last()), (name.code(), name.weighs()));
        }
    }
}
