//! Puts the parts together: source thread, collector thread, publisher and HTTP on tokio; and takes them apart in order.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use plimsoll_schemas::id::HostId;
use tokio_util::sync::CancellationToken;

use crate::buffer::{Buffer, Limits};
use crate::clock::{Stop, boot_id, wall_now};
use crate::collect::{Collector, Shared};
use crate::config::{Config, DcgmConfig, ReplayConfig, SourceKind};
use crate::host::Common;
use crate::http::{Views, router};
use crate::kept::Kept;
use crate::metrics::Metrics;
use crate::publish::{Publisher, Target};
use crate::record::Recorder;
use crate::repair::Repairs;
use crate::source::dcgm::{self, Dcgm};
use crate::source::nvml::NvmlSource;
use crate::source::replay::{self, Replay};
use crate::source::sim::faults::Script;
use crate::source::sim::{self, Sim};
use crate::source::{Source, channel};
use crate::state::next_epoch;
use crate::status::Status;

/// Most frames kept while the broker is away, whatever their size.
const FRAMES_MAX: usize = 1_000_000;
/// How long the publisher may drain at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the agent until `stop` is cancelled; then drains and returns.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let status = Arc::new(Status::default());
    let buffer = Arc::new(Buffer::new(Limits { bytes: (config.buffer_mb as usize) << 20, frames: FRAMES_MAX }));
    let epoch = next_epoch(config.state_dir.as_deref(), wall_now())?;
    let (source, interval_ms) = source(&config, &metrics)?;
    let listener = tokio::net::TcpListener::bind(config.http).await.with_context(|| format!("cannot listen on {}", config.http))?;
    let target =
        Target { url: config.nats.clone(), credentials: config.nats_creds.clone(), cell: config.cell.clone(), name: "plimsoll-agent".to_owned() };
    let kept = Arc::new(Kept::new((config.kept_mb as usize) << 20));
    let shared = Shared { buffer, status: status.clone(), metrics: metrics.clone() };
    let publisher = Publisher::connect(&target, shared.clone(), kept.clone()).await?;
    let (repairs, ear) = Repairs::new(kept);
    let listening = tokio::spawn(ear.listen(publisher.client(), config.cell.clone(), metrics.clone()));
    let common =
        Common { epoch, boot_id: boot_id(), source: source.name(), interval_ms: config.interval_ms, publish_ticks: config.publish_ticks as usize };
    tracing::info!(source = source.name(), epoch, cell = %config.cell, nats = config.nats, "agent starts");
    let recorder = match &config.record {
        Some(path) => Some(Recorder::create(path).with_context(|| format!("record {}", path.display()))?),
        None => None,
    };
    let collector = Collector::new(common, config.cell.clone(), shared, recorder, repairs);

    let (outlet, signals) = channel();
    let halt = Stop::default();
    let source_halt = halt.clone();
    std::thread::Builder::new().name("source".to_owned()).spawn(move || source.run(outlet, source_halt)).context("source thread")?;
    let (collected, collector_done) = tokio::sync::oneshot::channel();
    let work = move || {
        collector.run(&signals);
        let _ = collected.send(());
    };
    std::thread::Builder::new().name("collector".to_owned()).spawn(work).context("collector thread")?;
    let drain = CancellationToken::new();
    let publishing = tokio::spawn(publisher.run(drain.clone(), DRAIN));
    let address = listener.local_addr().context("listener address")?;
    let views = Views { status, metrics, interval_ms };
    let serving = tokio::spawn(axum::serve(listener, router(views)).with_graceful_shutdown(drain.clone().cancelled_owned()).into_future());
    announce(address)?;

    stop.cancelled().await;
    tracing::info!("agent stops");
    halt.stop();
    // A source that hangs in a driver is left behind: the process ends without it.
    let _ = tokio::time::timeout(Duration::from_secs(2), collector_done).await;
    drain.cancel();
    let left = publishing.await.context("publisher")?;
    if left > 0 {
        tracing::warn!(left, "stopped with records that no broker has acknowledged");
    }
    serving.abort();
    listening.abort();
    Ok(())
}

/// The source that the flags ask for, and the spacing of its ticks, ms.
fn source(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<(Box<dyn Source>, u32)> {
    let interval_ms = config.interval_ms;
    let source: Box<dyn Source> = match config.kind() {
        SourceKind::Sim => Box::new(sim(config, metrics)?),
        SourceKind::Dcgm => {
            let DcgmConfig { dcgm, dcgm_util_unit } = config.dcgm.clone();
            anyhow::ensure!(!dcgm.is_empty(), "--source dcgm needs at least one --dcgm URL");
            let settings = dcgm::Settings { urls: dcgm, host: config.host.clone(), unit: dcgm_util_unit, interval_ms };
            Box::new(Dcgm::new(settings, metrics.clone())?)
        }
        SourceKind::Replay => {
            let ReplayConfig { replay, replay_speed, replay_columns, keep_time } = config.replay.clone();
            let settings = replay::Settings {
                file: replay.context("--source replay needs --replay FILE")?,
                speed: replay_speed,
                keep_time,
                columns: replay_columns.into_iter().collect(),
                host: hostname(config)?,
            };
            let replay = Replay::open(settings, metrics)?;
            let interval_ms = replay.interval_ms();
            return Ok((Box::new(replay), interval_ms));
        }
        SourceKind::Nvml | SourceKind::Auto => {
            let hostname = hostname(config)?;
            let host = HostId::escape(&hostname).context("this host's name; give another one with --host")?;
            Box::new(NvmlSource { host, hostname, library: config.nvml_path.clone(), interval_ms, metrics: metrics.clone() })
        }
    };
    Ok((source, interval_ms))
}

fn sim(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<Sim> {
    let script = match &config.sim.sim_faults {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("fault script {}", path.display()))?;
            Script::parse(&path.display().to_string(), &text)?
        }
        None => Script::default(),
    };
    let settings = sim::Settings {
        hosts: config.sim.sim_hosts.unwrap_or(1),
        gpus: config.sim.sim_gpus,
        mig_gpus: config.sim.sim_mig_gpus,
        seed: config.sim.seed,
        interval_ms: config.interval_ms,
        ticks: config.sim.sim_ticks,
        speed: config.sim.sim_speed,
        script,
    };
    Ok(Sim::new(settings, metrics.clone()))
}

/// The host's name: as given, else the system's.
fn hostname(config: &Config) -> anyhow::Result<String> {
    match &config.host {
        Some(host) => Ok(host.clone()),
        None => {
            let name = nix::unistd::gethostname().context("the system's host name; give one with --host")?;
            Ok(name.to_string_lossy().into_owned())
        }
    }
}

/// Prints the one line that says where the agent listens.
fn announce(http: std::net::SocketAddr) -> anyhow::Result<()> {
    let line = serde_json::json!({"event": "listening", "service": "agent", "http": http.to_string()});
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("standard output")
}
