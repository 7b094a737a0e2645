//! A record: one message of the LOG, decoded and with its speaker checked. What cannot be read is a record too, so nothing is lost silently.

use serde::de::DeserializeOwned;

use crate::control::{Check, Control, NewEpoch, Tick};
use crate::frame::{BYTES_MAX, Frame, RAW_BYTES_MAX, cut};
use crate::id::{CellId, HostId, Position, TenantId};
use crate::inventory::{self, HostEvent, Inventory};
use crate::reason::Reason;
use crate::request::Request;
use crate::subject::LogSubject;
use crate::time::LogTime;

/// One message of the LOG.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its place.
    pub position: Position,
    /// The broker's append time, made monotone by the reader.
    pub logged_at: LogTime,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Telemetry.
    Frame(Box<Frame>),
    /// Registration.
    Inventory(Box<Inventory>),
    /// Something happened on a host.
    Event(Box<HostEvent>),
    /// A tenant asks.
    Request(TenantId, Box<Request>),
    /// An operator decided.
    Control(Box<Control>),
    /// The log moves.
    Tick(Tick),
    /// A replica's hash.
    Check(Check),
    /// A new log epoch begins.
    Epoch(Box<NewEpoch>),
    /// Nobody can read it.
    Refused(Refused),
}

/// A message that was refused whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The host that sent it, if the subject says so.
    pub host: Option<HostId>,
    /// The tenant that sent it, if the subject says so.
    pub tenant: Option<TenantId>,
    /// The subject's tail, or the whole of a strange subject.
    pub source: String,
    /// Why.
    pub reason: Reason,
    /// What exactly, for people.
    pub detail: String,
}

/// Decodes one message. Never fails: what cannot be read becomes [`Body::Refused`] with the reason.
pub fn decode(cell: &CellId, subject: &str, payload: &[u8]) -> Body {
    let Some(parsed) = LogSubject::parse(cell, subject) else {
        return refused(None, cut(subject, 128).to_owned(), Reason::UnknownSubject, "no such subject in this cell".to_owned());
    };
    match read(&parsed, payload) {
        Ok(body) => body,
        Err((reason, detail)) => refused(Some(&parsed), parsed.to_string(), reason, detail),
    }
}

fn read(subject: &LogSubject, payload: &[u8]) -> Result<Body, (Reason, String)> {
    if payload.len() > BYTES_MAX {
        return Err((Reason::PayloadTooLarge, format!("{} bytes, at most {BYTES_MAX}", payload.len())));
    }
    match subject {
        LogSubject::Sample(host) => {
            let frame = Frame::decode(payload).map_err(|error| (error.reason, error.detail))?;
            same_speaker(host, &frame.host)?;
            Ok(Body::Frame(Box::new(frame)))
        }
        LogSubject::Inventory(host) => {
            let inventory: Inventory = json(payload)?;
            version(inventory.schema_version)?;
            same_speaker(host, &inventory.host)?;
            inventory.check()?;
            Ok(Body::Inventory(Box::new(inventory)))
        }
        LogSubject::Event(host) => {
            let mut event: HostEvent = json(payload)?;
            version(event.schema_version)?;
            same_speaker(host, &event.host)?;
            event.check()?;
            Ok(Body::Event(Box::new(event)))
        }
        LogSubject::Request(tenant) => Ok(Body::Request(tenant.clone(), Box::new(request(payload)?))),
        LogSubject::Control => Ok(Body::Control(Box::new(json(payload)?))),
        LogSubject::Tick => Ok(Body::Tick(json(payload)?)),
        LogSubject::Check => Ok(Body::Check(json(payload)?)),
        LogSubject::Epoch => Ok(Body::Epoch(Box::new(json(payload)?))),
    }
}

/// A request is plain JSON, or the `data` of a CloudEvent.
fn request(payload: &[u8]) -> Result<Request, (Reason, String)> {
    let invalid = |error: serde_json::Error| (Reason::InvalidRequest, cut(&error.to_string(), 256).to_owned());
    let mut value: serde_json::Value = serde_json::from_slice(payload).map_err(invalid)?;
    if value.get("specversion").is_some() {
        value = value.get_mut("data").map(serde_json::Value::take).ok_or((Reason::InvalidRequest, "a CloudEvent without data".to_owned()))?;
    }
    serde_json::from_value(value).map_err(invalid)
}

fn json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, (Reason, String)> {
    serde_json::from_slice(payload).map_err(|error| (Reason::Undecodable, cut(&error.to_string(), 256).to_owned()))
}

fn version(found: u32) -> Result<(), (Reason, String)> {
    if found == inventory::VERSION {
        Ok(())
    } else {
        Err((Reason::UnsupportedVersion, format!("schema version {found}, this build reads {}", inventory::VERSION)))
    }
}

fn same_speaker(subject: &HostId, payload: &HostId) -> Result<(), (Reason, String)> {
    if subject == payload {
        Ok(())
    } else {
        Err((
            Reason::SpeakerMismatch,
            format!("the subject says {}, the payload {}", cut(subject.as_str(), RAW_BYTES_MAX), cut(payload.as_str(), RAW_BYTES_MAX)),
        ))
    }
}

fn refused(subject: Option<&LogSubject>, source: String, reason: Reason, detail: String) -> Body {
    let (host, tenant) = match subject {
        Some(LogSubject::Sample(host) | LogSubject::Inventory(host) | LogSubject::Event(host)) => (Some(host.clone()), None),
        Some(LogSubject::Request(tenant)) => (None, Some(tenant.clone())),
        Some(LogSubject::Control | LogSubject::Tick | LogSubject::Check | LogSubject::Epoch) | None => (None, None),
    };
    Body::Refused(Refused { host, tenant, source, reason, detail })
}
