//! Which sequences of a (host, epoch, class) were folded: a contiguous mark and a bounded list of ranges beyond it.
//!
//! A duplicate of any age is recognised; sequences may come in any order, so repairs and drains of a backlog are welcome.

use plimsoll_schemas::ctl::Class;
use serde::{Deserialize, Serialize};

use crate::gaps::{Gap, Turn};

/// Most separate ranges beyond the mark; one more, and the oldest hole is given up.
pub(crate) const RANGES_MAX: usize = 1_024;
/// Most (epoch, class) pairs remembered per host; the lowest epochs are forgotten first and then refused.
pub(crate) const EPOCHS_MAX: usize = 64;

/// The answer for one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Never before: now it is marked.
    New,
    /// Folded (or given up) before.
    Duplicate,
    /// Of an epoch so old that it was forgotten.
    Forgotten,
}

/// The sequences of one (epoch, class).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Ranges {
    /// Everything up to here was folded or given up.
    pub through: u64,
    /// What was folded or given up beyond, sorted, neither touching nor overlapping, from..=to.
    pub beyond: Vec<(u64, u64)>,
    /// What is missing between.
    pub gaps: Vec<Gap>,
}

impl Ranges {
    /// Marks a sequence if it is the next one and nothing is missing; whether it was.
    pub fn next(&mut self, sequence: u64) -> bool {
        let next = self.beyond.is_empty() && self.through.checked_add(1) == Some(sequence);
        if next {
            self.through = sequence;
        }
        next
    }

    /// Whether a sequence was marked.
    pub fn has(&self, sequence: u64) -> bool {
        self.is_whole(sequence, sequence)
    }

    /// The greatest sequence marked; 0 = none.
    pub fn top(&self) -> u64 {
        self.beyond.last().map_or(self.through, |&(_, end)| end)
    }

    /// Whether all of `from..=to` was marked.
    pub fn is_whole(&self, from: u64, to: u64) -> bool {
        let from = from.max(self.through.saturating_add(1));
        to <= self.through || self.beyond.get(self.beyond.partition_point(|&(_, end)| end < from)).is_some_and(|&(a, b)| a <= from && to <= b)
    }

    /// What of `from..=to` was not marked, as ranges in order.
    pub fn missing(&self, from: u64, to: u64) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        if to <= self.through || from > to {
            return pieces;
        }
        let mut at = from.max(self.through + 1);
        for &(start, end) in &self.beyond[self.beyond.partition_point(|&(_, end)| end < at)..] {
            if start > to {
                break;
            }
            if at < start {
                pieces.push((at, start - 1));
            }
            if end >= to {
                return pieces;
            }
            at = end + 1;
        }
        pieces.push((at, to));
        pieces
    }

    /// Marks `from..=to` (folded, or given up); returns how many of them were new.
    pub fn add(&mut self, from: u64, to: u64) -> u64 {
        if to <= self.through || from > to {
            return 0;
        }
        let from = from.max(self.through + 1);
        let first = self.beyond.partition_point(|&(_, end)| end.saturating_add(1) < from);
        let last = self.beyond.partition_point(|&(start, _)| start <= to.saturating_add(1));
        let known: u64 = self.beyond[first..last]
            .iter()
            .map(|&(a, b)| b.min(to).saturating_sub(a.max(from)).saturating_add(u64::from(b.min(to) >= a.max(from))))
            .sum();
        let joined = self.beyond[first..last].iter().fold((from, to), |(a, b), &(c, d)| (a.min(c), b.max(d)));
        self.beyond.splice(first..last, [joined]);
        while let Some(&(start, end)) = self.beyond.first()
            && start <= self.through.saturating_add(1)
        {
            self.through = end;
            self.beyond.remove(0);
        }
        (to - from + 1).saturating_sub(known)
    }
}

/// The sequences of one host, over its lives.
#[derive(Debug, Clone, Default)]
pub(crate) struct HostRanges {
    /// Sorted by (epoch, class).
    pub entries: Vec<Entry>,
    /// Epochs up to here were forgotten.
    pub forgotten_epoch: u64,
}

/// One (epoch, class) of a host.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub epoch: u64,
    pub class: Class,
    pub ranges: Ranges,
    pub dirty: bool,
}

impl HostRanges {
    /// Marks a sequence as received at a live clock; what that means for gaps is added to `turns`.
    pub fn receive(&mut self, epoch: u64, class: Class, sequence: u64, live_ns: i64, turns: &mut Vec<Turn>) -> Seen {
        let Some(entry) = self.entry(epoch, class) else { return Seen::Forgotten };
        if entry.ranges.receive(sequence, live_ns, turns) {
            entry.dirty = true;
            Seen::New
        } else {
            Seen::Duplicate
        }
    }

    /// The ranges of an (epoch, class), made if there are none; absent if the epoch was forgotten.
    pub fn entry(&mut self, epoch: u64, class: Class) -> Option<&mut Entry> {
        // Almost always the newest epoch, hence from the end.
        if let Some(at) = self.entries.iter().rposition(|e| e.epoch == epoch && e.class == class) {
            return Some(&mut self.entries[at]);
        }
        if epoch <= self.forgotten_epoch {
            return None;
        }
        let at = self.entries.partition_point(|e| (e.epoch, e.class) < (epoch, class));
        self.entries.insert(at, Entry { epoch, class, ranges: Ranges::default(), dirty: true });
        Some(&mut self.entries[at])
    }

    /// Drops the lowest epochs beyond the bound; returns what was dropped.
    pub fn shrink(&mut self) -> Vec<Entry> {
        if self.entries.len() <= EPOCHS_MAX {
            return Vec::new();
        }
        self.forgotten_epoch = self.forgotten_epoch.max(self.entries[self.entries.len() - EPOCHS_MAX - 1].epoch);
        let forgotten = self.forgotten_epoch;
        let keep = self.entries.partition_point(|e| e.epoch <= forgotten);
        self.entries.drain(..keep).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_say_what_a_set_says(adds in proptest::collection::vec((1u64..200, 0u64..6), 0..80)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (from, extra) in adds {
                let fresh = (from..=from + extra).filter(|&s| set.insert(s)).count() as u64;
                prop_assert_eq!(ranges.add(from, from + extra), fresh);
            }
            for sequence in 1..220 {
                prop_assert_eq!(ranges.has(sequence), set.contains(&sequence));
                prop_assert_eq!(ranges.missing(sequence, 219).first().map_or(220, |piece| piece.0), (sequence..220).find(|s| !set.contains(s)).unwrap_or(220));
            }
            let missing: Vec<u64> = ranges.missing(1, 219).into_iter().flat_map(|(from, to)| from..=to).collect();
            prop_assert_eq!(missing, (1..220).filter(|s| !set.contains(s)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_last_sequence_of_all_is_a_sequence_like_any_other() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(0, u64::MAX), u64::MAX);
        for sequence in [0, 1, u64::MAX - 1, u64::MAX] {
            assert!(ranges.has(sequence), "{sequence}");
            assert_eq!(ranges.add(sequence, u64::MAX), 0);
        }
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(u64::MAX, u64::MAX), 1);
        assert!(ranges.has(u64::MAX));
        assert_eq!(ranges.missing(0, u64::MAX), [(1, u64::MAX - 1)]);
        assert_eq!(ranges.add(1, 1), 1);
        assert_eq!(ranges.add(1, u64::MAX), u64::MAX - 2);
    }

    #[test]
    fn a_forgotten_epoch_stays_forgotten() {
        let mut host = HostRanges::default();
        let receive = |host: &mut HostRanges, epoch, sequence| host.receive(epoch, Class::Sample, sequence, 0, &mut Vec::new());
        for epoch in 1..=EPOCHS_MAX as u64 + 1 {
            assert_eq!(receive(&mut host, epoch, 1), Seen::New);
        }
        assert_eq!(host.shrink().into_iter().map(|entry| (entry.epoch, entry.class)).collect::<Vec<_>>(), [(1, Class::Sample)]);
        assert_eq!(receive(&mut host, 1, 2), Seen::Forgotten);
        assert_eq!(receive(&mut host, 2, 1), Seen::Duplicate);
    }
}
