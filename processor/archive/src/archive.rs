//! The archive of one cell: commits files and the manifest that names them, and reads manifests back.
//!
//! A manifest version is put only if it is absent: of two sealers exactly one wins, the other throws its files away.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::row::Table;
use plimsoll_schemas::time::EventTime;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::manifest::{Entry, Manifest, Stored};
use crate::{encode, table};

/// Most days of one table in one seal; rows of older days go to the folder of rows without a day.
/// A host's clock may say anything: it must not make a folder per second.
pub const DAYS_MAX: usize = 64;
/// What Hive and DuckDB read as "no value".
const NO_DAY: &str = "__HIVE_DEFAULT_PARTITION__";
const HASH_KEY: &[u8; 16] = b"plimsoll-archive";
const S_PER_DAY: i64 = 86_400;

/// What can go wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be used.
    #[error("archive {url:?}: {detail}")]
    Url {
        /// What was given.
        url: String,
        /// Why not.
        detail: String,
    },
    /// A row or batch for another table.
    #[error("a row of {found} was given for table {expected}")]
    WrongTable {
        /// Where it was to go.
        expected: &'static str,
        /// Where it belongs.
        found: &'static str,
    },
    /// A batch whose columns are not the table's.
    #[error("columns do not fit: {detail}")]
    Schema {
        /// What does not fit.
        detail: String,
    },
    /// Another sealer committed this version first; the files of this attempt are deleted.
    #[error("manifest version {version} was committed by another sealer: read the newest and start again from its position")]
    Taken {
        /// The version.
        version: u64,
    },
    /// A checkpoint of this position is there already; the files of this attempt are deleted.
    #[error("there is a checkpoint of {position} already")]
    CheckpointTaken {
        /// The position.
        position: Position,
    },
    /// A file on this machine, outside the archive.
    #[error("{}: {detail}", path.display())]
    Local {
        /// Which.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A seal that would go back.
    #[error("cannot seal up to {position}: version {version} already holds everything up to {sealed}")]
    Backwards {
        /// Where the seal was to end.
        position: Position,
        /// The parent's version.
        version: u64,
        /// The parent's position.
        sealed: Position,
    },
    /// Something the manifest needs is not there.
    #[error("{path} is missing from the archive")]
    Absent {
        /// Relative to the archive.
        path: String,
    },
    /// Something is there but is not what was written.
    #[error("{path} is damaged: {detail}")]
    Damaged {
        /// Relative to the archive.
        path: String,
        /// What was found.
        detail: String,
    },
    /// The store failed; trying again may help.
    #[error("archive store failed at {path}: {source}")]
    Store {
        /// Relative to the archive.
        path: String,
        /// What it said.
        source: object_store::Error,
    },
    /// Arrow refused.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// Parquet refused.
    #[error("parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
}

impl Error {
    pub(crate) fn store(path: &Path, source: object_store::Error) -> Self {
        let path = path.to_string();
        if matches!(source, object_store::Error::NotFound { .. }) { Self::Absent { path } } else { Self::Store { path, source } }
    }
}

/// The files of one cell. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Archive {
    store: Arc<dyn ObjectStore>,
    root: PathBuf,
    cell: CellId,
}

impl Archive {
    /// The archive in this folder (a path or a `file://` URL), which is made if it is absent.
    pub fn open(url: &str, cell: &CellId) -> Result<Self, Error> {
        let refused = |detail: String| Error::Url { url: url.to_owned(), detail };
        let path = match url.split_once("://") {
            None => url,
            Some(("file", path)) if path.starts_with('/') => path,
            Some(("file", _)) => return Err(refused("a file URL needs an absolute path: file:///folder".to_owned())),
            Some((scheme, _)) => return Err(refused(format!("scheme {scheme:?} is not supported yet: give a folder or a file:// URL"))),
        };
        if path.is_empty() {
            return Err(refused("an empty path".to_owned()));
        }
        std::fs::create_dir_all(path).map_err(|error| refused(error.to_string()))?;
        let root = std::fs::canonicalize(path).map_err(|error| refused(error.to_string()))?;
        let store = LocalFileSystem::new_with_prefix(&root).map_err(|error| refused(error.to_string()))?.with_automatic_cleanup(true);
        Ok(Self { store: Arc::new(store), root, cell: cell.clone() })
    }

    /// The folder, for hiding it in messages that strangers read.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// The store that holds the files; paths are those of the entries.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    /// The cell.
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// The same folder for another cell.
    pub(crate) fn of_cell(&self, cell: CellId) -> Self {
        Self { cell, ..self.clone() }
    }

    /// The newest manifest; absent if nothing was sealed yet.
    pub async fn newest(&self) -> Result<Option<Manifest>, Error> {
        match self.newest_version().await? {
            Some(version) => Ok(Some(self.manifest(version).await?)),
            None => Ok(None),
        }
    }

    /// The newest manifest if there is a newer one than `known`: one look where nothing changed, no listing.
    pub async fn newer_than(&self, known: Option<&Manifest>) -> Result<Option<Manifest>, Error> {
        let Some(known) = known else { return self.newest().await };
        let mut newest: Option<Manifest> = None;
        loop {
            let parent = newest.as_ref().unwrap_or(known);
            match self.stored(parent.version + 1).await {
                Ok(stored) => newest = Some(stored.onto(parent.files.clone())),
                Err(Error::Absent { .. }) => return Ok(newest),
                Err(error) => return Err(error),
            }
        }
    }

    /// One version. Errors with [`Error::Absent`] if it, or one that it builds on, is not there.
    pub async fn manifest(&self, version: u64) -> Result<Manifest, Error> {
        let mut chain = vec![self.stored(version).await?];
        while let Some(Stored { base: false, parent: Some(parent), .. }) = chain.last() {
            let parent = self.stored(*parent).await?;
            chain.push(parent);
        }
        let mut manifest: Option<Manifest> = None;
        while let Some(stored) = chain.pop() {
            manifest = Some(stored.onto(manifest.map_or(Vec::new(), |below| below.files)));
        }
        manifest.ok_or_else(|| Error::Absent { path: self.manifest_path(version).to_string() })
    }

    /// Writes the rows as files and commits them as the version after `parent`, which then holds everything up to `position`.
    /// Errors with [`Error::Taken`] if another sealer was first; nothing of this attempt is left then.
    pub async fn seal(&self, parent: Option<&Manifest>, position: Position, tables: Vec<(Table, Vec<RecordBatch>)>) -> Result<Manifest, Error> {
        self.seal_without(parent, position, tables, BTreeSet::new()).await
    }

    /// The same, leaving out files of the parent by their paths. They stay where they are until [`Archive::sweep`] finds that nobody reads them.
    pub async fn seal_without(
        &self,
        parent: Option<&Manifest>,
        position: Position,
        tables: Vec<(Table, Vec<RecordBatch>)>,
        dropped: BTreeSet<String>,
    ) -> Result<Manifest, Error> {
        if let Some(parent) = parent.filter(|parent| position < parent.position) {
            return Err(Error::Backwards { position, version: parent.version, sealed: parent.position });
        }
        let version = parent.map_or(1, |parent| parent.version + 1);
        // Old manifests are swept, so the place behind an old parent may be free again.
        if self.newest_version().await?.is_some_and(|newest| newest >= version) {
            return Err(Error::Taken { version });
        }
        let mut added = Vec::new();
        let committed = match self.write_tables(version, tables, &mut added).await {
            Ok(()) => self.commit(Stored::after(parent, &self.cell, position, added.clone(), dropped)).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok(stored) => Ok(stored.onto(parent.map_or(Vec::new(), |parent| parent.files.clone()))),
            Err(error) => {
                self.discard(&added).await;
                Err(error)
            }
        }
    }

    /// Reads a file and compares it with its entry. Errors with [`Error::Absent`] or [`Error::Damaged`].
    pub async fn verify(&self, entry: &Entry) -> Result<(), Error> {
        let bytes = self.read(&Path::from(entry.path.as_str())).await?;
        let found = hash(&bytes);
        if bytes.len() as u64 != entry.bytes {
            return Err(Error::Damaged { path: entry.path.clone(), detail: format!("{} bytes, the manifest says {}", bytes.len(), entry.bytes) });
        }
        if found != entry.hash {
            return Err(Error::Damaged { path: entry.path.clone(), detail: format!("hash {found}, the manifest says {}", entry.hash) });
        }
        Ok(())
    }

    async fn newest_version(&self) -> Result<Option<u64>, Error> {
        let folder = self.manifest_folder();
        let names: Vec<_> = self.store.list(Some(&folder)).try_collect().await.map_err(|error| Error::store(&folder, error))?;
        Ok(names.iter().filter_map(|meta| meta.location.filename()?.strip_suffix(".json")?.parse().ok()).max())
    }

    pub(crate) async fn stored(&self, version: u64) -> Result<Stored, Error> {
        let path = self.manifest_path(version);
        let bytes = self.read(&path).await?;
        let damaged = |detail: String| Error::Damaged { path: path.to_string(), detail };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if stored.version != version || stored.cell != self.cell {
            return Err(damaged(format!("says version {} of cell {}", stored.version, stored.cell)));
        }
        if stored.parent.is_some_and(|parent| parent >= version) {
            return Err(damaged(format!("names version {:?} as its parent", stored.parent)));
        }
        Ok(stored)
    }

    async fn write_tables(&self, version: u64, tables: Vec<(Table, Vec<RecordBatch>)>, added: &mut Vec<Entry>) -> Result<(), Error> {
        let mut by_table: BTreeMap<Table, Vec<RecordBatch>> = BTreeMap::new();
        for (table, batches) in tables {
            by_table.entry(table).or_default().extend(batches);
        }
        for (table, batches) in by_table {
            let schema = table::schema(table);
            if let Some(strange) = batches.iter().find(|batch| batch.schema().fields() != schema.fields()) {
                return Err(Error::Schema { detail: format!("a batch for {} has columns {:?}", table.name(), names(strange)) });
            }
            let rows = concat_batches(&schema, &batches)?;
            if rows.num_rows() == 0 {
                continue;
            }
            for (day, rows) in few_days(encode::by_day(table, &rows)?)? {
                added.push(self.write_file(version, table, day, &rows).await?);
            }
        }
        Ok(())
    }

    async fn write_file(&self, version: u64, table: Table, day: Option<i64>, rows: &RecordBatch) -> Result<Entry, Error> {
        let rows = encode::sorted(table, rows)?;
        let bytes = Bytes::from(encode::parquet(table, &rows)?);
        let day = day.and_then(|day| day.checked_mul(S_PER_DAY * 1_000_000_000)).map(|ns| EventTime(ns).rfc3339()[..10].to_owned());
        let folder = format!("archive/{}/day={}", table.name(), day.as_deref().unwrap_or(NO_DAY));
        // A number that is taken belongs to another sealer of this version, or to one that died: never to us.
        let mut n = 0;
        let path = loop {
            let path = Path::from(format!("{folder}/{version:010}-{n}.parquet"));
            match self.put_new(&path, bytes.clone()).await {
                Ok(()) => break path,
                Err(object_store::Error::AlreadyExists { .. }) => n += 1,
                Err(error) => return Err(Error::store(&path, error)),
            }
        };
        Ok(Entry {
            table,
            path: path.to_string(),
            rows: rows.num_rows() as u64,
            bytes: bytes.len() as u64,
            positions: encode::positions(&rows)?,
            late: encode::late(table, &rows),
            schema_version: table::SCHEMA_VERSION,
            hash: hash(&bytes),
            columns: encode::stats(table, &rows),
        })
    }

    async fn commit(&self, stored: Stored) -> Result<Stored, Error> {
        let path = self.manifest_path(stored.version);
        let bytes = Bytes::from(serde_json::to_vec(&stored).map_err(|error| Error::Damaged { path: path.to_string(), detail: error.to_string() })?);
        match self.put_new(&path, bytes.clone()).await {
            Ok(()) => Ok(stored),
            // The store may say "it exists" or fail after it took ours: what stands there decides.
            Err(error) => match self.read(&path).await {
                Ok(found) if found == bytes => Ok(stored),
                Ok(_) => Err(Error::Taken { version: stored.version }),
                Err(_) => Err(Error::store(&path, error)),
            },
        }
    }

    /// Puts a file that must not be there yet, and makes it last before anyone is told of it.
    pub(crate) async fn put_new(&self, path: &Path, bytes: Bytes) -> object_store::Result<()> {
        self.store.put_opts(path, PutPayload::from(bytes), PutMode::Create.into()).await?;
        let file = self.root.join(path.as_ref());
        let synced = async {
            tokio::fs::File::open(&file).await?.sync_all().await?;
            match file.parent() {
                Some(folder) => tokio::fs::File::open(folder).await?.sync_all().await,
                None => Ok(()),
            }
        };
        synced.await.map_err(|source| object_store::Error::Generic { store: "fsync", source: Box::new(source) })
    }

    async fn discard(&self, entries: &[Entry]) {
        for entry in entries {
            // What cannot be deleted is named by no manifest: it costs room, nothing else.
            let _ = self.store.delete(&Path::from(entry.path.as_str())).await;
        }
    }

    /// Deletes everything in a folder.
    pub(crate) async fn delete_under(&self, folder: &Path) {
        // What cannot be deleted is named by nothing: it costs room until it is swept.
        let _ = self.delete_older_under(folder, i64::MAX).await;
    }

    /// Deletes what was written before an instant (ns UTC, the object store's clock) in a folder; returns what it deleted.
    pub(crate) async fn delete_older_under(&self, folder: &Path, before_ns: i64) -> Result<Vec<Path>, Error> {
        let found: Vec<_> = self.store.list(Some(folder)).try_collect().await.map_err(|error| Error::store(folder, error))?;
        let mut deleted = Vec::new();
        for meta in found.into_iter().filter(|meta| meta.last_modified.timestamp_nanos_opt().is_some_and(|at_ns| at_ns < before_ns)) {
            self.store.delete(&meta.location).await.map_err(|error| Error::store(&meta.location, error))?;
            deleted.push(meta.location);
        }
        Ok(deleted)
    }

    pub(crate) async fn read(&self, path: &Path) -> Result<Bytes, Error> {
        let found = self.store.get(path).await.map_err(|error| Error::store(path, error))?;
        found.bytes().await.map_err(|error| Error::store(path, error))
    }

    fn manifest_folder(&self) -> Path {
        Path::from(format!("manifest/{}", self.cell))
    }

    fn manifest_path(&self, version: u64) -> Path {
        Path::from(format!("manifest/{}/{version:010}.json", self.cell))
    }
}

fn names(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// The newest [`DAYS_MAX`] days as they are, all older ones together without a day.
fn few_days(mut days: BTreeMap<Option<i64>, RecordBatch>) -> Result<BTreeMap<Option<i64>, RecordBatch>, Error> {
    let mut dayless: Vec<RecordBatch> = days.remove(&None).into_iter().collect();
    while days.len() > DAYS_MAX {
        dayless.extend(days.pop_first().map(|(_, rows)| rows));
    }
    if let Some(first) = dayless.first() {
        days.insert(None, concat_batches(&first.schema(), &dayless)?);
    }
    Ok(days)
}

pub(crate) fn hash(bytes: &[u8]) -> String {
    let mut hasher = SipHasher24::new_with_key(HASH_KEY);
    hasher.write(bytes);
    format!("siphash128:{:032x}", hasher.finish128().as_u128())
}
