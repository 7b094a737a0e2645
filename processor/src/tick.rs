//! The clock beat: an empty record each second, so that a quiet log still moves. The only place where a wall clock reaches the log.
#![expect(clippy::disallowed_methods, reason = "a tick names the second it stands for")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::message::PublishMessage;
use plimsoll_schemas::control::Tick;
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject::LogSubject;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::streams::Streams;

const PERIOD: Duration = Duration::from_secs(1);

/// Publishes a tick each second until `stop`. A tick that fails is counted and not repeated: the next one says as much.
pub async fn run(cell: CellId, replica: String, streams: Streams, metrics: Metrics, stop: CancellationToken) {
    let subject = LogSubject::Tick.to_subject(&cell);
    let mut beat = tokio::time::interval(PERIOD);
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        // Without a connection the client would queue ticks and send them all at once later.
        if !streams.connected() {
            metrics.tick_failures.inc();
            continue;
        }
        let second = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        let payload = serde_json::to_vec(&Tick { replica: replica.clone(), second }).expect("a string and a number always serialise");
        let message = PublishMessage::build().payload(payload.into()).message_id(format!("tick-{cell}-{second}"));
        let published = async { streams.context.send_publish(subject.clone(), message).await?.await };
        match tokio::time::timeout(PERIOD, published).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                metrics.tick_failures.inc();
                tracing::debug!(%error, "tick not published");
            }
            Err(_) => {
                metrics.tick_failures.inc();
            }
        }
    }
}
