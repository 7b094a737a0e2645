//! From a request to its decision: published to the log, folded behind everything before it, and seen on OUT, one request at a time, while
//! 1,000 hosts of 8 GPUs say a frame each second. What is placed is released again.
//!
//! `cargo bench -p plimsoll-bench --bench latency -- 5000` asks another number of times.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and says why it did nothing")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt;
use plimsoll_bench::cell::{Broker, PATIENCE, Processor, announce, config, speak};
use plimsoll_bench::{place, row};
use plimsoll_processor::streams;
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::{CellId, TenantId};
use plimsoll_schemas::request::{Release, Request};
use plimsoll_schemas::subject::{LogSubject, OutSubject};
use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOSTS: usize = 1_000;
const REQUESTS: usize = 1_000;
/// Agents were started at different moments, so hosts speak all over the second: a part of them at a time.
const TURNS: usize = 100;
/// Between two requests, so that they fall anywhere between two frames.
const PAUSE: Duration = Duration::from_millis(17);

#[tokio::main]
async fn main() -> Result<()> {
    let requests = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(REQUESTS);
    let folder = tempfile::tempdir()?;
    let Some(broker) = Broker::start(folder.path()).await? else {
        println!("skipped: no nats-server in $NATS_SERVER, PATH or .tools");
        return Ok(());
    };
    let (cell, tenant): (CellId, TenantId) = ("bench".parse()?, "research".parse()?);
    let config = config(&broker.url, &cell, &folder.path().join("data"))?;
    let client = streams::open(&config).await?.context.client();
    let processor = Processor::start(config).await?;
    let enrol = serde_json::to_vec(&Control::Enrol { hosts: Vec::new() })?;
    client.publish(LogSubject::Control.to_subject(&cell), enrol.into()).await?;
    announce(&client, &cell, HOSTS).await?;
    let feeding = tokio::spawn(feed(client.clone(), cell.clone()));
    processor.until("plimsoll_processor_devices_placeable", 1).await?;

    let mut decisions = client.subscribe(OutSubject::Decision(tenant.clone()).to_subject(&cell)).await?;
    client.flush().await?;
    let ask = LogSubject::Request(tenant).to_subject(&cell);
    let mut took = Vec::with_capacity(requests);
    for number in 0..requests {
        sleep(PAUSE).await;
        let place = Request::Place(place(&format!("r-{number}"), 1, 1_000, 1));
        let begin = Instant::now();
        client.publish(ask.clone(), serde_json::to_vec(&place)?.into()).await?;
        client.flush().await?;
        let decided = timeout(PATIENCE, decisions.next()).await?.context("OUT ended")?;
        took.push(begin.elapsed());
        let decided: Value = serde_json::from_slice(&decided.payload)?;
        if let Some(lease_id) = decided["data"]["lease"]["lease_id"].as_str() {
            let release = Request::Release(Release { request_id: format!("e-{number}"), lease_id: lease_id.to_owned() });
            client.publish(ask.clone(), serde_json::to_vec(&release)?.into()).await?;
        }
    }
    feeding.abort();
    processor.stop().await?;
    took.sort_unstable();
    let at = |share: f64| format!("{:.2}", took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3);
    row(&["request to decision", "requests", "p50 ms", "p90 ms", "p99 ms", "max ms"]);
    row(&[&format!("{HOSTS} hosts x 8 GPUs at 1 Hz"), &took.len().to_string(), &at(0.5), &at(0.9), &at(0.99), &at(1.0)]);
    Ok(())
}

async fn feed(client: async_nats::Client, cell: CellId) -> Result<()> {
    let mut turn = interval(Duration::from_secs(1) / TURNS as u32);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1.. {
        for hosts in 0..TURNS {
            turn.tick().await;
            speak(&client, &cell, hosts * HOSTS / TURNS..(hosts + 1) * HOSTS / TURNS, sequence).await?;
        }
    }
    Ok(())
}
