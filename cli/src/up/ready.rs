//! When everything is ready: each service says so, and the first samples have come out at the end of the pipeline.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::up::report::{Event, Report};
use crate::{http, postgres};

/// A catch-up after a long pause takes its time; longer than this is a fault.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Silence longer than this makes people wonder.
const PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(200);
const FIRST_SAMPLES: &str = "SELECT count(*) AS devices FROM devices WHERE valid_to IS NULL";

/// Waits until everything is ready, saying now and then what it waits for; the error says what is missing.
pub async fn wait(endpoints: &Endpoints, logs: &Path, report: Report) -> Result<(), Error> {
    let deadline = Instant::now() + TIMEOUT;
    let mut say_at = Instant::now() + PATIENCE;
    loop {
        let Err(waiting_for) = check(endpoints).await else { return Ok(()) };
        if Instant::now() >= say_at {
            report.say(&Event::Waiting { waiting_for: &waiting_for });
            say_at = Instant::now() + PATIENCE;
        }
        if Instant::now() >= deadline {
            return Err(Error::NotReady { seconds: TIMEOUT.as_secs(), waiting_for, logs: logs.to_owned() });
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn check(endpoints: &Endpoints) -> Result<(), String> {
    for (name, address) in [("processor", &endpoints.processor), ("agent", &endpoints.agent), ("query", &endpoints.query)] {
        match http::get(&format!("{address}/readyz")).await {
            Ok((200, _)) => {}
            Ok((status, body)) => return Err(format!("{name} is not ready: {status} {body}")),
            Err(error) => return Err(format!("{name} does not answer on {address}/readyz: {error}")),
        }
    }
    let table = postgres::ask(endpoints, FIRST_SAMPLES).await.map_err(|error| {
        let Error::NoQuery { address, detail } = error else { return error.to_string() };
        format!("query does not answer on its Postgres port {address}: {detail}")
    })?;
    match table.first("devices") {
        Some("0") | None => Err("no GPU has come out at the end of the pipeline yet".to_owned()),
        Some(_) => Ok(()),
    }
}
