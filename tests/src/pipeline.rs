//! The whole pipeline as a user starts it: `plimsoll up --json` with any free ports and a data folder of its own.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// Longest wait for anything a test expects: generous, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Longest wait for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The folder with the binaries that were built together with this test.
pub fn binaries() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    test.ancestors()
        .find(|folder| folder.join("plimsoll").is_file())
        .map(Path::to_path_buf)
        .unwrap_or_else(|| panic!("no `plimsoll` binary above {}: build the workspace first (`make test` does)", test.display()))
}

/// The nats-server binary: `NATS_SERVER`, PATH, or where `make` puts it.
pub fn nats_server() -> Option<PathBuf> {
    let from_env = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let from_path = std::env::var_os("PATH").and_then(|path| std::env::split_paths(&path).map(|f| f.join("nats-server")).find(|f| f.is_file()));
    let tools = std::path::absolute("../.tools/nats-server").unwrap_or_default();
    from_env.or(from_path).or(tools.is_file().then_some(tools))
}

/// A running `plimsoll up`.
pub struct Up {
    child: Child,
    events: watch::Receiver<Vec<Value>>,
    /// Its data folder.
    pub data_dir: PathBuf,
    /// The line that says it is ready.
    pub ready: Value,
}

impl Up {
    /// Starts it and waits until it says it is ready.
    pub async fn start(data_dir: &Path, args: &[&str]) -> Result<Self> {
        let nats = nats_server().context("no nats-server: run `make test`, which unpacks one, or set NATS_SERVER")?;
        let mut child = Command::new(binaries().join("plimsoll"))
            .args(["up", "--json", "--ports", "auto", "--data-dir"])
            .arg(data_dir)
            .arg("--nats-server")
            .arg(nats)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .context("start plimsoll up")?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let (sender, events) = watch::channel(Vec::new());
        tokio::spawn(async move {
            let mut lines = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                match serde_json::from_str(&line) {
                    Ok(event) => sender.send_modify(|events: &mut Vec<Value>| events.push(event)),
                    Err(_) => sender.send_modify(|events| events.push(serde_json::json!({ "event": "not json", "line": line }))),
                }
            }
        });
        let mut up = Self { child, events, data_dir: data_dir.to_path_buf(), ready: Value::Null };
        up.ready = up.event(|event| event["event"] == "ready").await?;
        Ok(up)
    }

    /// Waits for an event, past or to come.
    pub async fn event(&mut self, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(event) = self.events.borrow_and_update().iter().find(|event| is_it(event)) {
                return Ok(event.clone());
            }
            tokio::select! {
                changed = self.events.changed() => if changed.is_err() {
                    bail!("plimsoll up ended: {:?}; it said {:?}", self.child.wait().await, self.events.borrow());
                },
                () = tokio::time::sleep_until(deadline) => bail!("no such event in {PATIENCE:?}; it said {:?}", self.events.borrow()),
            }
        }
    }

    /// Every event so far.
    pub fn events(&self) -> Vec<Value> {
        self.events.borrow().clone()
    }

    /// An address from the ready line.
    pub fn address(&self, of: &str) -> Result<String> {
        Ok(self.ready[of].as_str().with_context(|| format!("no {of} in {}", self.ready))?.to_owned())
    }

    /// Process id of the newest life of a part: `nats`, `processor`, `query` or `agent`.
    pub fn pid(&self, part: &str) -> Result<i32> {
        let events = self.events.borrow();
        let started = events.iter().rev().find(|event| event["event"] == "started" && event["part"] == part);
        let pid = started.and_then(|event| event["pid"].as_i64()).with_context(|| format!("{part} was never started: {events:?}"))?;
        Ok(i32::try_from(pid)?)
    }

    /// Sends a signal to `plimsoll up` itself: stopped, it starts nothing again.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.id().context("still running")?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("{signal} to plimsoll up"))
    }

    /// Sends a signal to the newest life of a part.
    pub fn signal_part(&self, part: &str, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid(part)?), signal).with_context(|| format!("{signal} to {part}"))
    }

    /// The sum of a metric of a service over its label sets.
    pub async fn metric(&self, service: &str, name: &str) -> Result<f64> {
        let text = scrape(&format!("{}/metrics", self.address(service)?)).await?;
        Ok(text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Kills a part with SIGKILL and waits until it is started again. Returns the new process id.
    pub async fn kill_part(&self, part: &str) -> Result<i32> {
        let old = self.pid(part)?;
        self.signal_part(part, Signal::SIGKILL)?;
        eventually(async || {
            let new = self.pid(part)?;
            ensure!(new != old, "{part} was not started again");
            Ok(new)
        })
        .await
    }

    /// Asks it to stop and checks that it ends in good order.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = timeout(PATIENCE, self.child.wait()).await.context("did not stop in time")??;
        ensure!(status.success(), "plimsoll up ended with {status}");
        Ok(())
    }

    /// Waits until it ends by itself.
    pub async fn wait(mut self) -> Result<std::process::ExitStatus> {
        Ok(timeout(PATIENCE, self.child.wait()).await.context("did not end in time")??)
    }

    /// A Postgres connection.
    pub async fn postgres(&self) -> Result<tokio_postgres::Client> {
        let address = self.address("pg")?;
        let (host, port) = address.rsplit_once(':').context("host:port")?;
        let config = format!("host={host} port={port} user=test dbname=plimsoll connect_timeout=10");
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// A NATS connection.
    pub async fn nats(&self) -> Result<async_nats::Client> {
        Ok(async_nats::connect(self.address("nats")?).await?)
    }

    /// Every message of a stream from its beginning to its present end: (sequence, subject, payload).
    pub async fn stream(&self, name: &str) -> Result<Vec<(u64, String, Vec<u8>)>> {
        read_stream(&async_nats::jetstream::new(self.nats().await?), name).await
    }
}

/// What a page says; an error where its status is one.
pub async fn scrape(url: &str) -> Result<String> {
    let url = url.to_owned();
    let fetch = move || anyhow::Ok(ureq::get(&url).config().timeout_global(Some(PAGE_TIMEOUT)).build().call()?.body_mut().read_to_string()?);
    tokio::task::spawn_blocking(fetch).await?
}

/// Every message of a stream from its beginning to its present end: (sequence, subject, payload).
pub async fn read_stream(jetstream: &async_nats::jetstream::Context, name: &str) -> Result<Vec<(u64, String, Vec<u8>)>> {
    use futures::StreamExt;
    let mut stream = jetstream.get_stream(name).await?;
    let last = stream.info().await?.state.last_sequence;
    let mut all = Vec::new();
    if last == 0 {
        return Ok(all);
    }
    let consumer = stream.create_consumer(async_nats::jetstream::consumer::pull::OrderedConfig::default()).await?;
    let mut messages = consumer.messages().await?;
    let deadline = Instant::now() + PATIENCE;
    while let Some(message) = timeout_at(deadline, messages.next()).await.context("the stream did not come to its end")? {
        let message = message?;
        let sequence = message.info().map_err(|error| anyhow::anyhow!("{error}"))?.stream_sequence;
        all.push((sequence, message.subject.to_string(), message.payload.to_vec()));
        if sequence >= last {
            break;
        }
    }
    Ok(all)
}

/// Tries until it holds or patience ends; the last error is the one reported.
pub async fn eventually<T, F: Future<Output = Result<T>>>(mut attempt: impl FnMut() -> F) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => return Err(error.context("still so when patience ended")),
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
