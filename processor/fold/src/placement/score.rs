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
#[derive(Debug, Clone, Copy)]
pub struct Score {
    /// The score in units of which `millionth` make a millionth of one.
    numerator: u128,
    /// A millionth of one, in the same units.
    millionth: u128,
}

impl Score {
    /// Nothing.
    pub const ZERO: Self = Self { numerator: 0, millionth: 1 };

    /// Whether it is exactly nothing.
    pub fn is_zero(self) -> bool {
        self.numerator == 0
    }

    /// The score in millionths, rounded to the nearest: what orders candidates and what is published.
    pub fn micro(self) -> u32 {
        u32::try_from((self.numerator + self.millionth / 2) / self.millionth).expect("a score is at most one")
    }

    /// The score as numerator and denominator, for callers that want it finer than millionths.
    pub fn fraction(self) -> (u128, u128) {
        (self.numerator, self.millionth * u128::from(MICRO))
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
    let (left, span) = inputs.temperature_uk.map_or((1, 1), cool_share);
    // Greatest: 10 × 2^64 × 10^6 × 4·10^7 < 2^113; of a cool GPU below 1 TiB it is < 2^64, where division is ten times faster.
    Score {
        numerator: (MEMORY_TENTHS * free * u128::from(MICRO) + COMPUTE_TENTHS * idle_micro * max) * u128::from(left),
        millionth: (MEMORY_TENTHS + COMPUTE_TENTHS) * max * u128::from(span),
    }
}

/// What heat leaves of a score, as a fraction: all of it up to 80 °C, then less, and never less than a tenth.
fn cool_share(uk: u64) -> (u64, u64) {
    match uk.saturating_sub(HOT_UK) {
        0 => (1, 1),
        heat => (HOT_SPAN_UK.saturating_sub(heat).max(HOT_FLOOR_UK), HOT_SPAN_UK),
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
