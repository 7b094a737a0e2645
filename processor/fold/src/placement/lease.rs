//! The arithmetic of leases, on milliseconds of the cell's live clock: how long one lives, when it is over, what a heartbeat does.

/// How long a lease lives whose holder says something every `period_ms` and may miss `grace` times: period × (grace + 1),
/// saturating.
pub fn duration_ms(period_ms: u64, grace: u64) -> u64 {
    period_ms.saturating_mul(grace.saturating_add(1))
}

/// When a lease that is granted or renewed at `now_ms` ends if nothing more is heard.
pub fn expires_at_ms(now_ms: u64, duration_ms: u64) -> u64 {
    now_ms.saturating_add(duration_ms)
}

/// Whether a lease is over: strictly after its end, so a heartbeat at exactly the end still counts.
pub fn is_expired(now_ms: u64, expires_at_ms: u64) -> bool {
    now_ms > expires_at_ms
}

/// A heartbeat that came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lease ended {late_ms} ms before")]
pub struct TooLate {
    /// By how much, ms.
    pub late_ms: u64,
}

/// The new end after a heartbeat at `now_ms`: counted from now, not from the old end, so renewing often gains nothing. Errors
/// if the lease is over: what has ended is never brought back.
pub fn renew(now_ms: u64, expires_at_ms: u64, duration_ms: u64) -> Result<u64, TooLate> {
    if is_expired(now_ms, expires_at_ms) {
        return Err(TooLate { late_ms: now_ms - expires_at_ms });
    }
    Ok(self::expires_at_ms(now_ms, duration_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lives_one_period_more_than_may_be_missed() {
        assert_eq!(duration_ms(5_000, 3), 20_000);
        assert_eq!(duration_ms(100, 1), 200);
        assert_eq!(duration_ms(u64::MAX, u64::MAX), u64::MAX);
    }

    #[test]
    fn a_heartbeat_at_the_very_end_renews_from_now_and_one_after_it_does_not() {
        assert_eq!(renew(20_000, 20_000, 20_000), Ok(40_000));
        assert_eq!(renew(1, 20_000, 20_000), Ok(20_001));
        assert_eq!(renew(20_001, 20_000, 20_000), Err(TooLate { late_ms: 1 }));
        assert!(!is_expired(20_000, 20_000));
    }
}
