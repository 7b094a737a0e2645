//! A pace: at most one every interval. A caller reserves the next free slot, or is refused without moving the clock; both are one step, so
//! a hundred callers at once get a hundred slots.

/// When the next one may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    interval_ms: u64,
    /// Start of the next free slot, ms.
    next_ms: u64,
}

impl Pace {
    /// One every `interval_ms`; `last_ms` is when the last one went, absent = never.
    pub fn new(interval_ms: u64, last_ms: Option<u64>) -> Self {
        Self { interval_ms, next_ms: last_ms.map_or(0, |last_ms| last_ms.saturating_add(interval_ms)) }
    }

    /// Reserves a slot for a caller at `now_ms` and returns its start, ms: now, or after all those reserved before.
    pub fn reserve(&mut self, now_ms: u64) -> u64 {
        let slot_ms = now_ms.max(self.next_ms);
        self.next_ms = slot_ms.saturating_add(self.interval_ms);
        slot_ms
    }

    /// Takes the slot of `now_ms` if it is free; a refusal changes nothing.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let free = now_ms >= self.next_ms;
        if free {
            self.reserve(now_ms);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_at_once_are_spread_and_a_refusal_moves_nothing() {
        let mut pace = Pace::new(50, Some(0));
        assert_eq!([0, 0, 0, 1_000].map(|now| pace.reserve(now)), [50, 100, 150, 1_000]);
        let mut pace = Pace::new(100, None);
        assert_eq!([0, 0, 99, 100].map(|now| pace.take(now)), [true, false, false, true]);
    }
}
