//! Placement in the living cell: what is left of it, what a request gets, and how that is said.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Assignment, Decided, HostShare, LeaseGrant, LeaseState, Outcome, Payload, PreemptionProposed, Victim};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Locality, Place, TEXT_BYTES_MAX, WAIT_MS_MAX, WHOLE_MILLI};
use plimsoll_schemas::row::{DecisionRow, RequestRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::tables::Tables;
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS, NS_PER_S};

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::leases::{Held, Lease, by_gpu};
use crate::liveness::stale_ns;
use crate::paces::scope::Slot;
use crate::placement::ask::{self, Ask};
use crate::placement::candidate::Candidate;
use crate::placement::cell::Host;
use crate::placement::policy::catalogue::Name;
use crate::placement::policy::host::CLASSES;
use crate::placement::select::{Choice, Chooser, choose};
use crate::placement::{Refused, Settings};
use crate::registry::{Device, NO_DEVICE, Silence};
use crate::waiting::{Delay, queue_is_full};

/// The policy of a cell for which nobody has chosen one.
pub(crate) const DEFAULT: Name = Name::Hybrid;
/// The version of every policy there is.
pub(crate) const VERSION: u32 = 1;
/// So long after its grant a lease may not show in what telemetry says is in use, ns of live clock: whoever runs the job has to start it.
const UNSEEN_NS: i64 = 60 * NS_PER_S;
/// The id of a decision that is not one.
const DRY_RUN: &str = "dry-run";

/// Under which assumptions a choice is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Assume {
    /// Leases, by fence, that are taken to have ended.
    pub ended: BTreeSet<u64>,
    /// GPUs, by number, that are kept for another request.
    pub kept: BTreeSet<u32>,
}

impl State {
    /// What a placement request would get now. Changes nothing.
    pub fn dry_run(&self, tenant: &TenantId, place: &Place) -> Decided {
        let choice = self.choice(tenant, place, &self.assume(place, None));
        let lease = None;
        Decided { decision_id: DRY_RUN.to_owned(), decision_seq: 0, ..self.decided(tenant, place, choice, lease, Attempt::FIRST) }
    }

    /// Decides a request that is asked for the first time.
    pub(crate) fn place(&mut self, tenant: &TenantId, place: &Place, number: u64, emit: &mut Emit<'_>) {
        emit.row(Row::Request(Box::new(request_row(tenant, place, emit.logged_at()))));
        match Ask::new(place) {
            Ok(ask) => ask.asked().for_each(|asked| self.mix.note(asked)),
            Err(Refused { reason, detail }) => return self.conclude(tenant, place, Choice::rejected(reason, detail), Attempt::FIRST, emit),
        }
        self.mix_dirty = true;
        match self.pace_slot(tenant) {
            Slot::Now => {
                self.pace_take(tenant);
                self.place_now(tenant, place, number, emit);
            }
            Slot::At { live_ns } if !self.queue.is_full(tenant) => {
                self.pace_take(tenant);
                let delay_ms = (live_ns - self.clock.live_ns).div_euclid(NS_PER_MS) + 1;
                let choice = Choice::rejected(Reason::Paced, format!("its slot under the pace is in {delay_ms} ms"));
                self.wait(tenant, place, number, Delay { ms: delay_ms, paced: true }, choice, emit);
            }
            Slot::At { .. } => {
                let choice = self.pace_refuse(tenant, Reason::LimitReached, queue_is_full());
                self.conclude(tenant, place, choice, Attempt::FIRST, emit);
            }
            Slot::Refused { why, scope, retry_after_ms } => {
                let choice = self.pace_refuse(tenant, why.reason(), why.sentence(&scope, retry_after_ms));
                self.conclude(tenant, place, choice, Attempt::FIRST, emit);
            }
        }
    }

    /// Decides a request that may go now, unless it says that it is not to go yet.
    fn place_now(&mut self, tenant: &TenantId, place: &Place, number: u64, emit: &mut Emit<'_>) {
        let now = EventTime(emit.logged_at().0);
        let later = place.not_before.filter(|&at| at > now);
        let choice = match later {
            Some(at) if at.ms_since(now) > WAIT_MS_MAX as i64 => {
                Choice::rejected(Reason::InvalidRequest, format!("not_before {} is more than a week ahead", at.rfc3339()))
            }
            Some(at) => Choice::rejected(Reason::NotYet, format!("not to be placed before {}", at.rfc3339())),
            None => self.choice(tenant, place, &self.assume(place, None)),
        };
        if choice.reason.is_some_and(can_pass) && (place.max_wait_ms.is_some() || later.is_some()) {
            let ms = later.map_or(0, |at| at.ms_since(now) + 1);
            return self.wait(tenant, place, number, Delay { ms, paced: false }, choice, emit);
        }
        self.propose_preemption(tenant, place, &choice, emit);
        self.conclude(tenant, place, choice, Attempt::FIRST, emit);
    }

    /// Says a decision, and grants the lease if it is a placement.
    pub(crate) fn conclude(&mut self, tenant: &TenantId, place: &Place, choice: Choice, attempt: Attempt, emit: &mut Emit<'_>) {
        let held = by_gpu(choice.picks.iter().map(|pick| Held { number: pick.number, milli: pick.milli, vram_bytes: pick.vram_bytes }));
        let lease = (choice.outcome == Outcome::Placed).then(|| self.new_lease(tenant, place, &choice, &held, emit));
        self.say_decision(tenant, place, choice, lease.as_ref(), attempt, None, emit);
        if let Some(lease) = lease {
            self.grant(lease, &held, emit);
        }
    }

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
        let (policy, version) = decided.policy.split_once('@').unwrap_or((&decided.policy, ""));
        emit.row(Row::Decision(Box::new(DecisionRow {
            decision_id: decided.decision_id.clone(),
            decision_seq,
            request_id: decided.request_id.clone(),
            decided_at: emit.logged_at(),
            outcome: decided.outcome,
            reason: decided.reason,
            attempt: attempt.number,
            queue_ms: attempt.waited_ms,
            score_micro: decided.score_micro,
            policy: policy.to_owned(),
            policy_version: version.parse().unwrap_or_default(),
            hosts_considered: decided.hosts_considered,
            hosts_feasible: decided.hosts_feasible,
            candidates: decided.candidates.as_ref().map(|candidates| serde_json::to_string(candidates).expect("plain data")),
            lease_id: decided.lease.as_ref().map(|lease| lease.lease_id.clone()),
        })));
        emit.out(&OutSubject::Decision(tenant.clone()), Payload::Decided(decided));
    }

    /// A choice as decisions say it, on the state as it is.
    fn decided(&self, tenant: &TenantId, place: &Place, choice: Choice, lease: Option<&Lease>, attempt: Attempt) -> Decided {
        let policy = self.policy_for(place).unwrap_or(self.meta.policy());
        let bundle_of = |member: u32| choice.hosts.get(member as usize).and_then(|(_, bundle)| place.bundles.get(*bundle));
        let assignment = |pick: &crate::placement::select::Pick| {
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
            tables_hash: self.tables().filter(|_| policy.learns()).map(Tables::hash_hex),
            mix_hash: policy.learns().then(|| hash(self.mix.hash())),
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

    /// The choice for a request under some assumptions.
    pub(crate) fn choice(&self, tenant: &TenantId, place: &Place, assume: &Assume) -> Choice {
        match self.try_choice(tenant, place, assume) {
            Ok(choice) => choice,
            Err(refused) => Choice::rejected(refused.reason, refused.detail),
        }
    }

    fn try_choice(&self, tenant: &TenantId, place: &Place, assume: &Assume) -> Result<Choice, Refused> {
        let ask = Ask::new(place)?;
        let policy = self.policy_for(place)?;
        self.within_quota(tenant, &ask, assume)?;
        let hosts = self.hosts_for(tenant, &ask, assume);
        let chooser = Chooser { policy, mix: &self.mix, tables: self.tables(), turn: self.meta.chain.decision_seq };
        Ok(choose(hosts, &ask, chooser, &self.placement_settings()))
    }

    /// The policy that a request names, or the cell's. Errors on one that does not exist.
    fn policy_for(&self, place: &Place) -> Result<Name, Refused> {
        let Some(named) = place.policy.as_deref() else { return Ok(self.meta.policy()) };
        let (name, version) = named.split_once('@').unwrap_or((named, "1"));
        let found = Name::from_code(name).filter(|_| version.parse() == Ok(VERSION));
        found.ok_or_else(|| Refused::new(Reason::UnknownPolicy, unknown_policy(cut(named, TEXT_BYTES_MAX))))
    }

    /// Errors if the tenant would hold more than its quota.
    fn within_quota(&self, tenant: &TenantId, ask: &Ask<'_>, assume: &Assume) -> Result<(), Refused> {
        let Some(quota_milli) = self.policies.quota(tenant) else { return Ok(()) };
        let leases = self.leases.by_fence.values().filter(|lease| lease.tenant == *tenant && !assume.ended.contains(&lease.fence));
        let held_milli: u64 = leases.map(|lease| self.milli_of(lease)).sum();
        let asked_milli = ask.total_milli();
        if held_milli.saturating_add(asked_milli) <= quota_milli {
            return Ok(());
        }
        let detail = format!("{asked_milli} thousandths of GPUs are asked for, {tenant} holds {held_milli} and may hold {quota_milli}");
        Err(Refused::new(Reason::QuotaExceeded, detail))
    }

    /// Thousandths of GPUs that a lease still holds.
    fn milli_of(&self, lease: &Lease) -> u64 {
        let on = |&number: &u32| self.registry.devices[number as usize].facts.reservations.iter().find(|r| r.fence == lease.fence);
        lease.held.iter().filter_map(on).map(|reservation| u64::from(reservation.milli)).sum()
    }

    /// The cell as a request sees it, by host and slot.
    fn hosts_for<'a>(&'a self, tenant: &TenantId, ask: &Ask<'_>, assume: &Assume) -> Vec<Host<'a>> {
        let mut held = BTreeMap::<u32, (u64, u64)>::new();
        let mut labels = BTreeMap::<u32, Vec<&'a BTreeMap<String, String>>>::new();
        let looks_at_labels = ask.constraints().anti_affinity.is_some() || self.policy_for(ask.place) == Ok(Name::Reliability);
        for lease in self.leases.by_fence.values().filter(|lease| !assume.ended.contains(&lease.fence)) {
            for share in &lease.hosts {
                let sum = held.entry(share.host).or_default();
                *sum = (sum.0.saturating_add(share.cpu_milli), sum.1.saturating_add(share.memory_bytes));
            }
            if looks_at_labels && lease.tenant == *tenant {
                let hosts: BTreeSet<u32> = lease.held.iter().map(|&d| self.registry.devices[d as usize].facts.host).collect();
                hosts.into_iter().for_each(|host| labels.entry(host).or_default().push(&lease.labels));
            }
        }
        let host = |&number: &u32| {
            let host = &self.registry.hosts[number as usize];
            let left = |all: Option<u64>, held: u64| all.map(|all| i64::try_from(all).unwrap_or(i64::MAX).saturating_sub_unsigned(held));
            let (cpu_held, memory_held) = held.get(&number).copied().unwrap_or_default();
            Host {
                id: &host.id,
                stands: &host.facts.placement,
                cpu_milli: left(host.facts.cpu_cores.map(|cores| u64::from(cores) * 1_000), cpu_held),
                memory_bytes: left(host.facts.ram_bytes, memory_held),
                gpus: self.candidates_of(host, assume),
                classes: self.classes_of(host, assume),
                labels: labels.remove(&number).unwrap_or_default(),
                reputation: host.reputation,
            }
        };
        self.registry.by_host.values().map(host).collect()
    }

    /// A host's GPUs by slot, as placement sees them.
    fn candidates_of<'a>(&'a self, host: &'a crate::registry::Host, assume: &Assume) -> Vec<Candidate<'a>> {
        let mut numbers: Vec<u32> = host.devices.iter().copied().filter(|&number| number != NO_DEVICE).collect();
        numbers.sort_unstable_by_key(|&number| self.registry.devices[number as usize].facts.gpu.slot);
        let cut: BTreeSet<_> =
            numbers.iter().filter_map(|&number| self.registry.devices[number as usize].facts.gpu.mig_parent_uuid.as_ref()).collect();
        let candidate = |&number: &u32| {
            let device = &self.registry.devices[number as usize];
            Candidate { is_cut: cut.contains(device.uuid()), kept: assume.kept.contains(&number), ..self.candidate(number, device, &assume.ended) }
        };
        numbers.iter().filter(|&&number| !self.registry.devices[number as usize].facts.retired).map(candidate).collect()
    }

    /// How many leases of each class live on a host: shares, then by number of GPUs.
    fn classes_of(&self, host: &crate::registry::Host, assume: &Assume) -> [u16; CLASSES] {
        let mut leases = BTreeMap::<u64, (bool, usize)>::new();
        for &number in host.devices.iter().filter(|&&number| number != NO_DEVICE) {
            for reservation in self.registry.devices[number as usize].facts.reservations.iter().filter(|r| !assume.ended.contains(&r.fence)) {
                let (share, gpus) = leases.entry(reservation.fence).or_default();
                (*share, *gpus) = (reservation.milli < WHOLE_MILLI, *gpus + 1);
            }
        }
        let mut classes = [0_u16; CLASSES];
        for (share, gpus) in leases.into_values() {
            let class = &mut classes[if share && gpus == 1 { 0 } else { gpus.min(CLASSES - 1) }];
            *class = class.saturating_add(1);
        }
        classes
    }

    /// A GPU as placement sees it, where some leases are taken to have ended.
    pub(crate) fn candidate<'a>(&'a self, number: u32, device: &'a Device, ended: &BTreeSet<u64>) -> Candidate<'a> {
        let facts = &device.facts;
        let gpu = &facts.gpu;
        let sample = device.pulse.current.map(|current| current.sample).unwrap_or_default();
        let unseen_ns = self.clock.live_ns - UNSEEN_NS;
        let reservations = || facts.reservations.iter().filter(|r| !ended.contains(&r.fence));
        Candidate {
            number,
            uuid: &gpu.uuid,
            slot: gpu.slot,
            model: &gpu.model,
            driver: gpu.driver_version.as_deref(),
            compute_capability: gpu.compute_capability.as_deref(),
            mig_profile: gpu.mig_profile.as_deref(),
            is_cut: false,
            nvlink_domain: gpu.nvlink_domain,
            numa_node: gpu.numa_node,
            memory_total_bytes: gpu.memory_total_bytes.or(sample.memory_total_bytes()),
            // What an ended lease would leave behind nobody knows; it promised to use no more than it held.
            memory_used_bytes: if reservations().count() < facts.reservations.len() { Some(0) } else { sample.memory_used_bytes() },
            util_percent: sample.util_percent(),
            temperature_mk: sample.temperature_mk(),
            slowdown_temperature_mk: gpu.slowdown_temperature_mk,
            gate: self.gate(device),
            kept: false,
            reserved_milli: reservations().map(|r| r.milli).sum(),
            reserved_vram_bytes: reservations().map(|r| r.vram_bytes).fold(0, u64::saturating_add),
            unseen_vram_bytes: reservations().filter(|r| r.since_ns > unseen_ns).map(|r| r.vram_bytes).fold(0, u64::saturating_add),
        }
    }

    /// Why nothing may be placed on a GPU whatever is asked for, in the order of precedence.
    pub(crate) fn gate(&self, device: &Device) -> Option<Reason> {
        let host = &self.registry.hosts[device.facts.host as usize];
        // Timers may lag behind in a burst; the clock does not.
        let silent = self.clock.live_ns - device.pulse.heard_ns >= stale_ns(host.facts.interval_ms, &self.meta.settings);
        let gates = [
            (silent || device.facts.silence != Silence::Heard, Reason::Stale),
            (!device.pulse.live, Reason::NoSample),
            (!self.is_enrolled(host), Reason::NotEnrolled),
            (device.facts.cordoned || host.cordoned, Reason::Cordoned),
            (device.facts.draining_ns.is_some(), Reason::Draining),
            (self.clock.live_ns - device.pulse.live_ns < ns(self.meta.settings.warm_up_ms), Reason::WarmingUp),
        ];
        gates.into_iter().find(|&(shut, _)| shut).map(|(_, reason)| reason).or_else(|| device.facts.faults.reason())
    }

    pub(crate) fn placement_settings(&self) -> Settings {
        Settings { vram_limit_bp: self.meta.settings.vram_limit_bp }
    }

    fn new_lease(&mut self, tenant: &TenantId, place: &Place, choice: &Choice, held: &[Held], emit: &Emit<'_>) -> Lease {
        self.meta.fence += 1;
        let fence = self.meta.fence;
        let ttl_ms = i64::try_from(ask::lease_ttl_ms(place)).unwrap_or(i64::MAX);
        let granted: Vec<u32> = held.iter().map(|held| held.number).collect();
        let mut shares = BTreeMap::<u32, (u64, u64)>::new();
        for (host, bundle) in &choice.hosts {
            let bundle = &place.bundles[*bundle];
            if let Some(number) = self.registry.host_number(host).filter(|_| bundle.cpu_milli > 0 || bundle.memory_bytes > 0) {
                let share = shares.entry(number).or_default();
                *share = (share.0.saturating_add(bundle.cpu_milli), share.1.saturating_add(bundle.memory_bytes));
            }
        }
        Lease {
            fence,
            lease_id: format!("lease-{}-{fence}", emit.cell()),
            request_id: cut(&place.request_id, TEXT_BYTES_MAX).to_owned(),
            tenant: tenant.clone(),
            state: LeaseState::Active,
            granted_at: emit.logged_at(),
            ttl_ms,
            deadline_ns: self.clock.live_ns.saturating_add(ttl_ms.saturating_mul(NS_PER_MS)),
            expires_at: emit.logged_at().plus_ms(ttl_ms),
            end_reason: None,
            held: granted.clone(),
            granted,
            hosts: shares.into_iter().map(|(host, (cpu_milli, memory_bytes))| crate::leases::Share { host, cpu_milli, memory_bytes }).collect(),
            priority: place.priority,
            preemptible: place.preemptible,
            labels: place.labels.clone(),
            dirty: true,
        }
    }

    /// Where a request finds no room and leases of lower priority may be ended for it: says which. Nothing is ended by it.
    pub(crate) fn propose_preemption(&self, tenant: &TenantId, place: &Place, choice: &Choice, emit: &mut Emit<'_>) {
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
        let without = self.choice(tenant, place, &Assume { ended: ended.clone(), kept: BTreeSet::new() });
        if without.outcome != Outcome::Placed {
            return;
        }
        let on_gpus = without.picks.iter().flat_map(|pick| &self.registry.devices[pick.number as usize].facts.reservations).map(|r| r.fence);
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

/// Which try it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// From 1.
    pub number: u32,
    /// How long the request has waited, ms of live clock.
    pub waited_ms: i64,
}

impl Attempt {
    /// At once.
    pub const FIRST: Self = Self { number: 1, waited_ms: 0 };
}

/// Whether what stands in the way can pass by itself, so that waiting makes sense.
pub(crate) fn can_pass(reason: Reason) -> bool {
    ![Reason::InvalidRequest, Reason::UnsupportedShape, Reason::UnknownPolicy].contains(&reason)
}

/// A sentence about a policy that does not exist.
pub(crate) fn unknown_policy(named: &str) -> String {
    let all: Vec<String> = Name::ALL.into_iter().map(|name| format!("{}@{VERSION}", name.code())).collect();
    format!("no policy {named}, this build has {}", all.join(", "))
}

fn request_row(tenant: &TenantId, place: &Place, requested_at: LogTime) -> RequestRow {
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
