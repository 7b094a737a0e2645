//! What a newcomer is shown: a placement decision, and what SQL says about the fleet. A demonstration that does not come about is said, not an error.

use std::time::Duration;

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::out::Outcome;
use plimsoll_schemas::request::{Bundle, Place, Release, Request};
use plimsoll_schemas::subject::LogSubject;
use tokio::time::Instant;

use crate::broker::{Broker, Since};
use crate::commands::place::{self, Patience};
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::output::Table;
use crate::postgres;
use crate::up::report::{Event, Report};

/// An hour: given back at the stop, and not for ever where there is none.
const LEASE_TTL_MS: u64 = 3_600_000;
/// How long it waits for a GPU, ms.
const ROOM_TIMEOUT_MS: u64 = 20_000;
const DECISION_TIMEOUT: Duration = Duration::from_secs(10);
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(3);
/// The first windows close after 10 s and the lateness; with a slow host a little later.
const WINDOWS_TIMEOUT: Duration = Duration::from_secs(30);
const WINDOWS_POLL: Duration = Duration::from_millis(500);

const BY_MODEL: &str = "SELECT model, state, count(*) AS gpus, count(DISTINCT host) AS hosts FROM devices WHERE valid_to IS NULL GROUP BY model, state ORDER BY model, state";
const BUSIEST: &str = "SELECT window_at, host, gpu_index AS gpu, model, received AS samples, util_percent_ms / covered_ms AS util_percent, \
     memory_used_bytes_last / 1048576 AS memory_mib, energy_mj / covered_ms AS watts FROM gpu_windows_10s \
     WHERE window_at = (SELECT max(window_at) FROM gpu_windows_10s) AND covered_ms > 0 ORDER BY util_percent DESC, host, gpu LIMIT 3";

/// The lease of the demonstration.
#[derive(Debug)]
pub struct DemoLease {
    tenant: TenantId,
    lease_id: String,
}

/// Asks for one GPU, then shows the fleet and its first windows; returns the lease.
pub async fn show(endpoints: &Endpoints, report: Report) -> Option<DemoLease> {
    let lease = decide(endpoints, report).await.unwrap_or_else(|error| {
        report.say(&Event::NotShown { why: error.to_string() });
        None
    });
    for (about, sql) in [("The fleet, by SQL:", BY_MODEL), ("The three busiest GPUs of the newest 10 s window, by SQL:", BUSIEST)] {
        match rows(endpoints, sql).await {
            Ok(table) => report.say(&Event::Rows { about, sql, rows: table.to_json(), table: &table }),
            Err(error) => report.say(&Event::NotShown { why: error.to_string() }),
        }
    }
    lease
}

async fn decide(endpoints: &Endpoints, report: Report) -> Result<Option<DemoLease>, Error> {
    let broker = Broker::connect(endpoints).await?;
    let tenant: TenantId = "demo".parse().expect("a plain word is a token");
    let place = Place {
        request_id: format!("demo-{}", broker.unique()),
        bundles: vec![Bundle::default()],
        workload: Some("demonstration".to_owned()),
        lease_ttl_ms: Some(LEASE_TTL_MS),
        // GPUs that were heard a moment ago for the first time warm up.
        max_wait_ms: Some(ROOM_TIMEOUT_MS),
        ..Place::default()
    };
    let answer = place::ask(&broker, &tenant, place, Since::Now, Patience::of(DECISION_TIMEOUT), |_| {}).await?;
    let decided = answer.decided();
    report.say(&Event::Decided { decision: decided });
    let lease = decided.lease.as_ref().filter(|_| decided.outcome == Outcome::Placed);
    Ok(lease.map(|lease| DemoLease { tenant, lease_id: lease.lease_id.clone() }))
}

/// Asks until there are rows: the first windows take their time.
async fn rows(endpoints: &Endpoints, sql: &str) -> Result<Table, Error> {
    let deadline = Instant::now() + WINDOWS_TIMEOUT;
    loop {
        let table = postgres::ask(endpoints, sql).await?;
        if !table.rows.is_empty() || Instant::now() >= deadline {
            return Ok(table);
        }
        tokio::time::sleep(WINDOWS_POLL).await;
    }
}

/// Gives the lease back, so that the next start finds the GPU free. Where that fails the lease runs out by itself.
pub async fn give_back(endpoints: &Endpoints, lease: &DemoLease) {
    let release = async {
        let broker = Broker::connect(endpoints).await?;
        let request = Request::Release(Release { request_id: format!("demo-{}", broker.unique()), lease_id: lease.lease_id.clone() });
        broker.append(&LogSubject::Request(lease.tenant.clone()), &request).await
    };
    let _ = tokio::time::timeout(GIVE_BACK_TIMEOUT, release).await;
}
