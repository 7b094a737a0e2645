//! The pure core: a record of the log in, rows and outputs out. No clock, no randomness, no I/O, integers only, sorted iteration.
//!
//! `State::step` is the whole interface of time: the same records in the same order give the same state, rows and outputs, byte for byte.

pub mod ring;
pub mod cluster;
pub mod placement;
pub mod conformance;
pub mod durable;

use plimsoll_schemas::id::{CellId, DeviceKey, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::Record;
use plimsoll_schemas::row::{PlacedRow, SampleRow};
use plimsoll_schemas::time::LogTime;

/// What folding records has produced since it was last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Rows for SQL, in order.
    pub rows: Vec<PlacedRow>,
    /// Outputs for OUT, in order, `out_seq` dense.
    pub outputs: Vec<Output>,
}

/// Everything the fold knows.
#[derive(Debug)]
pub struct State {
    cell: CellId,
    position: Position,
    logged_at: LogTime,
}

/// Numbers about the state for metrics, readiness and `plimsoll status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Hosts ever registered and not retired.
    pub hosts: u64,
    /// Hosts not heard from.
    pub hosts_silent: u64,
    /// GPUs registered.
    pub devices: u64,
    /// GPUs that could take a placement now.
    pub devices_placeable: u64,
    /// Leases not ended.
    pub leases: u64,
    /// Panes open.
    pub panes_open: u64,
    /// Samples folded since the log began.
    pub samples_folded: u64,
    /// Samples refused.
    pub samples_rejected: u64,
    /// Samples that came too late for their window.
    pub samples_late: u64,
    /// Samples seen before.
    pub samples_duplicate: u64,
    /// Sequence of the last output.
    pub out_seq: u64,
    /// Number of the last decision.
    pub decision_seq: u64,
}

impl State {
    /// The state before the first record.
    pub fn new(cell: CellId) -> Self {
        Self { cell, position: Position::default(), logged_at: LogTime::default() }
    }

    /// Rebuilds the state from what [`State::take_dirty`] has given over time.
    pub fn restore(cell: CellId, _entries: impl Iterator<Item = durable::Entry>) -> Result<Self, durable::RestoreError> {
        Ok(Self::new(cell))
    }

    /// Folds one record, appending what follows from it.
    pub fn step(&mut self, record: &Record, _effects: &mut Effects) {
        self.position = record.position;
        self.logged_at = record.logged_at;
    }

    /// The durable entries that changed since this was last called, for one write batch.
    pub fn take_dirty(&mut self) -> Vec<durable::Entry> {
        Vec::new()
    }

    /// The cell.
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// Position of the last record folded.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Log time of the last record folded.
    pub fn logged_at(&self) -> LogTime {
        self.logged_at
    }

    /// Rolling hash over everything that changed up to `position`.
    pub fn hash(&self) -> u64 {
        0
    }

    /// Numbers for metrics and status.
    pub fn summary(&self) -> Summary {
        Summary::default()
    }

    /// The newest samples of the recent ring, newest last, of some devices or of all, at most `limit` rows.
    pub fn recent(&self, _devices: Option<&[DeviceKey]>, _limit: usize) -> Vec<SampleRow> {
        Vec::new()
    }
}
