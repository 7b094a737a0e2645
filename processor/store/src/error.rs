//! What can go wrong with the store, by what the caller does about it.

use std::path::{Path, PathBuf};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Stop: another process has it open.
    #[error("store {path} is in use by another process: stop that one, or give this one another data folder")]
    Locked {
        /// Folder.
        path: PathBuf,
    },
    /// Set aside, and fold the log again.
    #[error("store {path} is damaged: {detail}")]
    Damaged {
        /// Folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Set aside, and make the state anew: an older build wrote it.
    #[error("store {path} has format {found}, this build reads format {known}")]
    OlderFormat {
        /// Folder.
        path: PathBuf,
        /// What stands there.
        found: u32,
        /// What is understood.
        known: u32,
    },
    /// Stop: the data is good, this build is too old for it.
    #[error("store {path} has format {found}, this build reads format {known}: run the build that wrote it, or a newer one")]
    NewerFormat {
        /// Folder.
        path: PathBuf,
        /// What stands there.
        found: u32,
        /// What is understood.
        known: u32,
    },
    /// Stop: disk full, no permission, or a failing disk.
    #[error("store {path} cannot be used: {detail}")]
    Unavailable {
        /// Folder.
        path: PathBuf,
        /// What RocksDB said.
        detail: String,
    },
}

impl Error {
    pub(crate) fn from_rocksdb(path: &Path, error: rocksdb::Error) -> Self {
        use rocksdb::ErrorKind::{
            Aborted, Busy, ColumnFamilyDropped, CompactionTooLarge, Corruption, Expired, IOError, Incomplete, InvalidArgument, MergeInProgress,
            NotFound, NotSupported, ShutdownInProgress, TimedOut, TryAgain, Unknown,
        };
        let (path, detail) = (path.to_owned(), error.to_string());
        match error.kind() {
            Corruption | NotFound | InvalidArgument | NotSupported => Self::Damaged { path, detail },
            // RocksDB has one kind for every failed system call; only its words tell them apart.
            IOError if detail.contains("lock hold by current process") || detail.contains("While lock file") => Self::Locked { path },
            IOError if detail.contains("No such file") || detail.contains("Is a directory") => Self::Damaged { path, detail },
            IOError | MergeInProgress | Incomplete | ShutdownInProgress | TimedOut | Aborted | Busy | Expired | TryAgain | CompactionTooLarge
            | ColumnFamilyDropped | Unknown => Self::Unavailable { path, detail },
        }
    }
}
