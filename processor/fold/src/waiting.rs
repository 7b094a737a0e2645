//! Requests that wait for room: the higher priority first, of equal ones the older. Each ends placed, withdrawn, or when its wait is over.
//!
//! Some are tried again with each tick and whenever something is given back. So that large requests do not starve, the GPUs that will be
//! free first for the foremost one that finds no room are kept for it; others may use them meanwhile only if they say that they end before
//! (EASY backfill: Lifka, "The ANL/IBM SP scheduling system", 1995).

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::mig::Slices;
use plimsoll_schemas::out::{LeaseState, Outcome};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Cancel, Place};
use plimsoll_schemas::time::{NS_PER_MS, NS_PER_S};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::paces::scope::Left;
use crate::placement::select::Choice;
use crate::placing::{Assume, Attempt};
use crate::timers::Timer;

/// Most requests that wait in a cell.
const WAITING_MAX: usize = 10_000;
/// Most of them of one tenant.
const WAITING_PER_TENANT_MAX: usize = 1_000;
/// With more than this many that wait, one that comes is not told when there could be room: working that out costs a dozen choices.
const TOLD_MAX: usize = 64;
/// Most that are tried again per record.
const TRIES_PER_RECORD: usize = 8;
/// What is kept is worked out anew after so long at the latest, ns of live clock.
const KEPT_NS: i64 = 10 * NS_PER_S;

/// Its place in the queue: the lesser goes first.
pub(crate) type Turn = (i32, u64);

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    pub tenant: TenantId,
    #[serde(with = "crate::as_json")]
    pub place: Place,
    /// Live clock since when it waits, from when on it may be placed, and until when it waits; ns.
    pub since_ns: i64,
    pub from_ns: i64,
    pub until_ns: i64,
    /// How often it was tried.
    pub attempts: u32,
    /// Whether it waits for its slot under a pace, and counts there as one that waits.
    pub paced: bool,
}

/// How long a request waits before it is tried for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delay {
    /// Milliseconds of live clock.
    pub ms: i64,
    /// Whether a pace wants it.
    pub paced: bool,
}

/// A sentence about too many that wait.
pub(crate) fn queue_is_full() -> String {
    format!("too many requests wait: at most {WAITING_MAX} in a cell and {WAITING_PER_TENANT_MAX} of a tenant")
}

impl Waiting {
    fn attempt(&self, live_ns: i64) -> Attempt {
        Attempt { number: self.attempts.saturating_add(1), waited_ms: (live_ns - self.since_ns) / NS_PER_MS }
    }
}

/// GPUs and slices of boards that are kept for a request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// For which, by number.
    pub request: u64,
    pub devices: BTreeSet<u32>,
    /// By the number of their board.
    pub slices: BTreeMap<u32, Vec<Slices>>,
    /// When they will be free, live clock, ns.
    pub free_ns: i64,
    /// When that was worked out, live clock, ns.
    pub since_ns: i64,
}

/// What of the queue stands apart from those who wait in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Whom the next try follows.
    pub after: Option<Turn>,
    pub kept: Option<Kept>,
}

/// Those who wait.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queue {
    pub by_turn: BTreeMap<Turn, Waiting>,
    /// Their turns by number.
    pub turns: BTreeMap<u64, Turn>,
    pub order: Order,
    /// Changed or gone since the last commit.
    pub dirty: BTreeSet<Turn>,
    /// Something was given back by the record being folded.
    pub woken: bool,
}

/// A request's place in the queue.
pub(crate) fn turn(priority: i16, number: u64) -> Turn {
    (-i32::from(priority), number)
}

impl Queue {
    /// The turn of a request, if it waits.
    pub fn turn_of(&self, number: u64) -> Option<Turn> {
        self.turns.get(&number).copied()
    }

    /// One more waits.
    pub fn insert(&mut self, turn: Turn, waiting: Waiting) {
        self.turns.insert(turn.1, turn);
        self.by_turn.insert(turn, waiting);
    }

    /// Whether no more requests of a tenant can wait.
    pub fn is_full(&self, tenant: &TenantId) -> bool {
        self.by_turn.len() >= WAITING_MAX || self.by_turn.values().filter(|waiting| waiting.tenant == *tenant).count() >= WAITING_PER_TENANT_MAX
    }
}

impl State {
    /// What a choice assumes of what is kept: not for the request itself, nor for one that says it ends before.
    pub(crate) fn assume(&self, place: &Place, number: Option<u64>) -> Assume {
        let Some(kept) = &self.queue.order.kept else { return Assume::default() };
        let ends_before = place.duration_ms.is_some_and(|ms| self.clock.live_ns.saturating_add(ns(ms)) <= kept.free_ns);
        if number == Some(kept.request) || ends_before {
            return Assume::default();
        }
        Assume { kept: kept.devices.clone(), kept_slices: kept.slices.clone(), ..Assume::default() }
    }

    /// Lets a request wait that cannot be placed now; refuses it where too many wait already.
    pub(crate) fn wait(&mut self, tenant: &TenantId, place: &Place, number: u64, delay: Delay, choice: Choice, emit: &mut Emit<'_>) {
        if self.queue.is_full(tenant) {
            return self.conclude(tenant, place, Choice::rejected(Reason::LimitReached, queue_is_full()), Attempt::FIRST, emit);
        }
        let live_ns = self.clock.live_ns;
        let from_ns = live_ns.saturating_add(delay.ms.saturating_mul(NS_PER_MS));
        let waiting = Waiting {
            tenant: tenant.clone(),
            place: place.clone(),
            since_ns: live_ns,
            from_ns,
            until_ns: from_ns.saturating_add(ns(place.max_wait_ms.unwrap_or(0))),
            attempts: 1,
            paced: delay.paced,
        };
        let turn = turn(place.priority, number);
        self.timers.set(waiting.until_ns + 1, Timer::Waiting(number));
        self.queue.insert(turn, waiting);
        self.queue.dirty.insert(turn);
        self.propose_preemption(tenant, place, &choice, emit);
        let is_told = delay.ms == 0 && self.queue.by_turn.len() <= TOLD_MAX;
        let earliest = if is_told { self.earliest(tenant, place) } else { None };
        let earliest_at = earliest.map(|(at_ns, _)| emit.logged_at().plus_ms((at_ns - live_ns) / NS_PER_MS));
        let choice = Choice { outcome: Outcome::Deferred, ..choice };
        self.say_decision(tenant, place, choice, None, Attempt::FIRST, earliest_at, emit);
    }

    /// Tries some of those who wait again.
    pub(crate) fn try_waiting(&mut self, emit: &mut Emit<'_>) {
        self.queue.woken = false;
        if self.queue.by_turn.is_empty() {
            return;
        }
        self.keep_for_foremost();
        let live_ns = self.clock.live_ns;
        let behind = self.queue.order.after;
        let open = |waiting: &Waiting| waiting.from_ns <= live_ns;
        let turns = || self.queue.by_turn.iter().filter(|(_, waiting)| open(waiting)).map(|(&turn, _)| turn);
        // The foremost each time, the others in turn.
        let foremost = turns().next();
        let others: Vec<Turn> = turns().skip(1).filter(|&turn| behind.is_none_or(|behind| turn > behind)).take(TRIES_PER_RECORD).collect();
        self.queue.order.after = others.last().copied().filter(|_| others.len() == TRIES_PER_RECORD);
        for turn in foremost.into_iter().chain(others) {
            self.try_again(turn, emit);
        }
    }

    fn try_again(&mut self, turn: Turn, emit: &mut Emit<'_>) {
        if self.is_held_up(turn) {
            return;
        }
        let Some(waiting) = self.queue.by_turn.get_mut(&turn) else { return };
        let attempt = waiting.attempt(self.clock.live_ns);
        waiting.attempts = attempt.number;
        self.queue.dirty.insert(turn);
        let Waiting { tenant, place, .. } = self.queue.by_turn[&turn].clone();
        let choice = self.choice(&tenant, &place, &self.assume(&place, Some(turn.1)));
        if choice.outcome == Outcome::Placed {
            self.leave(turn, Left::Admitted);
            self.conclude(&tenant, &place, choice, attempt, emit);
        }
    }

    /// Whether load pauses the pace under which a request waits: then its time comes when the pause ends.
    fn is_held_up(&mut self, turn: Turn) -> bool {
        let Some(waiting) = self.queue.by_turn.get(&turn).filter(|waiting| waiting.paced) else { return false };
        let Some(paused_ns) = self.pace_paused_until(&waiting.tenant) else { return false };
        let held_ns = (paused_ns + 1 - waiting.from_ns).max(NS_PER_S);
        if let Some(waiting) = self.queue.by_turn.get_mut(&turn) {
            (waiting.from_ns, waiting.until_ns) = (waiting.from_ns.saturating_add(held_ns), waiting.until_ns.saturating_add(held_ns));
            self.queue.dirty.insert(turn);
            self.timers.set(waiting.until_ns + 1, Timer::Waiting(turn.1));
        }
        true
    }

    /// A request has waited as long as it said it would.
    pub(crate) fn waited_enough(&mut self, number: u64, emit: &mut Emit<'_>) {
        let Some(turn) = self.queue.turn_of(number) else { return };
        if self.is_held_up(turn) {
            return;
        }
        let Some(waiting) = self.leave(turn, Left::Admitted) else { return };
        let attempt = waiting.attempt(self.clock.live_ns);
        // Once more: its time may have come with its end.
        let choice = self.choice(&waiting.tenant, &waiting.place, &self.assume(&waiting.place, Some(number)));
        let choice = match (choice.outcome, choice.reason, &choice.detail) {
            (Outcome::Placed, ..) => choice,
            // It never said that it would wait for room.
            _ if waiting.place.max_wait_ms.is_none() => choice,
            (_, reason, detail) => {
                let last = reason.map_or("", Reason::code);
                let detail = format!("waited {} ms; last: {last}: {}", attempt.waited_ms, detail.as_deref().unwrap_or_default());
                Choice { outcome: Outcome::Rejected, reason: Some(Reason::MaxWait), detail: Some(detail), ..choice }
            }
        };
        self.conclude(&waiting.tenant, &waiting.place, choice, attempt, emit);
    }

    /// Until when a request waits, live clock in ns; absent if it does not.
    pub(crate) fn waiting_deadline(&self, number: u64) -> Option<i64> {
        self.queue.turn_of(number).map(|turn| self.queue.by_turn[&turn].until_ns + 1)
    }

    /// Withdraws a request that waits.
    pub(crate) fn cancel(&mut self, tenant: &TenantId, cancel: &Cancel, emit: &mut Emit<'_>) {
        let number = self.requests.number_of(tenant, &cancel.cancels);
        let Some(waiting) = number.and_then(|number| self.queue.turn_of(number)).and_then(|turn| self.leave(turn, Left::Cancelled)) else {
            return self.refuse_request(tenant, Reason::UnknownRequest, &cancel.cancels, emit);
        };
        let choice = Choice { outcome: Outcome::Cancelled, ..Choice::rejected(Reason::Cancelled, format!("withdrawn by {}", cancel.request_id)) };
        self.say_decision(tenant, &waiting.place, choice, None, waiting.attempt(self.clock.live_ns), None, emit);
    }

    /// Takes a request out of the queue, and what is kept for it with it.
    pub(crate) fn leave(&mut self, turn: Turn, left: Left) -> Option<Waiting> {
        let waiting = self.queue.by_turn.remove(&turn)?;
        if waiting.paced {
            self.pace_leave(&waiting.tenant, left);
        }
        self.queue.turns.remove(&turn.1);
        self.queue.dirty.insert(turn);
        self.queue.order.kept.take_if(|kept| kept.request == turn.1);
        Some(waiting)
    }

    /// Keeps what will be free first for the foremost request that finds no room.
    fn keep_for_foremost(&mut self) {
        let live_ns = self.clock.live_ns;
        let Some((&turn, waiting)) = self.queue.by_turn.iter().find(|(_, waiting)| waiting.from_ns <= live_ns) else {
            self.queue.order.kept = None;
            return;
        };
        if self.queue.order.kept.as_ref().is_some_and(|kept| kept.request == turn.1 && live_ns - kept.since_ns < KEPT_NS) {
            return;
        }
        let Waiting { tenant, place, .. } = waiting.clone();
        let earliest = self.earliest(&tenant, &place);
        self.queue.order.kept = earliest.map(|(free_ns, choice)| {
            let mut slices = BTreeMap::<u32, Vec<Slices>>::new();
            for (board, of_board) in choice.picks.iter().filter_map(|pick| Some((pick.number, pick.slices?))) {
                slices.entry(board).or_default().push(of_board);
            }
            let devices = choice.picks.iter().filter(|pick| pick.slices.is_none()).map(|pick| pick.number).collect();
            Kept { request: turn.1, devices, slices, free_ns, since_ns: live_ns }
        });
    }

    /// When leases that run out could leave a request enough room at the earliest, live clock in ns, and what it would get; absent if it
    /// would not fit then either. Leases can be renewed, and what has run out drains first: sooner it will not be.
    fn earliest(&mut self, tenant: &TenantId, place: &Place) -> Option<(i64, Choice)> {
        let mut ends: Vec<(i64, u64)> =
            self.leases.by_fence.values().filter(|lease| lease.state == LeaseState::Active).map(|lease| (lease.deadline_ns, lease.fence)).collect();
        ends.sort_unstable();
        let mut without = |ended: usize| {
            let assume = Assume { ended: ends[..ended].iter().map(|&(_, fence)| fence).collect(), ..Assume::default() };
            Some(self.choice(tenant, place, &assume)).filter(|choice| choice.outcome == Outcome::Placed)
        };
        // The fewest that must end: with more of them gone there is never less room.
        let (mut least, mut enough) = (0, ends.len());
        let mut found = without(enough)?;
        while least < enough {
            let middle = (least + enough) / 2;
            match without(middle) {
                Some(choice) => (enough, found) = (middle, choice),
                None => least = middle + 1,
            }
        }
        let at_ns = enough.checked_sub(1).map_or(self.clock.live_ns, |last| ends[last].0);
        Some((at_ns.max(self.clock.live_ns), found))
    }
}
