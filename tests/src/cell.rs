//! A cell as an operator runs one that must not stand still: a broker, two replicas of the processor, a query service beside each, and an agent.
//! The query service beside the first replica follows only that one; the one beside the second follows whichever lives.
//! The test keeps them running itself, because `plimsoll up` gives up a part that has ended five times in ten minutes.

pub mod acks;
pub mod damage;
pub mod disk;
pub mod judge;
pub mod keeper;
pub mod ledger;
pub mod moments;
pub mod numbering;
pub mod tenant;
pub mod witness;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::pipeline::{binaries, eventually, nats_server, scrape};
use keeper::{Keeper, Program};
use plimsoll_schemas::subject::servers;

/// The log of the cell.
pub const LOG: &str = "PLIMSOLL_local_LOG";
/// Its outputs.
pub const OUT: &str = "PLIMSOLL_local_OUT";
/// Names of the two replicas.
pub const REPLICAS: [&str; 2] = ["a", "b"];
/// The broker's settings in `plimsoll up`.
const BROKER: &str = include_str!("../../deploy/nats/up.conf");
const SHIPPED_SYNC: &str = "sync_interval: 1s";
const SHIPPED_NAME: &str = "server_name: plimsoll-up";
/// Ports are looked for from here up: below those that the system gives to outgoing connections, so that a port is still free when its part
/// is started again.
const PORTS_FROM: u16 = 20_000;
const PORTS: u16 = 12_000;
const PORTS_APART: u16 = 60;

/// One process of the cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// One of the broker's servers.
    Nats(usize),
    /// A replica of the processor.
    Processor(usize),
    /// The query service beside that replica.
    Query(usize),
    /// All hosts.
    Agent,
}

/// How large the simulated fleet is.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Hosts.
    pub hosts: u32,
    /// GPUs on each.
    pub gpus: u32,
    /// Spacing of samples, ms.
    pub interval_ms: u32,
}

/// How the broker keeps what it acknowledges.
#[derive(Debug, Clone, Copy)]
pub struct Broker<'a> {
    /// Its `sync_interval`; absent = as in `plimsoll up`.
    pub sync_interval: Option<&'a str>,
    /// Its store's folder.
    pub store: &'a Path,
    /// Servers: 1, or a cluster of 3 on which each stream stands three times.
    pub servers: usize,
}

/// A running cell.
#[derive(Debug)]
pub struct Cell {
    nats: Vec<Keeper>,
    processors: [Keeper; 2],
    queries: [Keeper; 2],
    agent: Keeper,
    /// Where the broker listens: a server, or several separated by commas.
    pub url: String,
    /// Where each replica has its state.
    pub states: [PathBuf; 2],
    http: [String; 2],
    pg: [String; 2],
}

impl Cell {
    /// Starts everything in a folder and waits until both replicas are ready.
    pub async fn start(folder: &Path, fleet: Fleet, broker: Broker<'_>) -> Result<Self> {
        let [http_a, http_b, tail_a, tail_b, sql_a, sql_b, pg_a, pg_b, agent, broker_ports @ ..] = free_ports::<15>()?;
        let here = |port: u16| format!("127.0.0.1:{port}");
        let (nats, url) = start_broker(folder, broker, broker_ports)?;
        let archive = folder.join("archive").display().to_string();
        let copies = if broker.servers == 1 { "1" } else { "3" };
        let keep =
            |name: &str, program: PathBuf, arguments: Vec<String>| Keeper::start(Program { name: name.to_owned(), program, arguments }, folder);
        let processor = |at: usize, http: u16, tail: u16| {
            let data = folder.join(data_of(at)).display().to_string();
            let (http, tail) = (here(http), here(tail));
            let of_cell = ["--nats", &url, "--replica", REPLICAS[at], "--data-dir", &data, "--archive", &archive, "--stream-replicas", copies];
            let own = ["--http", &http, "--tail", &tail, "--seal-interval-s", "30", "--checkpoint-interval-s", "120", "--commit-interval-s", "5"];
            keep(&format!("processor-{}", REPLICAS[at]), binaries().join("plimsoll-processor"), words(&[&of_cell[..], &own[..]].concat()))
        };
        let query = |at: usize, tails: &[u16], http: u16, pg: u16| {
            let tails = tails.iter().map(|tail| format!("http://{}", here(*tail))).collect::<Vec<_>>().join(",");
            let (http, pg) = (here(http), here(pg));
            let arguments = ["--archive", &archive, "--tail", &tails, "--http", &http, "--pg", &pg, "--max-rows", "2000000", "--deadline-s", "300"];
            keep(&format!("query-{}", REPLICAS[at]), binaries().join("plimsoll-query"), words(&arguments))
        };
        let (state, hosts, gpus) = (folder.join("agent").display().to_string(), fleet.hosts.to_string(), fleet.gpus.to_string());
        let (on, interval_ms) = (here(agent), fleet.interval_ms.to_string());
        let arguments = ["--nats", &url, "--http", &on, "--state-dir", &state, "--interval-ms", &interval_ms];
        let source = ["--source", "sim", "--sim-hosts", &hosts, "--sim-gpus", &gpus];
        let agent = keep("agent", binaries().join("plimsoll-agent"), words(&[&arguments[..], &source[..]].concat()));
        let cell = Self {
            nats,
            processors: [processor(0, http_a, tail_a), processor(1, http_b, tail_b)],
            queries: [query(0, &[tail_a], sql_a, pg_a), query(1, &[tail_b, tail_a], sql_b, pg_b)],
            agent,
            states: [0, 1].map(|at| folder.join(data_of(at)).join("state")),
            url,
            http: [http_a, http_b].map(|port| format!("http://{}", here(port))),
            pg: [pg_a, pg_b].map(here),
        };
        cell.both_are_ready().await?;
        Ok(cell)
    }

    /// Whoever keeps a part running.
    pub fn keeper(&self, part: Part) -> &Keeper {
        match part {
            Part::Nats(at) => &self.nats[at],
            Part::Processor(at) => &self.processors[at],
            Part::Query(at) => &self.queries[at],
            Part::Agent => &self.agent,
        }
    }

    /// All of them.
    pub fn keepers(&self) -> impl Iterator<Item = &Keeper> {
        self.nats.iter().chain([&self.agent]).chain(&self.processors).chain(&self.queries)
    }

    /// Kills parts with SIGKILL at the same moment and waits for their ends. They are started again after `down`.
    pub async fn kill(&self, parts: &[Part], down: Duration) -> Result<()> {
        let mut lives = Vec::new();
        for &part in parts {
            lives.push((part, self.keeper(part).kill(down).await?));
        }
        for (part, mut life) in lives {
            while !self.keeper(part).killed(life).await? {
                life = self.keeper(part).kill(down).await?;
            }
        }
        Ok(())
    }

    /// Waits until both replicas have caught up, know OUT and are ready.
    pub async fn both_are_ready(&self) -> Result<()> {
        for (replica, http) in REPLICAS.iter().zip(&self.http) {
            eventually(async || scrape(&format!("{http}/readyz")).await.map_err(|error| error.context(format!("{replica} is not ready")))).await?;
        }
        Ok(())
    }

    /// A metric of a replica.
    pub async fn metric(&self, replica: usize, name: &str) -> Result<u64> {
        let text = scrape(&format!("{}/metrics", self.http[replica])).await?;
        let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next()).with_context(|| format!("no {name}"))?;
        Ok(value.parse::<f64>()? as u64)
    }

    /// A Postgres connection to the query service beside a replica.
    pub async fn postgres(&self, replica: usize) -> Result<tokio_postgres::Client> {
        let (host, port) = self.pg[replica].rsplit_once(':').context("host:port")?;
        let config = format!("host={host} port={port} user=test dbname=plimsoll connect_timeout=10");
        let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Appends a control record.
    pub async fn control(&self, control: &Value) -> Result<()> {
        let jetstream = async_nats::jetstream::new(connect(&self.url).await?);
        jetstream.publish("plimsoll.local.log.control", serde_json::to_vec(control)?.into()).await?.await?;
        Ok(())
    }

    /// Nobody ended without having been killed or told to, wherever the broker was.
    pub fn nobody_gave_up(&self) -> Result<()> {
        for keeper in self.keepers() {
            if let Some(end) = keeper.ends().into_iter().find(|end| !end.killed && !end.stopped) {
                bail!("{} ended by itself ({}):\n{}", keeper.name(), end.status, end.last_words);
            }
        }
        Ok(())
    }

    /// Stops everything.
    pub async fn stop(self) -> Result<()> {
        for keeper in [&self.agent].into_iter().chain(&self.processors).chain(&self.queries).chain(&self.nats) {
            keeper.stop().await?;
        }
        Ok(())
    }
}

/// Connects to any server of a list.
pub async fn connect(url: &str) -> Result<async_nats::Client> {
    Ok(async_nats::connect(servers(url)).await?)
}

fn start_broker(folder: &Path, broker: Broker<'_>, ports: [u16; 6]) -> Result<(Vec<Keeper>, String)> {
    let program = nats_server().context("no nats-server: run `make test`, which unpacks one, or set NATS_SERVER")?;
    ensure!(BROKER.contains(SHIPPED_SYNC) && BROKER.contains(SHIPPED_NAME), "the broker's settings no longer say {SHIPPED_SYNC} and {SHIPPED_NAME}");
    let sync = broker.sync_interval.map_or(SHIPPED_SYNC.to_owned(), |interval| format!("sync_interval: {interval}"));
    let (ports, routes) = ports.split_at(3);
    let mut keepers = Vec::new();
    for at in 0..broker.servers {
        let (name, config) = (format!("nats-{at}"), folder.join(format!("nats-{at}.conf")));
        std::fs::write(&config, BROKER.replace(SHIPPED_SYNC, &sync).replace(SHIPPED_NAME, &format!("server_name: {name}")))?;
        let (config, store) = (config.display().to_string(), broker.store.join(&name).display().to_string());
        let (port, cluster) = (ports[at].to_string(), format!("nats://127.0.0.1:{}", routes[at]));
        let mut arguments = words(&["--config", &config, "--port", &port, "--store_dir", &store]);
        if broker.servers > 1 {
            let all = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
            arguments.extend(words(&["--cluster_name", "cell", "--cluster", &cluster, "--routes", &all]));
        }
        keepers.push(Keeper::start(Program { name, program: program.clone(), arguments }, folder));
    }
    let url = ports[..broker.servers].iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
    Ok((keepers, url))
}

fn data_of(replica: usize) -> String {
    format!("replica-{}", REPLICAS[replica])
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|word| (*word).to_owned()).collect()
}

/// Ports that nobody listens on, apart from those of other test processes.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut ports = Vec::new();
    // Far from those of a test that runs beside this one: a port is free for a moment when its part has just been killed.
    let begin = (std::process::id() % u32::from(PORTS / PORTS_APART)) as u16 * PORTS_APART;
    for offset in 0..PORTS {
        let port = PORTS_FROM + (begin + offset) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            ports.push(port);
        }
        if let Ok(ports) = <[u16; N]>::try_from(ports.clone()) {
            return Ok(ports);
        }
    }
    bail!("no {N} free ports from {PORTS_FROM} up")
}
