//! Damages the files of a store that nobody has open, as a bad disk or a careless hand would.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::sim::rng::Rng;

/// What is damaged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A byte of the write-ahead log.
    WalByte,
    /// The end of the write-ahead log is gone.
    WalTail,
    /// The write-ahead log is gone.
    WalGone,
    /// A byte of the manifest.
    ManifestByte,
    /// The manifest is gone.
    ManifestGone,
    /// A byte of a table.
    TableByte,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WalByte => "a byte of the write-ahead log was changed",
            Self::WalTail => "the end of the write-ahead log was cut off",
            Self::WalGone => "the write-ahead log was deleted",
            Self::ManifestByte => "a byte of the manifest was changed",
            Self::ManifestGone => "the manifest was deleted",
            Self::TableByte => "a byte of a table was changed",
        })
    }
}

impl Damage {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::WalByte, Self::ManifestByte, Self::WalTail, Self::ManifestGone, Self::WalGone, Self::TableByte];

    /// Does it to the store in a folder. Returns the file; absent where the store has no file of that kind yet.
    pub fn harm(self, store: &Path, rng: &mut Rng) -> Result<Option<PathBuf>> {
        let is_wanted = |name: &str| match self {
            Self::WalByte | Self::WalTail | Self::WalGone => name.ends_with(".log"),
            Self::ManifestByte | Self::ManifestGone => name.starts_with("MANIFEST"),
            Self::TableByte => name.ends_with(".sst"),
        };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(store).with_context(|| store.display().to_string())? {
            let entry = entry?;
            if is_wanted(&entry.file_name().to_string_lossy()) && entry.metadata()?.len() > 0 {
                files.push(entry.path());
            }
        }
        files.sort();
        // Of logs and manifests the newest, of tables any one.
        let file = if self == Self::TableByte && !files.is_empty() {
            files.swap_remove(rng.below(files.len() as u64) as usize)
        } else {
            files.pop().unwrap_or_default()
        };
        if file.as_os_str().is_empty() {
            return Ok(None);
        }
        match self {
            Self::WalGone | Self::ManifestGone => std::fs::remove_file(&file)?,
            Self::WalTail => {
                let mut bytes = std::fs::read(&file)?;
                bytes.truncate(rng.below(bytes.len() as u64) as usize);
                std::fs::write(&file, bytes)?;
            }
            Self::WalByte | Self::ManifestByte | Self::TableByte => {
                let mut bytes = std::fs::read(&file)?;
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << rng.below(8);
                std::fs::write(&file, bytes)?;
            }
        }
        Ok(Some(file))
    }
}

/// How many stores beside this one were set aside.
pub fn set_aside(store: &Path) -> Result<usize> {
    let name = store.file_name().context("a store has a name")?.to_string_lossy().into_owned();
    let aside = format!("{name}.damaged-");
    let entries = std::fs::read_dir(store.parent().context("a store stands in a folder")?)?;
    let mut count = 0;
    for entry in entries {
        count += usize::from(entry?.file_name().to_string_lossy().starts_with(&aside));
    }
    ensure!(count < 1_000, "{count} stores were set aside");
    Ok(count)
}
