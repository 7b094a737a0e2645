//! `plimsoll enrol`, `cordon`, `drain`, `uncordon`, `revoke`: one control record each.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use plimsoll_schemas::control::{Control, Cordon};
use plimsoll_schemas::id::{GpuUuid, HostId};

use crate::amount::duration;
use crate::endpoint;
use crate::error::Error;
use crate::visible::{Wait, publish};

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
    wait: Wait,
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
    wait: Wait,
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

/// What to empty, and how fast.
#[derive(Debug, Args)]
pub struct Drain {
    #[command(flatten)]
    target: Target,
    /// End its leases after this long at most, such as 10m [default: when they run out]
    #[arg(long, value_parser = duration)]
    grace: Option<Duration>,
}

/// Makes hosts placeable.
pub async fn enrol(options: Enrol) -> Result<ExitCode, Error> {
    publish(&options.endpoint, options.wait, &Control::Enrol { hosts: options.hosts }).await
}

/// Takes a host or a GPU out of service.
pub async fn cordon(target: Target) -> Result<ExitCode, Error> {
    publish(&target.endpoint, target.wait, &Control::Cordon(target.what()?)).await
}

/// The same, and its leases end: they cannot be renewed.
pub async fn drain(options: Drain) -> Result<ExitCode, Error> {
    let grace_ms = options.grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
    let target = options.target;
    publish(&target.endpoint, target.wait, &Control::Drain { what: target.what()?, grace_ms }).await
}

/// Puts it back.
pub async fn uncordon(target: Target) -> Result<ExitCode, Error> {
    publish(&target.endpoint, target.wait, &Control::Uncordon(target.what()?)).await
}

/// Which lease to take back.
#[derive(Debug, Args)]
pub struct Revoke {
    /// The lease, as `plimsoll leases` shows it
    lease_id: String,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Takes a lease back, whoever holds it: its GPUs drain until telemetry shows that they are empty.
pub async fn revoke(options: Revoke) -> Result<ExitCode, Error> {
    publish(&options.endpoint, options.wait, &Control::Revoke { lease_id: options.lease_id }).await
}
