//! What leaves the archive: files whose rows are all too old or over a tier's budget go with the next manifest, and are deleted when nobody can
//! still be reading them. Files that no manifest ever named go too.

use std::collections::BTreeSet;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt};
use plimsoll_schemas::retention::{self, Keep};
use plimsoll_schemas::row::Table;
use plimsoll_schemas::time::NS_PER_S;

use crate::archive::{Archive, Error};
use crate::encode::Bound;
use crate::manifest::{BASE_EVERY, Entry, Manifest};
use crate::table;

/// A file that must go, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    /// Where it is, relative to the archive.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// The limit that it is over.
    pub why: String,
}

/// The files of a manifest that are over a limit at `now_ns` (ns UTC): those whose newest row is too old, then the oldest of a table that has too
/// many bytes. `keep` gives the limits of a table, as [`retention::of_table`] does.
pub fn expired(manifest: &Manifest, keep: impl Fn(Table) -> Keep, now_ns: i64) -> Vec<Expired> {
    let mut gone = Vec::new();
    for &table in Table::ALL {
        let Keep { max_age_s, max_bytes, .. } = keep(table);
        let mut files: Vec<(i64, &Entry)> = manifest.files_of(table).filter_map(|entry| Some((newest_us(entry)?, entry))).collect();
        files.sort_by_key(|&(newest_us, entry)| (newest_us, entry.positions.1));
        let mut bytes: u64 = manifest.files_of(table).map(|entry| entry.bytes).sum();
        for (newest_us, entry) in files {
            let age_s = (now_ns / 1_000).saturating_sub(newest_us) / 1_000_000;
            let why = if let Some(max_age_s) = max_age_s.filter(|&max| age_s > i64::try_from(max).unwrap_or(i64::MAX)) {
                format!("its newest row is {age_s} s old, {} is kept for {max_age_s} s", table.name())
            } else if let Some(max_bytes) = max_bytes.filter(|&max| bytes > max) {
                format!("{} has {bytes} bytes, at most {max_bytes} are kept", table.name())
            } else {
                break;
            };
            bytes -= entry.bytes;
            gone.push(Expired { path: entry.path.clone(), bytes: entry.bytes, why });
        }
    }
    gone
}

/// The time of the newest row, microseconds; absent where the file does not say.
fn newest_us(entry: &Entry) -> Option<i64> {
    match entry.columns.get(table::time_column(entry.table))?.max {
        Some(Bound::Int(at)) => Some(at),
        Some(Bound::Text(_)) | None => None,
    }
}

/// A file that was deleted, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Where it was, relative to the archive.
    pub path: String,
    /// Why nobody needs it.
    pub why: &'static str,
}

impl Archive {
    /// Deletes, at `now_ns` (ns UTC, a clock like the object store's): files that no manifest of the last hour names and that are older than that, whether
    /// they have left the archive or come from a seal that was never finished; and manifests older than a week that nobody builds on.
    /// Looks at the manifests of every cell, because their files stand side by side.
    pub async fn sweep(&self, now_ns: i64) -> Result<Vec<Swept>, Error> {
        let unnamed_ns = before(now_ns, retention::UNNAMED_AGE_S);
        let mut named = BTreeSet::new();
        let mut old_manifests = Vec::new();
        for cell in self.manifest_folders().await? {
            let manifests = self.manifests_in(&cell).await?;
            self.name_recent(&cell, &manifests, unnamed_ns, &mut named).await?;
            let old_ns = before(now_ns, retention::MANIFEST_AGE_S);
            // The newest that is older than the limit is still what holds at the limit, and it needs those it builds on.
            let needed =
                manifests.iter().rfind(|(_, meta)| modified_ns(meta) < old_ns).map_or(0, |&(version, _)| version - (version - 1) % BASE_EVERY);
            old_manifests.extend(manifests.into_iter().filter(|&(version, _)| version < needed).map(|(_, meta)| meta.location));
        }
        let mut swept = Vec::new();
        let folder = Path::from("archive");
        let files: Vec<ObjectMeta> = self.store().list(Some(&folder)).try_collect().await.map_err(|error| Error::store(&folder, error))?;
        for file in files.into_iter().filter(|file| modified_ns(file) < unnamed_ns && !named.contains(file.location.as_ref())) {
            self.delete(&file.location).await?;
            swept.push(Swept { path: file.location.to_string(), why: "no manifest of the last hour names it" });
        }
        for location in old_manifests {
            self.delete(&location).await?;
            swept.push(Swept { path: location.to_string(), why: "newer manifests do not build on it" });
        }
        Ok(swept)
    }

    async fn delete(&self, path: &Path) -> Result<(), Error> {
        match self.store().delete(path).await {
            // Another replica sweeps as well.
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::store(path, error)),
        }
    }

    async fn manifest_folders(&self) -> Result<Vec<Path>, Error> {
        let folder = Path::from("manifest");
        Ok(self.store().list_with_delimiter(Some(&folder)).await.map_err(|error| Error::store(&folder, error))?.common_prefixes)
    }

    /// The versions in a cell's folder, oldest first.
    async fn manifests_in(&self, folder: &Path) -> Result<Vec<(u64, ObjectMeta)>, Error> {
        let listed = self.store().list_with_delimiter(Some(folder)).await.map_err(|error| Error::store(folder, error))?;
        let version = |meta: &ObjectMeta| meta.location.filename()?.strip_suffix(".json")?.parse().ok();
        let mut found: Vec<_> = listed.objects.into_iter().filter_map(|meta| Some((version(&meta)?, meta))).collect();
        found.sort_by_key(|&(version, _)| version);
        Ok(found)
    }

    /// Names every file of every version that was the newest at some time since an instant: those of the last one before it, and all added since.
    async fn name_recent(&self, folder: &Path, manifests: &[(u64, ObjectMeta)], since_ns: i64, named: &mut BTreeSet<String>) -> Result<(), Error> {
        let Some(cell) = folder.filename().and_then(|name| name.parse().ok()) else { return Ok(()) };
        let archive = self.of_cell(cell);
        let recent = manifests.iter().position(|(_, meta)| modified_ns(meta) >= since_ns).unwrap_or(manifests.len());
        let (older, recent) = manifests.split_at(recent);
        if let Some(&(held, _)) = older.last() {
            named.extend(archive.manifest(held).await?.files.into_iter().map(|entry| entry.path));
        }
        for &(version, _) in recent {
            named.extend(archive.stored(version).await?.added.into_iter().map(|entry| entry.path));
        }
        Ok(())
    }
}

fn before(now_ns: i64, age_s: u64) -> i64 {
    now_ns.saturating_sub(i64::try_from(age_s).unwrap_or(i64::MAX).saturating_mul(NS_PER_S))
}

fn modified_ns(meta: &ObjectMeta) -> i64 {
    meta.last_modified.timestamp_nanos_opt().unwrap_or(i64::MAX)
}
