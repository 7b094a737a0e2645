//! What tenants ask for: each request once, within the tenant's share, and each with exactly one final decision.

use std::collections::BTreeMap;
use std::hash::Hasher;

use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Assignment, Decided, Distributed, LeaseChanged, LeaseGrant, LeaseState, Outcome, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Distribute, Place, RENEWALS_MAX, Release, Renew, Request, TEXT_BYTES_MAX};
use plimsoll_schemas::row::{DecisionRow, RequestRow, Row};
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{LogTime, NS_PER_MS, NS_PER_S};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::State;
use crate::emit::Emit;
use crate::leases::Lease;
use crate::liveness::stale_ns;
use crate::paces::scope::Slot;
use crate::placement::candidate::Candidate;
use crate::placement::select::{Choice, choose};
use crate::placement::{self, distribute, shape};
use crate::refuse::Refusal;
use crate::registry::{Device, Silence};

/// Policy and version of the choice.
pub(crate) const POLICY: (&str, u32) = ("headroom", 1);
/// Most requests remembered; one more forgets the oldest.
const REMEMBERED_MAX: usize = 100_000;
/// How long a request is remembered at least, unless there are too many: a day of live clock, ns.
const REMEMBERED_NS: i64 = 86_400 * NS_PER_S;
/// Most tenants whose share is metered; a full share is as good as none and is forgotten first.
const TENANTS_MAX: usize = 10_000;
/// Key of the hash that tells whether a repeated request is the same.
const DIGEST_KEY: &[u8; 16] = b"plimsoll-request";
/// Stands for the content of a request that was decided in a log that is gone: whatever comes again under its id is that request.
const DIGEST_ADOPTED: u64 = 0;

/// A request that was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub tenant: TenantId,
    pub request_id: String,
    /// Hash of its content.
    pub digest: u64,
    /// When, live clock, ns: a broker whose clock jumps forgets nothing.
    pub at_ns: i64,
}

/// The requests that were seen, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Requests {
    pub by_number: BTreeMap<u64, Seen>,
    pub by_id: BTreeMap<TenantId, BTreeMap<String, u64>>,
    /// Added or forgotten since the last commit.
    pub dirty: Vec<u64>,
}

/// Whether a request is new.
enum Novelty {
    New,
    Repeated,
    Reused,
}

impl Requests {
    pub fn insert(&mut self, number: u64, seen: Seen) {
        self.by_id.entry(seen.tenant.clone()).or_default().insert(seen.request_id.clone(), number);
        self.by_number.insert(number, seen);
    }

    fn note(&mut self, tenant: &TenantId, request: &Request, number: u64, at_ns: i64) -> Novelty {
        let mut hasher = SipHasher24::new_with_key(DIGEST_KEY);
        hasher.write(&serde_json::to_vec(request).expect("requests are plain data with string keys"));
        let digest = hasher.finish();
        if let Some(known) = self.by_id.get(tenant).and_then(|ids| ids.get(request.request_id())) {
            return if self.by_number.get(known).is_some_and(|seen| seen.digest == digest || seen.digest == DIGEST_ADOPTED) {
                Novelty::Repeated
            } else {
                Novelty::Reused
            };
        }
        self.insert(number, Seen { tenant: tenant.clone(), request_id: request.request_id().to_owned(), digest, at_ns });
        self.dirty.push(number);
        Novelty::New
    }

    /// Remembers a request of which only the answer is known.
    pub fn adopt(&mut self, tenant: &TenantId, request_id: &str, number: u64, at_ns: i64) {
        self.insert(number, Seen { tenant: tenant.clone(), request_id: request_id.to_owned(), digest: DIGEST_ADOPTED, at_ns });
        self.dirty.push(number);
    }

    /// Whether a request was seen.
    pub fn knows(&self, tenant: &TenantId, request_id: &str) -> bool {
        self.by_id.get(tenant).is_some_and(|ids| ids.contains_key(request_id))
    }

    fn forget(&mut self, live_ns: i64) {
        while let Some((&number, seen)) = self.by_number.first_key_value()
            && (self.by_number.len() > REMEMBERED_MAX || live_ns - seen.at_ns > REMEMBERED_NS)
        {
            let ids = self.by_id.get_mut(&seen.tenant);
            if let Some(ids) = ids {
                ids.remove(&seen.request_id);
                if ids.is_empty() {
                    self.by_id.remove(&seen.tenant);
                }
            }
            self.by_number.remove(&number);
            self.dirty.push(number);
        }
    }
}

/// What is left of a tenant's share: thousandths of requests, as of a live clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    milli: i64,
    at_ns: i64,
}

impl Bucket {
    fn filled(self, live_ns: i64, settings: &Thresholds) -> i64 {
        let gained = (live_ns - self.at_ns).clamp(0, 3_600 * NS_PER_S) / NS_PER_MS * i64::from(settings.requests_per_s);
        self.milli.saturating_add(gained).min(full(settings))
    }
}

/// A full share, thousandths of requests.
fn full(settings: &Thresholds) -> i64 {
    i64::from(settings.request_burst) * 1_000
}

impl State {
    /// Folds a tenant's request.
    pub(crate) fn request(&mut self, tenant: &TenantId, request: &Request, emit: &mut Emit<'_>) {
        let cost = match request {
            Request::Renew(renew) => 1 + renew.lease_ids.len() as i64 / 10,
            Request::Place(_) | Request::Release(_) | Request::Distribute(_) => 1,
        };
        if !self.admit(tenant, cost) {
            return self.refuse_request(tenant, Reason::RateLimited, request.request_id(), emit);
        }
        self.requests.forget(self.clock.live_ns);
        // Renewing twice is renewing once, so renewals need no memory.
        let remembered = !matches!(request, Request::Renew(_)) && shape::text("request_id", request.request_id()).is_ok();
        if remembered {
            let number = self.meta.requests + 1;
            match self.requests.note(tenant, request, number, self.clock.live_ns) {
                Novelty::New => self.meta.requests = number,
                Novelty::Repeated => return,
                Novelty::Reused => return self.refuse_request(tenant, Reason::RequestIdReused, request.request_id(), emit),
            }
        }
        match request {
            Request::Place(place) => self.place(tenant, place, emit),
            Request::Renew(renew) => self.renew(tenant, renew, emit),
            Request::Release(release) => self.release_request(tenant, release, emit),
            Request::Distribute(request) => self.distribute(tenant, request, emit),
        }
    }

    /// Takes `cost` requests from a tenant's share, if it has them.
    fn admit(&mut self, tenant: &TenantId, cost: i64) -> bool {
        let (live_ns, settings) = (self.clock.live_ns, self.meta.settings);
        if self.buckets.len() >= TENANTS_MAX && !self.buckets.contains_key(tenant) {
            self.buckets.retain(|_, bucket| bucket.filled(live_ns, &settings) < full(&settings));
            if self.buckets.len() >= TENANTS_MAX {
                return false;
            }
        }
        self.buckets_dirty = true;
        let bucket = self.buckets.entry(tenant.clone()).or_insert(Bucket { milli: full(&settings), at_ns: live_ns });
        let milli = bucket.filled(live_ns, &settings);
        let enough = milli >= cost * 1_000;
        *bucket = Bucket { milli: if enough { milli - cost * 1_000 } else { milli }, at_ns: live_ns };
        enough
    }

    fn place(&mut self, tenant: &TenantId, place: &Place, emit: &mut Emit<'_>) {
        emit.row(Row::Request(Box::new(request_row(tenant, place, emit.logged_at()))));
        let slot = self.pace_slot(tenant);
        let (choice, picks) = match slot {
            Slot::Now => {
                self.pace_take(tenant);
                self.choice(place)
            }
            // Here a request begins to wait for its slot, and takes it. Until requests can wait, it is refused and takes none.
            Slot::At { live_ns } => {
                let wait_ms = (live_ns - self.clock.live_ns) / NS_PER_MS;
                let detail = format!("its next slot under the pace is in {wait_ms} ms, and requests cannot wait for it yet");
                (self.pace_refuse(tenant, Reason::Paced, detail), Vec::new())
            }
            Slot::Refused { why, scope, retry_after_ms } => {
                (self.pace_refuse(tenant, why.reason(), why.sentence(&scope, retry_after_ms)), Vec::new())
            }
        };
        let (decision_id, decision_seq) = emit.next_decision();
        let request_id = cut(&place.request_id, TEXT_BYTES_MAX).to_owned();
        let lease = (choice.outcome == Outcome::Placed).then(|| self.new_lease(tenant, &request_id, place, &picks, emit));
        emit.row(Row::Decision(Box::new(DecisionRow {
            decision_id: decision_id.clone(),
            decision_seq,
            request_id: request_id.clone(),
            decided_at: emit.logged_at(),
            outcome: choice.outcome,
            reason: choice.reason,
            attempt: 1,
            queue_ms: 0,
            score_micro: choice.score_micro,
            policy: POLICY.0.to_owned(),
            policy_version: POLICY.1,
            hosts_considered: choice.hosts_considered,
            hosts_feasible: choice.hosts_feasible,
            lease_id: lease.as_ref().map(|lease| lease.lease_id.clone()),
        })));
        let assignments = choice.picks.iter().zip(&picks).map(|(pick, &(number, _))| self.assignment(number, pick)).collect();
        let payload = Decided {
            decision_id,
            decision_seq,
            request_id,
            tenant: tenant.clone(),
            outcome: choice.outcome,
            reason: choice.reason,
            detail: choice.detail,
            position: emit.position(),
            policy: format!("{}@{}", POLICY.0, POLICY.1),
            hosts_considered: choice.hosts_considered,
            hosts_feasible: choice.hosts_feasible,
            refused: choice.refused,
            assignments,
            lease: lease.as_ref().map(|lease| LeaseGrant {
                lease_id: lease.lease_id.clone(),
                fence: lease.fence,
                ttl_ms: lease.ttl_ms as u64,
                expires_at: lease.expires_at.rfc3339(),
            }),
            runners_up: choice.runners_up,
        };
        emit.out(&OutSubject::Decision(tenant.clone()), Payload::Decided(payload));
        if let Some(lease) = lease {
            self.grant(lease, &picks, emit);
        }
    }

    /// The choice for a request, and the GPUs picked: (number, memory to reserve).
    fn choice(&self, place: &Place) -> (Choice, Vec<(u32, u64)>) {
        let (numbers, candidates): (Vec<u32>, Vec<Candidate<'_>>) = (0u32..)
            .zip(&self.registry.devices)
            .filter(|(_, device)| !device.facts.retired)
            .map(|(number, device)| (number, self.candidate(device)))
            .unzip();
        let choice = choose(&candidates, place, &self.placement_settings());
        let picks = choice.picks.iter().map(|pick| (numbers[pick.candidate], pick.vram_bytes)).collect();
        (choice, picks)
    }

    fn placement_settings(&self) -> placement::Settings {
        placement::Settings { vram_limit_bp: self.meta.settings.vram_limit_bp }
    }

    fn new_lease(&mut self, tenant: &TenantId, request_id: &str, place: &Place, picks: &[(u32, u64)], emit: &Emit<'_>) -> Lease {
        self.meta.fence += 1;
        let fence = self.meta.fence;
        let ttl_ms = i64::try_from(shape::lease_ttl_ms(place)).unwrap_or(i64::MAX);
        let granted: Vec<u32> = picks.iter().map(|&(number, _)| number).collect();
        Lease {
            fence,
            lease_id: format!("lease-{}-{fence}", emit.cell()),
            request_id: request_id.to_owned(),
            tenant: tenant.clone(),
            state: LeaseState::Active,
            granted_at: emit.logged_at(),
            ttl_ms,
            deadline_ns: self.clock.live_ns.saturating_add(ttl_ms.saturating_mul(NS_PER_MS)),
            expires_at: emit.logged_at().plus_ms(ttl_ms),
            end_reason: None,
            held: granted.clone(),
            granted,
            milli: place.bundles.first().map_or(0, |bundle| bundle.milli),
            dirty: true,
        }
    }

    fn assignment(&self, number: u32, pick: &placement::select::Pick) -> Assignment {
        let facts = &self.registry.devices[number as usize].facts;
        Assignment {
            device_uuid: facts.gpu.uuid.clone(),
            device_key: facts.key,
            host: self.registry.hosts[facts.host as usize].id.clone(),
            slot: facts.gpu.slot,
            gpu_index: facts.gpu.index,
            milli: pick.milli,
            vram_bytes: pick.vram_bytes,
            score_micro: pick.score_micro,
        }
    }

    /// A GPU as placement sees it.
    fn candidate<'a>(&'a self, device: &'a Device) -> Candidate<'a> {
        let facts = &device.facts;
        let sample = device.pulse.current.map(|current| current.sample).unwrap_or_default();
        Candidate {
            device: facts.key,
            uuid: &facts.gpu.uuid,
            host: &self.registry.hosts[facts.host as usize].id,
            slot: facts.gpu.slot,
            gpu_index: facts.gpu.index,
            model: &facts.gpu.model,
            memory_total_bytes: facts.gpu.memory_total_bytes.or(sample.memory_total_bytes()),
            memory_used_bytes: sample.memory_used_bytes(),
            util_percent: sample.util_percent(),
            temperature_mk: sample.temperature_mk(),
            slowdown_temperature_mk: facts.gpu.slowdown_temperature_mk,
            gate: self.gate(device),
            reserved_milli: facts.reservations.iter().map(|r| r.milli).sum(),
            reserved_vram_bytes: facts.reservations.iter().map(|r| r.vram_bytes).fold(0, u64::saturating_add),
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
        ];
        gates.into_iter().find(|&(shut, _)| shut).map(|(_, reason)| reason).or_else(|| device.facts.faults.reason())
    }

    fn renew(&mut self, tenant: &TenantId, renew: &Renew, emit: &mut Emit<'_>) {
        if renew.lease_ids.is_empty() || renew.lease_ids.len() > RENEWALS_MAX {
            return self.refuse_request(
                tenant,
                Reason::InvalidRequest,
                &format!("{} leases to renew, expected 1 to {RENEWALS_MAX}", renew.lease_ids.len()),
                emit,
            );
        }
        for lease_id in &renew.lease_ids {
            match self.held_by(tenant, lease_id) {
                Ok(lease) if lease.state == LeaseState::Draining => {
                    self.refuse_lease(tenant, &renew.request_id, lease_id, Reason::LeaseExpired, emit)
                }
                Ok(lease) if self.is_drained_of(lease) => self.refuse_lease(tenant, &renew.request_id, lease_id, Reason::Draining, emit),
                Ok(lease) => {
                    let fence = lease.fence;
                    self.extend(fence, emit.logged_at());
                }
                Err(reason) => self.refuse_lease(tenant, &renew.request_id, lease_id, reason, emit),
            }
        }
    }

    fn release_request(&mut self, tenant: &TenantId, release: &Release, emit: &mut Emit<'_>) {
        match self.held_by(tenant, &release.lease_id) {
            Ok(lease) => {
                let fence = lease.fence;
                self.release(fence, emit);
            }
            Err(reason) => self.refuse_lease(tenant, &release.request_id, &release.lease_id, reason, emit),
        }
    }

    fn held_by(&self, tenant: &TenantId, lease_id: &str) -> Result<&Lease, Reason> {
        let lease = self.leases.find(lease_id).ok_or(Reason::UnknownLease)?;
        if lease.tenant == *tenant { Ok(lease) } else { Err(Reason::NotHolder) }
    }

    /// Tells the asker that a lease could not be renewed or released; says nothing about a lease that is not its own.
    fn refuse_lease(&mut self, tenant: &TenantId, request_id: &str, lease_id: &str, reason: Reason, emit: &mut Emit<'_>) {
        match self.held_by(tenant, lease_id) {
            Ok(lease) => {
                let lease = lease.clone();
                self.say_lease(&lease, reason.code(), emit);
            }
            Err(_) => {
                let payload = LeaseChanged {
                    lease_id: cut(lease_id, TEXT_BYTES_MAX).to_owned(),
                    request_id: cut(request_id, TEXT_BYTES_MAX).to_owned(),
                    tenant: tenant.clone(),
                    state: LeaseState::Ended,
                    cause: reason.code().to_owned(),
                    fence: 0,
                    device_uuids: Vec::new(),
                };
                emit.out(&OutSubject::Lease(tenant.clone()), Payload::Lease(payload));
            }
        }
        self.refuse_request(tenant, reason, lease_id, emit);
    }

    fn distribute(&mut self, tenant: &TenantId, request: &Distribute, emit: &mut Emit<'_>) {
        let settings = self.placement_settings();
        let cell: BTreeMap<_, _> = self
            .registry
            .devices
            .iter()
            .filter(|device| !device.facts.retired)
            .map(|device| {
                let candidate = self.candidate(device);
                (device.uuid().clone(), candidate.gate.map_or_else(|| Ok(candidate.free_vram_bytes(&settings)), Err))
            })
            .collect();
        let (decision_id, decision_seq) = emit.next_decision();
        let result = distribute::distribute(request, &cell);
        let (outcome, reason, detail, counts, unassigned) = match result {
            Ok(split) => (Outcome::Placed, None, None, split.counts, split.unassigned),
            Err(refused) => (Outcome::Rejected, Some(refused.reason), Some(refused.detail), BTreeMap::new(), 0),
        };
        let payload = Distributed {
            decision_id,
            decision_seq,
            request_id: cut(&request.request_id, TEXT_BYTES_MAX).to_owned(),
            tenant: tenant.clone(),
            outcome,
            reason,
            detail,
            position: emit.position(),
            counts,
            unassigned,
        };
        emit.out(&OutSubject::Decision(tenant.clone()), Payload::Distributed(payload));
    }

    fn refuse_request(&mut self, tenant: &TenantId, reason: Reason, raw: &str, emit: &mut Emit<'_>) {
        let refusal = Refusal::new(reason, cut(raw, TEXT_BYTES_MAX));
        self.refuse(None, None, &format!("request.{tenant}"), refusal, emit);
    }
}

fn request_row(tenant: &TenantId, place: &Place, requested_at: LogTime) -> RequestRow {
    let short = |text: &String| cut(text, TEXT_BYTES_MAX).to_owned();
    let valid = shape::check(place).is_ok();
    RequestRow {
        request_id: short(&place.request_id),
        requested_at,
        tenant: tenant.clone(),
        workload: place.workload.as_ref().map(short),
        n_gpus: place.bundles.iter().map(|bundle| bundle.count).fold(0, u32::saturating_add),
        memory_per_gpu_bytes: place.bundles.iter().map(|bundle| i64::try_from(bundle.vram_bytes).unwrap_or(i64::MAX)).max().unwrap_or(0),
        model: place.model.as_ref().map(short),
        same_host: true,
        same_nvlink: false,
        duration_ms: place.duration_ms.and_then(|ms| i64::try_from(ms).ok()),
        priority: place.priority,
        // Labels of a request that is refused may be of any size.
        labels: (valid && !place.labels.is_empty()).then(|| serde_json::to_string(&place.labels).expect("a map of strings")),
    }
}
