//! The tail servers of a cell's processors, and which of them is followed.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightClient, Ticket};
use datafusion::arrow::record_batch::RecordBatch;
use futures::StreamExt;
use plimsoll_schemas::subject;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use super::wire::{Samples, Status};
use crate::error::Error;

const CONNECT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// Greatest Flight message, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// How to reach one processor's tail server. Connects when first used, and again when the connection is lost.
#[derive(Debug, Clone)]
pub struct Processor {
    url: String,
    channel: Channel,
}

impl Processor {
    fn at(url: &str) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| Error::Setting(format!("--tail {url:?}: {error}")))?;
        let channel = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).connect_lazy();
        Ok(Self { url: url.to_owned(), channel })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn client(&self) -> FlightClient {
        FlightClient::new_from_inner(FlightServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    /// The stream that a ticket asks for.
    pub(super) async fn get(&self, ticket: &impl serde::Serialize) -> Result<FlightDataDecoder, String> {
        let ticket = serde_json::to_vec(ticket).map_err(|error| error.to_string())?;
        let stream = self.client().do_get(Ticket::new(ticket)).await.map_err(|error| reason(&error))?;
        Ok(stream.into_inner())
    }

    async fn samples(&self, devices: Option<Vec<i64>>, limit: u64) -> Result<Vec<RecordBatch>, Error> {
        let ticket = Samples { table: "samples".to_owned(), devices, limit };
        let mut stream = self.get(&ticket).await.map_err(Error::ProcessorAway)?;
        let mut batches = Vec::new();
        while let Some(message) = stream.next().await {
            if let DecodedPayload::RecordBatch(batch) = message.map_err(|error| Error::ProcessorAway(reason(&error)))?.payload {
                batches.push(batch);
            }
        }
        Ok(batches)
    }

    /// How it stands.
    pub(super) async fn status(&self) -> Result<Status, String> {
        let mut results = self.client().do_action(Action::new("status", "")).await.map_err(|error| reason(&error))?;
        match results.next().await {
            Some(Ok(body)) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            Some(Err(error)) => Err(reason(&error)),
            None => Err("no answer to status".to_owned()),
        }
    }
}

/// The part of a Flight error that says something to a person.
pub(super) fn reason(error: &arrow_flight::error::FlightError) -> String {
    let arrow_flight::error::FlightError::Tonic(status) = error else { return error.to_string() };
    if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() }
}

/// The processors of a cell, of which one is followed. A clone is the same one.
#[derive(Debug, Clone)]
pub struct Processors {
    all: Arc<[Processor]>,
    followed: Arc<watch::Sender<usize>>,
}

impl Processors {
    /// The servers at these URLs, such as `http://127.0.0.1:9412`, separated by commas; the first is followed first. Errors if there is none
    /// or one is no URL. Must be called in a runtime.
    pub fn at(list: &str) -> Result<Self, Error> {
        let all = subject::servers(list).into_iter().map(Processor::at).collect::<Result<Arc<[_]>, _>>()?;
        if all.is_empty() {
            return Err(Error::Setting(format!("--tail {list:?}: it names no address, such as http://127.0.0.1:9412")));
        }
        Ok(Self { all, followed: Arc::new(watch::Sender::new(0)) })
    }

    /// Each of them, in the order of the list.
    pub(super) fn all(&self) -> &[Processor] {
        &self.all
    }

    /// Where to hear which one is followed, by its place in the list.
    pub(super) fn followed(&self) -> watch::Receiver<usize> {
        self.followed.subscribe()
    }

    /// Has another one followed.
    pub(super) fn follow(&self, index: usize) {
        self.followed.send_replace(index);
    }

    /// The newest samples of these GPUs, or of all, at most `limit` rows, from the one that is followed.
    pub async fn samples(&self, devices: Option<Vec<i64>>, limit: u64) -> Result<Vec<RecordBatch>, Error> {
        let followed = *self.followed.borrow();
        self.all[followed].samples(devices, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_address_or_several_are_taken_and_what_is_none_is_named() {
        let urls = |list| Processors::at(list).map(|found| found.all().iter().map(|one| one.url().to_owned()).collect::<Vec<_>>());
        assert_eq!(urls("http://a:1"), Ok(vec!["http://a:1".to_owned()]));
        assert_eq!(urls(" http://a:1, http://b:2,"), Ok(vec!["http://a:1".to_owned(), "http://b:2".to_owned()]));
        let refused = |list, named: &str| {
            let error = urls(list).expect_err(list).to_string();
            assert!(error.contains(named), "{error}");
        };
        refused("http://a:1,not a url", "--tail \"not a url\"");
        refused(" , ", "it names no address");
    }
}
