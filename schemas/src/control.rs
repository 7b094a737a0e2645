//! What changes how the log is folded (`log.control`, `log.epoch`), and the beats that keep it moving (`log.tick`, `log.check`). JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alert::Rule;
use crate::id::{GpuUuid, HostId, LogEpoch, Position, TenantId};
use crate::out::CloudEvent;
use crate::pace::Pace;
use crate::settings::Settings;
use crate::tables::Learned;

/// Most parts of a decision that power can have: all of them.
pub const POWER_WEIGHT_MAX: u32 = 100;

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// One control record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "control records are few, and boxed in a record")]
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
    /// Take hosts or GPUs out of service and let their leases end: they can no longer be renewed.
    Drain {
        /// What to drain.
        what: Cordon,
        /// After how long at most the leases end, ms of live clock; absent = when they run out.
        #[serde(default)]
        grace_ms: Option<u64>,
    },
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
    /// Change settings of the fold; absent = unchanged.
    Settings(Settings),
    /// Choose how GPUs are placed.
    Placement {
        /// Name of the policy.
        policy: String,
        /// Its version.
        version: u32,
        /// How many of 100 parts of a decision it is to wake no GPU that sleeps; the policy has the others.
        #[serde(default, skip_serializing_if = "is_zero")]
        power_weight: u32,
    },
    /// Create an alert rule, or replace the one of that name.
    AlertRule(Rule),
    /// Remove an alert rule; what it has firing is resolved.
    RemoveAlertRule {
        /// Its name.
        name: String,
    },
    /// Take a lease back: its GPUs drain as if it had run out.
    Revoke {
        /// The lease.
        lease_id: String,
    },
    /// Bound what a tenant may hold.
    Quota {
        /// The tenant.
        tenant: TenantId,
        /// Thousandths of GPUs at most; absent = no bound any more.
        #[serde(default)]
        gpu_milli_max: Option<u64>,
    },
    /// Choose which behaviour of the fold holds from here on. Every processor must know it: upgrade them first.
    Logic {
        /// Version of the logic.
        version: u32,
    },
    /// Set how fast placement requests may come, and when load pauses them; what held before is replaced.
    Pace {
        /// Whose requests; absent = those of the whole cell.
        #[serde(default)]
        tenant: Option<TenantId>,
        /// The limits.
        pace: Pace,
    },
    /// End the pace of a tenant or of the cell.
    EndPace {
        /// Whose; absent = the cell's.
        #[serde(default)]
        tenant: Option<TenantId>,
    },
    /// Put learned tables of placement into force.
    Tables(Box<Learned>),
}

/// The log was replaced: where every replica goes on, from one state and under a new log epoch (`log.epoch`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewEpoch {
    /// Number of the new log epoch.
    pub epoch: LogEpoch,
    /// Position of the state to go on from, in the epoch before.
    pub base: Position,
    /// Rolling hash of that state, hexadecimal.
    pub base_hash: String,
    /// Folding goes on behind this sequence of the new log; what was counted before is recognised by its host's own numbers.
    pub after: u64,
    /// Last output that stands in OUT: the next one follows it.
    pub out_seq: u64,
    /// Decisions and changes of leases that stand in OUT and that the state has not made: they hold.
    pub adopted: Vec<CloudEvent>,
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
