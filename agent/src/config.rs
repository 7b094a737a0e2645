//! What the agent is told: flags, each also as an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use plimsoll_schemas::id::CellId;

/// Reads a source of GPU telemetry and publishes it to the log of a cell.
///
/// Starts and stays healthy without broker, driver or endpoint: it says what is missing and tries again. /metrics carries a series per
/// GPU for up to 256 GPUs in this process.
#[derive(Debug, Clone, Parser)]
#[command(name = "plimsoll-agent", version, about)]
pub struct Config {
    /// Where readings come from; auto = what the other flags imply, else nvml.
    #[arg(long, value_enum, default_value_t = SourceKind::Auto, env = "PLIMSOLL_AGENT_SOURCE")]
    pub source: SourceKind,
    /// Broker, or several separated by commas.
    #[arg(long, default_value = "nats://127.0.0.1:14222", env = "PLIMSOLL_NATS")]
    pub nats: String,
    /// Credentials file of the broker.
    #[arg(long, env = "PLIMSOLL_NATS_CREDS")]
    pub nats_creds: Option<PathBuf>,
    /// Cell whose log takes the telemetry.
    #[arg(long, default_value = "local", env = "PLIMSOLL_CELL")]
    pub cell: CellId,
    /// Name of this host; default: the system's (nvml, replay) or the one in the scrape (dcgm).
    #[arg(long, env = "PLIMSOLL_AGENT_HOST")]
    pub host: Option<String>,
    /// Folder that keeps the epoch over restarts; without it the start time is the epoch.
    #[arg(long, env = "PLIMSOLL_AGENT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Address of /healthz, /readyz and /metrics; port 0 = any free.
    #[arg(long, default_value = "127.0.0.1:9410", env = "PLIMSOLL_AGENT_HTTP")]
    pub http: SocketAddr,
    /// Spacing of ticks, ms.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(10..=3_600_000), env = "PLIMSOLL_AGENT_INTERVAL_MS")]
    pub interval_ms: u32,
    /// Ticks per frame: more is cheaper, and later.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60), env = "PLIMSOLL_AGENT_PUBLISH_TICKS")]
    pub publish_ticks: u32,
    /// Most telemetry kept in memory while the broker is away, MiB; beyond that the oldest is dropped, counted and reported as a gap.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536), env = "PLIMSOLL_AGENT_BUFFER_MB")]
    pub buffer_mb: u32,
    /// Logs as text or JSON, to stderr. RUST_LOG sets the level.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "PLIMSOLL_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Flags of the simulated fleet.
    #[command(flatten)]
    pub sim: SimConfig,
}

/// Where readings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// What the other flags imply.
    Auto,
    /// A simulated fleet.
    Sim,
}

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Flags of the simulated fleet.
#[derive(Debug, Clone, clap::Args)]
pub struct SimConfig {
    /// Simulated hosts; implies --source sim.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000), env = "PLIMSOLL_AGENT_SIM_HOSTS")]
    pub sim_hosts: Option<u32>,
    /// GPUs per simulated host.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256), env = "PLIMSOLL_AGENT_SIM_GPUS")]
    pub sim_gpus: u32,
    /// Seed of the simulated fleet: the same seed gives the same GPUs and signals.
    #[arg(long, default_value_t = 1, env = "PLIMSOLL_AGENT_SEED")]
    pub seed: u64,
    /// Fault script (TOML, or JSON if named *.json).
    #[arg(long, env = "PLIMSOLL_AGENT_SIM_FAULTS")]
    pub sim_faults: Option<PathBuf>,
    /// Stop simulating after that many ticks.
    #[arg(long, env = "PLIMSOLL_AGENT_SIM_TICKS")]
    pub sim_ticks: Option<u64>,
    /// Simulated seconds per second: jobs come and go that much faster, ticks do not.
    #[arg(long, default_value_t = 1.0, value_parser = positive, env = "PLIMSOLL_AGENT_SIM_SPEED")]
    pub sim_speed: f64,
}

/// A number above zero.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".to_owned()),
    }
}

impl Config {
    /// The source that the flags mean.
    pub fn kind(&self) -> SourceKind {
        match self.source {
            SourceKind::Auto => SourceKind::Sim,
            SourceKind::Sim => self.source,
        }
    }
}
