//! Slots: at most one every interval. A caller reserves the next free slot, or is refused without moving the clock; both are one step, so
//! a hundred callers at once get a hundred slots.

use serde::{Deserialize, Serialize};

/// Which slots are taken. Instants and intervals are of one clock and in one unit: milliseconds, or nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    interval: u64,
    /// Start of the last slot that was taken.
    last: Option<u64>,
}

impl Slots {
    /// One every `interval`; `last` is when the last one went, absent = never.
    pub const fn new(interval: u64, last: Option<u64>) -> Self {
        Self { interval, last }
    }

    /// One every `interval` from here on.
    pub fn set_interval(&mut self, interval: u64) {
        self.interval = interval;
    }

    /// Start of the slot that a caller at `now` would get: now, or after all those taken before.
    pub fn next(&self, now: u64) -> u64 {
        self.last.map_or(now, |last| now.max(last.saturating_add(self.interval)))
    }

    /// Takes that slot.
    pub fn reserve(&mut self, now: u64) -> u64 {
        let slot = self.next(now);
        self.last = Some(slot);
        slot
    }

    /// Takes the slot of `now` if it is free; a refusal changes nothing.
    pub fn take(&mut self, now: u64) -> bool {
        let free = self.next(now) == now;
        if free {
            self.reserve(now);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_at_once_are_spread_and_a_refusal_moves_nothing() {
        let mut slots = Slots::new(50, Some(0));
        assert_eq!([0, 0, 0, 1_000].map(|now| slots.reserve(now)), [50, 100, 150, 1_000]);
        let mut slots = Slots::new(100, None);
        assert_eq!([0, 0, 99, 100].map(|now| slots.take(now)), [true, false, false, true]);
    }

    #[test]
    fn a_new_interval_counts_from_the_last_slot_taken() {
        let mut slots = Slots::new(3_600_000, None);
        slots.reserve(0);
        slots.set_interval(50);
        assert_eq!((slots.next(10), slots.next(60)), (50, 60));
        slots.set_interval(0);
        assert_eq!(slots.next(10), 10);
    }
}
