//! `plimsoll place`: asks for GPUs and waits until OUT shows the decision.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Decided, Outcome, Payload};
use plimsoll_schemas::request::{BUNDLE_GPUS_MAX, Bundle, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, Place, Request, WHOLE_MILLI};
use plimsoll_schemas::subject::LogSubject;
use tokio::time::Instant;

use crate::broker::{Broker, Since};
use crate::commands::{NOT_PLACED, decisions};
use crate::endpoint;
use crate::error::Error;
use crate::output::{Flag, Format, Kind, Table};

/// A decision may have been lost on the way, so the request is sent again; under one request id that changes nothing.
const RESEND: Duration = Duration::from_secs(2);
/// How far back an earlier decision on the same request id is looked for.
const LOOK_BACK_OUTPUTS: u64 = 20_000;

/// What is needed.
#[derive(Debug, Args)]
pub struct Options {
    /// How many GPUs, all on one host
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(BUNDLE_GPUS_MAX)))]
    gpus: u32,
    /// Memory needed on each, such as 40GiB or 80GB; none = whatever there is
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
    /// Product name as the driver gives it
    #[arg(long)]
    model: Option<String>,
    /// Who asks
    #[arg(long, env = "PLIMSOLL_TENANT", default_value = "default")]
    tenant: TenantId,
    /// Thousandths of each GPU; 1000 = exclusive use
    #[arg(long, default_value_t = WHOLE_MILLI, value_parser = clap::value_parser!(u32).range(1..=i64::from(WHOLE_MILLI)))]
    milli: u32,
    /// How long the lease lives without a renewal, such as 90s, 10m or 4h [default: 10m]
    #[arg(long, value_parser = ttl_ms)]
    ttl: Option<u64>,
    /// What it is for
    #[arg(long)]
    workload: Option<String>,
    /// Asking twice under one id is asking once [default: a new one]
    #[arg(long)]
    request_id: Option<String>,
    /// How long to wait for the decision
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Asks, waits and prints; exit code 3 if nothing was placed.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let broker = Broker::connect(&options.endpoint.resolve()?).await?;
    let since = if options.request_id.is_some() { Since::Last(LOOK_BACK_OUTPUTS) } else { Since::Now };
    let request_id = options.request_id.unwrap_or_else(|| format!("cli-{}", broker.unique()));
    let bundle = Bundle { count: options.gpus, milli: options.milli, vram_bytes: options.memory.unwrap_or(0), ..Bundle::default() };
    let place =
        Place { request_id, bundles: vec![bundle], model: options.model, workload: options.workload, lease_ttl_ms: options.ttl, ..Place::default() };
    let decided = ask(&broker, &options.tenant, place, since, options.timeout).await?;
    match options.output.format {
        Format::Json => {
            let text = serde_json::to_string_pretty(&decided).expect("a decision that was read serialises");
            use std::io::Write;
            writeln!(std::io::stdout(), "{text}").map_err(Error::io("cannot write"))?;
        }
        Format::Table | Format::Csv => table(&decided).print(options.output.format)?,
    }
    Ok(if decided.outcome == Outcome::Placed { ExitCode::SUCCESS } else { ExitCode::from(NOT_PLACED) })
}

/// Sends a request until OUT shows the decision on it.
pub async fn ask(broker: &Broker, tenant: &TenantId, place: Place, since: Since, timeout: Duration) -> Result<Decided, Error> {
    let deadline = Instant::now() + timeout;
    let request_id = place.request_id.clone();
    let request = Request::Place(place);
    // Followed before it is sent, so that no decision can come between.
    let mut follow = broker.follow(&[format!("decision.{tenant}"), "rejected".to_owned()], since).await?;
    let mut hint = String::new();
    while Instant::now() < deadline {
        broker.append(&LogSubject::Request(tenant.clone()), &request).await?;
        let resend = deadline.min(Instant::now() + RESEND);
        while let Ok(next) = tokio::time::timeout_at(resend, follow.next()).await {
            match next?.0.data {
                Payload::Decided(decided) if decided.request_id == request_id && decided.outcome != Outcome::Deferred => return Ok(decided),
                Payload::Rejected(refused) if refused.source == format!("request.{tenant}") => {
                    hint = format!(" A request of this tenant was refused meanwhile: {} ({})", refused.reason.code(), refused.raw);
                }
                Payload::Decided(_)
                | Payload::Distributed(_)
                | Payload::Lease(_)
                | Payload::Device(_)
                | Payload::Host(_)
                | Payload::Rejected(_)
                | Payload::Gap(_)
                | Payload::Alert(_)
                | Payload::Policy(_)
                | Payload::Preemption(_)
                | Payload::Pace(_) => {}
            }
        }
    }
    Err(Error::NoDecision { request_id, seconds: timeout.as_secs(), hint })
}

/// One row per GPU that was given, or one that says why none was.
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
    let row = |gpu: &plimsoll_schemas::out::Assignment| {
        vec![
            some(&decided.outcome.code()),
            lease.map(|lease| lease.lease_id.clone()),
            some(&gpu.host),
            some(&gpu.slot.0),
            some(&gpu.device_uuid),
            some(&gpu.milli),
            some(&(gpu.vram_bytes >> 20)),
            some(&format!("{:.4}", f64::from(gpu.score_micro) / 1e6)),
            lease.map(|lease| lease.expires_at.clone()),
        ]
    };
    Table {
        columns: named(&[
            ("outcome", TEXT),
            ("lease_id", TEXT),
            ("host", TEXT),
            ("slot", NUMBER),
            ("device_uuid", TEXT),
            ("milli", NUMBER),
            ("memory_mib", NUMBER),
            ("score", NUMBER),
            ("expires_at", TEXT),
        ]),
        rows: decided.assignments.iter().map(row).collect(),
    }
}

/// A length of time: a whole number and ms, s, m, h or d.
pub fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let wrong = || format!("{text:?} is no length of time: give a whole number and ms, s, m, h or d, such as 90s");
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    let unit_ms = match text[at..].trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(wrong)
}

fn ttl_ms(text: &str) -> Result<u64, String> {
    let ms = duration(text)?.as_millis() as u64;
    if (LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&ms) {
        Ok(ms)
    } else {
        Err(format!("a lease lives from {} s to {} d", LEASE_TTL_MS_MIN / 1_000, LEASE_TTL_MS_MAX / 86_400_000))
    }
}

/// An amount of memory: a whole number and B, KB, MB, GB, TB or KiB, MiB, GiB, TiB.
fn bytes(text: &str) -> Result<u64, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let wrong = || format!("{text:?} is no amount of memory: give a whole number and a unit, such as 40GiB or 80GB");
    let number: u64 = text[..at].parse().map_err(|_| wrong())?;
    let unit: u64 = match text[at..].trim() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_memory_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(bytes(text).ok(), expected, "{text}");
        check("40GiB", Some(40 << 30));
        check("80 GB", Some(80_000_000_000));
        check("123", Some(123));
        check("40gigs", None);
        check("", None);
        check("-1GB", None);
        check("99999999999TiB", None);
    }

    #[test]
    fn lengths_of_time_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(duration(text).ok().map(|d| d.as_millis() as u64), expected, "{text}");
        check("60s", Some(60_000));
        check("250ms", Some(250));
        check("4h", Some(14_400_000));
        check("60", None);
        check("s", None);
        check("99999999999999999d", None);
        assert!(ttl_ms("1s").is_err() && ttl_ms("31d").is_err());
    }
}
