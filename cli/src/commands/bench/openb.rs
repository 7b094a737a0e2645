//! `plimsoll bench openb`: the published experiment, under any policy, on any lists with the same columns.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use clap::Args;
use plimsoll_fold::placement::openb::Workload;
use plimsoll_fold::placement::openb::arrivals::{self, Sequence};
use plimsoll_fold::placement::policy::catalogue::{Name, Parts};
use plimsoll_fold::placement::policy::placer::Placer;
use serde_json::Value;

use super::report::{Gave, Run};
use super::{churn, input, measure, report};
use crate::error::Error;
use crate::output::Flag;

/// Load that arrives in a sequence of our own, percent.
const LOAD_PCT: i64 = 130;

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
    #[arg(long, value_delimiter = ',', value_parser = policy, default_value = "best_fit,fgd")]
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
    output: Flag,
}

/// Seeds from the first to the last, both of them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl Seeds {
    fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} names no seeds: write first..last as in 42..51, or one number");
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let (first, last) = (first.parse().map_err(|_| expected())?, last.parse().map_err(|_| expected())?);
        if first <= last && last - first < 1_000 { Ok(Self { first, last }) } else { Err(expected()) }
    }
}

fn policy(code: &str) -> Result<Name, String> {
    let names = Name::ALL.map(Name::code).join(", ");
    Name::from_code(code.trim()).ok_or_else(|| format!("no such policy; there are {names}"))
}

/// Runs every policy on every seed and prints.
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    let workload = input::workload(&options.nodes, &options.pods, options.scale.map(|hosts| hosts as usize))?;
    let sequences = sequences(options, &workload)?;
    let mut runs = Vec::new();
    for &policy in &options.policies {
        for sequence in &sequences {
            let seed = sequence.seed;
            let made = policy.policy(Parts { typical: &workload.typical, seed });
            let mut placer = Placer::new(workload.fleet(&sequence.ranks), made);
            let gave = match options.churn.map(f64::from) {
                Some(load) => Gave::Churned(load, churn::run(&workload, &mut placer, load, seed)),
                None => Gave::Filled(measure::run(&workload, sequence, &mut placer, !options.uncached)),
            };
            runs.push(Run { policy, seed, gave });
        }
    }
    report::print(&runs, &Value::Null, options.output.format)?;
    Ok(ExitCode::SUCCESS)
}

fn sequences(options: &Options, workload: &Workload) -> Result<Vec<Sequence>, Error> {
    let Some(path) = &options.arrivals else {
        let seeds = options.seeds.unwrap_or(Seeds { first: 1, last: 3 });
        let load_milli = workload.capacity_milli() / 100 * if options.churn.is_some() { 0 } else { LOAD_PCT };
        let milli = workload.milli();
        return Ok(seeds.iter().map(|seed| arrivals::drawn(seed, &milli, workload.hosts(), load_milli)).collect());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range_with_both_ends_or_one_number() {
        let check = |text: &str, expected: Option<(u64, u64)>| {
            assert_eq!(text.parse::<Seeds>().ok(), expected.map(|(first, last)| Seeds { first, last }), "{text}");
        };
        check("42..51", Some((42, 51)));
        check("7", Some((7, 7)));
        check("9..8", None);
        check("0..1000", None);
        check("a..b", None);
        check("", None);
    }
}
