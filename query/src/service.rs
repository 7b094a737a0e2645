//! The service: its settings, its start, its end.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use plimsoll_archive::Archive;
use plimsoll_schemas::id::CellId;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::doors::{http, postgres};
use crate::engine::Engine;
use crate::limits::Limits;
use crate::tail::processor::Processors;
use crate::tail::{self, Tail};

/// Longest time from a request to stop until the end.
const DRAIN: Duration = Duration::from_secs(10);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Archive and tail to SQL: answers on the Postgres wire and over HTTP, reads only.
#[derive(Debug, Clone, Parser)]
#[command(name = "plimsoll-query", version)]
pub struct Config {
    /// Tail server of the processor, or those of several replicas of one cell separated by commas: one at a time is followed.
    #[arg(long, env = "PLIMSOLL_QUERY_TAIL", default_value = "http://127.0.0.1:9412")]
    pub tail: String,
    /// Folder (or file:// URL) of the archive.
    #[arg(long, env = "PLIMSOLL_ARCHIVE", default_value = "plimsoll-data/archive")]
    pub archive: String,
    /// The cell.
    #[arg(long, env = "PLIMSOLL_CELL", default_value = "local")]
    pub cell: CellId,
    /// Address for HTTP; loopback only.
    #[arg(long, env = "PLIMSOLL_QUERY_HTTP", default_value = "127.0.0.1:8600")]
    pub http: SocketAddr,
    /// Address for the Postgres wire; loopback only.
    #[arg(long, env = "PLIMSOLL_QUERY_PG", default_value = "127.0.0.1:8432")]
    pub pg: SocketAddr,
    /// Longest time a statement may take, seconds.
    #[arg(long, env = "PLIMSOLL_QUERY_DEADLINE_S", default_value_t = 30)]
    pub deadline_s: u64,
    /// Most rows of one answer: HTTP cuts there and says so, Postgres fails with 53400.
    #[arg(long, env = "PLIMSOLL_QUERY_MAX_ROWS", default_value_t = 100_000)]
    pub max_rows: u64,
    /// Memory of all statements together, MiB.
    #[arg(long, env = "PLIMSOLL_QUERY_MEMORY_MB", default_value_t = 1_024)]
    pub memory_mb: usize,
    /// Statements that run at a time.
    #[arg(long, env = "PLIMSOLL_QUERY_MAX_RUNNING", default_value_t = 8)]
    pub max_running: usize,
    /// Statements that wait for their turn.
    #[arg(long, env = "PLIMSOLL_QUERY_MAX_WAITING", default_value_t = 64)]
    pub max_waiting: usize,
    /// Postgres connections at a time.
    #[arg(long, env = "PLIMSOLL_QUERY_MAX_CONNECTIONS", default_value_t = 64)]
    pub max_connections: usize,
    /// Unsealed rows held in memory, MiB.
    #[arg(long, env = "PLIMSOLL_QUERY_TAIL_MB", default_value_t = 2_048)]
    pub tail_mb: usize,
    /// Unsealed rows held in memory.
    #[arg(long, env = "PLIMSOLL_QUERY_TAIL_ROWS", default_value_t = 20_000_000)]
    pub tail_rows: usize,
    /// How log lines look.
    #[arg(long, env = "PLIMSOLL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

impl Config {
    fn limits(&self) -> Limits {
        Limits {
            deadline: Duration::from_secs(self.deadline_s.max(1)),
            rows_max: self.max_rows,
            memory_bytes: self.memory_mb.max(16) << 20,
            running_max: self.max_running,
            waiting_max: self.max_waiting,
            ..Limits::default()
        }
    }
}

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address that others could reach.
    #[error("--{flag} {address}: there is no authentication yet, so only loopback addresses such as 127.0.0.1 are served")]
    NotLoopback {
        /// The flag.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// An address that cannot be listened on.
    #[error("--{flag} {address}: {source}")]
    Bind {
        /// The flag.
        flag: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The archive cannot be used.
    #[error(transparent)]
    Archive(#[from] plimsoll_archive::Error),
    /// The engine cannot be set up.
    #[error(transparent)]
    Engine(#[from] crate::error::Error),
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    /// Where HTTP is served.
    pub http: SocketAddr,
    /// Where the Postgres wire is served.
    pub pg: SocketAddr,
    /// The engine behind both.
    pub engine: Engine,
    /// What follows the processor.
    pub tail: Tail,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Service {
    /// Opens the archive, binds both doors and begins to follow the processor, which may come later.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        let (http_door, pg_door) = (bind("http", config.http).await?, bind("pg", config.pg).await?);
        let address = |door: &TcpListener, asked: SocketAddr| door.local_addr().unwrap_or(asked);
        let (http, pg) = (address(&http_door, config.http), address(&pg_door, config.pg));
        let archive = Archive::open(&config.archive, &config.cell)?;
        let processors = Processors::at(&config.tail)?;
        let tail = Tail::new(config.cell.clone(), tail::Limits { rows: config.tail_rows, bytes: config.tail_mb << 20 });
        let engine = Engine::new(tail.clone(), Some(processors.clone()), archive.clone(), config.limits())?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tail.start(&processors, &archive, &tasks, &stop);
        tasks.spawn(postgres::serve(pg_door, engine.clone(), config.max_connections, tasks.clone(), stop.clone()));
        let (for_http, until) = (engine.clone(), stop.clone());
        tasks.spawn(async move {
            if let Err(error) = http::serve(http_door, for_http, until).await {
                tracing::error!(%error, "the HTTP door failed");
            }
        });
        Ok(Self { http, pg, engine, tail, stop, tasks })
    }

    /// Closes the doors, lets what is being answered finish for a while, and ends. Returns whether all of it ended by itself.
    pub async fn stop(self) -> bool {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(DRAIN, self.tasks.wait()).await.is_ok()
    }
}

async fn bind(flag: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    if !address.ip().is_loopback() {
        return Err(StartError::NotLoopback { flag, address });
    }
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { flag, address, source })
}
