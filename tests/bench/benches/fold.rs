//! The fold: samples per second on one core, over minutes of 1,000 hosts x 8 GPUs at 1 Hz, state taken as often as the processor takes it
//! when it has to catch up. In the first minutes hosts are new and rings grow; the last 200 s are what a fleet costs for the rest of its life.
//!
//! `cargo bench -p plimsoll-bench --bench fold -- 1000` folds another number of seconds, whole commits of 200.

use std::time::Duration;

use plimsoll_bench::{BEGIN_S, frame, inventory, row, time};
use plimsoll_fold::rows::Encoded;
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::time::{LogTime, NS_PER_S};

/// As in the processor.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HOSTS: usize = 1_000;
const GPUS: usize = 8;
const SECONDS: i64 = 600;
/// Seconds between two commits, and between two lines of the table: 200,000 records, after which the processor commits.
const COMMIT_S: i64 = 200;
/// Seconds that count as the steady state, from the end.
const STEADY_S: i64 = 200;

fn record(sequence: u64, second: i64, body: Body) -> Record {
    Record { position: Position { epoch: LogEpoch(1), sequence }, logged_at: LogTime((BEGIN_S + second) * NS_PER_S + NS_PER_S / 2), body }
}

fn rate(seconds: i64, took: Duration) -> String {
    format!("{:.0}", ((HOSTS * GPUS) as i64 * seconds) as f64 / took.as_secs_f64())
}

fn main() {
    let asked: i64 = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(SECONDS);
    // What is not committed is not counted.
    let seconds = (asked / COMMIT_S).max(1) * COMMIT_S;
    let mut state = State::new("bench".parse().expect("a token"));
    let mut effects = Effects::default();
    let mut sequence = 0;
    for number in 0..HOSTS {
        sequence += 1;
        state.step(&record(sequence, 0, Body::Inventory(Box::new(inventory(number, GPUS)))), &mut effects);
    }
    row(&["second", "samples/s", "us/frame", "rows", "dirty entries", "commit ms"]);
    // The processor takes rows every few records and keeps them until they are stored.
    let mut unstored = Vec::new();
    let (mut folding, mut all, mut steady) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    for second in 0..seconds {
        // Frames are made before the clock runs: the codec has its own table.
        let records: Vec<_> = (0..HOSTS)
            .map(|number| record(sequence + 1 + number as u64, second, Body::Frame(Box::new(frame(number, GPUS, second, 1, second as u64 + 1)))))
            .collect();
        sequence += HOSTS as u64;
        folding += time(|| records.iter().for_each(|record| state.step(record, &mut effects))).1;
        let mut rows = Encoded::default();
        effects.rows.drain_into(&mut rows);
        unstored.push((rows, effects.outputs.drain(..).collect::<Vec<_>>()));
        if (second + 1) % COMMIT_S == 0 {
            let (dirty, commit) = time(|| state.take_dirty());
            row(&[
                &(second + 1).to_string(),
                &rate(COMMIT_S, folding + commit),
                &format!("{:.2}", folding.as_secs_f64() * 1e6 / (HOSTS as i64 * COMMIT_S) as f64),
                &unstored.iter().map(|(rows, _)| rows.len()).sum::<usize>().to_string(),
                &dirty.len().to_string(),
                &format!("{:.1}", commit.as_secs_f64() * 1e3),
            ]);
            all += folding + commit;
            steady += if second >= seconds - STEADY_S { folding + commit } else { Duration::ZERO };
            folding = Duration::ZERO;
            unstored.clear();
        }
    }
    let summary = state.summary();
    row(&["all, commits included", &rate(seconds, all)]);
    row(&[&format!("the last {STEADY_S} s"), &rate(STEADY_S, steady)]);
    row(&["samples folded, open panes", &summary.samples_folded.to_string(), &summary.panes_open.to_string()]);
    row(&["hash of all rows and outputs", &format!("{:016x}", state.hash())]);
}
