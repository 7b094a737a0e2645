//! `plimsoll cancel`: withdraws a request that waits, and waits itself until that is decided or refused.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use plimsoll_schemas::id::{IdError, TenantId};
use plimsoll_schemas::out::{CloudEvent, Decided, Outcome, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Cancel, Request, TEXT_BYTES_MAX};
use plimsoll_schemas::subject::LogSubject;
use tokio::time::{Instant, timeout_at};

use crate::broker::{Broker, Since};
use crate::commands::NOT_PLACED;
use crate::endpoint::{self, Endpoints};
use crate::error::Error;
use crate::output::{self, Table};
use crate::outputs::MadeBy;
use crate::{postgres, visible};

/// How long OUT is listened to before SQL is asked, and once SQL has come to the withdrawal. Of equal refusals within ten seconds OUT says only
/// the first.
const LISTEN: Duration = Duration::from_secs(2);

/// Which request.
#[derive(Debug, Args)]
pub struct Options {
    /// The request, as `plimsoll queue` shows it
    request_id: String,
    /// Who asked [default: looked up in SQL]
    #[arg(long, env = "PLIMSOLL_TENANT")]
    tenant: Option<TenantId>,
    #[command(flatten)]
    output: output::Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Withdraws and prints; exit code 3 if it was refused.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    if options.request_id.is_empty() || options.request_id.len() > TEXT_BYTES_MAX {
        return Err(Error::Usage(format!("a request id has 1 to {TEXT_BYTES_MAX} bytes; list those that wait with `plimsoll queue`")));
    }
    let endpoints = options.endpoint.resolve()?;
    let tenant = match options.tenant {
        Some(tenant) => tenant,
        None => asker(&endpoints, &options.request_id).await?,
    };
    let end = cancel(&endpoints, &tenant, &options.request_id).await?;
    let mut table = Table::of_text(&["request_id", "tenant", "outcome", "why"]);
    table.rows.push([options.request_id, tenant.to_string(), end.outcome().to_owned(), end.why()].map(Some).to_vec());
    table.print(options.output.format)?;
    Ok(match end {
        End::Cancelled(_) => ExitCode::SUCCESS,
        End::Refused { .. } => ExitCode::from(NOT_PLACED),
    })
}

/// How a withdrawal ended.
#[derive(Debug)]
enum End {
    Cancelled(Box<Decided>),
    Refused { reason: String, raw: String },
}

impl End {
    fn outcome(&self) -> &'static str {
        match self {
            Self::Cancelled(decided) => decided.outcome.code(),
            Self::Refused { .. } => "refused",
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Cancelled(decided) => format!("waited {} ms", decided.queue_ms),
            Self::Refused { reason, .. } if reason == Reason::UnknownRequest.code() => {
                format!("{reason}: it does not wait. If it was placed, release its lease: `plimsoll leases` shows it")
            }
            Self::Refused { reason, raw } => format!("{reason}: {raw}"),
        }
    }
}

/// Who asked. Request ids are unique per tenant only.
async fn asker(endpoints: &Endpoints, request_id: &str) -> Result<TenantId, Error> {
    let question = format!("SELECT DISTINCT tenant FROM placement_requests WHERE request_id = '{}' LIMIT 2", request_id.replace('\'', "''"));
    let found = postgres::ask(endpoints, &question).await?;
    if found.rows.len() > 1 {
        return Err(Error::Usage(format!("several tenants have asked under {request_id}: say whose with --tenant")));
    }
    let tenant = found.first("tenant");
    let unknown = || Error::Usage(format!("no request {request_id}: list those that wait with `plimsoll queue`, or say whose it is with --tenant"));
    tenant.ok_or_else(unknown)?.parse().map_err(|error: IdError| Error::Refused(error.to_string()))
}

/// Sends the withdrawal and waits until OUT or SQL shows what became of it.
async fn cancel(endpoints: &Endpoints, tenant: &TenantId, cancels: &str) -> Result<End, Error> {
    let broker = Broker::connect(endpoints).await?;
    let request_id = format!("cli-{}", broker.unique());
    let request = Request::Cancel(Cancel { request_id: request_id.clone(), cancels: cancels.to_owned() });
    let mut follow = broker.follow(&[format!("decision.{tenant}"), "rejected".to_owned()], Since::Now).await?;
    let sequence = broker.append(&LogSubject::Request(tenant.clone()), &request).await?;
    let mut listen = async || {
        let until = Instant::now() + LISTEN;
        while let Ok(next) = timeout_at(until, follow.next()).await {
            if let Some(end) = end(next?.0, sequence, cancels) {
                return Ok(Some(end));
            }
        }
        Ok::<_, Error>(None)
    };
    if let Some(end) = listen().await? {
        return Ok(end);
    }
    visible::until(endpoints, sequence).await?;
    if let Some(end) = listen().await? {
        return Ok(end);
    }
    refusal(endpoints, &request_id, cancels).await?.ok_or_else(|| {
        Error::Refused(format!("nothing says whether request {cancels} was withdrawn, though record {sequence} was folded: see `plimsoll queue`"))
    })
}

/// The newest refusal that names the withdrawal or what it withdraws.
async fn refusal(endpoints: &Endpoints, request_id: &str, cancels: &str) -> Result<Option<End>, Error> {
    let question = format!(
        "SELECT reason, raw_value FROM rejected WHERE source = 'processor' AND host IS NULL AND raw_value IN ('{request_id}', '{}') \
         ORDER BY logged_at DESC LIMIT 1",
        cancels.replace('\'', "''")
    );
    let refused = postgres::ask(endpoints, &question).await?;
    let end = |reason: &str| End::Refused { reason: reason.to_owned(), raw: refused.first("raw_value").unwrap_or_default().to_owned() };
    Ok(refused.first("reason").map(end))
}

/// What an output says about the withdrawal that is the record `sequence`.
fn end(event: CloudEvent, sequence: u64, cancels: &str) -> Option<End> {
    let is_of_record = MadeBy::of_event(&event).is_some_and(|made_by| made_by.sequence == sequence);
    match event.data {
        // Whoever withdrew it.
        Payload::Decided(decided) if decided.request_id == cancels && decided.outcome == Outcome::Cancelled => {
            Some(End::Cancelled(Box::new(decided)))
        }
        Payload::Rejected(refused) if is_of_record => Some(End::Refused { reason: refused.reason.code().to_owned(), raw: refused.raw }),
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
        | Payload::Pace(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn event(record: u64, data: Value) -> CloudEvent {
        serde_json::from_value(json!({
            "specversion": "1.0", "id": format!("local/0/{record}/0"), "source": "/plimsoll/local", "type": "t", "subject": "s",
            "time": "2026-11-20T14:05:00Z", "datacontenttype": "application/json", "outseq": 1, "data": data,
        }))
        .expect("an event")
    }

    fn decided(outcome: &str) -> Value {
        json!({
            "decision_id": "local-0-9-0", "decision_seq": 2, "request_id": "r-1", "tenant": "research", "outcome": outcome, "reason": "cancelled",
            "detail": "withdrawn by cli-1", "position": {"epoch": 0, "sequence": 9}, "policy": "hybrid@1", "queue_ms": 4_000,
            "hosts_considered": 0, "hosts_feasible": 0, "refused": {}, "assignments": [], "runners_up": [],
        })
    }

    #[test]
    fn it_ends_with_the_withdrawal_or_with_the_refusal_of_this_very_record() {
        let cancelled = end(event(9, decided("cancelled")), 9, "r-1").expect("that is it");
        assert_eq!((cancelled.outcome(), cancelled.why().as_str()), ("cancelled", "waited 4000 ms"));
        assert!(end(event(9, decided("cancelled")), 9, "r-2").is_none());
        assert!(end(event(9, decided("placed")), 9, "r-1").is_none());
        let refused = json!({"source": "request.research", "reason": "unknown_request", "count": 1, "raw": "r-1"});
        assert!(end(event(8, refused.clone()), 9, "r-1").is_none());
        let refused = end(event(9, refused), 9, "r-1").expect("that is it");
        assert!(refused.outcome() == "refused" && refused.why().contains("release its lease"), "{refused:?}");
    }
}
