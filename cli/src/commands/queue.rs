//! `plimsoll queue`: who waits for room, since when and why.

use std::process::ExitCode;

use clap::Args;
use plimsoll_schemas::id::TenantId;

use crate::error::Error;
use crate::{endpoint, output, postgres};

/// Which requests.
#[derive(Debug, Args)]
pub struct Options {
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    #[command(flatten)]
    output: output::Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Asks and prints.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    postgres::ask(&options.endpoint.resolve()?, &question(options.tenant.as_ref())).await?.print(options.output.format)?;
    Ok(ExitCode::SUCCESS)
}

/// Who goes first comes first. A request waits from the record that brought it, so both rows come of that one; it waits no longer once
/// anything else was decided on it, and not on another tenant's of the same id. Decisions sealed by older versions say no tenant. A tenant is
/// a token, so it needs no quoting inside quotes.
fn question(tenant: Option<&TenantId>) -> String {
    let filter = tenant.map_or_else(String::new, |tenant| format!("AND r.tenant = '{tenant}' "));
    format!(
        "SELECT r.request_id, r.tenant, r.priority, r.n_gpus, d.decided_at AS waiting_since, d.reason \
         FROM placement_decisions d JOIN placement_requests r ON r.request_id = d.request_id AND r.stream_seq = d.stream_seq \
         WHERE d.outcome = 'deferred' {filter}\
         AND NOT EXISTS (SELECT 1 FROM placement_decisions later WHERE later.request_id = d.request_id \
         AND (later.tenant = r.tenant OR later.tenant IS NULL) AND later.decision_seq > d.decision_seq) \
         ORDER BY r.priority DESC, d.decision_seq LIMIT 1000"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_sees_its_own() {
        let tenant = "research".parse().expect("a token");
        assert!(question(Some(&tenant)).contains("'deferred' AND r.tenant = 'research' AND NOT EXISTS"));
        assert!(!question(None).contains("r.tenant = '"));
    }
}
