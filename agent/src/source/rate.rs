//! Steady ticks: the deadline of tick n is start + n × interval, so no error adds up; what was missed is skipped, not caught up.

use crate::clock::{Stop, boot_ns};

/// A clock beat on CLOCK_BOOTTIME.
#[derive(Debug)]
pub struct Beat {
    start_ns: u64,
    interval_ns: u64,
    next: u64,
}

impl Beat {
    /// Beats every `interval_ms` from now on, the first one at once.
    pub fn new(interval_ms: u32) -> Self {
        Self { start_ns: boot_ns(), interval_ns: u64::from(interval_ms.max(1)) * 1_000_000, next: 0 }
    }

    /// Waits for the next beat; its number from 0, or nothing when asked to stop.
    pub fn next(&mut self, stop: &Stop) -> Option<u64> {
        let passed = boot_ns().saturating_sub(self.start_ns) / self.interval_ns;
        // A beat that is already over by more than an interval is not worth a reading of old news.
        let number = self.next.max(passed);
        self.next = number + 1;
        if stop.wait_until(self.start_ns + number * self.interval_ns) { None } else { Some(number) }
    }
}
