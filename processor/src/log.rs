//! Reads the log from the own position on: an ephemeral, unacknowledged pull consumer, bounded by bytes and count.
//!
//! What comes next, and whether it still is the same log, says [`crate::follow`]; here are the I/O and the queue to the fold.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config as PullConfig, MessagesError};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::message::{Message, StreamMessage};
use async_nats::jetstream::stream::{Info, InfoError, RawMessageErrorKind};
use futures::StreamExt;
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::record::{Body, Record};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::follow::{Admitted, Arrived, Follow, Mark, Replaced, Shape, Stored};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::streams::{Link, Streams, is_gone, nanos};

/// Batches that may wait for the fold …
const QUEUE_BATCHES: usize = 32;
/// … and the memory that they may take.
const QUEUE_BYTES: usize = 64 << 20;
const BATCH_RECORDS: usize = 256;
/// A batch that takes more memory than this is complete.
const BATCH_BYTES: usize = 4 << 20;
const PULL_MESSAGES: usize = 16_000;
const PULL_BYTES: usize = 8 << 20;
const PULL_EXPIRES: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_secs(5);
const INACTIVE: Duration = Duration::from_secs(60);
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);

/// Some records in order, and the mark behind the last of them.
#[derive(Debug)]
pub struct Batch {
    /// The records.
    pub records: Vec<Record>,
    /// Where that leaves the reader.
    pub mark: Mark,
    /// What they take of the queue's memory, until they have been folded.
    _room: OwnedSemaphorePermit,
}

/// Where batches wait for the fold. Bounded by count and by memory: a frame of the most rows is a thousand times as large as a usual one.
#[derive(Debug)]
pub struct Queue {
    batches: mpsc::Sender<Batch>,
    room: Arc<Semaphore>,
}

/// Nobody takes batches any more.
struct Closed;

/// A queue, and where the fold takes batches from.
pub fn queue() -> (Queue, mpsc::Receiver<Batch>) {
    let (batches, taken) = mpsc::channel(QUEUE_BATCHES);
    (Queue { batches, room: Arc::new(Semaphore::new(QUEUE_BYTES)) }, taken)
}

impl Queue {
    /// Waits until there is room. Records that are larger than the whole queue wait until it is empty.
    async fn send(&self, Taken { records, mark, bytes }: Taken) -> Result<(), Closed> {
        let bytes = bytes.min(QUEUE_BYTES) as u32;
        let _room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| Closed)?;
        self.batches.send(Batch { records, mark, _room }).await.map_err(|_| Closed)
    }

    /// Batches that wait.
    fn batches(&self) -> usize {
        self.batches.max_capacity() - self.batches.capacity()
    }

    /// The memory that they and the one being folded take, bytes.
    fn bytes(&self) -> usize {
        QUEUE_BYTES - self.room.available_permits()
    }
}

/// What was taken of what the consumer delivered.
struct Taken {
    records: Vec<Record>,
    mark: Mark,
    bytes: usize,
}

/// The memory that a record takes, about: its text and lists are as long as on the wire, and a frame's columns become samples.
fn memory(record: &Record, payload: usize) -> usize {
    let samples = if let Body::Frame(frame) = &record.body { size_of_val(&*frame.samples) } else { 0 };
    size_of::<Record>() + payload + samples
}

/// Reads the log of a cell into a queue.
pub struct Reader {
    streams: Streams,
    follow: Follow,
    health: Health,
    metrics: Metrics,
}

/// Why reading was interrupted.
enum Interrupted {
    /// Try again from the own position.
    Retry(String),
    /// The log is not the one it was.
    Stop(Error),
    /// Nobody listens any more.
    Done,
}

type Messages = futures::stream::ReadyChunks<async_nats::jetstream::consumer::pull::Stream>;

impl Reader {
    /// A reader that goes on behind `mark`.
    pub fn new(cell: CellId, streams: Streams, mark: Mark, health: Health, metrics: Metrics) -> Self {
        Self { streams, follow: Follow::new(cell, mark), health, metrics }
    }

    /// Where the log ends. Errors if it is not the one that was read up to the mark.
    pub async fn check(&mut self) -> Result<Position, Error> {
        match self.verify().await {
            Ok(info) => Ok(Position { sequence: info.state.last_sequence, ..self.follow.mark().position }),
            Err(Interrupted::Stop(error)) => Err(error),
            Err(Interrupted::Retry(detail)) => Err(self.failed(detail)),
            Err(Interrupted::Done) => Err(self.failed("it ended".to_owned())),
        }
    }

    /// Reads until `stop`, the queue closes, or the log turns out to be another one.
    pub async fn run(mut self, queue: Queue, stop: CancellationToken) -> Result<(), Error> {
        let mut wait = RETRY_MIN;
        loop {
            let before = self.follow.mark().position;
            let outcome = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.read(&queue) => outcome,
            };
            self.health.consumer_bound(false);
            match outcome {
                Interrupted::Done => return Ok(()),
                Interrupted::Stop(error) => return Err(error),
                Interrupted::Retry(detail) => {
                    wait = if self.follow.mark().position > before { RETRY_MIN } else { (wait * 2).min(RETRY_MAX) };
                    tracing::warn!(detail, position = %self.follow.mark().position, retry_ms = wait.as_millis() as u64, "reading the log again from the own position");
                }
            }
            self.metrics.consumer_restarts.inc();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Reads with one consumer until that is interrupted.
    async fn read(&mut self, queue: &Queue) -> Interrupted {
        let mut link = self.streams.link.clone();
        let made = link.borrow_and_update().made;
        let mut messages = match self.subscribe().await {
            Ok(messages) => messages,
            Err(interrupted) => return interrupted,
        };
        self.health.consumer_bound(true);
        self.follow.begin();
        loop {
            let chunk = tokio::select! {
                chunk = messages.next() => chunk,
                link = changed(&mut link) => {
                    if link.made != made {
                        return Interrupted::Retry("the connection was made again".to_owned());
                    }
                    self.health.consumer_bound(link.stands);
                    continue;
                }
            };
            let Some(chunk) = chunk else { return Interrupted::Retry("the consumer ended".to_owned()) };
            let mut chunk = chunk.into_iter();
            while chunk.len() > 0 {
                let (taken, trouble) = self.take(&mut chunk);
                if !taken.records.is_empty() && queue.send(taken).await.is_err() {
                    return Interrupted::Done;
                }
                self.metrics.log_queue.set(queue.batches() as i64);
                self.metrics.log_queue_bytes.set(queue.bytes() as i64);
                if let Some(detail) = trouble {
                    return Interrupted::Retry(detail);
                }
            }
        }
    }

    async fn subscribe(&mut self) -> Result<Messages, Interrupted> {
        let info = self.verify().await?;
        self.health.log_ends_at(info.state.last_sequence);
        let config = PullConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.follow.mark().position.sequence + 1 },
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            num_replicas: 1,
            memory_storage: true,
            ..PullConfig::default()
        };
        let consumer =
            self.streams.log.create_consumer(config).await.map_err(|error| Interrupted::Retry(format!("creating the consumer: {error}")))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_MESSAGES)
            .max_bytes_per_batch(PULL_BYTES)
            .expires(PULL_EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages()
            .await
            .map_err(|error| Interrupted::Retry(format!("pulling: {error}")))?;
        Ok(messages.ready_chunks(BATCH_RECORDS))
    }

    /// Takes what follows the own position, as much as makes a batch. Stops taking where the consumer has lost something.
    fn take(&mut self, chunk: &mut impl ExactSizeIterator<Item = Result<Message, MessagesError>>) -> (Taken, Option<String>) {
        let (mut records, mut bytes) = (Vec::with_capacity(chunk.len()), 0);
        let mut last = None;
        let mut trouble = None;
        while bytes < BATCH_BYTES
            && let Some(message) = chunk.next()
        {
            match message.map_err(|error| error.to_string()).and_then(|message| Ok((self.admit(&message)?, message))) {
                Ok((Some((at_ns, record)), message)) => {
                    bytes += memory(&record, message.payload.len());
                    records.push(record);
                    last = Some((at_ns, message));
                }
                Ok((None, _)) => {}
                Err(detail) => {
                    trouble = Some(detail);
                    break;
                }
            }
        }
        if let Some((at_ns, message)) = last {
            self.follow.remember(Stored { at_ns, subject: &message.subject, payload: &message.payload });
        }
        (Taken { records, mark: self.follow.mark(), bytes }, trouble)
    }

    /// The record and when the broker stored it, ns UTC; none where it was delivered before.
    fn admit(&mut self, message: &Message) -> Result<Option<(i64, Record)>, String> {
        let info = message.info().map_err(|error| format!("a message without its place: {error}"))?;
        let sequence = info.stream_sequence;
        let at_ns = nanos(info.published);
        let stored = Stored { at_ns, subject: &message.subject, payload: &message.payload };
        let arrived = Arrived { sequence, delivered: info.consumer_sequence, stored };
        match self.follow.admit(arrived).map_err(|lost| lost.to_string())? {
            Admitted::Repeated => {
                self.metrics.log_repeated.inc();
                Ok(None)
            }
            Admitted::Next { record, missing } => {
                if missing > 0 {
                    tracing::error!(from = sequence - missing, to = sequence - 1, "the log no longer holds these records: what they said is missing");
                    self.metrics.log_missing.inc_by(missing);
                }
                self.health.log_ends_at(sequence + info.pending);
                self.metrics.log_bytes.inc_by(message.payload.len() as u64);
                Ok(Some((at_ns, record)))
            }
        }
    }

    /// Refuses a log that is not the one read so far.
    async fn verify(&mut self) -> Result<Info, Interrupted> {
        let info = self.streams.log.get_info().await.map_err(|error| self.unknown(error))?;
        let shape = Shape { created_at_ns: nanos(info.created), first_sequence: info.state.first_sequence, last_sequence: info.state.last_sequence };
        let message = if self.follow.compares(&shape) { self.at_mark().await? } else { None };
        self.follow.same_log(&shape, message.as_ref().map(Stored::from)).map_err(|replaced| Interrupted::Stop(self.replaced(replaced)))?;
        Ok(info)
    }

    /// Why nobody knows what the log looks like. One that is not there at all is another one once it is made again.
    fn unknown(&self, error: InfoError) -> Interrupted {
        if is_gone(&error) {
            let at_least = format!("at least {}", self.follow.mark().position.sequence);
            let replaced = Replaced { what: "its last sequence", found: "no stream".to_owned(), expected: at_least };
            return Interrupted::Stop(self.replaced(replaced));
        }
        Interrupted::Retry(format!("asking for the log: {error}"))
    }

    /// The message at the mark; absent if the stream has a hole there: it cannot be compared, like one that was trimmed.
    async fn at_mark(&self) -> Result<Option<StreamMessage>, Interrupted> {
        let sequence = self.follow.mark().position.sequence;
        match self.streams.log.get_raw_message(sequence).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                tracing::warn!(sequence, "the log has lost the last record folded");
                Ok(None)
            }
            Err(error) => Err(Interrupted::Retry(format!("reading {sequence}: {error}"))),
        }
    }

    fn replaced(&self, Replaced { what, found, expected }: Replaced) -> Error {
        Error::LogReplaced { stream: self.streams.log.cached_info().config.name.clone(), what, found, expected }
    }

    fn failed(&self, detail: String) -> Error {
        Error::Stream { stream: self.streams.log.cached_info().config.name.clone(), what: "reading it", detail }
    }
}

async fn changed(link: &mut watch::Receiver<Link>) -> Link {
    // The sender lives in the connection's callback; if it is gone there is nothing left to hear of.
    if link.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    *link.borrow_and_update()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use plimsoll_schemas::frame::{Frame, Tick};
    use plimsoll_schemas::id::{LogEpoch, Slot};
    use plimsoll_schemas::sample::{Field, Sample};
    use plimsoll_schemas::time::{EventTime, LogTime};

    fn taken(bytes: usize) -> Taken {
        Taken { records: Vec::new(), mark: Mark::start(), bytes }
    }

    #[test]
    fn what_waits_for_the_fold_is_bounded_by_its_memory_until_it_was_folded() {
        let (queue, mut batches) = queue();
        let sends = |bytes: usize| queue.send(taken(bytes)).now_or_never().map(|sent| sent.is_ok());
        assert_eq!([sends(QUEUE_BYTES / 2), sends(QUEUE_BYTES / 2)], [Some(true); 2]);
        assert_eq!((queue.batches(), queue.bytes()), (2, QUEUE_BYTES));
        assert_eq!(sends(1), None, "there is no room");
        let batch = batches.try_recv().expect("two wait");
        assert_eq!((queue.batches(), queue.bytes()), (1, QUEUE_BYTES), "it is being folded");
        assert_eq!(sends(1), None);
        drop(batch);
        assert_eq!(queue.bytes(), QUEUE_BYTES / 2);
        assert_eq!(sends(usize::MAX), None, "what is larger than the queue waits until it is empty");
        drop(batches.try_recv());
        assert_eq!(sends(usize::MAX), Some(true));
        drop(batches);
        assert_eq!(sends(0), Some(false), "nobody takes it");
    }

    #[test]
    fn a_frame_takes_the_memory_of_its_samples_however_short_it_was() {
        let (gpus, ticks) = (128, 128);
        let frame = Frame {
            host: "a".parse().expect("a token"),
            epoch: 1,
            sequence: 1,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: 1_000,
            backfill: false,
            slots: (0..gpus).map(Slot).collect(),
            ticks: (0..ticks).map(|tick| Tick { sampled_at: EventTime(tick), held_ms: 0 }).collect(),
            samples: vec![Sample::default().with(Field::UtilPercent, 1); gpus as usize * ticks as usize],
            rejected: Vec::new(),
            rejected_more: 0,
        };
        let payload = frame.encode().len();
        let record = Record { position: Position { epoch: LogEpoch(0), sequence: 1 }, logged_at: LogTime(0), body: Body::Frame(Box::new(frame)) };
        assert!(payload < 32 << 10, "{payload}");
        assert!((2 << 20..3 << 20).contains(&memory(&record, payload)));
    }
}
