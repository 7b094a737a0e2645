//! Publishes with acknowledgement: pipelined, bounded in flight, retried in order with the same bytes. One connection for all hosts.
//!
//! async-nats loses publishes silently when the connection breaks and their acknowledgements only time out, so the buffer keeps every
//! record until its acknowledgement, and all that was in flight is sent again on the next connection. What arrives twice is recognised
//! downstream by (host, epoch, sequence).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::{self, context::ContextBuilder};
use async_nats::{ConnectOptions, Event, ServerError};
use futures::stream::{FuturesUnordered, StreamExt};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject::{check_nats_version, servers};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::buffer::{Buffer, Record, Ticket};
use crate::clock::boot_ns;
use crate::collect::Shared;
use crate::kept::Kept;
use crate::metrics::{Metrics, by};
use crate::status::Status;

/// Most records sent and not yet acknowledged.
pub const IN_FLIGHT_MAX: usize = 512;
/// How long an acknowledgement may take.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often an idle connection is probed: a dead peer is found after two of them.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// How long the end waits for a broker that is away.
const AWAY_DRAIN: Duration = Duration::from_secs(2);
/// How long a permission error explains time-outs.
const DENIED_FOR_NS: u64 = 15_000_000_000;
/// The same trouble is logged again after this long.
const REPEAT_LOG_NS: u64 = 30_000_000_000;
/// Connection events waiting for the publisher; more are only worth a poll of the state.
const EVENTS_QUEUED: usize = 64;

/// Where to publish.
#[derive(Debug, Clone)]
pub struct Target {
    /// Broker URL, or several separated by commas.
    pub url: String,
    /// Credentials file, if any.
    pub credentials: Option<PathBuf>,
    /// The cell.
    pub cell: CellId,
    /// Name shown by the broker.
    pub name: String,
}

/// Why the broker cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The credentials file cannot be read.
    #[error("credentials file {path}: {error}")]
    Credentials {
        /// Which file.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The URL is none, or the client refuses it.
    #[error("broker {url}: {error}")]
    Refused {
        /// Which URL.
        url: String,
        /// What the client said.
        error: async_nats::ConnectError,
    },
}

/// Why a publish was not acknowledged. The three causes of a time-out look alike on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// The broker is not connected.
    ServerAway,
    /// No stream takes the subject.
    NoStream,
    /// The broker said why it does not take it: limits, disk, resources.
    Refused,
    /// The broker denied this client the subject.
    NotPermitted,
    /// Connected, but no answer: disk full or overloaded.
    NoAnswer,
    /// Larger than the broker takes.
    TooLarge,
}

impl Cause {
    const fn name(self) -> &'static str {
        match self {
            Self::ServerAway => "server_away",
            Self::NoStream => "no_stream",
            Self::Refused => "refused",
            Self::NotPermitted => "not_permitted",
            Self::NoAnswer => "no_answer",
            Self::TooLarge => "too_large",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::ServerAway => "the broker is not connected; what is read meanwhile is buffered",
            Self::NoStream => "no stream takes this cell's log subjects: is the processor of this cell running, and is --cell right?",
            Self::Refused => "the broker refuses: its message names the limit or resource (a full disk or byte budget, usually)",
            Self::NotPermitted => "the broker denies these credentials the subject: check the account's publish permissions",
            Self::NoAnswer => "connected, but no acknowledgement: the broker's disk is full or it is overloaded",
            Self::TooLarge => {
                "the record is larger than the broker's max_payload and is given up; raise max_payload or publish fewer ticks per frame"
            }
        }
    }
}

/// Publishes what is in the buffer.
#[derive(Debug)]
pub struct Publisher {
    client: async_nats::Client,
    jetstream: jetstream::Context,
    events: mpsc::Receiver<Event>,
    buffer: Arc<Buffer>,
    kept: Arc<Kept>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    denied_at_ns: u64,
    pause: Duration,
    logged: Option<(Cause, u64)>,
    was_connected: bool,
}

type Answer = (Ticket, Record, Result<(), PublishError>);

impl Publisher {
    /// Starts to connect; returns at once, also with the broker away.
    pub async fn connect(target: &Target, shared: Shared, kept: Arc<Kept>) -> Result<Self, ConnectError> {
        let Shared { buffer, status, metrics } = shared;
        let (sender, events) = mpsc::channel(EVENTS_QUEUED);
        let mut options = ConnectOptions::new()
            .name(&target.name)
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(move |event| {
                let sender = sender.clone();
                async move {
                    // A full queue loses nothing that matters: the state is polled as well.
                    let _ = sender.try_send(event);
                }
            });
        if let Some(path) = &target.credentials {
            let refused = |error| ConnectError::Credentials { path: path.display().to_string(), error };
            options = options.credentials_file(path).await.map_err(refused)?;
        }
        let client = options.connect(servers(&target.url)).await.map_err(|error| ConnectError::Refused { url: target.url.clone(), error })?;
        // Twice the window: futures of a broken connection keep their permits for a while.
        let jetstream = ContextBuilder::new().timeout(ACK_TIMEOUT).ack_timeout(ACK_TIMEOUT).max_ack_inflight(IN_FLIGHT_MAX * 4).build(client.clone());
        Ok(Self {
            client,
            jetstream,
            events,
            buffer,
            kept,
            status,
            metrics,
            denied_at_ns: 0,
            pause: Duration::ZERO,
            logged: None,
            was_connected: false,
        })
    }

    /// The connection, for whoever listens on it.
    pub fn client(&self) -> async_nats::Client {
        self.client.clone()
    }

    /// Publishes until `stop`, then what is left for at most `drain`. Returns how many records were left unacknowledged.
    pub async fn run(mut self, stop: CancellationToken, drain: Duration) -> usize {
        let mut in_flight: FuturesUnordered<_> = FuturesUnordered::new();
        let mut poll = tokio::time::interval(Duration::from_millis(250));
        let mut resume = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut paused = false;
        let mut stopping_since: Option<tokio::time::Instant> = None;
        loop {
            if stop.is_cancelled() {
                let now = tokio::time::Instant::now();
                let since = *stopping_since.get_or_insert(now);
                let left = self.buffer.depth().records;
                // Without a broker there is little to wait for.
                let patience = if self.was_connected { drain } else { drain.min(AWAY_DRAIN) };
                if left == 0 || now >= since + patience {
                    let _ = tokio::time::timeout(Duration::from_secs(1), self.client.flush()).await;
                    return left;
                }
            }
            while self.was_connected && !paused && in_flight.len() < IN_FLIGHT_MAX {
                let Some((ticket, record)) = self.buffer.take() else { break };
                let acknowledgement = self.send(ticket, record).await;
                in_flight.push(acknowledgement);
            }
            tokio::select! {
                Some(event) = self.events.recv() => if self.take_event(event) { in_flight = FuturesUnordered::new(); },
                Some(answer) = in_flight.next(), if !in_flight.is_empty() => {
                    if let Some(pause) = self.take_answer(answer) {
                        paused = true;
                        resume.as_mut().reset(tokio::time::Instant::now() + pause);
                    }
                }
                () = self.buffer.filled.notified(), if !paused && in_flight.len() < IN_FLIGHT_MAX => {}
                () = &mut resume, if paused => paused = false,
                _ = poll.tick() => if self.poll_state() { in_flight = FuturesUnordered::new(); },
                () = stop.cancelled(), if stopping_since.is_none() => {}
            }
        }
    }

    /// Hands a record to the client, in order; the future is its acknowledgement.
    async fn send(&self, ticket: Ticket, record: Record) -> impl Future<Output = Answer> + use<> {
        let sent = self.jetstream.publish(record.subject.clone(), record.payload.clone()).await;
        async move {
            let result = match sent {
                Ok(acknowledgement) => acknowledgement.await.map(|_| ()),
                Err(error) => Err(error),
            };
            (ticket, record, result)
        }
    }

    /// Takes an answer; a pause = stop sending for that long.
    fn take_answer(&mut self, (ticket, record, result): Answer) -> Option<Duration> {
        let Err(error) = result else {
            // Kept before it leaves the buffer: at no moment is it in neither.
            self.metrics.kept_dropped.inc_by(self.kept.keep(&record));
            if self.buffer.acknowledged(ticket).is_some() {
                self.metrics.published.get_or_create(&by("class", record.class.name())).inc();
                self.metrics.published_bytes.inc_by(record.payload.len() as u64);
            }
            self.pause = Duration::ZERO;
            if self.logged.take().is_some() {
                tracing::info!(waiting = self.buffer.depth().records, "publishing again");
            }
            self.status.set_trouble("");
            self.status.publishing.store(true, Relaxed);
            return None;
        };
        let cause = self.cause(&error);
        self.metrics.publish_failures.get_or_create(&by("cause", cause.name())).inc();
        self.complain(cause, &record, &error);
        if cause == Cause::TooLarge {
            self.metrics.dropped.get_or_create(&by("cause", "too_large")).inc();
            self.buffer.refuse(ticket, "too_large");
            return None;
        }
        self.buffer.failed(ticket);
        self.status.publishing.store(false, Relaxed);
        self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        Some(jitter(self.pause))
    }

    fn cause(&self, error: &PublishError) -> Cause {
        match error.kind() {
            PublishErrorKind::StreamNotFound => Cause::NoStream,
            PublishErrorKind::MaxPayloadExceeded => Cause::TooLarge,
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe if self.denied_at_ns != 0 && boot_ns() - self.denied_at_ns < DENIED_FOR_NS => {
                Cause::NotPermitted
            }
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe if self.client.connection_state() != State::Connected => Cause::ServerAway,
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => Cause::NoAnswer,
            PublishErrorKind::WrongLastMessageId | PublishErrorKind::WrongLastSequence | PublishErrorKind::Other => Cause::Refused,
        }
    }

    /// Says what is wrong: when it is new, and every half minute while it lasts.
    fn complain(&mut self, cause: Cause, record: &Record, error: &PublishError) {
        self.status.set_trouble(&format!("publishing stands still ({}): {}", cause.name(), cause.advice()));
        let now_ns = boot_ns();
        if self.logged.is_some_and(|(before, at_ns)| before == cause && now_ns - at_ns < REPEAT_LOG_NS) {
            return;
        }
        self.logged = Some((cause, now_ns));
        let waiting = self.buffer.depth().records;
        tracing::warn!(cause = cause.name(), subject = %record.subject, %error, waiting, "not acknowledged: {}", cause.advice());
    }

    /// Takes a connection event; true = what was in flight is lost.
    fn take_event(&mut self, event: Event) -> bool {
        match event {
            Event::Connected => return self.connected(),
            Event::Disconnected | Event::Closed => return self.disconnected(),
            Event::ServerError(ServerError::AuthorizationViolation) => self.deny("authorization violation"),
            Event::ServerError(ServerError::Other(text)) if text.to_ascii_lowercase().contains("permissions violation for subscription") => {
                tracing::warn!(answer = text, "these credentials may not listen for repair requests: what the log loses stays lost");
            }
            Event::ServerError(ServerError::Other(text)) if text.to_ascii_lowercase().contains("permissions violation") => self.deny(&text),
            Event::ServerError(error) => tracing::warn!(%error, "the broker complains"),
            Event::ClientError(error) => tracing::debug!(%error, "broker client"),
            Event::LameDuckMode => tracing::info!("the broker is about to stop"),
            Event::SlowConsumer(_) | Event::Draining => {}
        }
        false
    }

    fn deny(&mut self, text: &str) {
        if self.denied_at_ns == 0 || boot_ns() - self.denied_at_ns > REPEAT_LOG_NS {
            tracing::error!(answer = text, "{}", Cause::NotPermitted.advice());
        }
        self.denied_at_ns = boot_ns();
        self.status.set_trouble(Cause::NotPermitted.advice());
    }

    /// The state itself, in case an event was lost; true = what was in flight is lost.
    fn poll_state(&mut self) -> bool {
        let depth = self.buffer.depth();
        self.metrics.buffer_records.set(depth.records as i64);
        self.metrics.buffer_bytes.set(depth.bytes as i64);
        self.metrics.in_flight.set(depth.in_flight as i64);
        let (records, bytes) = self.kept.size();
        self.metrics.kept_records.set(records as i64);
        self.metrics.kept_bytes.set(bytes as i64);
        match (self.client.connection_state() == State::Connected, self.was_connected) {
            (true, false) => self.connected(),
            (false, true) => self.disconnected(),
            (true, true) | (false, false) => false,
        }
    }

    fn connected(&mut self) -> bool {
        let info = self.client.server_info();
        tracing::info!(server = info.server_name, version = info.version, waiting = self.buffer.depth().records, "connected to the broker");
        if let Err(error) = check_nats_version(&info.version) {
            tracing::error!(%error, "this broker is not supported");
        }
        self.was_connected = true;
        self.metrics.connects.inc();
        self.metrics.connected.set(1);
        self.status.set_trouble("");
        self.status.connected.store(true, Relaxed);
        // Also after a reconnect whose disconnect nobody saw.
        self.buffer.disconnected();
        self.status.connects.fetch_add(1, Relaxed);
        true
    }

    fn disconnected(&mut self) -> bool {
        if !std::mem::take(&mut self.was_connected) {
            return false;
        }
        tracing::warn!(waiting = self.buffer.depth().records, "the broker is gone; buffering");
        self.metrics.connected.set(0);
        self.status.connected.store(false, Relaxed);
        self.status.publishing.store(false, Relaxed);
        self.buffer.disconnected();
        true
    }
}

/// 100 ms, 200 ms … 5 s, each spread by half, so that a fleet does not come back as one.
fn reconnect_delay(attempts: usize) -> Duration {
    let exponent = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(6);
    jitter((Duration::from_millis(100) * 2u32.pow(exponent)).min(PAUSE_MAX))
}

/// Between half and one and a half of `time`; the clock's low digits are chance enough for that.
fn jitter(time: Duration) -> Duration {
    let chance = (boot_ns() / 64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54;
    time / 2 + time * u32::try_from(chance).unwrap_or(0) / 1_024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delays_grow_to_their_bound_and_are_spread() {
        for (attempts, low_ms, high_ms) in [(1, 50, 150), (2, 100, 300), (5, 800, 2_400), (60, 2_500, 7_500)] {
            let delay = reconnect_delay(attempts);
            assert!(delay >= Duration::from_millis(low_ms) && delay <= Duration::from_millis(high_ms), "{attempts}: {delay:?}");
        }
    }
}
