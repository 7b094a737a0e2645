//! The tail: everything not yet sealed, streamed to query processes over Arrow Flight as it is folded.
//!
//! `DoGet({"table":"…","after":{"epoch":0,"sequence":n}})` sends the schema, then every row behind `after` in order of place: from the store,
//! then from memory, then live, without end. Every message says in `app_metadata` up to which position all rows of the table were sent, the
//! first one also of which cell, log epoch and logic they are.
//! `DoGet({"table":"samples","devices":[…],"limit":n})` sends samples of the recent ring and ends. `DoAction("status")` gives one JSON object.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult,
    SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::stream::{self, Stream};
use plimsoll_archive::table;
use plimsoll_fold::rows::Encoded;
use plimsoll_fold::{LOGIC, Summary};
use plimsoll_schemas::id::{CellId, DeviceKey, Position, TenantId};
use plimsoll_schemas::out::Decided;
use plimsoll_schemas::request::Place;
use plimsoll_schemas::row::{PlacedRow, SampleRow, Table};
use plimsoll_schemas::time::LogTime;
use plimsoll_store::{Sealed, Store};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::metrics::Metrics;

/// Questions that may wait for the fold.
pub const QUEUE_ASKS: usize = 64;
/// Subscribers at one time.
pub const SUBSCRIBERS_MAX: usize = 256;
/// Chunks that may wait for one subscriber.
const QUEUE_CHUNKS: usize = 256;
/// Rows of all tables that may wait for one subscriber.
const QUEUE_ROWS: usize = 1_000_000;
/// A message has about this many rows, cut where the position changes …
const MESSAGE_ROWS: usize = 4_096;
/// … and never more than this many.
const MESSAGE_ROWS_MAX: usize = 16_384;
/// Most samples in one answer.
const SAMPLES_MAX: usize = 100_000;
const QUEUE_MESSAGES: usize = 8;
/// A message without rows is sent only when there was none for this long: chunks come every 100 ms, and most have nothing for most tables.
const QUIET: Duration = Duration::from_millis(400);
const SAMPLES: &str = "samples";

/// Rows that were folded together, and how far that went. All tables, in order of place.
#[derive(Debug)]
pub struct Chunk {
    /// The rows.
    pub rows: Encoded,
    /// Every row up to here is in this chunk or an earlier one.
    pub applied: Position,
    /// Log time of that position.
    pub logged_at: LogTime,
    /// The newest manifest the log has told of.
    pub sealed: Option<Sealed>,
}

/// What the tail, and who tries a request, ask the fold.
#[derive(Debug)]
pub enum Ask {
    /// To hear of every row from now on.
    Subscribe(oneshot::Sender<Result<Subscription, Status>>),
    /// For samples of the recent ring.
    Recent {
        /// Of which GPUs; absent = all.
        devices: Option<Vec<DeviceKey>>,
        /// At most how many.
        limit: usize,
        /// Who asks.
        reply: oneshot::Sender<(Vec<SampleRow>, Applied)>,
    },
    /// How it stands.
    Status(oneshot::Sender<StatusReport>),
    /// What a placement request would get.
    DryRun {
        /// Who asks.
        tenant: TenantId,
        /// The request.
        place: Box<Place>,
        /// Who waits for the answer.
        reply: oneshot::Sender<Box<Decided>>,
    },
}

/// How far rows were sent, on every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// All rows of the table up to here have been sent.
    pub applied: Position,
    /// Log time of the newest record folded, ns UTC.
    pub logged_at_ns: i64,
    /// The newest manifest the log has told of.
    pub sealed: Option<Sealed>,
}

/// How far rows were sent, and whose they are: on the first message of a table's stream.
#[derive(Debug, Serialize)]
struct Opening<'a> {
    #[serde(flatten)]
    applied: Applied,
    origin: Origin<'a>,
}

/// Whose rows they are. Whoever has others of the same cell, log epoch and logic goes on from them by position alone.
#[derive(Debug, Serialize)]
struct Origin<'a> {
    cell: &'a CellId,
    /// What was folded when the stream began.
    folded: Position,
    /// By which logic.
    logic: u32,
}

/// The answer to `status`.
#[derive(Debug, Clone, Serialize)]
pub struct StatusReport {
    /// Cell.
    pub cell: CellId,
    /// Replica.
    pub replica: String,
    /// Last record folded.
    pub position: Position,
    /// Its log time, ns UTC.
    pub logged_at_ns: i64,
    /// Last output.
    pub out_seq: u64,
    /// Last decision.
    pub decision_seq: u64,
    /// The newest manifest the log has told of.
    pub sealed: Option<Sealed>,
    /// The state's rolling hash at `position`, hexadecimal.
    pub hash: String,
    /// Whether this replica publishes, ticks and seals.
    pub active: bool,
    /// The fold's numbers.
    pub summary: Summary,
}

/// A place in the fold's stream of rows: nothing between `committed`, `unstored` and `live` is missing or double.
#[derive(Debug)]
pub struct Subscription {
    /// Up to here all rows are in the store.
    pub committed: Position,
    /// What was folded since.
    pub unstored: Vec<Arc<Chunk>>,
    /// How it stood at that moment.
    pub applied: Applied,
    /// What is folded from then on; it closes when the subscriber is too slow or the processor stops.
    pub live: mpsc::Receiver<Arc<Chunk>>,
    queued_rows: Arc<AtomicUsize>,
}

/// Everyone who follows the fold. Belongs to the fold's loop.
#[derive(Debug, Default)]
pub struct Subscribers {
    all: Vec<Subscriber>,
}

#[derive(Debug)]
struct Subscriber {
    sender: mpsc::Sender<Arc<Chunk>>,
    queued_rows: Arc<AtomicUsize>,
}

impl Subscribers {
    /// A new subscriber's two ends, this side kept. Refused when there are too many.
    pub fn add(&mut self, committed: Position, unstored: Vec<Arc<Chunk>>, applied: Applied) -> Result<Subscription, Status> {
        if self.all.len() >= SUBSCRIBERS_MAX {
            return Err(Status::resource_exhausted(format!("{SUBSCRIBERS_MAX} subscribers already")));
        }
        let (sender, live) = mpsc::channel(QUEUE_CHUNKS);
        let queued_rows = Arc::new(AtomicUsize::new(0));
        self.all.push(Subscriber { sender, queued_rows: queued_rows.clone() });
        Ok(Subscription { committed, unstored, applied, live, queued_rows })
    }

    /// Gives a chunk to everyone; whoever has no room is dropped and must come again.
    pub fn send(&mut self, chunk: &Arc<Chunk>, metrics: &Metrics) {
        self.all.retain(|subscriber| {
            let queued = subscriber.queued_rows.fetch_add(chunk.rows.len(), Ordering::Relaxed);
            let kept = match subscriber.sender.try_send(chunk.clone()) {
                Ok(()) => queued < QUEUE_ROWS,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) => false,
            };
            if !kept {
                metrics.tail_dropped.inc();
                tracing::warn!(queued_rows = queued, "a subscriber of the tail is too slow and was dropped");
            }
            kept
        });
        metrics.tail_subscribers.set(self.all.len() as i64);
    }
}

/// Serves the tail until `stop`.
pub async fn serve(listener: TcpListener, tail: Tail, stop: CancellationToken) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(FlightServiceServer::new(tail))
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.cancelled_owned())
        .await
}

/// The Flight service. It asks the fold and reads the store; it changes nothing.
#[derive(Clone)]
pub struct Tail {
    cell: CellId,
    store: Store,
    asks: mpsc::Sender<Ask>,
    metrics: Metrics,
}

type Messages = mpsc::Sender<Result<FlightData, Status>>;
type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a ticket says.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    table: String,
    #[serde(default)]
    after: Position,
    #[serde(default)]
    devices: Option<Vec<DeviceKey>>,
    #[serde(default)]
    limit: Option<usize>,
}

impl Tail {
    /// A tail over a store and a way to ask the fold.
    pub fn new(cell: CellId, store: Store, asks: mpsc::Sender<Ask>, metrics: Metrics) -> Self {
        Self { cell, store, asks, metrics }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.asks.try_send(ask(reply)).map_err(|_| {
            self.metrics.asks_refused.inc();
            Status::unavailable("the fold is busy or stopping: try again")
        })?;
        answer.await.map_err(|_| Status::unavailable("the processor is stopping: try again"))
    }

    async fn samples(self, devices: Option<Vec<DeviceKey>>, limit: usize, messages: Messages) -> Result<(), Status> {
        let (rows, applied) = self.ask(|reply| Ask::Recent { devices, limit: limit.min(SAMPLES_MAX), reply }).await?;
        let schema = table::samples_schema();
        send(&messages, schema_message(&schema, &applied)?).await?;
        for part in rows.chunks(MESSAGE_ROWS_MAX) {
            let batch = table::samples_batch(&self.cell, part).map_err(internal)?;
            send_batch(&messages, &schema, batch, &applied).await?;
        }
        Ok(())
    }

    async fn follow(self, table: Table, after: Position, messages: Messages) -> Result<(), Status> {
        let Subscription { committed, unstored, applied, mut live, queued_rows } = self.ask(Ask::Subscribe).await??;
        let outgoing = Outgoing { cell: self.cell.clone(), table, schema: table::schema(table), messages };
        let origin = Origin { cell: &self.cell, folded: applied.applied, logic: LOGIC };
        let opening = Opening { applied: Applied { applied: after, ..applied }, origin };
        send(&outgoing.messages, schema_message(&outgoing.schema, &opening)?).await?;
        let (stored, store) = (outgoing.clone(), self.store.clone());
        let runtime = tokio::runtime::Handle::current();
        let reading = tokio::task::spawn_blocking(move || runtime.block_on(stored.send_stored(&store, after, committed, applied)));
        reading.await.map_err(internal)??;
        let mut at = committed.max(after);
        for chunk in unstored {
            at = outgoing.send_chunk(&chunk, at).await?;
        }
        let mut sent = Instant::now();
        while let Some(chunk) = live.recv().await {
            queued_rows.fetch_sub(chunk.rows.len(), Ordering::Relaxed);
            if sent.elapsed() < QUIET && !chunk.rows.iter().any(|row| row.table == table) {
                at = at.max(chunk.applied);
                continue;
            }
            at = outgoing.send_chunk(&chunk, at).await?;
            sent = Instant::now();
        }
        Err(Status::unavailable(format!("dropped at {at}: too slow, or the processor is stopping; come again from there")))
    }
}

/// Where the rows of one table go.
#[derive(Clone)]
struct Outgoing {
    cell: CellId,
    table: Table,
    schema: SchemaRef,
    messages: Messages,
}

impl Outgoing {
    /// Sends the committed rows in `(after, committed]`. Errors if some of them were pruned: they are in the archive.
    async fn send_stored(&self, store: &Store, after: Position, committed: Position, mut applied: Applied) -> Result<(), Status> {
        // The view is taken before the mark is read: what was pruned before the view shows in the mark.
        let rows = store.rows(self.table, after, committed);
        let pruned = store.pruned().map_err(internal)?;
        if after < pruned {
            return Err(Status::out_of_range(format!(
                "rows up to {pruned} are in the archive only: read its newest manifest and come again from there"
            )));
        }
        let mut cut = Cut::new(after);
        for row in rows {
            let row = row.map_err(internal)?;
            if let Some((rows, at)) = cut.add(row) {
                applied.applied = at;
                self.send_rows(&rows, &applied).await?;
            }
        }
        applied.applied = committed.max(after);
        self.send_rows(&cut.rest(), &applied).await
    }

    /// Sends what a chunk has for this table behind `at`, and gives back how far that went.
    async fn send_chunk(&self, chunk: &Chunk, at: Position) -> Result<Position, Status> {
        let mut applied = Applied { applied: at, logged_at_ns: chunk.logged_at.0, sealed: chunk.sealed };
        let mut cut = Cut::new(at);
        for row in chunk.rows.iter().filter(|row| row.table == self.table && row.position > at) {
            if let Some((rows, at)) = cut.add(row.decode().map_err(internal)?) {
                applied.applied = at;
                self.send_rows(&rows, &applied).await?;
            }
        }
        applied.applied = chunk.applied.max(at);
        self.send_rows(&cut.rest(), &applied).await?;
        Ok(applied.applied)
    }

    async fn send_rows(&self, rows: &[PlacedRow], applied: &Applied) -> Result<(), Status> {
        let batch = table::batch(self.table, &self.cell, rows).map_err(internal)?;
        send_batch(&self.messages, &self.schema, batch, applied).await
    }
}

/// Cuts rows into messages where the position changes, so that each one says truly how far it goes.
struct Cut {
    rows: Vec<PlacedRow>,
    /// Up to here all rows are in messages cut before.
    whole: Position,
}

impl Cut {
    fn new(whole: Position) -> Self {
        Self { rows: Vec::new(), whole }
    }

    fn add(&mut self, row: PlacedRow) -> Option<(Vec<PlacedRow>, Position)> {
        let last = self.rows.last().map(|last| last.position);
        let changes = last.is_some_and(|last| last != row.position);
        let full = self.rows.len() >= MESSAGE_ROWS_MAX || (self.rows.len() >= MESSAGE_ROWS && changes);
        let message = full.then(|| {
            if changes {
                self.whole = last.unwrap_or(self.whole);
            }
            (std::mem::take(&mut self.rows), self.whole)
        });
        self.rows.push(row);
        message
    }

    fn rest(self) -> Vec<PlacedRow> {
        self.rows
    }
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

fn metadata(said: &impl Serialize) -> Bytes {
    serde_json::to_vec(said).expect("numbers always serialise").into()
}

fn schema_message(schema: &SchemaRef, said: &impl Serialize) -> Result<FlightData, Status> {
    let mut messages = batches_to_flight_data(schema, Vec::new()).map_err(internal)?;
    let message = messages.pop().ok_or_else(|| Status::internal("no schema message"))?;
    Ok(message.with_app_metadata(metadata(said)))
}

async fn send_batch(messages: &Messages, schema: &SchemaRef, batch: RecordBatch, applied: &Applied) -> Result<(), Status> {
    for message in batches_to_flight_data(schema, vec![batch]).map_err(internal)?.into_iter().skip(1) {
        send(messages, message.with_app_metadata(metadata(applied))).await?;
    }
    Ok(())
}

async fn send(messages: &Messages, message: FlightData) -> Result<(), Status> {
    messages.send(Ok(message)).await.map_err(|_| Status::cancelled("the subscriber left"))
}

fn answer(mut messages: mpsc::Receiver<Result<FlightData, Status>>) -> Answer<FlightData> {
    Box::pin(stream::poll_fn(move |context| messages.poll_recv(context)))
}

fn absent<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!("{what}: the tail has only DoGet and DoAction(\"status\")")))
}

#[tonic::async_trait]
impl FlightService for Tail {
    type HandshakeStream = Answer<HandshakeResponse>;
    type ListFlightsStream = Answer<FlightInfo>;
    type DoGetStream = Answer<FlightData>;
    type DoPutStream = Answer<PutResult>;
    type DoExchangeStream = Answer<FlightData>;
    type DoActionStream = Answer<arrow_flight::Result>;
    type ListActionsStream = Answer<ActionType>;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = request.into_inner().ticket;
        let wanted: Wanted =
            serde_json::from_slice(&ticket).map_err(|error| Status::invalid_argument(format!("the ticket is not {{\"table\":…}}: {error}")))?;
        let (messages, receiver) = mpsc::channel(QUEUE_MESSAGES);
        let tail = self.clone();
        let table = Table::from_name(&wanted.table);
        if table.is_none() && wanted.table != SAMPLES {
            let known: Vec<_> = Table::ALL.iter().map(|table| table.name()).chain([SAMPLES]).collect();
            return Err(Status::invalid_argument(format!("no table {:?}; there are {}", wanted.table, known.join(", "))));
        }
        tokio::spawn(async move {
            let errors = messages.clone();
            let ended = match table {
                Some(table) => tail.follow(table, wanted.after, messages).await,
                None => tail.samples(wanted.devices, wanted.limit.unwrap_or(SAMPLES_MAX), messages).await,
            };
            if let Err(status) = ended {
                // A subscriber that left hears nothing, which is what it wants.
                let _ = errors.send(Err(status)).await;
            }
        });
        Ok(Response::new(answer(receiver)))
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let kind = request.into_inner().r#type;
        if kind != "status" {
            return Err(Status::invalid_argument(format!("no action {kind:?}; there is \"status\"")));
        }
        let report = self.ask(Ask::Status).await?;
        let body = serde_json::to_vec(&report).map_err(internal)?;
        Ok(Response::new(Box::pin(stream::iter([Ok(arrow_flight::Result::new(body))]))))
    }

    async fn list_actions(&self, _request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let status = ActionType { r#type: "status".to_owned(), description: "how the processor stands, as one JSON object".to_owned() };
        Ok(Response::new(Box::pin(stream::iter([Ok(status)]))))
    }

    async fn handshake(&self, _request: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        absent("Handshake")
    }

    async fn list_flights(&self, _request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        absent("ListFlights")
    }

    async fn get_flight_info(&self, _request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        absent("GetFlightInfo")
    }

    async fn poll_flight_info(&self, _request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        absent("PollFlightInfo")
    }

    async fn get_schema(&self, _request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        absent("GetSchema")
    }

    async fn do_put(&self, _request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        absent("DoPut")
    }

    async fn do_exchange(&self, _request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        absent("DoExchange")
    }
}
