//! The few operations of IEEE 754 doubles on which a published score depends where its exact value is a whole number: there a
//! rounding error decides between that number and the one below. In integers, so that it is the same on every machine.

/// Bits of a double's significand.
const SIGNIFICANT: u32 = 53;
/// Bits behind the point of a quotient before it is rounded.
const QUOTIENT_BITS: u32 = 90;

/// `significand` × 2^-`point`, not below zero, with at most 53 significant bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Double {
    significand: u128,
    point: u32,
}

impl Double {
    /// 1.0.
    pub const ONE: Self = Self { significand: 1, point: 0 };
    /// 0.0.
    pub const ZERO: Self = Self { significand: 0, point: 0 };

    /// A whole number below 2^53 divided by 2^`point`. What is below zero counts as zero.
    pub fn scaled(number: i64, point: u32) -> Self {
        rounded(number.max(0) as u128, point)
    }

    /// A whole number below 2^31 divided by another.
    pub fn quotient(dividend: i64, divisor: i64) -> Self {
        divided((dividend.max(0) as u128) << QUOTIENT_BITS, divisor.max(1) as u128, QUOTIENT_BITS)
    }

    /// The quotient of two numbers, both above zero and not far from one.
    pub fn over(self, divisor: Self) -> Self {
        // As far as there is room, however few bits it has: a quotient needs more of them than a double keeps.
        let shift = self.significand.leading_zeros().saturating_sub(2);
        divided(self.significand << shift, divisor.significand.max(1), (shift + self.point).saturating_sub(divisor.point))
    }

    /// Whether it is less than another.
    pub fn is_below(self, other: Self) -> bool {
        let point = self.point.max(other.point);
        self.at(point) < other.at(point)
    }

    /// Half of it, which is exact.
    pub fn half(self) -> Self {
        Self { point: self.point + 1, ..self }
    }

    /// The product.
    pub fn times(self, other: Self) -> Self {
        rounded(self.significand * other.significand, self.point + other.point)
    }

    /// The sum.
    pub fn plus(self, other: Self) -> Self {
        let point = self.point.max(other.point);
        rounded(self.at(point) + other.at(point), point)
    }

    /// The distance: what one is more than the other.
    pub fn distance(self, other: Self) -> Self {
        let point = self.point.max(other.point);
        rounded(self.at(point).abs_diff(other.at(point)), point)
    }

    /// 100 times it, cut to a whole number.
    pub fn percent(self) -> i64 {
        let product = rounded(self.significand * 100, self.point);
        (product.significand >> product.point) as i64
    }

    /// Its significand with more bits behind the point. Two numbers not far apart in size fit 128 bits.
    fn at(self, point: u32) -> u128 {
        self.significand << (point - self.point)
    }
}

fn divided(dividend: u128, divisor: u128, point: u32) -> Double {
    // What is left over lies below the last bit, and only says that the quotient is no tie.
    rounded((dividend / divisor) << 1 | u128::from(!dividend.is_multiple_of(divisor)), point + 1)
}

/// The nearest double, of two equally near the even one; with as few bits behind the point as it needs.
fn rounded(value: u128, point: u32) -> Double {
    let bits = u128::BITS - value.leading_zeros();
    let over = bits.saturating_sub(SIGNIFICANT);
    let (kept, rest) = (value >> over, value & ((1 << over) - 1));
    let half = (1_u128 << over) >> 1;
    let up = over > 0 && (rest > half || (rest == half && kept & 1 == 1));
    let value = (kept + u128::from(up)) << over;
    let zeros = value.trailing_zeros().min(point);
    Double { significand: value >> zeros, point: point - zeros }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exact(double: Double) -> f64 {
        double.significand as f64 / 2_f64.powi(double.point as i32)
    }

    #[test]
    fn a_quotient_is_exact_to_the_last_bit_however_few_bits_its_dividend_has() {
        assert_eq!(exact(Double::ONE.over(Double::quotient(1, 3))), 1.0 / (1.0 / 3.0));
        assert_eq!(exact(Double::quotient(3, 4).over(Double::quotient(5, 7))), 0.75 / (5.0 / 7.0));
    }

    proptest! {
        #[test]
        fn every_operation_gives_what_the_machine_gives(a in 0..200_000i64, b in 1..130_000i64, c in 0..9_000i64, d in 1..9_000i64) {
            let (x, y) = (Double::quotient(a, b), Double::quotient(c, d));
            let (fx, fy) = (a as f64 / b as f64, c as f64 / d as f64);
            prop_assert_eq!(exact(x), fx);
            prop_assert_eq!(exact(x.half()), fx * 0.5);
            prop_assert_eq!(exact(x.times(y)), fx * fy);
            prop_assert_eq!(exact(x.plus(y)), fx + fy);
            prop_assert_eq!(exact(x.distance(y)), (fx - fy).abs());
            prop_assert_eq!(x.percent(), (fx * 100.0) as i64);
            prop_assert_eq!(x.is_below(y), fx < fy);
            if a > 0 && c > 0 {
                prop_assert_eq!(exact(x.over(y)), fx / fy);
            }
        }
    }
}
