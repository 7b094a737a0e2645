//! What stands in OUT, in order and in batches, to be compared with what a fold makes.

use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config as PullConfig, Stream as Pull};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::message::Message;
use futures::StreamExt;
use plimsoll_schemas::out::Output;

use crate::error::Error;
use crate::streams::Streams;

const PULL_MESSAGES: usize = 4_000;
const PULL_BYTES: usize = 8 << 20;
const EXPIRES: Duration = Duration::from_secs(20);
const HEARTBEAT: Duration = Duration::from_secs(5);
const INACTIVE: Duration = Duration::from_secs(60);
const SHOWN_BYTES: usize = 600;

/// A part of OUT that is read once.
pub struct Published {
    stream: String,
    /// First sequence that OUT still has.
    first: u64,
    /// Last sequence at the moment of opening.
    pub last: u64,
    messages: Option<Pull>,
}

/// How an output compares.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It stands there, byte for byte.
    Equal,
    /// OUT is older than what it keeps, or newer than when it was opened.
    Unknown,
    /// Something else stands there.
    Differs {
        /// What stands.
        found: String,
        /// What was made.
        produced: String,
    },
}

impl Published {
    /// OUT behind an output, up to where it ends now. Reads in batches with a consumer that is gone a minute later.
    pub async fn open(streams: &Streams, after: u64) -> Result<Self, Error> {
        let stream = streams.out.cached_info().config.name.clone();
        let failed = |detail: String| Error::Stream { stream: stream.clone(), what: "reading it", detail };
        let state = streams.out.get_info().await.map_err(|error| failed(error.to_string()))?.state;
        let (first, last) = (state.first_sequence.max(1), state.last_sequence);
        let mut published = Self { stream: stream.clone(), first, last, messages: None };
        if last > after {
            let config = PullConfig {
                deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: after + 1 },
                ack_policy: AckPolicy::None,
                inactive_threshold: INACTIVE,
                num_replicas: 1,
                memory_storage: true,
                ..PullConfig::default()
            };
            let consumer = streams.out.create_consumer(config).await.map_err(|error| failed(error.to_string()))?;
            let messages =
                consumer.stream().max_messages_per_batch(PULL_MESSAGES).max_bytes_per_batch(PULL_BYTES).expires(EXPIRES).heartbeat(HEARTBEAT);
            published.messages = Some(messages.messages().await.map_err(|error| failed(error.to_string()))?);
        }
        Ok(published)
    }

    /// Compares the next output with what stands under its number. Outputs must come in order.
    pub async fn compare(&mut self, output: &Output) -> Result<Found, Error> {
        if output.out_seq < self.first || output.out_seq > self.last {
            return Ok(Found::Unknown);
        }
        let (sequence, message) = loop {
            match self.next().await? {
                (sequence, _) if sequence < output.out_seq => {}
                found => break found,
            }
        };
        if sequence == output.out_seq && message.payload == output.bytes && *message.subject == *output.subject {
            return Ok(Found::Equal);
        }
        let produced = shown(output.out_seq, &output.subject, &output.bytes);
        Ok(Found::Differs { found: shown(sequence, &message.subject, &message.payload), produced })
    }

    async fn next(&mut self) -> Result<(u64, Message), Error> {
        let failed = |detail: String| Error::Stream { stream: self.stream.clone(), what: "reading it", detail };
        let Some(messages) = &mut self.messages else { return Err(failed("it ended".to_owned())) };
        let message = match messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(failed(error.to_string())),
            None => return Err(failed("the consumer ended".to_owned())),
        };
        let sequence = message.info().map_err(|error| failed(error.to_string()))?.stream_sequence;
        Ok((sequence, message))
    }
}

fn shown(sequence: u64, subject: &str, bytes: &[u8]) -> String {
    format!("{sequence} {subject} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]))
}
