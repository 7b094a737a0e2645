//! What `up` says: sentences for people, or one JSON line per state change for programs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use plimsoll_schemas::id::CellId;
use plimsoll_schemas::out::Decided;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::commands::decisions;
use crate::endpoint::{DATA_DIR, Endpoints};
use crate::output::Table;
use crate::up::part::PartId;

/// One state change.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The command was understood and nothing is in the way.
    Starting {
        /// Of this program.
        version: &'a str,
        /// The cell.
        cell: &'a CellId,
        /// Where everything is kept.
        data_dir: &'a Path,
        /// Where telemetry comes from.
        source: String,
    },
    /// A process was started.
    Started {
        /// Which.
        part: PartId,
        /// Its process id.
        pid: u32,
    },
    /// A part takes connections.
    Listening {
        /// Which.
        part: PartId,
        /// Its addresses, by what they are for.
        addresses: &'a Map<String, Value>,
    },
    /// Everything runs, but not all of it is ready.
    Waiting {
        /// What is missing.
        waiting_for: &'a str,
    },
    /// All parts are ready and the first samples are folded.
    Ready {
        /// How long it took.
        seconds: f64,
        /// All addresses.
        #[serde(flatten)]
        endpoints: &'a Endpoints,
        /// Process ids by part.
        pids: BTreeMap<&'static str, u32>,
        /// Where everything is kept.
        data_dir: &'a Path,
    },
    /// The demonstration request was decided.
    Decided {
        /// The decision as it stands in OUT.
        decision: &'a Decided,
    },
    /// Rows that SQL gave.
    Rows {
        /// What they show.
        about: &'static str,
        /// The question.
        sql: &'a str,
        /// The answer.
        rows: Value,
        /// The same for people.
        #[serde(skip)]
        table: &'a Table,
    },
    /// A demonstration did not come about; nothing depends on it.
    NotShown {
        /// Why.
        why: String,
    },
    /// A part ended by itself.
    Exited {
        /// Which.
        part: PartId,
        /// How.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// It will be started again.
    Restarting {
        /// Which.
        part: PartId,
        /// After how long.
        after_ms: u64,
        /// Which restart within the budget's time.
        attempt: usize,
        /// The budget.
        budget: usize,
    },
    /// The end has begun.
    Stopping {
        /// Why.
        reason: &'a str,
    },
    /// A part has ended as it was told.
    Stopped {
        /// Which.
        part: PartId,
        /// How.
        status: String,
    },
    /// Everything has ended; the data is kept.
    Ended {
        /// Where.
        data_dir: &'a Path,
    },
}

/// Where events go.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Lines for programs.
    pub json: bool,
}

impl Report {
    /// Says what happened. A reader that has gone away stops nothing.
    pub fn say(&self, event: &Event) {
        let text = if self.json { serde_json::to_string(event).expect("events are plain data") } else { sentence(event) };
        self.line(&text);
    }

    fn line(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    }

    /// Prints the addresses and what a newcomer may do next; programs know.
    pub fn things_to_try(&self, endpoints: &Endpoints, data_dir: &Path) {
        if self.json {
            return;
        }
        let me = std::env::args().next().unwrap_or_else(|| "plimsoll".to_owned());
        let (host, port) = endpoints.pg.rsplit_once(':').unwrap_or((&endpoints.pg, "8432"));
        let dir = if data_dir == Path::new(DATA_DIR) { String::new() } else { format!(" --data-dir {}", data_dir.display()) };
        self.line(&format!(
            "\n  SQL         psql -h {host} -p {port}\n  SQL (HTTP)  {query}/sql\n  NATS        {nats}   decisions: plimsoll.{cell}.out.decision.>\n  metrics     {processor}/metrics  {agent}/metrics  {query}/metrics\n\n\
             Three things to try, in another terminal:\n  \
             {me} sql{dir} \"select model, state, count(*) from devices group by 1, 2 order by 1\"\n  \
             {me} place{dir} --gpus 2 --memory 40GiB --tenant research\n  \
             {me} decisions{dir} --follow\n\nCtrl-C stops everything and keeps the data in {}.",
            data_dir.display(),
            query = endpoints.query,
            nats = endpoints.nats,
            cell = endpoints.cell,
            processor = endpoints.processor,
            agent = endpoints.agent,
        ));
    }
}

fn sentence(event: &Event) -> String {
    match event {
        Event::Starting { version, cell, data_dir, source } => {
            format!("plimsoll {version}: cell {cell}, data in {}\n  telemetry from {source}", data_dir.display())
        }
        Event::Started { part, pid } => format!("  {:<10} started, process {pid}", part.name()),
        Event::Listening { part, addresses } => {
            let addresses: Vec<String> = addresses.iter().map(|(name, address)| format!("{name} {}", address.as_str().unwrap_or("?"))).collect();
            format!("  {:<10} listening: {}", part.name(), addresses.join(", "))
        }
        Event::Waiting { waiting_for } => format!("  waiting: {waiting_for}"),
        Event::Ready { seconds, .. } => format!("ready after {seconds:.1} s"),
        Event::Decided { decision } => {
            format!("\nA placement decision, number {}: {} {}", decision.decision_seq, decision.outcome.code(), decisions::placed(decision))
        }
        Event::Rows { about, table, .. } => format!("\n{about}\n{}", table.text("  ").trim_end()),
        Event::NotShown { why } => format!("\n({why})"),
        Event::Exited { part, status, log } => format!("{} ended by itself ({status}); the end of its log:\n{}", part.name(), log.trim_end()),
        Event::Restarting { part, after_ms, attempt, budget } => {
            format!("{} starts again in {:.1} s (restart {attempt} of at most {budget} in 10 min)", part.name(), *after_ms as f64 / 1e3)
        }
        Event::Stopping { reason } => format!("\nstopping: {reason}"),
        Event::Stopped { part, status } => format!("  {:<10} stopped ({status})", part.name()),
        Event::Ended { data_dir } => format!("the data is kept in {}; `plimsoll up` goes on from there", data_dir.display()),
    }
}
