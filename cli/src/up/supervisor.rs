//! Starts the parts, starts again those that end by themselves (with back-off and within a budget), and stops them in order.

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use plimsoll_schemas::control::Control;
use plimsoll_schemas::subject::LogSubject;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::up::Stop;
use crate::up::demo::{self, DemoLease};
use crate::up::folder::Folder;
use crate::up::part::{PartId, Plan};
use crate::up::report::{Event, Report};

/// At most so many restarts of one part within [`BUDGET_TIME`].
const BUDGET: usize = 5;
const BUDGET_TIME: Duration = Duration::from_secs(600);
const BACK_OFF_FIRST: Duration = Duration::from_millis(250);
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);
/// The parts drain within 10 s; one that does not is killed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(15);
const LOG_CHECK: Duration = Duration::from_secs(10);
const NATS_POLL: Duration = Duration::from_millis(50);
/// Most of a part's standard output that is looked at for its addresses.
const STDOUT_BYTES_MAX: u64 = 64 << 10;

enum News {
    Listening(PartId, Map<String, Value>),
    Exited(PartId, std::io::Result<ExitStatus>),
}

/// Everything that runs.
pub struct Supervisor {
    plan: Plan,
    folder: Folder,
    report: Report,
    stop: Stop,
    sender: mpsc::Sender<News>,
    news: mpsc::Receiver<News>,
    running: BTreeMap<PartId, u32>,
    restarts: BTreeMap<PartId, Vec<Instant>>,
    due: BTreeMap<PartId, Instant>,
    /// Where in its log the present life of a part begins.
    log_since: BTreeMap<PartId, u64>,
    ready: bool,
    demo: Option<DemoLease>,
}

impl Supervisor {
    /// Nothing runs yet.
    pub fn new(plan: Plan, folder: Folder, report: Report, stop: Stop) -> Self {
        // Each part has at most two pieces of news under way: its addresses and its end.
        let (sender, news) = mpsc::channel(2 * PartId::IN_ORDER.len());
        let (running, restarts, due, log_since) = Default::default();
        Self { plan, folder, report, stop, sender, news, running, restarts, due, log_since, ready: false, demo: None }
    }

    /// The data folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Where the parts listen.
    pub fn endpoints(&self) -> Endpoints {
        self.plan.endpoints()
    }

    /// Process ids of what runs, by part.
    pub fn pids(&self) -> BTreeMap<&'static str, u32> {
        self.running.iter().map(|(part, pid)| (part.name(), *pid)).collect()
    }

    /// Everything has been ready.
    pub fn note_ready(&mut self) {
        self.ready = true;
    }

    /// Whether everything has ever been ready in this run.
    pub fn was_ready(&self) -> bool {
        self.ready
    }

    /// The lease to give back when everything stops.
    pub fn give_back_at_stop(&mut self, lease: Option<DemoLease>) {
        self.demo = lease;
    }

    /// Starts a part for the first time in this run.
    pub fn start(&mut self, part: PartId) -> Result<(), Error> {
        self.spawn(part, true)
    }

    fn spawn(&mut self, part: PartId, fresh_log: bool) -> Result<(), Error> {
        let log = self.folder.open_log(part.name(), fresh_log)?;
        self.log_since.insert(part, self.folder.log_length(part.name()));
        let me = std::env::current_exe().map_err(Error::io("cannot tell where this program is"))?;
        let (program, arguments) = self.plan.command(part);
        let mut command = Command::new(me);
        command.arg("child").arg(std::process::id().to_string()).arg(program).args(arguments);
        // An own process group, so that Ctrl-C in a terminal reaches only `up`, which stops the parts in order.
        // Logs are files: no colours in them.
        command.env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0).kill_on_drop(true);
        let child = command.spawn().map_err(Error::io(format!("cannot start {}", part.name())))?;
        let pid = child.id().expect("a child that was not waited for has an id");
        self.running.insert(part, pid);
        self.folder.remember(&self.pids());
        self.report.say(&Event::Started { part, pid });
        tokio::spawn(tend(part, child, self.sender.clone()));
        Ok(())
    }

    /// Waits until a part takes connections; its end or a long silence is an error.
    pub async fn wait_until_listening(&mut self, part: PartId) -> Result<(), Error> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            let broker = async {
                while part == PartId::Nats && Broker::connect(&self.plan.endpoints()).await.is_err() {
                    tokio::time::sleep(NATS_POLL).await;
                }
                if part != PartId::Nats {
                    std::future::pending::<()>().await;
                }
            };
            let news = tokio::select! {
                news = self.news.recv() => news.expect("the supervisor holds a sender"),
                () = broker => {
                    let addresses = Map::from_iter([("nats".to_owned(), Value::String(self.plan.endpoints().nats))]);
                    News::Listening(part, addresses)
                }
                () = tokio::time::sleep_until(deadline) => return Err(self.died(part, format!("was not listening after {} s", LISTEN_TIMEOUT.as_secs()))),
            };
            match news {
                News::Listening(who, addresses) => {
                    self.listening(who, &addresses);
                    if who == part {
                        return Ok(());
                    }
                }
                News::Exited(who, status) => {
                    self.running.remove(&who);
                    return Err(self.died(who, format!("ended while everything was starting ({})", describe(&status))));
                }
            }
        }
    }

    /// Makes the hosts of this cell placeable: whoever starts everything on one machine owns them. The log appears when the processor has made it.
    pub async fn enrol_own_hosts(&mut self) -> Result<(), Error> {
        let broker = Broker::connect(&self.endpoints()).await?;
        let everything = Control::Enrol { hosts: Vec::new() };
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            match broker.append(&LogSubject::Control, &everything).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => tokio::time::sleep(NATS_POLL).await,
            }
        }
    }

    fn listening(&mut self, part: PartId, addresses: &Map<String, Value>) {
        self.plan.learn(part, addresses);
        self.report.say(&Event::Listening { part, addresses });
    }

    fn tail(&self, part: PartId) -> String {
        self.folder.tail(part.name(), self.log_since.get(&part).copied().unwrap_or(0))
    }

    fn died(&self, part: PartId, what: String) -> Error {
        Error::PartDied { part: part.name(), what, log: self.folder.log(part.name()), tail: self.tail(part) }
    }

    /// Keeps everything running; comes back only when a part has used up its budget of restarts. May be dropped and called again at any time.
    pub async fn watch(&mut self) -> Error {
        let mut log_check = tokio::time::interval(LOG_CHECK);
        loop {
            let next_start = self.due.iter().min_by_key(|(_, at)| **at).map(|(part, at)| (*part, *at));
            let start = async {
                match next_start {
                    Some((_, at)) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let outcome = tokio::select! {
                news = self.news.recv() => self.apply(news.expect("the supervisor holds a sender")),
                () = start => {
                    let (part, _) = next_start.expect("only a known start comes due");
                    self.due.remove(&part);
                    self.spawn(part, false)
                }
                _ = log_check.tick() => {
                    PartId::IN_ORDER.iter().for_each(|part| self.folder.bound_log(part.name()));
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                return error;
            }
        }
    }

    fn apply(&mut self, news: News) -> Result<(), Error> {
        match news {
            News::Listening(part, addresses) => self.listening(part, &addresses),
            News::Exited(part, status) => {
                self.running.remove(&part);
                let status = describe(&status);
                self.report.say(&Event::Exited { part, status: status.clone(), log: self.tail(part) });
                let now = Instant::now();
                let restarts = self.restarts.entry(part).or_default();
                restarts.retain(|at| now.duration_since(*at) < BUDGET_TIME);
                let attempt = restarts.len() + 1;
                if attempt > BUDGET {
                    return Err(self.died(part, format!("ended again ({status}) after {BUDGET} restarts in 10 min")));
                }
                restarts.push(now);
                let back_off = BACK_OFF_FIRST * (1 << (attempt - 1));
                self.due.insert(part, now + back_off);
                self.report.say(&Event::Restarting { part, after_ms: back_off.as_millis() as u64, attempt, budget: BUDGET });
            }
        }
        Ok(())
    }

    /// Stops everything in order: each part is asked, given time, and killed only if it does not end. A second signal kills at once.
    pub async fn drain(&mut self, reason: &str) {
        self.report.say(&Event::Stopping { reason });
        self.due.clear();
        if let Some(lease) = self.demo.take()
            && self.running.contains_key(&PartId::Processor)
        {
            let endpoints = self.endpoints();
            tokio::select! {
                () = demo::give_back(&endpoints, &lease) => {}
                () = self.stop.kill.cancelled() => {}
            }
        }
        for part in PartId::STOP_ORDER {
            self.stop_part(part).await;
        }
        self.folder.remember(&self.pids());
        self.report.say(&Event::Ended { data_dir: self.folder.path() });
    }

    async fn stop_part(&mut self, part: PartId) {
        self.signal(part, Signal::SIGTERM);
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        let mut killed = false;
        while self.running.contains_key(&part) {
            let kill = self.stop.kill.clone();
            tokio::select! {
                news = self.news.recv() => {
                    if let News::Exited(who, status) = news.expect("the supervisor holds a sender") {
                        self.running.remove(&who);
                        self.report.say(&Event::Stopped { part: who, status: describe(&status) });
                    }
                }
                () = kill.cancelled(), if !killed => {
                    self.signal(part, Signal::SIGKILL);
                    killed = true;
                }
                () = tokio::time::sleep_until(deadline), if !killed => {
                    self.signal(part, Signal::SIGKILL);
                    killed = true;
                }
            }
        }
    }

    fn signal(&self, part: PartId, signal: Signal) {
        if let Some(pid) = self.running.get(&part).and_then(|pid| i32::try_from(*pid).ok()) {
            // A part that has just ended by itself cannot be signalled; its end is on its way.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

/// Passes on what a part says about its addresses, and its end.
async fn tend(part: PartId, mut child: Child, news: mpsc::Sender<News>) {
    let stdout = child.stdout.take().expect("its standard output was asked for");
    let mut lines = BufReader::new(stdout.take(STDOUT_BYTES_MAX)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Ok(said) = serde_json::from_str::<Map<String, Value>>(&line)
            && said.get("event").and_then(Value::as_str) == Some("listening")
        {
            let addresses = said.into_iter().filter(|(name, _)| name != "event" && name != "service").collect();
            // Only fails where the supervisor is gone, and then nobody asks.
            let _ = news.send(News::Listening(part, addresses)).await;
        }
    }
    let _ = news.send(News::Exited(part, child.wait().await)).await;
}

fn describe(status: &std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
