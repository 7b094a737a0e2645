//! The parts of the pipeline: in which order they start, and with which command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use plimsoll_schemas::id::CellId;
use serde::Serialize;

use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::up::nats;
use crate::up::ports::Ports;

/// `up` seals often, so that a stranger sees Parquet within a minute; a deployment leaves the default of 15 min.
const SEAL_INTERVAL_S: &str = "30";
/// `up` is stopped and started often, and its state is small.
const CHECKPOINT_INTERVAL_S: &str = "300";

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartId {
    /// The broker.
    Nats,
    /// Log to state, decisions, sealed files.
    Processor,
    /// SQL.
    Query,
    /// Telemetry.
    Agent,
}

impl PartId {
    /// The order of starting: each needs only those before it.
    pub const IN_ORDER: [Self; 4] = [Self::Nats, Self::Processor, Self::Query, Self::Agent];
    /// The order of stopping: no more samples, then everything folded, committed and sealed, then no more answers, then the log.
    pub const STOP_ORDER: [Self; 4] = [Self::Agent, Self::Processor, Self::Query, Self::Nats];

    /// Its name in messages, logs and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Processor => "processor",
            Self::Query => "query",
            Self::Agent => "agent",
        }
    }
}

/// Where telemetry comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This machine's GPUs.
    Nvml,
    /// dcgm-exporter endpoints.
    Dcgm(Vec<String>),
    /// A recorded trace.
    Replay(PathBuf),
    /// A simulated fleet.
    Sim {
        /// How many hosts.
        hosts: u32,
        /// GPUs on each.
        gpus: u32,
    },
}

impl Source {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Nvml => "this machine's GPUs (NVML)".to_owned(),
            Self::Dcgm(urls) => format!("dcgm-exporter at {}", urls.join(", ")),
            Self::Replay(file) => format!("the trace {}", file.display()),
            Self::Sim { hosts, gpus } => format!("a simulated fleet of {hosts} hosts with {gpus} GPUs each"),
        }
    }
}

/// True where NVIDIA's driver is loaded and its library can be found: then this machine's own GPUs are the default source.
pub fn has_nvidia_driver() -> bool {
    let device = ["/dev/nvidiactl", "/dev/dxg"].iter().any(|path| Path::new(path).exists());
    let folders =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib", "/usr/local/nvidia/lib64"];
    device && folders.iter().any(|folder| Path::new(folder).join("libnvidia-ml.so.1").exists())
}

/// Everything that command lines are made of.
#[derive(Debug)]
pub struct Plan {
    cell: CellId,
    data_dir: PathBuf,
    nats_server: PathBuf,
    programs: PathBuf,
    source: Source,
    /// The ports; learnt from the parts where they chose them.
    pub ports: Ports,
}

impl Plan {
    /// Checks that all programs are there and writes the broker's configuration.
    pub fn new(cell: CellId, data_dir: PathBuf, nats_server: PathBuf, source: Source, ports: Ports) -> Result<Self, Error> {
        let me = std::env::current_exe().map_err(Error::io("cannot tell where this program is"))?;
        let programs = me.parent().expect("a program lies in a folder").to_owned();
        for name in ["plimsoll-processor", "plimsoll-query", "plimsoll-agent"] {
            let path = programs.join(name);
            if !path.is_file() {
                return Err(Error::ProgramMissing { path });
            }
        }
        let plan = Self { cell, data_dir, nats_server, programs, source, ports };
        let config = plan.nats_config();
        std::fs::write(&config, nats::CONFIG).map_err(Error::io(format!("cannot write {}", config.display())))?;
        Ok(plan)
    }

    fn nats_config(&self) -> PathBuf {
        self.data_dir.join("nats.conf")
    }

    /// Program and arguments of a part.
    pub fn command(&self, part: PartId) -> (PathBuf, Vec<OsString>) {
        let on = |port: u16| format!("127.0.0.1:{port}");
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| arguments.extend([OsString::from(flag), value.as_ref().to_owned()]);
        let program = match part {
            PartId::Nats => {
                add("--config", &self.nats_config());
                add("--port", &self.ports.nats.to_string());
                add("--store_dir", &self.data_dir.join("nats"));
                self.nats_server.clone()
            }
            PartId::Processor => {
                add("--nats", &self.nats_url());
                add("--cell", &self.cell.as_str());
                add("--data-dir", &self.data_dir);
                add("--http", &on(self.ports.processor));
                add("--tail", &on(self.ports.tail));
                add("--seal-interval-s", &SEAL_INTERVAL_S);
                add("--checkpoint-interval-s", &CHECKPOINT_INTERVAL_S);
                self.programs.join("plimsoll-processor")
            }
            PartId::Query => {
                add("--archive", &self.data_dir.join("archive"));
                add("--tail", &format!("http://{}", on(self.ports.tail)));
                add("--cell", &self.cell.as_str());
                add("--http", &on(self.ports.query));
                add("--pg", &on(self.ports.pg));
                self.programs.join("plimsoll-query")
            }
            PartId::Agent => {
                add("--nats", &self.nats_url());
                add("--cell", &self.cell.as_str());
                add("--http", &on(self.ports.agent));
                add("--state-dir", &self.data_dir.join("agent"));
                self.add_source(&mut add);
                self.programs.join("plimsoll-agent")
            }
        };
        (program, arguments)
    }

    fn add_source(&self, add: &mut impl FnMut(&str, &dyn AsRef<std::ffi::OsStr>)) {
        match &self.source {
            Source::Nvml => add("--source", &"nvml"),
            Source::Dcgm(urls) => {
                add("--source", &"dcgm");
                for url in urls {
                    add("--dcgm", url);
                }
            }
            Source::Replay(file) => {
                add("--source", &"replay");
                add("--replay", file);
            }
            Source::Sim { hosts, gpus } => {
                add("--source", &"sim");
                add("--sim-hosts", &hosts.to_string());
                add("--sim-gpus", &gpus.to_string());
            }
        }
    }

    fn nats_url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.ports.nats)
    }

    /// Where the parts listen, as far as it is known.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints {
            cell: self.cell.clone(),
            nats: self.nats_url(),
            pg: format!("127.0.0.1:{}", self.ports.pg),
            query: format!("http://127.0.0.1:{}", self.ports.query),
            processor: format!("http://127.0.0.1:{}", self.ports.processor),
            agent: format!("http://127.0.0.1:{}", self.ports.agent),
        }
    }

    /// Takes over the ports that a part says it listens on, so that it gets the same ones when it is started again.
    pub fn learn(&mut self, part: PartId, listening: &serde_json::Map<String, serde_json::Value>) {
        let port = |name: &str, current: u16| -> u16 {
            listening
                .get(name)
                .and_then(|address| address.as_str())
                .and_then(|address| address.rsplit_once(':'))
                .and_then(|(_, port)| port.parse().ok())
                .unwrap_or(current)
        };
        match part {
            PartId::Nats => {}
            PartId::Processor => {
                self.ports.processor = port("http", self.ports.processor);
                self.ports.tail = port("tail", self.ports.tail);
            }
            PartId::Query => {
                self.ports.query = port("http", self.ports.query);
                self.ports.pg = port("pg", self.ports.pg);
            }
            PartId::Agent => self.ports.agent = port("http", self.ports.agent),
        }
    }
}
