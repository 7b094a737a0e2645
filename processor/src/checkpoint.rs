//! Checkpoints of the state: what stands in for the log where that has been trimmed.
//!
//! The active replica copies a hard-link checkpoint of the store to the archive now and then, beside the loop, which never waits for it. A state
//! that is lost is [`load`]ed from the [`newest`] of them and folds on from there. The files are RocksDB's; a manifest, put last, says what state they are.
#![expect(clippy::disallowed_methods, reason = "how old the newest checkpoint is and how long one took are metrics")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plimsoll_archive::checkpoints::About;
use plimsoll_archive::{Archive, Checkpoint, Checkpoints};
use plimsoll_fold::{LOGIC, State};
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::retention;
use plimsoll_store::{Commit, FORMAT, Store};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::{Metrics, signed};

/// How many are kept.
pub const KEPT: usize = retention::CHECKPOINTS_KEPT as usize;
/// How often the newest one's age is shown and the next one considered.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no checkpoint, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object store.
    #[error(transparent)]
    Archive(#[from] plimsoll_archive::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] plimsoll_store::Error),
    /// A folder on this machine.
    #[error("{path}: {detail}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        detail: std::io::Error,
    },
    /// What was loaded is not what its manifest says.
    #[error("the checkpoint of {position} is damaged: {what} is {found}, its manifest says {expected}")]
    Differs {
        /// Which.
        position: Position,
        /// What was compared.
        what: &'static str,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Another build's.
    #[error(
        "the checkpoint of {position} has format {format} and logic {logic}, this build reads format {FORMAT} and folds by logic {LOGIC}: \
         run the build that wrote it, or a newer one"
    )]
    Newer {
        /// Which.
        position: Position,
        /// Its format.
        format: u32,
        /// Its logic.
        logic: u32,
    },
    /// An older build's format.
    #[error("the checkpoint of {position} has format {format}, this build reads format {FORMAT}")]
    Older {
        /// Which.
        position: Position,
        /// Its format.
        format: u32,
    },
    /// A thread that may block ended without an answer.
    #[error("interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// The positions of all checkpoints, newest first.
pub async fn list(archive: &Archive) -> Result<Vec<Position>, Error> {
    Ok(Checkpoints::of(archive).list().await?)
}

/// The newest checkpoint whose manifest can be read, at or before a position if one is given.
pub async fn newest(archive: &Archive, up_to: Option<Position>) -> Result<Option<Checkpoint>, Error> {
    let checkpoints = Checkpoints::of(archive);
    for position in checkpoints.list().await?.into_iter().filter(|position| up_to.is_none_or(|up_to| *position <= up_to)) {
        match checkpoints.read(position).await {
            Ok(found) => return Ok(Some(found)),
            Err(error @ (plimsoll_archive::Error::Damaged { .. } | plimsoll_archive::Error::Absent { .. })) => {
                tracing::warn!(%error, %position, "this checkpoint is passed over");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Copies a checkpoint into a folder, which must not be there yet, and proves it: every file by its hash, the whole by digest, the state by
/// its rolling hash. The folder then is a store that [`Store::open`] opens. On an error the folder is removed.
pub async fn load(archive: &Archive, checkpoint: &Checkpoint, into: &Path) -> Result<Commit, Error> {
    let About { position, format, logic, .. } = checkpoint.about;
    if format > FORMAT || logic > LOGIC {
        return Err(Error::Newer { position, format, logic });
    }
    if format < FORMAT {
        return Err(Error::Older { position, format });
    }
    let outcome = match Checkpoints::of(archive).load(checkpoint, into).await {
        Ok(()) => {
            let (about, into) = (checkpoint.about.clone(), into.to_owned());
            tokio::task::spawn_blocking(move || prove(&about, &into)).await?
        }
        Err(error) => Err(error.into()),
    };
    if outcome.is_err() {
        // Whoever calls hears of the error itself; a rest that stays is removed before the next attempt.
        let _ = std::fs::remove_dir_all(into);
    }
    outcome
}

fn prove(about: &About, folder: &Path) -> Result<Commit, Error> {
    let position = about.position;
    let differs = |what, found: String, expected: String| Error::Differs { position, what, found, expected };
    let store = Store::open_read_only(folder)?;
    let Some((commit, entries)) = store.load()? else {
        return Err(differs("its commit", "absent".to_owned(), position.to_string()));
    };
    if (commit.position, commit.hash) != (position, about.hash) {
        return Err(differs("its commit", format!("{} {:016x}", commit.position, commit.hash), format!("{position} {:016x}", about.hash)));
    }
    let digest = store.digest()?;
    if digest != about.digest {
        return Err(differs("the digest of its state", format!("{digest:016x}"), format!("{:016x}", about.digest)));
    }
    let state =
        State::restore(about.cell.clone(), entries.into_iter()).map_err(|error| differs("its state", error.to_string(), "readable".to_owned()))?;
    if (state.position(), state.hash()) != (position, about.hash) {
        return Err(differs("its state", format!("{} {:016x}", state.position(), state.hash()), format!("{position} {:016x}", about.hash)));
    }
    Ok(commit)
}

/// Makes a checkpoint of the store's last commit. Nothing to do (`None`) if there is no commit yet, or one of its position already.
pub async fn take(archive: &Archive, store: &Store, state_path: &Path, cell: &CellId, replica: &str) -> Result<Option<Checkpoint>, Error> {
    let folder = beside(state_path, ".checkpoint");
    let (store, linked, cell, replica) = (store.clone(), folder.clone(), cell.clone(), replica.to_owned());
    let described = tokio::task::spawn_blocking(move || link(&store, &linked, cell, replica)).await?;
    let put = match described {
        Ok(Some(about)) => match Checkpoints::of(archive).put(&folder, about).await {
            Ok(made) => Ok(Some(made)),
            Err(plimsoll_archive::Error::CheckpointTaken { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        },
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    remove(&folder)?;
    put
}

/// Links the store's files into a folder of our own and says what state they are.
fn link(store: &Store, folder: &Path, cell: CellId, replica: String) -> Result<Option<About>, Error> {
    remove(folder)?;
    if store.last_commit()?.is_none() {
        return Ok(None);
    }
    store.checkpoint(folder)?;
    // A commit may have come in between: what was linked speaks for itself.
    let linked = Store::open_read_only(folder)?;
    let Some(commit) = linked.last_commit()? else { return Ok(None) };
    Ok(Some(About {
        cell,
        position: commit.position,
        hash: commit.hash,
        digest: linked.digest()?,
        logic: commit.logic,
        format: FORMAT,
        log_created_at_ns: commit.log_created_at_ns,
        message_hash: commit.message_hash,
        logged_at: commit.logged_at,
        out_seq: commit.out_seq,
        decision_seq: commit.decision_seq,
        created_at_ns: now_ns(),
        replica,
    }))
}

/// The same path with an ending: beside it, on the same disk.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Removes a folder that may be absent.
pub(crate) fn remove(folder: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(detail) => Err(Error::Io { path: folder.to_owned(), detail }),
    }
}

fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

/// What the checkpointer works with.
pub struct With {
    /// Where they go.
    pub archive: Archive,
    /// The store.
    pub store: Store,
    /// Its folder.
    pub state_path: PathBuf,
    /// The cell.
    pub cell: CellId,
    /// Name of this replica.
    pub replica: String,
    /// Time between two.
    pub every: Duration,
    /// How long the LOG keeps a record; zero = for ever.
    pub log_age_max: Duration,
    /// Whether this replica is the active one: the others only watch.
    pub active: watch::Receiver<bool>,
    /// What readiness shows.
    pub health: Health,
    /// What is counted.
    pub metrics: Metrics,
}

/// Makes a checkpoint when one is due, and watches how old the newest is.
pub struct Checkpointer {
    with: With,
    /// Position and time of making (ns UTC) of the newest one known.
    newest: Option<(Position, i64)>,
    began_ns: i64,
    overdue: bool,
}

impl Checkpointer {
    /// One that has not looked yet.
    pub fn new(with: With) -> Self {
        Self { with, newest: None, began_ns: now_ns(), overdue: false }
    }

    /// Runs until `stop`. A checkpoint that fails is counted and tried again; the loop and its store are not disturbed.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut beat = tokio::time::interval(LOOK);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tried_ns = self.began_ns;
        self.look().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = beat.tick() => {}
            }
            let now = now_ns();
            let since = self.newest.map_or(self.began_ns, |(_, at)| at).max(tried_ns);
            if nanoseconds(self.with.every) <= now.saturating_sub(since) {
                tried_ns = now;
                if *self.with.active.borrow() { self.make().await } else { self.look().await }
            }
            self.show(now);
        }
    }

    async fn make(&mut self) {
        let began = Instant::now();
        let With { archive, store, state_path, cell, replica, metrics, .. } = &self.with;
        let outcome = match take(archive, store, state_path, cell, replica).await {
            Ok(made) => Checkpoints::of(archive).keep(KEPT, now_ns()).await.map(|dropped| (made, dropped)).map_err(Error::from),
            Err(error) => Err(error),
        };
        match outcome {
            Ok((Some(made), dropped)) => {
                let took_ms = began.elapsed().as_millis() as u64;
                metrics.checkpoints.inc();
                metrics.checkpoint_seconds.0.observe(began.elapsed().as_secs_f64());
                metrics.checkpoint_bytes.set(signed(made.bytes()));
                tracing::info!(position = %made.about.position, files = made.files.len(), bytes = made.bytes(), took_ms, "checkpoint made");
                for position in dropped {
                    tracing::info!(%position, kept = KEPT, "an older checkpoint was deleted");
                }
                self.newest = Some((made.about.position, made.about.created_at_ns));
            }
            Ok((None, _)) => self.look().await,
            Err(error) => {
                metrics.checkpoint_failures.inc();
                tracing::error!(%error, "no checkpoint was made; the next attempt follows");
            }
        }
    }

    async fn look(&mut self) {
        match newest(&self.with.archive, None).await {
            Ok(found) => self.newest = found.map(|found| (found.about.position, found.about.created_at_ns)),
            Err(error) => tracing::warn!(%error, "the checkpoints cannot be read"),
        }
    }

    /// Shows the newest one's age. The alarm is a third of what the LOG keeps: two more attempts still reach into it.
    fn show(&mut self, now: i64) {
        let age_ns = now.saturating_sub(self.newest.map_or(self.began_ns, |(_, at)| at)).max(0);
        let limit_ns = nanoseconds(self.with.log_age_max) / 3;
        let overdue = limit_ns > 0 && age_ns > limit_ns;
        let metrics = &self.with.metrics;
        metrics.checkpoint_age_seconds.set(age_ns / 1_000_000_000);
        metrics.checkpoint_position.set(self.newest.map_or(0, |(position, _)| signed(position.sequence)));
        metrics.checkpoint_overdue.set(i64::from(overdue));
        self.with.health.checkpoint_overdue(overdue);
        if overdue && !self.overdue {
            let (age_s, limit_s) = (age_ns / 1_000_000_000, limit_ns / 1_000_000_000);
            tracing::error!(
                age_s,
                limit_s,
                "the newest checkpoint is older than a third of what the log keeps: a lost state could soon not be rebuilt"
            );
        }
        self.overdue = overdue;
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
