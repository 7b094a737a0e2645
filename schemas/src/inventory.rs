//! What an agent says about its host: registration of GPUs (`log.inventory.<host>`) and what happened (`log.event.<host>`). JSON.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ctl::Class;
use crate::id::{GpuUuid, HostId, Slot};
use crate::mig::{self, Mig};
use crate::reason::Reason;
use crate::time::{EventTime, rfc3339};

/// The schema version of inventory, event, request and control messages.
pub const VERSION: u32 = 1;

/// Most GPUs and MIG instances on one host.
pub const GPUS_MAX: usize = 256;
/// Longest name or other text of an inventory, bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// Longest detail of an event, bytes; what is beyond is cut off.
pub const DETAIL_BYTES_MAX: usize = 1_024;
/// Longest spacing of ticks, ms: an hour.
pub const INTERVAL_MS_MAX: u32 = 3_600_000;

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
    #[schemars(with = "String", extend("format" = "date-time"))]
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
    #[schemars(length(max = GPUS_MAX))]
    pub gpus: Vec<Gpu>,
}

impl Inventory {
    /// Refuses an inventory whose parts contradict each other or that is larger than the limits.
    pub fn check(&self) -> Result<(), (Reason, String)> {
        let inconsistent = |detail: String| Err((Reason::Inconsistent, detail));
        if self.gpus.len() > GPUS_MAX {
            return Err((Reason::PayloadTooLarge, format!("{} GPUs, at most {GPUS_MAX}", self.gpus.len())));
        }
        if self.epoch == 0 || self.sequence == 0 {
            return inconsistent(format!("epoch {} and sequence {} count from 1", self.epoch, self.sequence));
        }
        if !(1..=INTERVAL_MS_MAX).contains(&self.interval_ms) {
            return inconsistent(format!("interval_ms {}, expected 1 to {INTERVAL_MS_MAX}", self.interval_ms));
        }
        if let Some((name, bytes)) = self.texts().map(|(name, text)| (name, text.len())).find(|&(_, bytes)| bytes > TEXT_BYTES_MAX) {
            return Err((Reason::PayloadTooLarge, format!("{name} of {bytes} bytes, at most {TEXT_BYTES_MAX}")));
        }
        let (mut slots, mut uuids) = (BTreeSet::new(), BTreeSet::new());
        for gpu in &self.gpus {
            if !slots.insert(gpu.slot) {
                return inconsistent(format!("slot {} twice", gpu.slot.0));
            }
            if !uuids.insert(&gpu.uuid) {
                return inconsistent(format!("GPU {} twice", gpu.uuid));
            }
        }
        mig::check(&self.gpus).or_else(inconsistent)
    }

    /// Every free text with its field's name.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let host = [("hostname", &self.hostname), ("agent_version", &self.agent_version), ("source", &self.source)];
        let place = &self.placement;
        let place = [("cluster", &place.cluster), ("zone", &place.zone), ("rack", &place.rack), ("pool", &place.pool)];
        let gpus = self.gpus.iter().flat_map(|gpu| {
            let known = [
                ("mig_profile", &gpu.mig_profile),
                ("arch", &gpu.arch),
                ("pci_bus_id", &gpu.pci_bus_id),
                ("driver_version", &gpu.driver_version),
                ("compute_capability", &gpu.compute_capability),
            ];
            let known = known.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)));
            std::iter::once(("model", gpu.model.as_str())).chain(known).chain(gpu.mig.iter().flat_map(Mig::texts))
        });
        let place = place.into_iter().filter_map(|(name, text)| Some((name, text.as_deref()?)));
        host.into_iter().map(|(name, text)| (name, text.as_str())).chain(place).chain(gpus)
    }
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
    /// What a board on which MIG mode is on can be cut into, and what it is cut into; absent = MIG mode is off, or nothing is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig: Option<Mig>,
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
    /// CUDA compute capability such as `9.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
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
    #[schemars(with = "String", extend("format" = "date-time"))]
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

impl HostEvent {
    /// Refuses an event whose parts contradict each other, and cuts long texts: an XID is worth more than the end of its log line.
    pub fn check(&mut self) -> Result<(), (Reason, String)> {
        if self.epoch == 0 || self.sequence == 0 {
            return Err((Reason::Inconsistent, format!("epoch {} and sequence {} count from 1", self.epoch, self.sequence)));
        }
        if let Some(detail) = &mut self.detail {
            detail.truncate(detail.floor_char_boundary(DETAIL_BYTES_MAX));
        }
        match &mut self.kind {
            EventKind::Gap { from_sequence, to_sequence, .. } if *from_sequence == 0 || *from_sequence > *to_sequence => {
                return Err((Reason::Inconsistent, format!("a gap from sequence {from_sequence} to {to_sequence}")));
            }
            EventKind::Gap { cause: text, .. } | EventKind::Refused { raw: text, .. } => text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX)),
            EventKind::Xid { .. }
            | EventKind::Ecc { .. }
            | EventKind::Remap { .. }
            | EventKind::GpuLost
            | EventKind::GpuReturned
            | EventKind::ClockStep { .. }
            | EventKind::SamplerHung { .. }
            | EventKind::Stopping => {}
        }
        Ok(())
    }
}

/// Where the replacement of bad rows of memory stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Remap {
    /// Nothing waits.
    #[default]
    Clean,
    /// Takes effect with the next reset.
    Pending,
    /// There is no row left to replace one with.
    Failed,
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
    /// Uncorrected ECC errors were counted, or the count began anew.
    Ecc {
        /// Since the driver was loaded.
        volatile: u64,
        /// In the board's life.
        aggregate: u64,
    },
    /// Rows of memory were remapped, or wait to be.
    Remap {
        /// Where that stands.
        state: Remap,
        /// Rows remapped after uncorrected errors in the board's life.
        rows: u64,
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
    /// Records that will never come: given up before they were acknowledged because a bound was reached, or asked for and no longer kept.
    Gap {
        /// First sequence lost.
        from_sequence: u64,
        /// Last sequence lost.
        to_sequence: u64,
        /// Which numbering; absent = sample.
        #[serde(default, skip_serializing_if = "Class::is_sample")]
        class: Class,
        /// The life that numbered them; absent = the event's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        of_epoch: Option<u64>,
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
            Self::Ecc { .. } => "ecc",
            Self::Remap { .. } => "remap",
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
