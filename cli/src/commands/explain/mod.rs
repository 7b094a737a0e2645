//! `plimsoll explain`: one decision, as a person would say it: where it went, what else could have taken it, and what stood in the way.

mod candidates;
mod said;

use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;

use crate::broker::Broker;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::output::{Flag, Format};
use crate::outputs::{Decision, MadeBy, Outputs};
use crate::{endpoint, postgres, visible};

/// Which decision.
#[derive(Debug, Args)]
pub struct Options {
    /// A decision's id (as `plimsoll decisions -o json` shows it), a request's, of which the newest decision is taken, or a lease's
    id: String,
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
        None => by_another_id(&outputs, &endpoints, &options.id).await?,
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
async fn by_another_id(outputs: &Outputs, endpoints: &Endpoints, id: &str) -> Result<(Decision, Bytes), Error> {
    let newest = outputs.newest().await?;
    let mut known = postgres::ask(endpoints, &question(id)).await?;
    if let (None | Some("deferred"), Some(newest)) = (known.first("outcome"), newest) {
        visible::until(endpoints, newest.sequence).await?;
        known = postgres::ask(endpoints, &question(id)).await?;
    }
    let unknown = || Error::Usage(format!("nothing was decided on {id:?}, or it is too long ago: `plimsoll decisions` lists the newest"));
    let decision = known.first("decision_id").ok_or_else(unknown)?;
    found(outputs, endpoints, decision).await?.ok_or_else(unknown)
}

fn question(id: &str) -> String {
    let id = id.replace('\'', "''");
    format!(
        "SELECT decision_id, outcome FROM placement_decisions WHERE request_id = '{id}' OR lease_id = '{id}' OR decision_id = '{id}' \
         ORDER BY decision_seq DESC LIMIT 1"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_text_and_nothing_else() {
        assert!(question("x' OR '1' = '1").contains("request_id = 'x'' OR ''1'' = ''1'"));
    }
}
