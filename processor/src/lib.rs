//! The processor of one cell: log → fold → store, outputs, tail and archive.
//!
//! Read in this order: what it is told ([`config`]) and shows ([`metrics`], [`health`]); what a replica decides without I/O: what it
//! reads ([`follow`]), who is active ([`role`]), what is published ([`chain`]), whether OUT shows more ([`surplus`]), whether they agree
//! ([`checks`]); the two streams ([`streams`], [`log`], [`out`], [`tick`])
//! and what agents are asked for ([`repair`]); the archive ([`seal`], [`tidy`]), the [`mod@checkpoint`]s and the [`tail`]; the loop that ties them ([`engine`]); [`run`] connects all of it.

pub mod config;
pub mod error;
pub mod metrics;
pub mod health;
pub mod follow;
pub mod role;
pub mod chain;
pub mod surplus;
pub mod checks;
pub mod streams;
pub mod log;
pub mod out;
pub mod repair;
pub mod tick;
pub mod tidy;
pub mod seal;
pub mod checkpoint;
pub mod tail;
pub mod dry_run;
pub mod engine;
mod restore;
pub mod epoch;
pub mod ops;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::Config;
pub use error::Error;

use checkpoint::Checkpointer;
use engine::{Engine, Start, Wires};
use health::Health;
use log::Reader;
use metrics::Metrics;
use out::Publisher;
use plimsoll_store::Store;
use restore::Restored;
use seal::Sealer;
use streams::Streams;
use surplus::Surplus;
use tail::{Ask, Tail};
use tick::Ticker;

const LOOP: &str = "the loop";
const PUBLISHER: &str = "the publisher";
/// How long to wait for the error that explains why another part ended.
const CAUSE_MAX: Duration = Duration::from_secs(1);

/// First and longest pause between two attempts to open while the broker is away.
const WAIT_MIN: Duration = Duration::from_millis(250);
const WAIT_MAX: Duration = Duration::from_secs(4);
/// How long the last commit may take once the log is another one.
const LAST_COMMIT_MAX: Duration = Duration::from_secs(30);
/// How long outputs may still be published after everything else has stopped.
const STOP_PUBLISH_MAX: Duration = Duration::from_secs(3);

/// The addresses really bound.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// HTTP.
    pub http: SocketAddr,
    /// Tail.
    pub tail: SocketAddr,
}

/// Runs until `stop`, then drains, commits, seals and closes. `listening` is called once, when both ports are bound.
pub async fn run(config: Config, stop: CancellationToken, listening: impl FnOnce(Addresses)) -> Result<(), Error> {
    let mut http = bind("http", config.http).await?;
    let mut tail = bind("tail", config.tail).await?;
    let addresses = Addresses { http: address(&http, config.http)?, tail: address(&tail, config.tail)? };
    listening(addresses);
    let mut cause = None;
    loop {
        match run_once(&config, &stop, http, tail, cause.take()).await {
            Err(error) if error.heals_by_reopening() && !stop.is_cancelled() => {
                tracing::error!("{error}; opening everything again");
                cause = Some(error);
            }
            outcome => return outcome,
        }
        http = bind("http", addresses.http).await?;
        tail = bind("tail", addresses.tail).await?;
    }
}

/// Opens everything and runs until `stop` or until something is wrong. `cause` = why everything is opened again.
async fn run_once(config: &Config, stop: &CancellationToken, http: TcpListener, tail: TcpListener, cause: Option<Error>) -> Result<(), Error> {
    let (health, metrics) = (Health::default(), Metrics::default());
    let mut parts = Parts { reading: stop.child_token(), ..Parts::default() };
    let (asks, asked) = mpsc::channel(tail::QUEUE_ASKS);
    let serving = health::serve(http, health.clone(), metrics.clone(), asks.clone(), parts.closing.clone());
    parts.start(
        "the HTTP server",
        async move { serving.await.map_err(|error| Error::PartEnded { part: "the HTTP server", detail: error.to_string() }) },
    );
    let opened = tokio::select! {
        opened = open_when_the_broker_is_there(config, &health, &metrics, cause) => opened?,
        // Nothing was read yet, so giving up loses nothing.
        () = stop.cancelled() => return Ok(()),
    };
    connect(config, (tail, asks, asked), opened, &mut parts, stop);
    let outcome = parts.watch(stop).await;
    parts.all.shutdown().await;
    if let Err(Error::Store(plimsoll_store::Error::Damaged { .. })) = &outcome {
        // Found while running: the next start must not stumble over it again.
        restore::set_aside(&config.state_path())?;
    }
    outcome
}

/// Everything that must stand before the first record is read.
struct Opened {
    store: Store,
    start: Start,
    reader: Reader,
    publisher: Publisher,
    acked: watch::Receiver<u64>,
    ticker: Ticker,
    active: watch::Receiver<bool>,
    surplus: Surplus,
    sealer: Sealer,
    checkpointer: Checkpointer,
    streams: Streams,
    health: Health,
    metrics: Metrics,
}

/// Opens everything, and tries again for as long as nothing is wrong but a broker that is away: it may start later than we do.
async fn open_when_the_broker_is_there(config: &Config, health: &Health, metrics: &Metrics, mut cause: Option<Error>) -> Result<Opened, Error> {
    let mut pause = WAIT_MIN;
    loop {
        match open(config, health.clone(), metrics.clone(), &mut cause).await {
            Err(error) if error.is_broker_away() => {
                health.waits_for(&error.to_string());
                tracing::warn!("waits for the broker: {error}; tries again in {} ms", pause.as_millis());
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(WAIT_MAX);
            }
            outcome => {
                health.waits_for("");
                return outcome;
            }
        }
    }
}

/// Opens and checks, in the order of what depends on what. Takes the cause once it has looked at it.
async fn open(config: &Config, health: Health, metrics: Metrics, cause: &mut Option<Error>) -> Result<Opened, Error> {
    let streams = streams::open(config).await?;
    let own = restore::open(config, &streams).await?;
    let at = own.mark.position;
    let mut restored = restore::borne_out(config, &streams, own).await?;
    // Another state has to be folded again first.
    cause.take_if(|_| restored.mark.position != at);
    let reader_at = |mark| Reader::new(config.cell.clone(), streams.clone(), mark, health.clone(), metrics.clone());
    let mut reader = reader_at(restored.mark);
    let mut checked = reader.check().await;
    let replaced = matches!(checked, Err(Error::LogReplaced { .. })) || epoch::is_behind(config, &streams, restored.mark.position).await?;
    let committed = restored.commit.as_ref().map_or(0, |commit| commit.out_seq);
    let cause = cause.take().filter(|_| !replaced);
    let surplus = match cause.as_ref().and_then(Error::surplus_over) {
        Some(made) => epoch::last_of_out(&streams).await? > made,
        None => false,
    };
    let mut differs = cause.filter(|cause| cause.differs_at().is_some());
    if let Some(error) = differs.take_if(|error| error.differs_at() <= Some(committed)) {
        return Err(error.refutes("the committed state"));
    }
    let leads = (replaced || differs.is_some() || surplus) && Ticker::leads(&config.cell, &config.replica(), &streams).await?;
    // Whoever became active meanwhile finds out itself whether OUT shows more than the log makes.
    if replaced || differs.is_some() || leads {
        restored = epoch::settle(config, &streams, restored, leads, differs).await?;
        reader = reader_at(restored.mark);
        checked = reader.check().await;
    }
    let log_end = checked?;
    let Restored { store, state, mark, commit } = restored;
    health.store_opened();
    health.folded(mark.position.sequence);
    let out_seq = commit.as_ref().map_or(0, |commit| commit.out_seq);
    let (standing, outbox) = restore::outbox(&store, &streams, out_seq).await?;
    let surplus = Surplus::default();
    let (ticker, active) = Ticker::open(config.cell.clone(), &config.replica(), streams.clone(), surplus.clone(), metrics.clone()).await?;
    let sealed = commit.as_ref().and_then(|commit| commit.sealed);
    let with = seal::With { streams: streams.clone(), store: store.clone(), health: health.clone(), metrics: metrics.clone() };
    let sealer = Sealer::open(&config.archive_url(), &config.cell, log_end, sealed, with).await?;
    let checkpointer = checkpointer(config, &store, &streams, active.clone(), &health, &metrics)?;
    let (publisher, acked) = Publisher::new(streams.clone(), standing, active.clone(), surplus.clone(), health.clone(), metrics.clone());
    let start = Start { state, mark, out_seq, outbox, sealed };
    Ok(Opened { store, start, reader, publisher, acked, ticker, active, surplus, sealer, checkpointer, streams, health, metrics })
}

fn checkpointer(
    config: &Config,
    store: &Store,
    streams: &Streams,
    active: watch::Receiver<bool>,
    health: &Health,
    metrics: &Metrics,
) -> Result<Checkpointer, Error> {
    let archive = restore::archive(config)?;
    Ok(Checkpointer::new(checkpoint::With {
        archive,
        store: store.clone(),
        state_path: config.state_path(),
        cell: config.cell.clone(),
        replica: config.replica(),
        every: config.checkpoint_interval(),
        log_age_max: streams.log.cached_info().config.max_age,
        active,
        health: health.clone(),
        metrics: metrics.clone(),
    }))
}

/// Starts every part and ties them with bounded queues.
fn connect(
    config: &Config,
    (tail, asks_sender, asks): (TcpListener, mpsc::Sender<Ask>, mpsc::Receiver<Ask>),
    opened: Opened,
    parts: &mut Parts,
    stop: &CancellationToken,
) {
    let Opened { store, start, reader, publisher, acked, ticker, active, surplus, sealer, checkpointer, streams, health, metrics } = opened;
    let (log_sender, log) = log::queue();
    let (out, outputs) = mpsc::channel(out::QUEUE_OUTPUTS);
    let (seals, orders) = mpsc::channel(1);
    let (said, to_say) = mpsc::channel(tick::QUEUE_SAID);
    let (repairs, wanted) = mpsc::channel(repair::QUEUE_REPAIRS);

    parts.start("the reader", reader.run(log_sender, parts.reading.clone()));
    parts.start(PUBLISHER, publisher.run(outputs));
    parts.start("the sealer", sealer.run(orders));
    let checkpointing = checkpointer.run(stop.clone());
    parts.start("the checkpointer", async move {
        checkpointing.await;
        Ok(())
    });
    let asking = repair::run(config.cell.clone(), wanted, streams, metrics.clone());
    parts.start("the asker", async move {
        asking.await;
        Ok(())
    });
    let ticking = ticker.run(to_say, stop.clone());
    parts.start("the ticker", async move {
        ticking.await;
        Ok(())
    });
    let serving = tail::serve(tail, Tail::new(config.cell.clone(), store.clone(), asks_sender, metrics.clone()), parts.closing.clone());
    parts.start("the tail", async move { serving.await.map_err(|error| Error::PartEnded { part: "the tail", detail: error.to_string() }) });
    let (replica, void) = (config.replica(), parts.void.clone());
    let wires = Wires { log, out, acked, active, surplus, said, asks, seals, repairs, store, health, metrics, replica, void };
    parts.start(LOOP, Engine::new(start, wires).run(config.commit_interval(), config.seal_interval(), stop.clone()));
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|detail| Error::Bind { what, address, detail })
}

fn address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, Error> {
    listener.local_addr().map_err(|detail| Error::Bind { what: "its own address", address: asked, detail })
}

/// The running parts. The first that fails ends all; nothing is restarted or repaired silently.
#[derive(Default)]
struct Parts {
    all: JoinSet<(&'static str, Result<(), Error>)>,
    /// Cancelled when what was folded since the last commit must not be committed.
    void: CancellationToken,
    /// Cancelled when nothing more is to be read.
    reading: CancellationToken,
    /// Cancelled when the loop has ended: whoever only serves others goes then.
    closing: CancellationToken,
}

impl Parts {
    fn start(&mut self, part: &'static str, task: impl Future<Output = Result<(), Error>> + Send + 'static) {
        self.all.spawn(async move { (part, task.await) });
    }

    /// Waits for the loop's good end, then for the publisher's.
    async fn watch(&mut self, stop: &CancellationToken) -> Result<(), Error> {
        while let Some((part, outcome)) = self.next().await {
            if let Err(error) = outcome {
                if error.differs_at().is_some() {
                    self.void.cancel();
                }
                if part != LOOP && error.heals_by_reopening() {
                    self.finish_loop().await;
                }
                return Err(error);
            }
            if part == LOOP {
                break;
            }
            if !stop.is_cancelled() {
                return Err(self.cause(part).await);
            }
        }
        self.closing.cancel();
        let publishing = async {
            while let Some((part, outcome)) = self.next().await {
                outcome?;
                if part == PUBLISHER {
                    break;
                }
            }
            Ok(())
        };
        tokio::time::timeout(STOP_PUBLISH_MAX, publishing).await.unwrap_or_else(|_| {
            tracing::warn!("OUT did not confirm everything in time; the next start publishes the rest");
            Ok(())
        })
    }

    /// Without a reader the loop commits what it has folded and ends: that cannot be folded again once the log is another one.
    async fn finish_loop(&mut self) {
        self.reading.cancel();
        let ending = async {
            while let Some((part, _)) = self.next().await {
                if part == LOOP {
                    break;
                }
            }
        };
        if tokio::time::timeout(LAST_COMMIT_MAX, ending).await.is_err() {
            tracing::error!("what was folded last could not be committed in time; it goes on from an older commit");
        }
    }

    async fn next(&mut self) -> Option<(&'static str, Result<(), Error>)> {
        let ended = self.all.join_next().await?;
        Some(ended.unwrap_or_else(|error| ("a part", Err(Error::PartEnded { part: "a part", detail: error.to_string() }))))
    }

    /// Why a part ended without an error of its own: most often because another one has failed.
    async fn cause(&mut self, part: &'static str) -> Error {
        let other = async {
            while let Some((_, outcome)) = self.next().await {
                if let Err(error) = outcome {
                    return Some(error);
                }
            }
            None
        };
        let unexplained = Error::PartEnded { part, detail: "without an error".to_owned() };
        tokio::time::timeout(CAUSE_MAX, other).await.ok().flatten().unwrap_or(unexplained)
    }
}
