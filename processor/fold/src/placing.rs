//! Placement in the living cell: what a request gets, now or later.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::mig::Slices;
use plimsoll_schemas::out::{Decided, LeaseState, Outcome};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Place, TEXT_BYTES_MAX, WAIT_MS_MAX};
use plimsoll_schemas::row::Row;
use plimsoll_schemas::time::{EventTime, NS_PER_MS};

use crate::State;
use crate::decision::request_row;
use crate::emit::Emit;
use crate::leases::{Held, Lease, Share, by_gpu};
use crate::paces::scope::Slot;
use crate::placement::ask::{self, Ask};
use crate::placement::policy::catalogue::{Bidder, Name};
use crate::placement::select::{Choice, Pick};
use crate::placement::{Refused, Settings};
use crate::waiting::{Delay, queue_is_full};

/// The policy of a cell for which nobody has chosen one.
pub(crate) const DEFAULT: Name = Name::Hybrid;
/// The version of every policy there is.
pub(crate) const VERSION: u32 = 1;
/// The id of a decision that is not one.
const DRY_RUN: &str = "dry-run";

/// Under which assumptions a choice is made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Assume {
    /// Leases, by fence, that are taken to have ended.
    pub ended: BTreeSet<u64>,
    /// GPUs, by number, that are kept for another request.
    pub kept: BTreeSet<u32>,
    /// Slices that are, by the number of their board.
    pub kept_slices: BTreeMap<u32, Vec<Slices>>,
}

impl State {
    /// What a placement request would get now. Changes nothing but what is remembered of the cell.
    pub fn dry_run(&mut self, tenant: &TenantId, place: &Place) -> Decided {
        let choice = self.choice(tenant, place, &self.assume(place, None));
        let lease = None;
        Decided { decision_id: DRY_RUN.to_owned(), decision_seq: 0, ..self.decided(tenant, place, choice, lease, Attempt::FIRST) }
    }

    /// Decides a request that is asked for the first time.
    pub(crate) fn place(&mut self, tenant: &TenantId, place: &Place, number: u64, emit: &mut Emit<'_>) {
        emit.row(Row::Request(Box::new(request_row(tenant, place, emit.logged_at()))));
        match Ask::new(place) {
            Ok(ask) => {
                ask.asked().for_each(|asked| self.mix.note(asked));
                self.mix.settle();
            }
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
        let part = |pick: &Pick| Held {
            number: pick.number,
            milli: pick.milli,
            vram_bytes: pick.vram_bytes,
            promised: choice.promise(place, pick).into_iter().collect(),
        };
        let held = by_gpu(choice.picks.iter().map(part));
        let lease = (choice.outcome == Outcome::Placed).then(|| self.new_lease(tenant, place, &choice, &held, emit));
        self.say_decision(tenant, place, choice, lease.as_ref(), attempt, None, emit);
        if let Some(lease) = lease {
            self.grant(lease, &held, emit);
        }
    }

    /// The choice for a request under some assumptions.
    pub(crate) fn choice(&mut self, tenant: &TenantId, place: &Place, assume: &Assume) -> Choice {
        match self.try_choice(tenant, place, assume) {
            Ok(choice) => choice,
            Err(refused) => Choice::rejected(refused.reason, refused.detail),
        }
    }

    fn try_choice(&mut self, tenant: &TenantId, place: &Place, assume: &Assume) -> Result<Choice, Refused> {
        let ask = Ask::new(place)?;
        let bidder = self.bidder_for(place)?;
        self.within_quota(tenant, &ask, assume)?;
        Ok(self.choose(tenant, &ask, bidder, assume))
    }

    /// The policy that a request names, alone, or the cell's with what counts besides. Errors on one that does not exist.
    pub(crate) fn bidder_for(&self, place: &Place) -> Result<Bidder, Refused> {
        let Some(named) = place.policy.as_deref() else { return Ok(self.meta.bidder()) };
        let (name, version) = named.split_once('@').unwrap_or((named, "1"));
        let found = Name::from_code(name).filter(|_| version.parse() == Ok(VERSION));
        found.map(Bidder::alone).ok_or_else(|| Refused::new(Reason::UnknownPolicy, unknown_policy(cut(named, TEXT_BYTES_MAX))))
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
            hosts: shares.into_iter().map(|(host, (cpu_milli, memory_bytes))| Share { host, cpu_milli, memory_bytes }).collect(),
            priority: place.priority,
            preemptible: place.preemptible,
            labels: place.labels.clone(),
            dirty: true,
        }
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
