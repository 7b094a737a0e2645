//! A JetStream stream in memory, with what was measured of the real one: it acknowledges what a crash then loses, gives used sequences to
//! other messages, forgets message ids after its window, and comes back under another creation time when it was made anew.

use std::collections::{BTreeMap, VecDeque};

use plimsoll_processor::follow::Stored;

/// How long a message id is remembered, ns.
pub const DUPLICATE_WINDOW_NS: i64 = 120_000_000_000;

/// One stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its sequence.
    pub sequence: u64,
    /// When it was stored, ns UTC by the broker's clock.
    pub stored_at_ns: i64,
    /// Subject.
    pub subject: String,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// As a reader takes it.
    pub fn stored(&self) -> Stored<'_> {
        Stored { at_ns: self.stored_at_ns, subject: &self.subject, payload: &self.payload }
    }
}

/// Under which conditions a message may be stored.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    /// Its id: one seen within the window is acknowledged and not stored again.
    pub id: Option<String>,
    /// The stream must end there.
    pub last: Option<u64>,
    /// The newest message on the same subject must be that one (0 = none).
    pub last_on_subject: Option<u64>,
}

/// An acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Where it stands.
    pub sequence: u64,
    /// Whether it stood there before.
    pub duplicate: bool,
}

/// A condition did not hold (error 10071).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrongLast {
    /// What is the last one.
    pub found: u64,
}

/// The stream.
#[derive(Debug, Clone)]
pub struct Stream {
    /// When it was created, ns UTC.
    pub created_at_ns: i64,
    messages: VecDeque<Message>,
    last: u64,
    /// Messages ever stored, also those lost since.
    stored: u64,
    ids: BTreeMap<String, (u64, i64)>,
}

impl Stream {
    /// An empty one.
    pub fn new(created_at_ns: i64) -> Self {
        Self { created_at_ns, messages: VecDeque::new(), last: 0, stored: 0, ids: BTreeMap::new() }
    }

    /// Sequence given last.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// First sequence still held; one behind the last if there is none.
    pub fn first(&self) -> u64 {
        self.messages.front().map_or(self.last + 1, |first| first.sequence)
    }

    /// Stores a message if its conditions hold.
    pub fn append(&mut self, now_ns: i64, subject: &str, payload: &[u8], conditions: &Conditions) -> Result<Ack, WrongLast> {
        self.ids.retain(|_, &mut (_, at)| now_ns.saturating_sub(at) < DUPLICATE_WINDOW_NS);
        if conditions.last.is_some_and(|expected| expected != self.last) {
            return Err(WrongLast { found: self.last });
        }
        let on_subject = self.last_on(subject).map_or(0, |message| message.sequence);
        if conditions.last_on_subject.is_some_and(|expected| expected != on_subject) {
            return Err(WrongLast { found: on_subject });
        }
        if let Some(&(sequence, _)) = conditions.id.as_ref().and_then(|id| self.ids.get(id)) {
            return Ok(Ack { sequence, duplicate: true });
        }
        self.last += 1;
        // The broker's clock shows nanoseconds, the world's only quarters of a second: no two messages were stored at the same time.
        self.stored += 1;
        let stored_at_ns = now_ns + self.stored as i64;
        let message = Message { sequence: self.last, stored_at_ns, subject: subject.to_owned(), payload: payload.to_vec() };
        self.messages.push_back(message);
        if let Some(id) = &conditions.id {
            self.ids.insert(id.clone(), (self.last, now_ns));
        }
        Ok(Ack { sequence: self.last, duplicate: false })
    }

    /// The message at a sequence, if it is held.
    pub fn get(&self, sequence: u64) -> Option<&Message> {
        assert!(sequence > 0, "sequences begin at 1: the broker refuses to look for 0");
        self.messages.binary_search_by_key(&sequence, |message| message.sequence).ok().map(|at| &self.messages[at])
    }

    /// The newest message on a subject.
    pub fn last_on(&self, subject: &str) -> Option<&Message> {
        self.messages.iter().rev().find(|message| message.subject == subject)
    }

    /// At most `count` messages from a sequence on.
    pub fn from(&self, sequence: u64, count: usize) -> impl Iterator<Item = &Message> {
        let at = self.messages.partition_point(|message| message.sequence < sequence);
        self.messages.iter().skip(at).take(count)
    }

    /// Everything held.
    pub fn all(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter()
    }

    /// A power cut: everything behind `kept` is gone although it was acknowledged, and its sequences are given again.
    pub fn lose_behind(&mut self, kept: u64) {
        while self.messages.back().is_some_and(|message| message.sequence > kept) {
            self.messages.pop_back();
        }
        self.last = self.last.min(kept);
        let last = self.last;
        self.ids.retain(|_, &mut (sequence, _)| sequence <= last);
    }

    /// Retention or an operator's purge: messages below `first` are gone, sequences go on.
    pub fn trim(&mut self, first: u64) {
        while self.messages.front().is_some_and(|message| message.sequence < first) {
            self.messages.pop_front();
        }
    }
}
