//! What the store needs of a database: RocksDB, or memory where a simulation wants thousands of stores that die on command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rocksdb::{ColumnFamily, DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use crate::Error;

/// Key and value.
pub type Pair = (Box<[u8]>, Box<[u8]>);

/// Changes to one database that stand together or not at all. RocksDB's own batch takes them as they come: copying millions of keys and values
/// once more would cost as much as writing them.
pub enum Batch<'a> {
    /// Of one on disk.
    Rocks(&'a Rocks, WriteBatch),
    /// Of one in memory.
    Memory(&'a Memory, Vec<Op>),
}

/// A change.
#[derive(Debug)]
pub enum Op {
    /// Sets a key's value.
    Put(&'static str, Vec<u8>, Vec<u8>),
    /// Takes a key away.
    Delete(&'static str, Vec<u8>),
    /// From the first key up to, not including, the second.
    DeleteRange(&'static str, Vec<u8>, Vec<u8>),
}

impl Batch<'_> {
    /// Sets a key's value.
    pub fn put(&mut self, cf: &'static str, key: &[u8], value: &[u8]) {
        match self {
            Self::Rocks(rocks, all) => all.put_cf(rocks.cf(cf), key, value),
            Self::Memory(_, ops) => ops.push(Op::Put(cf, key.to_vec(), value.to_vec())),
        }
    }

    /// Takes a key away.
    pub fn delete(&mut self, cf: &'static str, key: &[u8]) {
        match self {
            Self::Rocks(rocks, all) => all.delete_cf(rocks.cf(cf), key),
            Self::Memory(_, ops) => ops.push(Op::Delete(cf, key.to_vec())),
        }
    }

    /// Takes the keys from `from` up to, not including, `until` away.
    pub fn delete_range(&mut self, cf: &'static str, from: &[u8], until: &[u8]) {
        match self {
            Self::Rocks(rocks, all) => all.delete_range_cf(rocks.cf(cf), from, until),
            Self::Memory(_, ops) => ops.push(Op::DeleteRange(cf, from.to_vec(), until.to_vec())),
        }
    }

    /// Writes it. No fsync: a tail lost in a power cut is folded again.
    pub fn write(self) -> Result<(), Error> {
        match self {
            Self::Rocks(rocks, all) => rocks.write(all),
            Self::Memory(memory, ops) => memory.write(ops),
        }
    }
}

/// A database of named column families.
#[derive(Debug)]
pub enum Kv {
    /// On disk.
    Rocks(Rocks),
    /// In memory.
    Memory(Memory),
}

impl Kv {
    /// The value of a key.
    pub fn get(&self, cf: &'static str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Rocks(rocks) => rocks.get(cf, key),
            Self::Memory(memory) => Ok(memory.tables().data.get(cf).and_then(|table| table.get(key).cloned())),
        }
    }

    /// An empty batch with room for about so many bytes: one that grows is copied each time.
    pub fn batch(&self, bytes: usize) -> Batch<'_> {
        match self {
            Self::Rocks(rocks) => Batch::Rocks(rocks, WriteBatch::with_capacity_bytes(bytes)),
            Self::Memory(memory) => Batch::Memory(memory, Vec::new()),
        }
    }

    /// The pairs from a key on, up to but not including `until` if there is one, in order.
    pub fn scan<'a>(&'a self, cf: &'static str, from: &[u8], until: Option<Vec<u8>>) -> Box<dyn Iterator<Item = Result<Pair, Error>> + 'a> {
        match self {
            Self::Rocks(rocks) => rocks.scan(cf, from, until),
            Self::Memory(memory) => Box::new(memory.scan(cf, from, until).into_iter().map(Ok)),
        }
    }
}

/// RocksDB in a folder.
#[derive(Debug)]
pub struct Rocks {
    /// The database.
    pub db: DB,
    /// Its folder.
    pub path: PathBuf,
}

impl Rocks {
    fn get(&self, cf: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        self.db.get_cf(self.cf(cf), key).map_err(|error| self.broken(error))
    }

    fn write(&self, all: WriteBatch) -> Result<(), Error> {
        self.db.write_opt(all, &WriteOptions::default()).map_err(|error| self.broken(error))
    }

    fn scan<'a>(&'a self, cf: &str, from: &[u8], until: Option<Vec<u8>>) -> Box<dyn Iterator<Item = Result<Pair, Error>> + 'a> {
        let mut options = ReadOptions::default();
        if let Some(until) = until {
            options.set_iterate_upper_bound(until);
        }
        let pairs = self.db.iterator_cf_opt(self.cf(cf), options, IteratorMode::From(from, Direction::Forward));
        Box::new(pairs.map(|pair| pair.map_err(|error| self.broken(error))))
    }

    /// Bytes of a column family's files. Absent where RocksDB does not say.
    pub fn bytes(&self, cf: &str) -> Option<u64> {
        self.db.property_int_value_cf(self.cf(cf), rocksdb::properties::TOTAL_SST_FILES_SIZE).ok().flatten()
    }

    fn cf(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every column family was opened by these names")
    }

    fn broken(&self, error: rocksdb::Error) -> Error {
        Error::from_rocksdb(&self.path, error)
    }
}

/// Tables in memory. A write can be made to fail, before anything of it is applied or after all of it was.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    data: BTreeMap<&'static str, BTreeMap<Vec<u8>, Vec<u8>>>,
    /// The next write fails; `true` = after it was applied.
    fails: Option<bool>,
}

impl Memory {
    /// The same tables again.
    pub fn copy(&self) -> Self {
        Self(Mutex::new(Tables { data: self.tables().data.clone(), fails: None }))
    }

    /// Makes the next write fail, `applied` or not.
    pub fn fail_next_write(&self, applied: bool) {
        self.tables().fails = Some(applied);
    }

    fn write(&self, ops: Vec<Op>) -> Result<(), Error> {
        let mut tables = self.tables();
        let fails = tables.fails.take();
        if fails != Some(false) {
            for op in ops {
                match op {
                    Op::Put(cf, key, value) => {
                        tables.data.entry(cf).or_default().insert(key, value);
                    }
                    Op::Delete(cf, key) => {
                        tables.data.entry(cf).or_default().remove(&key);
                    }
                    Op::DeleteRange(cf, from, until) => tables.data.entry(cf).or_default().retain(|key, _| *key < from || *key >= until),
                }
            }
        }
        match fails {
            None => Ok(()),
            Some(applied) => {
                let detail = if applied { "it was told to fail after this write" } else { "it was told to fail before this write" };
                Err(Error::Unavailable { path: Path::new("(memory)").to_owned(), detail: detail.to_owned() })
            }
        }
    }

    fn scan(&self, cf: &str, from: &[u8], until: Option<Vec<u8>>) -> Vec<Pair> {
        let tables = self.tables();
        let Some(table) = tables.data.get(cf) else { return Vec::new() };
        let inside = table.range(from.to_vec()..).take_while(|(key, _)| until.as_ref().is_none_or(|until| *key < until));
        inside.map(|(key, value)| (key.clone().into(), value.clone().into())).collect()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
