//! Whether what is leased is used as it was granted. A lease that is not used at all, or whose GPU holds more memory than was granted on it,
//! is said on OUT; nothing else follows from it.
//!
//! Judged by whole minutes in which a GPU was leased all the time and watched: one that says nothing changes nothing.

use plimsoll_schemas::row::Tier;
use serde::{Deserialize, Serialize};

use crate::State;
use crate::emit::Emit;
use crate::window::Pane;

/// What was last said of the leases on a GPU, and for how many minutes in a row it has not been used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct LeaseUse {
    unused_minutes: u32,
    said: Said,
}

/// How leases on a GPU are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Said {
    #[default]
    AsGranted,
    Unused,
    Overused,
}

impl Said {
    const fn cause(self) -> &'static str {
        match self {
            Self::AsGranted => "used_as_granted",
            Self::Unused => "unused",
            Self::Overused => "overused",
        }
    }
}

impl State {
    /// Judges the leases on a GPU by a minute that has closed.
    pub(crate) fn judge_use(&mut self, number: u32, minute: &Pane, emit: &mut Emit<'_>) {
        let minute_ms = Tier::Minute.seconds() * 1_000;
        let (settings, facts) = (self.meta.settings, &self.registry.devices[number as usize].facts);
        let before = facts.lease_use;
        if facts.reservations.is_empty() {
            if before != LeaseUse::default() {
                self.set_use(number, LeaseUse::default());
            }
            return;
        }
        if minute.state.allocated_ms < minute_ms || minute.stats.covered_ms * 2 < minute_ms {
            return;
        }
        let granted = facts.reservations.iter().map(|r| r.vram_bytes).fold(0, u64::saturating_add);
        let at_most = |limit: u64, bytes: Option<i64>| bytes.is_some_and(|bytes| u64::try_from(bytes).is_ok_and(|bytes| bytes <= limit));
        let unused =
            minute.state.allocated_idle_ms >= minute.stats.covered_ms && at_most(settings.free_memory_bytes_max, minute.stats.memory_used_bytes_max);
        let overused = granted > 0 && minute.stats.memory_used_bytes_min.is_some() && !at_most(granted, minute.stats.memory_used_bytes_min);
        let unused_minutes = if unused { before.unused_minutes.saturating_add(1) } else { 0 };
        let said = if overused {
            Said::Overused
        } else if unused && (before.said == Said::Unused || u64::from(unused_minutes) * minute_ms.unsigned_abs() >= settings.lease_unused_ms) {
            Said::Unused
        } else {
            Said::AsGranted
        };
        let now = LeaseUse { unused_minutes, said };
        if now != before {
            self.set_use(number, now);
        }
        if said != before.said {
            let fences: Vec<u64> = self.registry.devices[number as usize].facts.reservations.iter().map(|r| r.fence).collect();
            for lease in fences.iter().filter_map(|fence| self.leases.by_fence.get(fence)) {
                self.say_lease(lease, said.cause(), emit);
            }
        }
    }

    fn set_use(&mut self, number: u32, lease_use: LeaseUse) {
        let device = self.registry.device_mut(number);
        device.facts.lease_use = lease_use;
        device.facts_dirty = true;
    }
}
