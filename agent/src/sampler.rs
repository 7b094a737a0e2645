//! One OS thread per GPU, because a driver call that hangs hangs its thread: the others are read on time, a call in progress is never
//! overlapped, and the process never waits for it.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use crate::clock::boot_ns;

/// The threads, one per GPU.
#[derive(Debug)]
pub struct Samplers<T> {
    workers: Vec<Worker>,
    answers: Receiver<(usize, u64, T)>,
    answering: SyncSender<(usize, u64, T)>,
    round: u64,
}

#[derive(Debug)]
struct Worker {
    asks: SyncSender<u64>,
    /// When the call that has not come back was made, CLOCK_BOOTTIME ns.
    asked_at_ns: Option<u64>,
    reported: bool,
}

/// A call that has not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hung {
    /// Number of the GPU.
    pub number: usize,
    /// For how long, ms.
    pub hung_ms: u64,
}

/// Answers waiting for the collecting thread, of late rounds included.
const ANSWERS_MAX: usize = 1_024;

impl<T: Send + 'static> Default for Samplers<T> {
    fn default() -> Self {
        let (answering, answers) = sync_channel(ANSWERS_MAX);
        Self { workers: Vec::new(), answers, answering, round: 0 }
    }
}

impl<T: Send + 'static> Samplers<T> {
    /// Starts the thread of one more GPU; its number. The thread ends with the samplers, or with the call that holds it.
    pub fn add(&mut self, name: String, mut read: impl FnMut() -> T + Send + 'static) -> std::io::Result<usize> {
        let number = self.workers.len();
        let (asks, asked) = sync_channel::<u64>(1);
        let answering = self.answering.clone();
        std::thread::Builder::new().name(name).spawn(move || {
            while let Ok(round) = asked.recv() {
                if answering.send((number, round, read())).is_err() {
                    return;
                }
            }
        })?;
        self.workers.push(Worker { asks, asked_at_ns: None, reported: false });
        Ok(number)
    }

    /// How many GPUs there are.
    pub fn len(&self) -> usize {
        self.workers.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }

    /// Reads every GPU that is not still busy with an earlier call; waits at most `deadline`. Absent = no answer in this round.
    pub fn read(&mut self, deadline: Duration) -> Vec<Option<T>> {
        self.round += 1;
        let now_ns = boot_ns();
        let mut waiting = 0;
        for worker in self.workers.iter_mut().filter(|worker| worker.asked_at_ns.is_none()) {
            match worker.asks.try_send(self.round) {
                Ok(()) => {
                    worker.asked_at_ns = Some(now_ns);
                    waiting += 1;
                }
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
        let until_ns = now_ns + u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX);
        let mut answers: Vec<Option<T>> = std::iter::repeat_with(|| None).take(self.workers.len()).collect();
        while waiting > 0 {
            let left = Duration::from_nanos(until_ns.saturating_sub(boot_ns()));
            match self.answers.recv_timeout(left) {
                Ok((number, round, answer)) => {
                    self.workers[number].asked_at_ns = None;
                    self.workers[number].reported = false;
                    // An answer to an earlier round is old news; its thread is free again for the next one.
                    if round == self.round {
                        answers[number] = Some(answer);
                        waiting -= 1;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        answers
    }

    /// Calls that have not come back for `after_ms`, each named once.
    pub fn newly_hung(&mut self, after_ms: u64) -> Vec<Hung> {
        let now_ns = boot_ns();
        let mut hung = Vec::new();
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let hung_ms = worker.asked_at_ns.map_or(0, |at| now_ns.saturating_sub(at) / 1_000_000);
            if hung_ms >= after_ms && !worker.reported {
                worker.reported = true;
                hung.push(Hung { number, hung_ms });
            }
        }
        hung
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Condvar, Mutex};

    #[test]
    fn a_gpu_that_hangs_is_never_asked_twice_and_holds_nobody_up() {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let calls = Arc::new(Mutex::new(0));
        let mut samplers = Samplers::default();
        samplers.add("quick".to_owned(), || 1).expect("a thread");
        let (held, counted) = (gate.clone(), calls.clone());
        let hang = move || {
            *counted.lock().expect("no panic") += 1;
            let open = held.0.lock().expect("no panic");
            drop(held.1.wait_while(open, |open| !*open).expect("no panic"));
            2
        };
        samplers.add("hangs".to_owned(), hang).expect("a thread");
        for _ in 0..3 {
            assert_eq!(samplers.read(Duration::from_millis(50)), [Some(1), None]);
        }
        assert_eq!(*calls.lock().expect("no panic"), 1);
        let hung = samplers.newly_hung(20);
        assert!(matches!(hung[..], [Hung { number: 1, hung_ms: 50.. }]), "{hung:?}");
        assert!(samplers.newly_hung(20).is_empty(), "said once");
        *gate.0.lock().expect("no panic") = true;
        gate.1.notify_all();
        let deadline = boot_ns() + 5_000_000_000;
        while samplers.read(Duration::from_millis(50)) != [Some(1), Some(2)] {
            assert!(boot_ns() < deadline, "the GPU answers again");
        }
    }
}
