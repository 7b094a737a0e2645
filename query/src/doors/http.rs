//! `POST /sql` and what operators look at: `/healthz`, `/readyz`, `/metrics`.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::ipc::writer::StreamWriter;
use datafusion::common::{ParamValues, ScalarValue};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::clock::{self, millis};
use crate::doors::encode;
use crate::engine::{Ask, Engine, Overflow, Running};
use crate::error::Error;
use crate::statement::BYTES_MAX;

/// Longest body: a statement and its parameters.
const BODY_BYTES_MAX: usize = BYTES_MAX + (64 << 10);
/// Greatest answer, bytes; a longer one is cut after whole rows and says so.
const ANSWER_BYTES_MAX: usize = 64 << 20;
const DOOR: &str = "http";
const JSON: &str = "application/json";
const CSV: &str = "text/csv; charset=utf-8";
const ARROW: &str = "application/vnd.apache.arrow.stream";

/// Answers on this listener until told to stop, then lets those being answered finish.
pub async fn serve(listener: TcpListener, engine: Engine, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(engine)).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn router(engine: Engine) -> Router {
    Router::new()
        .route("/sql", post(sql))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(engine)
}

/// The body of a request in JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    sql: String,
    #[serde(default)]
    params: Vec<Value>,
    #[serde(default)]
    format: Option<Format>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    max_rows: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Json,
    Csv,
    Arrow,
}

async fn sql(State(engine): State<Engine>, headers: HeaderMap, body: Bytes) -> Response {
    match answer(&engine, &headers, &body).await {
        Ok(response) => response,
        Err(error) => refusal(&error),
    }
}

async fn answer(engine: &Engine, headers: &HeaderMap, body: &[u8]) -> Result<Response, Error> {
    let started = clock::instant();
    let request = read(headers, body)?;
    let format = request.format.unwrap_or_else(|| accepted(headers));
    let ask = Ask {
        sql: request.sql,
        params: parameters(request.params)?,
        deadline: request.timeout_ms.map(Duration::from_millis),
        rows_max: request.max_rows,
        overflow: Overflow::Truncate,
        door: DOOR,
    };
    let mut running = engine.run(ask).await?;
    let freshness_ms = running.snapshot.freshness_ms();
    let (content_type, bytes, rows, truncated) = match format {
        Format::Json => {
            let (rows, truncated) = json(&mut running).await?;
            let body = json!({
                "columns": encode::columns(&running.schema),
                "row_count": rows.len(),
                "truncated": truncated,
                "freshness_ms": freshness_ms,
                "elapsed_ms": millis(started.elapsed()),
                "rows": rows,
            });
            let count = body["row_count"].as_u64().unwrap_or(0);
            (JSON, serde_json::to_vec(&body).map_err(|error| Error::Internal(error.to_string()))?, count, truncated)
        }
        Format::Csv => {
            let (bytes, rows, truncated) = csv(&mut running).await?;
            (CSV, bytes, rows, truncated)
        }
        Format::Arrow => {
            let (bytes, rows, truncated) = arrow(&mut running).await?;
            (ARROW, bytes, rows, truncated)
        }
    };
    let mut response = Response::new(Body::from(bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("x-plimsoll-rows", HeaderValue::from(rows));
    headers.insert("x-plimsoll-truncated", HeaderValue::from_static(if truncated { "true" } else { "false" }));
    if let Some(freshness_ms) = freshness_ms {
        headers.insert("x-plimsoll-freshness-ms", HeaderValue::from(freshness_ms));
    }
    Ok(response)
}

/// JSON if it says so, else the body is the statement.
fn read(headers: &HeaderMap, body: &[u8]) -> Result<Request, Error> {
    let is_json = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| value.starts_with(JSON));
    if is_json {
        return serde_json::from_slice(body).map_err(|error| Error::Invalid(format!("the body is no request: {error}")));
    }
    let sql = std::str::from_utf8(body).map_err(|error| Error::Syntax(format!("the statement is not UTF-8: {error}")))?;
    Ok(Request { sql: sql.to_owned(), params: Vec::new(), format: None, timeout_ms: None, max_rows: None })
}

fn accepted(headers: &HeaderMap) -> Format {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or(JSON);
    match accept {
        accept if accept.contains("text/csv") => Format::Csv,
        accept if accept.contains(ARROW) => Format::Arrow,
        _ => Format::Json,
    }
}

fn parameters(values: Vec<Value>) -> Result<Option<ParamValues>, Error> {
    if values.is_empty() {
        return Ok(None);
    }
    let scalar = |(n, value): (usize, Value)| match value {
        Value::Null => Ok(ScalarValue::Null),
        Value::Bool(value) => Ok(ScalarValue::from(value)),
        Value::String(value) => Ok(ScalarValue::from(value)),
        Value::Number(value) => match (value.as_i64(), value.as_f64()) {
            (Some(value), _) => Ok(ScalarValue::from(value)),
            (None, Some(value)) => Ok(ScalarValue::from(value)),
            (None, None) => Err(Error::Invalid(format!("parameter ${}: {value} is out of range", n + 1))),
        },
        Value::Array(_) | Value::Object(_) => Err(Error::Invalid(format!("parameter ${} is neither a number, a text, a boolean nor null", n + 1))),
    };
    let scalars = values.into_iter().enumerate().map(scalar).collect::<Result<Vec<_>, Error>>()?;
    Ok(Some(ParamValues::from(scalars)))
}

async fn json(running: &mut Running) -> Result<(Vec<Value>, bool), Error> {
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(batch) = running.next().await? {
        bytes += batch.get_array_memory_size();
        encode::json_rows(&batch, &mut rows).map_err(unwritable)?;
        if bytes > ANSWER_BYTES_MAX {
            return Ok((rows, true));
        }
    }
    let truncated = running.end().await?;
    Ok((rows, truncated))
}

async fn csv(running: &mut Running) -> Result<(Vec<u8>, u64, bool), Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let header = running.schema.fields().iter().map(|field| field.name().as_str());
    writer.write_record(header).map_err(|error| Error::Internal(error.to_string()))?;
    let (mut rows, mut bytes, mut truncated) = (0, 0, false);
    while let Some(batch) = running.next().await? {
        rows += batch.num_rows() as u64;
        bytes += batch.get_array_memory_size();
        encode::csv_rows(&batch, &mut writer).map_err(unwritable)?;
        if bytes > ANSWER_BYTES_MAX {
            truncated = true;
            break;
        }
    }
    truncated = truncated || running.end().await?;
    let bytes = writer.into_inner().map_err(|error| Error::Internal(error.to_string()))?;
    Ok((bytes, rows, truncated))
}

async fn arrow(running: &mut Running) -> Result<(Vec<u8>, u64, bool), Error> {
    let mut writer = StreamWriter::try_new(Vec::new(), &running.schema).map_err(unwritable)?;
    let (mut rows, mut bytes, mut truncated) = (0, 0, false);
    while let Some(batch) = running.next().await? {
        rows += batch.num_rows() as u64;
        bytes += batch.get_array_memory_size();
        writer.write(&batch).map_err(unwritable)?;
        if bytes > ANSWER_BYTES_MAX {
            truncated = true;
            break;
        }
    }
    truncated = truncated || running.end().await?;
    Ok((writer.into_inner().map_err(unwritable)?, rows, truncated))
}

fn unwritable(error: ArrowError) -> Error {
    Error::Data(error.to_string())
}

fn refusal(error: &Error) -> Response {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = json!({ "error": { "code": error.code(), "message": error.to_string(), "hint": error.hint() } });
    (status, axum::Json(body)).into_response()
}

async fn readyz(State(engine): State<Engine>) -> Response {
    let (reasons, followed) = (engine.reasons(), engine.followed());
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({ "ready": reasons.is_empty(), "reasons": reasons, "tail": followed.url, "tail_changes": followed.changes_total });
    (status, axum::Json(body)).into_response()
}

async fn metrics(State(engine): State<Engine>) -> Response {
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], engine.metrics_text()).into_response()
}
