//! How far a host's clock is from the log's, from the delays of its live frames: a frame is logged after it was taken, so the least delay is
//! the skew plus the shortest way, and nothing but the host's own clock can make it negative.
//!
//! The least delay of every 10 s of live clock is kept, the newest five of them. One frame with a wild time spoils one of the five: the
//! median of them is shown; and only what all of them agree on is forgiven when freshness is judged.

use plimsoll_schemas::time::{LogTime, NS_PER_MS, NS_PER_S};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::emit::Emit;

/// How long delays are collected for one least delay, live clock, ns.
const SPAN_NS: i64 = 10 * NS_PER_S;
/// Least delays kept.
const KEPT_MAX: usize = 5;
/// With fewer least delays than this nothing is said.
const KEPT_MIN: usize = 3;
/// A skew that has moved by this much is published anew, ms.
const MOVED_MS: i64 = 250;
/// A clock that is further off than this is said on OUT, ms.
const WRONG_MS: i64 = 5_000;

/// The delays of one host's live frames.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Skew {
    /// Live clock when the present span began, ns.
    since_ns: i64,
    /// Its least delay so far, ns.
    least_ns: Option<i64>,
    /// Least delays of the spans before, oldest first, ns.
    kept: Vec<i64>,
    /// What stands in `hosts`, ms ahead of the log.
    pub published_ms: Option<i64>,
}

impl Skew {
    /// Notes the delay of a live frame; returns whether a span ended with it, so that the estimate may have moved.
    fn note(&mut self, live_ns: i64, delay_ns: i64) -> bool {
        let ended = self.least_ns.is_some() && live_ns - self.since_ns >= SPAN_NS;
        if ended && let Some(least_ns) = self.least_ns.take() {
            if self.kept.len() >= KEPT_MAX {
                self.kept.remove(0);
            }
            self.kept.push(least_ns);
        }
        if self.least_ns.is_none() {
            self.since_ns = live_ns;
        }
        self.least_ns = Some(self.least_ns.map_or(delay_ns, |least_ns| least_ns.min(delay_ns)));
        ended
    }

    /// How far the host's clock is ahead of the log's, ms; negative = behind, absent = not known yet.
    fn ahead_ms(&self) -> Option<i64> {
        let mut sorted = self.kept.clone();
        sorted.sort_unstable();
        (sorted.len() >= KEPT_MIN).then(|| -(sorted[sorted.len() / 2] / NS_PER_MS))
    }

    /// The part of a frame's delay that is the host's clock and not the frame's age, ns.
    pub fn forgiven_ns(&self) -> i64 {
        if self.kept.len() < KEPT_MIN { 0 } else { self.kept.iter().copied().min().unwrap_or(0) }
    }
}

impl State {
    /// Notes when the newest sample of a live frame was taken by the host's clock, whether that can be believed or not.
    pub(crate) fn note_skew(&mut self, number: u32, newest_ns: i64, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        let delay_ns = emit.logged_at().0.saturating_sub(newest_ns);
        let host = self.registry.host_mut(number);
        if !host.skew.note(live_ns, delay_ns) {
            return;
        }
        let (before, Some(now_ms)) = (host.skew.published_ms, host.skew.ahead_ms()) else { return };
        if before.is_some_and(|before_ms| now_ms.saturating_sub(before_ms).saturating_abs() < MOVED_MS) {
            return;
        }
        self.close_host_version(number, emit);
        self.registry.host_mut(number).skew.published_ms = Some(now_ms);
        let wrong = |ms: i64| !(-WRONG_MS..=WRONG_MS).contains(&ms);
        match (before.is_some_and(wrong), wrong(now_ms)) {
            (false, true) => self.publish_host(number, "clock_skew", emit),
            (true, false) => self.publish_host(number, "clock_right", emit),
            (false, false) | (true, true) => self.open_host_version(number, emit),
        }
    }
}

/// Whether a frame is a sign of life: young enough once the host's clock is forgiven.
pub(crate) fn is_fresh(newest_ns: i64, logged_at: LogTime, skew: &Skew, stale_ns: i64) -> bool {
    logged_at.0.saturating_sub(newest_ns).saturating_sub(skew.forgiven_ns()) < stale_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The estimates after frames of (second, delay in ms).
    fn after(frames: &[(i64, i64)]) -> (Option<i64>, i64) {
        let mut skew = Skew::default();
        for &(second, delay_ms) in frames {
            skew.note(second * NS_PER_S, delay_ms * NS_PER_MS);
        }
        (skew.ahead_ms(), skew.forgiven_ns() / NS_PER_MS)
    }

    fn steady(seconds: std::ops::Range<i64>, delay_ms: i64) -> Vec<(i64, i64)> {
        // The way is longer now and then, never shorter.
        seconds.map(|second| (second, delay_ms + second % 4 * 100)).collect()
    }

    #[test]
    fn the_least_delay_is_the_skew() {
        assert_eq!(after(&steady(0..30, 20)), (None, 0), "too early to say");
        assert_eq!(after(&steady(0..31, 20)), (Some(-20), 20));
        assert_eq!(after(&steady(0..300, -900)), (Some(900), -900));
        assert_eq!(after(&steady(0..300, 3_600_000)), (Some(-3_600_000), 3_600_000));
    }

    #[test]
    fn one_wild_frame_moves_nothing_that_is_shown_and_forgives_nothing() {
        let wild = |delay_ms: i64| [steady(0..60, 20), vec![(60, delay_ms)], steady(61..75, 20)].concat();
        assert_eq!(after(&wild(-86_400_000)), (Some(-20), -86_400_000), "less forgiven, which is the safe side");
        assert_eq!(after(&wild(86_400_000)), (Some(-20), 20));
    }

    #[test]
    fn a_corrected_clock_is_seen_within_half_a_minute() {
        let stepped = |seconds: i64| [steady(0..60, 5_000), steady(60..60 + seconds, 20)].concat();
        assert_eq!(after(&stepped(20)).0, Some(-5_000));
        assert_eq!(after(&stepped(41)).0, Some(-20));
        assert_eq!(after(&stepped(11)).1, 20, "freshness is strict at once");
    }

    #[test]
    fn a_host_that_drains_what_it_had_waiting_is_not_fresh_for_it() {
        let (mut skew, stale_ns) = (Skew::default(), 8 * NS_PER_S);
        for (second, ms) in steady(0..60, 20) {
            skew.note(second * NS_PER_S, ms * NS_PER_MS);
        }
        for second in 60..90 {
            skew.note(second * NS_PER_S, 600 * NS_PER_S);
            assert!(!is_fresh(0, LogTime(600 * NS_PER_S), &skew, stale_ns), "{second}");
        }
    }
}
