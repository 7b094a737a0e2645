//! What is done to a cell, and when: drawn from a seed, so that a run can be repeated as far as the machine allows.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Part;
use crate::sim::rng::Rng;

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Kill the processor that is active.
    KillActive,
    /// Kill the one that stands by.
    KillStandby,
    /// Kill both.
    KillBoth,
    /// Kill the broker, or one of its servers.
    KillNats,
    /// Kill the agent.
    KillAgent,
    /// Cut the power of the machine that everything runs on.
    CutPower,
    /// Pause the active processor until the other one has taken over, and some time more.
    Swap,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KillActive => "killed the active processor",
            Self::KillStandby => "killed the standby",
            Self::KillBoth => "killed both processors",
            Self::KillNats => "killed the broker",
            Self::KillAgent => "killed the agent",
            Self::CutPower => "cut the power",
            Self::Swap => "paused the active processor",
        })
    }
}

impl Act {
    /// What it kills, where `active` is the active replica and `server` the one of the broker's whose turn it is.
    pub fn kills(self, active: usize, server: usize) -> Vec<Part> {
        match self {
            Self::KillActive => vec![Part::Processor(active)],
            Self::KillStandby => vec![Part::Processor(1 - active)],
            Self::KillBoth => vec![Part::Processor(0), Part::Processor(1)],
            Self::KillNats => vec![Part::Nats(server)],
            Self::KillAgent => vec![Part::Agent],
            Self::CutPower => vec![Part::Nats(server), Part::Agent, Part::Processor(0), Part::Processor(1), Part::Query(0), Part::Query(1)],
            Self::Swap => vec![],
        }
    }
}

/// So many kills of each of processor, broker and agent, and so many swaps, in random order. Of the processor's, half hit the active one.
pub fn acts(kills: u64, swaps: u64, rng: &mut Rng) -> Vec<Act> {
    let processor = |n: u64| match n % 4 {
        0 | 2 => Act::KillActive,
        1 => Act::KillBoth,
        _ => Act::KillStandby,
    };
    let mut acts: Vec<Act> = (0..kills).flat_map(|n| [processor(n), Act::KillNats, Act::KillAgent]).collect();
    acts.extend((0..swaps).map(|_| Act::Swap));
    for at in (1..acts.len()).rev() {
        acts.swap(at, rng.below(at as u64 + 1) as usize);
    }
    acts
}

/// Watches whether this machine stands still: how late a short sleep ends.
#[derive(Debug)]
pub struct Stalls {
    /// When each late one ended, and how late it was.
    late: Arc<Mutex<Vec<(Instant, Duration)>>>,
    task: JoinHandle<()>,
}

impl Stalls {
    const SLEEP: Duration = Duration::from_millis(50);
    const NOTED: Duration = Duration::from_millis(100);

    /// Begins to watch.
    pub fn watch() -> Self {
        let late = Arc::new(Mutex::new(Vec::new()));
        let noted = late.clone();
        let task = tokio::spawn(async move {
            loop {
                let due = Instant::now() + Self::SLEEP;
                tokio::time::sleep_until(due).await;
                let lateness = due.elapsed();
                if lateness >= Self::NOTED {
                    noted.lock().expect("no holder panics").push((Instant::now(), lateness));
                }
            }
        });
        Self { late, task }
    }

    /// The longest standstill since then.
    pub fn longest_since(&self, since: Instant) -> Duration {
        let late = self.late.lock().expect("no holder panics");
        late.iter().filter(|(at, _)| *at >= since).map(|(_, lateness)| *lateness).max().unwrap_or_default()
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.task.abort();
    }
}
