//! Heat with hysteresis: near its limit a GPU takes nothing new, and not again until it is well below.

/// Margin to the limit below which a GPU is paused, millikelvin.
const PAUSE_BELOW_MK: i64 = 5_000;
/// Margin above which it goes on, millikelvin; between the two nothing changes.
const RESUME_ABOVE_MK: i64 = 10_000;

/// Whether a GPU of this temperature is paused, given whether it was; both in millikelvin.
pub(crate) fn paused(before: bool, temperature_mk: u64, limit_mk: u64) -> bool {
    let signed = |mk: u64| i64::try_from(mk).unwrap_or(i64::MAX);
    let margin_mk = signed(limit_mk) - signed(temperature_mk);
    if before { margin_mk <= RESUME_ABOVE_MK } else { margin_mk < PAUSE_BELOW_MK }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_pauses_below_five_degrees_of_margin_and_resumes_above_ten() {
        let check = |before: bool, margin_mk: u64, expected: bool| assert_eq!(paused(before, 400_000 - margin_mk, 400_000), expected, "{margin_mk}");
        check(false, 5_000, false);
        check(false, 4_999, true);
        check(true, 10_000, true);
        check(true, 10_001, false);
        assert!(paused(false, 400_001, 400_000) && paused(true, u64::MAX, 0));
    }
}
