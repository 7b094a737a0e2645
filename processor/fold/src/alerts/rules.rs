//! The rules in force: shipped ones until a control record creates, replaces or removes one by its name. Bounded in number.

use std::collections::BTreeMap;

use plimsoll_schemas::alert::{self, Rule};
use plimsoll_schemas::policy::{Policy, SetBy};
use plimsoll_schemas::reason::Reason;
use serde::{Deserialize, Serialize};

use crate::State;
use crate::emit::Emit;

/// Most rules.
const RULES_MAX: usize = 128;

/// Rules by number; a number is never used twice, so what is watched under one can be told from what is watched under its successor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Rules {
    by_number: BTreeMap<u32, Rule>,
    last: u32,
}

impl Rules {
    /// The shipped rules.
    pub fn shipped() -> Self {
        let mut rules = Self::default();
        alert::defaults().into_iter().for_each(|rule| rules.add(rule));
        rules
    }

    /// The rules in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Rule)> {
        self.by_number.iter().map(|(&number, rule)| (number, rule))
    }

    pub fn get(&self, number: u32) -> Option<&Rule> {
        self.by_number.get(&number)
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.iter().find(|(_, rule)| rule.name == name).map(|(number, _)| number)
    }

    fn add(&mut self, rule: Rule) {
        self.last += 1;
        self.by_number.insert(self.last, rule);
    }
}

impl State {
    /// Creates a rule, or replaces the one of that name: what that has firing is resolved.
    pub(crate) fn alert_rule(&mut self, rule: &Rule, emit: &mut Emit<'_>) {
        if let Err(detail) = rule.check() {
            return self.refuse_control(Reason::InvalidPolicy, detail, emit);
        }
        let old = self.alerts.rules.find(&rule.name);
        if old.is_none() && self.alerts.rules.by_number.len() >= RULES_MAX {
            return self.refuse_control(Reason::LimitReached, format!("there are {RULES_MAX} alert rules: remove one before {}", rule.name), emit);
        }
        if !self.policies.set(Policy::AlertRule(rule.clone()), &rule.name, None, SetBy::Operator, emit) {
            return;
        }
        if let Some(old) = old {
            self.end_rule(old, "rule_changed", emit);
            self.alerts.rules.by_number.remove(&old);
        }
        self.alerts.rules.add(rule.clone());
        self.alerts.rules_dirty = true;
        self.look_around(rule, emit);
    }

    /// Removes a rule; what it has firing is resolved.
    pub(crate) fn remove_alert_rule(&mut self, name: &str, emit: &mut Emit<'_>) {
        let Some(number) = self.alerts.rules.find(name) else {
            let shown: String = name.chars().take(alert::NAME_BYTES_MAX).collect();
            return self.refuse_control(Reason::UnknownPolicy, format!("no alert rule {shown:?}"), emit);
        };
        self.end_rule(number, "rule_removed", emit);
        if let Some(rule) = self.alerts.rules.by_number.remove(&number) {
            self.policies.end("alert_rule", &rule.name, emit);
        }
        self.alerts.rules_dirty = true;
    }
}
