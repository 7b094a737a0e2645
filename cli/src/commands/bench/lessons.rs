//! The tables of the policies that learn: read from a file, or learned from sequences that are not the tested ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use plimsoll_fold::placement::openb::arrivals::{self, Sequence};
use plimsoll_fold::placement::openb::{self, Workload};
use plimsoll_fold::placement::policy::Policy;
use plimsoll_fold::placement::policy::catalogue::{Name, Parts};
use plimsoll_fold::placement::policy::learn::{self, Rehearsal};
use plimsoll_fold::placement::policy::placer::Placer;
use plimsoll_fold::placement::policy::tables::{CELLS, Tables};
use serde_json::{Value, json};

use super::input;
use super::report::MARKS;
use super::seeds::Seeds;
use crate::error::Error;

/// Rounds of rehearsals.
const ROUNDS: usize = 6;
/// Last training seeds that are not rehearsed with, but tell which round taught best.
const VALIDATION: usize = 2;
/// Load up to which these go, percent.
const VALIDATION_LOAD_PCT: i64 = 130;

/// Where tables come from.
#[derive(Debug, Args)]
pub struct Options {
    /// Tables to use, as --save-tables wrote them; without them they are learned first
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    /// Write what was learned to a file; with several policies that learn, the last one's
    #[arg(long, value_name = "FILE", conflicts_with = "tables")]
    save_tables: Option<PathBuf>,
    /// Seeds of the sequences to learn from; the last two choose among the rounds
    #[arg(long, value_name = "A..B", default_value = "1000..1019")]
    train_seeds: Seeds,
    /// Load up to which the sequences to learn from go, percent of the GPUs
    #[arg(long, value_name = "LOAD", default_value_t = 100, value_parser = clap::value_parser!(u32).range(10..=200))]
    train_load: u32,
}

/// The tables of each policy that learns.
#[derive(Debug)]
pub struct Lessons {
    tables: BTreeMap<Name, Tables>,
    untaught: Tables,
    shown: BTreeMap<&'static str, Value>,
}

impl Lessons {
    /// What these policies need. `tested` are the seeds that nothing may be learned from.
    pub fn learn(options: &Options, workload: &Workload, policies: &[Name], tested: &[u64]) -> Result<Self, Error> {
        let mut lessons = Self { tables: BTreeMap::new(), untaught: Tables::untaught(&[]), shown: BTreeMap::new() };
        for policy in policies.iter().copied().filter(|policy| policy.learns()) {
            let (tables, shown) = match &options.tables {
                Some(path) => (read(path)?, json!({ "file": path })),
                None => taught(options, workload, policy, tested)?,
            };
            let mut shown = shown;
            shown["hash"] = json!(format!("{:016x}", tables.hash()));
            lessons.shown.insert(policy.code(), shown);
            lessons.tables.insert(policy, tables);
        }
        if let Some((path, tables)) = options.save_tables.as_ref().zip(lessons.tables.values().last()) {
            let text = serde_json::to_string(tables).expect("names and numbers are JSON");
            std::fs::write(path, text).map_err(Error::io(format!("cannot write {}", path.display())))?;
        }
        Ok(lessons)
    }

    /// The tables of a policy; untaught ones for one that needs none.
    pub fn of(&self, policy: Name) -> &Tables {
        self.tables.get(&policy).unwrap_or(&self.untaught)
    }

    /// What was learned, for the report.
    pub fn shown(&self) -> Value {
        if self.shown.is_empty() { Value::Null } else { json!(self.shown) }
    }
}

fn read(path: &Path) -> Result<Tables, Error> {
    let wrong = |place: String, what: String| Error::Data { place, what, hint: "name a file that --save-tables wrote" };
    let place = |error: &serde_json::Error| format!("{}:{}", path.display(), error.line());
    let tables: Tables = serde_json::from_str(&input::text(path)?).map_err(|error| wrong(place(&error), error.to_string()))?;
    if tables.is_whole() {
        return Ok(tables);
    }
    let what = format!("{} numbers for {} models, expected {CELLS} for each", tables.cells.len(), tables.models.len());
    Err(wrong(path.display().to_string(), what))
}

fn taught(options: &Options, workload: &Workload, policy: Name, tested: &[u64]) -> Result<(Tables, Value), Error> {
    let seeds: Vec<u64> = options.train_seeds.iter().collect();
    if let Some(seed) = seeds.iter().find(|seed| tested.contains(seed)) {
        return Err(Error::Usage(format!("seed {seed} is both learned from and tested: choose others with --train-seeds or --seeds")));
    }
    let Some(rehearsed) = seeds.len().checked_sub(VALIDATION).filter(|&rehearsed| rehearsed > 0) else {
        return Err(Error::Usage(format!(
            "--train-seeds {}: at least {} are needed, {VALIDATION} of them to validate",
            options.train_seeds,
            VALIDATION + 1
        )));
    };
    let (rehearsed, validating) = seeds.split_at(rehearsed);
    let rounds = rounds(rehearsed, |seed| rehearsal(workload, seed, i64::from(options.train_load)));
    let validating: Vec<Sequence> = validating.iter().map(|&seed| sequence(workload, seed, VALIDATION_LOAD_PCT)).collect();
    let made = |tables: &Tables| made(workload, policy, tables);
    let lesson = learn::learn(workload.models(), &rounds, made, |tables| {
        let left = validating.iter().map(|sequence| unallocated_ppm(workload, sequence, made(tables)));
        left.sum::<u64>() / validating.len() as u64
    });
    let scores: Vec<f64> = lesson.scores.iter().map(|&ppm| ppm as f64 / 1e4).collect();
    let shown = json!({ "train_seeds": options.train_seeds.to_string(), "train_load_pct": options.train_load, "validation_unallocated_pct": scores });
    Ok((lesson.tables, shown))
}

/// The rehearsals of each round: the seeds dealt out in order, and again from the first where there are fewer than rounds.
fn rounds(seeds: &[u64], rehearsal: impl Fn(u64) -> Rehearsal) -> Vec<Vec<Rehearsal>> {
    let each = (seeds.len() / ROUNDS).max(1);
    let mut dealt = seeds.iter().cycle();
    (0..ROUNDS).map(|_| dealt.by_ref().take(each).map(|&seed| rehearsal(seed)).collect()).collect()
}

fn sequence(workload: &Workload, seed: u64, load_pct: i64) -> Sequence {
    arrivals::drawn(seed, &workload.milli(), workload.hosts(), workload.capacity_milli() * load_pct / 100)
}

fn rehearsal(workload: &Workload, seed: u64, load_pct: i64) -> Rehearsal {
    let Sequence { seed, pods, ranks } = sequence(workload, seed, load_pct);
    Rehearsal { fleet: workload.fleet(&ranks), requests: pods.into_iter().map(|pod| workload.shapes[pod]).collect(), seed }
}

fn made(workload: &Workload, policy: Name, tables: &Tables) -> Box<dyn Policy + Send> {
    policy.policy(Parts { typical: &workload.typical, requests: &workload.shapes, tables, seed: 0 })
}

/// The mean over the marks of what stays unallocated, millionths.
fn unallocated_ppm(workload: &Workload, sequence: &Sequence, policy: Box<dyn Policy + Send>) -> u64 {
    let mut placer = Placer::new(workload.fleet(&sequence.ranks), policy);
    let curve = openb::run(&mut placer, sequence.pods.iter().map(|&pod| &workload.shapes[pod]));
    let left: Vec<u64> = MARKS.iter().filter_map(|&mark| curve.unallocated_ppm(mark)).map(u64::from).collect();
    left.iter().sum::<u64>() / left.len().max(1) as u64
}
