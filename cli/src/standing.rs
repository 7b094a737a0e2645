//! What stands in a stream now, in order: read once, up to where it ended when it was asked, with a consumer that is gone soon after.

use std::time::Duration;

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use bytes::Bytes;
use futures::StreamExt;
use plimsoll_schemas::subject::{ROOT, log_stream, out_stream};
use plimsoll_schemas::time::LogTime;

use crate::broker::Broker;
use crate::error::Error;

/// How long the broker keeps a consumer that nobody asks.
const INACTIVE: Duration = Duration::from_secs(30);
const PULL_MESSAGES: usize = 1_000;

/// Which messages.
#[derive(Debug, Clone, Copy)]
pub enum Which {
    /// All since then; from the first one on where nothing is said.
    Since(Option<LogTime>),
    /// The newest of each subject.
    NewestOfEach,
}

/// One message.
#[derive(Debug)]
pub struct Found {
    /// When the broker took it.
    pub at: LogTime,
    /// Its subject.
    pub subject: String,
    /// What it says.
    pub payload: Bytes,
}

/// Messages that are still to be read.
pub struct Standing {
    messages: Option<pull::Stream>,
    left: u64,
    url: String,
}

impl Broker {
    /// What stands in LOG or OUT under a tail such as `log.request.*`.
    pub async fn standing(&self, tail: &str, which: Which) -> Result<Standing, Error> {
        let name = if tail.starts_with("log.") { log_stream(self.cell(), 0).name } else { out_stream(self.cell(), 0).name };
        let url = self.url().to_owned();
        let failed = |detail: String| failed(&url, detail);
        let stream = self.jetstream().get_stream(&name).await.map_err(|error| failed(error.to_string()))?;
        let deliver_policy = match which {
            Which::NewestOfEach => DeliverPolicy::LastPerSubject,
            Which::Since(None) => DeliverPolicy::All,
            Which::Since(Some(at)) => {
                let start_time = async_nats::datetime::from_nanos(i128::from(at.0)).map_err(|error| failed(error.to_string()))?;
                DeliverPolicy::ByStartTime { start_time }
            }
        };
        let config = pull::Config {
            filter_subject: format!("{ROOT}.{}.{tail}", self.cell()),
            deliver_policy,
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.to_string()))?;
        let left = consumer.cached_info().num_pending;
        let messages = consumer.stream().max_messages_per_batch(PULL_MESSAGES).messages().await.map_err(|error| failed(error.to_string()))?;
        Ok(Standing { messages: Some(messages).filter(|_| left > 0), left, url })
    }
}

impl Standing {
    /// The next message; nothing when all were read.
    pub async fn next(&mut self) -> Result<Option<Found>, Error> {
        let Some(messages) = self.messages.as_mut().filter(|_| self.left > 0) else { return Ok(None) };
        let message: Message = match messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(failed(&self.url, error.to_string())),
            None => return Err(failed(&self.url, "the consumer ended".to_owned())),
        };
        let info = message.info().map_err(|error| failed(&self.url, error.to_string()))?;
        // Retention may take some away while they are read.
        self.left = (self.left - 1).min(info.pending);
        let at = i64::try_from(info.published.unix_timestamp_nanos()).map_err(|error| failed(&self.url, error.to_string()))?;
        Ok(Some(Found { at: LogTime(at), subject: message.subject.to_string(), payload: message.payload.clone() }))
    }
}

fn failed(url: &str, detail: String) -> Error {
    let what = "cannot read what stands in the cell's streams".to_owned();
    Error::Broker { what, url: url.to_owned(), detail, hint: "Is its processor running, and is --cell right?" }
}
