//! The mix of requests a cell gets: how often each shape was asked for. What was long ago counts less and less.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher24;

use super::super::cell::Hashed;
use super::fleet::Fleet;
use super::shape::{Models, Shape};
use super::typical::Typical;

/// Most shapes that are told apart.
pub const SHAPES_MAX: usize = 512;
/// So many requests count; with one more every count is halved.
pub const REQUESTS_MAX: u64 = 20_000;

/// What policies see is taken over when more than one part in so many is new.
const MORE_PART: u64 = 16;

/// What was asked for, with models by name: it outlives every fleet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Asked {
    /// CPU, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory of the host, MiB.
    pub memory_mib: i64,
    /// GPUs on one host.
    pub gpus: u32,
    /// Thousandths of each.
    pub milli: i32,
    /// The models that will do, sorted; none = any.
    pub models: Vec<String>,
}

impl Asked {
    /// The shape in a fleet.
    pub fn shape(&self, fleet: &Fleet) -> Shape {
        let models = if self.models.is_empty() { Models::ANY } else { fleet.models_of(self.models.iter().map(String::as_str)) };
        Shape { cpu_milli: self.cpu_milli, memory_mib: self.memory_mib, gpus: self.gpus, milli: self.milli, models }
    }
}

/// How often each shape was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Mix {
    /// Sorted.
    counts: Vec<(Asked, u64)>,
    requests: u64,
}

impl Mix {
    /// One more request. Where there are too many, or too many shapes, all counts are halved, and what came once is forgotten.
    pub fn note(&mut self, asked: Asked) {
        let place = |counts: &[(Asked, u64)]| counts.binary_search_by(|(known, _)| known.cmp(&asked));
        while self.requests >= REQUESTS_MAX || (self.counts.len() >= SHAPES_MAX && place(&self.counts).is_err()) {
            self.counts.iter_mut().for_each(|(_, count)| *count /= 2);
            self.counts.retain(|&(_, count)| count > 0);
            self.requests = self.counts.iter().map(|&(_, count)| count).sum();
        }
        match place(&self.counts) {
            Ok(at) => self.counts[at].1 += 1,
            Err(at) => self.counts.insert(at, (asked, 1)),
        }
        self.requests += 1;
    }

    /// Whether nothing was asked for yet.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Every shape, and how often it came.
    pub fn iter(&self) -> impl Iterator<Item = (&Asked, u64)> {
        self.counts.iter().map(|(asked, count)| (asked, *count))
    }

    /// A number that tells mixes apart.
    pub fn hash(&self) -> u64 {
        let mut hasher = SipHasher24::new_with_key(b"plimsoll-the-mix");
        hasher.write(&postcard::to_stdvec(self).expect("plain data"));
        hasher.finish()
    }

    /// The same in a fleet: each shape with its count, and the typical ones.
    pub fn of_fleet(&self, fleet: &Fleet) -> (Vec<(Shape, i64)>, Typical) {
        let known: Vec<(Shape, String, i64)> =
            self.iter().map(|(asked, count)| (asked.shape(fleet), asked.models.join("|"), i64::try_from(count).unwrap_or(i64::MAX))).collect();
        let typical = Typical::of_counted(known.iter().map(|(shape, models, count)| (shape, models.as_str(), *count)));
        (known.into_iter().map(|(shape, _, count)| (shape, count)).collect(), typical)
    }
}

/// The mix as it grows, and as policies see it: what they see is taken over whenever a sixteenth more requests have come, so that what hosts
/// have bid holds for more than one request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    growing: Mix,
    settled: Mix,
    /// Hash of what policies see.
    hash: u64,
    /// Requests that ever came, and had come when it was taken over.
    noted: u64,
    settled_at: u64,
}

impl Settled {
    /// One more request.
    pub fn note(&mut self, asked: Asked) {
        self.growing.note(asked);
        self.noted += 1;
    }

    /// Takes over what has come, if that is enough. Between the members of a gang nothing is taken over.
    pub fn settle(&mut self) {
        if self.noted - self.settled_at > self.settled_at.min(REQUESTS_MAX) / MORE_PART {
            self.settled = self.growing.clone();
            self.hash = self.settled.hash();
            self.settled_at = self.noted;
        }
    }

    /// What policies see.
    pub fn seen(&self) -> Hashed<'_, Mix> {
        Hashed { of: &self.settled, hash: self.hash }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn asked(milli: i32) -> Asked {
        Asked { cpu_milli: 0, memory_mib: 0, gpus: 1, milli, models: Vec::new() }
    }

    #[test]
    fn what_policies_see_follows_at_once_while_there_is_little_and_later_in_steps() {
        let mut mix = Settled::default();
        let mut changes = Vec::new();
        for number in 1..=1_000_u64 {
            let before = mix.seen().hash;
            mix.note(asked(number as i32 % 7));
            mix.settle();
            changes.extend((mix.seen().hash != before).then_some(number));
        }
        assert_eq!(&changes[..18], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20]);
        assert!(changes.len() < 80 && changes.last().is_some_and(|&last| last > 930), "{changes:?}");
        let read: Settled = postcard::from_bytes(&postcard::to_stdvec(&mix).expect("plain data")).expect("readable");
        assert_eq!(read, mix);
    }

    #[test]
    fn old_requests_fade_and_there_are_never_too_many_shapes() {
        let mut mix = Mix::default();
        (0..100).for_each(|_| mix.note(asked(1)));
        for round in 0..3 {
            (2..=SHAPES_MAX as i32).for_each(|milli| mix.note(asked(milli + round)));
            assert!(mix.iter().count() <= SHAPES_MAX);
        }
        (0..REQUESTS_MAX).for_each(|_| mix.note(asked(7)));
        let counts: BTreeMap<i32, u64> = mix.iter().map(|(asked, count)| (asked.milli, count)).collect();
        assert!(counts[&1] < 100 && counts[&7] > 9_000, "{counts:?}");
        assert_eq!(counts.values().sum::<u64>(), mix.requests);
        assert!(mix.requests <= REQUESTS_MAX);
    }

    #[test]
    fn models_that_no_host_has_allow_nothing() {
        let mut mix = Mix::default();
        mix.note(Asked { models: vec!["T4".to_owned()], ..asked(500) });
        let (requests, typical) = mix.of_fleet(&Fleet::standing([]));
        assert_eq!((requests[0].0.models, requests[0].1, typical.weight), (Models::NONE, 1, 1));
    }
}
