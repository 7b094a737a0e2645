//! Folding a log again, beside whoever folds it for real: from a base (nothing, or a checkpoint) into a store of our own. A log that replaced
//! another one is folded from the state that its epoch begins with.

use std::path::Path;

use plimsoll_archive::{Archive, Checkpoints};
use plimsoll_fold::{Effects, LOGIC, State};
use plimsoll_schemas::control::{Control, NewEpoch};
use plimsoll_schemas::id::{CellId, LogEpoch, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::PlacedRow;
use plimsoll_store::{Sealed, Store};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use super::source::From;
use crate::checkpoint;
use crate::epoch;
use crate::error::Error;
use crate::follow::{Mark, Stored};
use crate::health::Health;
use crate::log::{self, Batch, Reader};
use crate::metrics::Metrics;
use crate::restore::Restored;
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

/// What a log can be folded on from.
pub struct Bases {
    /// The log's epoch, if it was ever replaced.
    epoch: Option<NewEpoch>,
    /// First sequence that the log still has.
    first: u64,
    /// Checkpoints of the log's epoch, and the one that it begins with. Oldest first.
    pub checkpoints: Vec<Position>,
}

impl Bases {
    /// Those of a cell that this build can use: same format, same logic, and the log still has what follows.
    pub async fn find(archive: &Archive, streams: &Streams, cell: &CellId, first: u64) -> Result<Self, Error> {
        let failed = |error: plimsoll_archive::Error| Error::Checkpoint(error.into());
        let mut bases = Self { epoch: epoch::newest(cell, streams).await?.0, first, checkpoints: Vec::new() };
        let checkpoints = Checkpoints::of(archive);
        for position in checkpoints.list().await.map_err(failed)? {
            if bases.goes_on_at(position).is_none_or(|at| at.sequence + 1 < first) {
                continue;
            }
            match checkpoints.read(position).await {
                Ok(checkpoint) if (checkpoint.about.format, checkpoint.about.logic) == (plimsoll_store::FORMAT, LOGIC) => {
                    bases.checkpoints.push(position);
                }
                Ok(other) => {
                    tracing::warn!(%position, format = other.about.format, logic = other.about.logic, "left out: made by another format or logic")
                }
                Err(error @ (plimsoll_archive::Error::Damaged { .. } | plimsoll_archive::Error::Absent { .. })) => {
                    tracing::warn!(%error, %position, "left out");
                }
                Err(error) => return Err(failed(error)),
            }
        }
        bases.checkpoints.reverse();
        Ok(bases)
    }

    /// The place in this log behind which the state of a checkpoint goes on; none if it is of another log.
    fn goes_on_at(&self, checkpoint: Position) -> Option<Position> {
        match &self.epoch {
            Some(new) if checkpoint == new.base => Some(Position { epoch: new.epoch, sequence: new.after }),
            Some(new) => (checkpoint.epoch == new.epoch).then_some(checkpoint),
            None => (checkpoint.epoch == LogEpoch::default()).then_some(checkpoint),
        }
    }

    /// The checkpoint to begin with; none = a state without anything.
    fn choose(&self, from: From) -> Result<Option<Position>, Error> {
        let missing = |wanted: String| Error::NoBase { wanted, first: self.first };
        let found = match from {
            From::First => None,
            From::Checkpoint => {
                let newest = self.checkpoints.last().copied();
                return newest.map(Some).ok_or_else(|| missing("a checkpoint that this build can go on from".to_owned()));
            }
            // A place without an epoch is one of this log.
            From::Place(place) => self.checkpoints.iter().copied().rfind(|&checkpoint| {
                self.goes_on_at(checkpoint)
                    .is_some_and(|at| at.sequence <= place.sequence && (place.epoch == LogEpoch::default() || at.epoch == place.epoch))
            }),
        };
        let begin = self.epoch.as_ref().map_or(Position::default(), |new| new.base);
        match found {
            Some(found) => Ok(Some(found)),
            None if begin != Position::default() && self.checkpoints.contains(&begin) => Ok(Some(begin)),
            None if begin != Position::default() => {
                Err(missing(format!("the checkpoint of {begin}, with which this log was begun after the one before was lost,")))
            }
            None if self.epoch.as_ref().map_or(1, |new| new.after + 1) < self.first => Err(missing("the log's beginning".to_owned())),
            None => Ok(None),
        }
    }
}

async fn from_checkpoint(archive: &Archive, position: Position, into: &Path) -> Result<Restored, Error> {
    let found = Checkpoints::of(archive).read(position).await.map_err(|error| Error::Checkpoint(error.into()))?;
    checkpoint::load(archive, &found, into).await.map_err(Error::Checkpoint)?;
    let store = Store::open(into)?;
    let Some((commit, entries)) = store.load()? else {
        return Err(Error::NoBase { wanted: format!("a commit in the checkpoint of {position}"), first: position.sequence });
    };
    let state = State::restore(found.about.cell, entries.into_iter())
        .map_err(|error| plimsoll_store::Error::Damaged { path: into.to_owned(), detail: error.to_string() })?;
    Ok(Restored { store, state, mark: Mark::of(&commit), commit: Some(commit) })
}

impl Refold {
    /// A state at its base, in a folder that must not be there yet or be empty. Errors if neither the log nor a checkpoint has what is asked for.
    pub async fn open(archive: &Archive, streams: &Streams, cell: &CellId, from: From, bases: &Bases, into: &Path) -> Result<Self, Error> {
        if std::fs::read_dir(into).is_ok_and(|mut files| files.next().is_some()) {
            return Err(Error::NotEmpty { path: into.to_owned() });
        }
        let base = match bases.choose(from)? {
            Some(position) => from_checkpoint(archive, position, into).await?,
            None => Restored { store: Store::open(into)?, state: State::new(cell.clone()), mark: Mark::start(), commit: None },
        };
        Ok(Self::new(match &bases.epoch {
            Some(new) if base.mark.position.epoch < new.epoch => epoch::go_on(streams, base, new).await?,
            Some(_) | None => base,
        }))
    }

    fn new(Restored { store, state, mark, commit }: Restored) -> Self {
        let (out_seq, sealed) = commit.map_or((0, None), |base| (base.out_seq, base.sealed));
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
        let (sender, mut batches) = log::queue();
        let reader = Reader::new(self.state.cell().clone(), streams.clone(), self.mark, Health::default(), Metrics::default());
        let reading = tokio::spawn(reader.run(sender, stop));
        while let Some(Batch { records, mark, .. }) = batches.recv().await {
            let taken = records.iter().take_while(|record| record.position.sequence <= to).count() as u64;
            for record in records.iter().take(taken as usize) {
                if let Body::Epoch(new) = &record.body
                    && new.epoch > record.position.epoch
                {
                    return Err(Error::BehindEpoch { epoch: new.epoch.0, position: record.position });
                }
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
        self.store.commit(&commit, &self.state.take_dirty(), self.effects.rows.encoded().iter(), &self.effects.outputs)?;
        self.effects = Effects::default();
        self.uncommitted = 0;
        if let Some(up_to) = self.prune.take() {
            self.store.prune_rows(up_to)?;
        }
        Ok(())
    }
}
