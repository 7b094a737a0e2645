//! The fold: samples per second on one core, over a minute of 1,000 hosts x 8 GPUs at 1 Hz, rows and state taken as the processor
//! takes them.

use plimsoll_bench::{BEGIN_S, frame, inventory, row, time};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::time::{LogTime, NS_PER_S};

const HOSTS: usize = 1_000;
const GPUS: usize = 8;
const SECONDS: i64 = 60;
/// Seconds between two commits.
const COMMIT_S: i64 = 10;

fn record(sequence: u64, second: i64, body: Body) -> Record {
    Record { position: Position { epoch: LogEpoch(1), sequence }, logged_at: LogTime((BEGIN_S + second) * NS_PER_S + NS_PER_S / 2), body }
}

fn main() {
    let mut state = State::new("bench".parse().expect("a token"));
    let mut effects = Effects::default();
    let mut sequence = 0;
    for number in 0..HOSTS {
        sequence += 1;
        state.step(&record(sequence, 0, Body::Inventory(Box::new(inventory(number, GPUS)))), &mut effects);
    }
    row(&["second", "samples/s", "us/frame", "rows", "dirty entries", "commit ms"]);
    let mut busy = std::time::Duration::ZERO;
    for second in 0..SECONDS {
        // Frames are made before the clock runs: the codec has its own table.
        let records: Vec<_> = (0..HOSTS)
            .map(|number| record(sequence + 1 + number as u64, second, Body::Frame(Box::new(frame(number, GPUS, second, 1, second as u64 + 1)))))
            .collect();
        sequence += HOSTS as u64;
        let ((), took) = time(|| records.iter().for_each(|record| state.step(record, &mut effects)));
        busy += took;
        if (second + 1) % COMMIT_S == 0 {
            let (dirty, commit) = time(|| state.take_dirty());
            busy += commit;
            row(&[
                &(second + 1).to_string(),
                &format!("{:.0}", (HOSTS * GPUS) as f64 / took.as_secs_f64()),
                &format!("{:.2}", took.as_secs_f64() * 1e6 / HOSTS as f64),
                &effects.rows.len().to_string(),
                &dirty.len().to_string(),
                &format!("{:.1}", commit.as_secs_f64() * 1e3),
            ]);
            effects = Effects::default();
        }
    }
    let sent = (HOSTS * GPUS) as i64 * SECONDS;
    let summary = state.summary();
    row(&["all, commits included", &format!("{:.0}", sent as f64 / busy.as_secs_f64())]);
    row(&["samples sent, folded, open panes", &sent.to_string(), &summary.samples_folded.to_string(), &summary.panes_open.to_string()]);
}
