//! Heat with hysteresis: near its limit a GPU takes nothing new, and not again until it is well below.

use plimsoll_schemas::settings::Thresholds;

/// Whether a GPU of this temperature is paused, given whether it was; both in millikelvin. Paused below 5 K of margin to its limit,
/// going on above 10 K unless set otherwise; between the two nothing changes.
pub(crate) fn paused(before: bool, temperature_mk: u64, limit_mk: u64, settings: &Thresholds) -> bool {
    let signed = |mk: u64| i64::try_from(mk).unwrap_or(i64::MAX);
    let margin_mk = signed(limit_mk) - signed(temperature_mk);
    let (pause_mk, resume_mk) = (i64::from(settings.thermal_pause_mk), i64::from(settings.thermal_resume_mk));
    if before { margin_mk <= resume_mk } else { margin_mk < pause_mk }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_pauses_below_five_degrees_of_margin_and_resumes_above_ten() {
        let settings = Thresholds::default();
        let check = |before: bool, margin_mk: u64, expected: bool| {
            assert_eq!(paused(before, 400_000 - margin_mk, 400_000, &settings), expected, "{margin_mk}");
        };
        check(false, 5_000, false);
        check(false, 4_999, true);
        check(true, 10_000, true);
        check(true, 10_001, false);
        assert!(paused(false, 400_001, 400_000, &settings) && paused(true, u64::MAX, 0, &settings));
    }
}
