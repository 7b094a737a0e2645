//! `plimsoll leases`: who holds what.

use std::process::ExitCode;

use clap::Args;
use plimsoll_schemas::id::TenantId;

use crate::error::Error;
use crate::{endpoint, output, postgres};

/// Which leases.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Ended ones as well
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: output::Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Asks and prints.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let sql = question(options.tenant.as_ref(), options.all);
    postgres::ask(&options.endpoint.resolve()?, &sql).await?.print(options.output.format)?;
    Ok(ExitCode::SUCCESS)
}

/// A tenant is a token, so it needs no quoting inside quotes.
fn question(tenant: Option<&TenantId>, all: bool) -> String {
    let mut wanted = Vec::new();
    if !all {
        wanted.push("state <> 'ended'".to_owned());
    }
    if let Some(tenant) = tenant {
        wanted.push(format!("tenant = '{tenant}'"));
    }
    let filter = if wanted.is_empty() { String::new() } else { format!("WHERE {} ", wanted.join(" AND ")) };
    format!(
        "SELECT lease_id, tenant, request_id, n_gpus, state, granted_at, expires_at, end_reason FROM leases {filter}ORDER BY granted_at DESC, lease_id LIMIT 1000"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_leases_are_left_out_unless_asked_for() {
        let tenant = "research".parse().expect("a token");
        assert!(question(Some(&tenant), false).contains("WHERE state <> 'ended' AND tenant = 'research' "));
        assert!(!question(None, true).contains("WHERE"));
    }
}
