//! `plimsoll-query`: the query service as a process.

use std::io::Write;

use anyhow::Context;
use clap::Parser;
use plimsoll_query::service::{Config, LogFormat, Service};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    start_logging(config.log_format);
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let service = Service::start(&config).await?;
    let listening = serde_json::json!({ "event": "listening", "service": "query", "http": service.http.to_string(), "pg": service.pg.to_string() });
    writeln!(std::io::stdout(), "{listening}").context("cannot say where it listens")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping");
    if !service.stop().await {
        tracing::warn!("some answers were cut off at the end");
    }
    Ok(())
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_env("PLIMSOLL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
