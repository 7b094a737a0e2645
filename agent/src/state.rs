//! What survives a restart: the agent's epoch. Unix ms at the first start, then +1 with fsync at each start, so that a lost folder
//! never re-uses one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use plimsoll_schemas::time::EventTime;

/// Why there is no epoch.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder or file cannot be read or written.
    #[error("state folder {path}: {error}")]
    Io {
        /// Which path.
        path: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds {found:?} where an epoch is expected; move the file away to start with a new epoch")]
    Malformed {
        /// Which file.
        path: String,
        /// What it holds, cut to 40 characters.
        found: String,
    },
}

/// The epoch of this start. Without a folder it is Unix ms, which also never comes twice.
pub fn next_epoch(folder: Option<&Path>, now: EventTime) -> Result<u64, StateError> {
    let fresh = u64::try_from(now.millis()).unwrap_or(1).max(1);
    let Some(folder) = folder else { return Ok(fresh) };
    let io = |error| StateError::Io { path: folder.display().to_string(), error };
    fs::create_dir_all(folder).map_err(io)?;
    let path = folder.join("epoch");
    let epoch = match fs::read_to_string(&path) {
        Ok(text) => text
            .trim()
            .parse::<u64>()
            .map_err(|_| StateError::Malformed { path: path.display().to_string(), found: text.chars().take(40).collect() })?
            .saturating_add(1),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => fresh,
        Err(error) => return Err(io(error)),
    };
    let temporary = folder.join("epoch.new");
    let mut file = File::create(&temporary).map_err(io)?;
    writeln!(file, "{epoch}").and_then(|()| file.sync_all()).map_err(io)?;
    fs::rename(&temporary, &path).map_err(io)?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_starts_at_unix_ms_and_grows_by_one_at_each_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |ms: i64| next_epoch(Some(folder.path()), EventTime(ms * 1_000_000)).expect("an epoch");
        assert_eq!(at(1_800_000_000_000), 1_800_000_000_000);
        assert_eq!(at(1_900_000_000_000), 1_800_000_000_001);
        assert_eq!(at(1_000), 1_800_000_000_002);
        assert_eq!(next_epoch(None, EventTime(5_000_000)).expect("an epoch"), 5);
    }

    #[test]
    fn a_damaged_epoch_is_refused_with_what_it_holds() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("epoch"), "x7").expect("written");
        let error = next_epoch(Some(folder.path()), EventTime(0)).expect_err("no number").to_string();
        assert!(error.contains("\"x7\"") && error.contains("move the file away"), "{error}");
    }
}
