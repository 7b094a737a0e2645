//! What the processor asks of agents: JSON on `ctl.<host>`, by core NATS and not stored. A request that gets lost is asked again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::HostId;

/// One request to the agent of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Ctl {
    /// Publish again what is missing, or say that it is gone.
    Repair(Repair),
}

/// Sequences of a host that the log lacks. The agent publishes those it still has again, byte for byte, and names the others in a
/// `gap` event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Repair {
    /// The host's token, the same as in the subject.
    pub host: HostId,
    /// The agent's life that numbered them.
    pub epoch: u64,
    /// Which numbering.
    pub class: Class,
    /// First sequence missing.
    pub from_sequence: u64,
    /// Last sequence missing; some between the two may be there.
    pub to_sequence: u64,
}

/// Which of a host's two numberings a sequence belongs to. Each counts from 1 in every life of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Class {
    /// Telemetry frames.
    #[default]
    Sample = 1,
    /// Inventories and host events.
    Event = 2,
}

impl Class {
    /// The snake_case name in SQL and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Event => "event",
        }
    }

    /// Whether it numbers frames.
    pub fn is_sample(&self) -> bool {
        *self == Self::Sample
    }
}
