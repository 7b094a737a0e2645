//! `plimsoll place`: asks for GPUs and waits until OUT shows the decision, or asks what the decision would be.
#![expect(clippy::disallowed_methods, reason = "how long it is until an instant is for the clock to say")]

mod ask;
mod dry_run;
mod flags;

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Assignment, Decided, Outcome};
use plimsoll_schemas::request::Place;
use plimsoll_schemas::time::EventTime;

use crate::amount::duration;
use crate::broker::{Broker, Since};
use crate::commands::{NOT_PLACED, STILL_WAITS, decisions};
use crate::endpoint;
use crate::error::Error;
use crate::output::{Flag, Format, Kind, Table};

pub use ask::{Answer, Patience, ask};

/// How far back an earlier decision on the same request id is looked for.
const LOOK_BACK_OUTPUTS: u64 = 20_000;
/// How long a decision is waited for, beside what the request itself waits.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What is needed, and how it is asked.
#[derive(Debug, Args)]
pub struct Options {
    /// Who asks
    #[arg(long, env = "PLIMSOLL_TENANT", default_value = "default")]
    tenant: TenantId,
    /// Only say what the decision would be: nothing is asked for, nothing is leased, and nothing waits
    #[arg(long)]
    dry_run: bool,
    /// How long to wait for the decision [default: 30s and as long as the request itself waits]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    timeout: Option<Duration>,
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
    #[command(flatten)]
    asked: flags::Asked,
}

/// Asks, waits and prints; exit code 3 if nothing was placed, 4 if it still waits for room.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let (endpoints, format) = (options.endpoint.resolve()?, options.output.format);
    if options.dry_run {
        let wanted = options.asked.request(|| "dry-run".to_owned())?;
        let decided = dry_run::dry_run(&endpoints.processor, &options.tenant, &wanted.place).await?;
        print(&decided, format)?;
        return Ok(code(&decided));
    }
    let broker = Broker::connect(&endpoints).await?;
    let wanted = options.asked.request(|| format!("cli-{}", broker.unique()))?;
    let since = if wanted.is_named { Since::Last(LOOK_BACK_OUTPUTS) } else { Since::Now };
    let patience = options.timeout.map_or_else(|| patience(&wanted.place, now()), Patience::of);
    let answer = ask(&broker, &options.tenant, wanted.place, since, patience, say).await?;
    print(answer.decided(), format)?;
    Ok(match answer {
        Answer::Decided(decided) => code(&decided),
        Answer::Waits(decided) => {
            let Decided { request_id, tenant, .. } = &*decided;
            let seconds = patience.last.as_secs();
            say(&format!("request {request_id} still waits after {seconds} s: `plimsoll cancel {request_id} --tenant {tenant}` withdraws it"));
            ExitCode::from(STILL_WAITS)
        }
    })
}

/// What is no answer yet goes where it does not mix with the answer.
fn say(sentence: &str) {
    // Nothing is left to do where even stderr is gone.
    let _ = writeln!(std::io::stderr(), "plimsoll: {sentence}");
}

fn code(decided: &Decided) -> ExitCode {
    if decided.outcome == Outcome::Placed { ExitCode::SUCCESS } else { ExitCode::from(NOT_PLACED) }
}

fn now() -> EventTime {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    EventTime(i64::try_from(since_1970.as_nanos()).unwrap_or(i64::MAX))
}

/// How long the decisions on a request may take.
fn patience(place: &Place, now: EventTime) -> Patience {
    let until_ms = place.not_before.map_or(0, |at| at.ms_since(now).max(0).unsigned_abs());
    let waits = Duration::from_millis(until_ms) + Duration::from_millis(place.max_wait_ms.unwrap_or(0));
    Patience { first: TIMEOUT, last: TIMEOUT + waits }
}

fn print(decided: &Decided, format: Format) -> Result<(), Error> {
    match format {
        Format::Json => {
            let text = serde_json::to_string_pretty(decided).expect("a decision that was read serialises");
            writeln!(std::io::stdout(), "{text}").map_err(Error::io("cannot write"))
        }
        Format::Table | Format::Csv => table(decided).print(format),
    }
}

/// One row per GPU that was or would be given, or one that says why none was.
pub fn table(decided: &Decided) -> Table {
    const TEXT: Kind = Kind::Text;
    const NUMBER: Kind = Kind::Number;
    let named = |columns: &[(&str, Kind)]| columns.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect();
    let some = |text: &dyn ToString| Some(text.to_string());
    if decided.assignments.is_empty() {
        let row = vec![some(&decided.outcome.code()), some(&decided.request_id), some(&decisions::placed(decided)), some(&decided.hosts_considered)];
        return Table { columns: named(&[("outcome", TEXT), ("request_id", TEXT), ("why", TEXT), ("hosts_considered", NUMBER)]), rows: vec![row] };
    }
    let lease = decided.lease.as_ref();
    let is_gang = decided.assignments.iter().any(|gpu| gpu.member > 0);
    let member = |gpu: &Assignment| gpu.bundle.as_ref().map_or_else(|| gpu.member.to_string(), |bundle| format!("{} {bundle}", gpu.member));
    let row = |gpu: &Assignment| {
        let mut row = vec![
            some(&decided.outcome.code()),
            lease.map(|lease| lease.lease_id.clone()),
            some(&gpu.host),
            some(&gpu.slot.0),
            some(&gpu.device_uuid),
            some(&gpu.milli),
            some(&(gpu.vram_bytes >> 20)),
            some(&format!("{:.4}", f64::from(gpu.score_micro) / 1e6)),
            lease.map(|lease| lease.expires_at.clone()),
        ];
        if is_gang {
            row.insert(2, Some(member(gpu)));
        }
        row
    };
    let mut columns = vec![
        ("outcome", TEXT),
        ("lease_id", TEXT),
        ("host", TEXT),
        ("slot", NUMBER),
        ("device_uuid", TEXT),
        ("milli", NUMBER),
        ("memory_mib", NUMBER),
        ("score", NUMBER),
        ("expires_at", TEXT),
    ];
    if is_gang {
        columns.insert(2, ("member", TEXT));
    }
    Table { columns: named(&columns), rows: decided.assignments.iter().map(row).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_decision_is_waited_for_as_long_as_the_request_waits() {
        let place = |not_before: Option<i64>, max_wait_ms| Place { not_before: not_before.map(EventTime), max_wait_ms, ..Place::default() };
        let check = |place: &Place, seconds: u64| assert_eq!(patience(place, EventTime(1_000_000_000)).last.as_secs(), seconds, "{place:?}");
        check(&place(None, None), 30);
        check(&place(None, Some(600_000)), 630);
        check(&place(Some(61_000_000_000), Some(600_000)), 690);
        check(&place(Some(0), None), 30);
    }

    #[test]
    fn only_a_gang_has_members_in_its_table() {
        let gpu = |member: u32, bundle: Option<&str>| {
            json!({"device_uuid": "GPU-1", "device_key": 5, "host": "gpu-1", "slot": 3, "gpu_index": 3, "milli": 500, "vram_bytes": 1 << 20,
                   "score_micro": 0, "member": member, "bundle": bundle})
        };
        let check = |assignments: serde_json::Value, expected: &[&str]| {
            let decided: Decided = serde_json::from_value(json!({
                "decision_id": "dry-run", "decision_seq": 0, "request_id": "r-1", "tenant": "research", "outcome": "placed",
                "position": {"epoch": 0, "sequence": 9}, "policy": "hybrid@1", "hosts_considered": 1, "hosts_feasible": 1, "refused": {},
                "assignments": assignments, "runners_up": [],
            }))
            .expect("a decision");
            let table = table(&decided);
            let member = table.columns.iter().position(|(name, _)| name == "member");
            let members: Vec<&str> = table.rows.iter().filter_map(|row| row[member?].as_deref()).collect();
            assert_eq!(members, expected);
            assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
        };
        check(json!([gpu(0, None)]), &[]);
        check(json!([gpu(0, Some("ps")), gpu(1, None)]), &["0 ps", "1"]);
    }
}
