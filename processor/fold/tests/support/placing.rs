//! Asks a fleet for GPUs and hears what was decided.

use plimsoll_schemas::out::{Decided, Outcome, Payload, PreemptionProposed};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Place, Release, Request};

use super::fleet::Fleet;

pub fn decided(fleet: &Fleet) -> Vec<Decided> {
    fleet.payloads().into_iter().filter_map(|payload| if let Payload::Decided(decided) = payload { Some(decided) } else { None }).collect()
}

pub fn proposed(fleet: &Fleet) -> Vec<PreemptionProposed> {
    fleet.payloads().into_iter().filter_map(|payload| if let Payload::Preemption(said) = payload { Some(*said) } else { None }).collect()
}

/// Asks and comes back with what was decided on it at once.
pub fn ask(fleet: &mut Fleet, place: Place) -> Decided {
    fleet.clear();
    fleet.ask(Request::Place(place));
    let said = decided(fleet);
    assert_eq!(said.len(), 1, "{said:?}");
    said.into_iter().next().expect("one")
}

pub fn outcome(decided: &Decided) -> (Outcome, Option<Reason>) {
    (decided.outcome, decided.reason)
}

pub fn lease_id(decided: &Decided) -> String {
    decided.lease.as_ref().expect("placed").lease_id.clone()
}

pub fn release(fleet: &mut Fleet, decided: &Decided) {
    let lease_id = lease_id(decided);
    fleet.ask(Request::Release(Release { request_id: format!("release-{lease_id}"), lease_id }));
}
