//! A real nats-server and the real binary, on free ports, ended with the test.
#![expect(clippy::disallowed_methods, reason = "tests stand in for hosts with clocks and wait for conditions with a deadline")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, Ticket};
use async_nats::jetstream;
use futures::{StreamExt, TryStreamExt};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{CellId, GpuUuid, HostId, Position, Slot};
use plimsoll_schemas::inventory::{Gpu, Inventory};
use plimsoll_schemas::request::Request;
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::subject::LogSubject;
use plimsoll_schemas::time::EventTime;

use super::PATIENCE;

/// GPUs of the one host.
pub const GPUS: usize = 2;
const LOG: &str = "PLIMSOLL_local_LOG";
const OUT: &str = "PLIMSOLL_local_OUT";

/// Waits until a condition holds; fails with its name after [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn nats_server() -> Option<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let tools = std::path::absolute("../.tools/nats-server").unwrap_or_default();
    named.into_iter().chain(found).chain([tools]).find(|candidate| candidate.is_file())
}

/// A nats-server of the test's own.
pub struct Broker {
    process: Child,
    folder: tempfile::TempDir,
    program: PathBuf,
    settings: String,
    url: String,
    client: async_nats::Client,
}

impl Broker {
    /// A running one; `None`, with the reason on stderr, where there is no nats-server.
    pub async fn start() -> Option<Self> {
        Self::start_as("jetstream { max_file_store: 64GB }", None).await
    }

    /// A running one with these settings, to which the test itself connects with this name and password.
    pub async fn start_as(settings: &str, login: Option<(&str, &str)>) -> Option<Self> {
        let Some(program) = nats_server() else {
            eprintln!("skipped: no nats-server in $NATS_SERVER, PATH or .tools");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let (process, url) = launch(&program, folder.path(), settings, -1).await;
        let options = login.map_or_else(async_nats::ConnectOptions::new, |(user, password)| {
            async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        });
        let client = options.connect(&url).await.unwrap();
        Some(Self { process, folder, program, settings: settings.to_owned(), url, client })
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills it without warning and starts it again on the same port and files.
    pub async fn kill_and_restart(&mut self) {
        self.kill_and(|_| {}).await;
    }

    /// Kills it without warning, lets `damage` change its files, and starts it again.
    pub async fn kill_and(&mut self, damage: impl FnOnce(&Path)) {
        self.kill();
        damage(&self.folder.path().join("js/jetstream/$G/streams"));
        self.start_again().await;
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again on the same port and files.
    pub async fn start_again(&mut self) {
        let port = self.url.rsplit_once(':').unwrap().1.parse().unwrap();
        (self.process, self.url) = launch(&self.program, self.folder.path(), &self.settings, port).await;
        eventually("the test is connected again", || async { self.client.flush().await.is_ok() }).await;
    }

    pub async fn publish(&self, subject: &str, payload: Vec<u8>) -> u64 {
        let context = jetstream::new(self.client.clone());
        context.publish(subject.to_owned(), payload.into()).await.unwrap().await.unwrap().sequence
    }

    async fn log(&self, subject: LogSubject, payload: Vec<u8>) {
        self.publish(&subject.to_subject(&cell()), payload).await;
    }

    pub async fn control(&self, control: &Control) {
        self.log(LogSubject::Control, serde_json::to_vec(control).unwrap()).await;
    }

    pub async fn request(&self, request: &Request) {
        self.log(LogSubject::Request("research".parse().unwrap()), serde_json::to_vec(request).unwrap()).await;
    }

    /// Announces the host.
    pub async fn inventory(&self) {
        let gpus = (0..GPUS as u8).map(gpu).collect();
        let inventory = Inventory {
            schema_version: 1,
            host: host(),
            epoch: 1,
            sequence: 1,
            revision: 1,
            sent_at: EventTime(now_ms() * 1_000_000),
            hostname: "gpu-1".to_owned(),
            agent_version: "test".to_owned(),
            source: "sim".to_owned(),
            interval_ms: 500,
            placement: Default::default(),
            cpu_cores: None,
            ram_bytes: None,
            gpus,
        };
        self.log(LogSubject::Inventory(host()), serde_json::to_vec(&inventory).unwrap()).await;
    }

    /// Sends a frame every half second, as a host does, until the feed is dropped. Its first sequence is `from`.
    pub fn feed(&self, from: u64) -> Feed {
        let client = self.client.clone();
        Feed(tokio::spawn(async move {
            let mut beat = tokio::time::interval(std::time::Duration::from_millis(500));
            for sequence in from.. {
                beat.tick().await;
                let subject = LogSubject::Sample(host()).to_subject(&cell());
                client.publish(subject, frame(sequence).encode().into()).await.unwrap();
            }
        }))
    }

    /// Deletes the newest messages of the LOG.
    pub async fn lose_newest(&self, count: u64) {
        let stream = jetstream::new(self.client.clone()).get_stream(LOG).await.unwrap();
        let last = stream.cached_info().state.last_sequence;
        for sequence in last - count + 1..=last {
            assert!(stream.delete_message(sequence).await.unwrap(), "{sequence} was not deleted");
        }
    }

    /// Deletes the LOG and makes an equal one.
    pub async fn recreate_log(&self) {
        let context = jetstream::new(self.client.clone());
        let config = context.get_stream(LOG).await.unwrap().cached_info().config.clone();
        context.delete_stream(LOG).await.unwrap();
        context.create_stream(config).await.unwrap();
    }

    /// A message of the LOG: subject, payload, append time (ns UTC).
    pub async fn log_message(&self, sequence: u64) -> (String, Vec<u8>, i64) {
        let message = jetstream::new(self.client.clone()).get_stream(LOG).await.unwrap().get_raw_message(sequence).await.unwrap();
        (message.subject.to_string(), message.payload.to_vec(), message.time.unix_timestamp_nanos() as i64)
    }

    /// The last sequence of the LOG.
    pub async fn log_len(&self) -> u64 {
        jetstream::new(self.client.clone()).get_stream(LOG).await.unwrap().cached_info().state.last_sequence
    }

    /// Takes everything before a sequence out of the LOG, as its limits do with time.
    pub async fn trim_log(&self, first: u64) {
        let stream = jetstream::new(self.client.clone()).get_stream(LOG).await.unwrap();
        stream.purge().sequence(first).await.unwrap();
    }

    /// The exact bytes of all outputs.
    pub async fn out_bytes(&self) -> Vec<Vec<u8>> {
        let stream = jetstream::new(self.client.clone()).get_stream(OUT).await.unwrap();
        let mut all = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            all.push(stream.get_raw_message(sequence).await.unwrap().payload.to_vec());
        }
        all
    }

    /// Makes OUT anew with another message in the place of one output.
    pub async fn replace_output(&self, number: u64, payload: &[u8]) {
        let context = jetstream::new(self.client.clone());
        let stream = context.get_stream(OUT).await.unwrap();
        let info = stream.cached_info().clone();
        let mut all = Vec::new();
        for sequence in 1..=info.state.last_sequence {
            let message = stream.get_raw_message(sequence).await.unwrap();
            let payload = if sequence == number { payload.to_vec() } else { message.payload.to_vec() };
            all.push((message.subject.to_string(), payload));
        }
        context.delete_stream(OUT).await.unwrap();
        context.create_stream(info.config).await.unwrap();
        for (subject, payload) in all {
            self.publish(&subject, payload).await;
        }
    }

    /// How many outputs stand in OUT.
    pub async fn out_len(&self) -> u64 {
        jetstream::new(self.client.clone()).get_stream(OUT).await.unwrap().cached_info().state.last_sequence
    }

    /// Whether the LOG holds a message on a subject.
    pub async fn holds(&self, subject: &str) -> bool {
        jetstream::new(self.client.clone()).get_stream(LOG).await.unwrap().get_last_raw_message_by_subject(subject).await.is_ok()
    }

    /// Every event in OUT.
    pub async fn outputs(&self) -> Vec<serde_json::Value> {
        let stream = jetstream::new(self.client.clone()).get_stream(OUT).await.unwrap();
        let mut all = Vec::new();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            all.push(serde_json::from_slice(&stream.get_raw_message(sequence).await.unwrap().payload).unwrap());
        }
        all
    }

    /// Waits until OUT holds so many events of a kind.
    pub async fn outputs_of(&self, kind: &str, count: usize) {
        let what = format!("{count} × {kind} in OUT");
        eventually(&what, || async { self.outputs().await.iter().filter(|event| event["type"] == kind).count() >= count }).await;
    }

    /// Checks that output n is message n and that no id comes twice; gives the numbers of the decisions.
    pub async fn check_that_out_is_dense(&self) -> Vec<u64> {
        let outputs = self.outputs().await;
        let numbers: Vec<_> = outputs.iter().map(|event| event["outseq"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=outputs.len() as u64).collect::<Vec<_>>());
        let ids: std::collections::BTreeSet<_> = outputs.iter().map(|event| event["id"].to_string()).collect();
        assert_eq!(ids.len(), outputs.len(), "no output stands twice");
        outputs.iter().filter_map(|event| event["data"]["decision_seq"].as_u64()).collect()
    }
}

/// Frames that keep coming.
pub struct Feed(tokio::task::JoinHandle<()>);

impl Drop for Feed {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

fn frame(sequence: u64) -> Frame {
    let sample = Sample::default()
        .with(Field::UtilPercent, sequence % 100)
        .with(Field::MemoryUsedBytes, 10 << 30)
        .with(Field::MemoryTotalBytes, 80 << 30)
        .with(Field::TemperatureMk, 310_000);
    Frame {
        host: host(),
        epoch: 1,
        sequence,
        boot_id: None,
        inventory_revision: 1,
        interval_ms: 500,
        backfill: false,
        slots: (0..GPUS as u8).map(Slot).collect(),
        ticks: vec![Tick { sampled_at: EventTime(now_ms() * 1_000_000), held_ms: 500 }],
        samples: vec![sample; GPUS],
        rejected: vec![],
        rejected_more: 0,
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn launch(program: &Path, folder: &Path, settings: &str, port: i32) -> (Child, String) {
    let ports = folder.join(format!("ports-{}", port.max(0)));
    std::fs::create_dir_all(&ports).unwrap();
    let config = folder.join("nats.conf");
    let text = format!("listen: \"127.0.0.1:{port}\"\nports_file_dir: {:?}\n{settings}\n", ports.display().to_string(),);
    std::fs::write(&config, text).unwrap();
    let log = std::fs::File::create(folder.join(format!("nats-{}.log", port.max(0)))).unwrap();
    let process =
        Command::new(program).arg("-c").arg(&config).arg("--store_dir").arg(folder.join("js")).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let file = ports.join(format!("nats-server_{}.ports", process.id()));
    eventually("nats-server listens", || async { file.is_file() && std::fs::read(&file).is_ok_and(|text| text.ends_with(b"}")) }).await;
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    (process, text["nats"][0].as_str().unwrap().to_owned())
}

fn cell() -> CellId {
    "local".parse().unwrap()
}

fn host() -> HostId {
    "gpu-1".parse().unwrap()
}

fn gpu(slot: u8) -> Gpu {
    let uuid: GpuUuid = format!("GPU-00000000-0000-0000-0000-00000000000{slot}").parse().unwrap();
    Gpu {
        slot: Slot(slot),
        uuid,
        index: u16::from(slot),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        memory_total_bytes: Some(80 << 30),
        mig_parent_uuid: None,
        mig_profile: None,
        mig: None,
        arch: None,
        nvlink_domain: None,
        numa_node: None,
        pci_bus_id: None,
        driver_version: None,
        compute_capability: None,
        power_limit_mw: None,
        power_limit_max_mw: None,
        slowdown_temperature_mk: None,
    }
}

/// Runs one of the processor's tools to its end: exit code 0, standard output and standard error.
pub fn tool(broker: &Broker, data: &Path, arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_plimsoll-processor"))
        .args(arguments)
        .args(["--nats", &broker.url, "--output", "json"])
        .arg("--data-dir")
        .arg(data)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

/// The real binary.
pub struct Processor {
    process: Child,
    http: String,
    tail: String,
    stderr: PathBuf,
}

impl Processor {
    /// A started one, listening on free ports.
    pub async fn start(broker: &Broker, data: &Path, flags: &[&str]) -> Self {
        Self::start_at(&broker.url, data, flags).await
    }

    /// The same, with the one host said and allowed to take placements.
    pub async fn placing(broker: &Broker, data: &Path, flags: &[&str]) -> Self {
        let mut processor = Self::start(broker, data, flags).await;
        processor.ready().await;
        broker.control(&Control::Enrol { hosts: vec![] }).await;
        broker.inventory().await;
        processor
    }

    /// A started one that looks for its broker there.
    pub async fn start_at(broker: &str, data: &Path, flags: &[&str]) -> Self {
        std::fs::create_dir_all(data).unwrap();
        let stderr = data.join("said");
        let mut process = Command::new(env!("CARGO_BIN_EXE_plimsoll-processor"))
            .args(["--nats", broker, "--http", "127.0.0.1:0", "--tail", "127.0.0.1:0", "--log-bytes-max", "1073741824"])
            .arg("--data-dir")
            .arg(data)
            .args(flags)
            .env("PLIMSOLL_COMMIT_INTERVAL_S", "1")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line:?}"));
        assert_eq!(said["event"], "listening");
        Self { process, http: said["http"].as_str().unwrap().to_owned(), tail: said["tail"].as_str().unwrap().to_owned(), stderr }
    }

    /// What it wrote to stderr so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        use std::io::Write;
        let mut stream = std::net::TcpStream::connect(&self.http).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some((text.split(' ').nth(1)?.parse().ok()?, text))
    }

    /// Why it is not ready; the answer of /readyz.
    pub fn readiness(&self) -> (u16, String) {
        self.get("/readyz").unwrap()
    }

    pub async fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(code, _)| code == 200)
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_ready().await {
            assert!(self.process.try_wait().unwrap().is_none() && Instant::now() < deadline, "not ready: {}", self.said());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// One metric's value.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").unwrap();
        let line =
            text.lines().find(|line| line.starts_with(&format!("plimsoll_processor_{name} "))).unwrap_or_else(|| panic!("no {name} in {text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    async fn flight(&self) -> FlightServiceClient<tonic::transport::Channel> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", self.tail)).unwrap();
        FlightServiceClient::new(endpoint.connect().await.unwrap()).max_decoding_message_size(64 << 20)
    }

    /// The places (sequence, ordinal) of the first `count` or more rows of a table behind a position.
    pub async fn tail(&self, table: &str, after: u64, count: usize) -> Vec<(i64, i32)> {
        let ticket = format!("{{\"table\":\"{table}\",\"after\":{{\"epoch\":0,\"sequence\":{after}}}}}");
        let messages = self.flight().await.do_get(Ticket::new(ticket)).await.unwrap().into_inner();
        let mut batches = FlightRecordBatchStream::new_from_flight_data(messages.map_err(FlightError::from));
        let mut places = Vec::new();
        let reading = async {
            while places.len() < count {
                let batch = batches.next().await.unwrap().unwrap();
                let column = |name: &str| batch.column_by_name(name).unwrap_or_else(|| panic!("no {name}")).clone();
                let (sequences, ordinals) = (column("_seq"), column("_ordinal"));
                let sequences: &arrow::array::Int64Array = sequences.as_any().downcast_ref().unwrap();
                let ordinals: &arrow::array::Int32Array = ordinals.as_any().downcast_ref().unwrap();
                places.extend(sequences.values().iter().copied().zip(ordinals.values().iter().copied()));
            }
        };
        if tokio::time::timeout(PATIENCE, reading).await.is_err() {
            panic!("only {} of {count} rows of {table} came; {}", places.len(), self.said());
        }
        places
    }

    /// Why a ticket is refused, if it is.
    pub async fn refusal_of(&self, ticket: &str) -> Option<tonic::Status> {
        match self.flight().await.do_get(Ticket::new(ticket.to_owned())).await {
            Err(status) => Some(status),
            Ok(answer) => {
                let mut messages = answer.into_inner();
                messages.message().await.err()?.into()
            }
        }
    }

    /// Why a subscription is refused, if it is: the schema comes first, then rows or the refusal.
    pub async fn tail_refusal(&self, table: &str, after: Position) -> Option<tonic::Status> {
        let ticket = serde_json::json!({ "table": table, "after": after }).to_string();
        let mut messages = self.flight().await.do_get(Ticket::new(ticket)).await.ok()?.into_inner();
        messages.message().await.ok()?;
        messages.message().await.err()
    }

    /// The answer to `status`.
    pub async fn status(&self) -> serde_json::Value {
        let mut answers = self.flight().await.do_action(Action::new("status", "")).await.unwrap().into_inner();
        serde_json::from_slice(&answers.message().await.unwrap().unwrap().body).unwrap()
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("-TERM");
        self.exited().await
    }

    /// Freezes it (`-STOP`) or lets it go on (`-CONT`).
    pub fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// Waits until it is the active one, or stands by.
    pub async fn becomes(&self, active: bool) -> std::time::Duration {
        let began = Instant::now();
        eventually(if active { "it is active" } else { "it stands by" }, || async { self.metric("active").await == f64::from(u8::from(active)) })
            .await;
        began.elapsed()
    }

    /// The log epoch it folds in, once it answers.
    pub async fn epoch(&self) -> Option<u64> {
        if !self.is_ready().await {
            return None;
        }
        self.status().await["position"]["epoch"].as_u64()
    }

    /// Where it stands: the sequence folded and the state's hash there.
    pub async fn state(&self) -> (u64, String) {
        let status = self.status().await;
        (status["position"]["sequence"].as_u64().unwrap(), status["hash"].as_str().unwrap().to_owned())
    }

    /// Waits until it has ended.
    pub async fn exited(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running: {}", self.said());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
