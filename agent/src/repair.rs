//! Answers to the processor's requests for what the log lacks: what is kept is published again, byte for byte; what is gone is said to be.
//!
//! The answer carries no message id, so the broker's duplicate window cannot swallow it; whoever has the record already knows it by its
//! sequence. Requests come by core NATS: a process that speaks for a few hosts listens to their subjects only (all that its
//! credentials need to allow), one that speaks for many to those of the whole cell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use futures::StreamExt;
use futures::stream::SelectAll;
use plimsoll_schemas::ctl::{Class as Numbering, Ctl, Repair};
use plimsoll_schemas::id::{CellId, HostId};
use plimsoll_schemas::subject;
use tokio::sync::watch;

use crate::buffer::{Class, Record};
use crate::kept::{Kept, Key};
use crate::metrics::Metrics;

/// Requests that may wait for the collector.
const REQUESTS_MAX: usize = 1_024;
/// Hosts for which each subject is subscribed to by name; more, and one subscription takes those of the cell.
const NAMED_MAX: usize = 16;
/// Longest request read, bytes.
const REQUEST_BYTES_MAX: usize = 4_096;
/// Most sequences of one request looked at: the rest is asked for again.
const SEQUENCES_MAX: u64 = 16_384;
/// Most ranges of one request said to be gone at once: the rest is asked for again.
const GONE_MAX: usize = 64;
/// Most records waiting to be published again.
const AGAIN_MAX: usize = 65_536;
/// Records are handed to the publisher again this often, ns …
const TURN_NS: u64 = 100_000_000;
/// … at most so many …
const TURN_RECORDS: usize = 100;
/// … and so many bytes at a time, so that the present is never held up by the past.
const TURN_BYTES: usize = 512 << 10;

/// The collector's end: the requests, and what waits to be published again.
#[derive(Debug)]
pub struct Repairs {
    kept: Arc<Kept>,
    requests: Receiver<Repair>,
    hosts: watch::Sender<BTreeSet<HostId>>,
    again: BTreeSet<Key>,
    turned_at_ns: u64,
}

/// The listener's end.
#[derive(Debug)]
pub struct Ear {
    requests: SyncSender<Repair>,
    hosts: watch::Receiver<BTreeSet<HostId>>,
}

/// What becomes of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How many records will be published again.
    pub again: u64,
    /// How many are on their way already.
    pub waiting: u64,
    /// What is gone.
    pub gone: Vec<(u64, u64)>,
}

impl Repairs {
    /// Both ends.
    pub fn new(kept: Arc<Kept>) -> (Self, Ear) {
        let (sender, requests) = sync_channel(REQUESTS_MAX);
        let (hosts, named) = watch::channel(BTreeSet::new());
        (Self { kept, requests, hosts, again: BTreeSet::new(), turned_at_ns: 0 }, Ear { requests: sender, hosts: named })
    }

    /// This process speaks for one host more.
    pub fn speaks_for(&self, host: HostId) {
        self.hosts.send_modify(|hosts| {
            hosts.insert(host);
        });
    }

    /// The next request, if there is one.
    pub fn next(&self) -> Option<Repair> {
        self.requests.try_recv().ok()
    }

    /// Sorts the sequences `from..=to`: those in `held` are on their way, those kept will be published again, the others are gone.
    pub fn sort(&mut self, host: usize, numbering: Numbering, from: u64, to: u64, held: &BTreeSet<u64>) -> Answer {
        let mut answer = Answer::default();
        for sequence in from..=to.min(from.saturating_add(SEQUENCES_MAX - 1)) {
            let key = (host, numbering, sequence);
            if held.contains(&sequence) || self.again.contains(&key) {
                answer.waiting += 1;
            } else if self.kept.has(&key) {
                if self.again.len() < AGAIN_MAX {
                    self.again.insert(key);
                    answer.again += 1;
                }
            } else {
                let ranges = answer.gone.len();
                match answer.gone.last_mut() {
                    Some((_, last)) if *last + 1 == sequence => *last = sequence,
                    Some(_) | None if ranges < GONE_MAX => answer.gone.push((sequence, sequence)),
                    Some(_) | None => break,
                }
            }
        }
        answer
    }

    /// What is to be published again now.
    pub fn turn(&mut self, now_ns: u64) -> Vec<Record> {
        let mut records = Vec::new();
        if self.again.is_empty() || now_ns.saturating_sub(self.turned_at_ns) < TURN_NS {
            return records;
        }
        self.turned_at_ns = now_ns;
        let mut bytes = 0;
        while records.len() < TURN_RECORDS
            && bytes < TURN_BYTES
            && let Some(key) = self.again.pop_first()
        {
            // What has gone meanwhile is asked for again, and then said to be gone.
            let Some(record) = self.kept.get(&key) else { continue };
            bytes += record.payload.len();
            records.push(Record { class: Class::Again { numbering: key.1, sequence: key.2 }, ..record });
        }
        records
    }
}

impl Ear {
    /// Takes requests until the client or the collector is gone.
    pub async fn listen(mut self, client: async_nats::Client, cell: CellId, metrics: Arc<Metrics>) {
        let mut subjects = BTreeSet::new();
        let mut messages: SelectAll<async_nats::Subscriber> = SelectAll::new();
        loop {
            tokio::select! {
                changed = self.hosts.changed() => {
                    let wanted = wanted(&cell, &self.hosts.borrow_and_update());
                    if changed.is_err() {
                        return;
                    }
                    if !subjects.is_subset(&wanted) {
                        // Many names have become one for all: what is dropped is unsubscribed.
                        (subjects, messages) = (BTreeSet::new(), SelectAll::new());
                    }
                    for subject in wanted.difference(&subjects.clone()) {
                        match client.subscribe(subject.clone()).await {
                            Ok(subscriber) => messages.push(subscriber),
                            Err(error) => tracing::warn!(subject, %error, "cannot listen for repair requests"),
                        }
                        subjects.insert(subject.clone());
                    }
                }
                Some(message) = messages.next(), if !messages.is_empty() => self.take(&cell, &message, &metrics),
            }
        }
    }

    fn take(&self, cell: &CellId, message: &async_nats::Message, metrics: &Metrics) {
        if message.payload.len() > REQUEST_BYTES_MAX {
            metrics.repair_requests_refused.inc();
            return;
        }
        match serde_json::from_slice(&message.payload) {
            // A wildcard also hears what is meant for other processes.
            Ok(Ctl::Repair(repair)) if !self.hosts.borrow().contains(&repair.host) => {}
            Ok(Ctl::Repair(repair)) if message.subject.as_str() == subject::ctl(cell, &repair.host) => {
                metrics.repair_requests.inc();
                if self.requests.try_send(repair).is_err() {
                    metrics.repair_requests_refused.inc();
                }
            }
            Ok(Ctl::Repair(_)) | Err(_) => {
                tracing::debug!(subject = %message.subject, "a request that cannot be read");
                metrics.repair_requests_refused.inc();
            }
        }
    }
}

/// What to subscribe to.
fn wanted(cell: &CellId, hosts: &BTreeSet<HostId>) -> BTreeSet<String> {
    if hosts.len() > NAMED_MAX { BTreeSet::from([subject::ctl_all(cell)]) } else { hosts.iter().map(|host| subject::ctl(cell, host)).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::Subject;
    use bytes::Bytes;

    fn record(sequence: u64, bytes: usize) -> Record {
        Record { host: 0, class: Class::Sample { sequence }, subject: Subject::from_static("s"), payload: Bytes::from(vec![0; bytes]) }
    }

    fn repairs(kept: impl IntoIterator<Item = u64>, bytes: usize) -> Repairs {
        let store = Arc::new(Kept::new(64 << 20));
        kept.into_iter().for_each(|sequence| assert_eq!(store.keep(&record(sequence, bytes)), 0));
        Repairs::new(store).0
    }

    fn sequences(records: &[Record]) -> Vec<u64> {
        records.iter().map(|record| record.class.number().1).collect()
    }

    #[test]
    fn every_sequence_asked_for_is_sent_again_on_its_way_or_gone() {
        let mut repairs = repairs([3, 4, 8], 10);
        let held = BTreeSet::from([9, 10]);
        let answer = repairs.sort(0, Numbering::Sample, 1, 12, &held);
        assert_eq!(answer, Answer { again: 3, waiting: 2, gone: vec![(1, 2), (5, 7), (11, 12)] });
        let answer = repairs.sort(0, Numbering::Sample, 3, 4, &held);
        assert_eq!(answer, Answer { again: 0, waiting: 2, gone: vec![] }, "asked twice is sent once");
        assert_eq!(repairs.sort(0, Numbering::Event, 3, 3, &held).gone, [(3, 3)], "another numbering");
        assert_eq!(repairs.sort(1, Numbering::Sample, 3, 3, &held).gone, [(3, 3)], "another host");
        let again = repairs.turn(TURN_NS);
        assert_eq!(sequences(&again), [3, 4, 8]);
        assert!(again.iter().all(|record| matches!(record.class, Class::Again { .. })));
    }

    #[test]
    fn a_turn_is_bounded_in_records_bytes_and_time() {
        let mut many = repairs(1..=250, 10);
        many.sort(0, Numbering::Sample, 1, 250, &BTreeSet::new());
        let turns: Vec<usize> = (10..25).map(|tenth| many.turn(tenth * TURN_NS / 2).len()).collect();
        assert_eq!(turns, [100, 0, 100, 0, 50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut large = repairs(1..=10, 200 << 10);
        large.sort(0, Numbering::Sample, 1, 10, &BTreeSet::new());
        assert_eq!(large.turn(TURN_NS).len(), 3);
    }

    #[test]
    fn an_absurd_request_is_answered_in_part() {
        let mut repairs = repairs([], 0);
        assert_eq!(repairs.sort(0, Numbering::Sample, 1, u64::MAX, &BTreeSet::new()).gone, [(1, SEQUENCES_MAX)]);
        let mut repairs = self::repairs((1..1_000).map(|n| 2 * n), 10);
        assert_eq!(repairs.sort(0, Numbering::Sample, 1, 2_000, &BTreeSet::new()).gone.len(), GONE_MAX);
    }

    #[test]
    fn few_hosts_are_listened_for_by_name_and_many_by_one_subscription() {
        let cell: CellId = "c".parse().expect("valid");
        let hosts = |count: usize| (0..count).map(|n| format!("h{n}").parse().expect("valid")).collect::<BTreeSet<HostId>>();
        assert_eq!(wanted(&cell, &hosts(1)), BTreeSet::from(["plimsoll.c.ctl.h0".to_owned()]));
        assert_eq!(wanted(&cell, &hosts(NAMED_MAX)).len(), NAMED_MAX);
        assert_eq!(wanted(&cell, &hosts(1_000)), BTreeSet::from(["plimsoll.c.ctl.*".to_owned()]));
    }
}
