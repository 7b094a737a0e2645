//! What an agent says about its host: registration of GPUs (`log.inventory.<host>`) and what happened (`log.event.<host>`). JSON.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{GpuUuid, HostId, Slot};
use crate::reason::Reason;
use crate::time::{EventTime, rfc3339};

/// The schema version of inventory, event, request and control messages.
pub const VERSION: u32 = 1;

/// Most GPUs and MIG instances on one host.
pub const GPUS_MAX: usize = 256;

/// Registration of a host and its GPUs: at start, on every connect, on change and hourly. The newest replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// Schema version, 1.
    pub schema_version: u32,
    /// The host's token, the same as in the subject.
    pub host: HostId,
    /// The agent's life.
    pub epoch: u64,
    /// Contiguous from 1 within (host, epoch, class event); shared with host events.
    pub sequence: u64,
    /// Grows when the content changes; frames name the revision their slots refer to.
    pub revision: u32,
    /// The host's clock when it was sent.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub sent_at: EventTime,
    /// The host's own name, dots and all.
    pub hostname: String,
    /// Version of the agent.
    pub agent_version: String,
    /// Where readings come from: `nvml`, `dcgm`, `replay` or `sim`.
    pub source: String,
    /// Intended spacing of ticks, ms.
    pub interval_ms: u32,
    /// Where the host stands.
    #[serde(default, skip_serializing_if = "Placement::is_empty")]
    pub placement: Placement,
    /// Cores, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    /// Memory of the host, bytes, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_bytes: Option<u64>,
    /// The GPUs, at most 256.
    pub gpus: Vec<Gpu>,
}

/// Where a host stands: all optional, all free text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Placement {
    /// Cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Rack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Pool of hosts that are used alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

impl Placement {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One GPU or MIG instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Gpu {
    /// Its stable number on the host, which frames use.
    pub slot: Slot,
    /// Its UUID.
    pub uuid: GpuUuid,
    /// The driver's index now.
    pub index: u16,
    /// Product name as the driver gives it.
    pub model: String,
    /// Memory on board, bytes; absent = not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_total_bytes: Option<u64>,
    /// UUID of the board a MIG instance is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_parent_uuid: Option<GpuUuid>,
    /// MIG profile such as `1g.10gb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_profile: Option<String>,
    /// Architecture such as `hopper`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// GPUs with the same number reach each other by NVLink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nvlink_domain: Option<u32>,
    /// NUMA node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u16>,
    /// PCI bus id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bus_id: Option<String>,
    /// Driver version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<String>,
    /// Enforced power limit, milliwatts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_mw: Option<u64>,
    /// Greatest power limit the board allows, milliwatts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_limit_max_mw: Option<u64>,
    /// Temperature at which the board slows down, millikelvin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slowdown_temperature_mk: Option<u64>,
}

/// Something that happened on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostEvent {
    /// Schema version, 1.
    pub schema_version: u32,
    /// The host's token, the same as in the subject.
    pub host: HostId,
    /// The agent's life.
    pub epoch: u64,
    /// Contiguous from 1 within (host, epoch, class event); shared with inventories.
    pub sequence: u64,
    /// The host's clock when it happened.
    #[serde(with = "rfc3339")]
    #[schemars(with = "String")]
    pub happened_at: EventTime,
    /// The GPU concerned; absent = the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<GpuUuid>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What can happen on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The driver reported an XID error.
    Xid {
        /// NVIDIA's number.
        code: u32,
    },
    /// The GPU no longer answers.
    GpuLost,
    /// It answers again.
    GpuReturned,
    /// The wall clock moved against CLOCK_BOOTTIME by more than 250 ms.
    ClockStep {
        /// By how much, ms.
        step_ms: i64,
    },
    /// A driver call has not come back.
    SamplerHung {
        /// For how long, ms.
        hung_ms: u64,
    },
    /// Frames were given up before they were acknowledged: a bound was reached.
    Gap {
        /// First sequence lost (class sample).
        from_sequence: u64,
        /// Last sequence lost.
        to_sequence: u64,
        /// Which bound.
        cause: String,
    },
    /// The agent leaves in good order.
    Stopping,
    /// A reading was refused for a reason that no frame row can carry.
    Refused {
        /// Why.
        reason: Reason,
        /// What was given.
        raw: String,
    },
}

impl EventKind {
    /// The snake_case kind in SQL.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Xid { .. } => "xid",
            Self::GpuLost => "gpu_lost",
            Self::GpuReturned => "gpu_returned",
            Self::ClockStep { .. } => "clock_step",
            Self::SamplerHung { .. } => "sampler_hung",
            Self::Gap { .. } => "gap",
            Self::Stopping => "stopping",
            Self::Refused { .. } => "refused",
        }
    }
}
