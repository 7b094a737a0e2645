//! Checkpoints of one cell's state in the archive's object store: folders of files, each with a manifest that is put last.
//!
//! `checkpoints/<cell>/<epoch>-<sequence>.json` is the manifest, `checkpoints/<cell>/<epoch>-<sequence>-<n>/…` are the files. A position has at
//! most one checkpoint: the manifest is put only if it is absent, and a loser throws its files away. What is in the files is not
//! known here; they are compared by length and hash whenever they are copied back.

use std::path::Path as File;

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use plimsoll_schemas::id::{CellId, LogEpoch, Position};
use plimsoll_schemas::time::{LogTime, NS_PER_S};
use serde::{Deserialize, Serialize};

use crate::archive::{Archive, Error, hash};

/// Version of the manifests written here.
pub const VERSION: u32 = 1;
/// An empty file in each folder: whoever put it there writes the others.
const CLAIM: &str = "claimed";
/// Files that no manifest names are deleted when they are older than this: before, they may be somebody's who is not done.
const ORPHAN_AGE_NS: i64 = 3_600 * NS_PER_S;

/// What a checkpoint's manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Version of this manifest.
    pub version: u32,
    /// What state it is.
    #[serde(flatten)]
    pub about: About,
    /// Where the files are, relative to the archive.
    pub folder: String,
    /// The files.
    pub files: Vec<Copied>,
}

impl Checkpoint {
    /// Length of all files, bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// Which state a checkpoint holds and how to recognise it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The cell.
    pub cell: CellId,
    /// Position of the last record folded.
    pub position: Position,
    /// Rolling hash of the state at it.
    #[serde(with = "hexadecimal")]
    pub hash: u64,
    /// Hash over every stored entry of the state.
    #[serde(with = "hexadecimal")]
    pub digest: u64,
    /// Version of the fold's logic that made it.
    pub logic: u32,
    /// Format in which it is stored.
    pub format: u32,
    /// When the LOG stream was created, ns UTC.
    pub log_created_at_ns: i64,
    /// Hash of the message at `position`.
    #[serde(with = "hexadecimal")]
    pub message_hash: u64,
    /// Log time of the last record folded, ns UTC.
    pub logged_at: LogTime,
    /// Number of the last output.
    pub out_seq: u64,
    /// Number of the last decision.
    pub decision_seq: u64,
    /// When it was made by the maker's clock, ns UTC: for its age, nothing else.
    pub created_at_ns: i64,
    /// Which replica made it.
    pub replica: String,
}

/// One file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// Its name in the folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// `siphash128:` and 32 hexadecimal digits over its bytes.
    pub hash: String,
}

/// The checkpoints of one cell. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    archive: Archive,
}

impl Checkpoints {
    /// The checkpoints beside an archive.
    pub fn of(archive: &Archive) -> Self {
        Self { archive: archive.clone() }
    }

    /// The positions of all checkpoints, newest first.
    pub async fn list(&self) -> Result<Vec<Position>, Error> {
        let folder = self.folder();
        let listed = self.archive.store().list_with_delimiter(Some(&folder)).await.map_err(|error| Error::store(&folder, error))?;
        let names = listed.objects.iter().filter_map(|meta| meta.location.filename()?.strip_suffix(".json"));
        let mut positions: Vec<_> = names.filter_map(position_of).collect();
        positions.sort_unstable_by(|a, b| b.cmp(a));
        Ok(positions)
    }

    /// The checkpoint of a position. Errors with [`Error::Absent`] or [`Error::Damaged`].
    pub async fn read(&self, position: Position) -> Result<Checkpoint, Error> {
        let path = self.manifest_path(position);
        let bytes = self.archive.read(&path).await?;
        let damaged = |detail: String| Error::Damaged { path: path.to_string(), detail };
        let found: Checkpoint = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if (found.about.position, &found.about.cell) != (position, self.archive.cell()) {
            return Err(damaged(format!("says position {} of cell {}", found.about.position, found.about.cell)));
        }
        if found.files.iter().any(|file| file.name.contains(['/', '\\']) || file.name.starts_with('.')) {
            return Err(damaged("names a file outside its folder".to_owned()));
        }
        Ok(found)
    }

    /// Copies every file of a folder and commits them as the checkpoint of a position. Errors with [`Error::CheckpointTaken`] if there is one
    /// already; of this attempt nothing is left then.
    pub async fn put(&self, from: &File, about: About) -> Result<Checkpoint, Error> {
        let names = names_in(from)?;
        let position = about.position;
        let mut claimed = None;
        let outcome = match self.copy(from, &names, position, &mut claimed).await {
            Ok((folder, files)) => self.commit(Checkpoint { version: VERSION, about, folder, files }).await,
            Err(error) => Err(error),
        };
        if let (Err(_), Some(folder)) = (&outcome, claimed) {
            self.archive.delete_under(&folder).await;
        }
        outcome
    }

    /// Copies the files into a folder, which is made, and compares each with the manifest. Errors with [`Error::Absent`] or [`Error::Damaged`].
    pub async fn load(&self, checkpoint: &Checkpoint, into: &File) -> Result<(), Error> {
        let failed = |path: &File, error: std::io::Error| Error::Local { path: path.to_owned(), detail: error.to_string() };
        tokio::fs::create_dir_all(into).await.map_err(|error| failed(into, error))?;
        for file in &checkpoint.files {
            let path = Path::from(format!("{}/{}", checkpoint.folder, file.name));
            let bytes = self.archive.read(&path).await?;
            let found = hash(&bytes);
            if (bytes.len() as u64, &found) != (file.bytes, &file.hash) {
                let detail = format!("{} bytes with {found}, its manifest says {} with {}", bytes.len(), file.bytes, file.hash);
                return Err(Error::Damaged { path: path.to_string(), detail });
            }
            let to = into.join(&file.name);
            tokio::fs::write(&to, &bytes).await.map_err(|error| failed(&to, error))?;
        }
        Ok(())
    }

    /// Deletes all but the newest `keep`, and at `now_ns` (ns UTC) files of checkpoints that were never finished. Returns the positions deleted.
    pub async fn keep(&self, keep: usize, now_ns: i64) -> Result<Vec<Position>, Error> {
        let positions = self.list().await?;
        let (kept, old) = positions.split_at(keep.min(positions.len()));
        for &position in old {
            // The manifest goes first: from then on nobody begins to load the files.
            let path = self.manifest_path(position);
            self.archive.store().delete(&path).await.map_err(|error| Error::store(&path, error))?;
        }
        let folder = self.folder();
        let listed = self.archive.store().list_with_delimiter(Some(&folder)).await.map_err(|error| Error::store(&folder, error))?;
        for prefix in listed.common_prefixes {
            let Some(position) = prefix.filename().and_then(|name| position_of(name.rsplit_once('-')?.0)) else { continue };
            if old.contains(&position) {
                self.archive.delete_under(&prefix).await;
            } else if !self.is_named(kept, &prefix, position).await? {
                self.archive.delete_older_under(&prefix, now_ns.saturating_sub(ORPHAN_AGE_NS)).await?;
            }
        }
        Ok(old.to_vec())
    }

    async fn is_named(&self, kept: &[Position], folder: &Path, position: Position) -> Result<bool, Error> {
        if !kept.contains(&position) {
            return Ok(false);
        }
        match self.read(position).await {
            Ok(checkpoint) => Ok(checkpoint.folder == folder.as_ref()),
            // What a damaged manifest names is left to whoever looks into it.
            Err(Error::Damaged { .. }) => Ok(true),
            Err(Error::Absent { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies into a folder of its own.
    async fn copy(&self, from: &File, names: &[String], position: Position, claimed: &mut Option<Path>) -> Result<(String, Vec<Copied>), Error> {
        if names.is_empty() {
            return Err(Error::Local { path: from.to_owned(), detail: "no files".to_owned() });
        }
        let folder = claimed.insert(self.claim(position).await?);
        let mut files = Vec::new();
        for name in names {
            let local = from.join(name);
            let bytes = tokio::fs::read(&local).await.map_err(|error| Error::Local { path: local.clone(), detail: error.to_string() })?;
            let bytes = Bytes::from(bytes);
            let path = folder.clone().join(name.as_str());
            self.archive.put_new(&path, bytes.clone()).await.map_err(|error| Error::store(&path, error))?;
            files.push(Copied { name: name.clone(), bytes: bytes.len() as u64, hash: hash(&bytes) });
        }
        Ok((folder.to_string(), files))
    }

    /// The first folder of a position that nobody has used. A name of its own claims it: two stores of the same state have different files.
    async fn claim(&self, position: Position) -> Result<Path, Error> {
        let mut n = 0;
        loop {
            let folder = self.folder().join(format!("{}-{n}", name_of(position)));
            let claim = folder.clone().join(CLAIM);
            match self.archive.put_new(&claim, Bytes::new()).await {
                Ok(()) => return Ok(folder),
                Err(object_store::Error::AlreadyExists { .. }) => n += 1,
                Err(error) => return Err(Error::store(&claim, error)),
            }
        }
    }

    async fn commit(&self, checkpoint: Checkpoint) -> Result<Checkpoint, Error> {
        let path = self.manifest_path(checkpoint.about.position);
        let bytes = Bytes::from(serde_json::to_vec_pretty(&checkpoint).expect("plain structs with string keys always serialise"));
        match self.archive.put_new(&path, bytes.clone()).await {
            Ok(()) => Ok(checkpoint),
            // The store may fail after it took ours: what stands there decides.
            Err(error) => match self.archive.read(&path).await {
                Ok(found) if found == bytes => Ok(checkpoint),
                Ok(_) => Err(Error::CheckpointTaken { position: checkpoint.about.position }),
                Err(_) => Err(Error::store(&path, error)),
            },
        }
    }

    fn folder(&self) -> Path {
        Path::from(format!("checkpoints/{}", self.archive.cell()))
    }

    fn manifest_path(&self, position: Position) -> Path {
        self.folder().join(format!("{}.json", name_of(position)))
    }
}

/// Names sort as positions do.
fn name_of(position: Position) -> String {
    format!("{:010}-{:020}", position.epoch.0, position.sequence)
}

fn position_of(name: &str) -> Option<Position> {
    let (epoch, sequence) = name.split_once('-')?;
    Some(Position { epoch: LogEpoch(epoch.parse().ok()?), sequence: sequence.parse().ok()? })
}

/// The files of a folder, in order of their names.
fn names_in(folder: &File) -> Result<Vec<String>, Error> {
    let failed = |error: std::io::Error| Error::Local { path: folder.to_owned(), detail: error.to_string() };
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).map_err(failed)? {
        let name = file.map_err(failed)?.file_name();
        names.push(name.into_string().map_err(|name| Error::Local { path: folder.join(name), detail: "a strange name".to_owned() })?);
    }
    names.sort_unstable();
    Ok(names)
}

/// Numbers of 64 bits as 16 hexadecimal digits: JSON readers round them otherwise.
pub mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes 16 digits.
    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{value:016x}"))
    }

    /// Reads them.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(|_| D::Error::custom(format!("{text:?} is not a hexadecimal number of 64 bits")))
    }
}
