//! OUT is one chain: output n is message n of the stream, each published with the number it must follow.
//!
//! So what stands in OUT is always a prefix of what the fold produced, whoever wrote it. A refusal or a time-out is never retried blindly:
//! the stream is read back through its leader, what stands there is compared byte for byte, and publishing goes on behind it.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::stream::RawMessageErrorKind;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use plimsoll_schemas::out::Output;
use tokio::sync::{mpsc, watch};

use crate::error::Error;
use crate::health::Health;
use crate::metrics::{Metrics, signed};
use crate::streams::Streams;

/// Outputs that may wait in the publisher's queue.
pub const QUEUE_OUTPUTS: usize = 1_024;
const IN_FLIGHT_MAX: usize = 256;
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(3);
const SHOWN_BYTES: usize = 600;

/// Publishes outputs in order, each exactly once.
pub struct Publisher {
    streams: Streams,
    /// Last sequence known to stand in OUT without having been published by this process.
    standing: u64,
    window: VecDeque<InFlight>,
    acked: watch::Sender<u64>,
    health: Health,
    metrics: Metrics,
}

struct InFlight {
    output: Arc<Output>,
    ack: Ack,
}

/// An acknowledgement that is still to come, or why there will be none.
type Ack = Shared<BoxFuture<'static, Result<PublishAck, String>>>;

enum Next {
    Ack(Result<PublishAck, String>),
    Output(Arc<Output>),
    Closed,
}

impl Publisher {
    /// A publisher that finds OUT ending at `standing`, and where to hear up to which output OUT is known to be right.
    pub fn new(streams: Streams, standing: u64, health: Health, metrics: Metrics) -> (Self, watch::Receiver<u64>) {
        let (acked, heard) = watch::channel(0);
        health.out_reachable(true);
        (Self { streams, standing, window: VecDeque::new(), acked, health, metrics }, heard)
    }

    /// Publishes until the queue closes and everything in it stands in OUT, or what stands there is wrong.
    pub async fn run(mut self, mut queue: mpsc::Receiver<Arc<Output>>) -> Result<(), Error> {
        let mut open = true;
        while open || !self.window.is_empty() {
            let room = open && self.window.len() < IN_FLIGHT_MAX;
            let next = tokio::select! {
                biased;
                ack = first_ack(&self.window) => Next::Ack(ack),
                output = queue.recv(), if room => output.map_or(Next::Closed, Next::Output),
            };
            match next {
                Next::Ack(Ok(ack)) => self.confirm(&ack)?,
                Next::Ack(Err(detail)) => self.read_back(detail).await?,
                Next::Output(output) if output.out_seq <= self.standing => self.compare_patiently(&output).await?,
                Next::Output(output) => self.publish(output).await,
                Next::Closed => open = false,
            }
        }
        Ok(())
    }

    async fn publish(&mut self, output: Arc<Output>) {
        let message =
            PublishMessage::build().payload(Bytes::copy_from_slice(&output.bytes)).message_id(&output.id).expected_last_sequence(output.out_seq - 1);
        let ack = match self.streams.context.send_publish(output.subject.clone(), message).await {
            Ok(ack) => ack.into_future().map(|ack| ack.map_err(|error| error.to_string())).boxed(),
            Err(error) => std::future::ready(Err(error.to_string())).boxed(),
        };
        self.window.push_back(InFlight { output, ack: ack.shared() });
    }

    fn confirm(&mut self, ack: &PublishAck) -> Result<(), Error> {
        let Some(InFlight { output, .. }) = self.window.pop_front() else { return Ok(()) };
        if ack.sequence != output.out_seq {
            return Err(Error::OutNumber { stream: self.name(), out_seq: output.out_seq, sequence: ack.sequence });
        }
        self.health.out_reachable(true);
        self.stands(output.out_seq);
        Ok(())
    }

    fn stands(&self, out_seq: u64) {
        self.metrics.out_acked.set(signed(out_seq));
        self.acked.send_replace(out_seq);
    }

    /// After a refusal or time-out: finds out what stands, compares it, and publishes the rest again.
    async fn read_back(&mut self, detail: String) -> Result<(), Error> {
        tracing::warn!(detail, first = self.window.front().map(|first| first.output.out_seq), "OUT did not confirm: reading it back");
        self.metrics.out_read_backs.inc();
        let mut wait = RETRY_MIN;
        let last = loop {
            match self.streams.out.get_info().await {
                Ok(info) => break info.state.last_sequence,
                Err(error) => {
                    self.health.out_reachable(false);
                    tracing::warn!(%error, retry_ms = wait.as_millis() as u64, "OUT does not answer");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        };
        while let Some(first) = self.window.front().filter(|first| first.output.out_seq <= last) {
            let output = first.output.clone();
            self.compare_patiently(&output).await?;
            self.window.pop_front();
        }
        if let Some(first) = self.window.front() {
            if last + 1 < first.output.out_seq {
                return Err(Error::OutBehind { stream: self.name(), last, kept: first.output.out_seq });
            }
            // The refusal was not about numbers, so OUT is full, not permitted or without a leader: trying at full speed helps nobody.
            self.health.out_reachable(false);
            tokio::time::sleep(RETRY_MIN).await;
        }
        for InFlight { output, .. } in std::mem::take(&mut self.window) {
            self.publish(output).await;
        }
        Ok(())
    }

    /// Compares what the fold produced with what stands. Asks again until OUT answers.
    async fn compare_patiently(&self, output: &Output) -> Result<(), Error> {
        let mut wait = RETRY_MIN;
        loop {
            match self.streams.out.get_raw_message(output.out_seq).await {
                Ok(found) if found.payload == output.bytes && *found.subject == *output.subject => {
                    self.metrics.out_compared.inc();
                    self.stands(output.out_seq);
                    return Ok(());
                }
                Ok(found) => {
                    return Err(Error::OutDiffers {
                        stream: self.name(),
                        out_seq: output.out_seq,
                        found: shown(&found.subject, &found.payload),
                        produced: shown(&output.subject, &output.bytes),
                    });
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
                    self.metrics.out_unverifiable.inc();
                    self.stands(output.out_seq);
                    return Ok(());
                }
                Err(error) => {
                    self.health.out_reachable(false);
                    tracing::warn!(%error, out_seq = output.out_seq, retry_ms = wait.as_millis() as u64, "OUT cannot be read back");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(RETRY_MAX);
                }
            }
        }
    }

    fn name(&self) -> String {
        self.streams.out.cached_info().config.name.clone()
    }
}

async fn first_ack(window: &VecDeque<InFlight>) -> Result<PublishAck, String> {
    match window.front() {
        Some(first) => first.ack.clone().await,
        None => std::future::pending().await,
    }
}

fn shown(subject: &str, bytes: &[u8]) -> String {
    format!("{subject} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]))
}
