//! Which seeds: `first..last`, both of them too, or one number.

use std::fmt;
use std::str::FromStr;

/// Most seeds of one bench.
const SEEDS_MAX: u64 = 1_000;

/// Seeds from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl Seeds {
    /// Seeds of sequences of our own.
    pub const DEFAULT: Self = Self { first: 1, last: 3 };

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} names no seeds: write first..last as in 42..51, or one number; at most {SEEDS_MAX}");
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let (first, last): (u64, u64) = (first.parse().map_err(|_| expected())?, last.parse().map_err(|_| expected())?);
        if first <= last && last - first < SEEDS_MAX { Ok(Self { first, last }) } else { Err(expected()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range_with_both_ends_or_one_number() {
        let check = |text: &str, expected: Option<(u64, u64)>| {
            assert_eq!(text.parse::<Seeds>().ok(), expected.map(|(first, last)| Seeds { first, last }), "{text}");
        };
        check("42..51", Some((42, 51)));
        check("7", Some((7, 7)));
        check("9..8", None);
        check("0..1000", None);
        check("a..b", None);
        check("", None);
    }
}
