//! What tenants ask for (`log.request.<tenant>`): JSON, plain or as the data of a CloudEvent. Idempotent by request id.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::GpuUuid;

/// Longest request id, workload or lease id, bytes.
pub const TEXT_BYTES_MAX: usize = 128;
/// Most leases renewed in one message.
pub const RENEWALS_MAX: usize = 1_000;
/// Most devices or weights in a distribute request.
pub const DEVICES_MAX: usize = 4_096;
/// Most GPUs in one bundle.
pub const BUNDLE_GPUS_MAX: u32 = 1_024;
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

/// One request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Find GPUs and lease them.
    Place(Place),
    /// Keep leases alive.
    Renew(Renew),
    /// Give a lease back.
    Release(Release),
    /// Split work items over GPUs.
    Distribute(Distribute),
}

impl Request {
    /// The id under which a repeated message is the same request.
    pub fn request_id(&self) -> &str {
        match self {
            Self::Place(r) => &r.request_id,
            Self::Renew(r) => &r.request_id,
            Self::Release(r) => &r.request_id,
            Self::Distribute(r) => &r.request_id,
        }
    }
}

/// Find GPUs and lease them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// Chosen by the asker, unique per tenant: 1 to 128 bytes.
    #[schemars(length(min = 1, max = TEXT_BYTES_MAX))]
    pub request_id: String,
    /// What is needed together. This version places exactly one bundle, on one host.
    #[schemars(length(min = 1))]
    pub bundles: Vec<Bundle>,
    /// Product name as the driver gives it; absent = any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What it is for, for charge-back and right-sizing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// How long it is expected to run, ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Higher goes first; 0 unless told.
    #[serde(default)]
    pub priority: i16,
    /// How long the lease lives without a renewal, ms; ten minutes unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = LEASE_TTL_MS_MIN, max = LEASE_TTL_MS_MAX))]
    pub lease_ttl_ms: Option<u64>,
    /// Free labels, kept and shown.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Equal GPUs that are needed together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// How many GPUs.
    #[schemars(range(min = 1, max = BUNDLE_GPUS_MAX))]
    pub count: u32,
    /// Thousandths of each GPU; 1000 = exclusive use.
    #[serde(default = "whole")]
    #[schemars(range(min = 1, max = WHOLE_MILLI))]
    pub milli: u32,
    /// GPU memory needed on each, bytes; 0 = whatever there is.
    #[serde(default)]
    pub vram_bytes: u64,
    /// MIG profile; this version cannot place one and says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mig_profile: Option<String>,
}

fn whole() -> u32 {
    WHOLE_MILLI
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
