//! What can go wrong for someone who types a command: every message says what to do next.

use std::path::PathBuf;

/// Why a command ended without doing what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, a pipe or a process.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// What was asked for cannot be asked for.
    #[error("{0}")]
    Usage(String),
    /// No broker, or it does not take or give what was asked.
    #[error("{what} ({url}): {detail}. {hint}")]
    Broker {
        /// What was being done.
        what: String,
        /// The broker.
        url: String,
        /// Its answer.
        detail: String,
        /// What to do next.
        hint: &'static str,
    },
    /// No query service.
    #[error("no query service answers at {address}: {detail}. Is the pipeline up? Start it with `plimsoll up`, or name it with --pg")]
    NoQuery {
        /// Where it was looked for.
        address: String,
        /// The client library's answer.
        detail: String,
    },
    /// No processor.
    #[error("no processor answers at {url}: {detail}. Is the pipeline up? Start it with `plimsoll up`, or name the processor with --processor")]
    NoProcessor {
        /// Where it was looked for.
        url: String,
        /// What came instead of an answer.
        detail: String,
    },
    /// The query service refused the question.
    #[error("{0}")]
    Refused(String),
    /// Nothing came back in time.
    #[error("no decision on request {request_id} within {seconds} s; it may still come: ask again with --request-id {request_id}.{hint}")]
    NoDecision {
        /// The request.
        request_id: String,
        /// How long it was waited for.
        seconds: u64,
        /// What else is known.
        hint: String,
    },
    /// Another `up` has the data folder.
    #[error("another `plimsoll up` (process {pid}) uses {}: stop it first, or choose another folder with --data-dir", dir.display())]
    Locked {
        /// The data folder.
        dir: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// A port that is needed is taken.
    #[error(
        "port {port} on 127.0.0.1, needed for {what}, is taken by another program. Stop that one, or choose another port with {flag} (0 or --ports auto = any free one)"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// What it was for.
        what: &'static str,
        /// The flag that changes it.
        flag: &'static str,
    },
    /// No nats-server on this machine.
    #[error(
        "nats-server was not found: looked for {looked}. Install nats-server 2.10 or newer on PATH, or name it with --nats-server, or run `make tools` in the source folder, which unpacks a pinned one"
    )]
    NatsMissing {
        /// The places.
        looked: String,
    },
    /// A nats-server that cannot be used.
    #[error("{path}: {detail}. Name another one with --nats-server")]
    NatsUnusable {
        /// The program.
        path: String,
        /// Why not.
        detail: String,
    },
    /// One of our own programs is not there.
    #[error("{} was not found beside plimsoll: build all programs with `cargo build --workspace`", path.display())]
    ProgramMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A part ended where it must not.
    #[error("{part} {what}. The end of its log, {}:\n{tail}", log.display())]
    PartDied {
        /// Which part.
        part: &'static str,
        /// How it ended.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The last lines.
        tail: String,
    },
    /// Everything runs, but not all of it became ready.
    #[error("not ready after {seconds} s: {waiting_for}. The logs are in {}", logs.display())]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
        /// What is missing.
        waiting_for: String,
        /// Where to look.
        logs: PathBuf,
    },
    /// A file that holds something else than it should.
    #[error("{place}: {what}: {hint}")]
    Data {
        /// The file, and where in it.
        place: String,
        /// What is there and what was expected.
        what: String,
        /// What to do next.
        hint: &'static str,
    },
    /// The cases could not be run at all.
    #[error("{0}")]
    Conformance(String),
}

impl Error {
    /// True where the reader of our output has gone, which is no failure.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
