//! Where the processor goes on: the store's last commit, or the beginning of the log if there is none or it is damaged.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use plimsoll_fold::State;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::out::Output;
use plimsoll_store::{Commit, Store};

use crate::config::Config;
use crate::engine::LOGIC;
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

/// Opens the store and restores the state. What is damaged is set aside, and the log is folded again.
pub async fn open(config: &Config) -> Result<Restored, Error> {
    let (path, cell) = (config.state_path(), config.cell.clone());
    let task = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&path).map_err(|detail| Error::Io { what: "creating", path: path.clone(), detail })?;
        match open_once(&path, &cell) {
            Err(Error::Store(plimsoll_store::Error::Damaged { detail, .. })) => {
                tracing::error!(detail, "the store is damaged");
                set_aside(&path)?;
                open_once(&path, &cell)
            }
            outcome => outcome,
        }
    });
    task.await.unwrap_or_else(|error| Err(Error::PartEnded { part: "opening the store", detail: error.to_string() }))
}

/// Moves a damaged store out of the way, so that the log is folded again from its beginning.
pub fn set_aside(path: &Path) -> Result<(), Error> {
    let aside = plimsoll_store::set_aside(path).map_err(|detail| Error::Io { what: "setting aside", path: path.to_owned(), detail })?;
    tracing::error!(aside = %aside.display(), "the damaged store was set aside: the log is folded again from its beginning");
    Ok(())
}

fn open_once(path: &Path, cell: &CellId) -> Result<Restored, Error> {
    let damaged = |detail: String| Error::Store(plimsoll_store::Error::Damaged { path: path.to_owned(), detail });
    let store = Store::open(path)?;
    let Some((commit, entries)) = store.load()? else {
        return Ok(Restored { store, state: State::new(cell.clone()), mark: Mark::start(), commit: None });
    };
    if commit.logic != LOGIC {
        return Err(Error::Logic { path: path.to_owned(), found: commit.logic, known: LOGIC });
    }
    let state = State::restore(cell.clone(), entries.into_iter()).map_err(|error| damaged(error.to_string()))?;
    if (state.position(), state.hash()) != (commit.position, commit.hash) {
        let (position, hash) = (state.position(), state.hash());
        return Err(damaged(format!("the state is at {position} with hash {hash:016x}, its commit says {} {:016x}", commit.position, commit.hash)));
    }
    let mark =
        Mark { position: commit.position, created_at_ns: commit.log_created_at_ns, message_hash: commit.message_hash, logged_at: commit.logged_at };
    tracing::info!(position = %commit.position, out_seq = commit.out_seq, "going on from the last commit");
    Ok(Restored { store, state, mark, commit: Some(commit) })
}

/// Up to where OUT is right as far as the store knows, and the outputs behind that: those that stand are compared, the rest is published.
pub async fn outbox(store: &Store, streams: &Streams, out_seq: u64) -> Result<(u64, VecDeque<Arc<Output>>), Error> {
    let stream = streams.out.cached_info().config.name.clone();
    let info = streams.out.get_info().await;
    let last = info.map_err(|error| Error::Stream { stream: stream.clone(), what: "reading it", detail: error.to_string() })?.state.last_sequence;
    let (store, from) = (store.clone(), last.min(out_seq).max(1));
    let read = tokio::task::spawn_blocking(move || store.outputs_from(from).map(|output| output.map(Arc::new)).collect::<Result<VecDeque<_>, _>>());
    let kept = read.await.map_err(|error| Error::PartEnded { part: "reading the outputs", detail: error.to_string() })??;
    let first = kept.front().map_or(out_seq + 1, |output| output.out_seq);
    if last < out_seq && first > last + 1 {
        return Err(Error::OutBehind { stream, last, kept: first });
    }
    Ok((first - 1, kept))
}
