//! What the processor has folded and not yet sealed, kept in memory: per table the rows after the manifest, up to a position.
//!
//! Nothing here is lost or doubled. Rows count once a message says that all rows up to theirs were sent; a stream that broke goes on
//! behind the last such position, or behind the manifest if that is further, and what came of later positions is forgotten. Rows that
//! a newly loaded manifest holds are dropped. When the limit of rows or bytes is reached the streams are not read on: the answers grow
//! old, and say so.

pub mod follow;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::arrow::array::{AsArray, BooleanArray};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use datafusion::arrow::record_batch::RecordBatch;
use plimsoll_archive::{Archive, Manifest, encode};
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::row::Table;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::error::Error;
use crate::provider::plain;
use crate::snapshot::{Freshness, Snapshot};
use follow::Processor;
use wire::{Progress, Status};

/// Batches smaller than this are put together, so that a quiet day does not become a thousand slivers.
const SLIVER_ROWS: usize = 4_096;

/// How much the tail may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows of all tables together.
    pub rows: usize,
    /// Bytes of all tables together.
    pub bytes: usize,
}

/// The tail of one cell. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tail(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Limits,
    state: Mutex<State>,
    /// Wakes whoever waits for room.
    freed: Arc<Notify>,
    /// Wakes the watcher of manifests.
    hint: Arc<Notify>,
    /// Wakes whoever waits for any change.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    tables: BTreeMap<Table, Stream>,
    manifest: Option<Arc<Manifest>>,
    archive_error: Option<String>,
    archive_read: bool,
    status: Option<Status>,
    rows: usize,
    bytes: usize,
    /// How often a stream had to wait for room.
    full_total: u64,
}

#[derive(Debug, Default)]
struct Stream {
    parts: Vec<Part>,
    /// Every row up to here is in `parts` or in the manifest; `parts` may hold some later ones.
    applied: Position,
    logged_at_ns: i64,
    connected: bool,
    error: Option<String>,
}

/// A batch with the places of its rows.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub batch: RecordBatch,
    pub first: Position,
    pub last: Position,
    /// Window starts of later parts of windows, microseconds.
    pub late: Option<(i64, i64)>,
    bytes: usize,
}

/// Whether another message may be read.
pub(crate) enum Room {
    /// Yes.
    Free,
    /// Not before this was notified.
    Full(Arc<Notify>),
}

/// Numbers about the tail for readiness, metrics and `system.cells`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Why answers are not what they should be; empty = ready.
    pub reasons: Vec<String>,
    /// Rows held.
    pub rows: usize,
    /// Bytes held.
    pub bytes: usize,
    /// Streams connected.
    pub connected: usize,
    /// How often a stream had to wait for room.
    pub full_total: u64,
    /// What the processor last said of itself.
    pub status: Option<Status>,
}

impl Tail {
    /// A tail that holds nothing yet; [`Tail::start`] makes it follow a processor.
    pub fn new(limits: Limits) -> Self {
        let tables = Table::ALL.iter().map(|&table| (table, Stream::default())).collect();
        let state = Mutex::new(State { tables, ..State::default() });
        Self(Arc::new(Shared { limits, state, freed: Arc::default(), hint: Arc::default(), changed: Notify::new() }))
    }

    /// Follows the processor and the archive on the tracker's tasks until told to stop.
    pub fn start(&self, processor: &Processor, archive: &Archive, tasks: &TaskTracker, stop: &CancellationToken) {
        for &table in Table::ALL {
            tasks.spawn(follow::follow(self.clone(), processor.clone(), table, stop.clone()));
        }
        tasks.spawn(follow::watch(self.clone(), archive.clone(), processor.clone(), self.0.hint.clone(), stop.clone()));
    }

    /// What a statement that starts now sees: one manifest and one position. Errors while the archive was not read yet: an answer
    /// would silently lack rows.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, Error> {
        let state = self.lock();
        let sealed = state.manifest.as_ref().map_or(Position::default(), |manifest| manifest.position);
        if !state.archive_read && state.manifest.is_none() {
            return Err(Error::Starting(state.archive_error.clone().unwrap_or_else(|| "the archive was not read yet".to_owned())));
        }
        let applied = state.tables.values().map(|stream| stream.applied).min().unwrap_or_default();
        let position = applied.max(sealed);
        let logged_at_ns = state.tables.values().map(|stream| stream.logged_at_ns).min().filter(|&at| at > 0);
        let tail = state.tables.iter().map(|(&table, stream)| (table, between(&stream.parts, sealed, position))).collect();
        let freshness = Freshness { logged_at_ns, connected: state.tables.values().all(|stream| stream.connected) };
        Ok(Arc::new(Snapshot::new(state.manifest.clone(), position, tail, freshness)))
    }

    /// Why answers are not what they should be, and how much is held.
    pub fn health(&self) -> Health {
        let state = self.lock();
        let mut reasons = Vec::new();
        let connected = state.tables.values().filter(|stream| stream.connected).count();
        if let Some((table, stream)) = state.tables.iter().find(|(_, stream)| !stream.connected) {
            let detail = stream.error.as_deref().unwrap_or("not connected yet");
            reasons.push(format!("{} of {} tail streams are connected ({}: {detail})", connected, state.tables.len(), table.name()));
        }
        if self.is_full(&state) {
            let Limits { rows, bytes } = self.0.limits;
            reasons.push(format!("the tail is full with {} rows, {} bytes (at most {rows}, {bytes}): it waits for a seal", state.rows, state.bytes));
        }
        match &state.archive_error {
            Some(error) => reasons.push(format!("the archive cannot be read: {error}")),
            None if !state.archive_read => reasons.push("the archive was not read yet".to_owned()),
            None => {}
        }
        Health { reasons, rows: state.rows, bytes: state.bytes, connected, full_total: state.full_total, status: state.status.clone() }
    }

    /// The newest manifest loaded.
    pub fn manifest(&self) -> Option<Arc<Manifest>> {
        self.lock().manifest.clone()
    }

    /// Returns once `holds` does, looking again at every change.
    pub async fn until(&self, mut holds: impl FnMut(&Tail) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// Where a stream of this table goes on: behind what is here or sealed. What came of later positions will come again and is
    /// forgotten. Absent while the archive was not read.
    pub(crate) fn resume(&self, table: Table) -> Option<Position> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if !state.archive_read {
            return None;
        }
        let sealed = state.manifest.as_ref().map_or(Position::default(), |manifest| manifest.position);
        let stream = state.tables.get_mut(&table)?;
        stream.parts = between(&stream.parts, Position::default(), stream.applied);
        stream.applied = stream.applied.max(sealed);
        let after = stream.applied;
        state.count();
        Some(after)
    }

    /// Whether a stream may read on. One that holds nothing always may: the position of all is that of the slowest.
    pub(crate) fn room(&self, table: Table) -> Room {
        let mut state = self.lock();
        if !self.is_full(&state) || state.tables[&table].parts.is_empty() {
            return Room::Free;
        }
        state.full_total += 1;
        Room::Full(self.0.freed.clone())
    }

    /// Takes the rows of one message and the position they reach. Errors if they do not say where they come from.
    pub(crate) fn advance(&self, table: Table, batches: Vec<RecordBatch>, progress: &Progress) -> Result<(), String> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let stream = state.tables.get_mut(&table).ok_or_else(|| "no such table".to_owned())?;
        let had = stream.applied;
        for batch in batches {
            let unseen = after(&batch, had).map_err(|error| error.to_string())?;
            if let Some(part) = Part::new(table, unseen)? {
                push(stream, part, &mut state.rows, &mut state.bytes);
            }
        }
        stream.applied = had.max(progress.applied);
        stream.logged_at_ns = stream.logged_at_ns.max(progress.logged_at_ns);
        stream.connected = true;
        stream.error = None;
        let known = state.manifest.as_ref().map_or(0, |manifest| manifest.version);
        if progress.sealed.is_some_and(|sealed| sealed.version > known) {
            self.0.hint.notify_one();
        }
        drop(guard);
        self.0.changed.notify_waiters();
        Ok(())
    }

    /// Notes why a stream ended; returns whether it had been connected.
    pub(crate) fn disconnected(&self, table: Table, reason: String) -> bool {
        let mut state = self.lock();
        let Some(stream) = state.tables.get_mut(&table) else { return false };
        let was = std::mem::replace(&mut stream.connected, false);
        stream.error = Some(reason);
        // The streams share one connection: the first that breaks speaks for all.
        if was && state.tables.values().filter(|stream| !stream.connected).count() == 1 {
            let reason = state.tables[&table].error.as_deref();
            tracing::warn!(table = table.name(), reason, "tail stream lost");
        }
        drop(state);
        self.0.changed.notify_waiters();
        was
    }

    /// Takes a newer manifest, if there is one, and drops the rows it holds.
    pub(crate) fn adopt(&self, newer: Option<Manifest>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.archive_error = None;
        state.archive_read = true;
        if let Some(manifest) = newer {
            tracing::info!(version = manifest.version, position = %manifest.position, files = manifest.files.len(), "manifest loaded");
            for stream in state.tables.values_mut() {
                stream.parts.retain(|part| part.last > manifest.position);
            }
            state.count();
            state.manifest = Some(Arc::new(manifest));
            self.0.freed.notify_waiters();
        }
        drop(guard);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn archive_failed(&self, error: String) {
        let mut state = self.lock();
        if state.archive_error.as_ref() != Some(&error) {
            tracing::error!(error, "the archive cannot be read");
        }
        state.archive_error = Some(error);
        drop(state);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn processor_status(&self, status: Option<Status>) {
        self.lock().status = status;
    }

    fn is_full(&self, state: &State) -> bool {
        state.rows >= self.0.limits.rows || state.bytes >= self.0.limits.bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held leaves at worst a stale count; answers are computed from the parts.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn count(&mut self) {
        let parts = || self.tables.values().flat_map(|stream| &stream.parts);
        (self.rows, self.bytes) = parts().fold((0, 0), |(rows, bytes), part| (rows + part.batch.num_rows(), bytes + part.bytes));
    }
}

impl Part {
    /// The batch with its places; absent if it has no rows.
    fn new(table: Table, batch: RecordBatch) -> Result<Option<Self>, String> {
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        let (first, last) = encode::positions(&batch).map_err(|error| error.to_string())?;
        let batch = plain(&batch).map_err(|error| error.to_string())?;
        let (late, bytes) = (encode::late(table, &batch), batch.get_array_memory_size());
        Ok(Some(Self { batch, first, last, late, bytes }))
    }
}

fn push(stream: &mut Stream, part: Part, rows: &mut usize, bytes: &mut usize) {
    *rows += part.batch.num_rows();
    let joined = match stream.parts.last() {
        Some(last) if last.batch.num_rows() + part.batch.num_rows() <= SLIVER_ROWS => {
            concat_batches(&last.batch.schema(), [&last.batch, &part.batch]).ok().map(|batch| Part {
                first: last.first.min(part.first),
                last: last.last.max(part.last),
                late: [last.late, part.late].into_iter().flatten().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))),
                bytes: batch.get_array_memory_size(),
                batch,
            })
        }
        Some(_) | None => None,
    };
    let part = match joined {
        Some(joined) => {
            *bytes -= stream.parts.pop().map_or(0, |last| last.bytes);
            joined
        }
        None => part,
    };
    *bytes += part.bytes;
    stream.parts.push(part);
}

/// The parts with rows after `from` and up to `to`; those that reach over an edge are cut.
fn between(parts: &[Part], from: Position, to: Position) -> Vec<Part> {
    let inside = |part: &&Part| part.last > from && part.first <= to;
    let cut = |part: &Part| {
        if part.first > from && part.last <= to {
            return Some(part.clone());
        }
        let batch = rows_where(&part.batch, |at| from < at && at <= to).ok()?;
        let (first, last) = encode::positions(&batch).ok()?;
        (batch.num_rows() > 0).then(|| Part { batch, first, last, ..part.clone() })
    };
    parts.iter().filter(inside).filter_map(cut).collect()
}

fn after(batch: &RecordBatch, position: Position) -> Result<RecordBatch, datafusion::arrow::error::ArrowError> {
    rows_where(batch, |at| at > position)
}

fn rows_where(batch: &RecordBatch, holds: impl Fn(Position) -> bool) -> Result<RecordBatch, datafusion::arrow::error::ArrowError> {
    let epochs = batch.column_by_name("_epoch").and_then(|column| column.as_primitive_opt::<Int32Type>());
    let sequences = batch.column_by_name("_seq").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let (Some(epochs), Some(sequences)) = (epochs, sequences) else {
        return Err(datafusion::arrow::error::ArrowError::SchemaError("rows without _epoch and _seq".to_owned()));
    };
    let place = |(&epoch, &sequence): (&i32, &i64)| Position { epoch: LogEpoch(epoch as u32), sequence: sequence as u64 };
    let mask: BooleanArray = epochs.values().iter().zip(sequences.values()).map(|pair| Some(holds(place(pair)))).collect();
    filter_record_batch(batch, &mask)
}

impl Snapshot {
    /// How old the answer is now, ms; absent if nothing is known of the log's time.
    pub fn freshness_ms(&self) -> Option<i64> {
        self.logged_at_ns().map(|at| (clock::now_ns() - at).max(0) / 1_000_000)
    }
}
