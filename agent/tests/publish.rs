//! The real agent against a real nats-server: what it says arrives, in order, once; an outage of the broker loses nothing that fits the
//! buffer, and what does not fit is named.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::StreamExt;
use plimsoll_schemas::ctl::{Class, Ctl, Repair};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::inventory::EventKind;
use plimsoll_schemas::record::{Body, decode};
use plimsoll_schemas::subject::{self, log_stream};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

fn nats_server() -> Option<PathBuf> {
    let named = std::env::var_os("NATS_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = std::path::absolute("../.tools").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path).chain([tools.join("bin"), tools]).map(|folder| folder.join("nats-server")).find(|file| file.is_file())
    });
    if found.is_none() {
        eprintln!("skipped: no nats-server in $NATS_SERVER, PATH or .tools");
    }
    found
}

/// A port that was free a moment ago: the broker has to come back on the same one.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

fn start_broker(program: &Path, port: u16, folder: &Path) -> Child {
    Command::new(program)
        .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("nats-server starts")
}

struct Agent {
    child: Child,
    http: String,
}

impl Agent {
    async fn start(port: u16, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_plimsoll-agent"))
            .args(["--nats", &format!("nats://127.0.0.1:{port}"), "--http", "127.0.0.1:0", "--cell", "test"])
            .args(flags)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the agent starts");
        let line = BufReader::new(child.stdout.take().expect("piped")).lines().next_line().await.expect("readable").expect("a line");
        let listening: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&listening["event"], &listening["service"]), (&"listening".into(), &"agent".into()));
        Self { child, http: listening["http"].as_str().expect("an address").to_owned() }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.http);
        let fetch = move || {
            let client = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
            let mut answer = client.get(&url).call().expect("the agent answers");
            (answer.status().as_u16(), answer.body_mut().read_to_string().expect("text"))
        };
        tokio::task::spawn_blocking(fetch).await.expect("no panic")
    }

    async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    async fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().expect("running") as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signalled");
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("in time").expect("waited for");
        assert!(status.success(), "{status}");
    }
}

/// Waits until something is so.
async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let mut turn = tokio::time::interval(Duration::from_millis(50));
    let wait = async {
        while !check().await {
            turn.tick().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "in vain: {what}");
}

async fn stream(port: u16) -> async_nats::jetstream::stream::Stream {
    let options = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let client = options.connect(format!("nats://127.0.0.1:{port}")).await.expect("connects");
    let settings = log_stream(&"test".parse().expect("valid"), -1);
    let config = async_nats::jetstream::stream::Config { name: settings.name, subjects: vec![settings.subjects], ..Default::default() };
    let context = async_nats::jetstream::new(client);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match context.get_or_create_stream(config.clone()).await {
            Ok(stream) => return stream,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "no stream: {error}"),
        }
    }
}

/// What the log says of one host.
#[derive(Debug, Default)]
struct Told {
    frames: BTreeSet<u64>,
    frames_twice: usize,
    gone: BTreeSet<u64>,
    events: BTreeSet<u64>,
    inventories: usize,
    stopping: bool,
}

async fn read_log(stream: &mut async_nats::jetstream::stream::Stream) -> BTreeMap<String, Told> {
    let cell: CellId = "test".parse().expect("valid");
    let count = stream.info().await.expect("info").state.messages;
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await.expect("a consumer").messages().await.expect("messages");
    let mut hosts: BTreeMap<String, Told> = BTreeMap::new();
    for _ in 0..count {
        let message = messages.next().await.expect("more").expect("readable");
        match decode(&cell, &message.subject, &message.payload) {
            Body::Frame(frame) => {
                let told = hosts.entry(frame.host.to_string()).or_default();
                assert!(told.inventories > 0, "a frame of {} before any inventory", frame.host);
                told.frames_twice += usize::from(!told.frames.insert(frame.sequence));
            }
            Body::Inventory(inventory) => {
                let told = hosts.entry(inventory.host.to_string()).or_default();
                told.inventories += 1;
                told.events.insert(inventory.sequence);
            }
            Body::Event(event) => {
                let told = hosts.entry(event.host.to_string()).or_default();
                told.events.insert(event.sequence);
                told.stopping |= event.kind == EventKind::Stopping;
                if let EventKind::Gap { from_sequence, to_sequence, .. } = event.kind {
                    (from_sequence..=to_sequence).for_each(|sequence| assert!(told.gone.insert(sequence), "{sequence} is lost twice"));
                }
            }
            body @ (Body::Request(..) | Body::Control(_) | Body::Tick(_) | Body::Check(_) | Body::Epoch(_) | Body::Refused(_)) => {
                panic!("{} carries {body:?}", message.subject)
            }
        }
    }
    hosts
}

fn is_dense(numbers: &BTreeSet<u64>) -> bool {
    numbers.first() == Some(&1) && numbers.last() == Some(&(numbers.len() as u64))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_restarted_broker_loses_nothing_that_fits_the_buffer() {
    let Some(program) = nats_server() else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let agent = Agent::start(port, &["--sim-hosts", "3", "--sim-gpus", "2", "--interval-ms", "50"]).await;
    assert_eq!(agent.get("/healthz").await.0, 200, "healthy without a broker");
    assert_eq!(agent.get("/readyz").await.0, 503, "not ready without a broker");

    let mut broker = start_broker(&program, port, folder.path());
    let mut log = stream(port).await;
    until("ready", async || agent.get("/readyz").await.0 == 200).await;
    until("frames", async || agent.metric("plimsoll_agent_published_total{class=\"sample\"}").await > 60.0).await;
    broker.kill().await.expect("killed");
    until("a backlog", async || agent.metric("plimsoll_agent_buffer_records").await > 100.0).await;

    let _broker = start_broker(&program, port, folder.path());
    until("a second connection", async || agent.metric("plimsoll_agent_connects_total").await > 1.0).await;
    until("an empty backlog", async || agent.metric("plimsoll_agent_buffer_records").await < 20.0).await;
    agent.stop().await;

    let hosts = read_log(&mut log).await;
    assert_eq!(hosts.len(), 3);
    for (host, told) in &hosts {
        assert!(is_dense(&told.frames), "{host}: {:?}", told.frames);
        assert!(is_dense(&told.events), "{host}: {:?}", told.events);
        assert!(told.frames.len() > 50 && told.inventories >= 2 && told.stopping && told.gone.is_empty(), "{host}: {told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_buffer_is_dropped_counted_and_named() {
    let Some(program) = nats_server() else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let agent = Agent::start(port, &["--sim-hosts", "20", "--sim-gpus", "8", "--interval-ms", "20", "--buffer-mb", "1"]).await;
    until("drops", async || agent.metric("plimsoll_agent_dropped_total").await > 500.0).await;
    assert!(agent.metric("plimsoll_agent_buffer_bytes").await <= f64::from(1 << 20));
    let _broker = start_broker(&program, port, folder.path());
    let mut log = stream(port).await;
    until("gap events", async || agent.metric("plimsoll_agent_events_total{kind=\"gap\"}").await >= 20.0).await;
    // What a busy machine cannot send within the time for stopping would be neither received nor named.
    until("a backlog that is sent", async || agent.metric("plimsoll_agent_buffer_records").await < 200.0).await;
    agent.stop().await;

    let hosts = read_log(&mut log).await;
    assert_eq!(hosts.len(), 20);
    for (host, told) in &hosts {
        assert!(!told.gone.is_empty(), "{host} lost nothing");
        assert!(told.frames.is_disjoint(&told.gone), "{host}: lost and received");
        let all: BTreeSet<u64> = told.frames.union(&told.gone).copied().collect();
        assert!(is_dense(&all), "{host}: received and lost are not 1..n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_script_reaches_the_log() {
    let Some(program) = nats_server() else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let script = folder.path().join("faults.json");
    let faults = r#"[{"kind":"xid","code":79,"gpus":[1],"from_tick":5},{"kind":"duplicate","from_tick":8,"for_ticks":4},
                     {"kind":"late","ticks":3,"from_tick":14},{"kind":"vanish","gpus":[0],"from_tick":20,"for_ticks":5}]"#;
    std::fs::write(&script, faults).expect("written");
    let _broker = start_broker(&program, port, folder.path());
    let mut log = stream(port).await;
    let flags = ["--sim-hosts", "1", "--sim-gpus", "2", "--interval-ms", "50", "--sim-ticks", "40", "--sim-faults", script.to_str().expect("text")];
    let agent = Agent::start(port, &flags).await;
    until("all frames", async || agent.metric("plimsoll_agent_published_total{class=\"sample\"}").await >= 44.0).await;
    for kind in ["xid", "gpu_lost", "gpu_returned"] {
        assert_eq!(agent.metric(&format!("plimsoll_agent_events_total{{kind=\"{kind}\"}}")).await, 1.0, "{kind}");
    }
    agent.stop().await;
    let told = &read_log(&mut log).await["sim-0001"];
    assert!(is_dense(&told.frames) && told.frames.len() == 40 && told.frames_twice == 4, "{told:?}");
}

/// A frame as it stands in the log.
struct Logged {
    stream_sequence: u64,
    epoch: u64,
    payload: Vec<u8>,
}

/// The frames of the log by (host, sequence); of those that stand twice the last.
async fn frames(stream: &mut async_nats::jetstream::stream::Stream) -> BTreeMap<(String, u64), Logged> {
    let cell: CellId = "test".parse().expect("valid");
    let count = stream.info().await.expect("info").state.messages;
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await.expect("a consumer").messages().await.expect("messages");
    let mut frames = BTreeMap::new();
    for _ in 0..count {
        let message = messages.next().await.expect("more").expect("readable");
        if let Body::Frame(frame) = decode(&cell, &message.subject, &message.payload) {
            let stream_sequence = message.info().expect("of a stream").stream_sequence;
            let logged = Logged { stream_sequence, epoch: frame.epoch, payload: message.payload.to_vec() };
            frames.insert((frame.host.to_string(), frame.sequence), logged);
        }
    }
    frames
}

async fn ask(port: u16, host: &str, epoch: u64, class: Class, from_sequence: u64, to_sequence: u64) {
    let client = async_nats::connect(format!("nats://127.0.0.1:{port}")).await.expect("connects");
    let repair = Ctl::Repair(Repair { host: host.parse().expect("valid"), epoch, class, from_sequence, to_sequence });
    let to = subject::ctl(&"test".parse().expect("valid"), &host.parse().expect("valid"));
    client.publish(to, serde_json::to_vec(&repair).expect("plain data").into()).await.expect("published");
    client.flush().await.expect("flushed");
}

/// The gap events of the log: (host, class, epoch, from, to).
async fn gaps(stream: &mut async_nats::jetstream::stream::Stream) -> Vec<(String, Class, u64, u64, u64)> {
    let cell: CellId = "test".parse().expect("valid");
    let count = stream.info().await.expect("info").state.messages;
    let config = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut messages = stream.create_consumer(config).await.expect("a consumer").messages().await.expect("messages");
    let mut gaps = Vec::new();
    for _ in 0..count {
        let message = messages.next().await.expect("more").expect("readable");
        if let Body::Event(event) = decode(&cell, &message.subject, &message.payload)
            && let EventKind::Gap { from_sequence, to_sequence, class, of_epoch, .. } = event.kind
        {
            gaps.push((event.host.to_string(), class, of_epoch.unwrap_or(event.epoch), from_sequence, to_sequence));
        }
    }
    gaps
}

/// Loses five frames of one host in the broker and asks for them.
async fn check_repair(hosts: &str) {
    let Some(program) = nats_server() else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let _broker = start_broker(&program, port, folder.path());
    let mut log = stream(port).await;
    let agent = Agent::start(port, &["--sim-hosts", hosts, "--sim-gpus", "2", "--interval-ms", "100"]).await;
    until("frames", async || frames(&mut log.clone()).await.contains_key(&("sim-0001".to_owned(), 20))).await;
    let before = frames(&mut log).await;
    let lost: Vec<(String, u64)> = (5..10).map(|sequence| ("sim-0001".to_owned(), sequence)).collect();
    for key in &lost {
        assert!(log.delete_message(before[key].stream_sequence).await.expect("deleted"));
    }
    let epoch = before[&lost[0]].epoch;
    // Asked twice, answered once; what was never numbered is nobody's to answer for.
    ask(port, "sim-0001", epoch, Class::Sample, 5, 9).await;
    ask(port, "sim-0001", epoch, Class::Sample, 5, 9).await;
    ask(port, "sim-0001", epoch, Class::Sample, 1_000_000, 2_000_000).await;
    ask(port, "sim-0001", epoch - 1, Class::Event, 3, 4).await;
    until("five records again", async || agent.metric("plimsoll_agent_published_total{class=\"repair\"}").await >= 5.0).await;
    until("the word that the rest is gone", async || gaps(&mut log.clone()).await.len() == 1).await;
    assert_eq!(gaps(&mut log).await, [("sim-0001".to_owned(), Class::Event, epoch - 1, 3, 4)]);
    let after = frames(&mut log).await;
    for key in &lost {
        assert!(after[key].payload == before[key].payload, "{key:?} came with other bytes");
        assert!(after[key].stream_sequence > before[key].stream_sequence);
    }
    assert!(agent.metric("plimsoll_agent_kept_records").await > 20.0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_lost_of_a_host_is_published_again_with_the_same_bytes() {
    check_repair("1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_lost_of_one_of_many_hosts_is_published_again_with_the_same_bytes() {
    check_repair("40").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_longer_kept_is_said_to_be_gone() {
    let Some(program) = nats_server() else { return };
    let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let _broker = start_broker(&program, port, folder.path());
    let mut log = stream(port).await;
    let agent = Agent::start(port, &["--sim-hosts", "1", "--sim-gpus", "2", "--interval-ms", "50", "--kept-mb", "0"]).await;
    until("frames", async || frames(&mut log.clone()).await.len() > 20).await;
    let epoch = frames(&mut log).await.into_values().next().expect("a frame").epoch;
    ask(port, "sim-0001", epoch, Class::Sample, 3, 7).await;
    until("a gap event", async || !gaps(&mut log.clone()).await.is_empty()).await;
    assert_eq!(gaps(&mut log).await, [("sim-0001".to_owned(), Class::Sample, epoch, 3, 7)]);
    assert_eq!(agent.metric("plimsoll_agent_repair_gone_total").await, 5.0);
    agent.stop().await;
}
