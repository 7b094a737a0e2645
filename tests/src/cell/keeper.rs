//! Keeps one program running: starts it again whenever it ends, and writes down every end.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::pipeline::{PATIENCE, binaries};

/// Between an end and the next start, unless told otherwise.
pub const BACK_OFF: Duration = Duration::from_millis(100);
/// So much of what it said last is kept of an end, bytes.
const LAST_WORDS_BYTES: u64 = 2_000;

/// What is run.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name here.
    pub name: String,
    /// The binary.
    pub program: PathBuf,
    /// Its command line.
    pub arguments: Vec<String>,
}

/// One end.
#[derive(Debug, Clone)]
pub struct End {
    /// How the system calls it.
    pub status: String,
    /// Whether it died of SIGKILL: nobody but the test sends that.
    pub killed: bool,
    /// Whether it was told to end and not to come back.
    pub stopped: bool,
    /// Its last lines.
    pub last_words: String,
}

#[derive(Debug, Clone, Default)]
struct Life {
    /// From 1.
    number: u64,
    /// Absent between two lives.
    pid: Option<i32>,
    /// How long after this life the next one begins.
    back_off: Duration,
    /// No later life is started.
    stopping: bool,
    ends: Vec<End>,
}

/// A program that is kept running until this is dropped.
#[derive(Debug)]
pub struct Keeper {
    name: String,
    life: watch::Sender<Life>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Keeper {
    /// Starts it. What it says goes to a file in the folder.
    pub fn start(program: Program, folder: &Path) -> Self {
        let life = watch::Sender::new(Life::default());
        let name = program.name.clone();
        let task = tokio::spawn(keep(program, folder.to_owned(), life.clone()));
        Self { name, life, task }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every end so far.
    pub fn ends(&self) -> Vec<End> {
        self.life.borrow().ends.clone()
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Life) -> bool) -> Result<Life> {
        let mut life = self.life.subscribe();
        let found = timeout(PATIENCE, life.wait_for(holds)).await;
        ensure!(!self.task.is_finished() || self.life.borrow().stopping, "{} can no longer be started", self.name);
        Ok(found.with_context(|| format!("{}: {what} after {PATIENCE:?}", self.name))??.clone())
    }

    /// Sends a signal to the life it has now, or to the next one if it has none; returns its number.
    pub async fn signal_alive(&self, signal: Signal) -> Result<u64> {
        loop {
            let life = self.wait("not running", |life| life.pid.is_some()).await?;
            match kill(Pid::from_raw(life.pid.context("just seen")?), signal) {
                // It has ended by itself in this moment.
                Err(Errno::ESRCH) => tokio::time::sleep(BACK_OFF).await,
                sent => return sent.map(|()| life.number).with_context(|| format!("{signal} to {}", self.name)),
            }
        }
    }

    /// Sends SIGKILL, and keeps it down for that long after its end; returns the number of the life.
    pub async fn kill(&self, down: Duration) -> Result<u64> {
        self.wait("not running", |life| life.pid.is_some()).await?;
        self.life.send_modify(|life| life.back_off = down);
        self.signal_alive(Signal::SIGKILL).await
    }

    /// Ends the time for which it was to be kept down.
    pub fn go_on(&self) {
        self.life.send_modify(|life| life.back_off = Duration::ZERO);
    }

    /// Waits for the end of a life; whether it was killed. If not, it had ended by itself in the same moment.
    pub async fn killed(&self, number: u64) -> Result<bool> {
        let number = usize::try_from(number)?;
        let life = self.wait("did not end", |life| life.ends.len() >= number).await?;
        Ok(life.ends[number - 1].killed)
    }

    /// Tells it to end in good order, and does not start it again.
    pub async fn stop(&self) -> Result<()> {
        self.life.send_modify(|life| life.stopping = true);
        if self.life.borrow().pid.is_none() {
            return Ok(());
        }
        let number = self.signal_alive(Signal::SIGTERM).await?;
        let life = self.wait("did not end", |life| life.number == number && life.pid.is_none()).await?;
        let end = life.ends.last().context("it has ended")?;
        ensure!(
            end.status.ends_with(": 0") || end.status.ends_with(": 1") && self.name.starts_with("nats"),
            "{} ended with {}",
            self.name,
            end.status
        );
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
        let pid = self.life.borrow().pid;
        if let Some(pid) = pid {
            // One that is paused ends by nothing else.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

async fn keep(program: Program, folder: PathBuf, life: watch::Sender<Life>) -> Result<()> {
    let said = folder.join(format!("{}.log", program.name));
    while !life.borrow().stopping {
        let mut child = spawn(&program, &said)?;
        let pid = i32::try_from(child.id().context("just started")?)?;
        life.send_modify(|life| {
            life.number += 1;
            life.pid = Some(pid);
            life.back_off = BACK_OFF;
        });
        let status = child.wait().await?;
        let last_words = last_words(&said)?;
        life.send_modify(|life| {
            life.pid = None;
            let stopped = life.stopping;
            life.ends.push(End { killed: status.signal() == Some(Signal::SIGKILL as i32), stopped, status: status.to_string(), last_words });
        });
        let (back_off, mut told) = (life.borrow().back_off, life.subscribe());
        // Both a time-out and being told mean: go on.
        let _ = timeout(back_off, told.wait_for(|life| life.back_off.is_zero())).await;
    }
    Ok(())
}

/// `plimsoll child` ties it to this process, so that a test that is killed leaves nothing behind.
fn spawn(program: &Program, said: &Path) -> Result<Child> {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(said)?;
    Command::new(binaries().join("plimsoll"))
        .arg("child")
        .arg(std::process::id().to_string())
        .arg(&program.program)
        .args(&program.arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.name))
}

fn last_words(said: &Path) -> Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = std::fs::File::open(said)?;
    file.seek(SeekFrom::Start(file.metadata()?.len().saturating_sub(LAST_WORDS_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
