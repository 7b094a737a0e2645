//! How much of the fleet is allocated at every percent of arrived load.

/// The last mark, percent of arrived load.
pub const MARK_MAX: usize = 130;
/// One percent in millionths.
pub const PPM_PER_PERCENT: u32 = 10_000;

/// Adds up arrivals. Unit of marks: millionths of the fleet's GPU capacity.
#[derive(Debug, Clone)]
pub struct Curve {
    capacity_milli: i64,
    arrived_milli: i64,
    allocated_milli: i64,
    /// Sum of allocated shares, hundredths of a percent, and how many, by arrived percent.
    marks: Vec<(i64, i64)>,
}

impl Curve {
    /// Of a fleet with this much GPU, thousandths.
    pub fn new(capacity_milli: i64) -> Self {
        Self { capacity_milli: capacity_milli.max(1), arrived_milli: 0, allocated_milli: 0, marks: vec![(0, 0); MARK_MAX + 2] }
    }

    /// One more arrival.
    pub fn add(&mut self, milli: i64, placed: bool) {
        self.arrived_milli += milli;
        self.allocated_milli += if placed { milli } else { 0 };
        let percent = rounded(self.arrived_milli * 100, self.capacity_milli);
        if let Ok(mark) = usize::try_from(percent)
            && let Some((sum, count)) = self.marks.get_mut(mark)
        {
            *sum += rounded(self.allocated_milli * 10_000, self.capacity_milli);
            *count += 1;
        }
    }

    /// The mean allocated share over the arrivals at a mark, millionths: arrived percents are rounded to whole ones, allocated
    /// ones to two decimals. Where none came at the mark, those of the marks beside it; absent where there are none either.
    pub fn allocated_ppm(&self, mark: usize) -> Option<u32> {
        let mean = |sum: i64, count: i64| u32::try_from(rounded(sum * 100, count)).ok();
        let &(sum, count) = self.marks.get(mark)?;
        if count > 0 {
            return mean(sum, count);
        }
        let beside = self.marks[mark.saturating_sub(1)..=(mark + 1).min(MARK_MAX + 1)].iter();
        let (sum, count) = beside.fold((0, 0), |(sums, counts), (sum, count)| (sums + sum, counts + count));
        if count > 0 { mean(sum, count) } else { None }
    }

    /// What is not allocated at a mark, millionths.
    pub fn unallocated_ppm(&self, mark: usize) -> Option<u32> {
        Some((100 * PPM_PER_PERCENT).saturating_sub(self.allocated_ppm(mark)?))
    }
}

/// The nearest whole number, of two equally near the even one. Both are not below zero, the divisor above.
fn rounded(dividend: i64, divisor: i64) -> i64 {
    let (whole, twice_the_rest) = (dividend / divisor, dividend % divisor * 2);
    whole + i64::from(twice_the_rest > divisor || (twice_the_rest == divisor && whole % 2 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_the_mean_over_its_arrivals_and_borrows_from_its_neighbours() {
        let mut curve = Curve::new(1_000);
        for (milli, placed) in [(0, true), (4, true), (1, true), (10, false), (20, true)] {
            curve.add(milli, placed);
        }
        // Arrived 0, 0.4 and 0.5 percent count at 0; 1.5 at 2; 3.5 at 4.
        assert_eq!(curve.allocated_ppm(0), Some(3_000));
        assert_eq!(curve.allocated_ppm(1), Some(14_000 / 4));
        assert_eq!(curve.allocated_ppm(2), Some(5_000));
        assert_eq!(curve.allocated_ppm(3), Some(15_000));
        assert_eq!(curve.unallocated_ppm(4), Some(975_000));
        assert_eq!((curve.allocated_ppm(6), curve.allocated_ppm(MARK_MAX + 5)), (None, None));
    }
}
