//! `plimsoll policy train`: tables from the cell's own requests, into a file. The same past and seed give the same file.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use plimsoll_fold::placement::policy::recorded::{Past, REQUESTS_MIN};
use plimsoll_fold::placement::policy::train::{LEARNS, Training};
use plimsoll_schemas::tables::Tables;

use super::file::Trained;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::past::{self, Range};
use crate::progress::Progress;

/// What to learn from, and how.
#[derive(Debug, Args)]
pub struct Train {
    #[command(flatten)]
    range: Range,
    /// Rounds of rehearsals
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Rehearsals of each round
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    sequences: u16,
    /// First seed; another one gives other sequences
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(..=1 << 32))]
    seed: u64,
    /// Loads up to which rehearsals go, percent of the GPUs, separated by commas; the one that teaches best is kept
    #[arg(long, value_name = "PCT,...", value_delimiter = ',', default_value = "92,96,100", value_parser = clap::value_parser!(u32).range(10..=200))]
    train_load: Vec<u32>,
    /// Where the tables go, with how they did
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Learns and writes.
pub async fn run(endpoints: &Endpoints, options: Train) -> Result<ExitCode, Error> {
    let past = past::read(endpoints, options.range, REQUESTS_MIN).await?;
    // What could never be put into force need not be learned.
    Tables::untaught(past.fleet().models()).check().map_err(Error::Refused)?;
    let training =
        Training { rounds: usize::from(options.rounds), sequences: usize::from(options.sequences), seed: options.seed, loads: options.train_load };
    let trained = learned(endpoints, &past, &training);
    trained.write(&options.out)?;
    let percent = |ppm: u64| format!("{:.2} %", ppm as f64 / 1e4);
    writeln!(
        std::io::stdout(),
        "tables {} in {}: learned from {} requests up to {} % load; on {} others {} leaves {} unallocated, untaught {}, fgd {}",
        trained.hash,
        options.out.display(),
        trained.requests_rehearsed,
        trained.load_percent,
        trained.requests_held_out,
        LEARNS.code(),
        percent(trained.unallocated_ppm),
        percent(trained.untaught_unallocated_ppm),
        percent(trained.fgd_unallocated_ppm),
    )
    .map_err(Error::io("cannot write the answer"))?;
    Ok(ExitCode::SUCCESS)
}

fn learned(endpoints: &Endpoints, past: &Past, training: &Training) -> Trained {
    let (requests, split) = (past.asked().len(), past.rehearsed());
    let (rehearsed, held_out) = (past.workload(0..split), past.workload(split..requests));
    let progress = Progress::new("fillings", training.runs());
    let trained = training.run(&rehearsed, &held_out, &|| progress.next());
    progress.end();
    let at = |request: usize| past.asked()[request].at;
    Trained {
        hash: trained.tables.hash_hex(),
        cell: endpoints.cell.clone(),
        from: at(0),
        held_out_from: at(split),
        to: at(requests - 1),
        requests_rehearsed: split,
        requests_held_out: requests - split,
        requests_impossible: past.impossible,
        hosts: past.fleet().len(),
        capacity_milli: past.fleet().capacity_milli(),
        rounds: training.rounds,
        sequences: training.sequences,
        seed: training.seed,
        seed_after: training.seed_after(),
        load_percent: trained.load_percent,
        tried: trained.tried,
        unallocated_ppm: trained.unallocated_ppm,
        untaught_unallocated_ppm: trained.untaught_unallocated_ppm,
        fgd_unallocated_ppm: trained.fgd_unallocated_ppm,
        tables: trained.tables,
    }
}
