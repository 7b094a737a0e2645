//! Folding a log again, beside whoever folds it for real: from a base (nothing, or a checkpoint) into a store of our own.

use std::path::Path;

use plimsoll_archive::{Archive, Checkpoints};
use plimsoll_fold::{Effects, LOGIC, State};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::PlacedRow;
use plimsoll_store::{Commit, Sealed, Store};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::source::From;
use crate::checkpoint;
use crate::error::Error;
use crate::follow::{Mark, Stored};
use crate::health::Health;
use crate::log::{self, Batch, Reader};
use crate::metrics::Metrics;
use crate::streams::Streams;

/// A commit after so many records, so that memory stays bounded.
const COMMIT_RECORDS: u64 = 20_000;

/// A state that is being folded again, and its store.
pub struct Refold {
    /// The state.
    pub state: State,
    /// Where it is kept.
    pub store: Store,
    mark: Mark,
    out_seq: u64,
    sealed: Option<Sealed>,
    prune: Option<Position>,
    effects: Effects,
    uncommitted: u64,
}

/// Where the log begins and ends.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// First sequence that it still has.
    pub first: u64,
    /// Last sequence.
    pub last: u64,
}

/// The log's extent now.
pub async fn extent(streams: &Streams) -> Result<Extent, Error> {
    let stream = streams.log.cached_info().config.name.clone();
    let info = streams.log.get_info().await.map_err(|error| Error::Stream { stream, what: "reading it", detail: error.to_string() })?;
    Ok(Extent { first: info.state.first_sequence.max(1), last: info.state.last_sequence })
}

/// The positions of checkpoints that this build can fold on from: same format, same logic, and the log still has what follows. Oldest first.
pub async fn usable(archive: &Archive, first: u64) -> Result<Vec<Position>, Error> {
    let failed = |error: plimsoll_archive::Error| Error::Checkpoint(error.into());
    let checkpoints = Checkpoints::of(archive);
    let mut found = Vec::new();
    for position in checkpoints.list().await.map_err(failed)?.into_iter().filter(|position| position.sequence + 1 >= first) {
        match checkpoints.read(position).await {
            Ok(checkpoint) if (checkpoint.about.format, checkpoint.about.logic) == (plimsoll_store::FORMAT, LOGIC) => found.push(position),
            Ok(other) => {
                tracing::warn!(%position, format = other.about.format, logic = other.about.logic, "left out: made by another format or logic")
            }
            Err(error @ (plimsoll_archive::Error::Damaged { .. } | plimsoll_archive::Error::Absent { .. })) => {
                tracing::warn!(%error, %position, "left out");
            }
            Err(error) => return Err(failed(error)),
        }
    }
    found.reverse();
    Ok(found)
}

impl Refold {
    /// A state at its base, in a folder that must not be there yet or be empty. Errors if neither the log nor a checkpoint has what is asked for.
    pub async fn open(archive: &Archive, cell: &CellId, from: From, extent: Extent, into: &Path) -> Result<Self, Error> {
        if std::fs::read_dir(into).is_ok_and(|mut files| files.next().is_some()) {
            return Err(Error::NotEmpty { path: into.to_owned() });
        }
        let base = match from {
            From::First => None,
            From::Checkpoint => usable(archive, extent.first).await?.into_iter().next_back(),
            From::Place(place) => usable(archive, extent.first).await?.into_iter().rfind(|position| *position <= place),
        };
        match base {
            Some(position) => Self::from_checkpoint(archive, position, into).await,
            None if from == From::Checkpoint => {
                Err(Error::NoBase { wanted: "a checkpoint that this build can go on from".to_owned(), first: extent.first })
            }
            None if extent.first > 1 => Err(Error::NoBase { wanted: "the log's beginning".to_owned(), first: extent.first }),
            None => Ok(Self::new(State::new(cell.clone()), Store::open(into)?, None)),
        }
    }

    async fn from_checkpoint(archive: &Archive, position: Position, into: &Path) -> Result<Self, Error> {
        let failed = |error: plimsoll_archive::Error| Error::Checkpoint(error.into());
        let found = Checkpoints::of(archive).read(position).await.map_err(failed)?;
        checkpoint::load(archive, &found, into).await.map_err(Error::Checkpoint)?;
        let store = Store::open(into)?;
        let Some((commit, entries)) = store.load()? else {
            return Err(Error::NoBase { wanted: format!("a commit in the checkpoint of {position}"), first: position.sequence });
        };
        let state = State::restore(found.about.cell, entries.into_iter())
            .map_err(|error| plimsoll_store::Error::Damaged { path: into.to_owned(), detail: error.to_string() })?;
        Ok(Self::new(state, store, Some(&commit)))
    }

    fn new(state: State, store: Store, base: Option<&Commit>) -> Self {
        let mark = base.map_or_else(Mark::start, Mark::of);
        let (out_seq, sealed) = base.map_or((0, None), |base| (base.out_seq, base.sealed));
        Self { state, store, mark, out_seq, sealed, prune: None, effects: Effects::default(), uncommitted: 0 }
    }

    /// The last record folded.
    pub fn position(&self) -> Position {
        self.mark.position
    }

    /// The rows made by a record since the last commit.
    pub fn rows_of(&self, position: Position) -> impl Iterator<Item = &PlacedRow> {
        self.effects.rows.iter().filter(move |row| row.position == position)
    }

    /// The last output made.
    pub fn out_seq(&self) -> u64 {
        self.out_seq
    }

    /// Folds up to a sequence, which the log must have. `outputs` sees what each record brings; an error of it ends the folding.
    pub async fn fold(
        &mut self,
        streams: &Streams,
        to: u64,
        progress: &mut Progress,
        mut each: impl AsyncFnMut(&Record, &[Output]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if to <= self.mark.position.sequence {
            return Ok(());
        }
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let (sender, mut batches) = mpsc::channel(log::QUEUE_BATCHES);
        let reader = Reader::new(self.state.cell().clone(), streams.clone(), self.mark, Health::default(), Metrics::default());
        let reading = tokio::spawn(reader.run(sender, stop));
        while let Some(Batch { records, mark }) = batches.recv().await {
            let taken = records.iter().take_while(|record| record.position.sequence <= to).count() as u64;
            for record in records.iter().take(taken as usize) {
                let before = self.effects.outputs.len();
                self.state.step(record, &mut self.effects);
                self.notice_sealed(record);
                let outputs = &self.effects.outputs[before..];
                self.out_seq = outputs.last().map_or(self.out_seq, |last| last.out_seq);
                each(record, outputs).await?;
            }
            progress.add(taken);
            self.uncommitted += taken;
            // The mark is the batch's end; where we stop inside it, the last message has to be asked for.
            self.mark = if taken == records.len() as u64 { mark } else { self.inside(streams, mark).await? };
            if self.mark.position.sequence >= to {
                return Ok(());
            }
            if self.uncommitted >= COMMIT_RECORDS {
                self.commit()?;
            }
        }
        match reading.await {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) => Err(Error::PartEnded { part: "the reader", detail: format!("at {}, before {to}", self.mark.position) }),
            Err(error) => Err(Error::PartEnded { part: "the reader", detail: error.to_string() }),
        }
    }

    async fn inside(&self, streams: &Streams, mark: Mark) -> Result<Mark, Error> {
        let position = self.state.position();
        let message = streams.log.get_raw_message(position.sequence).await.map_err(|error| {
            let stream = streams.log.cached_info().config.name.clone();
            Error::Stream { stream, what: "reading a message of it", detail: error.to_string() }
        })?;
        Ok(Mark { position, message_hash: Stored::from(&message).hash(), logged_at: self.state.logged_at(), ..mark })
    }

    /// As the processor does: rows of the manifest before the newest are the archive's alone.
    fn notice_sealed(&mut self, record: &Record) {
        let Body::Control(control) = &record.body else { return };
        let Control::Sealed { version, position } = **control else { return };
        if self.sealed.is_none_or(|sealed| sealed.version < version && sealed.position <= position) {
            self.prune = self.sealed.map(|sealed| sealed.position).or(self.prune);
            self.sealed = Some(Sealed { version, position });
        }
    }

    /// Writes what was folded into the store.
    pub fn commit(&mut self) -> Result<(), Error> {
        let commit = self.mark.commit(&self.state, self.sealed);
        self.store.commit(&commit, &self.state.take_dirty(), &self.effects.rows, &self.effects.outputs)?;
        self.effects = Effects::default();
        self.uncommitted = 0;
        if let Some(up_to) = self.prune.take() {
            self.store.prune_rows(up_to)?;
        }
        Ok(())
    }
}
