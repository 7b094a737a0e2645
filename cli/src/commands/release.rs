//! `plimsoll release`: gives a lease back and waits until OUT shows what became of it.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{LeaseChanged, LeaseState, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Release, Request, TEXT_BYTES_MAX};
use plimsoll_schemas::subject::LogSubject;
use tokio::time::Instant;

use crate::broker::{Broker, Since};
use crate::commands::NOT_PLACED;
use crate::endpoint::{self, Endpoints};
use crate::error::Error;
use crate::output::{self, Table};
use crate::postgres;

const RESEND: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(30);

/// Which lease.
#[derive(Debug, Args)]
pub struct Options {
    /// The lease, as `plimsoll leases` shows it
    lease_id: String,
    /// Who holds it [default: looked up in SQL]
    #[arg(long, env = "PLIMSOLL_TENANT")]
    tenant: Option<TenantId>,
    #[command(flatten)]
    output: output::Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Releases and prints; exit code 3 if it was refused.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoints = options.endpoint.resolve()?;
    let tenant = match options.tenant {
        Some(tenant) => tenant,
        None => holder(&endpoints, &options.lease_id).await?,
    };
    let broker = Broker::connect(&endpoints).await?;
    let changed = release(&broker, &tenant, &options.lease_id).await?;
    let mut table = Table::of_text(&["lease_id", "state", "cause", "gpus"]);
    let gpus: Vec<&str> = changed.device_uuids.iter().map(|uuid| uuid.as_str()).collect();
    table.rows.push([changed.lease_id.clone(), changed.state.code().to_owned(), changed.cause.clone(), gpus.join(" ")].map(Some).to_vec());
    table.print(options.output.format)?;
    // A lease that nobody knows has ended as well.
    let given_back = matches!(changed.state, LeaseState::Draining | LeaseState::Ended) && Reason::from_code(&changed.cause).is_none();
    Ok(if given_back { ExitCode::SUCCESS } else { ExitCode::from(NOT_PLACED) })
}

async fn holder(endpoints: &Endpoints, lease_id: &str) -> Result<TenantId, Error> {
    if lease_id.is_empty() || lease_id.len() > TEXT_BYTES_MAX {
        return Err(Error::Usage(format!("a lease id has 1 to {TEXT_BYTES_MAX} characters; list them with `plimsoll leases`")));
    }
    let question = format!("SELECT tenant FROM leases WHERE lease_id = '{}'", lease_id.replace('\'', "''"));
    let found = postgres::ask(endpoints, &question).await?;
    let tenant = found
        .first("tenant")
        .ok_or_else(|| Error::Usage(format!("no lease {lease_id}: list them with `plimsoll leases --all`, or name its holder with --tenant")))?;
    tenant.parse().map_err(|error: plimsoll_schemas::id::IdError| Error::Refused(error.to_string()))
}

async fn release(broker: &Broker, tenant: &TenantId, lease_id: &str) -> Result<LeaseChanged, Error> {
    let request_id = format!("cli-{}", broker.unique());
    let request = Request::Release(Release { request_id: request_id.clone(), lease_id: lease_id.to_owned() });
    let mut follow = broker.follow(&[format!("lease.{tenant}")], Since::Now).await?;
    let deadline = Instant::now() + TIMEOUT;
    while Instant::now() < deadline {
        broker.append(&LogSubject::Request(tenant.clone()), &request).await?;
        let resend = deadline.min(Instant::now() + RESEND);
        while let Ok(next) = tokio::time::timeout_at(resend, follow.next()).await {
            if let Payload::Lease(changed) = next?.0.data
                && changed.lease_id == lease_id
                && is_answer(&changed)
            {
                return Ok(changed);
            }
        }
    }
    Err(Error::NoDecision { request_id, seconds: TIMEOUT.as_secs(), hint: " See where the lease stands with `plimsoll leases --all`".to_owned() })
}

/// Whether a change of the lease can be what became of the release: it is over, or that was refused. Anything else happens to it meanwhile.
fn is_answer(changed: &LeaseChanged) -> bool {
    matches!(changed.state, LeaseState::Draining | LeaseState::Ended) || Reason::from_code(&changed.cause).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_to_a_lease_meanwhile_is_not_its_release() {
        let check = |state, cause: &str, expected: bool| {
            let changed = LeaseChanged {
                lease_id: "lease-1".to_owned(),
                request_id: "r-1".to_owned(),
                tenant: "research".parse().expect("a token"),
                state,
                cause: cause.to_owned(),
                fence: 1,
                device_uuids: Vec::new(),
            };
            assert_eq!(is_answer(&changed), expected, "{changed:?}");
        };
        check(LeaseState::Draining, "released", true);
        check(LeaseState::Ended, "unknown_lease", true);
        check(LeaseState::Active, "not_holder", true);
        check(LeaseState::Suspended, "host_lost", false);
        check(LeaseState::Active, "unused", false);
    }
}
