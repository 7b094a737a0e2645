//! The data folder: one `up` at a time, its logs, and what an earlier one may have left running.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::Error;

/// A log longer than this is copied to `<name>.log.1` and begun anew.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// How much of a log is shown when its part dies.
const TAIL_BYTES: u64 = 8 << 10;
const TAIL_LINES: usize = 12;
/// Parts of an `up` that was killed drain by themselves; this is longer than they take.
const LEFTOVER_TIMEOUT: Duration = Duration::from_secs(15);
const LEFTOVER_POLL: Duration = Duration::from_millis(100);

/// The open data folder; closing it lets the next `up` in.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Creates the folder where needed and takes it for this process.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let cannot = |what: &str, path: &Path| Error::io(format!("cannot {what} {}", path.display()));
        let logs = path.join("logs");
        fs::create_dir_all(&logs).map_err(cannot("create", &logs))?;
        let path = path.canonicalize().map_err(cannot("find", path))?;
        let file = path.join("up.lock");
        let mut lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file).map_err(cannot("open", &file))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                lock.read_to_string(&mut pid).map_err(cannot("read", &file))?;
                return Err(Error::Locked { dir: path, pid: pid.trim().to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", &file)(error)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(cannot("write", &file))?;
        let folder = Self { path, _lock: lock };
        folder.wait_for_leftovers().await?;
        Ok(folder)
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the logs are.
    pub fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    /// The log of a part.
    pub fn log(&self, part: &str) -> PathBuf {
        self.logs().join(format!("{part}.log"))
    }

    /// Opens the log of a part to append to; an earlier run's is kept as `<name>.log.1`.
    pub fn open_log(&self, part: &str, fresh: bool) -> Result<File, Error> {
        let path = self.log(part);
        if fresh && path.exists() {
            fs::rename(&path, self.logs().join(format!("{part}.log.1"))).map_err(Error::io(format!("cannot rotate {}", path.display())))?;
        }
        OpenOptions::new().create(true).append(true).open(&path).map_err(Error::io(format!("cannot open {}", path.display())))
    }

    /// Begins a log anew that has grown too long. The part goes on writing: it appends, so it follows.
    pub fn bound_log(&self, part: &str) {
        let path = self.log(part);
        if fs::metadata(&path).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
            // A log that cannot be bounded now is tried again at the next look.
            let _ = fs::copy(&path, self.logs().join(format!("{part}.log.1")));
            let _ = OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(0));
        }
    }

    /// How long a log is, bytes.
    pub fn log_length(&self, part: &str) -> u64 {
        fs::metadata(self.log(part)).map_or(0, |found| found.len())
    }

    /// The last lines of a log, none of them from before the byte `since`.
    pub fn tail(&self, part: &str, since: u64) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(self.log(part))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES).max(since.min(length))))?;
            let mut bytes = Vec::new();
            file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_else(|error| format!("(cannot be read: {error})"));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("  {line}\n")).collect()
    }

    /// Writes down which processes run, for an `up` that finds this one killed.
    pub fn remember(&self, pids: &BTreeMap<&'static str, u32>) {
        // Only a convenience for the next start: nothing depends on it.
        let _ = fs::write(self.path.join("pids.json"), serde_json::to_vec(pids).expect("names and numbers serialise"));
    }

    async fn wait_for_leftovers(&self) -> Result<(), Error> {
        let Ok(bytes) = fs::read(self.path.join("pids.json")) else { return Ok(()) };
        let Ok(pids) = serde_json::from_slice::<BTreeMap<String, u32>>(&bytes) else { return Ok(()) };
        let deadline = Instant::now() + LEFTOVER_TIMEOUT;
        loop {
            let alive: Vec<String> =
                pids.iter().filter(|(part, pid)| is_running(part, **pid)).map(|(part, pid)| format!("{part} (process {pid})")).collect();
            if alive.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Error::Usage(format!(
                    "still running from an earlier `plimsoll up` in {}: {}. Stop them, then try again",
                    self.path.display(),
                    alive.join(", ")
                )));
            }
            tokio::time::sleep(LEFTOVER_POLL).await;
        }
    }
}

/// True where the process still is that part: its id may belong to another program by now.
fn is_running(part: &str, pid: u32) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let program = command.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(program);
    name.ends_with(&format!("plimsoll-{part}")) || name.ends_with("plimsoll") || (part == "nats" && name.contains("nats-server"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_has_one_up_at_a_time() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let first = Folder::open(dir.path()).await.expect("nobody has it");
        let error = Folder::open(dir.path()).await.expect_err("taken").to_string();
        assert!(error.contains(&std::process::id().to_string()) && error.contains("--data-dir"), "{error}");
        drop(first);
        Folder::open(dir.path()).await.expect("free again");
    }

    #[tokio::test]
    async fn a_log_is_bounded_and_the_run_before_is_kept() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::open(dir.path()).await.expect("nobody has it");
        writeln!(folder.open_log("agent", true).expect("a log"), "first run").expect("writable");
        let mut log = folder.open_log("agent", true).expect("a log");
        assert_eq!(fs::read_to_string(folder.logs().join("agent.log.1")).expect("kept"), "first run\n");
        log.write_all(&vec![b'x'; LOG_BYTES_MAX as usize + 1]).expect("writable");
        folder.bound_log("agent");
        writeln!(log, "second run").expect("writable");
        assert_eq!(folder.tail("agent", 0), "  second run\n");
    }
}
