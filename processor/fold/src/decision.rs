//! What is said of a request and of the decision on it: rows and events.

use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Assignment, Decided, HostShare, LeaseGrant, Payload};
use plimsoll_schemas::request::{Bundle, Locality, Place, TEXT_BYTES_MAX};
use plimsoll_schemas::row::{DecisionRow, RequestRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::LogTime;

use crate::State;
use crate::emit::Emit;
use crate::leases::Lease;
use crate::placement::ask::Ask;
use crate::placement::policy::catalogue::Bidder;
use crate::placement::select::{Choice, Pick};
use crate::placing::{Attempt, VERSION};

impl State {
    /// Says a decision: its row and its event.
    #[expect(clippy::too_many_arguments, reason = "each is a part of one event")]
    pub(crate) fn say_decision(
        &mut self,
        tenant: &TenantId,
        place: &Place,
        choice: Choice,
        lease: Option<&Lease>,
        attempt: Attempt,
        earliest_at: Option<LogTime>,
        emit: &mut Emit<'_>,
    ) {
        let state_hash = format!("{:016x}", self.meta.chain.hash);
        let (decision_id, decision_seq) = emit.next_decision();
        let decided = Decided {
            decision_id,
            decision_seq,
            state_hash,
            position: emit.position(),
            earliest_at: earliest_at.map(LogTime::rfc3339),
            ..self.decided(tenant, place, choice, lease, attempt)
        };
        emit.row(Row::Decision(Box::new(decision_row(&decided, emit.logged_at()))));
        emit.out(&OutSubject::Decision(tenant.clone()), Payload::Decided(decided));
    }

    /// A choice as decisions say it, on the state as it is.
    pub(crate) fn decided(&self, tenant: &TenantId, place: &Place, choice: Choice, lease: Option<&Lease>, attempt: Attempt) -> Decided {
        let Bidder { policy, power_weight } = self.bidder_for(place).unwrap_or(self.meta.bidder());
        let bundle_of = |member: u32| choice.bundle_of(place, member);
        let assignment = |pick: &Pick| {
            let facts = &self.registry.devices[pick.number as usize].facts;
            Assignment {
                device_uuid: facts.gpu.uuid.clone(),
                device_key: facts.key,
                host: self.registry.hosts[facts.host as usize].id.clone(),
                slot: facts.gpu.slot,
                gpu_index: facts.gpu.index,
                milli: pick.milli,
                vram_bytes: pick.vram_bytes,
                score_micro: pick.score_micro,
                member: pick.member,
                bundle: bundle_of(pick.member).and_then(|bundle| bundle.name.clone()),
                mig: choice.promise(place, pick),
            }
        };
        let hash = |hash: u64| format!("{hash:016x}");
        Decided {
            decision_id: String::new(),
            decision_seq: 0,
            request_id: cut(&place.request_id, TEXT_BYTES_MAX).to_owned(),
            tenant: tenant.clone(),
            outcome: choice.outcome,
            reason: choice.reason,
            detail: choice.detail.clone(),
            position: self.meta.position,
            state_hash: hash(self.meta.chain.hash),
            policy: format!("{}@{VERSION}", policy.code()),
            power_weight,
            tables_hash: self.hashed_tables().filter(|_| policy.learns()).map(|tables| hash(tables.hash)),
            mix_hash: policy.learns().then(|| hash(self.mix.seen().hash)),
            attempt: attempt.number,
            queue_ms: u64::try_from(attempt.waited_ms).unwrap_or_default(),
            hosts_considered: choice.hosts_considered,
            hosts_feasible: choice.hosts_feasible,
            refused: choice.refused.clone(),
            assignments: choice.picks.iter().map(assignment).collect(),
            lease: lease.map(|lease| LeaseGrant {
                lease_id: lease.lease_id.clone(),
                fence: lease.fence,
                ttl_ms: lease.ttl_ms as u64,
                expires_at: lease.expires_at.rfc3339(),
                hosts: lease
                    .hosts
                    .iter()
                    .map(|share| HostShare {
                        host: self.registry.hosts[share.host as usize].id.clone(),
                        cpu_milli: share.cpu_milli,
                        memory_bytes: share.memory_bytes,
                    })
                    .collect(),
                priority: lease.priority,
                preemptible: lease.preemptible,
                labels: lease.labels.clone(),
            }),
            score_micro: choice.score_micro,
            parts: choice.parts,
            runners_up: choice.runners_up,
            candidates: choice.candidates,
            nearest_miss: choice.nearest_miss,
            earliest_at: None,
            by_gpu_alone: choice.by_gpu_alone,
        }
    }
}

/// A decision as SQL shows it.
pub(crate) fn decision_row(decided: &Decided, decided_at: LogTime) -> DecisionRow {
    let (policy, version) = decided.policy.split_once('@').unwrap_or((&decided.policy, ""));
    DecisionRow {
        decision_id: decided.decision_id.clone(),
        decision_seq: decided.decision_seq,
        request_id: decided.request_id.clone(),
        tenant: decided.tenant.clone(),
        decided_at,
        outcome: decided.outcome,
        reason: decided.reason,
        attempt: decided.attempt,
        queue_ms: i64::try_from(decided.queue_ms).unwrap_or(i64::MAX),
        score_micro: decided.score_micro,
        policy: policy.to_owned(),
        policy_version: version.parse().unwrap_or_default(),
        hosts_considered: decided.hosts_considered,
        hosts_feasible: decided.hosts_feasible,
        candidates: decided.candidates.as_ref().map(|candidates| serde_json::to_string(candidates).expect("plain data")),
        lease_id: decided.lease.as_ref().map(|lease| lease.lease_id.clone()),
    }
}

/// A request as SQL shows it.
pub(crate) fn request_row(tenant: &TenantId, place: &Place, requested_at: LogTime) -> RequestRow {
    let short = |text: &String| cut(text, TEXT_BYTES_MAX).to_owned();
    let valid = Ask::new(place).is_ok();
    let models: Vec<&str> = place.models().collect();
    let gpus = |bundle: &Bundle| bundle.count.saturating_mul(bundle.members);
    let scope = place.constraints.topology.as_ref().filter(|near| near.required).map(|near| near.scope);
    RequestRow {
        request_id: short(&place.request_id),
        requested_at,
        tenant: tenant.clone(),
        workload: place.workload.as_ref().map(short),
        n_gpus: place.bundles.iter().map(gpus).fold(0, u32::saturating_add),
        memory_per_gpu_bytes: place.bundles.iter().map(|bundle| i64::try_from(bundle.vram_bytes).unwrap_or(i64::MAX)).max().unwrap_or(0),
        model: (valid && !models.is_empty()).then(|| models.join("|")),
        same_host: scope == Some(Locality::Host) || place.bundles.iter().map(|bundle| u64::from(bundle.members)).sum::<u64>() == 1,
        same_nvlink: scope == Some(Locality::Nvlink),
        duration_ms: place.duration_ms.and_then(|ms| i64::try_from(ms).ok()),
        priority: place.priority,
        // Labels of a request that is refused may be of any size.
        labels: (valid && !place.labels.is_empty()).then(|| serde_json::to_string(&place.labels).expect("a map of strings")),
    }
}
