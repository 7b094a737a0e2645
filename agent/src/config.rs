//! What the agent is told: flags, each also as an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use plimsoll_schemas::id::CellId;

use crate::source::dcgm::scrape::UtilUnit;

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
    /// Acknowledged telemetry kept in memory to answer the processor when the log has lost some, MiB; 0 = none. The oldest goes first.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=65_536), env = "PLIMSOLL_AGENT_KEPT_MB")]
    pub kept_mb: u32,
    /// Logs as text or JSON, to stderr. RUST_LOG sets the level.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "PLIMSOLL_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Write what the source gives to this file, in the format that --replay reads.
    #[arg(long, env = "PLIMSOLL_AGENT_RECORD")]
    pub record: Option<PathBuf>,
    /// Flags of the simulated fleet.
    #[command(flatten)]
    pub sim: SimConfig,
    /// Flags of dcgm.
    #[command(flatten)]
    pub dcgm: DcgmConfig,
    /// Flags of a replay.
    #[command(flatten)]
    pub replay: ReplayConfig,
    /// Path of libnvidia-ml.so.1; without it the usual places are tried. Implies --source nvml.
    #[arg(long, env = "PLIMSOLL_AGENT_NVML_PATH")]
    pub nvml_path: Option<PathBuf>,
}

/// Where readings come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceKind {
    /// What the other flags imply.
    Auto,
    /// The GPUs of this host, through NVML.
    Nvml,
    /// dcgm-exporter endpoints.
    Dcgm,
    /// A simulated fleet.
    Sim,
    /// A recorded trace.
    Replay,
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
    /// How many GPUs of each simulated host, the last ones, have MIG mode on where their model can.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=256), env = "PLIMSOLL_AGENT_SIM_MIG_GPUS")]
    pub sim_mig_gpus: u32,
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

/// Flags of dcgm.
#[derive(Debug, Clone, clap::Args)]
pub struct DcgmConfig {
    /// A dcgm-exporter endpoint such as http://gpu-1:9400, may be given several times; /metrics is added. Implies --source dcgm.
    #[arg(long, value_delimiter = ',', env = "PLIMSOLL_AGENT_DCGM")]
    pub dcgm: Vec<String>,
    /// What the endpoints print GPU_UTIL in. DCGM: percent, under every name; some distributors rescale it.
    #[arg(long, value_enum, default_value_t = UtilUnit::Percent, env = "PLIMSOLL_AGENT_DCGM_UTIL_UNIT")]
    pub dcgm_util_unit: UtilUnit,
}

/// Flags of a replay.
#[derive(Debug, Clone, clap::Args)]
pub struct ReplayConfig {
    /// A trace: *.ndjson in our record format, else CSV. Implies --source replay.
    #[arg(long, env = "PLIMSOLL_AGENT_REPLAY")]
    pub replay: Option<PathBuf>,
    /// Recorded seconds per second.
    #[arg(long, default_value_t = 1.0, value_parser = positive, env = "PLIMSOLL_AGENT_REPLAY_SPEED")]
    pub replay_speed: f64,
    /// Columns of the CSV: role=NAME with the roles timestamp, device, util, memory, memory_total, host.
    #[arg(long, value_delimiter = ',', value_parser = column, env = "PLIMSOLL_AGENT_REPLAY_COLUMNS")]
    pub replay_columns: Vec<(String, String)>,
    /// Send the recorded times, as backfill, instead of shifting them to now.
    #[arg(long, env = "PLIMSOLL_AGENT_KEEP_TIME")]
    pub keep_time: bool,
}

/// `role=NAME`.
fn column(text: &str) -> Result<(String, String), String> {
    const ROLES: [&str; 6] = ["timestamp", "device", "util", "memory", "memory_total", "host"];
    match text.split_once('=') {
        Some((role, name)) if ROLES.contains(&role) && !name.is_empty() => Ok((role.to_owned(), name.to_owned())),
        _ => Err(format!("role=NAME is needed, with one of the roles {}", ROLES.join(", "))),
    }
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
            SourceKind::Auto if self.replay.replay.is_some() => SourceKind::Replay,
            SourceKind::Auto if !self.dcgm.dcgm.is_empty() => SourceKind::Dcgm,
            SourceKind::Auto if self.sim.sim_hosts.is_some() => SourceKind::Sim,
            SourceKind::Auto => SourceKind::Nvml,
            SourceKind::Nvml | SourceKind::Dcgm | SourceKind::Sim | SourceKind::Replay => self.source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_imply_the_source() {
        let check = |flags: &[&str], expected: SourceKind| {
            let config = Config::try_parse_from(["plimsoll-agent"].iter().chain(flags)).expect("valid flags");
            assert_eq!(config.kind(), expected, "{flags:?}");
        };
        check(&[], SourceKind::Nvml);
        check(&["--sim-hosts", "3"], SourceKind::Sim);
        check(&["--dcgm", "http://a:9400", "--dcgm", "http://b:9400"], SourceKind::Dcgm);
        check(&["--replay", "trace.csv", "--replay-columns", "util=value,device=ip"], SourceKind::Replay);
        check(&["--source", "sim", "--replay", "trace.csv"], SourceKind::Sim);
        for wrong in [&["--cell", "a.b"][..], &["--replay-columns", "colour=x"], &["--replay-speed", "0"], &["--interval-ms", "1"]] {
            assert!(Config::try_parse_from(["plimsoll-agent"].iter().chain(wrong)).is_err(), "{wrong:?}");
        }
    }
}
