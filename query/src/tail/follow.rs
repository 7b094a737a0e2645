//! The endless streams of the tail, one per table, resumed where they stopped, and the manifests of the archive.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::decode::DecodedPayload;
use datafusion::arrow::record_batch::RecordBatch;
use futures::StreamExt;
use plimsoll_archive::{Archive, table};
use plimsoll_schemas::row::Table;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::processor::{Processor, Processors, reason};
use super::wire::{Follow, Progress};
use super::{Room, Tail};

/// Longest wait for a message before the stream is given up: the server sends one a second.
const SILENCE: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How often the archive is asked for a newer manifest where the processor gives no hint.
const POLL: Duration = Duration::from_secs(2);

/// Follows one table until told to stop, reconnecting with back-off from the last position it has; at once where another processor is
/// followed from now on.
pub(super) async fn follow(tail: Tail, processors: Processors, table: Table, stop: CancellationToken) {
    let mut followed = processors.followed();
    let mut backoff = BACKOFF_MIN;
    loop {
        let index = *followed.borrow_and_update();
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_stream(&tail, &processors.all()[index], table) => ended,
            Ok(()) = followed.changed() => {
                tail.disconnected(table, "another tail is followed".to_owned());
                backoff = BACKOFF_MIN;
                continue;
            }
        };
        if tail.disconnected(table, ended.reason) || ended.progressed {
            backoff = BACKOFF_MIN;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            Ok(()) = followed.changed() => backoff = BACKOFF_MIN,
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
    let began = tail.resume(table).ok_or("waits for the archive to be read")?;
    let ticket = Follow { table: table.name().to_owned(), after: began.after };
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
            tail.advance(table, began, std::mem::take(&mut pending), &progress)?;
            *progressed = true;
        }
    }
}

/// Keeps the newest manifest until told to stop.
pub(super) async fn watch(tail: Tail, archive: Archive, hint: Arc<Notify>, stop: CancellationToken) {
    loop {
        let known = tail.manifest();
        match archive.newer_than(known.as_deref()).await {
            Ok(newer) => tail.adopt(newer),
            Err(error) => tail.archive_failed(error.to_string()),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = hint.notified() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
}
