//! The clocks of the query service: the only place where it reads one.
#![expect(clippy::disallowed_methods, reason = "deadlines and freshness are about the real time")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds UTC by the system's clock.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The monotonic clock.
pub fn instant() -> Instant {
    Instant::now()
}

/// Whole milliseconds of a duration.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
