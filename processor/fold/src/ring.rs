//! The recent ring of one GPU: its newest samples by event time, at most N of them. What comes late takes its place in time and
//! never becomes the current one.

use std::collections::VecDeque;

use plimsoll_schemas::time::EventTime;

/// Samples kept per GPU.
pub const RECENT: usize = 100;

/// The order of samples of one GPU: event time, then who said it later (agent epoch, frame sequence).
pub type Order = (EventTime, u64, u64);

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

/// The newest samples of one GPU, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring<T> {
    /// Order of the newest one, which is looked at with every push: it lies here and not among the samples.
    newest: Option<Order>,
    samples: VecDeque<(Order, T)>,
    capacity: usize,
    late: u64,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Self::new(RECENT)
    }
}

impl<T> Ring<T> {
    /// An empty ring of at most `capacity` samples, at least one. The first one takes room for [`RECENT`], which costs memory only as it
    /// fills: a buffer that grows is copied each time, and on the way takes twice the memory.
    pub fn new(capacity: usize) -> Self {
        Self { newest: None, samples: VecDeque::new(), capacity: capacity.max(1), late: 0 }
    }

    /// Takes a sample and drops the oldest if there are too many: O(1) in order, O(log n + n moves) if late.
    #[inline(always)]
    pub fn push(&mut self, order: Order, sample: T) -> Pushed {
        if self.newest.is_none_or(|newest| newest < order) {
            self.newest = Some(order);
            if self.samples.len() == self.capacity {
                self.samples.pop_front();
            } else if self.samples.is_empty() {
                self.samples.reserve_exact(self.capacity.min(RECENT));
            }
            self.samples.push_back((order, sample));
            return Pushed::Newest;
        }
        self.push_late(order, sample)
    }

    fn push_late(&mut self, order: Order, sample: T) -> Pushed {
        let Err(at) = self.samples.binary_search_by(|(held, _)| held.cmp(&order)) else { return Pushed::Duplicate };
        self.late += 1;
        if self.samples.len() < self.capacity {
            self.samples.insert(at, (order, sample));
        } else if at > 0 {
            self.samples.pop_front();
            self.samples.insert(at - 1, (order, sample));
        } else {
            return Pushed::TooOld;
        }
        Pushed::Late
    }

    /// The sample with the greatest order.
    pub fn current(&self) -> Option<&(Order, T)> {
        self.samples.back()
    }

    /// The sample with the least order.
    pub fn oldest(&self) -> Option<&(Order, T)> {
        self.samples.front()
    }

    /// The samples, oldest first; from the back, newest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &(Order, T)> + ExactSizeIterator {
        self.samples.iter()
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// How many came after a newer one, kept or not.
    pub fn late(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ns: i64, sequence: u64) -> Order {
        (EventTime(ns), 1, sequence)
    }

    #[test]
    fn a_late_sample_takes_its_place_is_counted_and_never_becomes_current() {
        let mut ring = Ring::new(3);
        let mut check = |ns: i64, expected: Pushed, held: &[i64]| {
            assert_eq!(ring.push(at(ns, 1), ns), expected, "{ns}");
            assert_eq!(ring.iter().map(|&(_, ns)| ns).collect::<Vec<_>>(), held);
        };
        check(10, Pushed::Newest, &[10]);
        check(30, Pushed::Newest, &[10, 30]);
        check(20, Pushed::Late, &[10, 20, 30]);
        check(40, Pushed::Newest, &[20, 30, 40]);
        check(25, Pushed::Late, &[25, 30, 40]);
        check(5, Pushed::TooOld, &[25, 30, 40]);
        check(30, Pushed::Duplicate, &[25, 30, 40]);
        assert_eq!(ring.late(), 3);
        assert_eq!(ring.current().map(|&(_, ns)| ns), Some(40));
    }

    #[test]
    fn a_ring_that_may_hold_any_number_takes_room_for_the_usual_one() {
        let mut ring = Ring::new(usize::MAX);
        assert_eq!((ring.push(at(1, 1), 1), ring.len()), (Pushed::Newest, 1));
        assert!(ring.samples.capacity() < 2 * RECENT);
    }

    proptest! {
        #[test]
        fn the_ring_holds_the_greatest_of_what_it_was_given(times in prop::collection::vec(0..200i64, 0..300), capacity in 1..40usize) {
            let mut ring = Ring::new(capacity);
            for &ns in &times {
                ring.push(at(ns, 1), ns);
            }
            let mut greatest = times.clone();
            greatest.sort_unstable();
            greatest.dedup();
            let expected = &greatest[greatest.len().saturating_sub(capacity)..];
            prop_assert_eq!(ring.iter().map(|&(_, ns)| ns).collect::<Vec<_>>(), expected);
        }
    }
}
