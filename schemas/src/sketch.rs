//! A mergeable histogram of integers: log-linear, 6 mantissa bits. 0..=127 is exact (percent, degrees); above, a bin is at most
//! 1/64 of its value wide, so its midpoint errs by at most 1/128. Merging is addition: commutative, associative, bit-exact.

use serde::{Deserialize, Serialize};

const MANTISSA_BITS: u32 = 6;
/// Values below this have a bin of their own.
pub const EXACT_BELOW: u64 = 1 << (MANTISSA_BITS + 1);
/// Room for bins that a sketch begins with: as many as a window of 10 s has samples at 1 Hz.
const BINS_FIRST: usize = 10;
/// First byte of the binary form.
const FORMAT: u8 = 1;

/// The bin of a value.
pub fn bin_of(value: u64) -> u16 {
    if value < EXACT_BELOW {
        return value as u16;
    }
    let exponent = 63 - value.leading_zeros();
    let mantissa = (value >> (exponent - MANTISSA_BITS)) as u16 & ((1 << MANTISSA_BITS) - 1);
    EXACT_BELOW as u16 + ((exponent - MANTISSA_BITS - 1) << MANTISSA_BITS) as u16 + mantissa
}

/// The smallest and the greatest value of a bin.
pub fn bin_bounds(bin: u16) -> (u64, u64) {
    let bin = u64::from(bin);
    if bin < EXACT_BELOW {
        return (bin, bin);
    }
    let above = bin - EXACT_BELOW;
    let exponent = (above >> MANTISSA_BITS) as u32 + MANTISSA_BITS + 1;
    let mantissa = above & ((1 << MANTISSA_BITS) - 1);
    let shift = exponent - MANTISSA_BITS;
    let low = ((1 << MANTISSA_BITS) | mantissa) << shift;
    (low, low + ((1u64 << shift) - 1))
}

/// Counts per bin, sparse and sorted by bin.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sketch {
    bins: Vec<(u16, u32)>,
}

/// The bytes are no sketch: what was wrong, and at which byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a sketch: {what} at byte {at}")]
pub struct SketchError {
    /// What was wrong.
    pub what: &'static str,
    /// Where.
    pub at: usize,
}

impl Sketch {
    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        self.add_bin(0, bin_of(value), 1);
    }

    /// Adds to a bin that is none of the first `skip`; returns where it stands.
    fn add_bin(&mut self, skip: usize, bin: u16, count: u32) -> usize {
        match self.bins[skip..].binary_search_by_key(&bin, |&(b, _)| b) {
            Ok(at) => {
                let (_, counted) = &mut self.bins[skip + at];
                *counted = counted.saturating_add(count);
                skip + at
            }
            Err(at) => {
                if self.bins.is_empty() {
                    self.bins.reserve_exact(BINS_FIRST);
                }
                self.bins.insert(skip + at, (bin, count));
                skip + at
            }
        }
    }

    /// Adds another sketch to this one.
    pub fn merge(&mut self, other: &Sketch) {
        if self.bins.is_empty() {
            self.bins.clone_from(&other.bins);
            return;
        }
        let mut skip = 0;
        for &(bin, count) in &other.bins {
            skip = self.add_bin(skip, bin, count) + 1;
        }
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.bins.iter().map(|&(_, count)| u64::from(count)).sum()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.bins.is_empty()
    }

    /// The bins in rising order: (bin, count).
    pub fn bins(&self) -> &[(u16, u32)] {
        &self.bins
    }

    /// The value at rank ceil(q × count), q in 0..=1, as the midpoint of its bin; absent if nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for &(bin, n) in &self.bins {
            seen += u64::from(n);
            if seen >= rank {
                let (low, high) = bin_bounds(bin);
                return Some(low as f64 + (high - low) as f64 / 2.0);
            }
        }
        None
    }

    /// The share of values, 0..=1, in bins wholly below `value`'s bin; absent if nothing was counted.
    pub fn fraction_below(&self, value: u64) -> Option<f64> {
        let count = self.count();
        let limit = bin_of(value);
        let below: u64 = self.bins.iter().take_while(|&&(bin, _)| bin < limit).map(|&(_, n)| u64::from(n)).sum();
        (count > 0).then(|| below as f64 / count as f64)
    }

    /// The binary form: format 1, then per bin the distance to the previous bin and the count, as varints.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + self.bins.len() * 3);
        bytes.push(FORMAT);
        let mut previous = 0;
        for &(bin, count) in &self.bins {
            put_varint(&mut bytes, u32::from(bin - previous));
            put_varint(&mut bytes, count);
            previous = bin;
        }
        bytes
    }

    /// Reads the binary form. Errors on another format, a cut varint, bins out of order or beyond the last one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SketchError> {
        let error = |what, at| SketchError { what, at };
        if bytes.first() != Some(&FORMAT) {
            return Err(error("unknown format", 0));
        }
        let mut at = 1;
        let mut bin: u32 = 0;
        let mut bins = Vec::new();
        while at < bytes.len() {
            let step = take_varint(bytes, &mut at).ok_or_else(|| error("cut or oversized varint", at))?;
            let count = take_varint(bytes, &mut at).ok_or_else(|| error("cut or oversized varint", at))?;
            if step == 0 && !bins.is_empty() {
                return Err(error("bins out of order", at));
            }
            bin = bin.checked_add(step).filter(|&bin| bin <= u32::from(bin_of(u64::MAX))).ok_or_else(|| error("bin out of range", at))?;
            if count == 0 {
                return Err(error("empty bin", at));
            }
            bins.push((bin as u16, count));
        }
        Ok(Self { bins })
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Option<u32> {
    let mut value: u32 = 0;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        let low = u32::from(byte & 0x7f);
        if shift == 28 && low > 0x0f {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_integers_are_exact_and_the_last_bin_holds_the_greatest_value() {
        for value in 0..EXACT_BELOW {
            assert_eq!(bin_bounds(bin_of(value)), (value, value));
        }
        assert_eq!(bin_bounds(bin_of(u64::MAX)).1, u64::MAX);
    }

    proptest! {
        #[test]
        fn every_value_lies_in_its_bin_and_the_midpoint_errs_by_at_most_one_in_128(value: u64) {
            let (low, high) = bin_bounds(bin_of(value));
            prop_assert!(low <= value && value <= high);
            let middle = low as f64 + (high - low) as f64 / 2.0;
            prop_assert!((middle - value as f64).abs() <= value as f64 / 128.0 + 1e-9);
        }

        #[test]
        fn merging_is_adding_in_any_order(left: Vec<u64>, right: Vec<u64>) {
            let sketch = |values: &[u64]| values.iter().fold(Sketch::default(), |mut s, &v| { s.add(v); s });
            let both = sketch(&[left.clone(), right.clone()].concat());
            let (mut a, mut b) = (sketch(&left), sketch(&right));
            a.merge(&sketch(&right));
            b.merge(&sketch(&left));
            prop_assert_eq!(&a, &both);
            prop_assert_eq!(a.to_bytes(), b.to_bytes());
        }

        #[test]
        fn bytes_come_back_the_same(values: Vec<u64>) {
            let sketch = values.iter().fold(Sketch::default(), |mut s, &v| { s.add(v); s });
            prop_assert_eq!(Sketch::from_bytes(&sketch.to_bytes()).expect("own bytes"), sketch);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Ok(sketch) = Sketch::from_bytes(&bytes) {
                prop_assert_eq!(Sketch::from_bytes(&sketch.to_bytes()).expect("own bytes"), sketch);
            }
        }
    }
}
