//! Sends a request until OUT shows what becomes of it. A request that waits for room is waited for as well.

use std::time::Duration;

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Decided, Outcome, Payload, PreemptionProposed};
use plimsoll_schemas::request::{Place, Request};
use plimsoll_schemas::subject::LogSubject;
use tokio::time::Instant;

use crate::broker::{Broker, Since};
use crate::commands::decisions;
use crate::error::Error;

/// A request may have been lost on the way, so it is sent again; under one request id that changes nothing.
const RESEND: Duration = Duration::from_secs(2);
/// Most leases that are named where their end is proposed.
const VICTIMS_MAX: usize = 8;

/// How long an answer may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Until anything was decided, if only that the request waits.
    pub first: Duration,
    /// Until the final decision.
    pub last: Duration,
}

impl Patience {
    /// The same for both.
    pub const fn of(time: Duration) -> Self {
        Self { first: time, last: time }
    }
}

/// What became of a request in the time that was given.
#[derive(Debug)]
pub enum Answer {
    /// It was decided for good.
    Decided(Box<Decided>),
    /// It still waits for room, since this decision.
    Waits(Box<Decided>),
}

impl Answer {
    /// The newest decision on it.
    pub fn decided(&self) -> &Decided {
        match self {
            Self::Decided(decided) | Self::Waits(decided) => decided,
        }
    }
}

/// What an output says to someone who has asked.
enum Heard {
    Decided(Box<Decided>),
    Waits(Box<Decided>),
    Proposed(Box<PreemptionProposed>),
    /// Some request of the tenant was refused; perhaps this one.
    Refused(String),
    Nothing,
}

/// Sends a request until OUT shows its final decision, or the time is over. What comes before that is told, a sentence at a time.
pub async fn ask(
    broker: &Broker,
    tenant: &TenantId,
    place: Place,
    since: Since,
    patience: Patience,
    mut tell: impl FnMut(&str),
) -> Result<Answer, Error> {
    let began = Instant::now();
    let mut deadline = began + patience.first;
    let request_id = place.request_id.clone();
    let request = Request::Place(place);
    // Followed before it is sent, so that no decision can come between.
    let mut follow = broker.follow(&[format!("decision.{tenant}"), "rejected".to_owned()], since).await?;
    let (mut waits, mut hint) = (None, String::new());
    while Instant::now() < deadline {
        // What waits has arrived.
        let listen_until = if waits.is_none() {
            broker.append(&LogSubject::Request(tenant.clone()), &request).await?;
            deadline.min(Instant::now() + RESEND)
        } else {
            deadline
        };
        while let Ok(next) = tokio::time::timeout_at(listen_until, follow.next()).await {
            match heard(next?.0.data, tenant, &request_id) {
                Heard::Decided(decided) => return Ok(Answer::Decided(decided)),
                Heard::Waits(decided) => {
                    if waits.is_none() {
                        tell(&waiting(&decided));
                    }
                    waits = Some(decided);
                    deadline = began + patience.last;
                }
                Heard::Proposed(proposed) => tell(&proposal(&proposed)),
                Heard::Refused(why) => hint = format!(" A request of this tenant was refused meanwhile: {why}"),
                Heard::Nothing => {}
            }
        }
    }
    waits.map(Answer::Waits).ok_or(Error::NoDecision { request_id, seconds: patience.first.as_secs(), hint })
}

fn heard(payload: Payload, tenant: &TenantId, request_id: &str) -> Heard {
    match payload {
        Payload::Decided(decided) if decided.request_id == request_id => match decided.outcome {
            Outcome::Deferred => Heard::Waits(Box::new(decided)),
            Outcome::Placed | Outcome::Rejected | Outcome::Preempted | Outcome::Cancelled => Heard::Decided(Box::new(decided)),
        },
        Payload::Preemption(proposed) if proposed.request_id == request_id => Heard::Proposed(proposed),
        Payload::Rejected(refused) if refused.source == format!("request.{tenant}") => {
            Heard::Refused(format!("{} ({})", refused.reason, refused.raw))
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
        | Payload::Pace(_) => Heard::Nothing,
    }
}

/// That a request waits, why, and until when at least.
fn waiting(decided: &Decided) -> String {
    let earliest =
        decided.earliest_at.as_ref().map_or_else(String::new, |at| format!("; room could be had at {at} at the earliest, if no lease is renewed"));
    format!("request {} waits: {}{earliest}", decided.request_id, decisions::placed(decided))
}

/// Whose end would make room.
fn proposal(proposed: &PreemptionProposed) -> String {
    let leases = proposed.victims.iter().take(VICTIMS_MAX);
    let mut leases: Vec<String> = leases.map(|lease| format!("{} of {} (priority {})", lease.lease_id, lease.tenant, lease.priority)).collect();
    if let Some(more) = proposed.victims.len().checked_sub(VICTIMS_MAX).filter(|&more| more > 0) {
        leases.push(format!("{more} more"));
    }
    format!(
        "request {} would have room if these leases of lower priority ended: {}. Nobody ends them for it: their holders can, or an operator",
        proposed.request_id,
        leases.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn decided(outcome: &str) -> Decided {
        serde_json::from_value(json!({
            "decision_id": "local-0-9-0", "decision_seq": 1, "request_id": "r-1", "tenant": "research", "outcome": outcome,
            "reason": "lease_conflict", "detail": "all 8 GPUs are leased", "position": {"epoch": 0, "sequence": 9}, "policy": "hybrid@1",
            "hosts_considered": 1, "hosts_feasible": 0, "refused": {}, "assignments": [], "runners_up": [],
            "earliest_at": "2026-11-20T14:05:00Z",
        }))
        .expect("a decision")
    }

    #[test]
    fn waiting_is_said_with_its_reason_and_the_earliest_end() {
        assert_eq!(
            waiting(&decided("deferred")),
            "request r-1 waits: lease_conflict: all 8 GPUs are leased; room could be had at 2026-11-20T14:05:00Z at the earliest, if no lease is renewed"
        );
    }

    #[test]
    fn a_proposal_names_the_leases_and_that_nobody_ends_them() {
        let victim = |number: usize| json!({"lease_id": format!("lease-{number}"), "tenant": "batch", "priority": -1});
        let proposed = |victims: usize| -> PreemptionProposed {
            let victims: Vec<_> = (0..victims).map(victim).collect();
            let position = json!({"epoch": 0, "sequence": 9});
            let proposed = json!({
                "request_id": "r-1", "tenant": "research", "priority": 5, "position": position, "victims": victims, "device_uuids": ["GPU-1"],
            });
            serde_json::from_value(proposed).expect("a proposal")
        };
        assert!(proposal(&proposed(1)).contains("ended: lease-0 of batch (priority -1). Nobody ends them"));
        assert!(proposal(&proposed(9)).contains("lease-7 of batch (priority -1), 1 more. Nobody"));
    }

    #[test]
    fn only_what_is_about_the_request_is_heard_and_a_deferral_is_not_the_end() {
        let tenant: TenantId = "research".parse().expect("a token");
        let heard = |outcome: &str, id: &str| heard(Payload::Decided(decided(outcome)), &tenant, id);
        assert!(matches!(heard("deferred", "r-1"), Heard::Waits(_)));
        assert!(matches!(heard("cancelled", "r-1"), Heard::Decided(_)));
        assert!(matches!(heard("placed", "r-2"), Heard::Nothing));
    }
}
