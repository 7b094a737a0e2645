//! `plimsoll bench`: placement policies on recorded requests, without a pipeline.

mod input;
mod seeds;
mod lessons;
mod power;
mod measure;
mod churn;
mod report;
mod openb;

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::error::Error;

/// Which bench.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Run the published openb experiment: how much GPU stays unallocated under each policy, and how fast it decides
    Openb(openb::Options),
}

/// Runs the bench and prints.
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    match &options.bench {
        Bench::Openb(options) => openb::run(options),
    }
}
