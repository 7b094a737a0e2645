//! What tenants ask for: each request once, within the tenant's share, and each with exactly one final decision.

use std::collections::BTreeMap;
use std::hash::Hasher;

use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Distributed, LeaseChanged, LeaseState, Outcome, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Distribute, RENEWALS_MAX, Release, Renew, Request, TEXT_BYTES_MAX};
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{NS_PER_MS, NS_PER_S};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use crate::State;
use crate::emit::Emit;
use crate::leases::Lease;
use crate::placement::{ask, distribute};
use crate::refuse::Refusal;
use crate::waiting::Queue;

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

    /// The number of a request that is remembered.
    pub fn number_of(&self, tenant: &TenantId, request_id: &str) -> Option<u64> {
        self.by_id.get(tenant)?.get(request_id).copied()
    }

    /// Whether a request was seen.
    pub fn knows(&self, tenant: &TenantId, request_id: &str) -> bool {
        self.number_of(tenant, request_id).is_some()
    }

    /// Forgets the oldest, but none that still waits for its decision.
    fn forget(&mut self, live_ns: i64, queue: &Queue) {
        while let Some((&number, seen)) = self.by_number.iter().find(|(number, _)| queue.turn_of(**number).is_none())
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
            Request::Place(_) | Request::Release(_) | Request::Distribute(_) | Request::Cancel(_) => 1,
        };
        if !self.admit(tenant, cost) {
            return self.refuse_request(tenant, Reason::RateLimited, request.request_id(), emit);
        }
        self.requests.forget(self.clock.live_ns, &self.queue);
        // Renewing twice is renewing once, so renewals need no memory.
        let remembered = !matches!(request, Request::Renew(_)) && ask::text("request_id", request.request_id()).is_ok();
        if remembered {
            let number = self.meta.requests + 1;
            match self.requests.note(tenant, request, number, self.clock.live_ns) {
                Novelty::New => self.meta.requests = number,
                Novelty::Repeated => return,
                Novelty::Reused => return self.refuse_request(tenant, Reason::RequestIdReused, request.request_id(), emit),
            }
        }
        match request {
            Request::Place(place) => self.place(tenant, place, self.meta.requests, emit),
            Request::Renew(renew) => self.renew(tenant, renew, emit),
            Request::Release(release) => self.release_request(tenant, release, emit),
            Request::Distribute(request) => self.distribute(tenant, request, emit),
            Request::Cancel(cancel) => self.cancel(tenant, cancel, emit),
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
        let cell = self.free_memory();
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

    pub(crate) fn refuse_request(&mut self, tenant: &TenantId, reason: Reason, raw: &str, emit: &mut Emit<'_>) {
        let refusal = Refusal::new(reason, cut(raw, TEXT_BYTES_MAX));
        self.refuse(None, None, &format!("request.{tenant}"), refusal, emit);
    }
}
