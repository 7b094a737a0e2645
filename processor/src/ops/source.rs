//! Where the tools read: the cell's streams, which must be there, its archive and a processor's store.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use plimsoll_archive::Archive;
use plimsoll_schemas::id::{CellId, LogEpoch, Position};

use crate::error::Error;
use crate::streams::{self, Streams};

/// Flags of every tool.
#[derive(Debug, Clone, Args)]
pub struct Flags {
    /// nats-server to read from, or several of one cluster separated by commas.
    #[arg(long, env = "PLIMSOLL_NATS", global = true, default_value = "nats://127.0.0.1:14222")]
    pub nats: String,
    /// The cell.
    #[arg(long, env = "PLIMSOLL_CELL", global = true, default_value = "local")]
    pub cell: CellId,
    /// Data folder of a processor: its store (in state/) and, unless told otherwise, its archive (in archive/).
    #[arg(long, env = "PLIMSOLL_DATA_DIR", global = true, default_value = "plimsoll-data")]
    pub data_dir: PathBuf,
    /// Folder or file:// URL of the archive, where checkpoints are.
    #[arg(long, env = "PLIMSOLL_ARCHIVE", global = true)]
    pub archive: Option<String>,
}

impl Flags {
    /// The folder of the processor's store.
    pub fn state_path(&self) -> PathBuf {
        self.data_dir.join("state")
    }

    /// The archive.
    pub fn archive(&self) -> Result<Archive, Error> {
        let url = self.archive.clone().unwrap_or_else(|| self.data_dir.join("archive").to_string_lossy().into_owned());
        Archive::open(&url, &self.cell).map_err(|error| Error::Archive { url, detail: error.to_string() })
    }

    /// The streams. Errors if they are not there: a tool creates nothing.
    pub async fn streams(&self) -> Result<Streams, Error> {
        streams::attach(&self.nats, &self.cell, "tool").await
    }

    /// A folder for this process alone, not made yet.
    pub fn scratch(&self, what: &str) -> PathBuf {
        std::env::temp_dir().join(format!("plimsoll-{what}-{}", std::process::id()))
    }
}

/// A scratch folder that goes with its owner.
#[derive(Debug)]
pub struct Scratch(pub PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A rest in the folder for temporary files harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A place in the log as people write it: `SEQUENCE`, or `EPOCH:SEQUENCE` as messages show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub Position);

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (epoch, sequence) = text.split_once(':').unwrap_or(("0", text));
        match (epoch.parse(), sequence.parse()) {
            (Ok(epoch), Ok(sequence)) => Ok(Self(Position { epoch: LogEpoch(epoch), sequence })),
            (Err(_), _) | (_, Err(_)) => Err(format!("{text:?} is no place in the log: SEQUENCE or EPOCH:SEQUENCE")),
        }
    }
}

/// From where a log is folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The log's first record, from an empty state.
    First,
    /// The newest checkpoint.
    Checkpoint,
    /// The newest checkpoint at or before a place; without one the log's first record.
    Place(Position),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "first" => Ok(Self::First),
            "checkpoint" => Ok(Self::Checkpoint),
            place => place.parse().map(|Place(position)| Self::Place(position)).map_err(|error| format!("{error}, first or checkpoint")),
        }
    }
}

/// Up to where a log is folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The log's end at the moment of asking.
    End,
    /// A sequence.
    Sequence(u64),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "end" => Ok(Self::End),
            place => place.parse().map(|Place(position)| Self::Sequence(position.sequence)).map_err(|error| format!("{error}, or end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_messages_show_them() {
        let at = |epoch, sequence| Position { epoch: LogEpoch(epoch), sequence };
        assert_eq!("17".parse(), Ok(Place(at(0, 17))));
        assert_eq!(at(2, 17).to_string().parse(), Ok(Place(at(2, 17))));
        assert_eq!("first".parse(), Ok(From::First));
        assert_eq!("checkpoint".parse(), Ok(From::Checkpoint));
        assert_eq!("0:9".parse(), Ok(From::Place(at(0, 9))));
        assert_eq!("end".parse(), Ok(To::End));
        assert_eq!("12".parse(), Ok(To::Sequence(12)));
        assert!("last".parse::<From>().is_err_and(|error| error.contains("\"last\"") && error.contains("checkpoint")));
        assert!("-1".parse::<To>().is_err());
    }
}
