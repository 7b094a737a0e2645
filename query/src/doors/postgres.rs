//! The Postgres wire: psql, Grafana, tokio-postgres and the like. Simple and extended protocol, text and binary.
//!
//! Every connection has its own handlers and settings, so no client's SET reaches another. Every statement that is not about the
//! session goes through the engine, whose deadline covers the rows as they are sent. Prepared statements are planned again each time
//! they run: they see what is there then.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arrow_pg::datatypes::df::deserialize_parameters_with_server_types;
use arrow_pg::datatypes::{arrow_schema_to_pg_fields, encode_recordbatch, into_pg_type};
use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ParamValues;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::ast::{Set, Statement};
use futures::{Sink, StreamExt, TryStreamExt, stream};
use pgwire::api::auth::StartupHandler;
use pgwire::api::auth::noop::NoopStartupHandler;
use pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{DataRowEncoder, FieldFormat, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, ConnectionManager, PgWireServerHandlers, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::millis;
use crate::engine::{Ask, Engine, Overflow};
use crate::error::Error;

const DOOR: &str = "pg";

/// Answers on this listener until told to stop, at most so many connections at a time.
pub async fn serve(listener: TcpListener, engine: Engine, connections_max: usize, tasks: TaskTracker, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(connections_max));
    let manager = Arc::new(ConnectionManager::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted.inspect_err(|error| tracing::warn!(%error, "cannot accept a connection")) else { continue };
        let Ok(place) = places.clone().try_acquire_owned() else {
            engine.metrics().connections_refused.inc();
            continue;
        };
        let (handlers, stop) = (Handlers::new(&engine, &manager), stop.clone());
        tasks.spawn(async move {
            let _place = place;
            tokio::select! {
                () = stop.cancelled() => {}
                ended = pgwire::tokio::process_socket(socket, None, handlers) => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended");
                    }
                }
            }
        });
    }
}

/// The handlers of one connection.
struct Handlers {
    session: Arc<Session>,
    startup: Arc<Startup>,
    cancel: Arc<DefaultCancelHandler>,
}

impl Handlers {
    fn new(engine: &Engine, manager: &Arc<ConnectionManager>) -> Self {
        Self {
            session: Arc::new(Session { engine: engine.clone(), timeout: Mutex::new(None) }),
            startup: Arc::new(Startup(manager.clone())),
            cancel: Arc::new(DefaultCancelHandler::new(manager.clone())),
        }
    }
}

impl PgWireServerHandlers for Handlers {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        self.session.clone()
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        self.session.clone()
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        self.startup.clone()
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        self.cancel.clone()
    }
}

/// Lets everyone in: the service listens on loopback only.
struct Startup(Arc<ConnectionManager>);

impl NoopStartupHandler for Startup {
    fn connection_manager(&self) -> Option<Arc<ConnectionManager>> {
        Some(self.0.clone())
    }
}

/// One client's session.
struct Session {
    engine: Engine,
    timeout: Mutex<Option<Duration>>,
}

/// A prepared statement.
#[derive(Debug, Clone)]
enum Prepared {
    /// About the session itself.
    Session(Box<Statement>),
    /// For the engine.
    Query(Arc<Query>),
}

#[derive(Debug)]
struct Query {
    sql: String,
    schema: SchemaRef,
    types: Vec<Option<DataType>>,
    wire: Vec<Type>,
}

impl Session {
    async fn run(&self, sql: &str, params: Option<ParamValues>, format: &Format) -> PgWireResult<Response> {
        let deadline = *self.timeout.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = Ask { sql: sql.to_owned(), params, deadline, rows_max: None, overflow: Overflow::Refuse, door: DOOR };
        let running = self.engine.run(ask).await.map_err(refusal)?;
        let fields = Arc::new(arrow_schema_to_pg_fields(&running.schema, format, None)?);
        let encoded = fields.clone();
        let batches = stream::try_unfold(running, |mut running| async move {
            match running.next().await.map_err(refusal)? {
                Some(batch) => Ok(Some((batch, running))),
                None => running.end().await.map(|_| None).map_err(refusal),
            }
        });
        let rows = batches.map_ok(move |batch| stream::iter(encode_recordbatch(encoded.clone(), batch))).try_flatten();
        // The first row is awaited here, where a request to cancel is heard, and where an error still comes before any row.
        let mut rows = Box::pin(rows.peekable());
        if let Some(Err(_)) = rows.as_mut().peek().await
            && let Some(Err(error)) = rows.next().await
        {
            return Err(error);
        }
        Ok(Response::Query(QueryResponse::new(fields, rows)))
    }

    async fn one(&self, statement: &Statement, sql: &str) -> PgWireResult<Response> {
        match self.about_session(statement)? {
            Some(response) => Ok(response),
            None => self.run(sql, None, &Format::UnifiedText).await,
        }
    }

    /// Answers statements about the session; none if it is for the engine.
    fn about_session(&self, statement: &Statement) -> PgWireResult<Option<Response>> {
        let done = |tag: &str| Ok(Some(Response::Execution(Tag::new(tag))));
        match statement {
            Statement::Set(set) => {
                self.set(set).map_err(refusal)?;
                done("SET")
            }
            Statement::ShowVariable { variable } => {
                let name: Vec<String> = variable.iter().map(|part| part.value.to_lowercase()).collect();
                self.show(&name.join("_")).map(Some)
            }
            Statement::StartTransaction { .. } => Ok(Some(Response::TransactionStart(Tag::new("BEGIN")))),
            Statement::Commit { .. } => Ok(Some(Response::TransactionEnd(Tag::new("COMMIT")))),
            Statement::Rollback { .. } => Ok(Some(Response::TransactionEnd(Tag::new("ROLLBACK")))),
            Statement::Discard { .. } => done("DISCARD"),
            Statement::Reset(_) => done("RESET"),
            Statement::Deallocate { .. } => done("DEALLOCATE"),
            _ => Ok(None),
        }
    }

    fn set(&self, set: &Set) -> Result<(), Error> {
        match set {
            Set::SetTimeZone { .. } | Set::SetNames { .. } | Set::SetNamesDefault {} | Set::SetTransaction { .. } => Ok(()),
            Set::SingleAssignment { variable, values, .. } => {
                let name = variable.to_string().to_lowercase();
                let value = values.iter().map(|value| value.to_string().trim_matches('\'').to_owned()).collect::<Vec<_>>().join(",");
                match name.as_str() {
                    "statement_timeout" => self.set_timeout(&value),
                    "application_name"
                    | "client_encoding"
                    | "timezone"
                    | "extra_float_digits"
                    | "datestyle"
                    | "intervalstyle"
                    | "search_path"
                    | "bytea_output"
                    | "client_min_messages"
                    | "standard_conforming_strings"
                    | "lock_timeout"
                    | "idle_in_transaction_session_timeout"
                    | "default_transaction_read_only"
                    | "row_security" => Ok(()),
                    _ => Err(Error::Setting(format!("{name} cannot be set here"))),
                }
            }
            other => Err(Error::Setting(format!("{other} is not supported"))),
        }
    }

    /// Lowers the deadline of this session; a longer one than the service's own counts as that.
    fn set_timeout(&self, value: &str) -> Result<(), Error> {
        let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
        let unit = match value[digits..].trim() {
            "" | "ms" => 1,
            "s" => 1_000,
            "min" => 60_000,
            _ => return Err(Error::Setting(format!("statement_timeout: {value:?} is no time such as 5000, '5s' or '1min'"))),
        };
        let given: u64 = match &value[..digits] {
            "" if value.eq_ignore_ascii_case("default") => 0,
            digits => digits.parse().map_err(|_| Error::Setting(format!("statement_timeout: {value:?} is no time")))?,
        };
        let timeout = (given > 0).then(|| Duration::from_millis(given.saturating_mul(unit)).min(self.engine.limits().deadline));
        *self.timeout.lock().unwrap_or_else(PoisonError::into_inner) = timeout;
        Ok(())
    }

    fn show(&self, name: &str) -> PgWireResult<Response> {
        let timeout = self.timeout.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(self.engine.limits().deadline);
        let value = match name {
            "server_version" => "16.6".to_owned(),
            "server_version_num" => "160006".to_owned(),
            "server_encoding" | "client_encoding" => "UTF8".to_owned(),
            "timezone" | "time_zone" => "UTC".to_owned(),
            "datestyle" => "ISO, MDY".to_owned(),
            "intervalstyle" => "postgres".to_owned(),
            "search_path" => "public".to_owned(),
            "statement_timeout" => format!("{}ms", millis(timeout)),
            "transaction_isolation" | "transaction_isolation_level" | "default_transaction_isolation" => "repeatable read".to_owned(),
            "transaction_read_only" | "default_transaction_read_only" | "in_hot_standby" => "on".to_owned(),
            "standard_conforming_strings" | "integer_datetimes" => "on".to_owned(),
            "max_identifier_length" => "63".to_owned(),
            "extra_float_digits" => "1".to_owned(),
            "application_name" | "session_authorization" => String::new(),
            _ => return Err(refusal(Error::Setting(format!("there is no setting {name}")))),
        };
        let fields = Arc::new(vec![show_field(name)]);
        let mut encoder = DataRowEncoder::new(fields.clone());
        encoder.encode_field(&Some(value))?;
        let row = encoder.take_row();
        Ok(Response::Query(QueryResponse::new(fields, stream::once(async move { Ok(row) }))))
    }
}

fn show_field(name: &str) -> FieldInfo {
    FieldInfo::new(name.to_owned(), None, None, Type::VARCHAR, FieldFormat::Text)
}

#[async_trait]
impl SimpleQueryHandler for Session {
    async fn do_query<C>(&self, _client: &mut C, sql: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statements = self.engine.reader().statements(sql).map_err(refusal)?;
        match statements.as_slice() {
            [] => Ok(vec![Response::EmptyQuery]),
            [statement] => Ok(vec![self.one(statement, sql).await?]),
            // Drivers send several settings at once; several questions would leave open which answer a limit belongs to.
            several => {
                let answers: Vec<_> = several.iter().map(|statement| self.about_session(statement)).collect::<PgWireResult<_>>()?;
                let all: Option<Vec<Response>> = answers.into_iter().collect();
                all.ok_or_else(|| refusal(Error::Several(several.len())))
            }
        }
    }
}

#[async_trait]
impl ExtendedQueryHandler for Session {
    type Statement = Prepared;
    type QueryParser = Planner;

    fn query_parser(&self) -> Arc<Self::QueryParser> {
        Arc::new(Planner(self.engine.clone()))
    }

    async fn do_query<C>(&self, _client: &mut C, portal: &Portal<Self::Statement>, _max_rows: usize) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Self::Statement>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        match &portal.statement.statement {
            Prepared::Session(statement) => {
                self.about_session(statement)?.ok_or_else(|| refusal(Error::Internal("a statement about nothing".to_owned())))
            }
            Prepared::Query(query) => {
                let types: Vec<Option<&DataType>> = query.types.iter().map(Option::as_ref).collect();
                let wire: Vec<Option<&Type>> = query.wire.iter().map(Some).collect();
                let params = deserialize_parameters_with_server_types(portal, &types, &wire)?;
                let params = (!query.types.is_empty()).then_some(params);
                self.run(&query.sql, params, &portal.result_column_format).await
            }
        }
    }
}

/// Plans statements when they are prepared, to say what they take and give.
struct Planner(Engine);

#[async_trait]
impl QueryParser for Planner {
    type Statement = Prepared;

    async fn parse_sql<C>(&self, _client: &C, sql: &str, _types: &[Option<Type>]) -> PgWireResult<Option<Self::Statement>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut statements = self.0.reader().statements(sql).map_err(refusal)?;
        let statement = match (statements.pop(), statements.len()) {
            (None, _) => return Ok(None),
            (Some(statement), 0) => statement,
            (Some(_), others) => return Err(refusal(Error::Several(others + 1))),
        };
        if about_session(&statement) {
            return Ok(Some(Prepared::Session(Box::new(statement))));
        }
        let described = self.0.describe(sql).await.map_err(refusal)?;
        let types = parameter_types(&described.plan).map_err(refusal)?;
        let wire = types.iter().map(|data_type| data_type.as_ref().map_or(Ok(Type::UNKNOWN), into_pg_type)).collect::<PgWireResult<_>>()?;
        Ok(Some(Prepared::Query(Arc::new(Query { sql: sql.to_owned(), schema: described.schema, types, wire }))))
    }

    fn get_parameter_types(&self, statement: &Self::Statement) -> PgWireResult<Vec<Type>> {
        Ok(match statement {
            Prepared::Session(_) => Vec::new(),
            Prepared::Query(query) => query.wire.clone(),
        })
    }

    fn get_result_schema(&self, statement: &Self::Statement, format: Option<&Format>) -> PgWireResult<Vec<FieldInfo>> {
        match statement {
            Prepared::Session(statement) => Ok(match statement.as_ref() {
                Statement::ShowVariable { variable } => {
                    let name: Vec<String> = variable.iter().map(|part| part.value.to_lowercase()).collect();
                    vec![show_field(&name.join("_"))]
                }
                _ => Vec::new(),
            }),
            Prepared::Query(query) => arrow_schema_to_pg_fields(&query.schema, format.unwrap_or(&Format::UnifiedBinary), None),
        }
    }
}

fn about_session(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Set(_)
            | Statement::ShowVariable { .. }
            | Statement::StartTransaction { .. }
            | Statement::Commit { .. }
            | Statement::Rollback { .. }
            | Statement::Discard { .. }
            | Statement::Reset(_)
            | Statement::Deallocate { .. }
    )
}

/// The types of `$1`, `$2`, ... as far as the plan knows them.
fn parameter_types(plan: &LogicalPlan) -> Result<Vec<Option<DataType>>, Error> {
    let mut numbered: Vec<(u32, Option<DataType>)> = Vec::new();
    for (name, data_type) in plan.get_parameter_types()? {
        let number = name.trim_start_matches('$').parse().map_err(|_| Error::Invalid(format!("parameter {name} is not of the form $1")))?;
        numbered.push((number, data_type));
    }
    numbered.sort_by_key(|(number, _)| *number);
    Ok(numbered.into_iter().map(|(_, data_type)| data_type).collect())
}

fn refusal(error: Error) -> PgWireError {
    let mut info = ErrorInfo::new("ERROR".to_owned(), error.sqlstate().to_owned(), error.to_string());
    info.hint = error.hint().map(str::to_owned);
    PgWireError::UserError(Box::new(info))
}
