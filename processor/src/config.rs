//! Flags and environment. Transport only: whatever changes what the fold does is a record in the log.

use std::hash::Hasher;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::retention;
use siphasher::sip::SipHasher24;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Folds the log of one cell: windows, leases, placements; publishes what follows, serves the tail and seals the archive.
#[derive(Debug, Clone, Parser)]
#[command(name = "plimsoll-processor", version)]
pub struct Config {
    /// nats-server to read from and write to, or several of one cluster separated by commas.
    #[arg(long, env = "PLIMSOLL_NATS", default_value = "nats://127.0.0.1:14222")]
    pub nats: String,
    /// The cell.
    #[arg(long, env = "PLIMSOLL_CELL", default_value = "local")]
    pub cell: CellId,
    /// Folder for the state (in state/) and, unless told otherwise, the archive (in archive/).
    #[arg(long, env = "PLIMSOLL_DATA_DIR", default_value = "plimsoll-data")]
    pub data_dir: PathBuf,
    /// Folder or file:// URL of the archive.
    #[arg(long, env = "PLIMSOLL_ARCHIVE")]
    pub archive: Option<String>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "PLIMSOLL_HTTP", default_value = "127.0.0.1:9411")]
    pub http: SocketAddr,
    /// Address of the tail (Arrow Flight).
    #[arg(long, env = "PLIMSOLL_TAIL", default_value = "127.0.0.1:9412")]
    pub tail: SocketAddr,
    /// Seconds between seals of the archive.
    #[arg(long, env = "PLIMSOLL_SEAL_INTERVAL_S", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seal_interval_s: u64,
    /// Seconds between commits of the store.
    #[arg(long, env = "PLIMSOLL_COMMIT_INTERVAL_S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub commit_interval_s: u64,
    /// Seconds between checkpoints of the state, copied to the archive.
    #[arg(long, env = "PLIMSOLL_CHECKPOINT_INTERVAL_S", default_value_t = 900, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub checkpoint_interval_s: u64,
    /// Start although records are gone from the log that neither the state nor a checkpoint covers: they are lost, and recorded as a loss.
    #[arg(long, env = "PLIMSOLL_ACCEPT_LOSS")]
    pub accept_loss: bool,
    /// Name of this replica in ticks and status; no two processors of a cell may have the same. Default: made of the host and the data folder.
    #[arg(long, env = "PLIMSOLL_REPLICA")]
    pub replica: Option<String>,
    /// Most bytes of the LOG stream, when it is created.
    #[arg(long, env = "PLIMSOLL_LOG_BYTES_MAX", default_value_t = retention::LOG_BYTES as i64, value_parser = clap::value_parser!(i64).range(1 << 20..))]
    pub log_bytes_max: i64,
    /// Most bytes of the OUT stream, when it is created.
    #[arg(long, env = "PLIMSOLL_OUT_BYTES_MAX", default_value_t = retention::OUT_BYTES as i64, value_parser = clap::value_parser!(i64).range(1 << 20..))]
    pub out_bytes_max: i64,
    /// Replicas of both streams, when they are created: 1 on one server, 3 on a cluster.
    #[arg(long, env = "PLIMSOLL_STREAM_REPLICAS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    pub stream_replicas: u8,
    /// How log lines look.
    #[arg(long, env = "PLIMSOLL_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

impl Config {
    /// Name of this replica: the same at each start, another one for each host and data folder.
    pub fn replica(&self) -> String {
        self.replica.clone().unwrap_or_else(|| {
            // Either may be unreadable on a strange system; the other still tells replicas apart.
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let folder = std::path::absolute(&self.data_dir).unwrap_or_else(|_| self.data_dir.clone());
            let mut hasher = SipHasher24::new_with_key(b"plimsoll-replica");
            hasher.write(host.trim().as_bytes());
            hasher.write_u8(0);
            hasher.write(folder.as_os_str().as_encoded_bytes());
            format!("processor-{:08x}", hasher.finish() >> 32)
        })
    }

    /// Where the store is.
    pub fn state_path(&self) -> PathBuf {
        self.data_dir.join("state")
    }

    /// Where the archive is.
    pub fn archive_url(&self) -> String {
        self.archive.clone().unwrap_or_else(|| self.data_dir.join("archive").to_string_lossy().into_owned())
    }

    /// Time between seals.
    pub fn seal_interval(&self) -> Duration {
        Duration::from_secs(self.seal_interval_s)
    }

    /// Time between checkpoints.
    pub fn checkpoint_interval(&self) -> Duration {
        Duration::from_secs(self.checkpoint_interval_s)
    }

    /// Time between commits.
    pub fn commit_interval(&self) -> Duration {
        Duration::from_secs(self.commit_interval_s)
    }
}
