//! What is in force, version by version: the state behind `policies`. Every change is a row and an event; what it replaces is closed.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::alert;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::{Payload, PolicyChanged};
use plimsoll_schemas::policy::{Placing, Policy, SetBy};
use plimsoll_schemas::row::{PolicyRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::tables::Tables;
use plimsoll_schemas::time::LogTime;
use serde::{Deserialize, Serialize};

use crate::emit::Emit;
use crate::placement::cell::Hashed;
use crate::placing::{DEFAULT, VERSION};
use crate::timers::Timer;
use crate::{LOGIC, State};

/// Name of what there is only one of.
pub(crate) const FOLD: &str = "fold";
/// Name of what placement has learned.
pub(crate) const PLACEMENT: &str = "placement";

/// Where that stands: its kind and its name.
const TABLES_KEY: &str = "tables/placement";

/// What is in force under a kind and a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InForce {
    pub valid_from: LogTime,
    pub version: u32,
    pub set_by: SetBy,
    #[serde(with = "crate::as_json")]
    pub policy: Policy,
}

/// Everything that is in force, by `<kind>/<name>`. Bounded by what it is about: settings, rules, hosts, GPUs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policies {
    pub by_key: BTreeMap<String, InForce>,
    /// Changed since the last commit.
    pub dirty: BTreeSet<String>,
}

fn key(kind: &str, name: &str) -> String {
    format!("{kind}/{name}")
}

impl Policies {
    /// Puts something into force. `version` is its own; absent = counted from 1. Returns `false`, and nothing happens,
    /// if exactly that is in force.
    pub fn set(&mut self, policy: Policy, name: &str, version: Option<u32>, set_by: SetBy, emit: &mut Emit<'_>) -> bool {
        let key = key(policy.kind(), name);
        let old = self.by_key.get(&key);
        if old.is_some_and(|old| old.policy == policy && version.is_none_or(|version| version == old.version)) {
            return false;
        }
        if let Some(old) = old {
            close(old, name, emit);
        }
        let version = version.unwrap_or_else(|| old.map_or(1, |old| old.version.saturating_add(1)));
        let new = InForce { valid_from: emit.logged_at(), version, set_by, policy };
        emit.row(row(&new, name, None));
        if set_by != SetBy::Default {
            say(&new, name, true, emit);
        }
        self.by_key.insert(key.clone(), new);
        self.dirty.insert(key);
        true
    }

    /// How many thousandths of GPUs a tenant may hold, if that is bounded.
    pub fn quota(&self, tenant: &TenantId) -> Option<u64> {
        match &self.by_key.get(&key(Policy::QUOTA, tenant.as_str()))?.policy {
            Policy::Quota(quota) => Some(quota.gpu_milli_max),
            Policy::Settings(_)
            | Policy::Placement(_)
            | Policy::AlertRule(_)
            | Policy::Logic
            | Policy::Enrolment
            | Policy::Cordon(_)
            | Policy::Pace(_)
            | Policy::Tables(_) => None,
        }
    }

    /// Ends what is in force under a kind and name, if anything is.
    pub fn end(&mut self, kind: &str, name: &str, emit: &mut Emit<'_>) {
        let key = key(kind, name);
        if let Some(old) = self.by_key.remove(&key) {
            emit.row(row(&old, name, Some(emit.logged_at())));
            say(&InForce { set_by: SetBy::Operator, ..old }, name, false, emit);
            self.dirty.insert(key);
        }
    }
}

/// Ends the version that stands in `policies`, unless it began at this very instant and is about to be replaced.
fn close(old: &InForce, name: &str, emit: &mut Emit<'_>) {
    if old.valid_from < emit.logged_at() {
        emit.row(row(old, name, Some(emit.logged_at())));
    }
}

fn row(what: &InForce, name: &str, valid_to: Option<LogTime>) -> Row {
    Row::Policy(Box::new(PolicyRow {
        kind: what.policy.kind().to_owned(),
        name: name.to_owned(),
        version: what.version,
        valid_from: what.valid_from,
        valid_to,
        params: what.policy.params(),
        set_by: what.set_by,
    }))
}

fn say(what: &InForce, name: &str, in_force: bool, emit: &mut Emit<'_>) {
    let payload = PolicyChanged { policy: what.policy.clone(), name: name.to_owned(), version: what.version, in_force, set_by: what.set_by };
    emit.out(&OutSubject::Policy, Payload::Policy(Box::new(payload)));
}

impl State {
    /// The first record that is folded: what holds without anybody's word stands in `policies` from here on.
    pub(crate) fn introduce(&mut self, emit: &mut Emit<'_>) {
        self.timers.set(self.minute_deadline(), Timer::Minute);
        let policies = &mut self.policies;
        policies.set(Policy::Settings(self.meta.settings), FOLD, None, SetBy::Default, emit);
        policies.set(Policy::Placement(Placing::default()), DEFAULT.code(), Some(VERSION), SetBy::Default, emit);
        policies.set(Policy::Logic, FOLD, Some(LOGIC), SetBy::Default, emit);
        for rule in alert::defaults() {
            let name = rule.name.clone();
            policies.set(Policy::AlertRule(rule), &name, None, SetBy::Default, emit);
        }
    }

    /// What placement has learned; nothing while no tables are in force.
    pub fn tables(&self) -> Option<&Tables> {
        self.hashed_tables().map(|tables| tables.of)
    }

    /// The same with its hash.
    pub(crate) fn hashed_tables(&self) -> Option<Hashed<'_, Tables>> {
        match &self.policies.by_key.get(TABLES_KEY)?.policy {
            // Checked when they came into force: that is their hash.
            Policy::Tables(learned) => Some(Hashed { of: &learned.tables, hash: u64::from_str_radix(&learned.hash, 16).unwrap_or_default() }),
            Policy::Settings(_)
            | Policy::Placement(_)
            | Policy::AlertRule(_)
            | Policy::Logic
            | Policy::Enrolment
            | Policy::Cordon(_)
            | Policy::Quota(_)
            | Policy::Pace(_) => None,
        }
    }
}
