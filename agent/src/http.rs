//! `/healthz`, `/readyz` and `/metrics`. Nothing here waits for a driver or a broker.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::clock::boot_ns;
use crate::metrics::Metrics;
use crate::status::Status;

/// What the handlers look at.
#[derive(Debug, Clone)]
pub struct Views {
    /// Facts.
    pub status: Arc<Status>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Spacing of ticks, ms.
    pub interval_ms: u32,
}

/// The routes.
pub fn router(views: Views) -> Router {
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(ready)).route("/metrics", get(metrics)).with_state(views)
}

async fn ready(State(views): State<Views>) -> impl IntoResponse {
    let reasons = views.status.not_ready(boot_ns(), views.interval_ms);
    if reasons.is_empty() { (StatusCode::OK, "ready\n".to_owned()) } else { (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n") }
}

async fn metrics(State(views): State<Views>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], views.metrics.text())
}
