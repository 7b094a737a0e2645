//! Time as the log tells it: the log's own time, and the live clock on which every time-out runs.
//!
//! Live clock = sum of clamp(step of log time, 0, 2 s): an outage of the broker, or a broker whose clock jumps a year, expires nothing.

use plimsoll_schemas::time::{LogTime, NS_PER_S};
use serde::{Deserialize, Serialize};

use crate::window::PANE_NS;

/// Most that one record moves the live clock, ns.
const LIVE_STEP_NS_MAX: i64 = 2 * NS_PER_S;
/// A step of log time beyond this is a stall: nobody watched meanwhile, so no state time is credited for it, ns.
const STALL_NS: i64 = 60 * NS_PER_S;

/// The clocks of one cell.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Clock {
    /// Log time of the newest record; never goes back.
    pub logged_at: LogTime,
    /// The live clock, ns since the log began.
    pub live_ns: i64,
    /// Window ends that log time has passed, each with the live clock at that moment; those older than the delay are folded into
    /// `forced_end_ns`. At most one per pane length of live clock, so a handful.
    passed: Vec<(i64, i64)>,
    /// Every window that ends here or before must be closed.
    pub forced_end_ns: i64,
}

/// What one step of time was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Log time went on (or stood still).
    On,
    /// Log time jumped from `before`: what happened between is unknown.
    Stalled {
        /// Log time before the jump.
        before: LogTime,
    },
}

impl Clock {
    /// Moves to the log time of the next record. A window closes `close_delay_ns` (live clock) after log time has passed its end,
    /// whatever the watermark says.
    pub fn advance(&mut self, logged_at: LogTime, close_delay_ns: i64) -> Moved {
        let before = self.logged_at;
        if before == LogTime::default() {
            self.logged_at = logged_at;
            self.forced_end_ns = floor(logged_at.0, PANE_NS);
            return Moved::On;
        }
        let step = logged_at.0.saturating_sub(before.0);
        if step <= 0 {
            return Moved::On;
        }
        self.live_ns += step.min(LIVE_STEP_NS_MAX);
        self.logged_at = logged_at;
        let end = floor(logged_at.0, PANE_NS);
        if end > floor(before.0, PANE_NS) {
            self.passed.push((end, self.live_ns));
        }
        let due = self.passed.iter().take_while(|&&(_, at)| self.live_ns - at >= close_delay_ns).count();
        if let Some((end, _)) = self.passed.drain(..due).next_back() {
            self.forced_end_ns = end;
        }
        if step > STALL_NS { Moved::Stalled { before } } else { Moved::On }
    }
}

/// The greatest multiple of `step` that is not above `value`.
pub(crate) fn floor(value: i64, step: i64) -> i64 {
    value.div_euclid(step).saturating_mul(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock_after(seconds: &[i64]) -> Clock {
        let mut clock = Clock::default();
        for &s in seconds {
            clock.advance(LogTime(s * NS_PER_S), 60 * NS_PER_S);
        }
        clock
    }

    #[test]
    fn a_jump_of_a_year_moves_the_live_clock_by_two_seconds() {
        let year = 365 * 86_400;
        assert_eq!(clock_after(&[1_000, 1_001, 1_001 + year]).live_ns, 3 * NS_PER_S);
        assert_eq!(clock_after(&[1_000, 999, 1_000]).live_ns, 0);
    }

    #[test]
    fn a_window_is_forced_shut_a_minute_of_live_clock_after_log_time_passed_its_end() {
        let seconds: Vec<i64> = (1_000..=1_070).collect();
        assert_eq!(clock_after(&seconds).forced_end_ns, 1_010 * NS_PER_S);
        assert_eq!(clock_after(&seconds[..70]).forced_end_ns, 1_000 * NS_PER_S);
    }

    #[test]
    fn a_long_step_is_a_stall() {
        let mut clock = clock_after(&[1_000]);
        assert_eq!(clock.advance(LogTime(1_060 * NS_PER_S), 0), Moved::On);
        assert_eq!(clock.advance(LogTime(1_121 * NS_PER_S), 0), Moved::Stalled { before: LogTime(1_060 * NS_PER_S) });
    }
}
