//! Which record of the log comes next, and whether it still is the same log, decided without I/O.
//!
//! Every record is admitted exactly once and in order, or the hole is real. A consumer numbers what it delivers: where its numbers have a
//! hole, messages were lost on the way and it has to be created anew; where they have none, a hole in the stream's sequences is real.

use std::hash::Hasher;

use async_nats::jetstream::message::StreamMessage;
use plimsoll_fold::{LOGIC, State};
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::record::{Record, decode};
use plimsoll_schemas::time::LogTime;
use plimsoll_store::{Commit, Sealed};
use siphasher::sip::SipHasher24;

use crate::streams;

/// How far the log was read, and how to recognise that it is still the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Last record read.
    pub position: Position,
    /// When the stream was created, ns UTC; 0 = not known yet.
    pub created_at_ns: i64,
    /// Hash of the message at `position`.
    pub message_hash: u64,
    /// Log time of that record: the next one is not earlier.
    pub logged_at: LogTime,
}

impl Mark {
    /// Where a commit stands.
    pub fn of(commit: &Commit) -> Self {
        Self { position: commit.position, created_at_ns: commit.log_created_at_ns, message_hash: commit.message_hash, logged_at: commit.logged_at }
    }

    /// The commit of a state that was folded up to here.
    pub fn commit(&self, state: &State, sealed: Option<Sealed>) -> Commit {
        let summary = state.summary();
        Commit {
            logic: LOGIC,
            position: self.position,
            log_created_at_ns: self.created_at_ns,
            message_hash: self.message_hash,
            logged_at: self.logged_at,
            hash: state.hash(),
            out_seq: summary.out_seq,
            decision_seq: summary.decision_seq,
            sealed,
        }
    }

    /// Before the first record.
    pub fn start() -> Self {
        Self { position: Position::default(), created_at_ns: 0, message_hash: 0, logged_at: LogTime::default() }
    }
}

/// A message as it stands in the stream.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// When the broker stored it, ns UTC.
    pub at_ns: i64,
    /// Subject.
    pub subject: &'a str,
    /// Payload.
    pub payload: &'a [u8],
}

impl Stored<'_> {
    /// What tells two messages apart: SipHash-2-4 of time, subject and payload. The same bytes sent again, to the same sequence of a stream that
    /// went back, are another message: the broker's time differs.
    pub fn hash(&self) -> u64 {
        let mut hasher = SipHasher24::new_with_key(b"plimsoll-message");
        hasher.write(&self.at_ns.to_le_bytes());
        hasher.write(self.subject.as_bytes());
        hasher.write_u8(0);
        hasher.write(self.payload);
        hasher.finish()
    }
}

impl<'a> From<&'a StreamMessage> for Stored<'a> {
    fn from(message: &'a StreamMessage) -> Self {
        Self { at_ns: streams::nanos(message.time), subject: &message.subject, payload: &message.payload }
    }
}

/// A message as a consumer delivers it.
#[derive(Debug, Clone, Copy)]
pub struct Arrived<'a> {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its number among what the consumer has delivered, from 1.
    pub delivered: u64,
    /// The message.
    pub stored: Stored<'a>,
}

/// What became of a message.
#[derive(Debug, PartialEq)]
pub enum Admitted {
    /// It is the next record. `missing` sequences before it are gone from the log.
    Next {
        /// The record.
        record: Record,
        /// How many are missing.
        missing: u64,
    },
    /// It was delivered before.
    Repeated,
}

/// The consumer lost messages: create it anew from the own position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("delivery {found} came instead of {expected}: the consumer lost some")]
pub struct Lost {
    /// Number of the next delivery.
    pub expected: u64,
    /// What came.
    pub found: u64,
}

/// The log is not the one that was read up to the mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// What differs.
    pub what: &'static str,
    /// What the log says.
    pub found: String,
    /// What was expected.
    pub expected: String,
}

/// What a stream says about itself.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// When it was created, ns UTC.
    pub created_at_ns: i64,
    /// First sequence it holds.
    pub first_sequence: u64,
    /// Last sequence it gave.
    pub last_sequence: u64,
}

/// A reader's place in the log of a cell.
#[derive(Debug, Clone)]
pub struct Follow {
    cell: CellId,
    mark: Mark,
    /// Number of the consumer's last delivery.
    delivered: u64,
}

impl Follow {
    /// A reader that goes on behind `mark`.
    pub fn new(cell: CellId, mark: Mark) -> Self {
        Self { cell, mark, delivered: 0 }
    }

    /// Where it stands.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// A consumer was created that starts right behind the mark.
    pub fn begin(&mut self) {
        self.delivered = 0;
    }

    /// Whether the message at the mark has to be shown to [`Follow::same_log`]: one that was trimmed cannot be.
    pub fn compares(&self, shape: &Shape) -> bool {
        let sequence = self.mark.position.sequence;
        sequence >= shape.first_sequence.max(1) && sequence <= shape.last_sequence
    }

    /// Refuses a log that is not the one read so far. `message` = what stands at the mark, where that is asked for.
    pub fn same_log(&mut self, shape: &Shape, message: Option<Stored<'_>>) -> Result<(), Replaced> {
        let Mark { position, created_at_ns, message_hash: expected, .. } = self.mark;
        if created_at_ns != 0 && shape.created_at_ns != created_at_ns {
            return Err(replaced("its creation time (ns)", shape.created_at_ns, created_at_ns));
        }
        if position.sequence > shape.last_sequence {
            return Err(replaced("its last sequence", shape.last_sequence, format!("at least {}", position.sequence)));
        }
        if let Some(message) = message {
            let found = message.hash();
            if found != expected {
                let expected = format!("{expected:016x} at {}", position.sequence);
                return Err(replaced("the hash of its last known message", format!("{found:016x}"), expected));
            }
        }
        self.mark.created_at_ns = shape.created_at_ns;
        Ok(())
    }

    /// Takes what follows the own position; errors where the consumer has lost something.
    pub fn admit(&mut self, message: Arrived<'_>) -> Result<Admitted, Lost> {
        if message.delivered > self.delivered + 1 {
            return Err(Lost { expected: self.delivered + 1, found: message.delivered });
        }
        self.delivered = self.delivered.max(message.delivered);
        let expected = self.mark.position.sequence + 1;
        if message.sequence < expected {
            return Ok(Admitted::Repeated);
        }
        self.mark.position.sequence = message.sequence;
        self.mark.logged_at = LogTime(message.stored.at_ns).max(self.mark.logged_at);
        let body = decode(&self.cell, message.stored.subject, message.stored.payload);
        let record = Record { position: self.mark.position, logged_at: self.mark.logged_at, body };
        Ok(Admitted::Next { record, missing: message.sequence - expected })
    }

    /// Remembers the last message admitted. Needed only where a mark is taken, so that not every message has to be hashed.
    pub fn remember(&mut self, message: Stored<'_>) {
        self.mark.message_hash = message.hash();
    }
}

fn replaced(what: &'static str, found: impl ToString, expected: impl ToString) -> Replaced {
    Replaced { what, found: found.to_string(), expected: expected.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(at_ns: i64, payload: &'static [u8]) -> Stored<'static> {
        Stored { at_ns, subject: "plimsoll.c.log.tick", payload }
    }

    fn arrived(delivered: u64, sequence: u64) -> Arrived<'static> {
        Arrived { sequence, delivered, stored: stored(sequence as i64, b"{}") }
    }

    fn follow() -> Follow {
        Follow::new("c".parse().unwrap(), Mark::start())
    }

    #[test]
    fn a_hole_is_real_only_where_the_consumer_has_lost_nothing() {
        let mut follow = follow();
        assert_eq!(follow.admit(arrived(2, 2)), Err(Lost { expected: 1, found: 2 }), "the first delivery is missing, not the first record");
        assert!(matches!(follow.admit(arrived(1, 4)), Ok(Admitted::Next { missing: 3, .. })));
        assert!(matches!(follow.admit(arrived(2, 5)), Ok(Admitted::Next { missing: 0, .. })));
        assert_eq!(follow.admit(arrived(2, 5)), Ok(Admitted::Repeated));
        assert_eq!(follow.admit(arrived(4, 7)), Err(Lost { expected: 3, found: 4 }));
        assert!(matches!(follow.admit(arrived(3, 8)), Ok(Admitted::Next { missing: 2, .. })), "retention took two records");
        follow.begin();
        assert_eq!(follow.admit(arrived(1, 8)), Ok(Admitted::Repeated));
        assert!(matches!(follow.admit(arrived(2, 9)), Ok(Admitted::Next { missing: 0, .. })));
    }

    #[test]
    fn another_log_is_recognised_by_creation_length_or_message() {
        let mut follow = follow();
        let shape = |created_at_ns, first_sequence, last_sequence| Shape { created_at_ns, first_sequence, last_sequence };
        follow.same_log(&shape(77, 1, 0), None).unwrap();
        follow.admit(arrived(1, 1)).unwrap();
        follow.remember(stored(5, b"one"));
        assert!(follow.compares(&shape(77, 1, 3)) && !follow.compares(&shape(77, 2, 3)));
        let one = stored(5, b"one");
        assert_eq!(follow.same_log(&shape(77, 1, 3), Some(one)), Ok(()));
        let (other, again) = (stored(5, b"two"), stored(6, b"one"));
        for (shape, message) in [(shape(78, 1, 3), one), (shape(77, 1, 0), one), (shape(77, 1, 3), other), (shape(77, 1, 3), again)] {
            assert!(follow.same_log(&shape, Some(message)).is_err(), "{shape:?} {message:?}");
        }
    }
}
