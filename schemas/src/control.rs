//! What changes how the log is folded (`log.control`), and the beats that keep it moving (`log.tick`, `log.check`). JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{GpuUuid, HostId, Position};

/// One control record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Make hosts placeable.
    Enrol {
        /// The hosts; empty = every host of the cell, now and later.
        hosts: Vec<HostId>,
    },
    /// Take a host's enrolment back.
    Expel {
        /// The host.
        host: HostId,
    },
    /// Take hosts or GPUs out of service for new placements.
    Cordon(Cordon),
    /// Put them back.
    Uncordon(Cordon),
    /// An operator's word that a GPU is free, whatever telemetry says.
    Free {
        /// The GPU.
        uuid: GpuUuid,
    },
    /// Everything up to `position` stands in the archive under manifest `version`.
    Sealed {
        /// Manifest version.
        version: u64,
        /// Last position whose rows it holds.
        position: Position,
    },
    /// Change thresholds of the fold; absent = unchanged.
    Settings(Settings),
}

/// What to cordon: a host, or one GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cordon {
    /// The whole host.
    Host(HostId),
    /// One GPU.
    Gpu(GpuUuid),
}

/// Thresholds of the fold; absent = unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Share of a GPU's memory that may be reserved, basis points 1..=10000.
    pub vram_limit_bp: Option<u32>,
    /// Memory in use below which a drained GPU counts as free, bytes.
    pub free_memory_bytes_max: Option<u64>,
    /// How long a drained GPU must look free, ms.
    pub free_after_ms: Option<u64>,
}

/// The active processor's beat, one each second, so that a quiet log still moves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tick {
    /// Which replica sent it.
    pub replica: String,
    /// The second it stands for, Unix time.
    pub second: i64,
}

/// A replica's state hash at a position.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Check {
    /// Which replica.
    pub replica: String,
    /// Where.
    pub position: Position,
    /// Rolling hash of all changes up to there, hexadecimal.
    pub hash: String,
    /// Version of the fold's logic that made it; hashes of different logics are not comparable.
    pub logic: u32,
}
