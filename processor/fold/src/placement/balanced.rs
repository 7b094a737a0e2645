//! The policy `balanced@1`: idle compute 40 %, room for what is asked 30 %, network 15 %, distance from the heat limit 10 %, memory
//! bandwidth 5 %.
//!
//! What nobody has measured is left out and the other weights grow in proportion; nothing is made up. Too little room is a gate, not a
//! low score.

const ONE_MICRO: u64 = 1_000_000;
const COMPUTE_BP: u64 = 4_000;
const MEMORY_BP: u64 = 3_000;
const NETWORK_BP: u64 = 1_500;
const THERMAL_BP: u64 = 1_000;
const BANDWIDTH_BP: u64 = 500;
/// As far below its heat limit as this, or further, a GPU is cool: 20 K in microkelvin.
const COOL_UK: u64 = 20_000_000;

/// What a score is made of. Shares are millionths of the whole; above 1,000,000 counts as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// Memory that is free, bytes.
    pub free_bytes: u64,
    /// Memory that is asked for, bytes; 0 = none in particular.
    pub need_bytes: u64,
    /// Utilisation, if known.
    pub util_micro: Option<u64>,
    /// How far below its heat limit it is, microkelvin, if both are known; 0 = at the limit or above.
    pub margin_uk: Option<u64>,
    /// How good its network is, if measured.
    pub network_micro: Option<u64>,
    /// Its memory bandwidth as a share of the fleet's mean, if measured.
    pub bandwidth_micro: Option<u64>,
}

/// The score in millionths, rounded to the nearest; none where what is asked for does not fit.
pub fn balanced(inputs: &Inputs) -> Option<u32> {
    if inputs.free_bytes < inputs.need_bytes {
        return None;
    }
    let terms = [
        (COMPUTE_BP, inputs.util_micro.map(|util| ONE_MICRO.saturating_sub(util))),
        (MEMORY_BP, Some(room_micro(inputs.free_bytes, inputs.need_bytes))),
        (NETWORK_BP, inputs.network_micro),
        (THERMAL_BP, inputs.margin_uk.map(|margin| margin.min(COOL_UK) * ONE_MICRO / COOL_UK)),
        (BANDWIDTH_BP, inputs.bandwidth_micro),
    ];
    let known = || terms.iter().filter_map(|&(weight, share)| Some((weight, share?.min(ONE_MICRO))));
    let (weights, sum) = known().fold((0, 0), |(weights, sum), (weight, share)| (weights + weight, sum + weight * share));
    Some(u32::try_from((sum + weights / 2) / weights).expect("a mean of shares is at most one"))
}

/// Twice what is asked for, or more, is all the room that counts.
fn room_micro(free_bytes: u64, need_bytes: u64) -> u64 {
    let twice = u128::from(need_bytes) * 2;
    let share = (u128::from(free_bytes) * u128::from(ONE_MICRO)).checked_div(twice);
    share.map_or(ONE_MICRO, |share| u64::try_from(share).unwrap_or(u64::MAX).min(ONE_MICRO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn gpu(free_gib: u64, util_percent: u64, margin_k: u64) -> Inputs {
        Inputs {
            free_bytes: free_gib * GIB,
            need_bytes: 10 * GIB,
            util_micro: Some(util_percent * 10_000),
            margin_uk: Some(margin_k * 1_000_000),
            network_micro: Some(ONE_MICRO),
            bandwidth_micro: Some(ONE_MICRO),
        }
    }

    #[test]
    fn scores_are_those_of_the_formula_and_what_is_unknown_weighs_nothing() {
        let check = |inputs: Inputs, expected: Option<u32>| assert_eq!(balanced(&inputs), expected, "{inputs:?}");
        check(gpu(20, 30, 20), Some(880_000));
        check(gpu(15, 30, 20), Some(805_000));
        check(gpu(20, 0, 5), Some(925_000));
        check(gpu(9, 0, 20), None);
        check(Inputs { network_micro: None, bandwidth_micro: None, ..gpu(20, 30, 20) }, Some(850_000));
        check(Inputs { util_micro: None, margin_uk: None, network_micro: None, bandwidth_micro: None, ..gpu(15, 0, 0) }, Some(750_000));
        check(Inputs { need_bytes: 0, ..gpu(0, 100, 0) }, Some(500_000));
    }

    proptest! {
        #[test]
        fn more_heat_or_use_or_less_room_never_scores_more(free: u64, need: u64, util in 0..=ONE_MICRO, margin in 0..60_000_000u64, worse: u64, by in 0..60_000_000u64) {
            let inputs = Inputs { free_bytes: free, need_bytes: need, util_micro: Some(util), margin_uk: Some(margin), network_micro: None, bandwidth_micro: None };
            let before = balanced(&inputs);
            for after in [
                Inputs { free_bytes: free.saturating_sub(worse), ..inputs },
                Inputs { util_micro: Some(util + by), ..inputs },
                Inputs { margin_uk: Some(margin.saturating_sub(by)), ..inputs },
            ] {
                prop_assert!(balanced(&after) <= before);
            }
        }
    }
}
