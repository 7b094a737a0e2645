//! What the broker has acknowledged, kept in memory for as long as there is room: an acknowledgement is not durability, and whoever misses
//! a record asks for it. The oldest go first and are counted. A restart forgets all of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use plimsoll_schemas::ctl::Class as Numbering;

use crate::buffer::Record;

/// What a record costs beside its payload, bytes: its places in the map and the queue, and the allocator's share.
const OVERHEAD_BYTES: usize = 256;

/// Which record: number of the host in this process, numbering, sequence.
pub type Key = (usize, Numbering, u64);

/// The records kept. Shared by the publisher, which adds to them, and the collector, which looks them up.
#[derive(Debug)]
pub struct Kept {
    limit_bytes: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<Key, Record>,
    /// Oldest first.
    order: VecDeque<Key>,
    bytes: usize,
}

impl Kept {
    /// Room for so many bytes; 0 = nothing is kept.
    pub fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, inner: Mutex::default() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Keeps a record, unless it is kept already; returns how many had to go for it.
    pub fn keep(&self, record: &Record) -> u64 {
        let (numbering, sequence) = record.class.number();
        let key = (record.host, numbering, sequence);
        let mut inner = self.lock();
        if inner.records.contains_key(&key) {
            return 0;
        }
        inner.bytes += record.payload.len() + OVERHEAD_BYTES;
        inner.records.insert(key, record.clone());
        inner.order.push_back(key);
        let mut gone = 0;
        while inner.bytes > self.limit_bytes
            && let Some(oldest) = inner.order.pop_front()
        {
            if let Some(record) = inner.records.remove(&oldest) {
                inner.bytes -= record.payload.len() + OVERHEAD_BYTES;
                gone += 1;
            }
        }
        gone
    }

    /// The record, if it is still kept.
    pub fn get(&self, key: &Key) -> Option<Record> {
        self.lock().records.get(key).cloned()
    }

    /// Whether it is still kept.
    pub fn has(&self, key: &Key) -> bool {
        self.lock().records.contains_key(key)
    }

    /// Records and bytes kept.
    pub fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.records.len(), inner.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Class;
    use async_nats::Subject;
    use bytes::Bytes;

    fn frame(sequence: u64) -> Record {
        Record { host: 0, class: Class::Sample { sequence }, subject: Subject::from_static("s"), payload: Bytes::from(vec![7; 744]) }
    }

    #[test]
    fn the_oldest_go_first_and_what_is_kept_stays_within_its_bound() {
        let kept = Kept::new(3_000);
        let gone: Vec<u64> = (1..=5).map(|sequence| kept.keep(&frame(sequence))).collect();
        assert_eq!((gone, kept.size()), (vec![0, 0, 0, 1, 1], (3, 3_000)));
        let has: Vec<bool> = (1..=5).map(|sequence| kept.has(&(0, Numbering::Sample, sequence))).collect();
        assert_eq!(has, [false, false, true, true, true]);
        assert_eq!(kept.get(&(0, Numbering::Sample, 4)).map(|record| record.payload), Some(frame(4).payload));
    }

    #[test]
    fn a_record_kept_twice_takes_its_room_once() {
        let kept = Kept::new(3_000);
        assert_eq!((kept.keep(&frame(1)), kept.keep(&frame(1)), kept.size()), (0, 0, (1, 1_000)));
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let kept = Kept::new(0);
        assert_eq!((kept.keep(&frame(1)), kept.size()), (1, (0, 0)));
    }
}
