//! How far a tool is: a bar with rate and time left on a terminal, JSON lines elsewhere; both on standard error.
#![expect(clippy::disallowed_methods, reason = "a rate needs a clock")]

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const BAR: usize = 30;
const PERIOD_TERMINAL: Duration = Duration::from_millis(100);
const PERIOD_LINES: Duration = Duration::from_secs(1);

/// Counts records towards a known end.
#[derive(Debug)]
pub struct Progress {
    total: u64,
    done: u64,
    began: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Nothing of `total` records is done.
    pub fn new(total: u64) -> Self {
        Self { total, done: 0, began: Instant::now(), shown: None, terminal: std::io::stderr().is_terminal() }
    }

    /// So many more are done.
    pub fn add(&mut self, records: u64) {
        self.done += records;
        let period = if self.terminal { PERIOD_TERMINAL } else { PERIOD_LINES };
        if self.shown.unwrap_or(self.began).elapsed() >= period {
            self.show();
        }
    }

    /// Shows the last state and ends the line.
    pub fn end(&mut self) {
        self.show();
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
    }

    /// Records done, seconds taken, and records per second so far.
    pub fn rate(&self) -> (u64, f64, f64) {
        let seconds = self.began.elapsed().as_secs_f64();
        (self.done, seconds, if seconds > 0.0 { self.done as f64 / seconds } else { 0.0 })
    }

    fn show(&mut self) {
        self.shown = Some(Instant::now());
        let (done, _, per_s) = self.rate();
        let left_s = (per_s > 0.0).then(|| (self.total.saturating_sub(done) as f64 / per_s).ceil() as u64);
        let text = if self.terminal { format!("\r{}", bar(done, self.total, per_s, left_s)) } else { line(done, self.total, per_s, left_s) };
        // Progress that nobody can see is no failure.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

fn bar(done: u64, total: u64, per_s: f64, left_s: Option<u64>) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
    let full = (share * BAR as f64) as usize;
    let left = left_s.map_or_else(|| "--:--".to_owned(), |s| format!("{:02}:{:02}", s / 60, s % 60));
    format!("[{}{}] {:3.0} %  {done} / {total} records  {per_s:.0}/s  {left} left ", "#".repeat(full), ".".repeat(BAR - full), share * 100.0)
}

fn line(done: u64, total: u64, per_s: f64, left_s: Option<u64>) -> String {
    format!("{}\n", serde_json::json!({ "event": "progress", "done": done, "total": total, "records_per_s": per_s.round(), "eta_s": left_s }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_the_same_to_people_and_programs() {
        assert_eq!(bar(50, 200, 25.0, Some(66)), "[#######.......................]  25 %  50 / 200 records  25/s  01:06 left ");
        assert_eq!(bar(0, 0, 0.0, None), "[##############################] 100 %  0 / 0 records  0/s  --:-- left ");
        assert_eq!(line(50, 200, 25.4, None), "{\"event\":\"progress\",\"done\":50,\"total\":200,\"records_per_s\":25.0,\"eta_s\":null}\n");
    }
}
