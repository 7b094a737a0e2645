//! How much of a GPU's memory may be reserved: integers all the way, so that no byte is lost near 2^64.

/// All of it, in basis points.
pub const LIMIT_BP_MAX: u32 = 10_000;

/// The bytes of `total_bytes` that may be reserved: floor(total × bp / 10000). A share above 10000 counts as 10000: there is no
/// more memory than there is.
pub fn limit(total_bytes: u64, limit_bp: u32) -> u64 {
    let (bp, whole) = (u64::from(limit_bp.min(LIMIT_BP_MAX)), u64::from(LIMIT_BP_MAX));
    // Whole ten-thousandths and the rest apart: the same floor as total × bp / 10000 without leaving 64 bits.
    total_bytes / whole * bp + total_bytes % whole * bp / whole
}

/// The bytes a new lease may still reserve. What is in use and what is reserved overlap by an unknown amount (a lease's own
/// use shows up in `used_bytes`), so the greater of the two counts, never their sum; and reservations stay under the limit.
pub fn free(total_bytes: u64, used_bytes: u64, reserved_bytes: u64, limit_bp: u32) -> u64 {
    let under_the_limit = limit(total_bytes, limit_bp).saturating_sub(reserved_bytes);
    under_the_limit.min(total_bytes.saturating_sub(used_bytes.max(reserved_bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_limit_is_exact_where_floats_lose_bits() {
        let check = |total: u64, bp: u32, expected: u64| assert_eq!(limit(total, bp), expected, "{total} at {bp}");
        check(0, 7_000, 0);
        check(3, 7_000, 2);
        check(10, 2_900, 2);
        check(10_000, 5_700, 5_700);
        check(u64::MAX, 7_000, 12_912_720_851_596_686_130);
        check(u64::MAX, 10_000, u64::MAX);
        check(100, 20_000, 100);
    }

    #[test]
    fn a_lease_that_already_uses_its_memory_is_not_counted_twice() {
        let check = |used: u64, reserved: u64, bp: u32, expected: u64| assert_eq!(free(100, used, reserved, bp), expected, "{used} {reserved} {bp}");
        check(0, 0, 10_000, 100);
        check(40, 40, 10_000, 60);
        check(10, 40, 10_000, 60);
        check(70, 40, 10_000, 30);
        check(0, 40, 5_000, 10);
        check(0, 60, 5_000, 0);
        check(100, 0, 10_000, 0);
        check(120, 0, 10_000, 0);
    }

    proptest! {
        #[test]
        fn the_limit_is_the_floor_of_the_product(total: u64, bp in 0..=10_000u32) {
            prop_assert_eq!(u128::from(limit(total, bp)), u128::from(total) * u128::from(bp) / 10_000);
        }

        #[test]
        fn the_limit_grows_with_the_share_and_never_passes_the_total(total: u64, low in 0..=10_000u32, more in 0..=10_000u32) {
            prop_assert!(limit(total, low) <= limit(total, low + more));
            prop_assert!(limit(total, low + more) <= total);
        }
    }
}
