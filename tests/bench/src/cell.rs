//! A real cell to measure: a nats-server of its own, a whole processor in this process, and hosts that say their frames in real time.
#![expect(clippy::disallowed_methods, reason = "hosts speak by the real clock")]

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use plimsoll_processor::{Addresses, Config, run};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::subject::LogSubject;
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{frame, inventory};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// How often metrics are looked at: each look takes some of the time that is measured.
const LOOK: Duration = Duration::from_millis(20);
/// GPUs of a host.
pub const GPUS: usize = 8;

/// A nats-server that ends with its owner.
pub struct Broker {
    process: Child,
    /// Where to connect.
    pub url: String,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Broker {
    /// Starts one with its files in `folder`; none if there is no nats-server in $NATS_SERVER, PATH or .tools.
    pub async fn start(folder: &Path) -> Result<Option<Self>> {
        let Some(program) = nats_server() else { return Ok(None) };
        let (config, store) = (folder.join("nats.conf"), folder.join("js"));
        std::fs::write(&config, format!("listen: \"127.0.0.1:-1\"\nports_file_dir: {folder:?}\njetstream {{ store_dir: {store:?} }}\n"))?;
        let process = Command::new(program).arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let ports = folder.join(format!("nats-server_{}.ports", process.id()));
        let mut broker = Self { process, url: String::new() };
        let said = timeout(PATIENCE, async {
            loop {
                match std::fs::read(&ports) {
                    Ok(text) if text.ends_with(b"}") => return text,
                    Ok(_) | Err(_) => sleep(Duration::from_millis(20)).await,
                }
            }
        });
        let ports: serde_json::Value = serde_json::from_slice(&said.await.context("nats-server did not say its port")?)?;
        broker.url = ports["nats"][0].as_str().context("no port")?.to_owned();
        Ok(Some(broker))
    }
}

fn nats_server() -> Option<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let tools = std::path::absolute("../../.tools/nats-server").unwrap_or_default();
    named.into_iter().chain(found).chain([tools]).find(|candidate| candidate.is_file())
}

/// The settings of a processor on free ports.
pub fn config(url: &str, cell: &CellId, data: &Path) -> Result<Config> {
    let data = data.to_str().context("a folder with a name")?;
    let own = ["bench", "--nats", url, "--cell", cell.as_str(), "--data-dir", data];
    let small = ["--http", "127.0.0.1:0", "--tail", "127.0.0.1:0", "--log-bytes-max", "4294967296", "--out-bytes-max", "1073741824"];
    Ok(Config::try_parse_from(own.into_iter().chain(small))?)
}

/// A processor on threads of its own.
pub struct Processor {
    thread: std::thread::JoinHandle<Result<()>>,
    stop: CancellationToken,
    http: SocketAddr,
}

impl Processor {
    /// Starts one, which listens when this returns.
    pub async fn start(config: Config) -> Result<Self> {
        let stop = CancellationToken::new();
        let (sender, listening) = tokio::sync::oneshot::channel();
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Runtime::new()?.block_on(run(config, until, |addresses: Addresses| {
                let _ = sender.send(addresses.http);
            }))?;
            Ok(())
        });
        Ok(Self { thread, stop, http: listening.await? })
    }

    /// Waits until one of its metrics is at least so much. Errors if it ends before that.
    pub async fn until(&self, name: &str, least: u64) -> Result<()> {
        let reached = timeout(PATIENCE, async {
            while self.metric(name).await.is_none_or(|value| value < least) {
                ensure!(!self.thread.is_finished(), "the processor has ended before {name} was {least}");
                sleep(LOOK).await;
            }
            Ok(())
        });
        reached.await.with_context(|| format!("{name} was not {least} in time"))?
    }

    /// A metric, as /metrics says.
    async fn metric(&self, name: &str) -> Option<u64> {
        let mut connection = TcpStream::connect(self.http).await.ok()?;
        connection.write_all(b"GET /metrics HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.ok()?;
        answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.parse().ok()
    }

    /// Ends it in order.
    pub async fn stop(self) -> Result<()> {
        self.stop.cancel();
        tokio::task::spawn_blocking(|| self.thread.join()).await?.map_err(|_| anyhow!("the processor's thread panicked"))?
    }
}

/// Registers hosts.
pub async fn announce(client: &async_nats::Client, cell: &CellId, hosts: usize) -> Result<()> {
    for number in 0..hosts {
        let inventory = inventory(number, GPUS);
        client.publish(LogSubject::Inventory(inventory.host.clone()).to_subject(cell), serde_json::to_vec(&inventory)?.into()).await?;
    }
    Ok(client.flush().await?)
}

/// Each of these hosts says the frame of this instant, of one tick.
pub async fn speak(client: &async_nats::Client, cell: &CellId, hosts: Range<usize>, sequence: u64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let now = EventTime(now.as_secs() as i64 * NS_PER_S + i64::from(now.subsec_nanos()));
    for number in hosts {
        let mut frame = frame(number, GPUS, sequence as i64, 1, sequence);
        frame.ticks[0].sampled_at = now;
        client.publish(LogSubject::Sample(frame.host.clone()).to_subject(cell), frame.encode().into()).await?;
    }
    Ok(client.flush().await?)
}
