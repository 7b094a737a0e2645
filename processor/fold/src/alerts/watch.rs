//! One rule on one subject: quiet, pending, firing, cooling down. Values and instants in, changes out; no state but its own.
//!
//! How long a limit is passed is told on the clock of the signal (that of the windows, or the live clock). A cool-down is about how often
//! people are told, so it always runs on the live clock.

use plimsoll_schemas::alert::{Basis, Rule};
use plimsoll_schemas::time::NS_PER_S;
use serde::{Deserialize, Serialize};

/// The time that a value speaks for, on the signal's clock, ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub from_ns: i64,
    pub to_ns: i64,
}

impl Span {
    /// One instant.
    pub fn at(ns: i64) -> Self {
        Self { from_ns: ns, to_ns: ns }
    }
}

/// Where one rule stands on one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Watch {
    /// The first value of an unbroken row beyond the limit.
    pub began: Option<Span>,
    /// End of the last value of that row, ns.
    until_ns: i64,
    pub firing: bool,
    /// Live clock until which it stays quiet, ns.
    cooling_ns: Option<i64>,
}

/// What a value changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Nothing that anybody is told.
    Not,
    /// It fires.
    Fires,
    /// It is over.
    Resolves,
}

impl Watch {
    /// Takes the next value. No value: what is pending begins anew, what fires goes on firing.
    pub fn observe(&mut self, rule: &Rule, span: Span, value: Option<i64>, live_ns: i64) -> Moved {
        if self.firing {
            return if value.is_some_and(|value| rule.clears_at(value)) { self.resolve(rule, live_ns) } else { Moved::Not };
        }
        if self.cooling_ns.is_some_and(|until_ns| live_ns >= until_ns) {
            self.cooling_ns = None;
        }
        if !value.is_some_and(|value| rule.fires_at(value)) {
            self.began = None;
            return Moved::Not;
        }
        // A window that is missing in between breaks the row; on the live clock every state holds until the next.
        let unbroken = rule.signal.basis() != Basis::Window || self.until_ns >= span.from_ns;
        let began = *self.began.filter(|_| unbroken).get_or_insert(span);
        self.began = Some(began);
        self.until_ns = span.to_ns;
        if span.to_ns.saturating_sub(began.from_ns) < i64::from(rule.for_s) * NS_PER_S || self.cooling_ns.is_some() {
            return Moved::Not;
        }
        self.firing = true;
        Moved::Fires
    }

    fn resolve(&mut self, rule: &Rule, live_ns: i64) -> Moved {
        *self = Self::default();
        if rule.cooldown_s > 0 {
            self.cooling_ns = Some(live_ns.saturating_add(i64::from(rule.cooldown_s) * NS_PER_S));
        }
        Moved::Resolves
    }

    /// The cool-down is over.
    pub fn cooled(&mut self) {
        self.cooling_ns = None;
    }

    /// Whether nothing is known about it that a new one would not know.
    pub fn is_quiet(&self) -> bool {
        !self.firing && self.began.is_none() && self.cooling_ns.is_none()
    }

    /// When it must be looked at although no value comes: a state has lasted long enough, or a cool-down ends; live clock, ns.
    pub fn deadline(&self, rule: &Rule) -> Option<i64> {
        match self.began.filter(|_| rule.signal.basis() == Basis::State && !self.firing) {
            Some(began) => {
                let lasted_ns = began.from_ns.saturating_add(i64::from(rule.for_s) * NS_PER_S);
                Some(self.cooling_ns.map_or(lasted_ns, |cooled_ns| cooled_ns.max(lasted_ns)))
            }
            None => self.cooling_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::alert::{Limit, Severity, Signal};

    fn rule(signal: Signal, for_s: u32, cooldown_s: u32) -> Rule {
        let name = "hot".to_owned();
        Rule { name, severity: Severity::Warning, signal, limit: Limit::Above(90), clear: Some(85), for_s, cooldown_s, summary: None }
    }

    /// Windows of 10 s one after the other, the live clock a second behind their end; `_` in `expected` = nothing happens.
    fn windows(rule: &Rule, values: &[Option<i64>], expected: &str) {
        let mut watch = Watch::default();
        let told: String = (0i64..)
            .zip(values)
            .map(|(n, &value)| {
                let span = Span { from_ns: n * 10 * NS_PER_S, to_ns: (n + 1) * 10 * NS_PER_S };
                match watch.observe(rule, span, value, span.to_ns + NS_PER_S) {
                    Moved::Not => '_',
                    Moved::Fires => 'F',
                    Moved::Resolves => 'R',
                }
            })
            .collect();
        assert_eq!(told, expected, "{values:?}");
    }

    #[test]
    fn it_fires_once_the_limit_was_passed_long_enough_and_resolves_at_the_clear_value() {
        let hot = rule(Signal::TemperatureC, 30, 0);
        let some = |values: &[i64]| values.iter().copied().map(Some).collect::<Vec<_>>();
        windows(&hot, &some(&[91, 91, 91, 91, 90, 86, 85, 85]), "__F___R_");
        windows(&hot, &some(&[91, 91, 90, 91, 91, 91]), "_____F");
        windows(&rule(Signal::TemperatureC, 0, 0), &some(&[90, 91, 85, 91]), "_FRF");
    }

    #[test]
    fn without_a_value_what_is_pending_begins_anew_and_what_fires_goes_on() {
        let hot = rule(Signal::TemperatureC, 30, 0);
        windows(&hot, &[Some(91), Some(91), None, Some(91), Some(91), Some(91)], "_____F");
        windows(&hot, &[Some(91), Some(91), Some(91), None, None, Some(80)], "__F__R");
        windows(&hot, &[None, None], "__");
    }

    #[test]
    fn a_window_that_is_missing_in_between_breaks_the_row() {
        let hot = rule(Signal::TemperatureC, 20, 0);
        let mut watch = Watch::default();
        let mut at = |second: i64| watch.observe(&hot, Span { from_ns: second * NS_PER_S, to_ns: (second + 10) * NS_PER_S }, Some(95), 0);
        assert_eq!([at(0), at(20), at(30)], [Moved::Not, Moved::Not, Moved::Fires]);
    }

    #[test]
    fn a_cool_down_keeps_it_quiet_and_then_it_fires_if_the_limit_is_still_passed() {
        let some = |values: &[i64]| values.iter().copied().map(Some).collect::<Vec<_>>();
        windows(&rule(Signal::TemperatureC, 0, 30), &some(&[95, 80, 95, 95, 95, 80, 95]), "FR__FR_");
    }

    #[test]
    fn a_state_is_due_when_it_has_lasted_and_a_cool_down_when_it_ends() {
        let lost = Rule { limit: Limit::Above(1), clear: None, ..rule(Signal::HostSilence, 60, 300) };
        let mut watch = Watch::default();
        let at = |seconds: i64| Span::at(seconds * NS_PER_S);
        let mut see = |seconds: i64, value| {
            let moved = watch.observe(&lost, at(seconds), Some(value), seconds * NS_PER_S);
            (moved, watch.deadline(&lost).map(|ns| ns / NS_PER_S))
        };
        assert_eq!(see(100, 2), (Moved::Not, Some(160)));
        assert_eq!(see(160, 2), (Moved::Fires, None));
        assert_eq!(see(170, 0), (Moved::Resolves, Some(470)));
        assert_eq!(see(440, 2), (Moved::Not, Some(500)), "both the cool-down and the minute must be over");
        assert_eq!(see(460, 0), (Moved::Not, Some(470)));
        watch.cooled();
        assert!(watch.is_quiet());
    }
}
