//! A new log epoch: the log that was folded is gone, another one stands in its place, and the same state goes on with it.
//!
//! Decisions that stand in OUT and that this state has not made (another replica had folded further) are adopted: their leases hold, their
//! requests are answered, their numbers are taken. Nothing is said about them again.

use plimsoll_schemas::control::NewEpoch;
use plimsoll_schemas::id::{Position, TenantId};
use plimsoll_schemas::out::{Assignment, CloudEvent, Decided, HostShare, LeaseChanged, LeaseGrant, LeaseState, Outcome, Payload};
use plimsoll_schemas::row::Row;
use plimsoll_schemas::time::NS_PER_MS;

use crate::decision::decision_row;
use crate::emit::Emit;
use crate::leases::{Held, Lease, Share, by_gpu};
use crate::paces::scope::Left;
use crate::{Effects, State};

/// The state is not the one that the new epoch begins with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("log epoch {epoch} begins with the state at {base} with hash {base_hash}, this one is at {position} with {hash}")]
pub struct AnotherBase {
    /// Number of the new epoch.
    pub epoch: u32,
    /// Where it begins.
    pub base: Position,
    /// With which hash.
    pub base_hash: String,
    /// Where this state stands.
    pub position: Position,
    /// Its hash.
    pub hash: String,
}

impl State {
    /// Begins a log epoch: the next record is the one behind `new.after`. Errors, changing nothing, if this is another state than its base.
    pub fn begin_epoch(&mut self, new: &NewEpoch, effects: &mut Effects) -> Result<(), AnotherBase> {
        let hash = format!("{:016x}", self.hash());
        if (self.position(), &hash) != (new.base, &new.base_hash) || new.epoch <= new.base.epoch {
            let (epoch, base_hash) = (new.epoch.0, new.base_hash.clone());
            return Err(AnotherBase { epoch, base: new.base, base_hash, position: self.position(), hash });
        }
        self.meta.position = Position { epoch: new.epoch, sequence: new.after };
        let cell = self.cell.clone();
        let mut emit = Emit::new(&cell, effects, self.meta.position, self.clock.logged_at, self.meta.chain).silent();
        let mut decision_seq = self.meta.chain.decision_seq;
        for event in &new.adopted {
            decision_seq = decision_seq.max(self.adopt(event, &mut emit));
        }
        // Those who wait are tried again with the next tick: that something was given back here is not stored.
        self.queue.woken = false;
        let chain = emit.finish(&[new.out_seq, decision_seq, self.meta.fence]);
        self.meta.chain = crate::emit::Chain { out_seq: chain.out_seq.max(new.out_seq), decision_seq, ..chain };
        Ok(())
    }

    /// Takes over what an event says; returns the number of its decision, 0 if it is none.
    fn adopt(&mut self, event: &CloudEvent, emit: &mut Emit<'_>) -> u64 {
        match &event.data {
            Payload::Decided(decided) => {
                self.adopt_decision(decided, emit);
                decided.decision_seq
            }
            Payload::Distributed(distributed) => {
                self.remember_request(&distributed.tenant, &distributed.request_id);
                distributed.decision_seq
            }
            Payload::Lease(lease) => {
                self.adopt_lease(lease, emit);
                0
            }
            // Their causes will be seen again, or are gone for good.
            Payload::Device(_)
            | Payload::Host(_)
            | Payload::Rejected(_)
            | Payload::Gap(_)
            | Payload::Policy(_)
            | Payload::Alert(_)
            | Payload::Pace(_) => 0,
            // It binds nobody.
            Payload::Preemption(_) => 0,
        }
    }

    fn remember_request(&mut self, tenant: &TenantId, request_id: &str) {
        if !self.requests.knows(tenant, request_id) {
            self.meta.requests += 1;
            self.requests.adopt(tenant, request_id, self.meta.requests, self.clock.live_ns);
        }
    }

    fn adopt_decision(&mut self, decided: &Decided, emit: &mut Emit<'_>) {
        // A request that waited is gone with the log that held it, unless the state knows it: whoever sent it sends it again.
        if decided.outcome != Outcome::Deferred {
            self.remember_request(&decided.tenant, &decided.request_id);
            let number = self.requests.number_of(&decided.tenant, &decided.request_id);
            number.and_then(|number| self.queue.turn_of(number)).map(|turn| self.leave(turn, Left::Admitted));
        }
        emit.row(Row::Decision(Box::new(decision_row(decided, emit.logged_at()))));
        if let (Outcome::Placed, Some(grant)) = (decided.outcome, &decided.lease) {
            self.adopt_grant(decided, grant, emit);
        }
    }

    fn adopt_grant(&mut self, decided: &Decided, grant: &LeaseGrant, emit: &mut Emit<'_>) {
        self.meta.fence = self.meta.fence.max(grant.fence);
        if self.leases.find(&grant.lease_id).is_some() {
            return;
        }
        // A GPU that only the lost log had announced holds nothing until it is announced again.
        let part = |assignment: &Assignment| {
            let number = self.registry.device_number(&assignment.device_uuid)?;
            let promised = assignment.mig.clone().into_iter().collect();
            Some(Held { number, milli: assignment.milli, vram_bytes: assignment.vram_bytes, promised })
        };
        let parts = by_gpu(decided.assignments.iter().filter_map(part));
        let share = |share: &HostShare| {
            let host = self.registry.host_number(&share.host)?;
            Some(Share { host, cpu_milli: share.cpu_milli, memory_bytes: share.memory_bytes })
        };
        let ttl_ms = i64::try_from(grant.ttl_ms).unwrap_or(i64::MAX);
        let granted: Vec<u32> = parts.iter().map(|part| part.number).collect();
        let lease = Lease {
            fence: grant.fence,
            lease_id: grant.lease_id.clone(),
            request_id: decided.request_id.clone(),
            tenant: decided.tenant.clone(),
            state: LeaseState::Active,
            granted_at: emit.logged_at(),
            ttl_ms,
            deadline_ns: self.clock.live_ns.saturating_add(ttl_ms.saturating_mul(NS_PER_MS)),
            expires_at: emit.logged_at().plus_ms(ttl_ms),
            end_reason: None,
            held: granted.clone(),
            granted,
            hosts: grant.hosts.iter().filter_map(share).collect(),
            priority: grant.priority,
            preemptible: grant.preemptible,
            labels: grant.labels.clone(),
            dirty: true,
        };
        self.grant(lease, &parts, emit);
    }

    fn adopt_lease(&mut self, changed: &LeaseChanged, emit: &mut Emit<'_>) {
        let Some(fence) = self.leases.find(&changed.lease_id).map(|lease| lease.fence) else { return };
        match changed.state {
            LeaseState::Draining => self.expire(fence, emit),
            LeaseState::Ended => self.release(fence, emit),
            // Granted with its decision; whether its host is lost will be seen.
            LeaseState::Active | LeaseState::Suspended => {}
        }
    }
}
