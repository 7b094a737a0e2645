//! Paces: how fast placement requests may come, of the cell and of single tenants, and when load pauses them. Where none is set, nothing is paced.
//!
//! A request must keep the pace of the cell and that of its tenant: [`State::pace_slot`] says what becomes of it and moves nothing,
//! [`State::pace_take`] takes what was said. The cell gives out its slots in the order of asking, so a tenant that is ahead of its own pace
//! takes one of them and holds up nobody else; its own slots follow from there.

pub(crate) mod load;
pub(crate) mod pause;
pub(crate) mod scope;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{PaceChanged, PaceCounts, PaceState, Payload};
use plimsoll_schemas::pace::{Pace, scope_name};
use plimsoll_schemas::policy::{Policy, SetBy};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::NS_PER_MS;

use crate::State;
use crate::emit::Emit;
use crate::paces::load::Load;
use crate::paces::pause::Moved;
use crate::paces::scope::{Left, Scope, Slot};
use crate::placement::select::Choice;
use crate::timers::Timer;

/// Most tenants with a pace of their own.
const TENANTS_MAX: usize = 10_000;
/// Tenants whose counts are shown by name; a metric must not have a series for everybody.
const COUNTED_MAX: usize = 100;
/// The scope under which the others are counted; no scope is called that.
const OTHERS: &str = "others";

/// The paces in force, by tenant; absent = the cell's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Paces {
    pub by_tenant: BTreeMap<Option<TenantId>, Scope>,
    /// Changed or ended since the last commit.
    pub dirty: BTreeSet<Option<TenantId>>,
}

impl Paces {
    /// What became of the requests under each pace, by scope; of tenants beyond the first [`COUNTED_MAX`] together.
    pub fn counts(&self) -> BTreeMap<String, PaceCounts> {
        let mut counts = BTreeMap::<String, PaceCounts>::new();
        // The cell's pace, if there is one, is the first.
        let named = COUNTED_MAX + usize::from(self.by_tenant.contains_key(&None));
        for (number, (tenant, scope)) in self.by_tenant.iter().enumerate() {
            let name = if number < named { scope_name(tenant.as_ref()) } else { OTHERS.to_owned() };
            let sum = counts.entry(name).or_default();
            sum.admitted += scope.counts.admitted;
            sum.refused += scope.counts.refused;
            sum.cancelled += scope.counts.cancelled;
            sum.waiting += scope.counts.waiting;
        }
        counts
    }

    /// The paces that a request of a tenant must keep: the cell's, then its own.
    fn of<'a>(&'a self, tenant: &TenantId) -> impl Iterator<Item = (&'a Option<TenantId>, &'a Scope)> {
        [None, Some(tenant.clone())].into_iter().filter_map(|key| self.by_tenant.get_key_value(&key))
    }

    /// The same, to be changed.
    fn change(&mut self, tenant: &TenantId, mut change: impl FnMut(&mut Scope)) {
        for key in [None, Some(tenant.clone())] {
            if let Some(scope) = self.by_tenant.get_mut(&key) {
                change(scope);
                self.dirty.insert(key);
            }
        }
    }
}

impl State {
    /// Sets the pace of a tenant or of the cell, or replaces it: a pause under the old one is over.
    pub(crate) fn set_pace(&mut self, tenant: Option<&TenantId>, pace: &Pace, emit: &mut Emit<'_>) {
        if let Err(detail) = pace.check() {
            return self.refuse_control(Reason::InvalidPolicy, detail, emit);
        }
        let (key, name) = (tenant.cloned(), scope_name(tenant));
        if tenant.is_some() && !self.paces.by_tenant.contains_key(&key) && self.paces.by_tenant.keys().flatten().count() >= TENANTS_MAX {
            return self.refuse_control(Reason::LimitReached, format!("{TENANTS_MAX} tenants have a pace: end one before {name}"), emit);
        }
        if !self.policies.set(Policy::Pace(*pace), &name, None, SetBy::Operator, emit) {
            return;
        }
        self.end_pause(&key, "pace_changed", emit);
        let live_ns = self.clock.live_ns;
        self.paces.by_tenant.entry(key.clone()).and_modify(|scope| scope.change(*pace, live_ns)).or_insert_with(|| Scope::new(*pace, live_ns));
        self.paces.dirty.insert(key);
        self.wait_for_load();
    }

    /// Ends the pace of a tenant or of the cell.
    pub(crate) fn end_pace(&mut self, tenant: Option<&TenantId>, emit: &mut Emit<'_>) {
        let (key, name) = (tenant.cloned(), scope_name(tenant));
        if !self.paces.by_tenant.contains_key(&key) {
            return self.refuse_control(Reason::UnknownPolicy, format!("no pace of {name}"), emit);
        }
        self.end_pause(&key, "pace_ended", emit);
        self.policies.end("pace", &name, emit);
        self.paces.by_tenant.remove(&key);
        self.paces.dirty.insert(key);
    }

    /// Says that a pause is over for another reason than its load, if there is one.
    fn end_pause(&mut self, key: &Option<TenantId>, cause: &str, emit: &mut Emit<'_>) {
        let paused = self.paces.by_tenant.get_mut(key).filter(|scope| scope.pause.paused);
        if let Some(scope) = paused {
            scope.pause.paused = false;
            self.say_pace(key, cause, &Load::default(), emit);
        }
    }

    /// What becomes of a request that a tenant sends now. Moves nothing.
    pub(crate) fn pace_slot(&self, tenant: &TenantId) -> Slot {
        let now = self.clock.live_ns.unsigned_abs();
        let at = self.paces.of(tenant).fold(self.pace_from(tenant), |at, (_, scope)| scope.slots.next(at));
        let refusing = self.paces.of(tenant).find_map(|(key, scope)| Some((key, scope.refuses(now)?)));
        match refusing {
            Some((key, why)) => {
                let retry_after_ms = (at - now).div_ceil(NS_PER_MS.unsigned_abs());
                Slot::Refused { why, scope: scope_name(key.as_ref()), retry_after_ms }
            }
            None if at == now => Slot::Now,
            None => Slot::At { live_ns: i64::try_from(at).unwrap_or(i64::MAX) },
        }
    }

    /// Takes the slot that [`State::pace_slot`] gives: the request goes now, or waits.
    pub(crate) fn pace_take(&mut self, tenant: &TenantId) {
        let waits = self.pace_slot(tenant) != Slot::Now;
        let mut at = self.pace_from(tenant);
        self.paces.change(tenant, |scope| {
            at = scope.slots.reserve(at);
            *if waits { &mut scope.counts.waiting } else { &mut scope.counts.admitted } += 1;
        });
    }

    /// Counts a request that got no slot, and says so.
    pub(crate) fn pace_refuse(&mut self, tenant: &TenantId, reason: Reason, detail: String) -> Choice {
        self.paces.change(tenant, |scope| scope.counts.refused += 1);
        Choice::rejected(reason, detail)
    }

    /// A request that was given a later slot waits no more.
    pub(crate) fn pace_leave(&mut self, tenant: &TenantId, left: Left) {
        self.paces.change(tenant, |scope| {
            let counts = &mut scope.counts;
            // Under a pace that began after the request came, it is not counted.
            if counts.waiting > 0 {
                counts.waiting -= 1;
                match left {
                    Left::Admitted => counts.admitted += 1,
                    Left::Cancelled => counts.cancelled += 1,
                }
            }
        });
    }

    /// The earliest end of the pause that holds for a tenant, live clock in ns; absent if none does. A request whose slot has come waits on
    /// until then.
    pub(crate) fn pace_paused_until(&self, tenant: &TenantId) -> Option<i64> {
        self.paces.of(tenant).filter_map(|(_, scope)| scope.paused_until()).max()
    }

    /// From when on a request of a tenant may have a slot, live clock in ns: now, or after the pause.
    fn pace_from(&self, tenant: &TenantId) -> u64 {
        let now = self.clock.live_ns.unsigned_abs();
        // A look that is overdue has not ended the pause yet.
        self.pace_paused_until(tenant).map_or(now, |until_ns| until_ns.unsigned_abs().max(now + 1))
    }

    /// When the load is next looked at for any pace, live clock in ns.
    pub(crate) fn load_deadline(&self) -> Option<i64> {
        self.paces.by_tenant.values().filter_map(Scope::deadline).min()
    }

    /// Sets the timer of the next look at the load.
    pub(crate) fn wait_for_load(&mut self) {
        if let Some(at_ns) = self.load_deadline() {
            self.timers.set(at_ns, Timer::Load);
        }
    }

    /// Looks at the load for every pace that is due.
    pub(crate) fn look_at_load(&mut self, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        let due = |scope: &Scope| scope.deadline().is_some_and(|at_ns| at_ns <= live_ns);
        let due: Vec<Option<TenantId>> = self.paces.by_tenant.iter().filter(|(_, scope)| due(scope)).map(|(key, _)| key.clone()).collect();
        let loads = self.loads(due.iter().flatten().cloned());
        for key in due {
            let Some(scope) = self.paces.by_tenant.get_mut(&key) else { continue };
            let load = loads.of(key.as_ref());
            match scope.pause.look(&scope.pace, &load, live_ns) {
                Moved::Not => {}
                Moved::Paused => self.say_pace(&key, "load_high", &load, emit),
                Moved::Resumed => self.say_pace(&key, "load_low", &load, emit),
            }
            self.paces.dirty.insert(key);
        }
        self.wait_for_load();
    }

    /// Says on OUT whether a pace is paused.
    fn say_pace(&self, key: &Option<TenantId>, cause: &str, load: &Load, emit: &mut Emit<'_>) {
        let Some(scope) = self.paces.by_tenant.get(key) else { return };
        let until = scope.paused_until().map(|until_ns| emit.logged_at().plus_ms((until_ns - self.clock.live_ns) / NS_PER_MS).rfc3339());
        let payload = PaceChanged {
            scope: scope_name(key.as_ref()),
            state: if scope.pause.paused { PaceState::Paused } else { PaceState::Resumed },
            cause: cause.to_owned(),
            util_bp: load.util_bp,
            memory_bp: load.memory_bp,
            gpus: load.gpus,
            until,
            pace: scope.pace,
            counts: scope.counts,
        };
        emit.out(&OutSubject::Policy, Payload::Pace(Box::new(payload)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::out::PaceCounts;
    use plimsoll_schemas::pace::{Mode, Preset};

    fn tenant(name: &str) -> TenantId {
        name.parse().expect("valid")
    }

    fn queue(min_request_interval_ms: u32) -> Scope {
        Scope::new(Pace { mode: Mode::Queue, min_request_interval_ms, ..Preset::Default.pace() }, 0)
    }

    /// A cell of two tenants, of which the second has a pace of its own.
    fn state(cell: Scope, slow: Option<Scope>) -> State {
        let mut state = State::new("test".parse().expect("valid"));
        state.paces.by_tenant.insert(None, cell);
        state.paces.by_tenant.extend(slow.map(|scope| (Some(tenant("slow")), scope)));
        state
    }

    /// The slots of that many requests at once, ms after now; those that can wait take theirs.
    fn slots(state: &mut State, name: &str, requests: usize) -> Vec<i64> {
        let tenant = tenant(name);
        let mut slot = || match state.pace_slot(&tenant) {
            Slot::Refused { .. } => panic!("refused"),
            slot @ (Slot::Now | Slot::At { .. }) => {
                state.pace_take(&tenant);
                if let Slot::At { live_ns } = slot { (live_ns - state.clock.live_ns) / NS_PER_MS } else { 0 }
            }
        };
        (0..requests).map(|_| slot()).collect()
    }

    #[test]
    fn a_hundred_requests_at_once_get_a_hundred_slots() {
        let mut state = state(queue(50), None);
        assert_eq!(slots(&mut state, "a", 1), [0]);
        assert_eq!(slots(&mut state, "a", 100), (1..=100).map(|n| n * 50).collect::<Vec<_>>());
        state.pace_refuse(&tenant("a"), Reason::Paced, String::new());
        assert_eq!(slots(&mut state, "a", 1), [5_050], "a refusal moves nothing");
    }

    #[test]
    fn a_tenant_ahead_of_its_own_pace_takes_one_slot_of_the_cell_each_time_and_no_more() {
        let mut state = state(queue(50), Some(queue(1_000)));
        assert_eq!(slots(&mut state, "slow", 4), [0, 1_000, 2_000, 3_000]);
        assert_eq!(slots(&mut state, "a", 2), [200, 250]);
        assert_eq!(slots(&mut state, "slow", 1), [4_000]);
    }

    #[test]
    fn a_request_that_may_wait_waits_for_the_end_of_a_pause() {
        let mut state = state(queue(50), None);
        let scope = state.paces.by_tenant.get_mut(&None).expect("there");
        (scope.pause.paused, scope.pause.next_ns) = (true, 30_000 * NS_PER_MS);
        assert_eq!(slots(&mut state, "a", 3), [30_000, 30_050, 30_100]);
        assert_eq!(state.pace_paused_until(&tenant("a")), Some(30_000 * NS_PER_MS));
        state.clock.live_ns = 31_000 * NS_PER_MS;
        assert!(matches!(state.pace_slot(&tenant("a")), Slot::At { .. }), "nobody has looked yet");
    }

    #[test]
    fn one_scope_that_refuses_is_enough_and_then_neither_clock_moves() {
        let refuse = Scope::new(Preset::Default.pace(), 0);
        let mut state = state(queue(10), Some(refuse));
        assert_eq!(slots(&mut state, "slow", 1), [0]);
        let refused = Slot::Refused { why: scope::Why::Paced, scope: "tenant/slow".to_owned(), retry_after_ms: 50 };
        assert_eq!(state.pace_slot(&tenant("slow")), refused);
        assert_eq!(slots(&mut state, "a", 1), [10]);
    }

    #[test]
    fn what_came_is_admitted_refused_cancelled_or_waits() {
        let mut state = state(queue(50), None);
        slots(&mut state, "a", 10);
        state.pace_refuse(&tenant("a"), Reason::LimitReached, String::new());
        for left in [Left::Admitted, Left::Cancelled] {
            state.pace_leave(&tenant("a"), left);
        }
        let counts = state.paces.by_tenant[&None].counts;
        assert_eq!(counts, PaceCounts { admitted: 2, refused: 1, cancelled: 1, waiting: 7 });
        assert_eq!(counts.offered(), 11);
    }
}
