//! `POST /dry-run`: what a placement request would get now, on the state as it is. Nothing comes into the log or OUT by it.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::request::Place;
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::health::Health;
use crate::metrics::Metrics;
use crate::tail::Ask;

/// How long the fold may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What is asked, as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// Who asks.
    tenant: TenantId,
    /// The request, as it would stand in the log without its `type`.
    place: Place,
}

/// Asks the fold. A clone asks the same one.
#[derive(Clone)]
pub struct DryRun {
    /// To the fold.
    pub asks: mpsc::Sender<Ask>,
    /// Whether it is there to answer.
    pub health: Health,
    /// Counts what was refused.
    pub metrics: Metrics,
}

/// 200 with the decision as JSON; 400 for a question nobody can read; 503 while the processor is not ready, or too many ask. Errors are sentences.
pub async fn answer(State(to): State<DryRun>, body: Bytes) -> Response {
    let Question { tenant, place } = match serde_json::from_slice(&body) {
        Ok(question) => question,
        Err(error) => return (StatusCode::BAD_REQUEST, format!("expected {{\"tenant\": …, \"place\": {{…}}}}: {error}\n")).into_response(),
    };
    let later = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why + "\n").into_response();
    let reasons = to.health.reasons();
    if !reasons.is_empty() {
        return later(format!("not ready: {}", reasons.join("; ")));
    }
    let (reply, answer) = oneshot::channel();
    if to.asks.try_send(Ask::DryRun { tenant, place: Box::new(place), reply }).is_err() {
        to.metrics.asks_refused.inc();
        return later("too many questions wait for the fold: ask again".to_owned());
    }
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(decided)) => Json(decided).into_response(),
        Ok(Err(_)) | Err(_) => later(format!("the fold gave no answer within {} s", ANSWER_TIMEOUT.as_secs())),
    }
}
