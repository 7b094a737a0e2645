//! What the processor has folded and not yet sealed, kept in memory: per table the rows after the manifest, up to a position.
//!
//! Nothing here is lost or doubled. Rows count once a message says that all rows up to theirs were sent; a stream that broke goes on
//! behind the last such position, or behind the manifest if that is further, and what came of later positions is forgotten. Rows that
//! a newly loaded manifest holds are dropped. When the limit of rows or bytes is reached the streams are not read on: the answers grow
//! old, and say so.
//!
//! One of several processors is followed at a time (`lookout`). Going on with another is like going on after a break: it makes the same
//! rows at the same positions. Where it does not (`origin`) everything behind the manifest is read again, and answers stay as they
//! were until that is done.

pub mod wire;
mod parts;
mod origin;
pub mod processor;
mod follow;
mod choice;
mod lookout;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use datafusion::arrow::record_batch::RecordBatch;
use plimsoll_archive::{Archive, Manifest};
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::row::Table;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock;
use crate::error::Error;
use crate::snapshot::{Freshness, Snapshot};
use choice::Standing;
use origin::Meeting;
pub(crate) use parts::Part;
use parts::{after, between, push};
use processor::Processors;
use wire::{Origin, Progress, Status};

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
    cell: CellId,
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
    followed: Followed,
    /// Whose rows are held; absent before the first.
    origin: Option<Origin>,
    /// Counts how often everything behind the manifest was read again.
    turn: u64,
    /// What answers see while that is under way.
    kept: Option<Kept>,
    rows: usize,
    bytes: usize,
    /// How often a stream had to wait for room.
    full_total: u64,
}

/// What was seen before everything behind the manifest is read again.
#[derive(Debug)]
struct Kept {
    snapshot: Arc<Snapshot>,
    /// Shown until the streams have come this far.
    until: Position,
}

/// Which of the tails is followed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// Its place in the list, from 0.
    pub index: usize,
    /// Its address; empty before the start.
    pub url: String,
    /// How often another one was taken since the start.
    pub changes_total: u64,
}

/// Where a stream begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resume {
    /// Behind this position.
    pub after: Position,
    /// Which turn it belongs to: what comes in a later one is not its to add.
    turn: u64,
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
    /// Which processor is followed.
    pub followed: Followed,
}

impl Tail {
    /// A tail of a cell that holds nothing yet; [`Tail::start`] makes it follow a processor.
    pub fn new(cell: CellId, limits: Limits) -> Self {
        let tables = Table::ALL.iter().map(|&table| (table, Stream::default())).collect();
        let state = Mutex::new(State { tables, ..State::default() });
        Self(Arc::new(Shared { cell, limits, state, freed: Arc::default(), hint: Arc::default(), changed: Notify::new() }))
    }

    /// Follows one of the processors, and the archive, on the tracker's tasks until told to stop.
    pub fn start(&self, processors: &Processors, archive: &Archive, tasks: &TaskTracker, stop: &CancellationToken) {
        for &table in Table::ALL {
            tasks.spawn(follow::follow(self.clone(), processors.clone(), table, stop.clone()));
        }
        tasks.spawn(lookout::look_out(self.clone(), processors.clone(), stop.clone()));
        tasks.spawn(follow::watch(self.clone(), archive.clone(), self.0.hint.clone(), stop.clone()));
    }

    /// What a statement that starts now sees: one manifest and one position. Errors while the archive was not read yet: an answer
    /// would silently lack rows.
    pub fn snapshot(&self) -> Result<Arc<Snapshot>, Error> {
        let state = self.lock();
        if !state.archive_read && state.manifest.is_none() {
            return Err(Error::Starting(state.archive_error.clone().unwrap_or_else(|| "the archive was not read yet".to_owned())));
        }
        Ok(state.kept.as_ref().map_or_else(|| state.snapshot(), |kept| kept.snapshot.clone()))
    }

    /// Why answers are not what they should be, and how much is held.
    pub fn health(&self) -> Health {
        let state = self.lock();
        let mut reasons = Vec::new();
        let connected = state.tables.values().filter(|stream| stream.connected).count();
        if let Some((table, stream)) = state.tables.iter().find(|(_, stream)| !stream.connected) {
            let detail = stream.error.as_deref().unwrap_or("not connected yet");
            let (all, of, url) = (state.tables.len(), table.name(), &state.followed.url);
            reasons.push(format!("{connected} of {all} tail streams are connected ({of} of {url}: {detail})"));
        }
        if state.kept.is_some() {
            reasons.push("everything behind the manifest is read again, until then answers stay as they are".to_owned());
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
        let (status, followed) = (state.status.clone(), state.followed.clone());
        Health { reasons, rows: state.rows, bytes: state.bytes, connected, full_total: state.full_total, status, followed }
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
    pub(crate) fn resume(&self, table: Table) -> Option<Resume> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if !state.archive_read {
            return None;
        }
        let sealed = state.sealed();
        let stream = state.tables.get_mut(&table)?;
        stream.parts = between(&stream.parts, Position::default(), stream.applied);
        stream.applied = stream.applied.max(sealed);
        let after = stream.applied;
        state.count();
        Some(Resume { after, turn: state.turn })
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

    /// Takes the rows of one message and the position they reach, from a stream that began there. Errors if they do not say where they
    /// come from, or if they do not go on from what is held.
    pub(crate) fn advance(&self, table: Table, began: Resume, batches: Vec<RecordBatch>, progress: &Progress) -> Result<(), String> {
        let mut guard = self.lock();
        let state = &mut *guard;
        if began.turn != state.turn {
            return Err("everything behind the manifest is read again".to_owned());
        }
        if let Some(origin) = &progress.origin {
            state.meet(&self.0.cell, origin)?;
        }
        let stream = state.tables.get_mut(&table).ok_or_else(|| "no such table".to_owned())?;
        let had = stream.applied;
        for batch in batches {
            let unseen = after(&batch, had).map_err(|error| error.to_string())?;
            if let Some(part) = Part::new(table, unseen)? {
                push(&mut stream.parts, part, &mut state.rows, &mut state.bytes);
            }
        }
        stream.applied = had.max(progress.applied);
        stream.logged_at_ns = stream.logged_at_ns.max(progress.logged_at_ns);
        stream.connected = true;
        stream.error = None;
        if state.kept.as_ref().is_some_and(|kept| state.applied() >= kept.until) {
            state.kept = None;
        }
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

    pub(crate) fn follows(&self, followed: Followed) {
        self.lock().followed = followed;
    }

    /// The cell whose rows are held.
    pub(crate) fn cell(&self) -> &CellId {
        &self.0.cell
    }

    /// What the choice of a processor hangs on.
    pub(crate) fn standing(&self) -> Standing {
        let state = self.lock();
        // Before the archive is read no stream begins, whoever sends it.
        let broken = state.archive_read && state.tables.values().any(|stream| !stream.connected);
        Standing { held: state.applied().max(state.sealed()), broken }
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
    fn sealed(&self) -> Position {
        self.manifest.as_ref().map_or(Position::default(), |manifest| manifest.position)
    }

    /// Every row of every table up to here is held or sealed.
    fn applied(&self) -> Position {
        self.tables.values().map(|stream| stream.applied).min().unwrap_or_default()
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        let sealed = self.sealed();
        let position = self.applied().max(sealed);
        let logged_at_ns = self.tables.values().map(|stream| stream.logged_at_ns).min().filter(|&at| at > 0);
        let tail = self.tables.iter().map(|(&table, stream)| (table, between(&stream.parts, sealed, position))).collect();
        let freshness = Freshness { logged_at_ns, connected: self.tables.values().all(|stream| stream.connected) };
        Arc::new(Snapshot::new(self.manifest.clone(), position, tail, freshness))
    }

    /// Checks that a stream's rows go on from those held. Where they do not but may be read, everything behind the manifest is forgotten
    /// for them, and answers stay as they are until the streams have come as far again. Errors unless this stream goes on.
    fn meet(&mut self, cell: &CellId, met: &Origin) -> Result<(), String> {
        match origin::meet(cell, self.origin.as_ref(), met) {
            Meeting::Same => {
                self.origin.get_or_insert_with(|| met.clone());
                Ok(())
            }
            Meeting::Refused(why) => Err(why),
            Meeting::Turned(why) => {
                tracing::warn!(why, "everything behind the manifest is read again");
                let shown = self.kept.take().map_or_else(|| self.snapshot(), |kept| kept.snapshot);
                self.kept = Some(Kept { until: met.folded.max(shown.position()), snapshot: shown });
                let sealed = self.sealed();
                for stream in self.tables.values_mut() {
                    *stream = Stream { applied: sealed, logged_at_ns: stream.logged_at_ns, ..Stream::default() };
                }
                self.origin = Some(met.clone());
                self.turn += 1;
                self.count();
                Err(why)
            }
        }
    }

    fn count(&mut self) {
        let parts = || self.tables.values().flat_map(|stream| &stream.parts);
        (self.rows, self.bytes) = parts().fold((0, 0), |(rows, bytes), part| (rows + part.batch.num_rows(), bytes + part.bytes));
    }
}

impl Snapshot {
    /// How old the answer is now, ms; absent if nothing is known of the log's time.
    pub fn freshness_ms(&self) -> Option<i64> {
        self.logged_at_ns().map(|at| (clock::now_ns() - at).max(0) / 1_000_000)
    }
}
