//! The policy `headroom@1`: how much room a GPU has, 0..=1. 0.6 × free memory + 0.4 × idle compute, less the hotter it is
//! above 80 °C.
//!
//! A score is an exact fraction: no rounding happens before the comparison with zero, so a GPU with one free byte still scores.
//! Millionths are for ordering and publishing: two GPUs that are published as equal are equal, and their keys decide.

/// Name of the policy.
pub const POLICY_NAME: &str = "headroom";
/// Version of the policy: a change of any constant below is a new version.
pub const POLICY_VERSION: u32 = 1;
/// Policy and version as decisions carry them.
pub const POLICY: &str = "headroom@1";

/// One, in millionths.
pub const MICRO: u64 = 1_000_000;
/// Tenths of the score that free memory gives.
const MEMORY_TENTHS: u128 = 6;
/// Tenths of the score that idle compute gives.
const COMPUTE_TENTHS: u128 = 4;
/// Up to here heat costs nothing: 80 °C in microkelvin.
const HOT_UK: u64 = 353_150_000;
/// Heat above [`HOT_UK`] that would cost everything: 40 K in microkelvin.
const HOT_SPAN_UK: u64 = 40_000_000;
/// What is left of the score however hot it is: a tenth of [`HOT_SPAN_UK`].
const HOT_FLOOR_UK: u64 = HOT_SPAN_UK / 10;

/// What a score is made of. Micro-units keep fractions that telemetry does not have but other callers may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// Memory in use, bytes.
    pub used_bytes: u64,
    /// Memory there is, bytes, as reported.
    pub total_bytes: u64,
    /// Memory that free memory is measured against, bytes: the registered total. 0 = unknown: scores nothing.
    pub max_bytes: u64,
    /// Utilisation in millionths of the whole (1 % = 10,000); above 1,000,000 counts as 1,000,000.
    pub util_micro: u64,
    /// Temperature in microkelvin; absent = not known, costs nothing.
    pub temperature_uk: Option<u64>,
}

/// A score, 0..=1, as an exact fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    numerator: u128,
    denominator: u128,
}

impl Score {
    /// Nothing.
    pub const ZERO: Self = Self { numerator: 0, denominator: MICRO as u128 };

    /// Whether it is exactly nothing.
    pub fn is_zero(self) -> bool {
        self.numerator == 0
    }

    /// The score in millionths, rounded to the nearest: what orders candidates and what is published.
    pub fn micro(self) -> u32 {
        // Every denominator is a multiple of a million, so this cannot overflow as numerator × 1,000,000 would.
        let one_millionth = self.denominator / u128::from(MICRO);
        u32::try_from((self.numerator + one_millionth / 2) / one_millionth).expect("a score is at most one")
    }

    /// The score as numerator and denominator, for callers that want it finer than millionths.
    pub fn fraction(self) -> (u128, u128) {
        (self.numerator, self.denominator)
    }
}

/// The score of one GPU.
pub fn headroom(inputs: &Inputs) -> Score {
    if inputs.max_bytes == 0 {
        return Score::ZERO;
    }
    let max = u128::from(inputs.max_bytes);
    let free = u128::from(inputs.total_bytes.saturating_sub(inputs.used_bytes)).min(max);
    let idle_micro = u128::from(MICRO - inputs.util_micro.min(MICRO));
    let heat = inputs.temperature_uk.map_or(0, |uk| uk.saturating_sub(HOT_UK));
    let left = u128::from(HOT_SPAN_UK.saturating_sub(heat).max(HOT_FLOOR_UK));
    // Greatest: 10 × 2^64 × 10^6 × 4·10^7 < 2^113.
    let millionths = u128::from(MICRO);
    Score {
        numerator: (MEMORY_TENTHS * free * millionths + COMPUTE_TENTHS * idle_micro * max) * left,
        denominator: (MEMORY_TENTHS + COMPUTE_TENTHS) * max * millionths * u128::from(HOT_SPAN_UK),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GB: u64 = 1_000_000_000;

    fn gpu(used_gb: u64, util_percent: u64, celsius: u64) -> Inputs {
        Inputs {
            used_bytes: used_gb * GB,
            total_bytes: 24 * GB,
            max_bytes: 24 * GB,
            util_micro: util_percent * 10_000,
            temperature_uk: Some(celsius * 1_000_000 + 273_150_000),
        }
    }

    #[test]
    fn scores_are_those_of_the_formula() {
        let check = |inputs: Inputs, expected: u32| assert_eq!(headroom(&inputs).micro(), expected, "{inputs:?}");
        check(gpu(8, 50, 65), 600_000);
        check(gpu(20, 80, 75), 180_000);
        check(gpu(22, 80, 85), 113_750);
        check(gpu(0, 0, 80), 1_000_000);
        check(gpu(0, 0, 81), 975_000);
        check(gpu(0, 0, 116), 100_000);
        check(gpu(0, 0, 150), 100_000);
        check(gpu(24, 100, 30), 0);
        check(Inputs { max_bytes: 48 * GB, ..gpu(0, 0, 30) }, 700_000);
        check(Inputs { max_bytes: 0, ..gpu(0, 0, 30) }, 0);
        check(Inputs { max_bytes: 12 * GB, ..gpu(0, 0, 30) }, 1_000_000);
    }

    #[test]
    fn one_free_byte_is_more_than_nothing() {
        let inputs =
            Inputs { used_bytes: u64::MAX - 1, total_bytes: u64::MAX, max_bytes: u64::MAX, util_micro: MICRO, temperature_uk: Some(u64::MAX) };
        assert!(!headroom(&inputs).is_zero());
        assert_eq!(headroom(&inputs).micro(), 0);
    }

    prop_compose! {
        fn any_inputs()(used_bytes: u64, total_bytes: u64, max_bytes: u64, util_micro in 0..=2 * MICRO, temperature_uk: Option<u64>) -> Inputs {
            Inputs { used_bytes, total_bytes, max_bytes, util_micro, temperature_uk }
        }
    }

    proptest! {
        #[test]
        fn a_score_lies_between_zero_and_one(inputs in any_inputs()) {
            prop_assert!(headroom(&inputs).micro() <= 1_000_000);
        }

        #[test]
        fn more_use_or_heat_never_scores_more(inputs in any_inputs(), used: u64, util in 0..=MICRO, heat in 0..200_000_000u64) {
            let before = headroom(&inputs).micro();
            let busier = [
                Inputs { used_bytes: inputs.used_bytes.saturating_add(used), ..inputs },
                Inputs { util_micro: inputs.util_micro + util, ..inputs },
                Inputs { temperature_uk: inputs.temperature_uk.map(|uk| uk.saturating_add(heat)), ..inputs },
            ];
            for worse in busier {
                prop_assert!(headroom(&worse).micro() <= before);
            }
        }
    }
}
