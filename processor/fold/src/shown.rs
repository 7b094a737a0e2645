//! Stored entries as people read them: a key in words, a value in JSON. For looking into a store, nothing else.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;

use plimsoll_schemas::id::TenantId;

use crate::Meta;
use crate::alerts::rules::Rules;
use crate::alerts::signal::Counted;
use crate::alerts::watched::Watched;
use crate::clock::Clock;
use crate::durable::{Entry, RestoreError, StateTable};
use crate::leases::Lease;
use crate::paces::scope::Scope;
use crate::placement::policy::mix::Mix;
use crate::policies::InForce;
use crate::ranges::Ranges;
use crate::refuse::Announcer;
use crate::registry::{Facts, Host, LatePane, Pulse};
use crate::requests::{Bucket, Seen};
use crate::waiting::{Order, Waiting};
use crate::window::Pane;

/// One entry, decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The key's parts, with `/` between them.
    pub key: String,
    /// What it holds. What JSON cannot say is text.
    pub value: Value,
}

/// Decodes an entry. Errors if it is not what a state writes.
pub fn show(entry: &Entry) -> Result<Shown, RestoreError> {
    let (key, value) = match entry.table {
        StateTable::Meta => {
            let key = String::from_utf8_lossy(&entry.key).into_owned();
            let value = match key.as_str() {
                "state" => json::<Meta>(entry)?,
                "clock" => json::<Clock>(entry)?,
                "announcer" => json::<Announcer>(entry)?,
                "mix" => json::<Mix>(entry)?,
                "queue" => json::<Order>(entry)?,
                "buckets" => json::<BTreeMap<TenantId, Bucket>>(entry)?,
                _ => hexadecimal(entry),
            };
            (key, value)
        }
        StateTable::Hosts => (entry.u32_at(0)?.to_string(), json::<Host>(entry)?),
        StateTable::Devices => match entry.key.get(4) {
            Some(0) => (format!("{}/facts", entry.u32_at(0)?), json::<Facts>(entry)?),
            Some(1) => (format!("{}/pulse", entry.u32_at(0)?), json::<Pulse>(entry)?),
            Some(_) | None => return Err(entry.error("unknown part")),
        },
        StateTable::Panes => pane(entry)?,
        StateTable::Ranges => {
            let class = match entry.key.get(12) {
                Some(1) => "sample",
                Some(2) => "event",
                Some(_) | None => return Err(entry.error("unknown class")),
            };
            (format!("{}/{}/{class}", entry.u32_at(0)?, entry.u64_at(4)?), json::<Ranges>(entry)?)
        }
        StateTable::Requests => (entry.u64_at(0)?.to_string(), json::<Seen>(entry)?),
        StateTable::Leases => (entry.u64_at(0)?.to_string(), json::<Lease>(entry)?),
        StateTable::Waiting => (entry.u64_at(4)?.to_string(), json::<Waiting>(entry)?),
        StateTable::Policies => (String::from_utf8_lossy(&entry.key).into_owned(), json::<InForce>(entry)?),
        StateTable::Alerts => match entry.key.as_slice() {
            b"rules" => ("rules".to_owned(), json::<Rules>(entry)?),
            b"counted" => ("counted".to_owned(), json::<Counted>(entry)?),
            [kind @ 0..=2, ..] => {
                let scope = ["cell", "host", "gpu"][usize::from(*kind)];
                (format!("{scope}/{}/{}", entry.u32_at(1)?, entry.u32_at(5)?), json::<Watched>(entry)?)
            }
            _ => return Err(entry.error("unknown key")),
        },
        StateTable::Paces => (String::from_utf8_lossy(&entry.key).into_owned(), json::<Scope>(entry)?),
    };
    Ok(Shown { key, value })
}

fn pane(entry: &Entry) -> Result<(String, Value), RestoreError> {
    let (kind, value) = match entry.key.get(4) {
        Some(1) => ("open", json::<Pane>(entry)?),
        Some(2) => ("late", json::<LatePane>(entry)?),
        Some(3) => ("parts", json::<u32>(entry)?),
        Some(_) | None => return Err(entry.error("unknown kind")),
    };
    let tier = match entry.key.get(5) {
        Some(1) => "10s",
        Some(2) => "1m",
        Some(3) => "1h",
        Some(_) | None => return Err(entry.error("unknown tier")),
    };
    let start = plimsoll_schemas::time::EventTime(i64::from_be_bytes(entry.u64_at(6)?.to_be_bytes()));
    Ok((format!("{}/{kind}/{tier}/{}", entry.u32_at(0)?, start.rfc3339()), value))
}

/// The bytes of what has no name here.
fn hexadecimal(entry: &Entry) -> Value {
    Value::String(entry.value.iter().flatten().map(|byte| format!("{byte:02x}")).collect())
}

/// JSON where it can say it, else the debug text.
fn json<T: DeserializeOwned + Serialize + Debug>(entry: &Entry) -> Result<Value, RestoreError> {
    let value: T = entry.value()?;
    Ok(serde_json::to_value(&value).unwrap_or_else(|_| Value::String(format!("{value:?}"))))
}
