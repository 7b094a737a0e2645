//! What tenants ask for (`log.request.<tenant>`): JSON, plain or as the data of a CloudEvent. Idempotent by request id.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::GpuUuid;
use crate::time::EventTime;

/// Longest request id, workload or lease id, bytes.
pub const TEXT_BYTES_MAX: usize = 128;
/// Most leases renewed in one message.
pub const RENEWALS_MAX: usize = 1_000;
/// Most devices or weights in a distribute request.
pub const DEVICES_MAX: usize = 4_096;
/// Most GPUs in one bundle.
pub const BUNDLE_GPUS_MAX: u32 = 1_024;
/// Most bundles in one request.
pub const BUNDLES_MAX: usize = 64;
/// Most members of all bundles of one request together.
pub const MEMBERS_MAX: u32 = 256;
/// Most models of which any will do.
pub const MODELS_MAX: usize = 32;
/// Most labels on a request; names and values are at most [`TEXT_BYTES_MAX`] long.
pub const LABELS_MAX: usize = 64;
/// Exclusive use of a GPU, in thousandths.
pub const WHOLE_MILLI: u32 = 1_000;
/// Shortest lease, ms.
pub const LEASE_TTL_MS_MIN: u64 = 10_000;
/// Lease where the request names none, ms: ten minutes.
pub const LEASE_TTL_MS_DEFAULT: u64 = 600_000;
/// Longest lease, ms: 30 days.
pub const LEASE_TTL_MS_MAX: u64 = 30 * 86_400_000;
/// Most CPU for one member, thousandths of a core.
pub const CPU_MILLI_MAX: u64 = 10_000_000;
/// Most memory of the host for one member, bytes: 1 PiB.
pub const HOST_MEMORY_BYTES_MAX: u64 = 1 << 50;
/// Longest wait for room, and furthest that a request may be put off, ms: a week.
pub const WAIT_MS_MAX: u64 = 7 * 86_400_000;

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "most requests are placements, and boxed in a record")]
pub enum Request {
    /// Find GPUs and lease them.
    Place(Place),
    /// Keep leases alive.
    Renew(Renew),
    /// Give a lease back.
    Release(Release),
    /// Split work items over GPUs.
    Distribute(Distribute),
    /// Withdraw a request that waits.
    Cancel(Cancel),
}

impl Request {
    /// The id under which a repeated message is the same request.
    pub fn request_id(&self) -> &str {
        match self {
            Self::Place(r) => &r.request_id,
            Self::Renew(r) => &r.request_id,
            Self::Release(r) => &r.request_id,
            Self::Distribute(r) => &r.request_id,
            Self::Cancel(r) => &r.request_id,
        }
    }
}

/// Find GPUs and lease them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Chosen by the asker, unique per tenant: 1 to 128 bytes.
    #[schemars(length(min = 1, max = TEXT_BYTES_MAX))]
    pub request_id: String,
    /// What is needed together: a gang. Every member of every bundle is placed, or none is.
    #[schemars(length(min = 1, max = BUNDLES_MAX))]
    pub bundles: Vec<Bundle>,
    /// Product name as the driver gives it; absent = any. The short form of `models` with one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Product names of which any will do; empty = any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MODELS_MAX))]
    pub models: Vec<String>,
    /// Where it may stand.
    #[serde(default, skip_serializing_if = "Constraints::is_empty")]
    pub constraints: Constraints,
    /// What it is for, for charge-back and right-sizing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// How long it is expected to run, ms. Lets it use, for so long, what is kept for a larger request that waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Higher goes first; 0 unless told.
    #[serde(default)]
    pub priority: i16,
    /// Whether a request of higher priority may be told that its room could be had by ending this one.
    #[serde(default, skip_serializing_if = "is_false")]
    pub preemptible: bool,
    /// How long the lease lives without a renewal, ms; ten minutes unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = LEASE_TTL_MS_MIN, max = LEASE_TTL_MS_MAX))]
    pub lease_ttl_ms: Option<u64>,
    /// Not to be placed before this instant, at most a week ahead; until then it waits.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "crate::time::rfc3339_option")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub not_before: Option<EventTime>,
    /// How long it waits for room at most, ms of live clock; absent = it does not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = WAIT_MS_MAX))]
    pub max_wait_ms: Option<u64>,
    /// The policy to choose with, such as `best_fit@1`; absent = the cell's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Free labels, kept and shown. Anti-affinity looks at them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl Place {
    /// The models of which any will do; none = any.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.model.iter().chain(&self.models).map(String::as_str)
    }
}

/// Equal members of a gang: each needs `count` GPUs of one host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// What to call it, such as `worker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many GPUs each member needs, all on one host.
    #[schemars(range(min = 1, max = BUNDLE_GPUS_MAX))]
    pub count: u32,
    /// Thousandths of each GPU; 1000 = exclusive use.
    #[serde(default = "whole")]
    #[schemars(range(min = 1, max = WHOLE_MILLI))]
    pub milli: u32,
    /// GPU memory needed on each, bytes; 0 = whatever there is.
    #[serde(default)]
    pub vram_bytes: u64,
    /// MIG profile such as `1g.10gb`: MIG instances of that profile and nothing else. Instances that exist are taken first; where there are
    /// too few and whole ones are asked for, a member gets at most one place for a new one on each board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_profile: Option<String>,
    /// How many such members; each may stand on another host.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    #[schemars(range(min = 1, max = MEMBERS_MAX))]
    pub members: u32,
    /// CPU of the host that each member needs, thousandths of a core. Where a host has not said how much it has, this is not looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = CPU_MILLI_MAX))]
    pub cpu_milli: u64,
    /// Memory of the host that each member needs, bytes. Where a host has not said how much it has, this is not looked at.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = HOST_MEMORY_BYTES_MAX))]
    pub memory_bytes: u64,
}

impl Default for Bundle {
    /// One member with one whole GPU.
    fn default() -> Self {
        Self { name: None, count: 1, milli: WHOLE_MILLI, vram_bytes: 0, mig_profile: None, members: 1, cpu_milli: 0, memory_bytes: 0 }
    }
}

fn whole() -> u32 {
    WHOLE_MILLI
}

fn one() -> u32 {
    1
}

fn is_one(number: &u32) -> bool {
    *number == 1
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// Where a request may stand.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Constraints {
    /// Least driver version, such as `550.54`: numbers with dots, compared one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_min: Option<String>,
    /// Least compute capability, such as `8.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute_capability_min: Option<String>,
    /// Only hosts that stand there: the value asked for, by domain.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub within: BTreeMap<Domain, String>,
    /// Not where a lease of the same tenant with certain labels lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anti_affinity: Option<AntiAffinity>,
    /// How near to each other GPUs and members must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topology: Option<Topology>,
    /// How far from each other members must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

impl Constraints {
    /// Whether it may stand anywhere.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What hosts have in common, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Domain {
    /// The host itself.
    Host,
    /// Its rack.
    Rack,
    /// Its pool.
    Pool,
    /// Its zone.
    Zone,
    /// Its cluster.
    Cluster,
}

impl Domain {
    /// The snake_case name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Pool => "pool",
            Self::Zone => "zone",
            Self::Cluster => "cluster",
        }
    }
}

/// Not where a lease of the same tenant lives whose request had all these labels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AntiAffinity {
    /// The labels.
    pub labels: BTreeMap<String, String>,
    /// How far away it must stay.
    #[serde(default = "host")]
    pub over: Domain,
}

fn host() -> Domain {
    Domain::Host
}

/// How near GPUs and members must be to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Locality {
    /// The GPUs of a member reach each other by NVLink.
    Nvlink,
    /// The GPUs of a member hang on one NUMA node.
    Numa,
    /// All members stand on one host.
    Host,
    /// All members stand in one rack.
    Rack,
}

impl Locality {
    /// The snake_case name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Nvlink => "nvlink",
            Self::Numa => "numa",
            Self::Host => "host",
            Self::Rack => "rack",
        }
    }
}

/// How near GPUs and members must be to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Topology {
    /// Within what.
    pub scope: Locality,
    /// Whether it cannot do without; otherwise it is preferred.
    #[serde(default)]
    pub required: bool,
}

/// How far members must be from each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// No two members in one of these.
    pub over: Domain,
    /// Whether it cannot do without; otherwise it is preferred.
    #[serde(default)]
    pub required: bool,
}

/// Keep leases alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Renew {
    /// Chosen by the asker, unique per tenant: 1 to 128 bytes.
    #[schemars(length(min = 1, max = TEXT_BYTES_MAX))]
    pub request_id: String,
    /// The leases, at most 1,000.
    #[schemars(length(min = 1, max = RENEWALS_MAX))]
    pub lease_ids: Vec<String>,
}

/// Give a lease back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Chosen by the asker, unique per tenant: 1 to 128 bytes.
    #[schemars(length(min = 1, max = TEXT_BYTES_MAX))]
    pub request_id: String,
    /// The lease.
    pub lease_id: String,
}

/// How work items are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The same number each, the remainder one each to the first devices by UUID.
    Uniform,
    /// In proportion to weights, by largest remainder.
    Capacity,
}

/// Split work items over GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distribute {
    /// Chosen by the asker, unique per tenant: 1 to 128 bytes.
    #[schemars(length(min = 1, max = TEXT_BYTES_MAX))]
    pub request_id: String,
    /// How many items.
    pub items: u64,
    /// How they are split.
    pub strategy: Strategy,
    /// Over which GPUs; absent = every placeable GPU of the cell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Vec<GpuUuid>>,
    /// Weights for `capacity`; absent = free GPU memory in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<GpuUuid, i64>>,
    /// Most items for one GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_device: Option<i64>,
}

/// Withdraw a request that waits. What is placed already is released by its lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cancel {
    /// Chosen by the asker, unique per tenant: 1 to 128 bytes.
    #[schemars(length(min = 1, max = TEXT_BYTES_MAX))]
    pub request_id: String,
    /// The request to withdraw.
    pub cancels: String,
}
