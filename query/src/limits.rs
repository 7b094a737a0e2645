//! What a statement may use: a place among the running ones, memory, rows, time. Every limit here is counted when it is reached.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{FairSpillPool, GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// The limits of all statements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest time from the arrival of a statement to its last row.
    pub deadline: Duration,
    /// Most rows of one answer.
    pub rows_max: u64,
    /// Memory of all running statements together, bytes; one may use half of it.
    pub memory_bytes: usize,
    /// Statements that run at a time.
    pub running_max: usize,
    /// Statements that wait for their turn.
    pub waiting_max: usize,
    /// Bytes that all running statements together may put into temporary files.
    pub spill_bytes: u64,
    /// Most rows that a statement may fetch from the processor's ring of samples.
    pub samples_rows_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            rows_max: 100_000,
            memory_bytes: 1 << 30,
            running_max: 8,
            waiting_max: 64,
            spill_bytes: 2 << 30,
            samples_rows_max: 99_999,
        }
    }
}

/// Lets a few statements run and some more wait.
#[derive(Debug)]
pub struct Admission {
    running: Arc<Semaphore>,
    running_max: usize,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Admission {
    /// For these limits.
    pub fn new(limits: &Limits) -> Self {
        let running_max = limits.running_max.max(1);
        Self { running: Arc::new(Semaphore::new(running_max)), running_max, waiting: AtomicUsize::new(0), waiting_max: limits.waiting_max }
    }

    /// Waits for a place, which is given back when the permit is dropped. Errors at once if too many wait already.
    pub async fn enter(&self) -> std::result::Result<OwnedSemaphorePermit, Error> {
        if let Ok(permit) = self.running.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _waiting = Waiting::new(self)?;
        self.running.clone().acquire_owned().await.map_err(|_| Error::Cancelled)
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.running_max - self.running.available_permits().min(self.running_max)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Counts one who waits, also when the wait is given up.
struct Waiting<'a>(&'a Admission);

impl<'a> Waiting<'a> {
    fn new(admission: &'a Admission) -> std::result::Result<Self, Error> {
        let waiting = admission.waiting.fetch_add(1, Ordering::Relaxed);
        let guard = Self(admission);
        if waiting >= admission.waiting_max { Err(Error::Busy { running: admission.running(), waiting }) } else { Ok(guard) }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The memory of all statements together.
pub fn shared_memory(limits: &Limits) -> Arc<GreedyMemoryPool> {
    Arc::new(GreedyMemoryPool::new(limits.memory_bytes))
}

/// The memory of one statement: its own share, within what all may use. Operators that can spill do so when it is used up.
#[derive(Debug)]
pub struct StatementMemory {
    own: FairSpillPool,
    limit: usize,
    shared: Arc<GreedyMemoryPool>,
    peak: Arc<AtomicUsize>,
}

impl StatementMemory {
    /// A share of half of the whole; `peak` holds the greatest use so far, bytes.
    pub fn new(limits: &Limits, shared: Arc<GreedyMemoryPool>, peak: Arc<AtomicUsize>) -> Self {
        let limit = limits.memory_bytes / 2;
        Self { own: FairSpillPool::new(limit), limit, shared, peak }
    }

    fn note(&self) {
        self.peak.fetch_max(self.own.reserved(), Ordering::Relaxed);
    }
}

impl fmt::Display for StatementMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "statement({} of {} bytes)", self.own.reserved(), self.limit)
    }
}

impl MemoryPool for StatementMemory {
    fn name(&self) -> &str {
        "statement"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        self.own.register(consumer);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        self.own.unregister(consumer);
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.own.grow(reservation, additional);
        self.shared.grow(reservation, additional);
        self.note();
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.shared.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let refused = |what: &str, limit: usize| DataFusionError::ResourcesExhausted(format!("{what} {} MiB", limit >> 20));
        self.own.try_grow(reservation, additional).map_err(|_| refused("one statement may use", self.limit))?;
        if let Err(error) = self.shared.try_grow(reservation, additional) {
            self.own.shrink(reservation, additional);
            let limit = match self.shared.memory_limit() {
                MemoryLimit::Finite(limit) => limit,
                MemoryLimit::Infinite | MemoryLimit::Unknown => return Err(error),
            };
            return Err(refused("all statements together may use", limit));
        }
        self.note();
        Ok(())
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.limit)
    }
}
