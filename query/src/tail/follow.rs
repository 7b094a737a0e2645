//! The Flight side of the tail: one endless stream per table, resumed where it stopped, and the manifests of the archive.

use std::time::Duration;

use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightClient, Ticket};
use datafusion::arrow::record_batch::RecordBatch;
use futures::StreamExt;
use plimsoll_archive::{Archive, table};
use plimsoll_schemas::row::Table;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::wire::{Follow, Progress, Samples, Status};
use super::{Room, Tail};
use crate::error::Error;

/// Longest wait for a message before the stream is given up: the server sends one a second.
const SILENCE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often the archive is asked for a newer manifest where the processor gives no hint.
const POLL: Duration = Duration::from_secs(2);
/// Greatest Flight message, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// How to reach the processor's tail server. Connects when first used, and again when the connection is lost.
#[derive(Debug, Clone)]
pub struct Processor {
    channel: Channel,
}

impl Processor {
    /// The server at this URL, such as `http://127.0.0.1:9412`. Errors if it is no URL. Must be called in a runtime.
    pub fn at(url: &str) -> Result<Self, Error> {
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| Error::Setting(format!("--tail {url:?}: {error}")))?;
        let channel = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).connect_lazy();
        Ok(Self { channel })
    }

    fn client(&self) -> FlightClient {
        FlightClient::new_from_inner(FlightServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    async fn get(&self, ticket: &impl serde::Serialize) -> Result<FlightDataDecoder, String> {
        let ticket = serde_json::to_vec(ticket).map_err(|error| error.to_string())?;
        let stream = self.client().do_get(Ticket::new(ticket)).await.map_err(|error| reason(&error))?;
        Ok(stream.into_inner())
    }

    /// The newest samples of these GPUs, or of all, at most `limit` rows.
    pub async fn samples(&self, devices: Option<Vec<i64>>, limit: u64) -> Result<Vec<RecordBatch>, Error> {
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

    async fn status(&self) -> Result<Status, String> {
        let mut results = self.client().do_action(Action::new("status", "")).await.map_err(|error| reason(&error))?;
        match results.next().await {
            Some(Ok(body)) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
            Some(Err(error)) => Err(reason(&error)),
            None => Err("no answer to status".to_owned()),
        }
    }
}

/// The part of a Flight error that says something to a person.
fn reason(error: &arrow_flight::error::FlightError) -> String {
    let arrow_flight::error::FlightError::Tonic(status) = error else { return error.to_string() };
    if status.message().is_empty() { status.code().to_string() } else { status.message().to_owned() }
}

/// Follows one table until told to stop, reconnecting with back-off from the last position it has.
pub(super) async fn follow(tail: Tail, processor: Processor, table: Table, stop: CancellationToken) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_stream(&tail, &processor, table) => ended,
        };
        if tail.disconnected(table, ended.reason) || ended.progressed {
            backoff = BACKOFF_MIN;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(BACKOFF_MAX),
        }
    }
}

struct Ended {
    reason: String,
    progressed: bool,
}

async fn one_stream(tail: &Tail, processor: &Processor, table: Table) -> Ended {
    let mut progressed = false;
    let reason = match read_stream(tail, processor, table, &mut progressed).await {
        Ok(()) => "the processor closed the stream".to_owned(),
        Err(reason) => reason,
    };
    Ended { reason, progressed }
}

async fn read_stream(tail: &Tail, processor: &Processor, table: Table, progressed: &mut bool) -> Result<(), String> {
    let after = tail.resume(table).ok_or("waits for the archive to be read")?;
    let ticket = Follow { table: table.name().to_owned(), after };
    let mut stream = tokio::time::timeout(SILENCE, processor.get(&ticket)).await.map_err(|_| "no answer in 10 s".to_owned())??;
    // Rows count only once a message says how far they go.
    let mut pending: Vec<RecordBatch> = Vec::new();
    loop {
        // Not reading is what holds the sender back when this side is full; nothing is lost by it.
        while let Room::Full(freed) = tail.room(table) {
            tokio::select! { () = freed.notified() => {}, () = tokio::time::sleep(POLL) => {} }
        }
        let message = tokio::time::timeout(SILENCE, stream.next()).await.map_err(|_| "no message in 10 s".to_owned())?;
        let Some(message) = message else { return Ok(()) };
        let message = message.map_err(|error| reason(&error))?;
        let metadata = message.app_metadata();
        match message.payload {
            DecodedPayload::None => {}
            DecodedPayload::Schema(schema) if schema.fields() == table::schema(table).fields() => {}
            DecodedPayload::Schema(_) => return Err(format!("the processor's columns of {} are not those of this version", table.name())),
            DecodedPayload::RecordBatch(batch) if batch.num_rows() == 0 => {}
            DecodedPayload::RecordBatch(batch) => pending.push(batch),
        }
        if !metadata.is_empty() {
            let progress: Progress = serde_json::from_slice(&metadata).map_err(|error| format!("unreadable progress: {error}"))?;
            tail.advance(table, std::mem::take(&mut pending), &progress)?;
            *progressed = true;
        }
    }
}

/// Keeps the newest manifest and the processor's status until told to stop.
pub(super) async fn watch(tail: Tail, archive: Archive, processor: Processor, hint: std::sync::Arc<Notify>, stop: CancellationToken) {
    loop {
        let known = tail.manifest();
        match archive.newer_than(known.as_deref()).await {
            Ok(newer) => tail.adopt(newer),
            Err(error) => tail.archive_failed(error.to_string()),
        }
        let status = tokio::time::timeout(CONNECT, processor.status()).await;
        tail.processor_status(status.ok().and_then(Result::ok));
        tokio::select! {
            () = stop.cancelled() => return,
            () = hint.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}
