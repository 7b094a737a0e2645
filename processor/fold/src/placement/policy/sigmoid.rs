//! 100 times the logistic function, truncated, in integers: a table of the arguments at which the next number is reached.

/// 10^12 × ln(k / (100 - k)), rounded up, for k = 51..=99: from there on the result is k. For k below 50 it is the same of
/// 100 - k with the sign changed, and for 50 it is zero.
const THRESHOLDS: [i64; 49] = [
    40_005_334_614,
    80_042_707_674,
    120_144_311_843,
    160_342_650_076,
    200_670_695_463,
    241_162_056_817,
    281_851_152_141,
    322_773_392_264,
    363_965_377_202,
    405_465_108_109,
    447_312_218_044,
    489_548_225_319,
    532_216_813_748,
    575_364_144_904,
    619_039_208_407,
    663_294_217_411,
    708_185_057_925,
    753_771_802_377,
    800_119_300_113,
    847_297_860_388,
    895_384_047_055,
    944_461_608_841,
    994_622_575_145,
    1_045_968_555_183,
    1_098_612_288_669,
    1_152_679_509_939,
    1_208_311_205_925,
    1_265_666_373_332,
    1_324_925_414_744,
    1_386_294_361_120,
    1_450_010_175_506,
    1_516_347_489_369,
    1_585_627_263_741,
    1_658_228_076_604,
    1_734_601_055_389,
    1_815_289_966_639,
    1_900_958_761_194,
    1_992_430_164_691,
    2_090_741_096_934,
    2_197_224_577_337,
    2_313_634_929_181,
    2_442_347_035_370,
    2_586_689_344_098,
    2_751_535_313_042,
    2_944_438_979_167,
    3_178_053_830_348,
    3_476_098_689_836,
    3_891_820_298_111,
    4_595_119_850_135,
];
/// One, in the unit of [`THRESHOLDS`].
const ONE: i128 = 1_000_000_000_000;

/// The truncated logistic function of a fraction with a fixed denominator.
#[derive(Debug, Clone)]
pub struct Sigmoid {
    /// The least numerator whose result is k, for k = 1..=99.
    least: Vec<i64>,
}

impl Sigmoid {
    /// For fractions with this denominator, above zero.
    pub fn per(denominator: i64) -> Self {
        let scaled = |threshold: i64| i128::from(threshold) * i128::from(denominator);
        let reached = |scaled: i128| i64::try_from(scaled.div_euclid(ONE) + i128::from(scaled.rem_euclid(ONE) > 0)).unwrap_or(i64::MAX);
        // A threshold below zero is rounded up too: one less than the table's number, which is rounded away from zero.
        let below = THRESHOLDS.iter().rev().map(|&threshold| reached(scaled(-(threshold - 1))));
        let above = THRESHOLDS.iter().map(|&threshold| reached(scaled(threshold)));
        Self { least: below.chain(std::iter::once(0)).chain(above).collect() }
    }

    /// floor(100 / (1 + e^-x)) for x = `numerator` / denominator, 0..=99.
    pub fn percent(&self, numerator: i64) -> i64 {
        self.least.partition_point(|&least| least <= numerator) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_is_that_of_the_formula() {
        for denominator in [1_000, 7_779_000, 123_456_789] {
            let sigmoid = Sigmoid::per(denominator);
            for step in -2_000..=2_000 {
                let numerator = denominator / 250 * step;
                let exact = 100.0 / (1.0 + (-(numerator as f64) / denominator as f64).exp());
                assert_eq!(sigmoid.percent(numerator), exact as i64, "{numerator} / {denominator}");
            }
        }
    }

    #[test]
    fn nothing_gained_and_nothing_lost_is_fifty() {
        let sigmoid = Sigmoid::per(1_000_000);
        assert_eq!([-1, 0, 1, 40_005, 40_006].map(|numerator| sigmoid.percent(numerator)), [49, 50, 50, 50, 51]);
    }
}
