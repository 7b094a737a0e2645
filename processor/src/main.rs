//! `plimsoll-processor`: flags, logs, signals; everything else is in the library.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use plimsoll_processor::config::LogFormat;
use plimsoll_processor::ops::{self, Tool};
use plimsoll_processor::{Addresses, Config, run};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Rows and state are many small allocations: the C library's allocator took a quarter of the fold's time. With mimalloc's feature `override`
/// RocksDB allocates here as well: before, its buffers stayed in an arena of their own for every thread that had ever written a commit.
/// Huge pages are off (`no_thp`): in a new process each is cleared whole where a few bytes of it are wanted, and catching up is what a new
/// process does first.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The service, or one of the tools that look at what it works with.
#[derive(Debug, Parser)]
#[command(name = "plimsoll-processor", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    tool: Option<Tool>,
    #[command(flatten)]
    config: Config,
}

fn main() -> ExitCode {
    let Cli { tool, config } = Cli::parse();
    logs(config.log_format, if tool.is_some() { "warn" } else { "info,async_nats=warn" });
    let outcome = match tool {
        Some(tool) => work(tool),
        None => serve(config).map(|()| ExitCode::SUCCESS),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("plimsoll-processor stops: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(tool: Tool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(ops::run(tool));
    runtime.shutdown_timeout(CLOSE_MAX);
    Ok(outcome?)
}

/// A slow subscriber must not hold up the end.
const CLOSE_MAX: Duration = Duration::from_secs(1);

fn serve(config: Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(until_signal(config));
    runtime.shutdown_timeout(CLOSE_MAX);
    outcome
}

async fn until_signal(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopper.cancel();
    });
    run(config, stop, announce).await?;
    Ok(())
}

/// One JSON line on stdout, for whoever started this.
fn announce(addresses: Addresses) {
    let Addresses { http, tail } = addresses;
    let line = serde_json::json!({ "event": "listening", "service": "processor", "http": http.to_string(), "tail": tail.to_string() });
    // A closed stdout means that nobody wants to know.
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn logs(format: LogFormat, otherwise: &str) {
    let filter = EnvFilter::try_from_env("PLIMSOLL_LOG").unwrap_or_else(|_| EnvFilter::new(otherwise));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
}
