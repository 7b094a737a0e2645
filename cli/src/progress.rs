//! How far a long computation is: a bar with rate and time left on a terminal, nothing elsewhere.
#![expect(clippy::disallowed_methods, reason = "a rate needs a clock")]

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const BAR: usize = 30;
const PERIOD: Duration = Duration::from_millis(100);

/// Counts steps towards a known end.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: usize,
    done: Cell<usize>,
    began: Instant,
    shown: Cell<Option<Instant>>,
    terminal: bool,
}

impl Progress {
    /// Nothing of `total` is done; `what` is counted, such as `rehearsals`.
    pub fn new(what: &'static str, total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { what, total, done: Cell::new(0), began: Instant::now(), shown: Cell::new(None), terminal }
    }

    /// The next one begins: those before it are done.
    pub fn next(&self) {
        if self.terminal && self.shown.get().is_none_or(|shown| shown.elapsed() >= PERIOD) {
            self.shown.set(Some(Instant::now()));
            self.show();
        }
        self.done.set(self.done.get() + 1);
    }

    /// Shows the last state and ends the line.
    pub fn end(&self) {
        if self.terminal {
            self.show();
            let _ = writeln!(std::io::stderr());
        }
    }

    fn show(&self) {
        let (done, seconds) = (self.done.get(), self.began.elapsed().as_secs_f64());
        // Progress that nobody can see is no failure.
        let _ = write!(std::io::stderr(), "\r{}", bar(self.what, done, self.total, done as f64 / seconds.max(0.001)));
    }
}

fn bar(what: &str, done: usize, total: usize, per_s: f64) -> String {
    let full = BAR * done.min(total) / total.max(1);
    let left_s = (total.saturating_sub(done) as f64 / per_s).ceil() as u64;
    let left = if done > 0 { format!("{:02}:{:02}", left_s / 60, left_s % 60) } else { "--:--".to_owned() };
    let percent = 100 * done.min(total) / total.max(1);
    format!("[{}{}] {percent:3} %  {done} / {total} {what}  {per_s:.1}/s  {left} left ", "#".repeat(full), ".".repeat(BAR - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_how_fast_and_how_long() {
        assert_eq!(bar("runs", 50, 200, 2.5), "[#######.......................]  25 %  50 / 200 runs  2.5/s  01:00 left ");
        assert_eq!(bar("runs", 0, 200, 0.0), "[..............................]   0 %  0 / 200 runs  0.0/s  --:-- left ");
    }
}
