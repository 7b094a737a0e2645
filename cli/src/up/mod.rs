//! `plimsoll up`: the whole pipeline on one machine, on loopback. Starts a private nats-server, the processor, the query service and an agent,
//! keeps them running, and stops them in the order in which nothing is lost. The data stays; started again it goes on where it was.

pub mod child;
mod demo;
mod folder;
mod nats;
mod part;
mod ports;
mod ready;
mod report;
mod supervisor;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use plimsoll_schemas::id::CellId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::amount::duration;
use crate::endpoint::DATA_DIR;
use crate::error::Error;
use crate::up::folder::Folder;
use crate::up::part::{PartId, Plan, Source};
use crate::up::ports::Ports;
use crate::up::report::{Event, Report};
use crate::up::supervisor::Supervisor;

/// What is started, and where.
#[derive(Debug, Args)]
pub struct Options {
    /// Simulate this many hosts [default: 16, where this machine has no GPU]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    hosts: Option<u32>,
    /// Simulated GPUs on each host [default: 8]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    gpus: Option<u32>,
    /// Read dcgm-exporter endpoints
    #[arg(long, value_name = "URL", num_args = 1.., conflicts_with_all = ["hosts", "gpus", "nvml", "replay"])]
    dcgm: Vec<String>,
    /// Read this machine's GPUs through NVML
    #[arg(long, conflicts_with_all = ["hosts", "gpus", "replay"])]
    nvml: bool,
    /// Replay a recorded trace
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hosts", "gpus"])]
    replay: Option<PathBuf>,
    /// Where everything is kept
    #[arg(long, env = "PLIMSOLL_DATA_DIR", value_name = "FOLDER", default_value = DATA_DIR)]
    data_dir: PathBuf,
    /// The name of the cell
    #[arg(long, env = "PLIMSOLL_CELL", default_value = "local")]
    cell: CellId,
    /// Stop cleanly after this long, such as 60s or 10m
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    run_for: Option<Duration>,
    /// One JSON line per state change; the one with "event":"ready" holds all addresses
    #[arg(long)]
    json: bool,
    /// Do not ask for a GPU as a demonstration
    #[arg(long)]
    no_demo: bool,
    /// The nats-server to start [default: from PATH, else .tools/nats-server]
    #[arg(long, env = "PLIMSOLL_NATS_SERVER", value_name = "PROGRAM")]
    nats_server: Option<PathBuf>,
    /// The documented ports, or any free ones
    #[arg(long, value_enum, default_value = "fixed")]
    ports: PortChoice,
    #[command(flatten)]
    chosen: ports::Flags,
}

/// Where ports come from that no flag names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PortChoice {
    /// As documented.
    Fixed,
    /// Any free one.
    Auto,
}

/// What ends `up` from outside: a first signal or the end of `--for` drains, a second signal kills.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Drain.
    pub drain: CancellationToken,
    /// Kill.
    pub kill: CancellationToken,
}

const TIME_IS_OVER: &str = "the time given with --for is over";

/// Runs everything until it is told to stop, or until a part cannot be kept running.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let began = Instant::now();
    let report = Report { json: options.json };
    let folder = Folder::open(&options.data_dir).await?;
    let nats_server = nats::find(options.nats_server.as_deref())?;
    let ports = Ports::choose(&options.chosen, options.ports)?;
    let source = source(&options);
    report.say(&Event::Starting { version: env!("CARGO_PKG_VERSION"), cell: &options.cell, data_dir: folder.path(), source: source.describe() });

    let stop = Stop::default();
    tokio::spawn(listen_for_signals(stop.clone()));
    let plan = Plan::new(options.cell.clone(), folder.path().to_owned(), nats_server, source, ports)?;
    let mut supervisor = Supervisor::new(plan, folder, report, stop.clone());
    let deadline = options.run_for.map(|length| began + length);
    let result = tokio::select! {
        result = live(&mut supervisor, &options, report, began) => result,
        () = stop.drain.cancelled() => Ok("told to stop"),
        () = until(deadline) => Ok(TIME_IS_OVER),
    };
    let reason = match &result {
        Ok(reason) => (*reason).to_owned(),
        // The whole of it comes at the very end.
        Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
    };
    supervisor.drain(&reason).await;
    match result {
        Ok(TIME_IS_OVER) if !supervisor.was_ready() => Err(Error::Usage("the time given with --for was over before everything was ready".to_owned())),
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}

/// Starts the parts in the order of the pipeline, waits until answers come out at its end, shows them, and keeps everything running.
async fn live(supervisor: &mut Supervisor, options: &Options, report: Report, began: Instant) -> Result<&'static str, Error> {
    for part in PartId::IN_ORDER {
        supervisor.start(part)?;
        supervisor.wait_until_listening(part).await?;
    }
    supervisor.enrol_own_hosts().await?;
    let endpoints = supervisor.endpoints();
    endpoints.save(supervisor.folder().path())?;
    let logs = supervisor.folder().logs();
    tokio::select! {
        error = supervisor.watch() => return Err(error),
        ready = ready::wait(&endpoints, &logs, report) => ready?,
    }
    supervisor.note_ready();
    report.say(&Event::Ready {
        seconds: began.elapsed().as_secs_f64(),
        endpoints: &endpoints,
        pids: supervisor.pids(),
        data_dir: supervisor.folder().path(),
    });
    if !options.no_demo {
        let lease = tokio::select! {
            error = supervisor.watch() => return Err(error),
            lease = demo::show(&endpoints, report) => lease,
        };
        supervisor.give_back_at_stop(lease);
    }
    report.things_to_try(&endpoints, &options.data_dir);
    Err(supervisor.watch().await)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn listen_for_signals(stop: Stop) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else { return };
    for token in [stop.drain, stop.kill] {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    }
}

/// What was asked for; else the GPUs of this machine; else a simulated fleet.
fn source(options: &Options) -> Source {
    if !options.dcgm.is_empty() {
        return Source::Dcgm(options.dcgm.clone());
    }
    if let Some(file) = &options.replay {
        return Source::Replay(file.clone());
    }
    if options.nvml || (options.hosts.is_none() && options.gpus.is_none() && part::has_nvidia_driver()) {
        return Source::Nvml;
    }
    Source::Sim { hosts: options.hosts.unwrap_or(16), gpus: options.gpus.unwrap_or(8) }
}
