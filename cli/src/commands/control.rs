//! `plimsoll enrol`, `cordon`, `uncordon`: one control record each, acknowledged by the log.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use plimsoll_schemas::control::{Control, Cordon};
use plimsoll_schemas::id::{GpuUuid, HostId};
use plimsoll_schemas::subject::LogSubject;

use crate::broker::Broker;
use crate::endpoint;
use crate::error::Error;

/// Which hosts.
#[derive(Debug, Args)]
pub struct Enrol {
    /// The hosts, as `plimsoll status` shows them
    #[arg(required_unless_present = "all")]
    hosts: Vec<HostId>,
    /// Every host of the cell, now and later
    #[arg(long, conflicts_with = "hosts")]
    all: bool,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// A host, or one GPU.
#[derive(Debug, Args)]
pub struct Target {
    /// The host
    #[arg(required_unless_present = "gpu")]
    host: Option<HostId>,
    /// One GPU by its UUID instead
    #[arg(long, conflicts_with = "host")]
    gpu: Option<GpuUuid>,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

impl Target {
    fn what(&self) -> Result<Cordon, Error> {
        match (&self.host, &self.gpu) {
            (_, Some(gpu)) => Ok(Cordon::Gpu(gpu.clone())),
            (Some(host), None) => Ok(Cordon::Host(host.clone())),
            (None, None) => Err(Error::Usage("name a host, or a GPU with --gpu".to_owned())),
        }
    }
}

/// Makes hosts placeable.
pub async fn enrol(options: Enrol) -> Result<ExitCode, Error> {
    publish(&options.endpoint, &Control::Enrol { hosts: options.hosts }).await
}

/// Takes a host or a GPU out of service.
pub async fn cordon(target: Target) -> Result<ExitCode, Error> {
    publish(&target.endpoint, &Control::Cordon(target.what()?)).await
}

/// Puts it back.
pub async fn uncordon(target: Target) -> Result<ExitCode, Error> {
    publish(&target.endpoint, &Control::Uncordon(target.what()?)).await
}

async fn publish(endpoint: &endpoint::Flags, control: &Control) -> Result<ExitCode, Error> {
    let broker = Broker::connect(&endpoint.resolve()?).await?;
    let sequence = broker.append(&LogSubject::Control, control).await?;
    writeln!(std::io::stdout(), "in the log as record {sequence}").map_err(Error::io("cannot write"))?;
    Ok(ExitCode::SUCCESS)
}
