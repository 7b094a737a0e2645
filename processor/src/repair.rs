//! Asks agents for what is missing: the fold's wishes as core messages on `ctl.<host>`. Nothing waits for an answer, and a message that is
//! not sent or gets lost is no matter: while the gap is open the fold wishes again.

use plimsoll_schemas::ctl::{Ctl, Repair};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::streams::Streams;

/// Wishes that may wait for the broker.
pub const QUEUE_REPAIRS: usize = 1_024;
/// Queues the wishes of the records just folded if this replica is `live`: the active one, and at the log's end. The wishes of a standby
/// are the active one's, and those of the past may have come true further on.
pub fn hand_on(wishes: &mut Vec<Repair>, live: bool, queue: &mpsc::Sender<Repair>, metrics: &Metrics) {
    for repair in wishes.drain(..).filter(|_| live) {
        if queue.try_send(repair).is_err() {
            metrics.repairs_dropped.inc();
        }
    }
}

/// Publishes until the queue closes.
pub async fn run(cell: CellId, mut queue: mpsc::Receiver<Repair>, streams: Streams, metrics: Metrics) {
    while let Some(repair) = queue.recv().await {
        // Without a connection the client would keep it and send it long after it was answered.
        if !streams.connected() {
            metrics.repairs_dropped.inc();
            continue;
        }
        let to = subject::ctl(&cell, &repair.host);
        let Repair { host, epoch, class, from_sequence, to_sequence } = &repair;
        tracing::info!(%host, epoch, class = class.code(), from_sequence, to_sequence, "asking the agent for what is missing");
        let payload = serde_json::to_vec(&Ctl::Repair(repair)).expect("plain data");
        match streams.context.client().publish(to, payload.into()).await {
            Ok(()) => metrics.repairs_sent.inc(),
            Err(error) => {
                tracing::debug!(%error, "not asked");
                metrics.repairs_dropped.inc()
            }
        };
    }
}
