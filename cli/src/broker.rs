//! The broker as a client sees it: append to LOG with an acknowledgement, read OUT, with a place of one's own in it or without.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, context::PublishErrorKind};
use bytes::Bytes;
use futures::StreamExt;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::out::CloudEvent;
use plimsoll_schemas::subject::{LogSubject, ROOT, check_nats_version, out_stream, servers};
use serde::Serialize;

use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::outputs::Outputs;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the broker waits for a sign of life about a message before it gives it out again.
pub const ACK_WAIT: Duration = Duration::from_secs(30);

/// A connection to the broker of one cell.
#[derive(Debug, Clone)]
pub struct Broker {
    url: String,
    cell: CellId,
    client: async_nats::Client,
    jetstream: jetstream::Context,
}

/// Which part of OUT is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// Only what comes after now.
    Now,
    /// So many of the newest outputs of the cell as well.
    Last(u64),
}

impl Broker {
    /// Connects, and refuses a broker that is too old to be used.
    pub async fn connect(endpoints: &Endpoints) -> Result<Self, Error> {
        let url = endpoints.nats.clone();
        let failed = |detail: String| Error::Broker {
            what: "cannot reach the broker".to_owned(),
            url: url.clone(),
            detail,
            hint: "Is the pipeline up? Start it with `plimsoll up`, or name the broker with --nats",
        };
        let options = async_nats::ConnectOptions::new().name("plimsoll").connection_timeout(CONNECT_TIMEOUT);
        let client = options.connect(servers(&url)).await.map_err(|error| failed(error.to_string()))?;
        check_nats_version(&client.server_info().version).map_err(|old| failed(old.to_string()))?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(ACK_TIMEOUT);
        Ok(Self { url, cell: endpoints.cell.clone(), client, jetstream })
    }

    /// The cell.
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// Where the broker is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its streams.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// A text that nobody else will ever choose.
    pub fn unique(&self) -> String {
        let inbox = self.client.new_inbox();
        inbox.rsplit('.').next().unwrap_or(&inbox).to_owned()
    }

    /// Appends one JSON record to LOG; returns its sequence when the broker has it.
    pub async fn append(&self, subject: &LogSubject, record: &impl Serialize) -> Result<u64, Error> {
        let payload = serde_json::to_vec(record).expect("messages of ours always serialise");
        let sent = self.jetstream.publish(subject.to_subject(&self.cell), payload.into()).await;
        let acknowledged = match sent {
            Ok(future) => future.await,
            Err(error) => Err(error),
        };
        acknowledged.map(|ack| ack.sequence).map_err(|error| Error::Broker {
            what: format!("cell {} did not take a {subject} record", self.cell),
            url: self.url.clone(),
            detail: error.to_string(),
            hint: match error.kind() {
                PublishErrorKind::StreamNotFound => "It has no log yet: is its processor running, and is --cell right?",
                PublishErrorKind::TimedOut => "The broker may be down or its disk full, or this user may not publish there",
                PublishErrorKind::WrongLastMessageId
                | PublishErrorKind::WrongLastSequence
                | PublishErrorKind::BrokenPipe
                | PublishErrorKind::MaxAckPending
                | PublishErrorKind::MaxPayloadExceeded
                | PublishErrorKind::Other => "Look at the broker's log",
            },
        })
    }

    /// Follows OUT: everything under one of `tails`, such as `decision.research`, in order and without an end.
    pub async fn follow(&self, tails: &[String], since: Since) -> Result<Follow, Error> {
        let name = out_stream(&self.cell, 0).name;
        let failed = |detail: String| Error::Broker {
            what: format!("cannot read the outputs of cell {}", self.cell),
            url: self.url.clone(),
            detail,
            hint: "Is its processor running, and is --cell right?",
        };
        let stream = self.jetstream.get_stream(&name).await.map_err(|error| failed(error.to_string()))?;
        let deliver_policy = match since {
            Since::Now => DeliverPolicy::New,
            Since::Last(count) => {
                DeliverPolicy::ByStartSequence { start_sequence: stream.cached_info().state.last_sequence.saturating_sub(count) + 1 }
            }
        };
        let filter_subjects = tails.iter().map(|tail| format!("{ROOT}.{}.out.{tail}", self.cell)).collect();
        let config = pull::OrderedConfig { filter_subjects, deliver_policy, ..Default::default() };
        let consumer = stream.create_consumer(config).await.map_err(|error| failed(error.to_string()))?;
        let messages = consumer.messages().await.map_err(|error| failed(error.to_string()))?;
        Ok(Follow { messages, url: self.url.clone() })
    }
}

/// Which part of OUT a consumer that the broker remembers begins with when it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// What comes from now on.
    Now,
    /// Everything that OUT keeps.
    Start,
}

impl Broker {
    /// One part of OUT under a name that the broker remembers: what was not acknowledged comes again, also after a restart. One message
    /// at a time, so they stay in order.
    pub async fn remembered(&self, name: &str, tail: &str, begin: Begin) -> Result<pull::Stream, Error> {
        let stream_name = out_stream(&self.cell, 0).name;
        let failed = |detail: String| Error::Broker {
            what: format!("cannot read the outputs of cell {} as {name}", self.cell),
            url: self.url.clone(),
            detail,
            hint: "Is its processor running, and is --cell right?",
        };
        let stream = self.jetstream.get_stream(&stream_name).await.map_err(|error| failed(error.to_string()))?;
        let config = pull::Config {
            durable_name: Some(name.to_owned()),
            description: Some("alerts for a sink".to_owned()),
            filter_subject: format!("{ROOT}.{}.out.{tail}", self.cell),
            deliver_policy: match begin {
                Begin::Now => DeliverPolicy::New,
                Begin::Start => DeliverPolicy::All,
            },
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: 1,
            ..Default::default()
        };
        let consumer = stream.get_or_create_consumer(name, config).await.map_err(|error| failed(error.to_string()))?;
        consumer.stream().max_messages_per_batch(1).messages().await.map_err(|error| failed(error.to_string()))
    }
}

impl Broker {
    /// OUT, to look at single outputs.
    pub async fn outputs(&self) -> Result<Outputs, Error> {
        Outputs::open(&self.jetstream, &self.cell, &self.url).await
    }
}

/// Messages of OUT, in order.
pub struct Follow {
    messages: pull::Ordered,
    url: String,
}

impl Follow {
    /// The next event and its exact bytes.
    pub async fn next(&mut self) -> Result<(CloudEvent, Bytes), Error> {
        let failed = |detail: String| Error::Broker {
            what: "the outputs cannot be followed any longer".to_owned(),
            url: self.url.clone(),
            detail,
            hint: "Ask again when the broker is back",
        };
        let message = match self.messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(failed(error.to_string())),
            None => return Err(failed("the consumer ended".to_owned())),
        };
        let event =
            serde_json::from_slice(&message.payload).map_err(|error| failed(format!("{} holds what is no event: {error}", message.subject)))?;
        Ok((event, message.payload.clone()))
    }
}
