//! The HTTP server: `/healthz`, `/readyz`, `/metrics` and `/dry-run`. Ready means: bound to the log, caught up, and able to publish.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::dry_run::{self, DryRun};
use crate::metrics::Metrics;
use crate::tail::Ask;

/// Ready only when fewer records than this wait in the log.
pub const LAG_MAX: u64 = 5_000;

/// What readiness hangs on. A clone is the same one.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    store_open: AtomicBool,
    consumer_bound: AtomicBool,
    out_reachable: AtomicBool,
    sealing_fails: AtomicBool,
    checkpoint_overdue: AtomicBool,
    position: AtomicU64,
    log_end: AtomicU64,
    /// What the start waits for; empty = nothing.
    waits_for: Mutex<String>,
}

impl Health {
    /// The store is open and the state restored.
    pub fn store_opened(&self) {
        self.0.store_open.store(true, Ordering::Relaxed);
    }

    /// Whether a consumer delivers the log.
    pub fn consumer_bound(&self, bound: bool) {
        self.0.consumer_bound.store(bound, Ordering::Relaxed);
    }

    /// Whether OUT takes what is published.
    pub fn out_reachable(&self, reachable: bool) {
        self.0.out_reachable.store(reachable, Ordering::Relaxed);
    }

    /// Whether the newest seal failed. Shown, but no reason to be taken out of service.
    pub fn sealing_fails(&self, fails: bool) {
        self.0.sealing_fails.store(fails, Ordering::Relaxed);
    }

    /// Whether the newest checkpoint is older than a third of what the log keeps. Shown, but no reason to be taken out of service.
    pub fn checkpoint_overdue(&self, overdue: bool) {
        self.0.checkpoint_overdue.store(overdue, Ordering::Relaxed);
    }

    /// What the start waits for; empty = nothing.
    pub fn waits_for(&self, what: &str) {
        what.clone_into(&mut self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The last sequence folded.
    pub fn folded(&self, sequence: u64) {
        self.0.position.store(sequence, Ordering::Relaxed);
    }

    /// The last sequence known to stand in the log.
    pub fn log_ends_at(&self, sequence: u64) {
        self.0.log_end.store(sequence, Ordering::Relaxed);
    }

    /// Records that wait in the log.
    pub fn lag(&self) -> u64 {
        self.0.log_end.load(Ordering::Relaxed).saturating_sub(self.0.position.load(Ordering::Relaxed))
    }

    /// Why it is not ready; empty = ready.
    pub fn reasons(&self) -> Vec<String> {
        let waits_for = self.0.waits_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut reasons = Vec::new();
        if !waits_for.is_empty() {
            reasons.push(format!("waits for the broker: {waits_for}"));
        }
        let mut unless = |flag: &AtomicBool, reason: &str| {
            if !flag.load(Ordering::Relaxed) {
                reasons.push(reason.to_owned());
            }
        };
        unless(&self.0.store_open, "the store is not open yet");
        unless(&self.0.consumer_bound, "no consumer on the log: nats-server is away or still starting");
        unless(&self.0.out_reachable, "OUT does not take outputs");
        if self.lag() >= LAG_MAX {
            reasons.push(format!("catching up: {} records behind the log, ready below {LAG_MAX}", self.lag()));
        }
        reasons
    }
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    reasons: Vec<String>,
    warnings: Vec<&'static str>,
    lag_records: u64,
}

#[derive(Clone)]
struct Shown {
    health: Health,
    metrics: Metrics,
}

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, health: Health, metrics: Metrics, asks: mpsc::Sender<Ask>, stop: CancellationToken) -> std::io::Result<()> {
    let tried = DryRun { asks, health: health.clone(), metrics: metrics.clone() };
    let routes = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .with_state(Shown { health, metrics })
        .merge(Router::new().route("/dry-run", post(dry_run::answer)).with_state(tried));
    axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn ready(State(shown): State<Shown>) -> Response {
    let reasons = shown.health.reasons();
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut warnings = Vec::new();
    if shown.health.0.sealing_fails.load(Ordering::Relaxed) {
        warnings.push("the newest seal of the archive failed, see the log");
    }
    if shown.health.0.checkpoint_overdue.load(Ordering::Relaxed) {
        warnings.push("the newest checkpoint is older than a third of what the log keeps, see the log");
    }
    let body = Ready { ready: reasons.is_empty(), reasons, warnings, lag_records: shown.health.lag() };
    (status, Json(body)).into_response()
}

async fn exposition(State(shown): State<Shown>) -> Response {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], shown.metrics.text()).into_response()
}
