//! The buffer owns every record until the broker has acknowledged it. Bounded in bytes and records; over the bound the oldest frames
//! go, are counted, and are remembered as gaps to be reported. In memory: a restart loses what was not acknowledged.
//!
//! Order: events and inventories first, then frames, oldest first. A host's frames wait until an inventory of that host was
//! acknowledged on this connection, because they speak in its slots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use async_nats::Subject;
use bytes::Bytes;
use plimsoll_schemas::ctl::Class as Numbering;
use tokio::sync::Notify;

/// Most events and inventories kept.
pub const EVENTS_MAX: usize = 65_536;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A frame with this sequence.
    Sample {
        /// Within (host, epoch, class sample).
        sequence: u64,
    },
    /// A registration with this sequence.
    Inventory {
        /// Within (host, epoch, class event).
        sequence: u64,
    },
    /// A host event with this sequence.
    Event {
        /// Within (host, epoch, class event).
        sequence: u64,
    },
    /// A record that was acknowledged before and is asked for again: giving it up loses nothing.
    Again {
        /// Which numbering.
        numbering: Numbering,
        /// Within it.
        sequence: u64,
    },
}

impl Class {
    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sample { .. } => "sample",
            Self::Inventory { .. } => "inventory",
            Self::Event { .. } => "event",
            Self::Again { .. } => "repair",
        }
    }

    /// Its numbering, and its number in it.
    pub const fn number(self) -> (Numbering, u64) {
        match self {
            Self::Sample { sequence } => (Numbering::Sample, sequence),
            Self::Inventory { sequence } | Self::Event { sequence } => (Numbering::Event, sequence),
            Self::Again { numbering, sequence } => (numbering, sequence),
        }
    }
}

/// One message to be published. Its bytes never change, however often it is sent.
#[derive(Debug, Clone)]
pub struct Record {
    /// Number of the host in this process.
    pub host: usize,
    /// What it is.
    pub class: Class,
    /// Where it goes.
    pub subject: Subject,
    /// What it says.
    pub payload: Bytes,
}

/// A record's number in the buffer.
pub type Ticket = u64;

/// Frames of one host that were given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Number of the host.
    pub host: usize,
    /// First sequence.
    pub from_sequence: u64,
    /// Last sequence.
    pub to_sequence: u64,
    /// Which bound.
    pub cause: &'static str,
}

/// How full the buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Depth {
    /// Records.
    pub records: usize,
    /// Payload bytes.
    pub bytes: usize,
    /// Of the records, sent and not yet acknowledged.
    pub in_flight: usize,
}

/// How large the buffer may become.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Payload bytes.
    pub bytes: usize,
    /// Frames.
    pub frames: usize,
}

/// The buffer. Shared by the collector, which fills it, and the publisher, which empties it.
#[derive(Debug)]
pub struct Buffer {
    limits: Limits,
    inner: Mutex<Inner>,
    /// Wakes the publisher.
    pub filled: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    next: Ticket,
    records: BTreeMap<Ticket, Record>,
    bytes: usize,
    in_flight: BTreeSet<Ticket>,
    /// Events and inventories not in flight.
    events: BTreeSet<Ticket>,
    event_count: usize,
    /// Frames not in flight: the ones that may be given up.
    waiting: BTreeSet<Ticket>,
    /// Of them, those whose host is announced.
    ready: BTreeSet<Ticket>,
    hosts: Vec<Gate>,
    losses: Vec<Loss>,
}

/// Whether a host's frames may go.
#[derive(Debug, Default)]
struct Gate {
    announced: bool,
    inventories: usize,
    /// Its frames that wait for the gate.
    held: BTreeSet<Ticket>,
}

impl Gate {
    fn is_open(&self) -> bool {
        self.announced && self.inventories == 0
    }
}

impl Buffer {
    /// An empty buffer.
    pub fn new(limits: Limits) -> Self {
        Self { limits, inner: Mutex::default(), filled: Notify::new() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// Takes a record over. Returns how many records had to go for it: (frames, events).
    pub fn push(&self, record: Record) -> (u64, u64) {
        let mut inner = self.lock();
        let ticket = inner.next;
        inner.next += 1;
        inner.bytes += record.payload.len();
        let host = record.host;
        if inner.hosts.len() <= host {
            inner.hosts.resize_with(host + 1, Gate::default);
        }
        if matches!(record.class, Class::Inventory { .. }) {
            inner.hosts[host].inventories += 1;
            inner.close(host);
        }
        match record.class.number().0 {
            Numbering::Sample => inner.put_frame(ticket, host),
            Numbering::Event => inner.put_event(ticket),
        }
        inner.records.insert(ticket, record);
        let dropped = inner.shrink(self.limits);
        drop(inner);
        self.filled.notify_one();
        dropped
    }

    /// The next record to send, now in flight.
    pub fn take(&self) -> Option<(Ticket, Record)> {
        let mut inner = self.lock();
        let ticket = match inner.events.pop_first() {
            Some(ticket) => ticket,
            None => {
                let ticket = inner.ready.pop_first()?;
                inner.waiting.remove(&ticket);
                ticket
            }
        };
        inner.in_flight.insert(ticket);
        Some((ticket, inner.records.get(&ticket).expect("what waits is kept").clone()))
    }

    /// The broker has it. Returns the record, or nothing if the ticket is not in flight (any more).
    pub fn acknowledged(&self, ticket: Ticket) -> Option<Record> {
        let mut inner = self.lock();
        if !inner.in_flight.remove(&ticket) {
            return None;
        }
        let record = inner.remove(ticket)?;
        if matches!(record.class, Class::Inventory { .. }) {
            inner.hosts[record.host].announced = true;
            inner.open(record.host);
        }
        Some(record)
    }

    /// It was not acknowledged: it waits again, in its old place.
    pub fn failed(&self, ticket: Ticket) {
        let mut inner = self.lock();
        if inner.in_flight.remove(&ticket) {
            inner.put_back(ticket);
        }
    }

    /// It can never be published (too large): it is given up and, if it is a frame, remembered as a gap.
    pub fn refuse(&self, ticket: Ticket, cause: &'static str) {
        let mut inner = self.lock();
        if inner.in_flight.remove(&ticket)
            && let Some(record) = inner.remove(ticket)
        {
            inner.lose(&record, cause);
            inner.open(record.host);
        }
    }

    /// The connection is gone: nothing is in flight any more, and every host has to be announced again.
    pub fn disconnected(&self) {
        let mut inner = self.lock();
        for gate in &mut inner.hosts {
            gate.announced = false;
        }
        for ticket in std::mem::take(&mut inner.ready) {
            inner.put_back(ticket);
        }
        for ticket in std::mem::take(&mut inner.in_flight) {
            inner.put_back(ticket);
        }
    }

    /// The losses since the last call.
    pub fn take_losses(&self) -> Vec<Loss> {
        std::mem::take(&mut self.lock().losses)
    }

    /// Whether there are losses to report.
    pub fn has_losses(&self) -> bool {
        !self.lock().losses.is_empty()
    }

    /// Which sequences of `from..=to` it holds.
    pub fn held(&self, host: usize, numbering: Numbering, from: u64, to: u64) -> BTreeSet<u64> {
        let inner = self.lock();
        let of_host = inner.records.values().filter(|record| record.host == host);
        let numbers = of_host.map(|record| record.class.number()).filter(|&(of, sequence)| of == numbering && (from..=to).contains(&sequence));
        numbers.map(|(_, sequence)| sequence).collect()
    }

    /// How full it is.
    pub fn depth(&self) -> Depth {
        let inner = self.lock();
        Depth { records: inner.records.len(), bytes: inner.bytes, in_flight: inner.in_flight.len() }
    }
}

impl Inner {
    fn put_event(&mut self, ticket: Ticket) {
        self.events.insert(ticket);
        self.event_count += 1;
    }

    fn put_frame(&mut self, ticket: Ticket, host: usize) {
        self.waiting.insert(ticket);
        if self.hosts[host].is_open() {
            self.ready.insert(ticket);
        } else {
            self.hosts[host].held.insert(ticket);
        }
    }

    fn put_back(&mut self, ticket: Ticket) {
        let Some(record) = self.records.get(&ticket) else { return };
        let (class, host) = (record.class, record.host);
        match class.number().0 {
            Numbering::Sample => self.put_frame(ticket, host),
            Numbering::Event => {
                self.events.insert(ticket);
            }
        }
    }

    /// Holds a host's frames back.
    fn close(&mut self, host: usize) {
        let records = &self.records;
        let held: Vec<Ticket> = self.ready.iter().copied().filter(|ticket| records[ticket].host == host).collect();
        for ticket in held {
            self.ready.remove(&ticket);
            self.hosts[host].held.insert(ticket);
        }
    }

    /// Lets a host's frames go if nothing holds them.
    fn open(&mut self, host: usize) {
        if self.hosts[host].is_open() {
            let held = std::mem::take(&mut self.hosts[host].held);
            self.ready.extend(held);
        }
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Record> {
        let record = self.records.remove(&ticket)?;
        self.bytes -= record.payload.len();
        if matches!(record.class, Class::Inventory { .. }) {
            self.hosts[record.host].inventories -= 1;
        }
        match record.class.number().0 {
            Numbering::Sample => {
                self.waiting.remove(&ticket);
                self.ready.remove(&ticket);
                self.hosts[record.host].held.remove(&ticket);
            }
            Numbering::Event => self.event_count -= 1,
        }
        self.events.remove(&ticket);
        Some(record)
    }

    fn lose(&mut self, record: &Record, cause: &'static str) {
        let Class::Sample { sequence } = record.class else { return };
        // Neighbours become one range. What is in flight cannot be lost, so there are never more ranges than that.
        let before = self.losses.iter_mut().rev().find(|loss| loss.host == record.host && loss.cause == cause && loss.to_sequence + 1 == sequence);
        match before {
            Some(loss) => loss.to_sequence = sequence,
            None => self.losses.push(Loss { host: record.host, from_sequence: sequence, to_sequence: sequence, cause }),
        }
    }

    /// Gives up the oldest until the limits hold.
    fn shrink(&mut self, limits: Limits) -> (u64, u64) {
        let (mut frames, mut events) = (0, 0);
        while self.event_count > EVENTS_MAX {
            let Some(ticket) = self.events.first().copied() else { break };
            if let Some(record) = self.remove(ticket) {
                self.open(record.host);
            }
            events += 1;
        }
        while self.bytes > limits.bytes || self.waiting.len() > limits.frames {
            let Some(ticket) = self.waiting.first().copied() else { break };
            if let Some(record) = self.remove(ticket) {
                let cause = if self.bytes + record.payload.len() > limits.bytes { "buffer_bytes" } else { "buffer_frames" };
                self.lose(&record, cause);
            }
            frames += 1;
        }
        (frames, events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(host: usize, sequence: u64) -> Record {
        Record { host, class: Class::Sample { sequence }, subject: Subject::from_static("s"), payload: Bytes::from(vec![0; 100]) }
    }

    fn inventory(host: usize) -> Record {
        Record { host, class: Class::Inventory { sequence: 1 }, subject: Subject::from_static("i"), payload: Bytes::new() }
    }

    fn buffer(bytes: usize) -> Buffer {
        Buffer::new(Limits { bytes, frames: 1_000 })
    }

    fn announced(bytes: usize, hosts: usize) -> Buffer {
        let buffer = buffer(bytes);
        for host in 0..hosts {
            buffer.push(inventory(host));
            let (ticket, _) = buffer.take().expect("the inventory");
            buffer.acknowledged(ticket);
        }
        buffer
    }

    fn sequences(buffer: &Buffer) -> Vec<(usize, u64)> {
        std::iter::from_fn(|| buffer.take())
            .map(|(_, record)| match record.class {
                Class::Sample { sequence } => (record.host, sequence),
                Class::Inventory { .. } | Class::Event { .. } | Class::Again { .. } => (record.host, 0),
            })
            .collect()
    }

    #[test]
    fn frames_wait_until_their_host_is_announced() {
        let buffer = buffer(10_000);
        buffer.push(frame(0, 1));
        buffer.push(frame(1, 1));
        assert!(buffer.take().is_none());
        buffer.push(inventory(1));
        let (ticket, _) = buffer.take().expect("the inventory");
        assert!(buffer.take().is_none(), "sent is not yet acknowledged");
        buffer.acknowledged(ticket);
        assert_eq!(sequences(&buffer), [(1, 1)]);
    }

    #[test]
    fn a_new_inventory_overtakes_waiting_frames_and_holds_later_ones() {
        let buffer = announced(10_000, 2);
        buffer.push(frame(0, 1));
        buffer.push(inventory(0));
        buffer.push(frame(1, 1));
        assert_eq!(sequences(&buffer), [(0, 0), (1, 1)]);
    }

    #[test]
    fn the_oldest_frames_go_first_and_every_one_is_in_exactly_one_loss() {
        let buffer = announced(1_000, 2);
        for sequence in 1..=20 {
            buffer.push(frame(0, sequence));
            buffer.push(frame(1, sequence));
        }
        let losses = buffer.take_losses();
        let gone = |host: usize, to_sequence| Loss { host, from_sequence: 1, to_sequence, cause: "buffer_bytes" };
        assert_eq!(losses, [gone(0, 15), gone(1, 15)]);
        assert!(buffer.take_losses().is_empty());
        let kept: Vec<_> = (16..=20).flat_map(|sequence| [(0, sequence), (1, sequence)]).collect();
        assert_eq!(sequences(&buffer), kept);
        assert_eq!(buffer.depth(), Depth { records: 10, bytes: 1_000, in_flight: 10 });
    }

    #[test]
    fn what_is_in_flight_is_never_given_up() {
        let buffer = announced(300, 1);
        buffer.push(frame(0, 1));
        let (ticket, _) = buffer.take().expect("a frame");
        for sequence in 2..=6 {
            buffer.push(frame(0, sequence));
        }
        assert_eq!(buffer.take_losses(), [Loss { host: 0, from_sequence: 2, to_sequence: 4, cause: "buffer_bytes" }]);
        assert!(buffer.acknowledged(ticket).is_some());
        assert!(buffer.acknowledged(ticket).is_none(), "once");
        assert_eq!(sequences(&buffer), [(0, 5), (0, 6)]);
    }

    #[test]
    fn what_is_sent_again_waits_like_a_frame_and_is_given_up_without_a_loss() {
        let buffer = buffer(300);
        let again = |sequence| Record { class: Class::Again { numbering: Numbering::Sample, sequence }, ..frame(0, sequence) };
        buffer.push(again(1));
        assert!(buffer.take().is_none(), "its host is not announced");
        for sequence in 2..=4 {
            buffer.push(again(sequence));
        }
        assert_eq!((buffer.held(0, Numbering::Sample, 0, 3), buffer.take_losses()), (BTreeSet::from([2, 3]), vec![]));
        assert_eq!((buffer.held(0, Numbering::Event, 0, 9), buffer.held(1, Numbering::Sample, 0, 9)), Default::default());
    }

    #[test]
    fn a_failed_record_is_sent_again_in_its_old_place_with_the_same_bytes() {
        let buffer = announced(10_000, 1);
        for sequence in 1..=3 {
            buffer.push(frame(0, sequence));
        }
        let (ticket, first) = buffer.take().expect("a frame");
        buffer.failed(ticket);
        let (again, second) = buffer.take().expect("a frame");
        assert_eq!((again, second.payload), (ticket, first.payload));
    }

    #[test]
    fn after_a_disconnect_everything_waits_for_a_new_announcement() {
        let buffer = announced(10_000, 1);
        buffer.push(frame(0, 1));
        buffer.push(frame(0, 2));
        let (ticket, _) = buffer.take().expect("a frame");
        buffer.disconnected();
        assert!(buffer.take().is_none());
        assert!(buffer.acknowledged(ticket).is_none(), "an acknowledgement of the old connection means nothing now");
        buffer.push(inventory(0));
        let (ticket, _) = buffer.take().expect("the inventory");
        buffer.acknowledged(ticket);
        assert_eq!(sequences(&buffer), [(0, 1), (0, 2)]);
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_both_lost_and_kept_and_nothing_is_neither(limit in 200usize..3_000, steps in proptest::collection::vec(0u8..5, 1..300)) {
            let buffer = announced(limit, 1);
            let (mut pushed, mut flying, mut delivered, mut lost) = (0u64, Vec::new(), BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    0 | 1 => { pushed += 1; buffer.push(frame(0, pushed)); }
                    2 => flying.extend(buffer.take()),
                    3 => if let Some((ticket, record)) = flying.pop() {
                        buffer.acknowledged(ticket);
                        if let Class::Sample { sequence } = record.class { delivered.insert(sequence); }
                    },
                    _ => if let Some((ticket, _)) = flying.pop() { buffer.failed(ticket) },
                }
                proptest::prop_assert!(buffer.depth().bytes <= limit.max(buffer.depth().in_flight * 100));
            }
            for loss in buffer.take_losses() {
                lost.extend(loss.from_sequence..=loss.to_sequence);
            }
            for (ticket, _) in flying { buffer.failed(ticket); }
            let kept: BTreeSet<u64> = sequences(&buffer).into_iter().map(|(_, sequence)| sequence).collect();
            let mut all: Vec<u64> = delivered.iter().chain(&lost).chain(&kept).copied().collect();
            all.sort_unstable();
            proptest::prop_assert_eq!(all, (1..=pushed).collect::<Vec<_>>());
        }
    }
}
