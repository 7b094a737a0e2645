//! Catching up: frames per second out of a filled LOG, by a whole processor with an empty store (read, decode, fold, publish, commit), and
//! beside it by a consumer that only counts messages. The LOG is filled in real time, by hosts of 8 GPUs at 1 Hz, in a nats-server of its own.
//!
//! `cargo bench -p plimsoll-bench --bench drain -- 240` fills for another number of seconds.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and says why it did nothing")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use futures::StreamExt;
use plimsoll_bench::cell::{Broker, GPUS, PATIENCE, Processor, announce, config, speak};
use plimsoll_bench::row;
use plimsoll_processor::streams;
use plimsoll_schemas::id::CellId;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOSTS: usize = 2_000;
const SECONDS: u64 = 120;
const ROUNDS: usize = 3;
/// As the processor pulls.
const PULL_MESSAGES: usize = 16_000;
const PULL_BYTES: usize = 8 << 20;

#[tokio::main]
async fn main() -> Result<()> {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(SECONDS);
    let folder = tempfile::tempdir()?;
    let Some(broker) = Broker::start(folder.path()).await? else {
        println!("skipped: no nats-server in $NATS_SERVER, PATH or .tools");
        return Ok(());
    };
    let cell: CellId = "bench".parse()?;
    fill(&broker.url, &cell, seconds).await?;
    row(&["round", "messages", "empty /s", "processor /s", "samples/s", "ratio"]);
    for round in 1..=ROUNDS {
        let (messages, empty) = count(&broker.url, &cell).await?;
        let full = drain(&broker.url, &cell, &folder.path().join(format!("data-{round}")), messages).await?;
        let rate = |took: Duration| messages as f64 / took.as_secs_f64();
        row(&[
            &round.to_string(),
            &messages.to_string(),
            &format!("{:.0}", rate(empty)),
            &format!("{:.0}", rate(full)),
            &format!("{:.0}", rate(full) * GPUS as f64),
            &format!("{:.2}", rate(empty) / rate(full)),
        ]);
    }
    Ok(())
}

/// Publishes what the hosts have to say, second by second, and waits until it stands in the log.
async fn fill(url: &str, cell: &CellId, seconds: u64) -> Result<()> {
    let streams = streams::open(&config(url, cell, Path::new("unused"))?).await?;
    let client = streams.context.client();
    announce(&client, cell, HOSTS).await?;
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1..=seconds {
        second.tick().await;
        speak(&client, cell, 0..HOSTS, sequence).await?;
    }
    let expected = HOSTS as u64 * (seconds + 1);
    let filled = timeout(PATIENCE, async {
        while streams.log.get_info().await.is_ok_and(|info| info.state.messages < expected) {
            sleep(Duration::from_millis(50)).await;
        }
    });
    filled.await.context("the log did not take everything")
}

/// How many messages the log holds, and how long it took to have seen them all.
async fn count(url: &str, cell: &CellId) -> Result<(u64, Duration)> {
    let stream = streams::attach(url, cell, "bench").await?.log;
    let messages = stream.get_info().await?.state.last_sequence;
    let begin = Instant::now();
    let config = PullConfig {
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::None,
        memory_storage: true,
        inactive_threshold: Duration::from_secs(60),
        ..PullConfig::default()
    };
    let consumer = stream.create_consumer(config).await?;
    let mut pulled = consumer.stream().max_messages_per_batch(PULL_MESSAGES).max_bytes_per_batch(PULL_BYTES).messages().await?;
    let mut last = 0;
    while last < messages {
        match pulled.next().await {
            Some(message) => last = message?.info().map_err(|error| anyhow!("{error}"))?.stream_sequence,
            None => bail!("the consumer ended at {last} of {messages}"),
        }
    }
    Ok((messages, begin.elapsed()))
}

/// How long a processor with an empty store takes until it has folded `messages`.
async fn drain(url: &str, cell: &CellId, data: &Path, messages: u64) -> Result<Duration> {
    let begin = Instant::now();
    let processor = Processor::start(config(url, cell, data)?).await?;
    processor.until("plimsoll_processor_position", messages).await?;
    let took = begin.elapsed();
    processor.stop().await?;
    Ok(took)
}
