//! Deadlines on the live clock. A timer may fire early: whoever it wakes works out the true deadline and waits again if it is later.
//!
//! Early firing is cheap and keeps the hot path free of re-scheduling. It leaves no trace: a timer acts only when its true deadline
//! is the one it was queued under, and whatever waits is queued at its true deadline or before. So what acts next is always the earliest
//! true deadline, in a state rebuilt with exact deadlines as in one that was never interrupted. Whoever makes a deadline earlier sets it anew.

use std::collections::BTreeSet;

use crate::alerts::Subject;

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A host or one of its GPUs goes silent.
    Silence(u32),
    /// A lease runs out, by its fence.
    Lease(u64),
    /// A request has waited as long as it would, by its number.
    Waiting(u64),
    /// Late parts of a GPU's windows close.
    Late(u32),
    /// A gap of a host is to be opened, asked for or given up.
    Gap(u32),
    /// An alert rule on a subject: a state has lasted long enough, or a cool-down is over.
    Alert(Subject, u32),
    /// The cell's signals get a value.
    Minute,
    /// The load is looked at, for the paces that it may pause.
    Load,
}

/// All that waits, by (live clock in ns, what).
#[derive(Debug, Clone, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(i64, Timer)>,
}

impl Timers {
    /// Wakes `timer` when the live clock reaches `at_ns`.
    pub fn set(&mut self, at_ns: i64, timer: Timer) {
        self.queue.insert((at_ns, timer));
    }

    /// Takes the earliest timer due at `live_ns`.
    pub fn pop(&mut self, live_ns: i64) -> Option<(i64, Timer)> {
        let first = *self.queue.first()?;
        if first.0 > live_ns {
            return None;
        }
        self.queue.pop_first()
    }
}
