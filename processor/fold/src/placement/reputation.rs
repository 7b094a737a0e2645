//! How far something that has kept and broken its word can be relied on: a Beta distribution that starts at one kept and one broken, forgets
//! a little with everything that happens, and is judged by what is almost certain of it (Wilson's lower bound, 95 %).

use serde::{Deserialize, Serialize};

/// One, in billionths.
const ONE_NANO: u64 = 1_000_000_000;
/// Forgotten with each event, basis points of what lies above the start.
pub const DECAY_BP: u64 = 100;
const BP: u64 = 10_000;
/// 1.96, the 97.5th percentile of a normal distribution, and its square.
const Z_NANO: u128 = 1_960_000_000;
const Z2_NANO: u128 = 3_841_600_000;
/// With fewer events than this nothing is proven.
const PROVEN_MIN: u32 = 10;

/// A way to break one's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Something ran out of time.
    Timeout,
    /// Two answers that should be one were not.
    Mismatch,
    /// It fell silent.
    Silence,
    /// Data was damaged.
    Checksum,
    /// It broke down.
    Crash,
}

impl Failure {
    /// What it counts as, in successes, billionths.
    const fn weight_nano(self) -> u64 {
        match self {
            Self::Timeout => 2_000_000_000,
            Self::Mismatch => 3_000_000_000,
            Self::Silence => 1_500_000_000,
            Self::Checksum => 5_000_000_000,
            Self::Crash => 2_500_000_000,
        }
    }
}

/// What is thought of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Mean of 95 % or more.
    Excellent,
    /// 85 %.
    Good,
    /// 70 %.
    Fair,
    /// 50 %.
    Poor,
    /// Less.
    Bad,
    /// Too little has happened to say.
    Unproven,
}

impl Tier {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Excellent => "Excellent",
            Self::Good => "Good",
            Self::Fair => "Fair",
            Self::Poor => "Poor",
            Self::Bad => "Bad",
            Self::Unproven => "Unproven",
        }
    }
}

/// What has happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reputation {
    alpha_nano: u64,
    beta_nano: u64,
    events: u32,
    decay_bp: u64,
}

impl Default for Reputation {
    fn default() -> Self {
        Self::forgetting(DECAY_BP)
    }
}

impl Reputation {
    /// Of whom nothing is known, forgetting so many basis points with each event (at most all).
    pub fn forgetting(decay_bp: u64) -> Self {
        Self { alpha_nano: ONE_NANO, beta_nano: ONE_NANO, events: 0, decay_bp: decay_bp.min(BP) }
    }

    /// With so much kept and broken, in billionths and at least one each, whatever the events were.
    pub fn of(alpha_nano: u64, beta_nano: u64) -> Self {
        Self { alpha_nano: alpha_nano.max(ONE_NANO), beta_nano: beta_nano.max(ONE_NANO), ..Self::default() }
    }

    /// It kept its word once more.
    pub fn succeed(&mut self) {
        self.happen(ONE_NANO, 0);
    }

    /// It broke its word.
    pub fn fail(&mut self, failure: Failure) {
        self.happen(0, failure.weight_nano());
    }

    fn happen(&mut self, kept_nano: u64, broken_nano: u64) {
        let forget = |nano: u64| {
            let above = u128::from(nano - ONE_NANO) * u128::from(BP - self.decay_bp);
            ONE_NANO + u64::try_from((above + u128::from(BP / 2)) / u128::from(BP)).unwrap_or(u64::MAX - ONE_NANO)
        };
        self.alpha_nano = forget(self.alpha_nano.saturating_add(kept_nano));
        self.beta_nano = forget(self.beta_nano.saturating_add(broken_nano));
        self.events = self.events.saturating_add(1);
    }

    /// What it kept, with the one it began with, billionths.
    pub fn alpha_nano(&self) -> u64 {
        self.alpha_nano
    }

    /// The share it keeps on average, billionths.
    pub fn mean_nano(&self) -> u64 {
        share(u128::from(self.alpha_nano), self.both())
    }

    /// The share it keeps at least, almost certainly, billionths.
    pub fn lower_bound_nano(&self) -> u64 {
        // Wilson's (p + z²/2n - z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), with n = a + b and p = a/n, times n above and below.
        let (a, b, n) = (u128::from(self.alpha_nano), u128::from(self.beta_nano), self.both());
        let spread = (a * b / n + Z2_NANO / 4).saturating_mul(u128::from(ONE_NANO)).isqrt();
        let kept = (a + Z2_NANO / 2).saturating_sub(Z_NANO * spread / u128::from(ONE_NANO));
        share(kept, n + Z2_NANO)
    }

    /// What is thought of it.
    pub fn tier(&self) -> Tier {
        match self.mean_nano() / (ONE_NANO / 100) {
            _ if self.events < PROVEN_MIN => Tier::Unproven,
            95.. => Tier::Excellent,
            85.. => Tier::Good,
            70.. => Tier::Fair,
            50.. => Tier::Poor,
            0.. => Tier::Bad,
        }
    }

    fn both(&self) -> u128 {
        u128::from(self.alpha_nano) + u128::from(self.beta_nano)
    }
}

fn share(part_nano: u128, whole_nano: u128) -> u64 {
    u64::try_from(part_nano * u128::from(ONE_NANO) / whole_nano).expect("a part is at most the whole")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ten_successes_are_good_and_twenty_excellent() {
        let after = |successes: u32| {
            let mut reputation = Reputation::default();
            (0..successes).for_each(|_| reputation.succeed());
            reputation
        };
        assert_eq!([0, 9, 10, 19, 20].map(|n| after(n).tier()), [Tier::Unproven, Tier::Unproven, Tier::Good, Tier::Good, Tier::Excellent]);
        let mut fallen = after(20);
        fallen.fail(Failure::Checksum);
        assert_eq!(fallen.tier(), Tier::Fair);
        (0..10).for_each(|_| fallen.fail(Failure::Crash));
        assert_eq!(fallen.tier(), Tier::Bad);
    }

    proptest! {
        #[test]
        fn the_bound_lies_below_the_mean_and_a_failure_lowers_both(kept in 0u32..60, broken in 0u32..60) {
            let mut reputation = Reputation::default();
            (0..kept).for_each(|_| reputation.succeed());
            (0..broken).for_each(|_| reputation.fail(Failure::Timeout));
            prop_assert!(reputation.lower_bound_nano() < reputation.mean_nano());
            let mut after = reputation;
            after.fail(Failure::Silence);
            prop_assert!(after.mean_nano() < reputation.mean_nano());
            prop_assert!(after.lower_bound_nano() <= reputation.lower_bound_nano());
        }
    }
}
