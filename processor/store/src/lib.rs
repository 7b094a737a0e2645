//! The fold's checkpoint in RocksDB: state, rows and outputs with their position, in one batch. It is a cache of the log: it may be
//! deleted at any time, and what is damaged is set aside and rebuilt. SQL never reads it.
//!
//! Read in this order: [`key`] (how keys are laid out), [`codec`] (how values are), [`blocks`] (how rows are), `kv` (what lies below), [`Store`],
//! [`mod@checkpoint`] (copies of it).

pub mod blocks;
pub mod checkpoint;
pub mod codec;
mod error;
pub mod key;
mod kv;
mod options;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_fold::durable::{Entry, StateTable};
use plimsoll_fold::rows::EncodedRow;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::row::{PlacedRow, Table};
use plimsoll_schemas::time::LogTime;
use rocksdb::DB;
use serde::{Deserialize, Serialize};

pub use error::Error;

use blocks::{Block, Blocks, Key};
use kv::{Kv, Memory, Rocks};
/// The format this build reads and writes.
pub use plimsoll_fold::durable::FORMAT;

const ROWS: &str = "rows";
const OUTPUTS: &str = "outputs";
const COMMIT: &str = "commit";
const COMMIT_KEY: &[u8] = b"commit";
const PRUNED_KEY: &[u8] = b"pruned";
const STANDING_KEY: &[u8] = b"standing";
/// What a batch needs beside key and value, bytes.
const ENTRY_BYTES: usize = 16;
/// Marks of commits this many sequences old are forgotten.
const MARKS_KEPT: u64 = 1_000_000;

/// What a commit says about itself: where the state stands and how to recognise the log it was folded from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Version of the fold's logic that made the state.
    pub logic: u32,
    /// Position of the last record folded.
    pub position: Position,
    /// When the LOG stream was created, ns UTC: another one is another log.
    pub log_created_at_ns: i64,
    /// Hash of the message at `position`: the same sequence with other bytes is another log.
    pub message_hash: u64,
    /// Log time of the last record folded.
    pub logged_at: LogTime,
    /// The state's rolling hash.
    pub hash: u64,
    /// Number of the last output.
    pub out_seq: u64,
    /// Number of the last decision.
    pub decision_seq: u64,
    /// The newest manifest the log has told of.
    pub sealed: Option<Sealed>,
}

/// A manifest and the last position whose rows it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Manifest version.
    pub version: u64,
    /// Position.
    pub position: Position,
}

/// The open database of one cell and replica. Cheap to clone; every call blocks, so it belongs on a thread that may.
#[derive(Debug, Clone)]
pub struct Store {
    kv: Arc<Kv>,
    path: PathBuf,
}

impl Store {
    /// Opens the database in a folder, creating it if there is none. The error says whether the folder is in use, damaged or out of reach.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let names = StateTable::ALL.iter().map(|table| table.name()).chain([ROWS, OUTPUTS, COMMIT]);
        let cfs = options::column_families(names);
        let db = DB::open_cf_descriptors(&options::database(), path, cfs).map_err(|error| Error::from_rocksdb(path, error))?;
        Ok(Self::on_disk(db, path))
    }

    fn on_disk(db: DB, path: &Path) -> Self {
        Self { kv: Arc::new(Kv::Rocks(Rocks { db, path: path.to_owned() })), path: path.to_owned() }
    }

    /// An empty database in memory, for simulations: the same store above another bottom.
    pub fn in_memory() -> Self {
        Self { kv: Arc::new(Kv::Memory(Memory::default())), path: PathBuf::from("(memory)") }
    }

    /// Another database in memory with the same content; of one on disk, a [`Store::checkpoint`] is that.
    pub fn copy_in_memory(&self) -> Self {
        match &*self.kv {
            Kv::Memory(memory) => Self { kv: Arc::new(Kv::Memory(memory.copy())), path: self.path.clone() },
            Kv::Rocks(_) => Self::in_memory(),
        }
    }

    /// Makes the next write of a database in memory fail, before anything of it is applied or after all of it was.
    pub fn fail_next_write(&self, applied: bool) {
        match &*self.kv {
            Kv::Memory(memory) => memory.fail_next_write(applied),
            Kv::Rocks(_) => {}
        }
    }

    /// The last commit; `None` in a fresh database.
    pub fn last_commit(&self) -> Result<Option<Commit>, Error> {
        let Some(bytes) = self.kv.get(COMMIT, COMMIT_KEY)? else { return Ok(None) };
        codec::commit(&bytes).map(Some).map_err(|error| error.at(&self.path))
    }

    /// Up to which output OUT was known to be right at the last commit: most often up to its last one; 0 in a fresh database.
    pub fn standing(&self) -> Result<u64, Error> {
        let damaged = |bytes: Vec<u8>| Error::Damaged { path: self.path.clone(), detail: format!("what stands in OUT has {} bytes", bytes.len()) };
        match self.kv.get(COMMIT, STANDING_KEY)? {
            Some(bytes) => bytes.try_into().map(u64::from_be_bytes).map_err(damaged),
            None => Ok(self.last_commit()?.map_or(0, |commit| commit.out_seq)),
        }
    }

    /// The last commit and every entry of the state at it; `None` in a fresh database.
    pub fn load(&self) -> Result<Option<(Commit, Vec<Entry>)>, Error> {
        let Some(commit) = self.last_commit()? else { return Ok(None) };
        let entries = StateTable::ALL.iter().flat_map(|&table| self.entries(table, &[])).collect::<Result<_, _>>()?;
        Ok(Some((commit, entries)))
    }

    /// The entries of a table of state from a key on, in order.
    pub fn entries(&self, table: StateTable, from: &[u8]) -> impl Iterator<Item = Result<Entry, Error>> {
        self.kv.scan(table.name(), from, None).map(move |pair| {
            let (key, value) = pair?;
            Ok(Entry { table, key: key.into_vec(), value: Some(value.into_vec()) })
        })
    }

    /// Writes one commit: state, rows, outputs and position stand together or not at all. No fsync: a tail lost in a power cut is folded again.
    /// Every output so far is known to stand in OUT.
    pub fn commit<'a>(
        &self,
        commit: &Commit,
        entries: &[Entry],
        rows: impl IntoIterator<Item = EncodedRow<'a>>,
        outputs: impl IntoIterator<Item = &'a Output>,
    ) -> Result<(), Error> {
        self.commit_in_a_hurry(commit, commit.out_seq, entries, rows, outputs)
    }

    /// The same, where only the outputs up to `standing` are known to stand in OUT: the others have to be compared when this is opened again.
    pub fn commit_in_a_hurry<'a>(
        &self,
        commit: &Commit,
        standing: u64,
        entries: &[Entry],
        rows: impl IntoIterator<Item = EncodedRow<'a>>,
        outputs: impl IntoIterator<Item = &'a Output>,
    ) -> Result<(), Error> {
        let entry_bytes = |entry: &Entry| ENTRY_BYTES + entry.key.len() + entry.value.as_ref().map_or(0, Vec::len);
        let mut blocks = Blocks::default();
        rows.into_iter().for_each(|row| blocks.add(&row));
        let blocks = blocks.finish();
        let block_bytes = |(key, value): &(Key, Vec<u8>)| ENTRY_BYTES + key.len() + value.len();
        let mut batch = self.kv.batch(entries.iter().map(entry_bytes).sum::<usize>() + blocks.iter().map(block_bytes).sum::<usize>());
        for entry in entries {
            match &entry.value {
                Some(value) => batch.put(entry.table.name(), &entry.key, value),
                None => batch.delete(entry.table.name(), &entry.key),
            }
        }
        for (key, value) in &blocks {
            batch.put(ROWS, key, value);
        }
        for output in outputs {
            batch.put(OUTPUTS, &key::output(output.out_seq), &codec::encode_output(output));
        }
        batch.put(COMMIT, COMMIT_KEY, &codec::encode_commit(commit));
        if standing < commit.out_seq {
            batch.put(COMMIT, STANDING_KEY, &standing.to_be_bytes());
        } else {
            batch.delete(COMMIT, STANDING_KEY);
        }
        let Position { epoch, sequence } = commit.position;
        batch.put(COMMIT, &key::mark(commit.position), &commit.message_hash.to_be_bytes());
        let oldest = Position { epoch, sequence: sequence.saturating_sub(MARKS_KEPT) };
        batch.delete_range(COMMIT, &key::mark(Position::default()), &key::mark(oldest));
        batch.write()
    }

    /// Positions of the commits of a log epoch, oldest first, each with the hash of the message there: how far another log is still the same.
    pub fn marks(&self, epoch: LogEpoch) -> impl Iterator<Item = Result<(Position, u64), Error>> {
        let until = key::mark(Position { epoch: LogEpoch(epoch.0.saturating_add(1)), sequence: 0 }).to_vec();
        self.kv.scan(COMMIT, &key::mark(Position { epoch, sequence: 0 }), Some(until)).map(|pair| {
            let (key, value) = pair?;
            let read = || Some((key::marked(&key)?, u64::from_be_bytes(value[..].try_into().ok()?)));
            read().ok_or_else(|| Error::Damaged { path: self.path.clone(), detail: "a commit's mark has a wrong length".to_owned() })
        })
    }

    /// The rows of a table with `after < position <= up_to`, in order of place. The view is the moment of the call: later commits and prunes do not show.
    pub fn rows(&self, table: Table, after: Position, up_to: Position) -> impl Iterator<Item = Result<PlacedRow, Error>> {
        let blocks = self.kv.scan(ROWS, &key::after(table, after), Some(key::end(table).to_vec()));
        let opened = blocks.map(move |pair| Block::open(table, &pair?.1).map_err(|detail| self.no_row(&detail)));
        let wanted = opened.take_while(move |block| block.as_ref().ok().and_then(Block::begins).is_none_or(|begins| begins <= up_to));
        wanted.flat_map(move |block| match block {
            Ok(block) => self.rows_of(&block, after, up_to),
            Err(error) => vec![Err(error)],
        })
    }

    fn rows_of(&self, block: &Block, after: Position, up_to: Position) -> Vec<Result<PlacedRow, Error>> {
        let wanted = |row: &Result<EncodedRow<'_>, String>| row.as_ref().map_or(true, |row| after < row.position && row.position <= up_to);
        let decode = |row: Result<EncodedRow<'_>, String>| row?.decode().map_err(|error| error.to_string());
        block.rows().filter(wanted).map(|row| decode(row).map_err(|detail| self.no_row(&detail))).collect()
    }

    fn no_row(&self, detail: &str) -> Error {
        Error::Damaged { path: self.path.clone(), detail: format!("row: {detail}") }
    }

    /// The outputs kept from `out_seq` on, in order.
    pub fn outputs_from(&self, out_seq: u64) -> impl Iterator<Item = Result<Output, Error>> {
        self.kv.scan(OUTPUTS, &key::output(out_seq), None).map(|pair| codec::output(&pair?.1).map_err(|error| error.at(&self.path)))
    }

    /// Forgets the rows of every table up to a position, as far as whole blocks have no others, and remembers that it did.
    pub fn prune_rows(&self, up_to: Position) -> Result<(), Error> {
        if up_to <= self.pruned()? {
            return Ok(());
        }
        let mut batch = self.kv.batch(0);
        for &table in Table::ALL {
            batch.delete_range(ROWS, &key::first(table), &key::after(table, up_to));
        }
        batch.put(COMMIT, PRUNED_KEY, &codec::encode_position(up_to));
        batch.write()
    }

    /// Up to which position rows were forgotten: whoever needs older ones must look in the archive.
    pub fn pruned(&self) -> Result<Position, Error> {
        match self.kv.get(COMMIT, PRUNED_KEY)? {
            Some(bytes) => codec::position(&bytes).map_err(|error| error.at(&self.path)),
            None => Ok(Position::default()),
        }
    }

    /// Forgets the outputs below `out_seq`.
    pub fn prune_outputs(&self, below: u64) -> Result<(), Error> {
        let mut batch = self.kv.batch(0);
        batch.delete_range(OUTPUTS, &key::output(0), &key::output(below));
        batch.write()
    }

    /// Bytes of its files, without the write-ahead log. Absent where RocksDB does not say, and in memory.
    pub fn bytes(&self) -> Option<u64> {
        let Kv::Rocks(rocks) = &*self.kv else { return None };
        StateTable::ALL.iter().map(|table| table.name()).chain([ROWS, OUTPUTS, COMMIT]).map(|name| rocks.bytes(name)).sum()
    }
}

/// Renames a damaged folder to `<path>.damaged-<n>` with the first free n, and returns that. A person may look into it; nothing reads it again.
pub fn set_aside(path: &Path) -> std::io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged-");
    let mut number = 1u32;
    loop {
        let mut candidate = name.clone();
        candidate.push(number.to_string());
        let aside = PathBuf::from(candidate);
        if !aside.try_exists()? {
            std::fs::rename(path, &aside)?;
            return Ok(aside);
        }
        number += 1;
    }
}

#[cfg(test)]
mod tests;
