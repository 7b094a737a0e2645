//! The processor's side of the tail, over real Flight: rows behind a position, then whatever is added, a message at least each half second.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest, HandshakeResponse, PollInfo, PutResult,
    SchemaResult, Ticket,
};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use plimsoll_archive::table;
use plimsoll_query::tail::wire::{Follow, Origin, Progress, Samples, Sealed, Status as TailStatus};
use plimsoll_schemas::id::Position;
use plimsoll_schemas::row::{PlacedRow, SampleRow, Table};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::rows::{at, cell};

/// What the server has to say.
#[derive(Debug, Clone, Default)]
struct Content {
    cell: String,
    logic: u32,
    rows: Arc<Vec<PlacedRow>>,
    applied: Position,
    logged_at_ns: i64,
    sealed: Option<Sealed>,
    pruned: Position,
    samples: Arc<Vec<SampleRow>>,
}

/// A running tail server.
pub struct TailServer {
    address: SocketAddr,
    content: Arc<watch::Sender<Content>>,
    asked: Arc<Mutex<Vec<Samples>>>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl TailServer {
    /// Serves these rows; the newest one is the newest record.
    pub async fn start(rows: Vec<PlacedRow>) -> Self {
        Self::of_cell(cell().as_str(), rows).await
    }

    /// Serves these rows as those of this cell.
    pub async fn of_cell(cell: &str, rows: Vec<PlacedRow>) -> Self {
        let applied = rows.iter().map(|row| row.position).max().unwrap_or_default();
        let content =
            Content { cell: cell.to_owned(), rows: Arc::new(rows), applied, logged_at_ns: plimsoll_query::clock::now_ns(), ..Content::default() };
        Self::listen("127.0.0.1:0".parse().expect("an address"), Arc::new(watch::channel(content).0), Arc::default()).await
    }

    async fn listen(address: SocketAddr, content: Arc<watch::Sender<Content>>, asked: Arc<Mutex<Vec<Samples>>>) -> Self {
        let listener = TcpListener::bind(address).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let service = FlightServiceServer::new(Serving { content: content.subscribe(), asked: asked.clone(), stop: stop.clone() });
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.clone().cancelled_owned());
        let running = tokio::spawn(async move { serving.await.expect("serves") });
        Self { address, content, asked, stop, running }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn applied(&self) -> Position {
        self.content.borrow().applied
    }

    /// Adds rows, as if their records were folded now.
    pub fn add(&self, rows: Vec<PlacedRow>) {
        self.content.send_modify(|content| {
            content.applied = rows.iter().map(|row| row.position).max().unwrap_or_default().max(content.applied);
            content.logged_at_ns = plimsoll_query::clock::now_ns();
            Arc::make_mut(&mut content.rows).extend(rows);
        });
    }

    /// Tells of a manifest.
    pub fn sealed(&self, version: u64, to: u64) {
        self.content.send_modify(|content| content.sealed = Some(Sealed { version, position: at(to) }));
    }

    /// Forgets the rows up to a sequence, as the processor does once they are sealed.
    pub fn prune(&self, to: u64) {
        self.content.send_modify(|content| {
            content.pruned = at(to);
            Arc::make_mut(&mut content.rows).retain(|row| row.position > at(to));
        });
    }

    pub fn samples(&self, samples: Vec<SampleRow>) {
        self.content.send_modify(|content| content.samples = Arc::new(samples));
    }

    /// The requests for samples so far.
    pub fn asked(&self) -> Vec<Samples> {
        self.asked.lock().expect("not poisoned").clone()
    }

    /// Goes away, connections and all.
    pub async fn leave(self) -> Gone {
        self.stop.cancel();
        self.running.await.expect("ends");
        Gone { address: self.address, content: self.content, asked: self.asked }
    }
}

/// A tail server that is away.
pub struct Gone {
    address: SocketAddr,
    content: Arc<watch::Sender<Content>>,
    asked: Arc<Mutex<Vec<Samples>>>,
}

impl Gone {
    /// Has other rows from now on, up to the newest of them, folded by this logic.
    pub fn with(self, rows: Vec<PlacedRow>, logic: u32) -> Self {
        self.content.send_modify(|content| {
            content.applied = rows.iter().map(|row| row.position).max().unwrap_or_default();
            content.logic = logic;
            content.rows = Arc::new(rows);
        });
        self
    }

    /// The same server at the same address.
    pub async fn back(self) -> TailServer {
        TailServer::listen(self.address, self.content, self.asked).await
    }
}

struct Serving {
    content: watch::Receiver<Content>,
    asked: Arc<Mutex<Vec<Samples>>>,
    stop: CancellationToken,
}

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn metadata(content: &Content, applied: Position) -> Bytes {
    let progress = Progress { applied, logged_at_ns: content.logged_at_ns, sealed: content.sealed, origin: None };
    serde_json::to_vec(&progress).expect("JSON").into()
}

/// What the first message of a stream says.
fn opening(content: &Content, after: Position) -> Bytes {
    let origin = Origin { cell: content.cell.clone(), folded: content.applied, logic: content.logic };
    let progress = Progress { applied: after, logged_at_ns: content.logged_at_ns, sealed: content.sealed, origin: Some(origin) };
    serde_json::to_vec(&progress).expect("JSON").into()
}

fn messages(content: &Content, table: Table, after: Position) -> Vec<FlightData> {
    let wanted: Vec<PlacedRow> = content.rows.iter().filter(|row| row.row.table() == table && row.position > after).cloned().collect();
    let batch = table::batch(table, &cell(), &wanted).expect("rows");
    let all = batches_to_flight_data(&table::schema(table), vec![batch]).expect("flight");
    all.into_iter().skip(1).map(|message| message.with_app_metadata(metadata(content, content.applied))).collect()
}

impl Serving {
    fn follow(&self, ticket: &Follow) -> Result<Answer<FlightData>, Status> {
        let table = Table::from_name(&ticket.table).ok_or_else(|| Status::invalid_argument("no such table"))?;
        let mut content = self.content.clone();
        let (stop, mut after) = (self.stop.clone(), ticket.after);
        if after < content.borrow().pruned {
            return Err(Status::out_of_range("these rows are in the archive only"));
        }
        let (send, receive) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let schema = batches_to_flight_data(&table::schema(table), Vec::new()).expect("flight").remove(0);
            let first = opening(&content.borrow(), after);
            let mut outgoing = vec![schema.with_app_metadata(first)];
            loop {
                let now = content.borrow_and_update().clone();
                outgoing.extend(messages(&now, table, after));
                after = now.applied.max(after);
                for message in outgoing.drain(..) {
                    if send.send(Ok(message)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = content.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(500)) => {}
                }
            }
        });
        Ok(Box::pin(tokio_stream(receive)))
    }

    fn newest(&self, ticket: Samples) -> Answer<FlightData> {
        let content = self.content.borrow().clone();
        let named = |row: &&SampleRow| ticket.devices.as_ref().is_none_or(|devices| devices.contains(&row.device_key.0));
        let rows: Vec<SampleRow> = content.samples.iter().filter(named).take(ticket.limit as usize).cloned().collect();
        self.asked.lock().expect("not poisoned").push(ticket);
        let batch = table::samples_batch(&cell(), &rows).expect("samples");
        let messages = batches_to_flight_data(&table::samples_schema(), vec![batch]).expect("flight");
        Box::pin(futures::stream::iter(messages.into_iter().map(Ok)))
    }
}

fn tokio_stream<T: Send + 'static>(receive: tokio::sync::mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    futures::stream::unfold(receive, |mut receive| async move { receive.recv().await.map(|item| (item, receive)) })
}

#[tonic::async_trait]
impl FlightService for Serving {
    type HandshakeStream = Answer<HandshakeResponse>;
    type ListFlightsStream = Answer<FlightInfo>;
    type DoGetStream = Answer<FlightData>;
    type DoPutStream = Answer<PutResult>;
    type DoExchangeStream = Answer<FlightData>;
    type DoActionStream = Answer<arrow_flight::Result>;
    type ListActionsStream = Answer<ActionType>;

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let ticket = request.into_inner().ticket;
        if let Ok(samples) = serde_json::from_slice::<Samples>(&ticket) {
            return Ok(Response::new(self.newest(samples)));
        }
        let follow: Follow = serde_json::from_slice(&ticket).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(self.follow(&follow)?))
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let content = self.content.borrow().clone();
        let status =
            TailStatus { cell: content.cell.clone(), position: content.applied, logged_at_ns: content.logged_at_ns, ..TailStatus::default() };
        let body = arrow_flight::Result { body: serde_json::to_vec(&status).expect("JSON").into() };
        Ok(Response::new(futures::stream::once(async move { Ok(body) }).boxed()))
    }

    async fn handshake(&self, _: Request<Streaming<HandshakeRequest>>) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("handshake"))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented("list_flights"))
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented("get_flight_info"))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented("poll_flight_info"))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented("get_schema"))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented("do_put"))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoExchangeStream>, Status> {
        Err(Status::unimplemented("do_exchange"))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented("list_actions"))
    }
}
