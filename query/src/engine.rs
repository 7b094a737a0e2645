//! The one engine behind every door: read, check, admit, plan, run under limits, log.
//!
//! Statements run on threads of their own, so that a busy one leaves the doors open. Each sees one snapshot, has its own share of
//! memory and its own deadline, which covers waiting, planning, running and a slow client alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::SchemaProvider;
use datafusion::common::{ParamValues, Result as DfResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::{SQLOptions, SessionConfig};
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryPool};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::session_state::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use datafusion_pg_catalog::pg_catalog::{context::EmptyContextProvider, setup_pg_catalog};
use futures::StreamExt;
use plimsoll_archive::Archive;
use plimsoll_archive::column::UTC;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::catalog::{CATALOG, Catalogs, PG_CATALOG, PUBLIC, View};
use crate::clock::{self, millis};
use crate::error::Error;
use crate::functions;
use crate::limits::{Admission, Limits, StatementMemory, shared_memory};
use crate::metrics::{Ended, Metrics, Now};
use crate::provider::ARCHIVE_URL;
use crate::provider::rows::Scanned;
use crate::snapshot::Snapshot;
use crate::statement::{self, Reader};
use crate::stop::{Stop, StopInJoins};
use crate::system::{QueryLog, Ran};
use crate::tail::processor::Processors;
use crate::tail::{Followed, Health, Tail};

/// Batches that wait for the client; the statement waits when they are not taken.
const BATCHES_AHEAD: usize = 2;
/// How long past its deadline the statement's own thread is given to say so itself.
const GRACE: Duration = Duration::from_millis(200);
/// Planning a deep statement needs a deep stack.
const STACK_BYTES: usize = 8 << 20;

/// What runs statements. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: SessionState,
    environment: Arc<RuntimeEnv>,
    pg_catalog: Arc<dyn SchemaProvider>,
    tail: Tail,
    processors: Option<Processors>,
    archive: Archive,
    limits: Limits,
    admission: Admission,
    memory: Arc<GreedyMemoryPool>,
    log: Arc<QueryLog>,
    metrics: Metrics,
    reader: Reader,
    threads: Threads,
    next_id: AtomicU64,
}

/// The threads that run statements, let go of without waiting when the engine ends.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What happens when an answer has more rows than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overflow {
    /// The first rows are given and marked as not all.
    Truncate,
    /// The statement fails.
    Refuse,
}

/// One statement to run.
#[derive(Debug, Clone)]
pub struct Ask {
    /// What it says.
    pub sql: String,
    /// Values of `$1`, `$2`, ...
    pub params: Option<ParamValues>,
    /// Longest time; never above the engine's own limit.
    pub deadline: Option<Duration>,
    /// Most rows; never above the engine's own limit.
    pub rows_max: Option<u64>,
    /// What happens when there are more.
    pub overflow: Overflow,
    /// `http` or `pg`.
    pub door: &'static str,
}

/// What a statement will give, without running it.
#[derive(Debug, Clone)]
pub struct Described {
    /// Its columns.
    pub schema: SchemaRef,
    /// The plan, for the types of its parameters.
    pub plan: LogicalPlan,
}

/// A running statement. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    /// Its columns.
    pub schema: SchemaRef,
    /// What it sees.
    pub snapshot: Arc<Snapshot>,
    batches: mpsc::Receiver<RecordBatch>,
    outcome: oneshot::Receiver<Result<bool, Error>>,
    task: AbortHandle,
    stop: Arc<Stop>,
}

impl Running {
    /// The next rows; none at the end. Errors if it failed or reached a limit.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        let last_call = tokio::time::Instant::from_std(self.stop.at() + GRACE);
        match tokio::time::timeout_at(last_call, self.batches.recv()).await {
            Ok(Some(batch)) => Ok(Some(batch)),
            Ok(None) => Ok(None),
            Err(_) => Err(self.stop.deadline()),
        }
    }

    /// Whether the answer was cut at the row limit. To be asked once, after the last rows. Errors if it failed or reached a limit.
    pub async fn end(&mut self) -> Result<bool, Error> {
        let last_call = tokio::time::Instant::from_std(self.stop.at() + GRACE);
        match tokio::time::timeout_at(last_call, &mut self.outcome).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Internal("the statement's task ended without a word".to_owned())),
            Err(_) => Err(self.stop.deadline()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

impl Engine {
    /// An engine over this tail and archive. Errors if the engine cannot be set up.
    pub fn new(tail: Tail, processors: Option<Processors>, archive: Archive, limits: Limits) -> Result<Self, Error> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let memory = shared_memory(&limits);
        let log = Arc::new(QueryLog::default());
        let environment = environment(&archive, &limits, memory.clone())?;
        let blank = View {
            cell: archive.cell().to_string(),
            snapshot: Arc::new(Snapshot::empty()),
            health: Health::default(),
            scanned: Arc::default(),
            processors: None,
            samples_rows_max: limits.samples_rows_max,
            log: log.clone(),
            pg_catalog: None,
        };
        let (base, pg_catalog) = base(blank, &environment, cores)?;
        // One more than the cores, at least four: a statement between two batches must not keep the others waiting.
        let threads = Builder::new_multi_thread()
            .worker_threads((cores + 1).max(4))
            .thread_name("statement")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| Error::Internal(format!("cannot start threads: {error}")))?;
        Ok(Self(Arc::new(Inner {
            base,
            environment,
            pg_catalog,
            tail,
            processors,
            archive,
            admission: Admission::new(&limits),
            memory,
            log,
            metrics: Metrics::default(),
            reader: Reader::default(),
            threads: Threads(Some(threads)),
            next_id: AtomicU64::new(1),
            limits,
        })))
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Reads SQL.
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The metrics as text.
    pub fn metrics_text(&self) -> String {
        let (health, snapshot) = (self.0.tail.health(), self.0.tail.snapshot().ok());
        self.0.metrics.text(&Now {
            running: self.0.admission.running(),
            waiting: self.0.admission.waiting(),
            memory_bytes: self.0.memory.reserved(),
            health: &health,
            snapshot: snapshot.as_deref(),
        })
    }

    /// Why answers are not what they should be; empty = ready.
    pub fn reasons(&self) -> Vec<String> {
        let root = self.0.archive.root().display().to_string();
        self.0.tail.health().reasons.into_iter().map(|reason| reason.replace(&root, "archive:")).collect()
    }

    /// Which processor's tail is followed.
    pub fn followed(&self) -> Followed {
        self.0.tail.health().followed
    }

    /// What a statement will give. Errors as running it would, as far as planning goes.
    pub async fn describe(&self, sql: &str) -> Result<Described, Error> {
        let (engine, sql) = (self.clone(), sql.to_owned());
        let stop = engine.stop(None);
        let task = self.spawn(async move {
            let _place = engine.0.admission.enter().await?;
            let session = engine.session(&stop, engine.0.tail.snapshot()?, Arc::default(), Arc::default());
            let plan = engine.plan(&session?, &sql, None).await?;
            Ok(Described { schema: plan.schema().inner().clone(), plan })
        });
        let limit = self.0.limits.deadline;
        let described = match tokio::time::timeout(limit, task).await {
            Ok(Ok(described)) => described,
            Ok(Err(error)) => Err(Error::Internal(format!("planning ended early: {error}"))),
            Err(_) => Err(Error::Deadline { ms: millis(limit) }),
        };
        described.map_err(|error: Error| error.without(&self.0.archive.root().display().to_string()))
    }

    /// Starts a statement; returns when its columns are known. Errors if it cannot be planned or reaches its deadline before.
    pub async fn run(&self, ask: Ask) -> Result<Running, Error> {
        let stop = self.stop(ask.deadline);
        let (send, batches) = mpsc::channel(BATCHES_AHEAD);
        let (started, starting) = oneshot::channel();
        let (ended, mut outcome) = oneshot::channel();
        let (engine, watched) = (self.clone(), stop.clone());
        let task = self.spawn(async move {
            let hidden = engine.0.archive.root().display().to_string();
            let mut run = Run::new(&engine, &ask, &watched);
            let deadline = tokio::time::Instant::from_std(watched.at());
            let result = match tokio::time::timeout_at(deadline, run.drive(&ask, started, &send)).await {
                Ok(result) => result.map_err(|error| error.without(&hidden)),
                Err(_) => Err(watched.deadline()),
            };
            run.finish(&result);
            drop(send);
            // Nobody listens where the client is gone.
            let _ = ended.send(result);
        });
        let task = task.abort_handle();
        let last_call = tokio::time::Instant::from_std(stop.at() + GRACE);
        let abandoned = Abandoned { task: Some(task.clone()), stop: stop.clone() };
        let begun = tokio::time::timeout_at(last_call, starting).await;
        match begun {
            Ok(Ok((schema, snapshot))) => {
                abandoned.keep();
                Ok(Running { schema, snapshot, batches, outcome, task, stop })
            }
            Ok(Err(_)) => match (&mut outcome).await {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => Err(Error::Internal("the statement's task ended without a word".to_owned())),
            },
            Err(_) => Err(stop.deadline()),
        }
    }

    fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        self.0.threads.0.as_ref().expect("the threads live as long as the engine").spawn(task)
    }

    fn stop(&self, asked: Option<Duration>) -> Arc<Stop> {
        let time = asked.map_or(self.0.limits.deadline, |asked| asked.min(self.0.limits.deadline));
        Arc::new(Stop::new(clock::instant() + time, millis(time)))
    }

    /// The session of one statement: its names bound to the snapshot, its own memory, its own stop.
    fn session(&self, stop: &Arc<Stop>, snapshot: Arc<Snapshot>, scanned: Arc<Scanned>, peak: Arc<AtomicUsize>) -> Result<SessionState, Error> {
        let view = View {
            cell: self.0.archive.cell().to_string(),
            snapshot,
            health: self.0.tail.health(),
            scanned,
            processors: self.0.processors.clone(),
            samples_rows_max: self.0.limits.samples_rows_max,
            log: self.0.log.clone(),
            pg_catalog: Some(self.0.pg_catalog.clone()),
        };
        let memory = StatementMemory::new(&self.0.limits, self.0.memory.clone(), peak);
        let environment = RuntimeEnvBuilder::from_runtime_env(&self.0.environment).with_memory_pool(Arc::new(memory)).build_arc()?;
        Ok(SessionStateBuilder::new_from_existing(self.0.base.clone())
            .with_catalog_list(Arc::new(Catalogs(view)))
            .with_runtime_env(environment)
            .with_physical_optimizer_rule(Arc::new(StopInJoins(stop.clone())))
            .build())
    }

    async fn plan(&self, session: &SessionState, sql: &str, params: Option<ParamValues>) -> Result<LogicalPlan, Error> {
        let statement = self.0.reader.one(sql)?;
        statement::only_reads(&statement)?;
        let plan = session.statement_to_plan(Statement::Statement(Box::new(statement))).await?;
        let nothing = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let refused = |text: String| Error::ReadOnly(text.rsplit(": ").next().unwrap_or_default().to_owned());
        nothing.verify_plan(&plan).map_err(|error| refused(error.strip_backtrace()))?;
        match params {
            Some(params) => Ok(plan.replace_params_with_values(&params)?),
            None => Ok(plan),
        }
    }
}

/// Stops the task if whoever started it is gone before it began.
struct Abandoned {
    task: Option<AbortHandle>,
    stop: Arc<Stop>,
}

impl Abandoned {
    fn keep(mut self) {
        self.task = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            self.stop.cancel();
            task.abort();
        }
    }
}

/// A statement on its way through the engine, with what is counted of it. What is dropped half-way was cancelled, and is logged so.
struct Run<'a> {
    engine: &'a Engine,
    stop: &'a Arc<Stop>,
    started: Instant,
    ran: Option<Ran>,
    scanned: Arc<Scanned>,
    peak: Arc<AtomicUsize>,
}

impl<'a> Run<'a> {
    fn new(engine: &'a Engine, ask: &Ask, stop: &'a Arc<Stop>) -> Self {
        let ran = Ran {
            id: engine.0.next_id.fetch_add(1, Ordering::Relaxed),
            at_ns: clock::now_ns(),
            door: ask.door,
            text: ask.sql.clone(),
            planned_ms: 0,
            run_ms: 0,
            rows: 0,
            bytes_scanned: 0,
            files_pruned: 0,
            peak_bytes: 0,
            outcome: "cancelled",
        };
        Self { engine, stop, started: clock::instant(), ran: Some(ran), scanned: Arc::default(), peak: Arc::default() }
    }

    /// Plans and runs; gives the columns once and then the rows. Returns whether the rows were cut at the limit.
    async fn drive(
        &mut self,
        ask: &Ask,
        started: oneshot::Sender<(SchemaRef, Arc<Snapshot>)>,
        send: &mpsc::Sender<RecordBatch>,
    ) -> Result<bool, Error> {
        let _place = self.engine.0.admission.enter().await?;
        let snapshot = self.engine.0.tail.snapshot()?;
        let session = self.engine.session(self.stop, snapshot.clone(), self.scanned.clone(), self.peak.clone())?;
        let plan = self.engine.plan(&session, &ask.sql, ask.params.clone()).await?;
        // The schema a client was described is the logical one; physical plans may know better what can be NULL.
        let schema = plan.schema().inner().clone();
        let stream = start(&session, &plan).await?;
        if let Some(ran) = &mut self.ran {
            ran.planned_ms = self.started.elapsed().as_millis() as i64;
        }
        if started.send((schema, snapshot)).is_err() {
            return Err(Error::Cancelled);
        }
        self.pump(ask, stream, send).await
    }

    async fn pump(&mut self, ask: &Ask, mut stream: SendableRecordBatchStream, send: &mpsc::Sender<RecordBatch>) -> Result<bool, Error> {
        let limit = ask.rows_max.map_or(self.engine.0.limits.rows_max, |asked| asked.min(self.engine.0.limits.rows_max));
        let mut rows = 0u64;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            self.stop.check()?;
            let room = limit - rows;
            let over = batch.num_rows() as u64 > room;
            let batch = if over { batch.slice(0, room as usize) } else { batch };
            rows += batch.num_rows() as u64;
            if let Some(ran) = &mut self.ran {
                ran.rows = rows as i64;
            }
            if batch.num_rows() > 0 && send.send(batch).await.is_err() {
                return Err(Error::Cancelled);
            }
            if over {
                return match ask.overflow {
                    Overflow::Truncate => Ok(true),
                    Overflow::Refuse => Err(Error::Rows { limit }),
                };
            }
        }
        Ok(false)
    }

    fn finish(&mut self, result: &Result<bool, Error>) {
        if let Some(ran) = &mut self.ran {
            ran.outcome = match result {
                Ok(false) => "ok",
                Ok(true) => "truncated",
                Err(error) => error.code(),
            };
        }
        if let Err(Error::Internal(detail)) = result {
            tracing::error!(detail, "a statement failed by no fault of its own");
        }
        self.note();
    }

    fn note(&mut self) {
        let Some(mut ran) = self.ran.take() else { return };
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let taken = self.started.elapsed();
        ran.run_ms = signed(millis(taken));
        ran.bytes_scanned = signed(self.scanned.bytes.load(Ordering::Relaxed));
        ran.files_pruned = signed(self.scanned.files_pruned.load(Ordering::Relaxed));
        ran.peak_bytes = self.peak.load(Ordering::Relaxed) as i64;
        let metrics = &self.engine.0.metrics;
        metrics.statements.get_or_create(&Ended { door: ran.door, outcome: ran.outcome }).inc();
        metrics.seconds.observe(taken.as_secs_f64());
        metrics.rows.inc_by(ran.rows as u64);
        self.engine.0.log.add(ran);
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.note();
    }
}

async fn start(session: &SessionState, plan: &LogicalPlan) -> DfResult<SendableRecordBatchStream> {
    let plan = session.create_physical_plan(plan).await?;
    execute_stream(plan, session.task_ctx())
}

/// What all statements share: the archive's store under its private name, the file cache, room for temporary files.
fn environment(archive: &Archive, limits: &Limits, memory: Arc<GreedyMemoryPool>) -> Result<Arc<RuntimeEnv>, Error> {
    let disk = DiskManagerBuilder::default().with_max_temp_directory_size(limits.spill_bytes);
    let environment = RuntimeEnvBuilder::new().with_memory_pool(memory).with_disk_manager_builder(disk).build_arc()?;
    let local = ObjectStoreUrl::local_filesystem();
    // No plan can name a local file, and without a store for them none could be opened.
    let _ = environment.deregister_object_store(local.as_ref());
    environment.register_object_store(ObjectStoreUrl::parse(ARCHIVE_URL)?.as_ref(), archive.store());
    Ok(environment)
}

/// The session all others are made from, and the tables of Postgres.
fn base(blank: View, environment: &Arc<RuntimeEnv>, cores: usize) -> Result<(SessionState, Arc<dyn SchemaProvider>), Error> {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, PUBLIC)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true)
        .with_target_partitions(cores);
    config.options_mut().sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    config.options_mut().execution.time_zone = Some(UTC.to_owned());
    let catalogs = Arc::new(crate::catalog::Describing::new(blank));
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config)
        .with_runtime_env(environment.clone())
        .with_catalog_list(catalogs)
        .build();
    let context = SessionContext::new_with_state(state);
    setup_pg_catalog(&context, CATALOG, EmptyContextProvider).map_err(|error| *error)?;
    functions::register(&context);
    let pg_catalog = context.catalog(CATALOG).and_then(|catalog| catalog.schema(PG_CATALOG));
    let pg_catalog = pg_catalog.ok_or_else(|| Error::Internal("pg_catalog was not registered".to_owned()))?;
    Ok((context.state(), pg_catalog))
}
