//! Copies of the store: taken by hard links while it is written to, opened for reading only, recognised by a digest of the state.

use std::path::Path;

use plimsoll_fold::durable::{Digest, StateTable};
use rocksdb::DB;
use rocksdb::checkpoint::Checkpoint;

use crate::kv::{Kv, Rocks};
use crate::{COMMIT, Error, OUTPUTS, ROWS, Store, options};

impl Store {
    /// Makes a folder that holds a whole commit, the last one or one that is being written meanwhile. Files are hard links, so it costs
    /// little room and time and stops nobody. The folder must not be there yet, and lies best beside the store.
    pub fn checkpoint(&self, into: &Path) -> Result<(), Error> {
        let Kv::Rocks(Rocks { db, .. }) = &*self.kv else {
            let detail = "a store in memory has no files to link".to_owned();
            return Err(Error::Unavailable { path: self.path.clone(), detail });
        };
        let made = Checkpoint::new(db).and_then(|checkpoint| checkpoint.create_checkpoint(into));
        made.map_err(|error| Error::from_rocksdb(into, error))
    }

    /// Opens a folder without changing anything in it, even where another process has it open. Errors if there is no database.
    /// What a processor writes afterwards does not show, and what it tidies away may make reading fail.
    pub fn open_read_only(path: &Path) -> Result<Self, Error> {
        let names = StateTable::ALL.iter().map(|table| table.name()).chain([ROWS, OUTPUTS, COMMIT]);
        let cfs = options::column_families(names);
        let db = DB::open_cf_descriptors_read_only(&options::reading(), path, cfs, false).map_err(|error| Error::from_rocksdb(path, error))?;
        Ok(Self::on_disk(db, path))
    }

    /// A hash over every entry of the state: equal states have equal ones, however they were reached.
    pub fn digest(&self) -> Result<u64, Error> {
        let mut digest = Digest::default();
        for &table in StateTable::ALL {
            for entry in self.entries(table, &[]) {
                let entry = entry?;
                digest.add(table, &entry.key, entry.value.as_deref().unwrap_or_default());
            }
        }
        Ok(digest.finish())
    }
}
