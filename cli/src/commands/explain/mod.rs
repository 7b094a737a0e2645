//! `plimsoll explain`: one decision, as a person would say it: where it went, what else could have taken it, and what stood in the way.

use std::cmp::Reverse;
use std::fmt::Write;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use plimsoll_schemas::out::{Assignment, Decided, Distributed, Outcome};
use plimsoll_schemas::request::WHOLE_MILLI;

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
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Finds the decision in OUT and says it. JSON is the event as it stands there.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoints = options.endpoint.resolve()?;
    let outputs = Broker::connect(&endpoints).await?.outputs().await?;
    let (decision, bytes) = match found(&outputs, &endpoints, &options.id).await? {
        Some(found) => found,
        None => by_another_id(&outputs, &endpoints, &options.id).await?,
    };
    let text = match (options.output.format, &decision) {
        (Format::Json, _) => String::from_utf8_lossy(&bytes).into_owned() + "\n",
        (Format::Csv, _) => return Err(Error::Usage("an explanation is no table: use -o table or -o json".to_owned())),
        (Format::Table, Decision::Placed(decided)) => placed(decided),
        (Format::Table, Decision::Split(split)) => distributed(split),
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

/// SQL knows which decision a request or a lease had. What stands in OUT now is there a moment later: that long it is waited for.
async fn by_another_id(outputs: &Outputs, endpoints: &Endpoints, id: &str) -> Result<(Decision, Bytes), Error> {
    let newest = outputs.newest().await?;
    let mut known = postgres::ask(endpoints, &question(id)).await?;
    if let (None, Some(newest)) = (known.first("decision_id"), newest) {
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
        "SELECT decision_id FROM placement_decisions WHERE request_id = '{id}' OR lease_id = '{id}' OR decision_id = '{id}' \
         ORDER BY decision_seq DESC LIMIT 1"
    )
}

fn placed(decided: &Decided) -> String {
    let mut text = String::new();
    let mut say = |line: String| {
        // A text that is in memory takes everything.
        let _ = writeln!(text, "{line}");
    };
    let Decided { request_id, tenant, outcome, decision_id, decision_seq, policy, position, .. } = decided;
    say(format!("Request {request_id} of {tenant} was {}.", outcome.code()));
    for assignment in &decided.assignments {
        say(format!("  It has {}.", taken(assignment)));
    }
    if let Some(lease) = &decided.lease {
        say(format!("  Its lease {} with fence {} holds until {} unless it is renewed.", lease.lease_id, lease.fence, lease.expires_at));
    }
    if *outcome != Outcome::Placed {
        let reason = decided.reason.map_or("no reason given", |reason| reason.code());
        say(format!("  What stood in the way: {reason}. {}", sentence(decided.detail.as_deref())).trim_end().to_owned());
    }
    say(format!("  {} looked at, {} could have taken it.", hosts(decided.hosts_considered), decided.hosts_feasible));
    if !decided.runners_up.is_empty() {
        let next: Vec<_> = decided.runners_up.iter().map(|next| format!("{} ({})", next.host, score(next.score_micro))).collect();
        say(format!("  Next best: {}.", next.join(", ")));
    }
    if !decided.refused.is_empty() {
        let mut refused: Vec<_> = decided.refused.iter().collect();
        refused.sort_by_key(|(reason, count)| (Reverse(**count), reason.code()));
        let refused: Vec<_> = refused.into_iter().map(|(reason, count)| format!("{count} {}", reason.code())).collect();
        say(format!("  GPUs that could not: {}.", refused.join(", ")));
    }
    say(format!("  Decision {decision_seq} ({decision_id}), by {policy}, on what the log said up to {position}."));
    text
}

fn distributed(split: &Distributed) -> String {
    let Distributed { request_id, tenant, outcome, decision_id, decision_seq, position, .. } = split;
    let mut text = format!("Request {request_id} of {tenant} to split work was {}.\n", outcome.code());
    for (uuid, items) in &split.counts {
        let _ = writeln!(text, "  {items} items for {uuid}.");
    }
    if split.unassigned > 0 {
        let _ = writeln!(text, "  {} items are left over.", split.unassigned);
    }
    if let Some(reason) = split.reason {
        let _ = writeln!(text, "{}", format!("  What stood in the way: {}. {}", reason.code(), sentence(split.detail.as_deref())).trim_end());
    }
    let _ = writeln!(text, "  Decision {decision_seq} ({decision_id}), on what the log said up to {position}.");
    text
}

fn taken(gpu: &Assignment) -> String {
    let share = if gpu.milli == WHOLE_MILLI { "all of".to_owned() } else { format!("{} thousandths of", gpu.milli) };
    let gib = gpu.vram_bytes as f64 / f64::from(1 << 30);
    format!("{share} GPU {} of {} with {gib:.1} GiB (score {})", gpu.slot.0, gpu.host, score(i64::from(gpu.score_micro)))
}

fn hosts(count: u32) -> String {
    if count == 1 { "1 host was".to_owned() } else { format!("{count} hosts were") }
}

fn score(micro: i64) -> String {
    format!("{:.3}", micro as f64 / 1e6)
}

/// A detail as a sentence of its own.
fn sentence(detail: Option<&str>) -> String {
    let Some(detail) = detail.filter(|detail| !detail.is_empty()) else { return String::new() };
    let mut letters = detail.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase).collect::<String>();
    first + letters.as_str() + if detail.ends_with(['.', ')']) { "" } else { "." }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_placement_is_said_with_where_for_how_long_and_who_else() {
        let decided: Decided = serde_json::from_value(json!({
            "decision_id": "local-0-41-1", "decision_seq": 7, "request_id": "r-1", "tenant": "research", "outcome": "placed",
            "position": {"epoch": 0, "sequence": 41}, "policy": "headroom@1", "hosts_considered": 3, "hosts_feasible": 2,
            "refused": {"cordoned": 8, "insufficient_memory": 9},
            "assignments": [{"device_uuid": "GPU-1", "device_key": 5, "host": "gpu-1", "slot": 3, "gpu_index": 3, "milli": 500, "vram_bytes": 1610612736u64, "score_micro": 874000}],
            "lease": {"lease_id": "local-0-41-0", "fence": 4, "ttl_ms": 600000, "expires_at": "2026-11-20T14:05:00Z"},
            "runners_up": [{"host": "gpu-2", "score_micro": 811000}],
        }))
        .expect("a decision");
        assert_eq!(
            placed(&decided),
            "Request r-1 of research was placed.\n\
             \x20 It has 500 thousandths of GPU 3 of gpu-1 with 1.5 GiB (score 0.874).\n\
             \x20 Its lease local-0-41-0 with fence 4 holds until 2026-11-20T14:05:00Z unless it is renewed.\n\
             \x20 3 hosts were looked at, 2 could have taken it.\n\
             \x20 Next best: gpu-2 (0.811).\n\
             \x20 GPUs that could not: 9 insufficient_memory, 8 cordoned.\n\
             \x20 Decision 7 (local-0-41-1), by headroom@1, on what the log said up to 0:41.\n"
        );
    }

    #[test]
    fn a_rejection_is_said_with_what_stood_in_the_way() {
        let decided: Decided = serde_json::from_value(json!({
            "decision_id": "local-0-9-0", "decision_seq": 1, "request_id": "r-2", "tenant": "research", "outcome": "rejected",
            "reason": "no_devices", "detail": "the cell has no GPU", "position": {"epoch": 0, "sequence": 9}, "policy": "headroom@1",
            "hosts_considered": 1, "hosts_feasible": 0, "refused": {}, "assignments": [], "runners_up": [],
        }))
        .expect("a decision");
        let said = placed(&decided);
        assert!(said.contains("What stood in the way: no_devices. The cell has no GPU.\n  1 host was looked at, 0 could"), "{said}");
    }

    #[test]
    fn an_id_is_a_text_and_nothing_else() {
        assert!(question("x' OR '1' = '1").contains("request_id = 'x'' OR ''1'' = ''1'"));
    }
}
