//! `plimsoll decisions`: the newest ones from SQL, or each as it is made from OUT.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use plimsoll_schemas::id::{HostId, TenantId};
use plimsoll_schemas::out::{Assignment, CloudEvent, Decided, Distributed, Outcome, Payload};

use crate::broker::{Broker, Since};
use crate::error::Error;
use crate::output::{Flag, Format};
use crate::{endpoint, postgres};

/// Most hosts that are named in a line.
const HOSTS_SHOWN_MAX: usize = 4;

/// Which decisions.
#[derive(Debug, Args)]
pub struct Options {
    /// Go on and print each decision as it is made
    #[arg(long)]
    follow: bool,
    /// Only this tenant's
    #[arg(long)]
    tenant: Option<TenantId>,
    /// How many of the newest
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "follow")]
    limit: u32,
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Lists or follows.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoints = options.endpoint.resolve()?;
    if !options.follow {
        postgres::ask(&endpoints, &question(options.tenant.as_ref(), options.limit)).await?.print(options.output.format)?;
        return Ok(ExitCode::SUCCESS);
    }
    let broker = Broker::connect(&endpoints).await?;
    let tail = format!("decision.{}", options.tenant.as_ref().map_or("*", TenantId::as_str));
    let mut follow = broker.follow(&[tail], Since::Now).await?;
    let mut stdout = std::io::stdout();
    let mut print = |line: &str| writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(Error::io("cannot write"));
    match options.output.format {
        Format::Table => print(&line("SEQ", "OUTCOME", "TENANT", "REQUEST", "WHERE OR WHY"))?,
        Format::Csv => print("decision_seq,outcome,tenant,request_id,detail")?,
        Format::Json => {}
    }
    loop {
        tokio::select! {
            next = follow.next() => {
                let (event, bytes) = next?;
                match options.output.format {
                    // The event as it stands in OUT, one per line.
                    Format::Json => print(&String::from_utf8_lossy(&bytes))?,
                    Format::Table | Format::Csv => if let Some(text) = row(&event, options.output.format) { print(&text)? },
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(ExitCode::SUCCESS),
        }
    }
}

fn question(tenant: Option<&TenantId>, limit: u32) -> String {
    let filter = tenant.map_or_else(String::new, |tenant| format!("WHERE coalesce(d.tenant, r.tenant) = '{tenant}' "));
    format!(
        "SELECT d.decision_seq, d.decided_at, d.outcome, coalesce(d.tenant, r.tenant) AS tenant, d.request_id, r.n_gpus, d.reason, d.queue_ms, l.hosts, d.lease_id, d.policy \
         FROM placement_decisions d LEFT JOIN placement_requests r ON r.request_id = d.request_id AND (r.tenant = d.tenant OR d.tenant IS NULL) \
         LEFT JOIN (SELECT lease_id, string_agg(DISTINCT host, ' ' ORDER BY host) AS hosts FROM lease_devices GROUP BY lease_id) l ON l.lease_id = d.lease_id {filter}\
         ORDER BY d.decision_seq DESC LIMIT {limit}"
    )
}

fn line(sequence: &str, outcome: &str, tenant: &str, request: &str, detail: &str) -> String {
    format!("{sequence:>6}  {outcome:<9} {tenant:<12} {request:<26} {detail}")
}

fn row(event: &CloudEvent, format: Format) -> Option<String> {
    let (sequence, outcome, tenant, request, detail) = match &event.data {
        Payload::Decided(decided) => (decided.decision_seq, decided.outcome, &decided.tenant, &decided.request_id, placed(decided)),
        Payload::Distributed(split) => (split.decision_seq, split.outcome, &split.tenant, &split.request_id, distributed(split)),
        Payload::Lease(_)
        | Payload::Device(_)
        | Payload::Host(_)
        | Payload::Rejected(_)
        | Payload::Gap(_)
        | Payload::Alert(_)
        | Payload::Policy(_)
        | Payload::Preemption(_)
        | Payload::Pace(_) => return None,
    };
    let sequence = sequence.to_string();
    Some(match format {
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record([&sequence, outcome.code(), tenant.as_str(), request, &detail]).ok()?;
            String::from_utf8(writer.into_inner().ok()?).ok()?.trim_end().to_owned()
        }
        Format::Table | Format::Json => line(&sequence, outcome.code(), tenant.as_str(), request, &detail),
    })
}

/// Where a placement went, or why it did not.
pub fn placed(decided: &Decided) -> String {
    if decided.outcome == Outcome::Placed && !decided.assignments.is_empty() {
        let lease = decided.lease.as_ref().map_or_else(String::new, |lease| format!(", lease {}", lease.lease_id));
        return format!("{}{lease}", hosts(&decided.assignments));
    }
    why(decided.reason.map(|reason| reason.code()), decided.detail.as_deref())
}

/// `gpu-1 GPU 0,1; gpu-2 GPU 0`: the GPUs of each host, the first hosts only where there are many.
fn hosts(assignments: &[Assignment]) -> String {
    let mut slots = BTreeMap::<&HostId, BTreeSet<u8>>::new();
    for gpu in assignments {
        slots.entry(&gpu.host).or_default().insert(gpu.slot.0);
    }
    let of_host = |(host, slots): (&&HostId, &BTreeSet<u8>)| {
        let slots: Vec<String> = slots.iter().map(u8::to_string).collect();
        format!("{host} GPU {}", slots.join(","))
    };
    let shown: Vec<String> = slots.iter().take(HOSTS_SHOWN_MAX).map(of_host).collect();
    match slots.len().saturating_sub(HOSTS_SHOWN_MAX) {
        0 => shown.join("; "),
        more => format!("{}; {more} more hosts", shown.join("; ")),
    }
}

fn distributed(split: &Distributed) -> String {
    if split.outcome == Outcome::Placed {
        return format!("{} items over {} GPUs, {} left over", split.counts.values().sum::<u64>(), split.counts.len(), split.unassigned);
    }
    why(split.reason.map(|reason| reason.code()), split.detail.as_deref())
}

fn why(reason: Option<&str>, detail: Option<&str>) -> String {
    match (reason, detail) {
        (Some(reason), Some(detail)) => format!("{reason}: {detail}"),
        (Some(text), None) | (None, Some(text)) => text.to_owned(),
        (None, None) => "no reason given".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(outcome: &str, assignments: Vec<Value>, expected: &str) {
        let decided: Decided = serde_json::from_value(json!({
            "decision_id": "local-0-9-0", "decision_seq": 2, "request_id": "r-1", "tenant": "research", "outcome": outcome, "reason": "cancelled",
            "detail": "withdrawn by cli-1", "position": {"epoch": 0, "sequence": 9}, "policy": "hybrid@1", "hosts_considered": 0,
            "hosts_feasible": 0, "refused": {}, "assignments": assignments, "runners_up": [],
        }))
        .expect("a decision");
        assert_eq!(placed(&decided), expected);
    }

    #[test]
    fn a_gang_is_said_by_host_and_what_was_withdrawn_by_whom() {
        let gpu = |host: usize, slot: u16, member: u32| {
            json!({"device_uuid": "GPU-1", "device_key": 5, "host": format!("gpu-{host}"), "slot": slot, "gpu_index": slot, "milli": 500,
                   "vram_bytes": 0, "score_micro": 0, "member": member})
        };
        check("placed", vec![gpu(1, 3, 0), gpu(1, 0, 0), gpu(2, 0, 1), gpu(2, 0, 2)], "gpu-1 GPU 0,3; gpu-2 GPU 0");
        let many = (0..6).map(|host| gpu(host, 0, host as u32)).collect();
        check("placed", many, "gpu-0 GPU 0; gpu-1 GPU 0; gpu-2 GPU 0; gpu-3 GPU 0; 2 more hosts");
        check("cancelled", Vec::new(), "cancelled: withdrawn by cli-1");
    }
}
