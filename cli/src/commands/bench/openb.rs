//! `plimsoll bench openb`: the published experiment, under any policy, on any lists with the same columns.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use plimsoll_fold::placement::policy::catalogue::Name;
use plimsoll_fold::placement::policy::placer::Placer;
use plimsoll_fold::placement::policy::power::{self, Meter};
use plimsoll_fold::placement::policy::workload::{Sequence, Workload};

use super::lessons::{self, Lessons};
use super::power::Power;
use super::report::{Gave, Run};
use super::seeds::Seeds;
use super::{churn, input, measure, report};
use crate::error::Error;
use crate::output::Flag;

/// Load that arrives in a sequence of our own, percent.
const LOAD_PCT: u32 = 130;

/// What is run.
#[derive(Debug, Args)]
pub struct Options {
    /// Node list: sn, cpu_milli, memory_mib, gpu, model
    #[arg(long, value_name = "CSV")]
    nodes: PathBuf,
    /// Pod list: cpu_milli, memory_mib, num_gpu, gpu_milli and, if there are constraints, gpu_spec
    #[arg(long, value_name = "CSV")]
    pods: PathBuf,
    /// Recorded sequences; without them, sequences of our own are drawn from the pod list
    #[arg(long, value_name = "BIN", conflicts_with_all = ["churn", "scale"])]
    arrivals: Option<PathBuf>,
    /// Policies, separated by commas
    #[arg(long, value_delimiter = ',', value_parser = policy, default_value = "best_fit,fgd,tw,hybrid")]
    policies: Vec<Name>,
    /// Seeds, first..last; without them, every recorded one, or 1..3
    #[arg(long, value_name = "A..B")]
    seeds: Option<Seeds>,
    /// Let requests come and go instead of filling up, at this offered load, percent of the GPUs
    #[arg(long, value_name = "LOAD", value_parser = clap::value_parser!(u32).range(1..=1_000), conflicts_with = "scale")]
    churn: Option<u32>,
    /// Make a fleet of this many hosts by taking those of the node list again and again
    #[arg(long, value_name = "HOSTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    scale: Option<u32>,
    /// Ask every host at every decision, and remember no bid
    #[arg(long, conflicts_with = "churn")]
    uncached: bool,
    #[command(flatten)]
    lessons: lessons::Learning,
    #[command(flatten)]
    power: Power,
    #[command(flatten)]
    output: Flag,
}

fn policy(code: &str) -> Result<Name, String> {
    let names = Name::BY_CAPACITY.map(Name::code).join(", ");
    Name::from_code(code.trim()).filter(|name| Name::BY_CAPACITY.contains(name)).ok_or_else(|| format!("no such policy; there are {names}"))
}

/// Runs every policy on every seed and prints.
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    let workload = input::workload(&options.nodes, &options.pods, options.scale.map(|hosts| hosts as usize))?;
    let sequences = sequences(options, &workload)?;
    let tested: Vec<u64> = sequences.iter().map(|sequence| sequence.seed).collect();
    let lessons = Lessons::learn(&options.lessons, &workload, &options.policies, &tested)?;
    let powers = options.power.powers()?;
    let mut runs = Vec::new();
    for &policy in &options.policies {
        for sequence in &sequences {
            let seed = sequence.seed;
            let made = power::modified(workload.policy(policy, lessons.of(policy), seed), options.power.power_weight);
            let mut fleet = workload.fleet(&sequence.ranks);
            power::announce(&mut fleet, &powers);
            let mut placer = Placer::new(fleet, made);
            let meter = Meter::new(placer.fleet(), &powers);
            let gave = match options.churn.map(f64::from) {
                Some(load) => Gave::Churned(load, churn::run(&workload, &mut placer, meter, load, seed)),
                None => Gave::Filled(measure::run(&workload, sequence, &mut placer, meter, !options.uncached)),
            };
            runs.push(Run { policy, seed, gave });
        }
    }
    report::print(&runs, &lessons.shown(), options.output.format)?;
    Ok(ExitCode::SUCCESS)
}

fn sequences(options: &Options, workload: &Workload) -> Result<Vec<Sequence>, Error> {
    let Some(path) = &options.arrivals else {
        let seeds = options.seeds.unwrap_or(Seeds::DEFAULT);
        let load_pct = if options.churn.is_some() { 0 } else { LOAD_PCT };
        return Ok(seeds.iter().map(|seed| workload.drawn(seed, load_pct)).collect());
    };
    let recorded = input::sequences(path, workload)?;
    let Some(seeds) = options.seeds else { return Ok(recorded) };
    let there: Vec<String> = recorded.iter().map(|sequence| sequence.seed.to_string()).collect();
    let of_seed = |seed: u64| {
        recorded.iter().find(|sequence| sequence.seed == seed).cloned().ok_or_else(|| {
            Error::Usage(format!("{} has no sequence of seed {seed}, it has {}: choose among them with --seeds", path.display(), there.join(", ")))
        })
    };
    seeds.iter().map(of_seed).collect()
}
