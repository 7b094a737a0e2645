//! Alerts: rules watched over closed windows, states and minutes. pending → firing → resolved, each firing one row and two events.
//!
//! The rest of the fold says only that a window closed ([`State::alert_window`]), that something changed its state
//! ([`State::alert_gpu`], [`State::alert_host`]) or left ([`State::alert_gone`]). Sinks read the events from OUT; nothing waits for them here.

pub(crate) mod rules;
pub(crate) mod signal;
pub(crate) mod watch;
pub(crate) mod watched;

use plimsoll_schemas::alert::{Basis, Rule, Scope, Signal};
use plimsoll_schemas::out::{AlertChanged, AlertState, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::row::{AlertRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::alerts::rules::Rules;
use crate::alerts::signal::{CellNow, Counted};
use crate::alerts::watch::{Moved, Span, Watch};
use crate::alerts::watched::{All, Watched};
use crate::clock::floor;
use crate::emit::Emit;
use crate::refuse::Refusal;
use crate::registry::Silence;
use crate::timers::Timer;
use crate::window::{PANE_NS, Pane};

/// Most rules on subjects that are pending, firing or cooling down; what would be one more is not watched, and refused by name.
const WATCHED_MAX: usize = 100_000;
/// How often the cell's own signals get a value, live clock, ns.
const MINUTE_NS: i64 = 60 * NS_PER_S;

/// What a rule is watched on, hosts and GPUs by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Subject {
    /// The cell.
    Cell,
    /// A host.
    Host(u32),
    /// A GPU.
    Gpu(u32),
}

impl Subject {
    const fn scope(self) -> Scope {
        match self {
            Self::Cell => Scope::Cell,
            Self::Host(_) => Scope::Host,
            Self::Gpu(_) => Scope::Gpu,
        }
    }
}

/// The rules and everything that is watched.
#[derive(Debug, Clone)]
pub(crate) struct Alerts {
    pub rules: Rules,
    pub rules_dirty: bool,
    pub watched: All,
    /// Changed or gone since the last commit, some more than once.
    pub dirty: Vec<(Subject, u32)>,
    /// What the cell's counters stood at when its signals last got a value.
    pub counted: Counted,
    /// Room for what the rules that are looked at say.
    seen: Vec<(u32, Option<i64>)>,
}

impl Alerts {
    /// The shipped rules, nothing watched.
    pub fn new() -> Self {
        Self { rules: Rules::shipped(), rules_dirty: true, watched: All::default(), dirty: Vec::new(), counted: Counted::default(), seen: Vec::new() }
    }

    /// How many are firing.
    pub fn firing(&self) -> u64 {
        self.watched.iter().filter(|(_, watched)| watched.watch.firing).count() as u64
    }
}

impl State {
    /// A 10 s window of a GPU closed on time.
    pub(crate) fn alert_window(&mut self, number: u32, pane: &Pane, emit: &mut Emit<'_>) {
        let span = Span { from_ns: pane.start_ns, to_ns: pane.start_ns + PANE_NS };
        self.watch(Subject::Gpu(number), Basis::Window, span, |state, signal| signal::of_window(signal, pane, &state.device(number).facts), emit);
    }

    /// Something about where a GPU stands changed.
    pub(crate) fn alert_gpu(&mut self, number: u32, emit: &mut Emit<'_>) {
        if !self.device(number).facts.retired {
            let now = Span::at(self.clock.live_ns);
            self.watch(Subject::Gpu(number), Basis::State, now, |state, signal| state.gpu_signal(number, signal), emit);
        }
    }

    /// Something about where a host stands changed.
    pub(crate) fn alert_host(&mut self, number: u32, emit: &mut Emit<'_>) {
        let now = Span::at(self.clock.live_ns);
        self.watch(Subject::Host(number), Basis::State, now, |state, signal| state.host_signal(number, signal), emit);
    }

    /// A GPU left: whatever was watched on it is over.
    pub(crate) fn alert_gone(&mut self, number: u32, emit: &mut Emit<'_>) {
        let rules: Vec<u32> = self.alerts.watched.on(Subject::Gpu(number)).iter().map(|&(rule, _)| rule).collect();
        for rule in rules {
            self.end_watch((Subject::Gpu(number), rule), "retired", emit);
        }
    }

    /// When the cell's signals get their next value, live clock in ns.
    pub(crate) fn minute_deadline(&self) -> i64 {
        floor(self.alerts.counted.live_ns, MINUTE_NS) + MINUTE_NS
    }

    /// A minute has passed: the cell's signals get a value.
    pub(crate) fn alert_minute(&mut self, emit: &mut Emit<'_>) {
        let (live_ns, counters) = (self.clock.live_ns, self.meta.counters);
        let counted = Counted { live_ns, samples: counters.samples, rejected: counters.rejected };
        let before = std::mem::replace(&mut self.alerts.counted, counted);
        if self.alerts.rules.iter().any(|(_, rule)| rule.signal.basis() == Basis::Minute) {
            let now = CellNow::of(&self.registry, before, counted);
            self.watch(Subject::Cell, Basis::Minute, Span::at(live_ns), |_, signal| now.value(signal), emit);
        }
        self.timers.set(self.minute_deadline(), Timer::Minute);
    }

    /// When something about a watched rule is due, live clock in ns.
    pub(crate) fn alert_deadline(&self, subject: Subject, rule: u32) -> Option<i64> {
        self.alerts.watched.get((subject, rule))?.watch.deadline(self.alerts.rules.get(rule)?)
    }

    /// What was due is: a state has lasted long enough, or a cool-down is over.
    pub(crate) fn alert_due(&mut self, subject: Subject, rule: u32, emit: &mut Emit<'_>) {
        let waits = self.alerts.rules.get(rule).is_some_and(|rule| rule.signal.basis() == Basis::State);
        if let Some(watched) = self.alerts.watched.get_mut((subject, rule)) {
            watched.watch.cooled();
            self.alerts.dirty.push((subject, rule));
            if watched.watch.is_quiet() {
                self.alerts.watched.remove((subject, rule));
                return;
            }
        }
        match subject {
            Subject::Host(number) if waits => self.alert_host(number, emit),
            Subject::Gpu(number) if waits => self.alert_gpu(number, emit),
            Subject::Host(_) | Subject::Gpu(_) | Subject::Cell => {}
        }
    }

    /// Looks at everything with the rules of one basis on one subject.
    fn watch(&mut self, subject: Subject, basis: Basis, span: Span, value: impl Fn(&State, Signal) -> Option<i64>, emit: &mut Emit<'_>) {
        let mut seen = std::mem::take(&mut self.alerts.seen);
        let known = self.alerts.watched.on(subject);
        for (number, rule) in self.alerts.rules.iter() {
            if rule.signal.basis() == basis && rule.signal.scope() == subject.scope() {
                let value = value(self, rule.signal);
                // A quiet rule that stays quiet leaves no trace.
                if value.is_some_and(|value| rule.fires_at(value)) || known.iter().any(|&(known, _)| known == number) {
                    seen.push((number, value));
                }
            }
        }
        for (rule, value) in seen.drain(..) {
            self.observe((subject, rule), span, value, emit);
        }
        self.alerts.seen = seen;
    }

    fn observe(&mut self, key: (Subject, u32), span: Span, value: Option<i64>, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        let Alerts { rules, watched, dirty, .. } = &mut self.alerts;
        let Some(rule) = rules.get(key.1) else { return };
        if watched.get(key).is_none() {
            if !value.is_some_and(|value| rule.fires_at(value)) {
                return;
            }
            if watched.len() >= WATCHED_MAX {
                let detail = format!("{WATCHED_MAX} alerts are pending, firing or cooling down: {} is not watched", rule.name);
                return self.refuse(None, None, "alerts", Refusal::new(Reason::LimitReached, detail), emit);
            }
            watched.insert(key, Watched { watch: Watch::default(), value: 0, began_at: EventTime(0), life: None });
        }
        let Some(state) = watched.get_mut(key) else { return };
        let before = state.watch;
        let moved = state.watch.observe(rule, span, value, live_ns);
        if moved != Moved::Not {
            state.value = value.unwrap_or(state.value);
        }
        if state.watch.began != before.began && state.watch.began.is_some() {
            // On the live clock an instant has no date of its own: it is the record's.
            let at_ns = if rule.signal.basis() == Basis::Window { span.from_ns } else { emit.logged_at().0 };
            state.began_at = EventTime(at_ns);
        }
        if state.watch == before {
            return;
        }
        dirty.push(key);
        let deadline = state.watch.deadline(rule);
        let quiet = state.watch.is_quiet();
        match moved {
            Moved::Not => {}
            Moved::Fires => {
                state.life = Some((emit.next_id(), emit.logged_at()));
                self.say_alert(key, AlertState::Firing, "limit_passed", emit);
            }
            Moved::Resolves => self.end_life(key, "cleared", emit),
        }
        if let Some(at_ns) = deadline {
            self.timers.set(at_ns, Timer::Alert(key.0, key.1));
        }
        if quiet {
            self.alerts.watched.remove(key);
        }
    }

    /// Ends a watch for another reason than its signal.
    fn end_watch(&mut self, key: (Subject, u32), cause: &str, emit: &mut Emit<'_>) {
        self.end_life(key, cause, emit);
        self.alerts.watched.remove(key);
        self.alerts.dirty.push(key);
    }

    /// Says that an alert is over, if one fires.
    fn end_life(&mut self, key: (Subject, u32), cause: &str, emit: &mut Emit<'_>) {
        self.say_alert(key, AlertState::Resolved, cause, emit);
        if let Some(watched) = self.alerts.watched.get_mut(key) {
            watched.life = None;
        }
    }

    /// Ends everything that is watched under a rule.
    pub(crate) fn end_rule(&mut self, rule: u32, cause: &str, emit: &mut Emit<'_>) {
        let keys: Vec<(Subject, u32)> = self.alerts.watched.keys().filter(|key| key.1 == rule).collect();
        for key in keys {
            self.end_watch(key, cause, emit);
        }
    }

    /// A new rule about states looks at how things stand.
    pub(crate) fn look_around(&mut self, rule: &Rule, emit: &mut Emit<'_>) {
        if rule.signal.basis() != Basis::State {
            return;
        }
        match rule.signal.scope() {
            Scope::Gpu => (0..self.registry.devices.len() as u32).for_each(|number| self.alert_gpu(number, emit)),
            Scope::Host => (0..self.registry.hosts.len() as u32).for_each(|number| self.alert_host(number, emit)),
            Scope::Cell => {}
        }
    }

    fn gpu_signal(&self, number: u32, signal: Signal) -> Option<i64> {
        let facts = &self.device(number).facts;
        // A silent host speaks for its GPUs.
        let host_heard = self.registry.hosts[facts.host as usize].silence == Silence::Heard;
        signal::of_gpu(signal, facts, host_heard)
    }

    fn host_signal(&self, number: u32, signal: Signal) -> Option<i64> {
        signal::of_host(signal, &self.registry.hosts[number as usize])
    }

    fn device(&self, number: u32) -> &crate::registry::Device {
        &self.registry.devices[number as usize]
    }

    /// A row and an event about an alert that has a life.
    fn say_alert(&self, (subject, number): (Subject, u32), state: AlertState, cause: &str, emit: &mut Emit<'_>) {
        let (Some(rule), Some(watched)) = (self.alerts.rules.get(number), self.alerts.watched.get((subject, number))) else { return };
        let Some((alert_id, fired_at)) = &watched.life else { return };
        let (host, gpu) = match subject {
            Subject::Cell => (None, None),
            Subject::Host(host) => (Some(host), None),
            Subject::Gpu(gpu) => (Some(self.device(gpu).facts.host), Some(&self.device(gpu).facts)),
        };
        let host = host.map(|host| self.registry.hosts[host as usize].id.clone());
        let whom = gpu.map(|facts| facts.gpu.uuid.as_str()).or_else(|| host.as_ref().map(|host| host.as_str())).unwrap_or("cell");
        let dedup_key = format!("{}/{whom}", rule.name);
        emit.row(Row::Alert(Box::new(AlertRow {
            alert_id: alert_id.clone(),
            dedup_key: dedup_key.clone(),
            rule: rule.name.clone(),
            severity: rule.severity,
            state,
            cause: cause.to_owned(),
            scope: subject.scope(),
            device_key: gpu.map(|facts| facts.key),
            host: host.clone(),
            signal: rule.signal,
            value: watched.value,
            limit: rule.limit,
            began_at: watched.began_at,
            fired_at: *fired_at,
            resolved_at: (state == AlertState::Resolved).then_some(emit.logged_at()),
            summary: rule.summary.clone(),
        })));
        let payload = AlertChanged {
            alert_id: alert_id.clone(),
            dedup_key,
            rule: rule.name.clone(),
            severity: rule.severity,
            state,
            cause: cause.to_owned(),
            scope: subject.scope(),
            host,
            device_uuid: gpu.map(|facts| facts.gpu.uuid.clone()),
            device_key: gpu.map(|facts| facts.key),
            signal: rule.signal,
            value: watched.value,
            limit: rule.limit,
            began_at: watched.began_at.rfc3339(),
            summary: rule.summary.clone(),
        };
        emit.out(&OutSubject::Alert, Payload::Alert(Box::new(payload)));
    }
}
