//! Thousands of runs with every kind of fault: see `plimsoll_tests::sim`.
//!
//! `SEEDS=a..b` chooses the seeds (default 0..150; `make sim` takes 0..10000), `SEED=n` runs one and prints what it came to.

mod log;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use plimsoll_tests::sim::faults::{Fault, Fired};
use plimsoll_tests::sim::world::run;

/// Failing seeds shown in full.
const SHOWN: usize = 10;

fn seeds() -> Result<std::ops::Range<u64>> {
    if let Ok(seed) = std::env::var("SEED") {
        let seed: u64 = seed.parse().context("SEED is a number")?;
        return Ok(seed..seed + 1);
    }
    let Ok(range) = std::env::var("SEEDS") else { return Ok(0..150) };
    let (from, to) = range.split_once("..").context("SEEDS is a..b")?;
    Ok(from.parse()?..to.parse()?)
}

/// A check of the code's own that failed fails the seed, which has to be said.
fn panicked(panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    anyhow::anyhow!("panicked: {}", said.unwrap_or("without a word"))
}

#[test]
fn whatever_breaks_nothing_is_lost_doubled_or_decided_twice() -> Result<()> {
    let seeds = seeds()?;
    let (next, failures, fired) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()), Mutex::new(Fired::default()));
    let (records, windows) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            match std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|panic| Err(panicked(&*panic).context(format!("seed {seed}")))) {
                Ok(report) => {
                    fired.lock().unwrap_or_else(PoisonError::into_inner).add(&report.fired);
                    records.fetch_add(report.records, Ordering::Relaxed);
                    windows.fetch_add(report.windows as u64, Ordering::Relaxed);
                    if seeds.end - seeds.start == 1 {
                        eprintln!("{report:#?}");
                    }
                }
                Err(error) => failures.lock().unwrap_or_else(PoisonError::into_inner).push((seed, format!("{error:#}"))),
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    let (failures, fired) =
        (failures.into_inner().unwrap_or_else(PoisonError::into_inner), fired.into_inner().unwrap_or_else(PoisonError::into_inner));
    eprintln!("{} seeds, {} records, {} windows compared", seeds.end - seeds.start, records.into_inner(), windows.into_inner());
    eprintln!("{fired:?}");
    if !failures.is_empty() {
        let shown: Vec<_> = failures.iter().take(SHOWN).map(|(seed, error)| format!("SEED={seed} make sim\n{error}")).collect();
        bail!("{} of {} seeds failed:\n{}", failures.len(), seeds.end - seeds.start, shown.join("\n\n"));
    }
    // A run that no fault has disturbed proves nothing.
    if seeds.end - seeds.start >= 100 {
        for fault in Fault::ALL {
            ensure!(fired.0.contains_key(fault), "{fault:?} never happened");
        }
    }
    Ok(())
}

#[test]
fn the_same_seed_is_the_same_run() -> Result<()> {
    for seed in 0..3 {
        let (one, two) = (run(seed)?, run(seed)?);
        ensure!((one.hash, one.records, one.fired) == (two.hash, two.records, two.fired), "seed {seed} gave two runs");
    }
    Ok(())
}
