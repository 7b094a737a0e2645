//! The policy `reliability@1`: how far the host can be relied on 40 %, how closely what is asked for fits 20 %, idle compute 15 %, not yet
//! holding a part of the same job 15 %, distance from the heat limit 10 %.

use super::reputation::Reputation;

const ONE_NANO: u64 = 1_000_000_000;
const NANO_PER_MICRO: u64 = 1_000;
const REPUTATION_BP: u64 = 4_000;
const FIT_BP: u64 = 2_000;
const IDLE_BP: u64 = 1_500;
const FRESH_BP: u64 = 1_500;
const THERMAL_BP: u64 = 1_000;
const ALL_BP: u64 = 10_000;
const _: () = assert!(REPUTATION_BP + FIT_BP + IDLE_BP + FRESH_BP + THERMAL_BP == ALL_BP);
/// A fit is worth this much however loose it is, and the rest of one in proportion: a fifth.
const FIT_LEAST_NANO: u64 = ONE_NANO / 5;
/// The fit of a request that asks for no memory.
const FIT_ANY_NANO: u64 = ONE_NANO / 2;

/// What a score is made of. Shares are millionths of the whole; above 1,000,000 counts as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// What is known of the host.
    pub reputation: Reputation,
    /// Memory that is free, bytes.
    pub free_bytes: u64,
    /// Memory that is asked for, bytes; 0 = none in particular.
    pub need_bytes: u64,
    /// How far it is from its heat limit, as a share of the way there from cool.
    pub thermal_micro: u64,
    /// Utilisation.
    pub util_micro: u64,
    /// Whether it holds a part of the same job already.
    pub assigned: bool,
}

/// The score in billionths; none where what is asked for does not fit.
pub fn reliability(inputs: &Inputs) -> Option<u64> {
    if inputs.free_bytes < inputs.need_bytes {
        return None;
    }
    let nano = |micro: u64| micro.saturating_mul(NANO_PER_MICRO).min(ONE_NANO);
    let terms = [
        (REPUTATION_BP, inputs.reputation.lower_bound_nano()),
        (FIT_BP, fit_nano(inputs.free_bytes, inputs.need_bytes)),
        (IDLE_BP, ONE_NANO - nano(inputs.util_micro)),
        (FRESH_BP, if inputs.assigned { 0 } else { ONE_NANO }),
        (THERMAL_BP, nano(inputs.thermal_micro)),
    ];
    Some(terms.iter().map(|(weight, share)| weight * share).sum::<u64>() / ALL_BP)
}

fn fit_nano(free_bytes: u64, need_bytes: u64) -> u64 {
    if need_bytes == 0 {
        return FIT_ANY_NANO;
    }
    let closeness = u128::from(need_bytes) * u128::from(ONE_NANO - FIT_LEAST_NANO) / u128::from(free_bytes);
    FIT_LEAST_NANO + u64::try_from(closeness).expect("what is asked for is at most what is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relied_on_the_close_fit_and_the_idle_come_first() {
        let gpu = Inputs {
            reputation: Reputation::of(20 * ONE_NANO, ONE_NANO),
            free_bytes: 16 << 30,
            need_bytes: 8 << 30,
            thermal_micro: 800_000,
            util_micro: 200_000,
            assigned: false,
        };
        let best = reliability(&gpu);
        assert!(best.is_some());
        for worse in [
            Inputs { reputation: Reputation::of(5 * ONE_NANO, 10 * ONE_NANO), ..gpu },
            Inputs { free_bytes: 80 << 30, ..gpu },
            Inputs { thermal_micro: 0, ..gpu },
            Inputs { util_micro: 900_000, ..gpu },
            Inputs { assigned: true, ..gpu },
            Inputs { need_bytes: 0, ..gpu },
            Inputs { need_bytes: 17 << 30, ..gpu },
        ] {
            assert!(reliability(&worse) < best, "{worse:?}");
        }
        let all = Inputs { free_bytes: 1, need_bytes: 1, thermal_micro: u64::MAX, util_micro: 0, ..gpu };
        assert!(reliability(&all).is_some_and(|score| score < ONE_NANO));
    }
}
