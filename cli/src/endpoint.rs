//! Where the pipeline is: flag, else environment, else what a running `up` wrote down, else the fixed ports.

use std::path::{Path, PathBuf};

use clap::Args;
use plimsoll_schemas::id::CellId;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// The folder `up` keeps everything in, unless told otherwise.
pub const DATA_DIR: &str = "plimsoll-data";
const FILE: &str = "endpoints.json";

/// Flags that every command understands.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// The cell that is spoken to [default: local]
    #[arg(long, env = "PLIMSOLL_CELL", global = true)]
    cell: Option<CellId>,
    /// Its broker, or several servers of one cluster separated by commas [default: nats://127.0.0.1:14222]
    #[arg(long, env = "PLIMSOLL_NATS", value_name = "URL", global = true)]
    nats: Option<String>,
    /// Its query service: host:port, or a postgres:// URL [default: 127.0.0.1:8432]
    #[arg(long, env = "PLIMSOLL_PG", value_name = "ADDRESS", global = true)]
    pg: Option<String>,
    /// Its processor's HTTP [default: http://127.0.0.1:9411]
    #[arg(long, env = "PLIMSOLL_PROCESSOR", value_name = "URL", global = true)]
    processor: Option<String>,
    /// The data folder of a `plimsoll up` on this machine; its addresses are used where no flag gives one
    #[arg(long, env = "PLIMSOLL_DATA_DIR", value_name = "FOLDER", default_value = DATA_DIR, global = true)]
    data_dir: PathBuf,
}

/// The addresses of one pipeline, as `up` writes them down for the other commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The cell.
    pub cell: CellId,
    /// The broker.
    pub nats: String,
    /// The query service's Postgres wire.
    pub pg: String,
    /// The query service's HTTP.
    pub query: String,
    /// The processor's HTTP.
    pub processor: String,
    /// The agent's HTTP.
    pub agent: String,
}

impl Endpoints {
    fn fixed() -> Self {
        Self {
            cell: "local".parse().expect("a plain word is a token"),
            nats: "nats://127.0.0.1:14222".to_owned(),
            pg: "127.0.0.1:8432".to_owned(),
            query: "http://127.0.0.1:8600".to_owned(),
            processor: "http://127.0.0.1:9411".to_owned(),
            agent: "http://127.0.0.1:9410".to_owned(),
        }
    }

    /// Writes the addresses into a data folder.
    pub fn save(&self, data_dir: &Path) -> Result<(), Error> {
        let path = data_dir.join(FILE);
        let text = serde_json::to_string_pretty(self).expect("plain strings always serialise");
        std::fs::write(&path, text + "\n").map_err(Error::io(format!("cannot write {}", path.display())))
    }

    fn load(data_dir: &Path) -> Result<Option<Self>, Error> {
        let path = data_dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()))(error)),
        };
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::Usage(format!("{} is damaged ({error}): delete it, the next `plimsoll up` writes it anew", path.display())))
    }
}

/// What an `up` on this machine wrote into its data folder; absent if there was none.
pub fn of_running_up(data_dir: &Path) -> Result<Option<Endpoints>, Error> {
    Endpoints::load(data_dir)
}

impl Flags {
    /// The addresses to use.
    pub fn resolve(&self) -> Result<Endpoints, Error> {
        let mut found = Endpoints::load(&self.data_dir)?.unwrap_or_else(Endpoints::fixed);
        if let Some(cell) = &self.cell {
            found.cell = cell.clone();
        }
        if let Some(nats) = &self.nats {
            found.nats = nats.clone();
        }
        if let Some(pg) = &self.pg {
            found.pg = pg.clone();
        }
        if let Some(processor) = &self.processor {
            found.processor = processor.clone();
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(data_dir: &Path, pg: Option<&str>) -> Flags {
        Flags { cell: None, nats: None, pg: pg.map(str::to_owned), processor: None, data_dir: data_dir.to_owned() }
    }

    #[test]
    fn a_flag_wins_over_what_up_wrote_and_that_over_the_fixed_ports() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(flags(dir.path(), None).resolve().expect("no file is fine"), Endpoints::fixed());
        let written = Endpoints { pg: "127.0.0.1:5".to_owned(), ..Endpoints::fixed() };
        written.save(dir.path()).expect("writable");
        assert_eq!(flags(dir.path(), None).resolve().expect("readable"), written);
        assert_eq!(flags(dir.path(), Some("other:6")).resolve().expect("readable").pg, "other:6");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join(FILE), "{").expect("writable");
        let error = flags(dir.path(), None).resolve().expect_err("damaged").to_string();
        assert!(error.contains("endpoints.json") && error.contains("delete it"), "{error}");
    }
}
