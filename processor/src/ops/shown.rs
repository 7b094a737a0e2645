//! What a store holds, by name: tables of state (`state.…`), rows that are not sealed yet (`rows.…`), outputs, the commit. As JSON values under
//! readable keys.

use plimsoll_fold::durable::StateTable;
use plimsoll_fold::shown;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::{PlacedRow, Row, Table};
use plimsoll_store::{Commit, FORMAT, Store};
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Error;

/// A key and what stands under it.
pub type Item = (String, Value);

/// A table of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// Of the state.
    State(StateTable),
    /// Of rows for SQL.
    Rows(Table),
    /// Of outputs.
    Outputs,
}

impl Named {
    /// Every table.
    pub fn all() -> impl Iterator<Item = Self> {
        let (state, rows) = (StateTable::ALL.iter().copied().map(Self::State), Table::ALL.iter().copied().map(Self::Rows));
        state.chain(rows).chain([Self::Outputs])
    }

    /// Its name here.
    pub fn name(self) -> String {
        match self {
            Self::State(table) => format!("state.{}", table.name()),
            Self::Rows(table) => format!("rows.{}", table.name()),
            Self::Outputs => "outputs".to_owned(),
        }
    }

    /// The table of that name.
    pub fn of(name: &str) -> Result<Self, Error> {
        Self::all().find(|table| table.name() == name).ok_or_else(|| {
            let known = Self::all().map(Self::name).collect::<Vec<_>>().join(", ");
            Error::Unknown { what: "table", name: name.to_owned(), known }
        })
    }

    /// Everything in it, in order of its keys.
    pub fn items(self, store: &Store) -> Box<dyn Iterator<Item = Result<Item, Error>> + '_> {
        match self {
            Self::State(table) => Box::new(store.entries(table, &[]).map(|entry| {
                let shown = shown::show(&entry?).map_err(|error| Error::Unreadable { detail: error.to_string() })?;
                Ok((shown.key, shown.value))
            })),
            Self::Rows(table) => {
                let end = Position { epoch: LogEpoch(u32::MAX), sequence: u64::MAX };
                Box::new(store.rows(table, Position::default(), end).map(|placed| Ok(row(&placed?))))
            }
            Self::Outputs => Box::new(store.outputs_from(0).map(|found| Ok(output(&found?)))),
        }
    }
}

/// JSON where it can say it, else the debug text.
fn value<T: Serialize + std::fmt::Debug>(of: &T) -> Value {
    serde_json::to_value(of).unwrap_or_else(|_| Value::String(format!("{of:?}")))
}

/// A row under its place.
pub fn row(placed: &PlacedRow) -> Item {
    let inner = match &placed.row {
        Row::Window(_, row) => value(row),
        Row::Device(row) => value(row),
        Row::Host(row) => value(row),
        Row::Request(row) => value(row),
        Row::Decision(row) => value(row),
        Row::Lease(row) => value(row),
        Row::LeaseDevice(row) => value(row),
        Row::Rejected(row) => value(row),
        Row::DeviceEvent(row) => value(row),
        Row::Gap(row) => value(row),
        Row::Policy(row) => value(row),
        Row::Alert(row) => value(row),
        Row::HostWindow(row) => value(row),
        Row::Episode(row) => value(row),
    };
    (format!("{}/{}", placed.position, placed.ordinal), inner)
}

/// An output under its number.
pub fn output(output: &Output) -> Item {
    let event: Value = serde_json::from_slice(&output.bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&output.bytes).into_owned()));
    (output.out_seq.to_string(), event)
}

/// What a commit says about itself.
pub fn commit(commit: &Commit) -> Vec<(&'static str, Value)> {
    vec![
        ("position", json!(commit.position.to_string())),
        ("logged_at", json!(commit.logged_at.rfc3339())),
        ("hash", json!(format!("{:016x}", commit.hash))),
        ("logic", json!(commit.logic)),
        ("format", json!(FORMAT)),
        ("out_seq", json!(commit.out_seq)),
        ("decision_seq", json!(commit.decision_seq)),
        ("sealed_version", json!(commit.sealed.map(|sealed| sealed.version))),
        ("sealed_position", json!(commit.sealed.map(|sealed| sealed.position.to_string()))),
        ("log_created_at_ns", json!(commit.log_created_at_ns)),
        ("message_hash", json!(format!("{:016x}", commit.message_hash))),
    ]
}

/// What a record says: kind and content.
pub fn body(record: &Record) -> (&'static str, Value) {
    let debug = |what: &dyn std::fmt::Debug| Value::String(format!("{what:?}"));
    match &record.body {
        Body::Frame(frame) => ("frame", debug(frame)),
        Body::Inventory(inventory) => ("inventory", value(inventory)),
        Body::Event(event) => ("event", value(event)),
        Body::Request(tenant, request) => ("request", json!({ "tenant": tenant, "request": value(request) })),
        Body::Control(control) => ("control", value(control)),
        Body::Tick(tick) => ("tick", value(tick)),
        Body::Check(check) => ("check", value(check)),
        Body::Epoch(epoch) => ("epoch", value(epoch)),
        Body::Refused(refused) => ("refused", debug(refused)),
    }
}
