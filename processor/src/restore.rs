//! Where the processor goes on: the store's last commit; else the newest checkpoint; else the beginning of the log, if the log still has it.
//!
//! What is damaged, or of an older format, is set aside. Where neither store nor checkpoint reaches into a log that was trimmed, nobody
//! starts: what is missing would be missing silently.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageErrorKind};
use plimsoll_archive::{Archive, Checkpoint, Checkpoints};
use plimsoll_fold::{LOGIC, State};
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::subject::ROOT;
use plimsoll_store::{Commit, Store};

use crate::checkpoint;
use crate::config::Config;
use crate::error::Error;
use crate::follow::Mark;
use crate::streams::Streams;

/// The state as of the last commit.
pub struct Restored {
    /// The store.
    pub store: Store,
    /// The state.
    pub state: State,
    /// Where to read on.
    pub mark: Mark,
    /// The commit; absent = from the beginning.
    pub commit: Option<Commit>,
}

impl Restored {
    /// Whether the log still has the next record.
    fn reaches(&self, first: u64) -> bool {
        self.mark.position.sequence + 1 >= first
    }
}

/// Opens the store and restores the state, from a checkpoint where there is no state of our own that the log goes on from.
pub async fn open(config: &Config, streams: &Streams) -> Result<Restored, Error> {
    let first = first_of(streams).await?;
    let (path, cell) = (config.state_path(), config.cell.clone());
    let own = blocking(move || open_or_set_aside(&path, &cell)).await?;
    if own.commit.is_some() && own.reaches(first) {
        return Ok(own);
    }
    let archive = archive(config)?;
    let at = own.mark.position;
    let own = match from_checkpoint(config, &archive, own, first, None).await? {
        Ok(restored) => return Ok(restored),
        Err(own) => own,
    };
    if own.reaches(first) {
        tracing::info!("no state and no checkpoint: folding the log from its beginning");
        return Ok(own);
    }
    if !config.accept_loss {
        let newest = checkpoint::list(&archive).await.map_err(Error::Checkpoint)?.into_iter().next();
        let newest = newest.map_or_else(|| "there is none".to_owned(), |newest| format!("the newest is of {newest}"));
        return Err(Error::LogTrimmed { stream: streams.log.cached_info().config.name.clone(), first, at, newest, archive: config.archive_url() });
    }
    tracing::error!(from = at.sequence + 1, to = first - 1, "these records are lost, as was accepted: leases granted by them are not known any more");
    accept_loss(own, streams).await
}

/// The archive, where checkpoints stand.
pub fn archive(config: &Config) -> Result<Archive, Error> {
    Archive::open(&config.archive_url(), &config.cell).map_err(|error| Error::Archive { url: config.archive_url(), detail: error.to_string() })
}

/// The first sequence that the log still has.
async fn first_of(streams: &Streams) -> Result<u64, Error> {
    let stream = streams.log.cached_info().config.name.clone();
    let info = streams.log.get_info().await.map_err(|error| Error::Stream { stream, what: "reading it", detail: error.to_string() })?;
    Ok(info.state.first_sequence.max(1))
}

pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    let task = tokio::task::spawn_blocking(work);
    task.await.unwrap_or_else(|error| Err(Error::PartEnded { part: "opening the store", detail: error.to_string() }))
}

fn open_or_set_aside(path: &Path, cell: &CellId) -> Result<Restored, Error> {
    std::fs::create_dir_all(path).map_err(|detail| Error::Io { what: "creating", path: path.to_owned(), detail })?;
    match open_once(path, cell) {
        Err(Error::Store(error @ (plimsoll_store::Error::Damaged { .. } | plimsoll_store::Error::OlderFormat { .. }))) => {
            tracing::error!(%error, "the store cannot be used");
            set_aside(path)?;
            open_once(path, cell)
        }
        outcome => outcome,
    }
}

/// Moves a store that cannot be used out of the way, so that the state is made anew from a checkpoint or the log.
pub fn set_aside(path: &Path) -> Result<(), Error> {
    let aside = plimsoll_store::set_aside(path).map_err(|detail| Error::Io { what: "setting aside", path: path.to_owned(), detail })?;
    tracing::error!(aside = %aside.display(), "the store was set aside: the state is made anew from the newest checkpoint or the log's beginning");
    Ok(())
}

fn open_once(path: &Path, cell: &CellId) -> Result<Restored, Error> {
    let damaged = |detail: String| Error::Store(plimsoll_store::Error::Damaged { path: path.to_owned(), detail });
    let store = Store::open(path)?;
    let Some((commit, entries)) = store.load()? else {
        return Ok(Restored { store, state: State::new(cell.clone()), mark: Mark::start(), commit: None });
    };
    if commit.logic > LOGIC {
        return Err(Error::Logic { path: path.to_owned(), found: commit.logic, known: LOGIC });
    }
    if commit.logic < LOGIC {
        tracing::warn!(found = commit.logic, known = LOGIC, position = %commit.position, "folded by an older logic so far; what follows is folded by this build's");
    }
    let state = State::restore(cell.clone(), entries.into_iter()).map_err(|error| damaged(error.to_string()))?;
    if (state.position(), state.hash()) != (commit.position, commit.hash) {
        let (position, hash) = (state.position(), state.hash());
        return Err(damaged(format!("the state is at {position} with hash {hash:016x}, its commit says {} {:016x}", commit.position, commit.hash)));
    }
    tracing::info!(position = %commit.position, out_seq = commit.out_seq, "going on from the last commit");
    Ok(Restored { store, state, mark: Mark::of(&commit), commit: Some(commit) })
}

/// The state of the newest checkpoint that is ahead of our own, reaches into the log and proves right; else our own back.
/// `below` = only those before it.
async fn from_checkpoint(
    config: &Config,
    archive: &Archive,
    own: Restored,
    first: u64,
    below: Option<Position>,
) -> Result<Result<Restored, Restored>, Error> {
    let checkpoints = Checkpoints::of(archive);
    let into = checkpoint::beside(&config.state_path(), ".restoring");
    for position in checkpoint::list(archive).await.map_err(Error::Checkpoint)? {
        if position <= own.mark.position || position.sequence + 1 < first {
            break;
        }
        if below.is_some_and(|below| position >= below) {
            continue;
        }
        checkpoint::remove(&into).map_err(Error::Checkpoint)?;
        let loaded = match checkpoints.read(position).await {
            Ok(found) => checkpoint::load(archive, &found, &into).await.map(|_| found),
            Err(error) => Err(error.into()),
        };
        match loaded {
            Ok(found) => return take_over(config, own, &found, into).await.map(Ok),
            Err(error @ checkpoint::Error::Newer { .. }) => return Err(Error::Checkpoint(error)),
            Err(error) => tracing::error!(%error, %position, "this checkpoint cannot be used, an older one may do"),
        }
    }
    Ok(Err(own))
}

/// Puts what was loaded into the place of our own store.
pub async fn take_over(config: &Config, own: Restored, found: &Checkpoint, loaded: PathBuf) -> Result<Restored, Error> {
    let (path, cell) = (config.state_path(), config.cell.clone());
    tracing::info!(position = %found.about.position, made_by = found.about.replica, "restored from a checkpoint");
    blocking(move || {
        let had_state = own.commit.is_some();
        drop(own);
        if had_state {
            set_aside(&path)?;
        } else {
            checkpoint::remove(&path).map_err(Error::Checkpoint)?;
        }
        std::fs::rename(&loaded, &path).map_err(|detail| Error::Io { what: "moving the restored state to", path: path.clone(), detail })?;
        open_once(&path, &cell)
    })
    .await
}

/// A state whose last output is not what stands in OUT was folded from a log that is gone, while others went on without it. It is put aside, and
/// the newest checkpoint that OUT bears out takes its place, or no state at all.
pub async fn borne_out(config: &Config, streams: &Streams, mut restored: Restored) -> Result<Restored, Error> {
    let mut below = None;
    while let Some(out_seq) = refuted(&restored, streams).await? {
        let at = restored.mark.position;
        tracing::error!(out_seq, position = %at, "OUT holds another output than this state made: the state is put aside");
        let (fresh, first) = (anew(config, restored).await?, first_of(streams).await?);
        restored = match from_checkpoint(config, &archive(config)?, fresh, first, below).await? {
            Ok(older) => older,
            Err(fresh) if fresh.reaches(first) => return Ok(fresh),
            Err(_) => {
                let (stream, newest) = (streams.log.cached_info().config.name.clone(), "none that OUT bears out".to_owned());
                return Err(Error::LogTrimmed { stream, first, at: Position::default(), newest, archive: config.archive_url() });
            }
        };
        below = Some(restored.mark.position);
    }
    Ok(restored)
}

/// The number of an output that this state has made, if OUT holds another one there. Of those that were known to stand the last one speaks for
/// all: no two records make the same bytes, for they carry the time at which the log took the record. Of the others each is looked at: what was
/// sent in one go may stand behind another's message that has taken the place of the first.
async fn refuted(restored: &Restored, streams: &Streams) -> Result<Option<u64>, Error> {
    let Some(commit) = &restored.commit else { return Ok(None) };
    let stream = || streams.out.cached_info().config.name.clone();
    let info = streams.out.get_info().await;
    let last = info.map_err(|error| Error::Stream { stream: stream(), what: "asking for it", detail: error.to_string() })?.state.last_sequence;
    for made in restored.store.outputs_from(last.min(restored.store.standing()?)) {
        let made = made?;
        if made.out_seq > last.min(commit.out_seq) {
            break;
        }
        match streams.out.get_raw_message(made.out_seq).await {
            Ok(found) if *found.subject != *made.subject || found.payload != made.bytes => return Ok(Some(made.out_seq)),
            Ok(_) => {}
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(Error::Stream { stream: stream(), what: "comparing it", detail: error.to_string() }),
        }
    }
    Ok(None)
}

/// Puts our own store aside and begins without a state.
pub async fn anew(config: &Config, own: Restored) -> Result<Restored, Error> {
    let (path, cell) = (config.state_path(), config.cell.clone());
    blocking(move || {
        drop(own);
        set_aside(&path)?;
        std::fs::create_dir_all(&path).map_err(|detail| Error::Io { what: "creating", path: path.clone(), detail })?;
        open_once(&path, &cell)
    })
    .await
}

/// Numbers what follows behind everything that stands in OUT, and commits that. The fold itself says which records are missing.
async fn accept_loss(own: Restored, streams: &Streams) -> Result<Restored, Error> {
    let Restored { store, mut state, mark, commit } = own;
    let (out_seq, decision_seq) = last_of_out(state.cell(), streams).await?;
    state.number_after(out_seq, decision_seq);
    let commit = mark.commit(&state, commit.and_then(|commit| commit.sealed));
    blocking(move || {
        store.commit(&commit, &state.take_dirty(), [], [])?;
        Ok(Restored { store, state, mark, commit: Some(commit) })
    })
    .await
}

/// The numbers of the last output and of the last decision that stand in OUT.
async fn last_of_out(cell: &CellId, streams: &Streams) -> Result<(u64, u64), Error> {
    let stream = streams.out.cached_info().config.name.clone();
    let failed = |detail: String| Error::Stream { stream: stream.clone(), what: "reading it", detail };
    let last = streams.out.get_info().await.map_err(|error| failed(error.to_string()))?.state.last_sequence;
    let decision = match streams.out.get_last_raw_message_by_subject(&format!("{ROOT}.{cell}.out.decision.*")).await {
        Ok(message) => {
            let strange = |error: serde_json::Error| Error::StreamUnusable { stream: stream.clone(), what: "reading it", detail: error.to_string() };
            let event: serde_json::Value = serde_json::from_slice(&message.payload).map_err(strange)?;
            event["data"]["decision_seq"].as_u64().unwrap_or(0)
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => 0,
        Err(error) => return Err(failed(error.to_string())),
    };
    Ok((last, decision))
}

/// Up to where OUT is right as far as the store knows, and the outputs behind that: those that stand are compared, the rest is published.
pub async fn outbox(store: &Store, streams: &Streams, out_seq: u64) -> Result<(u64, VecDeque<Arc<Output>>), Error> {
    let stream = streams.out.cached_info().config.name.clone();
    let info = streams.out.get_info().await;
    let last = info.map_err(|error| Error::Stream { stream: stream.clone(), what: "reading it", detail: error.to_string() })?.state.last_sequence;
    let (store, from) = (store.clone(), last.min(store.standing()?).max(1));
    let read = tokio::task::spawn_blocking(move || store.outputs_from(from).map(|output| output.map(Arc::new)).collect::<Result<VecDeque<_>, _>>());
    let kept = read.await.map_err(|error| Error::PartEnded { part: "reading the outputs", detail: error.to_string() })??;
    let first = kept.front().map_or(out_seq + 1, |output| output.out_seq);
    if last < out_seq && first > last + 1 {
        return Err(Error::OutBehind { stream, last, kept: first });
    }
    Ok((first - 1, kept))
}
