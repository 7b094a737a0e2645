//! What is in force: everything that a control record can change about how the log is folded, under a kind and a name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::alert::Rule;
use crate::pace::Pace;
use crate::settings::Thresholds;
use crate::tables::Learned;

/// What is in force under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "params", rename_all = "snake_case")]
pub enum Policy {
    /// The fold's settings, all of them. Name: `fold`.
    Settings(Thresholds),
    /// How GPUs are chosen. Name and version are those of the policy.
    Placement(Placing),
    /// An alert rule, under its own name.
    AlertRule(Rule),
    /// Which behaviour of the fold holds. Name: `fold`, the version is that of the logic.
    Logic,
    /// A host may take placements. Name: the host, or `*` for every host of the cell.
    Enrolment,
    /// A host or GPU is out of service. Name: `host/…` or `gpu/…`.
    Cordon(Cordoned),
    /// What a tenant may hold. Name: the tenant.
    Quota(Quota),
    /// How fast placement requests may come, and when load pauses them. Name: `cell` or `tenant/…`.
    Pace(Pace),
    /// What placement has learned. Name: `placement`.
    Tables(Box<Learned>),
}

/// How GPUs are chosen, besides the policy. There was a time when this said nothing: then nothing counted besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Option<Said>")]
#[schemars(!from)]
pub struct Placing {
    /// How many of 100 parts of a decision it is to wake no GPU that sleeps; the policy has the others.
    pub power_weight: u32,
}

/// [`Placing`] as it is read, where it is there.
#[derive(Deserialize)]
struct Said {
    power_weight: u32,
}

impl From<Option<Said>> for Placing {
    fn from(said: Option<Said>) -> Self {
        said.map_or_else(Self::default, |Said { power_weight }| Self { power_weight })
    }
}

/// What a tenant may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Quota {
    /// Thousandths of GPUs at most.
    pub gpu_milli_max: u64,
}

/// How something is out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Cordoned {
    /// Whether its leases can no longer be renewed either.
    pub drain: bool,
    /// After how long at most they end, ms of live clock from when the drain began; absent = when they run out.
    pub grace_ms: Option<u64>,
}

impl Policy {
    /// The kind of [`Policy::Quota`].
    pub const QUOTA: &str = "quota";

    /// The snake_case kind in JSON and SQL.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Settings(_) => "settings",
            Self::Placement(_) => "placement",
            Self::AlertRule(_) => "alert_rule",
            Self::Logic => "logic",
            Self::Enrolment => "enrolment",
            Self::Cordon(_) => "cordon",
            Self::Quota(_) => Self::QUOTA,
            Self::Pace(_) => "pace",
            Self::Tables(_) => "tables",
        }
    }

    /// What it says, as one JSON object. Of tables it leaves out the cells, which stand in OUT.
    pub fn params(&self) -> String {
        let text = match self {
            Self::Settings(thresholds) => serde_json::to_string(thresholds),
            Self::AlertRule(rule) => serde_json::to_string(rule),
            Self::Cordon(cordoned) => serde_json::to_string(cordoned),
            Self::Quota(quota) => serde_json::to_string(quota),
            Self::Pace(pace) => serde_json::to_string(pace),
            Self::Tables(learned) => learned.about(),
            Self::Placement(placing) => serde_json::to_string(placing),
            Self::Logic | Self::Enrolment => Ok("{}".to_owned()),
        };
        text.expect("plain structs always serialise")
    }
}

/// Whose word something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SetBy {
    /// Shipped with the fold: nobody has said anything else.
    Default,
    /// A control record.
    Operator,
}

impl SetBy {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Operator => "operator",
        }
    }
}
