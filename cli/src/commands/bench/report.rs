//! The answer: one row per run, and what the runs of a policy come to together.

use std::io::Write;

use plimsoll_fold::placement::policy::catalogue::Name;
use plimsoll_fold::placement::policy::curve::{Curve, PPM_PER_PERCENT};
use plimsoll_fold::placement::policy::lesson::MARKS;
use serde_json::{Map, Value, json};

use super::churn::Lost;
use super::measure::Measured;
use crate::error::Error;
use crate::output::{Format, Kind, Table};

/// Marks at which a policy is compared with [`Name::Fgd`].
const MARKS_COMPARED: [usize; 2] = [100, 130];

/// One run.
#[derive(Debug)]
pub struct Run {
    /// Under which policy.
    pub policy: Name,
    /// Seed of its sequence.
    pub seed: u64,
    /// What it gave.
    pub gave: Gave,
}

/// What a run gave.
#[derive(Debug)]
pub enum Gave {
    /// Filling an empty fleet.
    Filled(Measured),
    /// Requests that come and go, at an offered load in percent.
    Churned(f64, Lost),
}

/// Prints the runs; `learned` says what was learned for them, if anything.
pub fn print(runs: &[Run], learned: &Value, format: Format) -> Result<(), Error> {
    if format == Format::Json {
        let rows = |table: Table| table.to_json();
        let runs_json: Vec<Value> = runs.iter().map(run_json).collect();
        let report = json!({ "runs": runs_json, "summary": rows(summary(runs)), "tables": learned });
        return writeln!(std::io::stdout(), "{report:#}").map_err(Error::io("cannot write the answer"));
    }
    runs_table(runs).print(format)?;
    if format == Format::Table {
        let mut stdout = std::io::stdout();
        write!(stdout, "\n{}", summary(runs).text("")).map_err(Error::io("cannot write the answer"))?;
        if !learned.is_null() {
            writeln!(stdout, "\ntables: {learned}").map_err(Error::io("cannot write the answer"))?;
        }
    }
    Ok(())
}

fn run_json(run: &Run) -> Value {
    match &run.gave {
        Gave::Filled(measured) => {
            let marks: Map<String, Value> = MARKS.iter().map(|&mark| (mark.to_string(), json!(unallocated_pct(&measured.curve, mark)))).collect();
            json!({
                "policy": run.policy.code(), "seed": run.seed, "unallocated_pct": marks, "decisions_per_s": measured.decisions_per_s.round(),
                "p50_us": measured.p50_us, "p99_us": measured.p99_us, "power_kw": measured.power_kw,
            })
        }
        Gave::Churned(load, lost) => json!({
            "policy": run.policy.code(), "seed": run.seed, "offered_pct": load, "allocated_pct": lost.allocated_pct,
            "rejected_pct": lost.rejected_pct, "rejected_multi_pct": lost.rejected_multi_pct, "power_kw": lost.power_kw,
        }),
    }
}

fn unallocated_pct(curve: &Curve, mark: usize) -> Option<f64> {
    curve.unallocated_ppm(mark).map(|ppm| f64::from(ppm) / f64::from(PPM_PER_PERCENT))
}

/// The numbers of a run, by column.
fn numbers(run: &Run) -> Vec<(String, Option<f64>)> {
    match &run.gave {
        Gave::Filled(measured) => {
            let marks = MARKS.iter().map(|&mark| (format!("unallocated_{mark}_pct"), unallocated_pct(&measured.curve, mark)));
            let speed = [("decisions_per_s", measured.decisions_per_s), ("p50_us", measured.p50_us), ("p99_us", measured.p99_us)];
            let speed = speed.map(|(name, number)| (name.to_owned(), Some(number)));
            marks.chain(speed).chain([("power_kw".to_owned(), measured.power_kw)]).collect()
        }
        Gave::Churned(load, lost) => [
            ("offered_pct", Some(*load)),
            ("allocated_pct", Some(lost.allocated_pct)),
            ("rejected_pct", Some(lost.rejected_pct)),
            ("rejected_multi_pct", Some(lost.rejected_multi_pct)),
            ("power_kw", lost.power_kw),
        ]
        .map(|(name, number)| (name.to_owned(), number))
        .to_vec(),
    }
}

fn shown(column: &str, number: f64) -> String {
    if column == "decisions_per_s" { format!("{number:.0}") } else { format!("{number:.2}") }
}

fn runs_table(runs: &[Run]) -> Table {
    let mut table = Table { columns: vec![("policy".to_owned(), Kind::Text), ("seed".to_owned(), Kind::Number)], rows: Vec::new() };
    if let Some(run) = runs.first() {
        table.columns.extend(numbers(run).into_iter().map(|(name, _)| (name, Kind::Number)));
    }
    for run in runs {
        let numbers = numbers(run).into_iter().map(|(name, number)| number.map(|number| shown(&name, number)));
        table.rows.push([Some(run.policy.code().to_owned()), Some(run.seed.to_string())].into_iter().chain(numbers).collect());
    }
    table
}

/// Means over the seeds of each policy, and on how many seeds it leaves less unallocated than `fgd` does.
fn summary(runs: &[Run]) -> Table {
    let mut policies: Vec<Name> = runs.iter().map(|run| run.policy).collect();
    policies.sort_unstable();
    policies.dedup();
    let mut table = Table { columns: vec![("mean of".to_owned(), Kind::Text), ("seeds".to_owned(), Kind::Number)], rows: Vec::new() };
    if let Some(run) = runs.first() {
        table.columns.extend(numbers(run).into_iter().map(|(name, _)| (name, Kind::Number)));
    }
    let compared = policies.contains(&Name::Fgd) && runs.iter().any(|run| matches!(run.gave, Gave::Filled(_)));
    if compared {
        table.columns.extend(MARKS_COMPARED.map(|mark| (format!("wins_{mark}"), Kind::Number)));
    }
    for policy in policies {
        let of_policy: Vec<&Run> = runs.iter().filter(|run| run.policy == policy).collect();
        let columns: Vec<Vec<(String, Option<f64>)>> = of_policy.iter().map(|run| numbers(run)).collect();
        let mean = |column: usize| {
            let known: Vec<f64> = columns.iter().filter_map(|numbers| numbers[column].1).collect();
            let name = &columns[0][column].0;
            if known.is_empty() { None } else { Some(shown(name, known.iter().sum::<f64>() / known.len() as f64)) }
        };
        let mut row = vec![Some(policy.code().to_owned()), Some(of_policy.len().to_string())];
        row.extend((0..columns[0].len()).map(mean));
        if compared {
            row.extend(MARKS_COMPARED.map(|mark| if policy == Name::Fgd { None } else { Some(wins(runs, &of_policy, mark).to_string()) }));
        }
        table.rows.push(row);
    }
    table
}

fn wins(runs: &[Run], of_policy: &[&Run], mark: usize) -> usize {
    let at = |run: &Run| if let Gave::Filled(measured) = &run.gave { measured.curve.unallocated_ppm(mark) } else { None };
    let fgd = |seed: u64| runs.iter().find(|run| run.policy == Name::Fgd && run.seed == seed).and_then(at);
    of_policy.iter().filter(|run| at(run).zip(fgd(run.seed)).is_some_and(|(ours, fgds)| ours < fgds)).count()
}
