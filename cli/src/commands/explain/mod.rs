//! `plimsoll explain`: one decision, as a person would say it: where it went, what else could have taken it, and what stood in the way.

mod candidates;
mod said;

use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use plimsoll_schemas::id::TenantId;

use crate::broker::Broker;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::output::{Flag, Format, Table};
use crate::outputs::{Decision, MadeBy, Outputs};
use crate::{endpoint, postgres, visible};

/// Most tenants that are named where several have used an id.
const TENANTS_NAMED_MAX: usize = 20;

/// Which decision.
#[derive(Debug, Args)]
pub struct Options {
    /// A decision's id (as `plimsoll decisions -o json` shows it), a request's, of which the newest decision is taken, or a lease's
    id: String,
    /// Whose request it is; to be said where several tenants have used its id
    #[arg(long)]
    tenant: Option<TenantId>,
    /// List every GPU of the cell with what stood in its way instead; for a gang, in that of its first member or of the one without a place
    #[arg(long)]
    candidates: bool,
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Finds the decision in OUT and says it, or lists its candidates. JSON of the decision is the event as it stands there.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoints = options.endpoint.resolve()?;
    let outputs = Broker::connect(&endpoints).await?.outputs().await?;
    let (decision, bytes) = match found(&outputs, &endpoints, &options.id).await? {
        Some(found) => found,
        None => by_another_id(&outputs, &endpoints, &options.id, options.tenant.as_ref()).await?,
    };
    if options.candidates {
        candidates::of(&endpoints, &decision, &bytes).await?.print(options.output.format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let text = match (options.output.format, &decision) {
        (Format::Json, _) => String::from_utf8_lossy(&bytes).into_owned() + "\n",
        (Format::Csv, _) => return Err(Error::Usage("an explanation is no table: use -o table or -o json, or list its --candidates".to_owned())),
        (Format::Table, Decision::Placed(decided)) => said::placed(decided),
        (Format::Table, Decision::Split(split)) => said::distributed(split),
    };
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes()).map_err(Error::io("cannot write the answer"))?;
    Ok(ExitCode::SUCCESS)
}

async fn found(outputs: &Outputs, endpoints: &Endpoints, id: &str) -> Result<Option<(Decision, Bytes)>, Error> {
    match MadeBy::of_decision(&endpoints.cell, id) {
        Some(made_by) => outputs.decision(made_by, id).await,
        None => Ok(None),
    }
}

/// SQL knows which decision a request or a lease had. What stands in OUT now is there a moment later: that long it is waited for where SQL knows
/// of none, or of none that is final.
async fn by_another_id(outputs: &Outputs, endpoints: &Endpoints, id: &str, tenant: Option<&TenantId>) -> Result<(Decision, Bytes), Error> {
    let newest = outputs.newest().await?;
    let mut known = postgres::ask(endpoints, &question(id, tenant)).await?;
    if let (None | Some("deferred"), Some(newest)) = (known.first("outcome"), newest) {
        visible::until(endpoints, newest.sequence).await?;
        known = postgres::ask(endpoints, &question(id, tenant)).await?;
    }
    is_one_request(id, &known)?;
    let unknown = || Error::Usage(format!("nothing was decided on {id:?}, or it is too long ago: `plimsoll decisions` lists the newest"));
    let decision = known.first("decision_id").ok_or_else(unknown)?;
    found(outputs, endpoints, decision).await?.ok_or_else(unknown)
}

/// The newest decision of each tenant, the newest of all first. Those sealed by older versions say no tenant. A tenant is a token, so it needs
/// no quoting inside quotes.
fn question(id: &str, tenant: Option<&TenantId>) -> String {
    let id = id.replace('\'', "''");
    let filter = tenant.map_or_else(String::new, |tenant| format!("AND (tenant = '{tenant}' OR tenant IS NULL) "));
    format!(
        "SELECT decision_id, outcome, tenant FROM (SELECT decision_id, outcome, tenant, decision_seq, \
         row_number() OVER (PARTITION BY tenant ORDER BY decision_seq DESC) AS nth FROM placement_decisions \
         WHERE (request_id = '{id}' OR lease_id = '{id}' OR decision_id = '{id}') {filter}) AS newest \
         WHERE nth = 1 ORDER BY decision_seq DESC LIMIT {TENANTS_NAMED_MAX}"
    )
}

/// Errors where several tenants have used an id: none of them is meant more than another.
fn is_one_request(id: &str, known: &Table) -> Result<(), Error> {
    let tenants: Vec<&str> = known.column("tenant").flatten().collect();
    if tenants.len() < 2 {
        return Ok(());
    }
    Err(Error::Usage(format!("{} have each used the id {id:?}: say whose it is with --tenant", tenants.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_text_and_nothing_else() {
        assert!(question("x' OR '1' = '1", None).contains("request_id = 'x'' OR ''1'' = ''1'"));
    }

    #[test]
    fn where_several_tenants_have_used_an_id_they_are_named_and_none_is_taken() {
        let known = |tenants: &[Option<&str>]| {
            let row = |tenant: &Option<&str>| vec![Some("local-0-1-0".to_owned()), Some("placed".to_owned()), tenant.map(str::to_owned)];
            Table { rows: tenants.iter().map(row).collect(), ..Table::of_text(&["decision_id", "outcome", "tenant"]) }
        };
        let check = |tenants: &[Option<&str>]| is_one_request("r-1", &known(tenants)).map_err(|error| error.to_string());
        let two = check(&[Some("research"), Some("vision")]);
        assert!(two.is_err_and(|said| said.contains("research, vision have each used the id \"r-1\": say whose it is with --tenant")));
        for one in [&[][..], &[None], &[Some("research")], &[Some("research"), None]] {
            assert_eq!(check(one), Ok(()), "{one:?}");
        }
        let research = "research".parse().expect("a token");
        assert!(question("r-1", Some(&research)).contains(") AND (tenant = 'research' OR tenant IS NULL) ) AS newest"));
    }
}
