//! Subjects and streams of a cell. The subject's token is the authority on who speaks.

use std::fmt;

use crate::id::{CellId, HostId, TenantId};
use crate::retention;

/// First token of every subject.
pub const ROOT: &str = "plimsoll";

/// The servers that a list separated by commas names: any one of them will do.
pub fn servers(list: &str) -> Vec<&str> {
    list.split(',').map(str::trim).filter(|server| !server.is_empty()).collect()
}

/// Where a message of the LOG comes from and what it carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSubject {
    /// Telemetry frames of a host: Protobuf.
    Sample(HostId),
    /// Registration of a host and its GPUs: JSON.
    Inventory(HostId),
    /// What happened on a host: JSON.
    Event(HostId),
    /// What a tenant asks for: JSON.
    Request(TenantId),
    /// What an operator (or the sealer) decided: JSON.
    Control,
    /// The active processor's clock beat: JSON.
    Tick,
    /// (position, state hash) of a replica: JSON.
    Check,
    /// Where everybody goes on in a log that was replaced: JSON.
    Epoch,
}

impl LogSubject {
    /// The full subject in a cell.
    pub fn to_subject(&self, cell: &CellId) -> String {
        let tail = match self {
            Self::Sample(host) => format!("sample.{host}"),
            Self::Inventory(host) => format!("inventory.{host}"),
            Self::Event(host) => format!("event.{host}"),
            Self::Request(tenant) => format!("request.{tenant}"),
            Self::Control => "control".to_owned(),
            Self::Tick => "tick".to_owned(),
            Self::Check => "check".to_owned(),
            Self::Epoch => "epoch".to_owned(),
        };
        format!("{ROOT}.{cell}.log.{tail}")
    }

    /// What a subject of this cell stands for; absent if it is none.
    pub fn parse(cell: &CellId, subject: &str) -> Option<Self> {
        let mut tokens = subject.split('.');
        if tokens.next() != Some(ROOT) || tokens.next() != Some(cell.as_str()) || tokens.next() != Some("log") {
            return None;
        }
        let kind = tokens.next()?;
        let who = tokens.next();
        if tokens.next().is_some() {
            return None;
        }
        match (kind, who) {
            ("sample", Some(host)) => Some(Self::Sample(host.parse().ok()?)),
            ("inventory", Some(host)) => Some(Self::Inventory(host.parse().ok()?)),
            ("event", Some(host)) => Some(Self::Event(host.parse().ok()?)),
            ("request", Some(tenant)) => Some(Self::Request(tenant.parse().ok()?)),
            ("control", None) => Some(Self::Control),
            ("tick", None) => Some(Self::Tick),
            ("check", None) => Some(Self::Check),
            ("epoch", None) => Some(Self::Epoch),
            _ => None,
        }
    }
}

/// Where an output goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OutSubject {
    /// Placement and distribution decisions of a tenant.
    Decision(TenantId),
    /// What becomes of a tenant's leases.
    Lease(TenantId),
    /// What becomes of GPUs and hosts.
    Device,
    /// What was refused.
    Rejected,
    /// What is missing from the log.
    Gap,
    /// Alerts that fire and resolve.
    Alert,
    /// What came into force.
    Policy,
}

impl OutSubject {
    /// The full subject in a cell.
    pub fn to_subject(&self, cell: &CellId) -> String {
        let tail = match self {
            Self::Decision(tenant) => format!("decision.{tenant}"),
            Self::Lease(tenant) => format!("lease.{tenant}"),
            Self::Device => "device".to_owned(),
            Self::Rejected => "rejected".to_owned(),
            Self::Gap => "gap".to_owned(),
            Self::Alert => "alert".to_owned(),
            Self::Policy => "policy".to_owned(),
        };
        format!("{ROOT}.{cell}.out.{tail}")
    }
}

/// Where requests to the agent of a host go. Not stored: no stream takes it.
pub fn ctl(cell: &CellId, host: &HostId) -> String {
    format!("{ROOT}.{cell}.ctl.{host}")
}

/// Requests to the agents of all hosts of a cell.
pub fn ctl_all(cell: &CellId) -> String {
    format!("{ROOT}.{cell}.ctl.*")
}

/// A stream of a cell: its name, what it takes and how long it keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// Stream name.
    pub name: String,
    /// The one subject filter.
    pub subjects: String,
    /// Oldest message kept, seconds.
    pub max_age_s: u64,
    /// Most bytes kept: a full disk shows only as time-outs, so the budget comes first.
    pub max_bytes: i64,
    /// Largest message, bytes.
    pub max_message_bytes: i32,
}

/// The LOG of a cell: 72 h, `max_bytes` bytes.
pub fn log_stream(cell: &CellId, max_bytes: i64) -> StreamSettings {
    StreamSettings {
        name: format!("PLIMSOLL_{cell}_LOG"),
        subjects: format!("{ROOT}.{cell}.log.>"),
        max_age_s: retention::LOG_AGE_S,
        max_bytes,
        max_message_bytes: crate::frame::BYTES_MAX as i32,
    }
}

/// The OUT of a cell: 400 d, `max_bytes` bytes.
pub fn out_stream(cell: &CellId, max_bytes: i64) -> StreamSettings {
    StreamSettings {
        name: format!("PLIMSOLL_{cell}_OUT"),
        subjects: format!("{ROOT}.{cell}.out.>"),
        max_age_s: retention::OUT_AGE_S,
        max_bytes,
        max_message_bytes: crate::frame::BYTES_MAX as i32,
    }
}

/// The oldest nats-server that keeps every setting it is given.
pub const NATS_VERSION_MIN: (u32, u32) = (2, 10);

/// A broker too old to be used: which version was found and which is needed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("nats-server {found} is too old: 2.10 or newer is needed (older ones silently drop settings they do not know)")]
pub struct BrokerTooOld {
    /// What the server says it is.
    pub found: String,
}

/// Refuses a nats-server older than 2.10, or one whose version does not parse.
pub fn check_nats_version(found: &str) -> Result<(), BrokerTooOld> {
    let mut parts = found.trim_start_matches('v').split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) if (major, minor) >= NATS_VERSION_MIN => Ok(()),
        _ => Err(BrokerTooOld { found: found.to_owned() }),
    }
}

impl fmt::Display for LogSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sample(host) => write!(f, "sample.{host}"),
            Self::Inventory(host) => write!(f, "inventory.{host}"),
            Self::Event(host) => write!(f, "event.{host}"),
            Self::Request(tenant) => write!(f, "request.{tenant}"),
            Self::Control => f.write_str("control"),
            Self::Tick => f.write_str("tick"),
            Self::Check => f.write_str("check"),
            Self::Epoch => f.write_str("epoch"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_come_back_the_same_and_strangers_are_refused() {
        let cell: CellId = "east-1".parse().expect("valid");
        let host: HostId = "gpu-1".parse().expect("valid");
        let tenant: TenantId = "research".parse().expect("valid");
        for subject in [
            LogSubject::Sample(host.clone()),
            LogSubject::Inventory(host.clone()),
            LogSubject::Event(host),
            LogSubject::Request(tenant),
            LogSubject::Control,
            LogSubject::Tick,
            LogSubject::Check,
            LogSubject::Epoch,
        ] {
            assert_eq!(LogSubject::parse(&cell, &subject.to_subject(&cell)), Some(subject));
        }
        for stranger in ["plimsoll.west.log.tick", "plimsoll.east-1.log.sample", "plimsoll.east-1.log.tick.x", "plimsoll.east-1.out.device", "x"] {
            assert_eq!(LogSubject::parse(&cell, stranger), None, "{stranger}");
        }
    }

    #[test]
    fn an_old_broker_is_refused_with_both_versions() {
        assert_eq!(check_nats_version("2.15.1"), Ok(()));
        assert_eq!(check_nats_version("v2.10.0"), Ok(()));
        let error = check_nats_version("2.9.10").expect_err("too old").to_string();
        assert!(error.contains("2.9.10") && error.contains("2.10"), "{error}");
        assert!(check_nats_version("nonsense").is_err());
    }
}
