//! Leases: granted, renewed, released, suspended, drained. Nothing becomes free by silence.
//!
//! A release frees at once. A lease that runs out leaves its GPUs draining: free only after 30 s of fresh telemetry that shows them
//! empty, or by an operator's word. A lost host suspends its leases.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::mig::Promise;
use plimsoll_schemas::out::{LeaseChanged, LeaseState, Payload};
use plimsoll_schemas::row::{LeaseDeviceRow, LeaseRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{LogTime, NS_PER_MS};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::placement::reputation::{Failure, Reputation};
use crate::registry::Reservation;
use crate::state_time::Cause;
use crate::timers::Timer;

/// One lease that has not ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub fence: u64,
    pub lease_id: String,
    pub request_id: String,
    pub tenant: TenantId,
    pub state: LeaseState,
    pub granted_at: LogTime,
    pub ttl_ms: i64,
    /// Live clock at which it runs out, ns.
    pub deadline_ns: i64,
    /// Log time at which it would run out if the log goes on without a break.
    pub expires_at: LogTime,
    /// What ended it, once it drains.
    pub end_reason: Option<String>,
    /// GPUs granted, and those of them still held.
    pub granted: Vec<u32>,
    pub held: Vec<u32>,
    /// CPU and memory of hosts that it holds until it ends.
    pub hosts: Vec<Share>,
    pub priority: i16,
    pub preemptible: bool,
    pub labels: BTreeMap<String, String>,
    #[serde(skip)]
    pub dirty: bool,
}

/// CPU and memory of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
    pub host: u32,
    pub cpu_milli: u64,
    pub memory_bytes: u64,
}

/// A part of a GPU that is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub number: u32,
    pub milli: u32,
    pub vram_bytes: u64,
    /// MIG instances that may be made on it; none = the GPU itself.
    pub promised: Vec<Promise>,
}

/// What a lease holds of each GPU, where several members of a gang may stand on one.
pub(crate) fn by_gpu(parts: impl IntoIterator<Item = Held>) -> Vec<Held> {
    let mut held = BTreeMap::<u32, Held>::new();
    for part in parts {
        let sum = held.entry(part.number).or_insert(Held { number: part.number, milli: 0, vram_bytes: 0, promised: Vec::new() });
        (sum.milli, sum.vram_bytes) = (sum.milli + part.milli, sum.vram_bytes.saturating_add(part.vram_bytes));
        sum.promised.extend(part.promised);
    }
    held.into_values().collect()
}

/// The leases that have not ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Leases {
    pub by_fence: BTreeMap<u64, Lease>,
    pub by_id: BTreeMap<String, u64>,
    /// CPU (thousandths of a core) and memory (bytes) that leases hold, by host and fence.
    pub of_hosts: BTreeMap<(u32, u64), (u64, u64)>,
    /// Changed or ended since the last commit.
    pub dirty: Vec<u64>,
}

impl Leases {
    /// The holders of the given reservations: lease id and tenant.
    pub fn holders<'a>(&'a self, reservations: &'a [Reservation]) -> Vec<(&'a str, &'a TenantId)> {
        reservations.iter().filter_map(|r| self.by_fence.get(&r.fence)).map(|lease| (lease.lease_id.as_str(), &lease.tenant)).collect()
    }

    /// CPU (thousandths of a core) and memory (bytes) of a host that leases hold, but for those taken to have ended.
    pub fn held_of_host(&self, host: u32, ended: &BTreeSet<u64>) -> (u64, u64) {
        let held = self.of_hosts.range((host, 0)..=(host, u64::MAX)).filter(|((_, fence), _)| !ended.contains(fence));
        held.fold((0, 0), |sum: (u64, u64), (_, held)| (sum.0.saturating_add(held.0), sum.1.saturating_add(held.1)))
    }

    pub fn find(&self, lease_id: &str) -> Option<&Lease> {
        self.by_fence.get(self.by_id.get(lease_id)?)
    }

    pub fn get_mut(&mut self, fence: u64) -> Option<&mut Lease> {
        let lease = self.by_fence.get_mut(&fence)?;
        if !lease.dirty {
            lease.dirty = true;
            self.dirty.push(fence);
        }
        Some(lease)
    }

    pub fn insert(&mut self, lease: Lease) {
        self.dirty.push(lease.fence);
        self.by_id.insert(lease.lease_id.clone(), lease.fence);
        self.of_hosts.extend(lease.hosts.iter().map(|share| ((share.host, lease.fence), (share.cpu_milli, share.memory_bytes))));
        self.by_fence.insert(lease.fence, Lease { dirty: true, ..lease });
    }

    fn remove(&mut self, fence: u64) -> Option<Lease> {
        let lease = self.by_fence.remove(&fence)?;
        self.by_id.remove(&lease.lease_id);
        lease.hosts.iter().for_each(|share| _ = self.of_hosts.remove(&(share.host, fence)));
        if !lease.dirty {
            self.dirty.push(fence);
        }
        Some(lease)
    }
}

impl State {
    /// Grants a lease on parts of GPUs. The caller has checked that there is room.
    pub(crate) fn grant(&mut self, lease: Lease, parts: &[Held], emit: &mut Emit<'_>) {
        let (fence, now, since_ns) = (lease.fence, emit.logged_at(), self.clock.live_ns);
        self.timers.set(lease.deadline_ns, Timer::Lease(fence));
        self.emit_lease(&lease, "granted", None, emit);
        self.leases.insert(lease);
        for Held { number, milli, vram_bytes, promised } in parts {
            let (number, milli, vram_bytes) = (*number, *milli, *vram_bytes);
            // Time until now belongs to those who held it before.
            self.credit(number, now);
            let device = self.registry.device_mut(number);
            device.facts.reservations.push(Reservation { fence, milli, vram_bytes, since_ns, promised: promised.clone() });
            device.facts.leased_from = device.facts.leased_from.or(Some(now));
            device.facts_dirty = true;
            self.restate(number, Cause::of("leased"), emit);
            self.emit_lease_device(fence, number, vram_bytes, None, emit);
        }
    }

    /// Extends a lease from now.
    pub(crate) fn extend(&mut self, fence: u64, now: LogTime) {
        let live_ns = self.clock.live_ns;
        if let Some(lease) = self.leases.get_mut(fence) {
            lease.deadline_ns = live_ns + lease.ttl_ms * NS_PER_MS;
            lease.expires_at = now.plus_ms(lease.ttl_ms);
        }
    }

    /// Ends a lease and frees its GPUs.
    pub(crate) fn release(&mut self, fence: u64, emit: &mut Emit<'_>) {
        self.judge_hosts(fence, Reputation::succeed);
        let held = match self.leases.get_mut(fence) {
            Some(lease) => {
                lease.end_reason.get_or_insert_with(|| "released".to_owned());
                lease.held.clone()
            }
            None => return,
        };
        for number in held {
            self.give_back(fence, number, "released", emit);
        }
    }

    /// A lease ran out: its GPUs drain.
    pub(crate) fn expire(&mut self, fence: u64, emit: &mut Emit<'_>) {
        self.judge_hosts(fence, |host| host.fail(Failure::Timeout));
        self.end_lease(fence, "expired", emit);
    }

    /// A lease is over and was not given back: its GPUs drain.
    pub(crate) fn end_lease(&mut self, fence: u64, cause: &'static str, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        let Some(lease) = self.leases.get_mut(fence) else { return };
        lease.state = LeaseState::Draining;
        lease.end_reason = Some(cause.to_owned());
        let lease = self.leases.by_fence[&fence].clone();
        self.emit_lease(&lease, cause, None, emit);
        for &number in &lease.held {
            self.credit(number, emit.logged_at());
            let device = self.registry.device_mut(number);
            device.facts.draining_ns = Some(live_ns);
            device.facts_dirty = true;
            self.restate(number, Cause::of(if cause == "expired" { "lease_expired" } else { "lease_revoked" }), emit);
        }
    }

    /// What the end of a lease says of the hosts it stands on.
    fn judge_hosts(&mut self, fence: u64, judge: impl Fn(&mut Reputation)) {
        let lives = self.leases.by_fence.get(&fence).filter(|lease| lease.state != LeaseState::Draining);
        let held = lives.into_iter().flat_map(|lease| &lease.held);
        let hosts: BTreeSet<u32> = held.map(|&number| self.registry.devices[number as usize].facts.host).collect();
        hosts.into_iter().for_each(|host| judge(&mut self.registry.host_mut(host).reputation));
    }

    /// What a drain does to the leases on GPUs: their holders are told, and they end after `grace_ms` of live clock if not before.
    pub(crate) fn drain_leases(&mut self, devices: &[u32], grace_ms: Option<u64>, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        for fence in self.fences_on(devices) {
            let Some(lease) = self.leases.get_mut(fence).filter(|lease| lease.state != LeaseState::Draining) else { continue };
            if let Some(grace_ms) = grace_ms {
                lease.deadline_ns = lease.deadline_ns.min(live_ns.saturating_add(ns(grace_ms)));
                lease.expires_at = lease.expires_at.min(emit.logged_at().plus_ms(i64::try_from(grace_ms).unwrap_or(i64::MAX)));
            }
            let lease = lease.clone();
            self.timers.set(lease.deadline_ns + 1, Timer::Lease(fence));
            self.emit_lease(&lease, "drain", None, emit);
        }
    }

    /// Whether an operator drains a GPU that a lease holds.
    pub(crate) fn is_drained_of(&self, lease: &Lease) -> bool {
        lease.held.iter().any(|&d| {
            let facts = &self.registry.devices[d as usize].facts;
            facts.drains || self.registry.hosts[facts.host as usize].drains
        })
    }

    /// The leases on some GPUs, by fence, each once.
    fn fences_on(&self, devices: &[u32]) -> Vec<u64> {
        let mut fences: Vec<u64> =
            devices.iter().flat_map(|&d| self.registry.devices[d as usize].facts.reservations.iter().map(|r| r.fence)).collect();
        fences.sort_unstable();
        fences.dedup();
        fences
    }

    /// A host is lost: the leases on its GPUs are suspended.
    pub(crate) fn suspend_leases(&mut self, devices: &[u32], emit: &mut Emit<'_>) {
        self.move_leases(devices, LeaseState::Active, LeaseState::Suspended, "host_lost", emit);
    }

    /// A lost host is back: its leases go on.
    pub(crate) fn resume_leases(&mut self, devices: &[u32], emit: &mut Emit<'_>) {
        self.move_leases(devices, LeaseState::Suspended, LeaseState::Active, "host_returned", emit);
    }

    fn move_leases(&mut self, devices: &[u32], from: LeaseState, to: LeaseState, cause: &str, emit: &mut Emit<'_>) {
        for fence in self.fences_on(devices) {
            if self.leases.by_fence.get(&fence).is_some_and(|lease| lease.state == from)
                && let Some(lease) = self.leases.get_mut(fence)
            {
                lease.state = to;
                let lease = lease.clone();
                self.emit_lease(&lease, cause, None, emit);
            }
        }
    }

    /// Telemetry has shown long enough that a draining GPU is empty. While another lease lives on it, that cannot be told.
    pub(crate) fn observed_free(&mut self, number: u32, emit: &mut Emit<'_>) {
        self.free_where(number, &[LeaseState::Draining], "observed_free", emit);
    }

    /// An operator says that a GPU is free of what does not live.
    pub(crate) fn free_by_operator(&mut self, number: u32, emit: &mut Emit<'_>) {
        self.free_where(number, &[LeaseState::Draining, LeaseState::Suspended], "operator", emit);
    }

    fn free_where(&mut self, number: u32, states: &[LeaseState], cause: &str, emit: &mut Emit<'_>) {
        let reservations = &self.registry.devices[number as usize].facts.reservations;
        let over = |fence: &u64| self.leases.by_fence.get(fence).is_none_or(|lease| states.contains(&lease.state));
        let fences: Vec<u64> = reservations.iter().map(|r| r.fence).filter(over).collect();
        if cause == "observed_free" && fences.len() < reservations.len() {
            return;
        }
        for fence in fences {
            self.give_back(fence, number, cause, emit);
        }
    }

    /// Takes one GPU from a lease; the lease ends with its last one.
    pub(crate) fn give_back(&mut self, fence: u64, number: u32, cause: &str, emit: &mut Emit<'_>) {
        let now = emit.logged_at();
        self.credit(number, now);
        let vram_bytes = self.registry.devices[number as usize].facts.reservations.iter().find(|r| r.fence == fence).map_or(0, |r| r.vram_bytes);
        self.emit_lease_device(fence, number, vram_bytes, Some(now), emit);
        let device = self.registry.device_mut(number);
        device.facts.reservations.retain(|r| r.fence != fence);
        device.facts_dirty = true;
        if device.facts.reservations.is_empty() {
            device.facts.leased_before = device.facts.leased_from.take().map(|from| (from, now));
        }
        if let Some(lease) = self.leases.get_mut(fence) {
            lease.held.retain(|&d| d != number);
        }
        self.queue.woken = true;
        let drains = self.registry.devices[number as usize]
            .facts
            .reservations
            .iter()
            .any(|r| self.leases.by_fence.get(&r.fence).is_some_and(|lease| lease.state == LeaseState::Draining));
        if !drains {
            self.registry.device_mut(number).facts.draining_ns = None;
        }
        self.restate(number, Cause::of(cause), emit);
        self.restate_instances(number, Cause::of(cause), emit);
        if self.leases.by_fence.get(&fence).is_some_and(|lease| lease.held.is_empty())
            && let Some(mut lease) = self.leases.remove(fence)
        {
            lease.hosts.iter().for_each(|share| self.registry.touch_host(share.host));
            lease.state = LeaseState::Ended;
            lease.end_reason.get_or_insert_with(|| cause.to_owned());
            self.emit_lease(&lease, cause, Some(now), emit);
        }
    }

    /// When a lease runs out, live clock in ns; absent if it has.
    pub(crate) fn lease_deadline(&self, fence: u64) -> Option<i64> {
        // Strictly after its end: a renewal at exactly the end still counts.
        self.leases.by_fence.get(&fence).filter(|lease| lease.state != LeaseState::Draining).map(|lease| lease.deadline_ns + 1)
    }

    fn emit_lease(&self, lease: &Lease, cause: &str, ended_at: Option<LogTime>, emit: &mut Emit<'_>) {
        emit.row(Row::Lease(Box::new(LeaseRow {
            lease_id: lease.lease_id.clone(),
            request_id: lease.request_id.clone(),
            tenant: lease.tenant.clone(),
            n_gpus: lease.granted.len() as u32,
            state: lease.state,
            granted_at: lease.granted_at,
            expires_at: lease.expires_at,
            ended_at,
            end_reason: lease.end_reason.clone(),
        })));
        self.say_lease(lease, cause, emit);
    }

    /// Says on OUT where a lease stands.
    pub(crate) fn say_lease(&self, lease: &Lease, cause: &str, emit: &mut Emit<'_>) {
        let payload = LeaseChanged {
            lease_id: lease.lease_id.clone(),
            request_id: lease.request_id.clone(),
            tenant: lease.tenant.clone(),
            state: lease.state,
            cause: cause.to_owned(),
            fence: lease.fence,
            device_uuids: lease.granted.iter().map(|&d| self.registry.devices[d as usize].uuid().clone()).collect(),
        };
        emit.out(&OutSubject::Lease(lease.tenant.clone()), Payload::Lease(payload));
    }

    fn emit_lease_device(&self, fence: u64, number: u32, vram_bytes: u64, to_at: Option<LogTime>, emit: &mut Emit<'_>) {
        let Some(lease) = self.leases.by_fence.get(&fence) else { return };
        let facts = &self.registry.devices[number as usize].facts;
        emit.row(Row::LeaseDevice(Box::new(LeaseDeviceRow {
            lease_id: lease.lease_id.clone(),
            device_key: facts.key,
            host: self.registry.hosts[facts.host as usize].id.clone(),
            tenant: lease.tenant.clone(),
            from_at: lease.granted_at,
            to_at,
            memory_reserved_bytes: i64::try_from(vram_bytes).unwrap_or(i64::MAX),
        })));
    }
}
