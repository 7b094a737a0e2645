//! The tables of the policies that learn: read from a file, or learned from sequences that are not the tested ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use plimsoll_fold::placement::policy::catalogue::Name;
use plimsoll_fold::placement::policy::curve::PPM_PER_PERCENT;
use plimsoll_fold::placement::policy::lesson::{self, Judge, Plan};
use plimsoll_fold::placement::policy::tables::Tables;
use plimsoll_fold::placement::policy::workload::Workload;
use serde_json::{Value, json};

use super::seeds::Seeds;
use crate::commands::policy::file;
use crate::error::Error;

/// Rounds of rehearsals.
const ROUNDS: usize = 6;
/// Last seeds that are not rehearsed with, but tell which round taught best.
const VALIDATING: usize = 2;

/// Where tables come from.
#[derive(Debug, Args)]
pub struct Learning {
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
    pub fn learn(options: &Learning, workload: &Workload, policies: &[Name], tested: &[u64]) -> Result<Self, Error> {
        let mut lessons = Self { tables: BTreeMap::new(), untaught: Tables::untaught(&[]), shown: BTreeMap::new() };
        for policy in policies.iter().copied().filter(|policy| policy.learns()) {
            let (tables, shown) = match &options.tables {
                Some(path) => (file::tables(path)?, json!({ "file": path })),
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

fn taught(options: &Learning, workload: &Workload, policy: Name, tested: &[u64]) -> Result<(Tables, Value), Error> {
    let mut rehearsed: Vec<u64> = options.train_seeds.iter().collect();
    if let Some(seed) = rehearsed.iter().find(|seed| tested.contains(seed)) {
        return Err(Error::Usage(format!("seed {seed} is both learned from and tested: choose others with --train-seeds or --seeds")));
    }
    if rehearsed.len() <= VALIDATING {
        let needed = VALIDATING + 1;
        return Err(Error::Usage(format!("--train-seeds {}: at least {needed} are needed, {VALIDATING} of them to validate", options.train_seeds)));
    }
    let judge = Judge::new(workload, rehearsed.split_off(rehearsed.len() - VALIDATING));
    let plan = Plan { policy, rounds: ROUNDS, rehearsed, load_percent: options.train_load, judge: &judge };
    let lesson = lesson::learn(workload, &plan, &|| {});
    let scores: Vec<f64> = lesson.scores.iter().map(|&ppm| ppm as f64 / f64::from(PPM_PER_PERCENT)).collect();
    let shown = json!({ "train_seeds": options.train_seeds.to_string(), "train_load_pct": options.train_load, "validation_unallocated_pct": scores });
    Ok((lesson.tables, shown))
}
