//! What travels between the processor's tail server and a query service besides the rows: JSON in tickets and message metadata.

use plimsoll_schemas::id::Position;
use serde::{Deserialize, Serialize};

/// Ticket of an endless stream of one table: rows of every position greater than `after`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// The table's name.
    pub table: String,
    /// The last position this side has.
    pub after: Position,
}

/// Ticket of a finite stream: the newest samples of the recent ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Samples {
    /// `samples`.
    pub table: String,
    /// Only these GPUs; absent = all.
    pub devices: Option<Vec<i64>>,
    /// At most so many rows.
    pub limit: u64,
}

/// Comes with every message of an endless stream, at least once a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// All rows of the table up to here have been sent.
    pub applied: Position,
    /// Log time of that position, ns UTC.
    pub logged_at_ns: i64,
    /// The newest manifest the processor knows of.
    #[serde(default)]
    pub sealed: Option<Sealed>,
    /// Whose rows these are; with the first message of a stream.
    #[serde(default)]
    pub origin: Option<Origin>,
}

/// Whose rows a stream carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The cell.
    pub cell: String,
    /// What the processor had folded when the stream began.
    pub folded: Position,
    /// By which logic it folds.
    pub logic: u32,
}

/// A manifest by its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The version.
    pub version: u64,
    /// Every row up to here is in it.
    pub position: Position,
}

/// The answer to the action `status`; what this side does not need is left unread.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The cell.
    pub cell: String,
    /// Which replica answers.
    #[serde(default)]
    pub replica: Option<String>,
    /// What it has folded.
    pub position: Position,
    /// Log time of that position, ns UTC.
    pub logged_at_ns: i64,
    /// Its last output.
    #[serde(default)]
    pub out_seq: u64,
    /// Its last decision.
    #[serde(default)]
    pub decision_seq: u64,
}
