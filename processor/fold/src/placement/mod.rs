//! Placement: gates, then scores, then a choice. Pure functions over candidates; the fold keeps the leases.
//!
//! Nothing here reads a clock, draws a number or keeps state: the same candidates and the same request give the same choice, in
//! whatever order the candidates come. So the processor decides with it, and query answers "what if" with it.

pub mod vram;
pub mod score;
pub mod balanced;
pub mod reputation;
pub mod reliability;
pub mod shards;
pub mod ask;
pub mod candidate;
pub mod mig;
pub mod cell;
pub mod answers;
pub mod plan;
pub mod why;
pub mod select;
pub mod distribute;
pub mod lease;
pub mod policy;
pub mod openb;
#[cfg(test)]
mod laws;

use plimsoll_schemas::reason::Reason;

/// Thresholds of placement, changed by a control record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Settings {
    /// Share of a GPU's memory that may be reserved, basis points 1..=10000.
    pub vram_limit_bp: u32,
}

impl Default for Settings {
    /// All of a GPU's memory may be reserved.
    fn default() -> Self {
        Self { vram_limit_bp: vram::LIMIT_BP_MAX }
    }
}

/// A request that ends without being carried out: the closed reason for counting, and the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Refused {
    /// For counting.
    pub reason: Reason,
    /// What, where and what was allowed.
    pub detail: String,
}

impl Refused {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
