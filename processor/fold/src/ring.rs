//! The recent ring of one GPU: its newest samples by event time, at most N of them. What comes late takes its place in time and
//! never becomes the current one.
//!
//! Samples are packed, some 70 bytes instead of 160: a cell keeps a hundred of every GPU, and what is read of them but seldom should take neither
//! memory nor cache from the rest. Only when the newest one was, which every next one is compared with, lies here as it is.

use std::collections::VecDeque;
use std::hint::black_box;

use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime};
use serde::{Deserialize, Serialize};

/// Samples kept per GPU.
pub const RECENT: usize = 100;

/// The order of samples of one GPU: event time, then who said it later (agent epoch, frame sequence).
pub type Order = (EventTime, u64, u64);

/// A sample and where it stands.
pub type Kept = (Order, Recent);

/// A sample of the recent ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recent {
    /// Log time of its frame.
    pub logged_at: LogTime,
    /// The sample.
    pub sample: Sample,
}

/// Where a pushed sample went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is the newest.
    Newest,
    /// It came late and took its place among the others.
    Late,
    /// It came late and is older than all that a full ring holds: not kept.
    TooOld,
    /// The ring holds one of the same order already: not kept.
    Duplicate,
}

/// The newest samples of one GPU.
#[derive(Debug, Clone)]
pub struct Ring {
    newest: Option<Times>,
    /// Where the next sample goes.
    block: Block,
    /// The blocks before, oldest first. The oldest may hold some that are beyond the capacity: it goes as a whole, so that not every push has to
    /// read where the oldest sample lies.
    blocks: VecDeque<Block>,
    /// Samples in all blocks.
    held: usize,
    capacity: usize,
    late: u64,
    /// What is before this is too old: the oldest one of the full ring when that was asked last, so that a backlog is not compared with all.
    too_old: Option<Order>,
}

/// When a sample was, and when it came.
type Times = (Order, LogTime);

impl Default for Ring {
    fn default() -> Self {
        Self::new(RECENT)
    }
}

impl Ring {
    /// An empty ring of at most `capacity` samples, at least one.
    pub fn new(capacity: usize) -> Self {
        let (block, blocks) = (Block::default(), VecDeque::new());
        Self { newest: None, block, blocks, held: 0, capacity: capacity.max(1), late: 0, too_old: None }
    }

    /// Takes a sample and drops the oldest if there are too many: O(1) in order; late, O(samples that are newer).
    #[inline(always)]
    pub fn push(&mut self, order: Order, recent: Recent) -> Pushed {
        if self.newest.is_some_and(|(newest, _)| newest >= order) {
            return self.push_late(order, recent);
        }
        self.push_newest(order, &recent);
        Pushed::Newest
    }

    #[inline(always)]
    fn push_newest(&mut self, order: Order, recent: &Recent) {
        if self.block.is_full() {
            self.begin_block();
        }
        let times = (order, recent.logged_at);
        self.block.append(self.newest.unwrap_or_default(), times, &recent.sample);
        self.held += 1;
        self.newest = Some(times);
    }

    /// Begins a block, in the memory of the oldest one if that is not needed any more.
    #[cold]
    fn begin_block(&mut self) {
        let next = match self.blocks.front() {
            Some(oldest) if self.held - oldest.samples + 1 >= self.capacity => self.blocks.pop_front().unwrap_or_default(),
            Some(_) | None => Block::default(),
        };
        self.held -= next.samples;
        let full = std::mem::replace(&mut self.block, Block::in_memory_of(next));
        if full.samples > 0 {
            self.blocks.push_back(full);
        }
    }

    #[cold]
    fn push_late(&mut self, order: Order, recent: Recent) -> Pushed {
        if self.too_old.is_some_and(|too_old| order < too_old) {
            self.late += 1;
            return Pushed::TooOld;
        }
        let newer: Vec<Kept> = self.newest_first().take_while(|(held, _)| *held >= order).collect();
        if newer.last().is_some_and(|(held, _)| *held == order) {
            return Pushed::Duplicate;
        }
        self.late += 1;
        if newer.len() == self.capacity {
            self.too_old = newer.last().map(|&(oldest, _)| oldest);
            return Pushed::TooOld;
        }
        for _ in &newer {
            self.pop_newest();
        }
        self.push_newest(order, &recent);
        for (order, recent) in newer.iter().rev() {
            self.push_newest(*order, recent);
        }
        Pushed::Late
    }

    fn pop_newest(&mut self) {
        if self.block.samples == 0 {
            self.block = self.blocks.pop_back().unwrap_or_default();
        }
        let newest = self.block.entries().next();
        if let Some((times, entry)) = self.newest.zip(newest) {
            let (_, before) = entry.unpack(times);
            self.block.drop_last(&entry);
            self.held -= 1;
            self.newest = (self.held > 0).then_some(before);
        }
    }

    /// The sample with the greatest order.
    pub fn current(&self) -> Option<Kept> {
        self.newest_first().next()
    }

    /// The samples, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = Kept> {
        let mut next = self.newest;
        let mut entries = std::iter::once(&self.block).chain(self.blocks.iter().rev()).flat_map(Block::entries);
        let samples = std::iter::from_fn(move || {
            let (times, entry) = next.zip(entries.next())?;
            let (sample, before) = entry.unpack(times);
            next = Some(before);
            Some((times.0, Recent { logged_at: times.1, sample }))
        });
        samples.take(self.capacity)
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.held.min(self.capacity)
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.newest.is_none()
    }

    /// How many came after a newer one, kept or not.
    pub fn late(&self) -> u64 {
        self.late
    }

    /// Reads of where the next sample is written, so that it comes into the cache.
    #[inline]
    pub fn warm(&self) {
        self.block.warm();
    }
}

/// Numbers that make a sample: when it was and when it came, and the fields.
const LANES: usize = TIMES + Field::COUNT;
const TIMES: usize = 4;
/// Most bytes of an entry: the lanes, and three bits per lane of how many bytes each takes.
const ENTRY_MAX: usize = 8 * LANES + WIDTHS;
/// Bytes of the latter.
const WIDTHS: usize = 8;
/// Bytes of a block.
const BLOCK: usize = 1_024;

/// Some samples, oldest first.
///
/// An entry is its times as what they differ in from those of the one before, zigzag, and its fields as on the wire, each in 0, 1, 2, 4 or 8
/// bytes, little-endian; then which of these, three bits per lane. So a block is read from the end.
#[derive(Debug, Clone, Default)]
struct Block {
    /// None, or [`BLOCK`] of them.
    bytes: Vec<u8>,
    /// Of these so many hold something.
    filled: usize,
    samples: usize,
}

impl Block {
    /// An empty block in the memory of one that is not needed, or in memory of its own.
    fn in_memory_of(Self { mut bytes, .. }: Self) -> Self {
        bytes.resize(BLOCK, 0);
        Self { bytes, filled: 0, samples: 0 }
    }

    /// Whether there may be too little room for one more.
    #[inline]
    fn is_full(&self) -> bool {
        self.bytes.len() - self.filled < ENTRY_MAX
    }

    /// Appends a sample. It is written where it stays: to write it elsewhere and copy it would wait for each copy before.
    #[inline]
    fn append(&mut self, before: Times, times: Times, sample: &Sample) {
        let entry = &mut self.bytes[self.filled..self.filled + ENTRY_MAX];
        let mut widths = 0;
        let mut at = 0;
        let mut put = |lane: usize, value: u64| {
            let code = u64::from(value > 0) + u64::from(value > 0xff) + u64::from(value > 0xffff) + u64::from(value > 0xffff_ffff);
            entry[at..at + 8].copy_from_slice(&value.to_le_bytes());
            widths |= code << (3 * lane);
            at += width(code);
        };
        for (lane, (now, before)) in numbers(times).into_iter().zip(numbers(before)).enumerate() {
            put(lane, zigzag(now.wrapping_sub(before)));
        }
        for (lane, &value) in sample.wires().iter().enumerate() {
            put(TIMES + lane, value);
        }
        entry[at..at + WIDTHS].copy_from_slice(&widths.to_le_bytes());
        self.filled += at + WIDTHS;
        self.samples += 1;
    }

    /// The entries, newest first.
    fn entries(&self) -> impl Iterator<Item = Entry> {
        let mut rest = &self.bytes[..self.filled];
        std::iter::from_fn(move || {
            let (values, widths) = rest.split_last_chunk::<WIDTHS>()?;
            let widths = u64::from_le_bytes(*widths);
            let width = |lane: usize| width(widths >> (3 * lane));
            let (before, mut values) = values.split_at(values.len() - (0..LANES).map(width).sum::<usize>());
            let len = rest.len() - before.len();
            rest = before;
            let lanes = std::array::from_fn(|lane| {
                let (value, rest) = values.split_at(width(lane));
                values = rest;
                value.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
            });
            Some(Entry { lanes, len })
        })
    }

    /// Drops the newest entry, which is this.
    fn drop_last(&mut self, entry: &Entry) {
        self.filled -= entry.len;
        self.samples -= 1;
    }

    /// Reads of the lines of the cache that the next entry is written to, if it is of the usual length.
    #[inline]
    fn warm(&self) {
        black_box((self.bytes.get(self.filled).copied(), self.bytes.get(self.filled + 64).copied()));
    }
}

/// A packed sample as it is read back.
struct Entry {
    lanes: [u64; LANES],
    len: usize,
}

impl Entry {
    /// The sample, and the times of the one before.
    fn unpack(&self, times: Times) -> (Sample, Times) {
        let [at, epoch, sequence, logged_at, wires @ ..] = self.lanes;
        let [now_at, now_epoch, now_sequence, now_logged_at] = numbers(times);
        let before = |now: u64, lane| now.wrapping_sub(unzigzag(lane));
        let order = (EventTime(before(now_at, at) as i64), before(now_epoch, epoch), before(now_sequence, sequence));
        (Sample::from_wires(wires), (order, LogTime(before(now_logged_at, logged_at) as i64)))
    }
}

/// How many bytes the lowest three bits stand for.
#[inline]
fn width(code: u64) -> usize {
    (1 << (code & 7)) >> 1
}

fn numbers(((at, epoch, sequence), logged_at): Times) -> [u64; TIMES] {
    [at.0 as u64, epoch, sequence, logged_at.0 as u64]
}

/// A difference of either sign as a small number.
fn zigzag(difference: u64) -> u64 {
    difference << 1 ^ ((difference as i64) >> 63) as u64
}

fn unzigzag(zigzag: u64) -> u64 {
    zigzag >> 1 ^ (zigzag & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ns: i64, sequence: u64) -> Order {
        (EventTime(ns), 1, sequence)
    }

    fn said(number: i64) -> Recent {
        Recent { logged_at: LogTime(number), sample: Sample::default() }
    }

    fn times(ring: &Ring) -> Vec<i64> {
        let mut times: Vec<i64> = ring.newest_first().map(|((at, ..), _)| at.0).collect();
        times.reverse();
        times
    }

    #[test]
    fn a_late_sample_takes_its_place_is_counted_and_never_becomes_current() {
        let mut ring = Ring::new(3);
        let mut check = |ns: i64, expected: Pushed, held: &[i64]| {
            assert_eq!(ring.push(at(ns, 1), said(ns)), expected, "{ns}");
            assert_eq!(times(&ring), held);
        };
        check(10, Pushed::Newest, &[10]);
        check(30, Pushed::Newest, &[10, 30]);
        check(20, Pushed::Late, &[10, 20, 30]);
        check(40, Pushed::Newest, &[20, 30, 40]);
        check(25, Pushed::Late, &[25, 30, 40]);
        check(5, Pushed::TooOld, &[25, 30, 40]);
        check(6, Pushed::TooOld, &[25, 30, 40]);
        check(25, Pushed::Duplicate, &[25, 30, 40]);
        check(30, Pushed::Duplicate, &[25, 30, 40]);
        check(26, Pushed::Late, &[26, 30, 40]);
        assert_eq!(ring.late(), 5);
        assert_eq!(ring.current().map(|((at, ..), _)| at.0), Some(40));
    }

    #[test]
    fn a_hundred_usual_samples_take_much_less_than_unpacked() {
        let mut ring = Ring::default();
        for n in 0..1_000u64 {
            let noise = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
            let fields = [noise % 101, noise % 90, 80 << 30 | noise, 80 << 30, 700_000 - noise % 65_536, noise % 700_000, 330_000 + noise % 8_192];
            let sample = Field::ALL.iter().zip(fields).fold(Sample::default(), |sample, (&field, value)| sample.with(field, value));
            let ns = n as i64 * 1_000_000_000 + (noise % 4_000_000) as i64;
            ring.push(at(ns, n), Recent { logged_at: LogTime(ns + 7_000_000), sample });
        }
        let unpacked = RECENT * std::mem::size_of::<Kept>();
        assert_eq!(ring.len(), RECENT);
        let packed: usize = ring.blocks.iter().chain([&ring.block]).map(|block| block.bytes.capacity()).sum();
        assert!(3 * packed < 2 * unpacked, "{packed} of {unpacked}");
    }

    fn any_sample() -> impl Strategy<Value = Sample> {
        let value = prop_oneof![Just(None), any::<u64>().prop_map(Some), (0..100u64).prop_map(Some)];
        prop::collection::vec(value, Field::COUNT).prop_map(|values| {
            let known = Field::ALL.iter().zip(values).filter_map(|(&field, value)| Some((field, value?)));
            known.fold(Sample::default(), |sample, (field, value)| sample.with(field, value))
        })
    }

    fn any_order() -> impl Strategy<Value = Order> {
        let ns = prop_oneof![0..200i64, any::<i64>(), Just(i64::MIN), Just(i64::MAX)];
        (ns, prop_oneof![1..3u64, any::<u64>()], prop_oneof![0..3u64, any::<u64>()])
            .prop_map(|(ns, epoch, sequence)| (EventTime(ns), epoch, sequence))
    }

    proptest! {
        #[test]
        fn the_ring_holds_the_greatest_of_what_it_was_given_as_it_was_given(
            given in prop::collection::vec((any_order(), any::<i64>(), any_sample()), 0..120),
            capacity in 1..40usize,
        ) {
            let mut ring = Ring::new(capacity);
            let mut expected = std::collections::BTreeMap::new();
            for (order, logged_at, sample) in given {
                let recent = Recent { logged_at: LogTime(logged_at), sample };
                ring.push(order, recent);
                expected.entry(order).or_insert(recent);
                // What was dropped once does not come back.
                while expected.len() > capacity {
                    expected.pop_first();
                }
                prop_assert_eq!(ring.len(), expected.len());
            }
            let held: Vec<Kept> = ring.newest_first().collect();
            prop_assert_eq!(held, expected.into_iter().rev().collect::<Vec<_>>());
        }
    }
}
