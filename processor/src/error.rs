//! Why the processor stops. Every message says what was found, what was expected and what to do.

use std::net::SocketAddr;
use std::path::PathBuf;

use plimsoll_schemas::id::Position;

/// What ends the processor. What can be tried again never gets here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken or not allowed.
    #[error("cannot listen on {address} for {what}: {detail}; free the port or choose another (0 = any free one)")]
    Bind {
        /// Which door.
        what: &'static str,
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        detail: std::io::Error,
    },
    /// The broker does not answer.
    #[error("no nats-server at {url}: {detail}")]
    Connect {
        /// Where.
        url: String,
        /// What went wrong.
        detail: String,
    },
    /// The broker is there and lets nobody in, or its address is none.
    #[error("nats-server at {url} cannot be used: {detail}")]
    ConnectRefused {
        /// Where.
        url: String,
        /// What it said.
        detail: String,
    },
    /// The broker keeps no streams.
    #[error("nats-server at {url} runs without JetStream: start it with a jetstream {{ … }} block, as in deploy/nats/production.conf")]
    NoJetStream {
        /// Where.
        url: String,
    },
    /// The broker is too old.
    #[error(transparent)]
    BrokerTooOld(#[from] plimsoll_schemas::subject::BrokerTooOld),
    /// JetStream refused something that it must allow, or holds something that it must not: trying again is no remedy.
    #[error("stream {stream}: {what} failed for good: {detail}")]
    StreamUnusable {
        /// Which stream.
        stream: String,
        /// What was tried.
        what: &'static str,
        /// What the broker said.
        detail: String,
    },
    /// JetStream did not do something that it must do. It may be away.
    #[error("stream {stream}: {what} failed: {detail}")]
    Stream {
        /// Which stream.
        stream: String,
        /// What was tried.
        what: &'static str,
        /// What the broker said.
        detail: String,
    },
    /// A stream stands with settings that would break the pipeline.
    #[error("stream {stream} has {setting} = {found}, it must be {wanted}: change the stream, or delete it if nothing in it is needed")]
    StreamDiffers {
        /// Which stream.
        stream: String,
        /// Which setting.
        setting: &'static str,
        /// What stands.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// The LOG is not the one that was folded.
    #[error("the log {stream} is not the one this state was folded from: {what} is {found}, expected {expected}")]
    LogReplaced {
        /// Which stream.
        stream: String,
        /// What differs.
        what: &'static str,
        /// What the log says.
        found: String,
        /// What the commit says.
        expected: String,
    },
    /// The log says that everybody goes on in a newer epoch.
    #[error("at {position} the log says that everybody goes on in log epoch {epoch}")]
    BehindEpoch {
        /// Number of that epoch.
        epoch: u32,
        /// Where it is said.
        position: Position,
    },
    /// The state with which a new log epoch begins is not there.
    #[error(
        "log epoch {epoch} begins with the state at {base}, and {archive} has neither its checkpoint nor a later one: \
         give this replica the archive of the one that was active"
    )]
    NoEpochBase {
        /// Number of the epoch.
        epoch: u32,
        /// Where it begins.
        base: Position,
        /// Where its checkpoint was looked for.
        archive: String,
    },
    /// A state that should begin a log epoch is another one.
    #[error(transparent)]
    AnotherBase(#[from] plimsoll_fold::epoch::AnotherBase),
    /// OUT does not hold what the fold produced since the last commit.
    #[error(
        "output {out_seq} stands in {stream} as {found}, the fold produced {produced}: what was folded since the last commit is not what was published"
    )]
    OutDiffers {
        /// Which stream.
        stream: String,
        /// Which output.
        out_seq: u64,
        /// What stands.
        found: String,
        /// What was produced.
        produced: String,
    },
    /// OUT does not hold what was committed, or what the active replica has published is not what this one folds.
    #[error(
        "output {out_seq} stands in {stream} as {found}, {by} produced {produced}: one of them is wrong, nothing more is published; \
         see `plimsoll verify`, then move the data folder away to start from a checkpoint"
    )]
    OutRefutes {
        /// Which stream.
        stream: String,
        /// Which output.
        out_seq: u64,
        /// What stands.
        found: String,
        /// What was produced.
        produced: String,
        /// By whom.
        by: &'static str,
    },
    /// OUT ends before the oldest output still kept.
    #[error(
        "{stream} ends at {last}, and the store keeps outputs only from {kept}: restore {stream}, or move it and the data folder away to start anew"
    )]
    OutBehind {
        /// Which stream.
        stream: String,
        /// Its last sequence.
        last: u64,
        /// The oldest output kept.
        kept: u64,
    },
    /// OUT lost outputs that it was known to hold.
    #[error("{stream} ends at {last}, it held {held}: what it lost is published again")]
    OutWentBack {
        /// Which stream.
        stream: String,
        /// Its last sequence.
        last: u64,
        /// What it was known to hold.
        held: u64,
    },
    /// OUT holds more than the log makes.
    #[error(
        "OUT ends at {last}, the log up to {position} makes {made} outputs: it has lost records that OUT tells of, or something else writes to OUT"
    )]
    OutSurplus {
        /// Where OUT ends.
        last: u64,
        /// How many the log makes; all of them stand.
        made: u64,
        /// How far the log was folded.
        position: Position,
    },
    /// This replica folded the same records to another state than the active one.
    #[error(
        "this state differs from the active replica's: at {position} the hash is {own}, {replica} says {theirs}; \
         move the state folder away to have it folded again, and report both hashes"
    )]
    Diverged {
        /// Up to where.
        position: Position,
        /// The own hash.
        own: String,
        /// The active replica.
        replica: String,
        /// Its hash.
        theirs: String,
    },
    /// OUT gave a message another number than its own.
    #[error("{stream} stored output {out_seq} as sequence {sequence}: something else writes there")]
    OutNumber {
        /// Which stream.
        stream: String,
        /// The output.
        out_seq: u64,
        /// What the stream says.
        sequence: u64,
    },
    /// The store failed in a way that a rebuild does not mend.
    #[error(transparent)]
    Store(#[from] plimsoll_store::Error),
    /// A checkpoint cannot be used at all.
    #[error(transparent)]
    Checkpoint(crate::checkpoint::Error),
    /// The LOG begins behind everything that is known.
    #[error(
        "the log {stream} begins at {first}, the state here ends at {at}, and no checkpoint in {archive} reaches into it ({newest}): \
         restore the state folder, a checkpoint or the log; or start once with --accept-loss, then the records between are lost and said to be"
    )]
    LogTrimmed {
        /// Which stream.
        stream: String,
        /// The first sequence it still has.
        first: u64,
        /// Where the own state ends.
        at: Position,
        /// What is known of the newest checkpoint.
        newest: String,
        /// Where checkpoints were looked for.
        archive: String,
    },
    /// A tool was given a folder that something is in.
    #[error("{path} is not empty: a rebuilt store needs a folder of its own")]
    NotEmpty {
        /// Folder.
        path: PathBuf,
    },
    /// A tool cannot begin where it was told to.
    #[error("{wanted} is not there: the log begins at {first}, and checkpoints that reach into it may help (--from checkpoint)")]
    NoBase {
        /// What was looked for.
        wanted: String,
        /// The first sequence of the log.
        first: u64,
    },
    /// A tool was asked for a place outside the log.
    #[error("{sequence} is outside what can be reached: {first} to {last}")]
    NotInLog {
        /// What was asked for.
        sequence: u64,
        /// The first that can be reached.
        first: u64,
        /// The last.
        last: u64,
    },
    /// What was folded again is not what was written down; the tool says what.
    #[error("the fold and what was written down differ")]
    Differs,
    /// A tool was asked for something that does not exist.
    #[error("no {what} {name:?}; there are {known}")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A stored entry is not what a state writes.
    #[error("{detail}")]
    Unreadable {
        /// Which, and why.
        detail: String,
    },
    /// A tool was asked about a store in which nothing was committed.
    #[error("{path} holds no commit: there is nothing to show")]
    NoCommit {
        /// Folder.
        path: PathBuf,
    },
    /// The store was made by a newer logic.
    #[error("the state in {path} was folded by logic {found}, this build folds by logic {known}: run the build that wrote it, or a newer one")]
    Logic {
        /// Folder.
        path: PathBuf,
        /// What stands.
        found: u32,
        /// What this build does.
        known: u32,
    },
    /// A file-system operation failed.
    #[error("{what} {path}: {detail}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        detail: std::io::Error,
    },
    /// The archive cannot be opened.
    #[error("archive {url}: {detail}")]
    Archive {
        /// Where.
        url: String,
        /// What went wrong.
        detail: String,
    },
    /// The archive is ahead of the log.
    #[error(
        "the archive {url} holds rows up to {archive}, the log ends at {log}: it belongs to another log; restore the log or choose another archive"
    )]
    ArchiveAhead {
        /// Where.
        url: String,
        /// What its manifest says.
        archive: Position,
        /// The log's end.
        log: Position,
    },
    /// A part of the processor ended by itself.
    #[error("{part} ended unexpectedly: {detail}")]
    PartEnded {
        /// Which.
        part: &'static str,
        /// How.
        detail: String,
    },
}

impl Error {
    /// The first output of which OUT shows something else than was folded.
    pub fn differs_at(&self) -> Option<u64> {
        if let Self::OutDiffers { out_seq, .. } = self { Some(*out_seq) } else { None }
    }

    /// The same difference where going on from the last commit is no remedy.
    pub fn refutes(self, by: &'static str) -> Self {
        if let Self::OutDiffers { stream, out_seq, found, produced } = self {
            return Self::OutRefutes { stream, out_seq, found, produced, by };
        }
        self
    }

    /// The last output that the log makes, where OUT shows more.
    pub fn surplus_over(&self) -> Option<u64> {
        if let Self::OutSurplus { made, .. } = self { Some(*made) } else { None }
    }

    /// Whether it passes once the broker is there and answers: nothing else is wrong.
    pub fn is_broker_away(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Stream { .. })
    }

    /// Whether the remedy is to close everything and to open it again from the last commit.
    pub fn heals_by_reopening(&self) -> bool {
        matches!(
            self,
            Self::OutWentBack { .. } | Self::OutDiffers { .. } | Self::OutSurplus { .. } | Self::LogReplaced { .. } | Self::BehindEpoch { .. }
        )
    }
}
