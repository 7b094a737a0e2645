//! Which sequences of a (host, epoch, class) were folded: a contiguous mark and a bounded list of ranges beyond it.
//!
//! A duplicate of any age is recognised; sequences may come in any order, so repairs and drains of a backlog are welcome.

use serde::{Deserialize, Serialize};

/// Most separate ranges beyond the mark; one more closes the oldest hole, which is then given up.
pub(crate) const RANGES_MAX: usize = 1_024;
/// Most (epoch, class) pairs remembered per host; the lowest epochs are forgotten first and then refused.
pub(crate) const EPOCHS_MAX: usize = 64;

/// What a sequence belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub(crate) enum Class {
    /// Telemetry frames.
    Sample = 1,
    /// Inventories and host events.
    Event = 2,
}

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
    through: u64,
    /// What was folded beyond, sorted, neither touching nor overlapping, from..=to.
    beyond: Vec<(u64, u64)>,
}

impl Ranges {
    /// Marks one sequence; `true` if it is new.
    pub fn insert(&mut self, sequence: u64) -> bool {
        if self.beyond.is_empty() && self.through.checked_add(1) == Some(sequence) {
            self.through = sequence;
            return true;
        }
        self.add(sequence, sequence) > 0
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
        if self.beyond.len() > RANGES_MAX {
            self.through = self.beyond[0].0.saturating_sub(1);
        }
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
    /// Marks a sequence.
    pub fn insert(&mut self, epoch: u64, class: Class, sequence: u64) -> Seen {
        let Some(entry) = self.entry(epoch, class) else { return Seen::Forgotten };
        if entry.ranges.insert(sequence) {
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

    /// Drops the lowest epochs beyond the bound; returns the (epoch, class) pairs dropped.
    pub fn shrink(&mut self) -> Vec<(u64, Class)> {
        if self.entries.len() <= EPOCHS_MAX {
            return Vec::new();
        }
        self.forgotten_epoch = self.forgotten_epoch.max(self.entries[self.entries.len() - EPOCHS_MAX - 1].epoch);
        let forgotten = self.forgotten_epoch;
        let keep = self.entries.partition_point(|e| e.epoch <= forgotten);
        self.entries.drain(..keep).map(|e| (e.epoch, e.class)).collect()
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
                prop_assert_eq!(ranges.clone().insert(sequence), !set.contains(&sequence));
            }
        }
    }

    #[test]
    fn a_full_list_gives_up_the_oldest_hole() {
        let mut ranges = Ranges::default();
        for n in 1..=RANGES_MAX as u64 + 1 {
            assert!(ranges.insert(n * 2 + 1));
        }
        assert_eq!(ranges.through, 3);
        assert!(!ranges.insert(2));
        assert!(ranges.insert(4));
    }

    #[test]
    fn the_last_sequence_of_all_is_a_sequence_like_any_other() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.add(0, u64::MAX), u64::MAX);
        for sequence in [0, 1, u64::MAX - 1, u64::MAX] {
            assert!(!ranges.insert(sequence), "{sequence}");
            assert_eq!(ranges.add(sequence, u64::MAX), 0);
        }
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX));
        assert!(!ranges.insert(u64::MAX));
        assert_eq!(ranges.add(1, u64::MAX), u64::MAX - 1);
    }

    #[test]
    fn a_forgotten_epoch_stays_forgotten() {
        let mut host = HostRanges::default();
        for epoch in 1..=EPOCHS_MAX as u64 + 1 {
            assert_eq!(host.insert(epoch, Class::Sample, 1), Seen::New);
        }
        assert_eq!(host.shrink(), [(1, Class::Sample)]);
        assert_eq!(host.insert(1, Class::Sample, 2), Seen::Forgotten);
        assert_eq!(host.insert(2, Class::Sample, 1), Seen::Duplicate);
    }

    #[test]
    fn extreme_sequences_do_not_overflow() {
        let mut ranges = Ranges::default();
        assert!(ranges.insert(u64::MAX));
        assert!(!ranges.insert(u64::MAX));
        assert!(ranges.insert(1));
        assert_eq!(ranges.add(1, u64::MAX), u64::MAX - 2);
    }
}
