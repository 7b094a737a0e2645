//! A mergeable histogram of integers: log-linear, 6 mantissa bits. 0..=127 is exact (percent, degrees); above, a bin is at most
//! 1/64 of its value wide, so its midpoint errs by at most 1/128. Merging is addition: commutative, associative, bit-exact.

use std::fmt;
use std::ops::Deref;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

const MANTISSA_BITS: u32 = 6;
/// Values below this have a bin of their own.
pub const EXACT_BELOW: u64 = 1 << (MANTISSA_BITS + 1);
/// Values that a sketch holds without memory of its own: as many as a window of 10 s has at 1 Hz.
const LOOSE_HELD: usize = 16;
/// Values that a sketch takes in before it counts them: as many as a minute has at 1 Hz.
const LOOSE_MAX: usize = 64;
/// First byte of the binary form.
const FORMAT: u8 = 1;
/// Most bytes that a bin takes in it.
const BIN_BYTES_MAX: usize = 8;

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

/// Counts per bin, sparse. The bins of the newest values are not counted yet: putting many in order at once is cheaper than finding the place
/// of each, and where there are only few nothing is allocated.
#[derive(Debug, Clone, Default)]
pub struct Sketch {
    /// Counts of bins that rise.
    counted: Vec<(u16, u32)>,
    /// One bin a value, in no order.
    loose: SmallVec<[u16; LOOSE_HELD]>,
}

/// The bins of a sketch in rising order, each with its count.
#[derive(Debug, Clone)]
pub enum Bins<'a> {
    /// As they are held.
    Held(&'a [(u16, u32)]),
    /// Put in order anew.
    Ordered(Vec<(u16, u32)>),
}

impl Deref for Bins<'_> {
    type Target = [(u16, u32)];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Held(bins) => bins,
            Self::Ordered(bins) => bins,
        }
    }
}

/// A sketch where people read it: its bins in rising order.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Sketch")]
struct Shown {
    bins: Vec<(u16, u32)>,
}

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() {
            return Shown { bins: self.bins().to_vec() }.serialize(to);
        }
        to.serialize_bytes(&self.to_bytes())
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if from.is_human_readable() {
            return Ok(Self { counted: Shown::deserialize(from)?.bins, loose: SmallVec::new() });
        }
        from.deserialize_bytes(BinaryForm)
    }
}

/// Reads the binary form.
struct BinaryForm;

impl Visitor<'_> for BinaryForm {
    type Value = Sketch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the binary form of a sketch")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Sketch, E> {
        Sketch::from_bytes(bytes).map_err(E::custom)
    }
}

impl PartialEq for Sketch {
    fn eq(&self, other: &Self) -> bool {
        *self.bins() == *other.bins()
    }
}

impl Eq for Sketch {}

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
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.push(bin_of(value));
    }

    #[inline]
    fn push(&mut self, bin: u16) {
        if self.loose.len() == LOOSE_MAX {
            self.count_loose();
        }
        self.loose.push(bin);
    }

    /// Adds another sketch to this one.
    pub fn merge(&mut self, other: &Sketch) {
        if !other.counted.is_empty() {
            self.count_loose();
            self.add_counted(&other.counted);
        }
        if self.loose.len() + other.loose.len() > LOOSE_MAX {
            self.count_loose();
        }
        self.loose.extend_from_slice(&other.loose);
    }

    /// Puts the bins in order, if there are more than a few. Nothing else about the sketch changes; reading one in order is cheaper.
    pub fn settle(&mut self) {
        if self.loose.spilled() || !self.counted.is_empty() {
            self.count_loose();
        }
    }

    fn count_loose(&mut self) {
        if !self.loose.is_empty() {
            let (mut bins, loose) = ([(0, 0); LOOSE_MAX], std::mem::take(&mut self.loose));
            let len = in_order(&loose, &mut bins);
            self.add_counted(&bins[..len]);
        }
    }

    /// Adds bins that rise to those that are counted.
    fn add_counted(&mut self, others: &[(u16, u32)]) {
        let bins = &mut self.counted;
        if bins.is_empty() {
            bins.extend_from_slice(others);
            return;
        }
        let (mut own, mut theirs) = (bins.len(), others.len());
        bins.resize(own + theirs, (0, 0));
        let mut at = bins.len();
        // From the back, so that nothing is overwritten before it was read. Without a branch on which bin is greater, since nobody could
        // foretell it.
        while own > 0 && theirs > 0 {
            let ((a, n), (b, m)) = (bins[own - 1], others[theirs - 1]);
            let (is_own, is_theirs) = (a >= b, b >= a);
            at -= 1;
            bins[at] = (a.max(b), (n * u32::from(is_own)).saturating_add(m * u32::from(is_theirs)));
            own -= usize::from(is_own);
            theirs -= usize::from(is_theirs);
        }
        // What is left of the own bins stands in its place; behind what is left there is a hole, as wide as bins were joined.
        bins[own..own + theirs].copy_from_slice(&others[..theirs]);
        bins.drain(own + theirs..at);
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counted.iter().map(|&(_, count)| u64::from(count)).sum::<u64>() + self.loose.len() as u64
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.counted.is_empty() && self.loose.is_empty()
    }

    /// The bins in rising order: (bin, count).
    pub fn bins(&self) -> Bins<'_> {
        if self.loose.is_empty() {
            return Bins::Held(&self.counted);
        }
        let mut settled = self.clone();
        settled.count_loose();
        Bins::Ordered(settled.counted)
    }

    /// The value at rank ceil(q × count), q in 0..=1, as the midpoint of its bin; absent if nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let count = self.count();
        if count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = ((q * count as f64).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for &(bin, n) in self.bins().iter() {
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
        let below: u64 = self.bins().iter().filter(|&&(bin, _)| bin < limit).map(|&(_, n)| u64::from(n)).sum();
        (count > 0).then(|| below as f64 / count as f64)
    }

    /// The binary form: format 1, then per bin the distance to the previous bin and the count, as varints.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.counted.is_empty() {
            // What is few needs no memory to be put in order.
            let mut bins = [(0, 0); LOOSE_MAX];
            let len = in_order(&self.loose, &mut bins);
            return written(&bins[..len]);
        }
        written(&self.bins())
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
        Ok(Self { counted: bins, loose: SmallVec::new() })
    }
}

/// Writes bins in rising order, each with how often it stands among some; returns how many there are. Without branches on what is greater or the
/// same, since nobody could foretell them.
fn in_order(loose: &[u16], bins: &mut [(u16, u32); LOOSE_MAX]) -> usize {
    let mut sorted = [u16::MAX; LOOSE_MAX];
    if loose.len() <= LOOSE_HELD {
        // The place of each is how many come before it; of equals the first in the row.
        let mut keys = [i32::MAX; LOOSE_HELD];
        loose.iter().zip(0..).zip(&mut keys).for_each(|((&bin, at), key)| *key = i32::from(bin) << 8 | at);
        for (&bin, &own) in loose.iter().zip(&keys) {
            let before: i32 = keys.iter().map(|&key| i32::from(key < own)).sum();
            sorted[before as usize % LOOSE_HELD] = bin;
        }
    } else {
        sorted[..loose.len()].copy_from_slice(loose);
        sorted[..loose.len()].sort_unstable();
    }
    let (mut len, mut last) = (0, u16::MAX);
    for &bin in &sorted[..loose.len()] {
        len += usize::from(bin != last);
        last = bin;
        let counted = &mut bins[len - 1];
        *counted = (bin, counted.1 + 1);
    }
    len
}

/// Bins that rise, in the binary form.
fn written(bins: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; 1 + bins.len() * BIN_BYTES_MAX];
    bytes[0] = FORMAT;
    let (mut at, mut previous) = (1, 0);
    for &(bin, count) in bins {
        at = put_varint(&mut bytes, at, u32::from(bin - previous));
        at = put_varint(&mut bytes, at, count);
        previous = bin;
    }
    bytes.truncate(at);
    bytes
}

/// Writes a number at a place that has room for it; returns the place behind it.
#[inline(always)]
fn put_varint(bytes: &mut [u8], mut at: usize, mut value: u32) -> usize {
    while value >= 0x80 {
        bytes[at] = value as u8 | 0x80;
        value >>= 7;
        at += 1;
    }
    bytes[at] = value as u8;
    at + 1
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
            prop_assert_eq!(a.count(), (left.len() + right.len()) as u64);
        }

        #[test]
        fn a_sketch_says_the_same_before_and_after_its_bins_are_put_in_order(values in proptest::collection::vec(0u64..300, 0..200), limit in 0u64..300) {
            let loose = values.iter().fold(Sketch::default(), |mut s, &v| { s.add(v); s });
            let mut settled = loose.clone();
            settled.settle();
            let mut counts = std::collections::BTreeMap::<u16, u32>::new();
            values.iter().for_each(|&value| *counts.entry(bin_of(value)).or_default() += 1);
            let counts: Vec<_> = counts.into_iter().collect();
            for sketch in [&loose, &settled] {
                prop_assert_eq!(&*sketch.bins(), &counts[..]);
                prop_assert_eq!(sketch.to_bytes(), settled.to_bytes());
                prop_assert_eq!(serde_json::to_string(sketch).expect("plain data"), serde_json::json!({ "bins": counts }).to_string());
                prop_assert_eq!(sketch.count(), values.len() as u64);
                prop_assert_eq!(sketch.quantile(0.5), settled.quantile(0.5));
                prop_assert_eq!(sketch.fraction_below(limit), settled.fraction_below(limit));
            }
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
