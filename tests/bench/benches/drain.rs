//! Catching up: frames per second out of a filled LOG, by a whole processor with an empty store (read, decode, fold, publish, commit), and
//! beside it by a consumer that only counts messages. The LOG is filled in real time, by hosts of 8 GPUs at 1 Hz, in a nats-server of its own.
//!
//! `cargo bench -p plimsoll-bench --bench drain -- 120` fills for another number of seconds.
#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "a benchmark reads the clock and says why it did nothing")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use async_nats::jetstream::consumer::pull::Config as PullConfig;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use clap::Parser;
use futures::StreamExt;
use plimsoll_bench::{frame, inventory, row};
use plimsoll_processor::{Addresses, Config, run, streams};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject::LogSubject;
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOSTS: usize = 2_000;
const GPUS: usize = 8;
const SECONDS: i64 = 60;
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(300);
/// As the processor pulls.
const PULL_MESSAGES: usize = 4_000;
const PULL_BYTES: usize = 8 << 20;

/// A nats-server that ends with the benchmark.
struct Broker(Child);

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(SECONDS);
    let Some(program) = nats_server() else {
        println!("skipped: no nats-server in $NATS_SERVER, PATH or .tools");
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let (_broker, url) = broker(&program, folder.path()).await?;
    let cell: CellId = "bench".parse()?;
    fill(&url, &cell, seconds).await?;
    row(&["round", "messages", "empty /s", "processor /s", "samples/s", "ratio"]);
    for round in 1..=ROUNDS {
        let (messages, empty) = count(&url, &cell).await?;
        let full = drain(&url, &cell, &folder.path().join(format!("data-{round}")), messages).await?;
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

fn nats_server() -> Option<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/nats-server");
    named.into_iter().chain(found).chain([tools]).find(|candidate| candidate.is_file())
}

async fn broker(program: &Path, folder: &Path) -> Result<(Broker, String)> {
    let (config, store) = (folder.join("nats.conf"), folder.join("js"));
    std::fs::write(&config, format!("listen: \"127.0.0.1:-1\"\nports_file_dir: {folder:?}\njetstream {{ store_dir: {store:?} }}\n"))?;
    let child = Command::new(program).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let ports = folder.join(format!("nats-server_{}.ports", child.id()));
    let broker = Broker(child);
    let said = timeout(PATIENCE, async {
        loop {
            match std::fs::read(&ports) {
                Ok(text) if text.ends_with(b"}") => return text,
                Ok(_) | Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    });
    let ports: serde_json::Value = serde_json::from_slice(&said.await.context("nats-server did not say its port")?)?;
    let url = ports["nats"][0].as_str().context("no port")?.to_owned();
    Ok((broker, url))
}

/// Publishes what the hosts have to say, second by second.
async fn fill(url: &str, cell: &CellId, seconds: i64) -> Result<()> {
    let streams = streams::open(&config(url, cell, Path::new("unused"))?).await?;
    let client = streams.context.client();
    for number in 0..HOSTS {
        let inventory = inventory(number, GPUS);
        client.publish(LogSubject::Inventory(inventory.host.clone()).to_subject(cell), serde_json::to_vec(&inventory)?.into()).await?;
    }
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for sequence in 1..=seconds {
        second.tick().await;
        let now = EventTime(now_ns()?);
        for number in 0..HOSTS {
            let mut frame = frame(number, GPUS, sequence, 1, sequence as u64);
            frame.ticks[0].sampled_at = now;
            client.publish(LogSubject::Sample(frame.host.clone()).to_subject(cell), frame.encode().into()).await?;
        }
        client.flush().await?;
    }
    let expected = (HOSTS as i64 * (seconds + 1)) as u64;
    timeout(PATIENCE, async {
        while streams.log.get_info().await.is_ok_and(|info| info.state.messages < expected) {
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .context("the log did not take everything")
}

fn now_ns() -> Result<i64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(now.as_secs() as i64 * NS_PER_S + i64::from(now.subsec_nanos()))
}

fn config(url: &str, cell: &CellId, data: &Path) -> Result<Config> {
    let data = data.to_str().context("a folder with a name")?;
    let flags = ["bench", "--nats", url, "--cell", cell.as_str(), "--data-dir", data, "--http", "127.0.0.1:0", "--tail", "127.0.0.1:0"];
    Ok(Config::try_parse_from(flags)?)
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
            Some(message) => last = message?.info().map_err(|error| anyhow::anyhow!("{error}"))?.stream_sequence,
            None => bail!("the consumer ended at {last} of {messages}"),
        }
    }
    Ok((messages, begin.elapsed()))
}

/// How long a processor with an empty store takes until it has folded `messages`.
async fn drain(url: &str, cell: &CellId, data: &Path, messages: u64) -> Result<Duration> {
    let (config, stop) = (config(url, cell, data)?, CancellationToken::new());
    let (sender, listening) = tokio::sync::oneshot::channel();
    let begin = Instant::now();
    let until = stop.clone();
    let running = std::thread::spawn(move || {
        tokio::runtime::Runtime::new()?.block_on(run(config, until, |addresses: Addresses| {
            let _ = sender.send(addresses.http);
        }))?;
        anyhow::Ok(())
    });
    let http = listening.await?;
    let done = timeout(PATIENCE, async {
        while position(http).await.is_none_or(|position| position < messages) {
            sleep(Duration::from_millis(5)).await;
        }
    });
    done.await.context("the processor did not reach the end of the log")?;
    let took = begin.elapsed();
    stop.cancel();
    tokio::task::spawn_blocking(|| running.join()).await?.map_err(|_| anyhow::anyhow!("the processor's thread panicked"))??;
    Ok(took)
}

/// The last record folded, as /metrics says.
async fn position(http: std::net::SocketAddr) -> Option<u64> {
    let mut connection = TcpStream::connect(http).await.ok()?;
    connection.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.ok()?;
    answer.lines().find_map(|line| line.strip_prefix("plimsoll_processor_position "))?.parse().ok()
}
