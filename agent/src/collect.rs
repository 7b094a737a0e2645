//! The one loop of the agent: takes a signal, applies it to its host, hands the resulting records to the buffer. Also notices what the
//! publisher cannot say itself: a new connection asks for inventories, given-up frames ask for gap events, and the processor asks for
//! what the log lacks.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use async_nats::Subject;
use bytes::Bytes;
use plimsoll_schemas::ctl::{Class as Numbering, Repair};
use plimsoll_schemas::frame::Frame;
use plimsoll_schemas::id::{CellId, HostId};
use plimsoll_schemas::inventory::EventKind;
use plimsoll_schemas::subject::LogSubject;
use plimsoll_schemas::time::EventTime;

use crate::buffer::{Buffer, Class, Record};
use crate::clock::{boot_ns, wall_now};
use crate::host::{Common, Host, Outcome};
use crate::metrics::{GPU_SERIES_MAX, Metrics, by};
use crate::record::Recorder;
use crate::repair::{Answer, Repairs};
use crate::source::{Delivery, HostEvent, HostFacts, HostTick, Signal};
use crate::status::Status;

/// How often inventories are said again without a change, ns.
const INVENTORY_EVERY_NS: u64 = 3_600_000_000_000;
/// Longest wait for a signal before connection and losses are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Losses are collected into ranges for this long, so that an overload is not made worse by its own reports, ns.
const LOSSES_EVERY_NS: u64 = 1_000_000_000;
/// Most frames of one host held back by a fault script.
const DELAYED_MAX: usize = 600;

/// The loop's state.
#[derive(Debug)]
pub struct Collector {
    common: Common,
    cell: CellId,
    hosts: Vec<Speaker>,
    numbers: BTreeMap<HostId, usize>,
    buffer: Arc<Buffer>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    recorder: Option<Recorder>,
    repairs: Repairs,
    connects_seen: u64,
    losses_said_at_ns: u64,
    gpu_count: usize,
}

/// What the collector shares with the other parts.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Takes the records.
    pub buffer: Arc<Buffer>,
    /// What the parts tell each other.
    pub status: Arc<Status>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// A host and where its messages go.
#[derive(Debug)]
struct Speaker {
    host: Host,
    sample_subject: Subject,
    inventory_subject: Subject,
    event_subject: Subject,
    announced_at_ns: u64,
    delayed: VecDeque<(u32, Record)>,
}

impl Collector {
    /// A loop without hosts.
    pub fn new(common: Common, cell: CellId, shared: Shared, recorder: Option<Recorder>, repairs: Repairs) -> Self {
        let (hosts, numbers) = (Vec::new(), BTreeMap::new());
        let Shared { buffer, status, metrics } = shared;
        Self { common, cell, hosts, numbers, buffer, status, metrics, recorder, repairs, connects_seen: 0, losses_said_at_ns: 0, gpu_count: 0 }
    }

    /// Runs until every source has gone; then sends what waits and says good-bye.
    pub fn run(mut self, signals: &Receiver<Signal>) {
        loop {
            match signals.recv_timeout(LOOK_EVERY) {
                Ok(signal) => self.take(signal),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.announce_if_connected();
            self.report_losses();
            self.repair();
        }
        self.close();
    }

    fn take(&mut self, signal: Signal) {
        match signal {
            Signal::Host(facts) => self.take_facts(facts),
            Signal::Tick(tick) => self.take_tick(tick),
            Signal::Event(event) => self.take_event(event),
            Signal::Finished => {
                tracing::info!("the source has nothing more to say");
                self.status.finished.store(true, Relaxed);
            }
        }
    }

    fn take_facts(&mut self, facts: HostFacts) {
        if let Some(&number) = self.numbers.get(&facts.host) {
            // Ticks that speak in the old slots leave first.
            self.flush(number);
            if self.hosts[number].host.describe(facts) && self.connects_seen > 0 {
                self.announce(number);
            }
        } else {
            let number = self.hosts.len();
            let subject = |subject: LogSubject| Subject::from(subject.to_subject(&self.cell));
            let id = facts.host.clone();
            self.hosts.push(Speaker {
                sample_subject: subject(LogSubject::Sample(id.clone())),
                inventory_subject: subject(LogSubject::Inventory(id.clone())),
                event_subject: subject(LogSubject::Event(id.clone())),
                host: Host::new(self.common.clone(), facts),
                announced_at_ns: 0,
                delayed: VecDeque::new(),
            });
            self.repairs.speaks_for(id.clone());
            self.numbers.insert(id, number);
            if self.connects_seen > 0 {
                self.announce(number);
            }
        }
        self.gpu_count = self.hosts.iter().map(|speaker| speaker.host.gpu_count()).sum();
        self.metrics.hosts.set(self.hosts.len() as i64);
        self.metrics.gpus.set(self.gpu_count as i64);
        self.status.hosts.store(self.hosts.len() as u64, Relaxed);
    }

    fn take_tick(&mut self, tick: HostTick) {
        let Some(&number) = self.numbers.get(&tick.host) else {
            self.metrics.unknown_devices.inc();
            return;
        };
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&tick);
        }
        let (at, delivery) = (tick.sampled_at, tick.delivery);
        let outcome = self.hosts[number].host.observe(tick, wall_now());
        self.count(&outcome);
        for noticed in outcome.noticed {
            self.push_event(number, at, noticed.uuid, noticed.kind, noticed.detail);
        }
        self.release_delayed(number);
        if let Some(frame) = outcome.frame {
            self.deliver(number, frame, delivery);
        }
        if self.gpu_count <= GPU_SERIES_MAX {
            let host = &self.hosts[number].host;
            host.gpus().for_each(|(uuid, total, sample)| self.metrics.show_gpu(host.id(), uuid, total, sample));
        }
        self.status.last_tick_ns.store(boot_ns(), Relaxed);
    }

    fn count(&self, outcome: &Outcome) {
        self.metrics.ticks.inc();
        self.metrics.samples.inc_by(outcome.samples);
        self.metrics.unknown_devices.inc_by(outcome.unknown);
        for reason in &outcome.refused {
            self.metrics.refused.get_or_create(&by("reason", reason.code())).inc();
        }
    }

    fn take_event(&mut self, event: HostEvent) {
        let Some(&number) = self.numbers.get(&event.host) else {
            self.metrics.unknown_devices.inc();
            return;
        };
        self.push_event(number, event.happened_at, event.uuid, event.kind, event.detail);
    }

    fn deliver(&mut self, number: usize, mut frame: Frame, delivery: Delivery) {
        if let Delivery::After { backfill: true, .. } = delivery {
            frame.backfill = true;
        }
        let record = Record {
            host: number,
            class: Class::Sample { sequence: frame.sequence },
            subject: self.hosts[number].sample_subject.clone(),
            payload: Bytes::from(frame.encode()),
        };
        match delivery {
            Delivery::Normal => self.push(record),
            Delivery::Twice => {
                self.push(record.clone());
                self.push(record);
            }
            Delivery::After { ticks, .. } if self.hosts[number].delayed.len() < DELAYED_MAX => self.hosts[number].delayed.push_back((ticks, record)),
            Delivery::After { .. } => self.push(record),
        }
    }

    /// Counts one tick for the frames a fault script holds back, and sends those that have waited long enough.
    fn release_delayed(&mut self, number: usize) {
        let delayed = &mut self.hosts[number].delayed;
        delayed.iter_mut().for_each(|(ticks, _)| *ticks = ticks.saturating_sub(1));
        let due: Vec<Record> = std::iter::from_fn(|| delayed.pop_front_if(|(ticks, _)| *ticks == 0)).map(|(_, record)| record).collect();
        due.into_iter().for_each(|record| self.push(record));
    }

    fn push_event(&mut self, number: usize, at: EventTime, uuid: Option<plimsoll_schemas::id::GpuUuid>, kind: EventKind, detail: Option<String>) {
        self.metrics.events.get_or_create(&by("kind", kind.code())).inc();
        let speaker = &mut self.hosts[number];
        if kind != EventKind::Stopping {
            tracing::info!(host = %speaker.host.id(), uuid = uuid.as_ref().map(tracing::field::display), kind = kind.code(), detail, "host event");
        }
        let event = speaker.host.event(at, uuid, kind, detail);
        let payload = Bytes::from(serde_json::to_vec(&event).expect("plain data"));
        let record = Record { host: number, class: Class::Event { sequence: event.sequence }, subject: speaker.event_subject.clone(), payload };
        self.push(record);
    }

    /// Says what a host is, before any frame that speaks in its slots.
    fn announce(&mut self, number: usize) {
        let speaker = &mut self.hosts[number];
        speaker.announced_at_ns = boot_ns();
        let inventory = speaker.host.inventory(wall_now());
        let payload = Bytes::from(serde_json::to_vec(&inventory).expect("plain data"));
        let record =
            Record { host: number, class: Class::Inventory { sequence: inventory.sequence }, subject: speaker.inventory_subject.clone(), payload };
        self.push(record);
    }

    fn push(&self, record: Record) {
        let (frames, events) = self.buffer.push(record);
        if frames > 0 {
            self.metrics.dropped.get_or_create(&by("cause", "buffer_full")).inc_by(frames);
        }
        if events > 0 {
            self.metrics.dropped.get_or_create(&by("cause", "event_buffer_full")).inc_by(events);
        }
    }

    /// On a new connection every host is announced anew; otherwise each one hourly.
    fn announce_if_connected(&mut self) {
        let connects = self.status.connects.load(Relaxed);
        if connects == 0 {
            return;
        }
        if connects != self.connects_seen {
            self.connects_seen = connects;
            (0..self.hosts.len()).for_each(|number| self.announce(number));
            return;
        }
        let now_ns = boot_ns();
        // One at a time: an hour later a thousand hosts are spread over the loop's turns.
        let due = self.hosts.iter().position(|speaker| now_ns.saturating_sub(speaker.announced_at_ns) > INVENTORY_EVERY_NS);
        if let Some(number) = due.filter(|_| self.status.connected.load(Relaxed)) {
            self.announce(number);
        }
    }

    /// Once publishing works again, every range of frames that was given up becomes a gap event.
    fn report_losses(&mut self) {
        let now_ns = boot_ns();
        let soon = now_ns.saturating_sub(self.losses_said_at_ns) < LOSSES_EVERY_NS;
        if soon || !self.status.publishing.load(Relaxed) || !self.buffer.has_losses() {
            return;
        }
        self.losses_said_at_ns = now_ns;
        self.say_losses();
    }

    fn say_losses(&mut self) {
        for loss in self.buffer.take_losses() {
            self.say_gone(loss.host, None, Numbering::Sample, (loss.from_sequence, loss.to_sequence), loss.cause);
        }
    }

    fn say_gone(&mut self, number: usize, of_epoch: Option<u64>, class: Numbering, range: (u64, u64), cause: &str) {
        let kind = EventKind::Gap { from_sequence: range.0, to_sequence: range.1, class, of_epoch, cause: cause.to_owned() };
        self.push_event(number, wall_now(), None, kind, None);
    }

    /// Answers what the processor asks for, and hands on what is to be published again.
    fn repair(&mut self) {
        while let Some(repair) = self.repairs.next() {
            self.answer(&repair);
        }
        if self.status.connected.load(Relaxed) {
            self.repairs.turn(boot_ns()).into_iter().for_each(|record| self.push(record));
        }
    }

    fn answer(&mut self, repair: &Repair) {
        let &Repair { epoch, class, from_sequence: from, to_sequence: to, .. } = repair;
        let Some(&number) = self.numbers.get(&repair.host) else { return };
        let host = &self.hosts[number].host;
        let life = host.epoch();
        let answer = match epoch.cmp(&life) {
            // What an earlier life had in memory died with it.
            Ordering::Less if (1..=to).contains(&from) => Answer { gone: vec![(from, to)], ..Answer::default() },
            Ordering::Equal => {
                let (from, to) = (from.max(1), to.min(host.numbered(class)));
                let mut held = self.buffer.held(number, class, from, to);
                if class == Numbering::Sample {
                    held.extend(self.hosts[number].delayed.iter().map(|(_, record)| record.class.number().1));
                }
                self.repairs.sort(number, class, from, to, &held)
            }
            Ordering::Less | Ordering::Greater => return,
        };
        let Answer { again, waiting, gone } = answer;
        tracing::info!(host = %repair.host, epoch, class = class.code(), from, to, again, waiting, gone = gone.len(), "asked for what the log lacks");
        for range in gone {
            self.metrics.repair_gone.inc_by((range.1 - range.0).saturating_add(1));
            self.say_gone(number, (epoch != life).then_some(epoch), class, range, "no longer kept");
        }
    }

    fn flush(&mut self, number: usize) {
        if let Some(frame) = self.hosts[number].host.flush() {
            self.deliver(number, frame, Delivery::Normal);
        }
    }

    fn close(&mut self) {
        for number in 0..self.hosts.len() {
            self.flush(number);
            while let Some((_, record)) = self.hosts[number].delayed.pop_front() {
                self.push(record);
            }
        }
        self.say_losses();
        for number in 0..self.hosts.len() {
            self.push_event(number, wall_now(), None, EventKind::Stopping, None);
        }
    }
}
