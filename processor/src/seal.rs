//! The sealer: writes the rows up to a commit to the archive, then says so in the log. It reads what is committed and never stalls the fold.
#![expect(clippy::disallowed_methods, reason = "how long a seal took is a metric")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use arrow::record_batch::RecordBatch;
use async_nats::jetstream::message::PublishMessage;
use plimsoll_archive::retention::Expired;
use plimsoll_archive::{Archive, Manifest, table};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::row::Table;
use plimsoll_schemas::subject::LogSubject;
use plimsoll_store::{Sealed, Store};
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::streams::Streams;
use crate::tidy::Tidy;

const BATCH_ROWS: usize = 8_192;
const ANNOUNCE_TRIES: u32 = 5;
const ANNOUNCE_WAIT: Duration = Duration::from_millis(300);

/// Seal everything up to a committed position; the sender hears when that has ended, well or not.
#[derive(Debug)]
pub struct Order {
    /// Last position to seal.
    pub up_to: Position,
    /// Who waits.
    pub ended: oneshot::Sender<()>,
}

/// Writes manifests of one cell.
pub struct Sealer {
    cell: CellId,
    archive: Archive,
    streams: Streams,
    store: Store,
    newest: Option<Manifest>,
    announced: Option<Sealed>,
    tidy: Tidy,
    health: Health,
    metrics: Metrics,
}

/// Why a seal failed; the next order tries again.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Archive(#[from] plimsoll_archive::Error),
    #[error(transparent)]
    Store(#[from] plimsoll_store::Error),
    #[error("announcing manifest {version} in the log: {detail}")]
    Announce { version: u64, detail: String },
    #[error("sealing was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl Sealer {
    /// Opens the archive and reads its newest manifest, which must not be ahead of the log. `announced` is what the log was last seen to say.
    pub async fn open(url: &str, cell: &CellId, log_end: Position, announced: Option<Sealed>, with: With) -> Result<Self, Error> {
        let failed = |error: plimsoll_archive::Error| Error::Archive { url: url.to_owned(), detail: error.to_string() };
        let archive = Archive::open(url, cell).map_err(failed)?;
        let newest = archive.newest().await.map_err(failed)?;
        if let Some(newest) = newest.as_ref().filter(|newest| newest.position > log_end) {
            return Err(Error::ArchiveAhead { url: url.to_owned(), archive: newest.position, log: log_end });
        }
        let With { streams, store, health, metrics } = with;
        let tidy = Tidy::new(archive.clone(), store.clone(), metrics.clone());
        Ok(Self { cell: cell.clone(), archive, streams, store, newest, announced, tidy, health, metrics })
    }

    /// Serves orders until nobody can give any. Errors only if the store is damaged: what else fails is tried again.
    pub async fn run(mut self, mut orders: mpsc::Receiver<Order>) -> Result<(), Error> {
        if let Err(error) = self.announce().await {
            tracing::warn!(%error, "the newest manifest is announced with the next seal");
        }
        while let Some(Order { up_to, ended }) = orders.recv().await {
            let began = Instant::now();
            match self.seal(up_to).await {
                Ok(()) => {
                    self.health.sealing_fails(false);
                    self.metrics.seal_seconds.0.observe(began.elapsed().as_secs_f64());
                    self.tidy.sweep().await;
                }
                Err(Failed::Store(error @ plimsoll_store::Error::Damaged { .. })) => return Err(Error::Store(error)),
                Err(error) => {
                    self.health.sealing_fails(true);
                    self.metrics.seal_failures.inc();
                    tracing::error!(%error, %up_to, "sealing failed; the rows stay in the store and the next seal takes them");
                }
            }
            // The one who ordered may have stopped waiting.
            let _ = ended.send(());
        }
        Ok(())
    }

    async fn seal(&mut self, up_to: Position) -> Result<(), Failed> {
        // Another replica may have sealed since: one that takes over goes on from there.
        self.newest = self.archive.newest().await?;
        let after = self.newest.as_ref().map_or(Position::default(), |newest| newest.position);
        if up_to > after {
            let gone = self.expired()?;
            let dropped = gone.iter().map(|file| file.path.clone()).collect();
            let manifest = self.write(after, up_to, dropped).await?;
            tracing::info!(version = manifest.version, position = %manifest.position, files = manifest.files.len(), "sealed");
            self.tidy.note(manifest.version, &gone);
            self.newest = Some(manifest);
        }
        self.announce().await
    }

    /// What the next manifest leaves out: files of one that the log knows of, never of one that may yet turn out not to hold.
    fn expired(&self) -> Result<Vec<Expired>, Failed> {
        let known = |manifest: &&Manifest| self.announced.is_some_and(|announced| announced.version >= manifest.version);
        match (self.newest.as_ref().filter(known), self.store.last_commit()?) {
            (Some(newest), Some(commit)) => Ok(self.tidy.expired(newest, commit.logged_at)),
            (None, _) | (_, None) => Ok(Vec::new()),
        }
    }

    /// Reading and Parquet are work for a processor, not for the threads that answer others.
    async fn write(&self, after: Position, up_to: Position, dropped: BTreeSet<String>) -> Result<Manifest, Failed> {
        let (store, archive, cell, parent) = (self.store.clone(), self.archive.clone(), self.cell.clone(), self.newest.clone());
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut tables = Vec::new();
            for &table in Table::ALL {
                let batches = read(&store, &cell, table, after, up_to)?;
                if !batches.is_empty() {
                    tables.push((table, batches));
                }
            }
            Ok(runtime.block_on(archive.seal_without(parent.as_ref(), up_to, tables, dropped))?)
        })
        .await?
    }

    /// Says in the log what the newest manifest holds, unless the log says so already.
    async fn announce(&mut self) -> Result<(), Failed> {
        let Some(newest) = &self.newest else { return Ok(()) };
        let sealed = Sealed { version: newest.version, position: newest.position };
        if self.announced.is_some_and(|announced| announced.version >= sealed.version) {
            return Ok(());
        }
        let control = Control::Sealed { version: sealed.version, position: sealed.position };
        let payload = serde_json::to_vec(&control).expect("numbers always serialise");
        let mut tries = 1;
        loop {
            match self.publish(payload.clone(), sealed.version).await {
                Ok(()) => break,
                Err(detail) if tries == ANNOUNCE_TRIES => return Err(Failed::Announce { version: sealed.version, detail }),
                Err(_) => tokio::time::sleep(ANNOUNCE_WAIT * tries).await,
            }
            tries += 1;
        }
        self.announced = Some(sealed);
        Ok(())
    }

    async fn publish(&self, payload: Vec<u8>, version: u64) -> Result<(), String> {
        let message = PublishMessage::build().payload(payload.into()).message_id(format!("sealed-{}-{version}", self.cell));
        let subject = LogSubject::Control.to_subject(&self.cell);
        let ack = self.streams.context.send_publish(subject, message).await.map_err(|error| error.to_string())?;
        ack.await.map(|_| ()).map_err(|error| error.to_string())
    }
}

/// What the sealer works with.
pub struct With {
    /// Where to announce.
    pub streams: Streams,
    /// Where the rows are.
    pub store: Store,
    /// What readiness shows.
    pub health: Health,
    /// What is counted.
    pub metrics: Metrics,
}

fn read(store: &Store, cell: &CellId, table: Table, after: Position, up_to: Position) -> Result<Vec<RecordBatch>, Failed> {
    let mut batches = Vec::new();
    let mut rows = Vec::new();
    for row in store.rows(table, after, up_to) {
        rows.push(row?);
        if rows.len() == BATCH_ROWS {
            batches.push(table::batch(table, cell, &rows)?);
            rows.clear();
        }
    }
    if !rows.is_empty() {
        batches.push(table::batch(table, cell, &rows)?);
    }
    Ok(batches)
}
