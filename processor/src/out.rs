//! Publishes outputs to OUT and compares what stands there. Every decision is [`crate::chain`]'s; here is only the I/O.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use plimsoll_schemas::out::Output;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::chain::{Broken, Chain, Do, Heard};
use crate::error::Error;
use crate::health::Health;
use crate::metrics::{Metrics, signed};
use crate::streams::{Streams, is_gone};
use crate::surplus::Surplus;

/// Outputs that may wait in the publisher's queue.
pub const QUEUE_OUTPUTS: usize = 1_024;
/// Outputs that the publisher itself holds until it knows that they stand.
const HELD_MAX: usize = 1_024;
const RETRY: Duration = Duration::from_millis(300);
/// A standby looks this often at what the active replica has published.
const LOOK: Duration = Duration::from_secs(1);

/// Publishes outputs in order, each exactly once.
pub struct Publisher {
    streams: Streams,
    chain: Chain,
    /// Attempts under way, in the order in which they were begun.
    running: FuturesOrdered<BoxFuture<'static, (u64, Heard)>>,
    attempt: u64,
    active: watch::Receiver<bool>,
    acked: watch::Sender<u64>,
    surplus: Surplus,
    health: Health,
    metrics: Metrics,
}

impl Publisher {
    /// A publisher that knows OUT to be right up to `standing`, and where to hear up to which output it is.
    pub fn new(
        streams: Streams,
        standing: u64,
        active: watch::Receiver<bool>,
        surplus: Surplus,
        health: Health,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<u64>) {
        let (acked, heard) = watch::channel(standing);
        health.out_reachable(true);
        let mut chain = Chain::new(standing);
        chain.set_active(*active.borrow());
        (Self { streams, chain, running: FuturesOrdered::new(), attempt: 0, active, acked, surplus, health, metrics }, heard)
    }

    /// Runs until the queue closes and, if this replica is active, everything in it stands in OUT; or until what stands there is wrong.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Arc<Output>>) -> Result<(), Error> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        while open || (!self.chain.is_empty() && *self.active.borrow()) {
            let room = open && self.chain.len() < HELD_MAX;
            tokio::select! {
                biased;
                Some((attempt, heard)) = self.running.next(), if !self.running.is_empty() => self.take(attempt, heard)?,
                Ok(()) = self.active.changed() => self.chain.set_active(*self.active.borrow()),
                output = queue.recv(), if room => match output {
                    Some(output) => self.chain.push(output),
                    None => open = false,
                },
                _ = look.tick() => self.chain.look(),
            }
            while let Some(next) = self.chain.due() {
                self.start(next).await;
            }
        }
        Ok(())
    }

    fn take(&mut self, attempt: u64, heard: Heard) -> Result<(), Error> {
        if let Heard::End(last) = heard {
            self.surplus.out_ends_at(last);
        }
        match &heard {
            Heard::Failed | Heard::Gone => self.health.out_reachable(false),
            Heard::Stands { .. } => {
                self.metrics.out_compared.inc();
                self.health.out_reachable(true);
            }
            Heard::Trimmed { .. } => {
                self.metrics.out_unverifiable.inc();
            }
            Heard::Stored { .. } => self.health.out_reachable(true),
            Heard::End(_) if self.chain.is_empty() => self.health.out_reachable(true),
            Heard::End(_) => {}
        }
        self.chain.heard(attempt, heard).map_err(|broken| self.error(broken))?;
        self.metrics.out_acked.set(signed(self.chain.standing()));
        self.acked.send_replace(self.chain.standing());
        Ok(())
    }

    async fn start(&mut self, next: Do) {
        let (Do::AskEnd { attempt, .. } | Do::Read { attempt, .. } | Do::Publish { attempt, .. }) = next;
        if attempt != self.attempt {
            // Nobody waits for the answers to what was given up.
            self.running = FuturesOrdered::new();
            self.attempt = attempt;
        }
        let heard = match next {
            Do::AskEnd { after_failure, .. } => {
                if after_failure {
                    self.metrics.out_read_backs.inc();
                }
                ask_end(self.streams.clone(), after_failure).boxed()
            }
            Do::Read { output, .. } => read(self.streams.clone(), output.out_seq).boxed(),
            Do::Publish { output, .. } => publish(&self.streams, &output).await,
        };
        self.running.push_back(heard.map(move |heard| (attempt, heard)).boxed());
    }

    fn error(&self, broken: Broken) -> Error {
        let stream = self.streams.out.cached_info().config.name.clone();
        match broken {
            Broken::Differs { out_seq, found, produced } => Error::OutDiffers { stream, out_seq, found, produced },
            Broken::WentBack { last, held } => Error::OutWentBack { stream, last, held },
            Broken::Misplaced { out_seq, sequence } => Error::OutNumber { stream, out_seq, sequence },
        }
    }
}

async fn ask_end(streams: Streams, after_failure: bool) -> Heard {
    if after_failure {
        tokio::time::sleep(RETRY).await;
    }
    match streams.out.get_info().await {
        Ok(info) => Heard::End(info.state.last_sequence),
        Err(error) if is_gone(&error) => Heard::Gone,
        Err(error) => {
            tracing::warn!(%error, "OUT does not answer");
            Heard::Failed
        }
    }
}

/// Asks the leader, who wraps the message in JSON at several times its cost. Where there is but one server it can as well be had as it is; of
/// several, one that answers directly may be behind, or still hold what the others have lost.
async fn read(streams: Streams, out_seq: u64) -> Heard {
    let config = &streams.out.cached_info().config;
    if config.allow_direct && config.num_replicas == 1 {
        match streams.out.direct_get(out_seq).await {
            Ok(found) => return Heard::Stands { out_seq, subject: found.subject.to_string(), payload: found.payload },
            Err(error) if error.kind() == DirectGetErrorKind::TimedOut => {
                tracing::warn!(%error, out_seq, "OUT cannot be read back");
                return Heard::Failed;
            }
            Err(_) => {}
        }
    }
    match streams.out.get_raw_message(out_seq).await {
        Ok(found) => Heard::Stands { out_seq, subject: found.subject.to_string(), payload: found.payload },
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Heard::Trimmed { out_seq },
        Err(error) => {
            tracing::warn!(%error, out_seq, "OUT cannot be read back");
            Heard::Failed
        }
    }
}

/// Hands the message to the connection now, so that messages leave in order; the answer comes later.
async fn publish(streams: &Streams, output: &Output) -> BoxFuture<'static, Heard> {
    let out_seq = output.out_seq;
    let message = PublishMessage::build().payload(Bytes::copy_from_slice(&output.bytes)).message_id(&output.id).expected_last_sequence(out_seq - 1);
    match streams.context.send_publish(output.subject.clone(), message).await {
        Ok(ack) => ack
            .into_future()
            .map(move |ack| match ack {
                // The message id was seen before: whether it stands where it belongs has to be looked up.
                Ok(ack) if ack.duplicate => Heard::Failed,
                Ok(ack) => Heard::Stored { out_seq, sequence: ack.sequence },
                Err(error) => {
                    tracing::warn!(%error, out_seq, "OUT did not confirm: reading it back");
                    Heard::Failed
                }
            })
            .boxed(),
        Err(error) => {
            tracing::warn!(%error, out_seq, "not published");
            ready(Heard::Failed).boxed()
        }
    }
}
