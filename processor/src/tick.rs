//! The clock beat: an empty record each second from the active replica, so that a quiet log still moves. The only place where a wall clock
//! reaches the log. Whose turn it is says [`crate::role`]; what others say meanwhile comes from the loop.
#![expect(clippy::disallowed_methods, reason = "a tick names the second it stands for; silence is measured on the own monotonic clock")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use plimsoll_schemas::control::{Check, Tick};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject::LogSubject;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::metrics::Metrics;
use crate::role::{Claim, Role, Seen};
use crate::streams::Streams;
use crate::surplus::Surplus;

/// Things the loop may have to say at once: ticks seen and hashes.
pub const QUEUE_SAID: usize = 64;
/// How often to look whether a tick is due.
const BEAT: Duration = Duration::from_millis(250);
/// How long the broker may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What the loop tells the ticker.
#[derive(Debug)]
pub enum Said {
    /// A tick was read.
    Tick(Seen),
    /// This replica's hash, to be said in the log.
    Hash(Check),
}

/// Sends ticks and hashes of one replica.
pub struct Ticker {
    cell: CellId,
    streams: Streams,
    role: Role,
    began: Instant,
    active: watch::Sender<bool>,
    surplus: Surplus,
    metrics: Metrics,
}

impl Ticker {
    /// A ticker that has looked up who sent the newest tick, and where to hear whether this replica is active.
    pub async fn open(
        cell: CellId,
        replica: &str,
        streams: Streams,
        surplus: Surplus,
        metrics: Metrics,
    ) -> Result<(Self, watch::Receiver<bool>), Error> {
        let failed = |detail| Error::Stream { stream: streams.log.cached_info().config.name.clone(), what: "reading the newest tick", detail };
        let newest = newest(&streams, &cell, "").await.map_err(failed)?;
        let role = Role::new(replica.to_owned(), newest, Duration::ZERO);
        let (active, heard) = watch::channel(role.is_active());
        Ok((Self { cell, streams, role, began: Instant::now(), active, surplus, metrics }, heard))
    }

    /// Whether `replica` was the active one, as far as the log says: it speaks first where the log was replaced.
    pub async fn leads(cell: &CellId, replica: &str, streams: &Streams) -> Result<bool, Error> {
        let newest = newest(streams, cell, "").await;
        let newest = newest.map_err(|detail| Error::Stream {
            stream: streams.log.cached_info().config.name.clone(),
            what: "reading the newest tick",
            detail,
        })?;
        Ok(newest.is_none_or(|newest| newest.replica == replica))
    }

    /// Ticks until `stop`. What fails is counted and not repeated: the next tick says as much.
    pub async fn run(mut self, mut said: mpsc::Receiver<Said>, stop: CancellationToken) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                said = said.recv() => match said {
                    Some(Said::Tick(seen)) => self.role.seen(seen, self.began.elapsed()),
                    Some(Said::Hash(check)) => self.say(check).await,
                    None => return,
                },
                // Without a connection the client would queue ticks and send them all at once later.
                _ = beat.tick() => if self.streams.connected()
                    && let Some(claim) = self.role.due(self.began.elapsed())
                {
                    self.tick(claim).await;
                },
            }
            self.show();
        }
    }

    fn show(&self) {
        let active = self.role.is_active();
        let changed = self.active.send_if_modified(|now| std::mem::replace(now, active) != active);
        self.metrics.active.set(i64::from(active));
        if changed {
            let by = self.role.active().unwrap_or("nobody");
            tracing::info!(active, by, "{}", if active { "this replica is active now" } else { "this replica stands by now" });
        }
    }

    async fn tick(&mut self, Claim { after }: Claim) {
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let tick = Tick { replica: self.role.replica().to_owned(), second };
        let payload = serde_json::to_vec(&tick).expect("a string and a number always serialise");
        let message = PublishMessage::build().payload(payload.into()).expected_last_subject_sequence(after);
        let subject = LogSubject::Tick.to_subject(&self.cell);
        self.surplus.ticks();
        let published = async { self.streams.context.send_publish(subject, message).await?.await };
        match tokio::time::timeout(ANSWER_MAX, published).await {
            Ok(Ok(ack)) => {
                self.role.stands(ack.sequence, self.began.elapsed());
                self.surplus.ticked(ack.sequence);
            }
            Ok(Err(error)) if is_refusal(&error) => {
                self.metrics.ticks_refused.inc();
                let before = self.role.active().unwrap_or_default();
                // The broker may end before it answers; waiting for long would keep the role from a standby that is needed.
                match tokio::time::timeout(ANSWER_MAX, newest(&self.streams, &self.cell, before)).await {
                    Ok(Ok(newest)) => self.role.refused(newest, self.began.elapsed()),
                    Ok(Err(_)) | Err(_) => self.role.unanswered(),
                }
            }
            Ok(Err(_)) | Err(_) => {
                self.metrics.tick_failures.inc();
                self.role.unanswered();
            }
        }
    }

    async fn say(&self, check: Check) {
        let id = format!("check-{}-{}-{}-{}", self.cell, check.replica, check.position.epoch.0, check.position.sequence);
        let payload = serde_json::to_vec(&check).expect("strings and numbers always serialise");
        let message = PublishMessage::build().payload(payload.into()).message_id(id);
        let subject = LogSubject::Check.to_subject(&self.cell);
        // One that is lost is not missed: the next one says more. So nobody waits for the answer.
        if self.streams.connected() && self.streams.context.send_publish(subject, message).await.is_err() {
            self.metrics.tick_failures.inc();
        }
    }
}

fn is_refusal(error: &PublishError) -> bool {
    matches!(error.kind(), PublishErrorKind::WrongLastSequence | PublishErrorKind::Other)
}

/// The newest tick in the log. One that nobody can read takes the role from nobody: it counts as sent by `before`.
async fn newest(streams: &Streams, cell: &CellId, before: &str) -> Result<Option<Seen>, String> {
    match streams.log.get_last_raw_message_by_subject(&LogSubject::Tick.to_subject(cell)).await {
        Ok(message) => {
            let replica = serde_json::from_slice::<Tick>(&message.payload).map_or_else(|_| before.to_owned(), |tick| tick.replica);
            Ok(Some(Seen { sequence: message.sequence, replica }))
        }
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
