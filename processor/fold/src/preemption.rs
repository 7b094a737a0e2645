//! Room that leases of lower priority could make: proposed, never taken.

use std::collections::BTreeSet;

use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{LeaseState, Outcome, Payload, PreemptionProposed, Victim};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Place, TEXT_BYTES_MAX};
use plimsoll_schemas::subject::OutSubject;

use crate::State;
use crate::emit::Emit;
use crate::leases::Lease;
use crate::placement::select::Choice;
use crate::placing::{Assume, can_pass};

impl State {
    /// Where a request finds no room and leases of lower priority may be ended for it: says which. Nothing is ended by it.
    pub(crate) fn propose_preemption(&mut self, tenant: &TenantId, place: &Place, choice: &Choice, emit: &mut Emit<'_>) {
        if choice.outcome == Outcome::Placed
            || !choice.reason.is_some_and(|reason| can_pass(reason) && ![Reason::NotYet, Reason::Paced].contains(&reason))
        {
            return;
        }
        let may_end = |lease: &&Lease| lease.preemptible && lease.priority < place.priority && lease.state == LeaseState::Active;
        let ended: BTreeSet<u64> = self.leases.by_fence.values().filter(may_end).map(|lease| lease.fence).collect();
        if ended.is_empty() {
            return;
        }
        let without = self.choice(tenant, place, &Assume { ended: ended.clone(), ..Assume::default() });
        if without.outcome != Outcome::Placed {
            return;
        }
        let on_gpus = without.picks.iter().flat_map(|pick| self.fences_at(pick.number, pick.slices));
        let needs_host = place.bundles.iter().any(|bundle| bundle.cpu_milli > 0 || bundle.memory_bytes > 0);
        let hosts: BTreeSet<u32> = without.hosts.iter().filter_map(|(host, _)| self.registry.host_number(host)).filter(|_| needs_host).collect();
        let on_hosts =
            self.leases.by_fence.values().filter(|lease| lease.hosts.iter().any(|share| hosts.contains(&share.host))).map(|lease| lease.fence);
        let victims: BTreeSet<u64> = on_gpus.chain(on_hosts).filter(|fence| ended.contains(fence)).collect();
        let victim = |fence: &u64| {
            let lease = self.leases.by_fence.get(fence)?;
            Some(Victim { lease_id: lease.lease_id.clone(), tenant: lease.tenant.clone(), priority: lease.priority })
        };
        let proposed = PreemptionProposed {
            request_id: cut(&place.request_id, TEXT_BYTES_MAX).to_owned(),
            tenant: tenant.clone(),
            priority: place.priority,
            position: emit.position(),
            victims: victims.iter().filter_map(victim).collect(),
            device_uuids: without.picks.iter().map(|pick| self.registry.devices[pick.number as usize].uuid().clone()).collect(),
        };
        emit.out(&OutSubject::Decision(tenant.clone()), Payload::Preemption(Box::new(proposed)));
    }
}
