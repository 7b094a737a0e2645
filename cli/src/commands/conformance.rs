//! `plimsoll conformance`: recorded cases against the pure core, each with what was expected and what was given.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use plimsoll_fold::conformance::{self, Outcome, Verdict};

use crate::error::Error;
use crate::output::{Flag, Format, Kind, Table};

/// Which cases.
#[derive(Debug, Args)]
pub struct Options {
    /// A file of the form {"cases": [{"id", "op", "input", "expect"}, ...]}
    file: PathBuf,
    /// Show only the cases that fail
    #[arg(long)]
    failed: bool,
    #[command(flatten)]
    output: Flag,
}

/// Runs every case and prints; exit code 1 if one fails.
pub fn run(options: &Options) -> Result<ExitCode, Error> {
    let text = std::fs::read_to_string(&options.file).map_err(Error::io(format!("cannot read {}", options.file.display())))?;
    let outcomes = conformance::run(&text).map_err(|error| Error::Conformance(format!("{}: {error}", options.file.display())))?;
    let shown: Vec<&Outcome> = outcomes.iter().filter(|outcome| !options.failed || outcome.verdict == Verdict::Fail).collect();
    table(&shown).print(options.output.format)?;
    let count = |verdict: Verdict| outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
    let failed = count(Verdict::Fail);
    if options.output.format == Format::Table {
        use std::io::Write;
        writeln!(std::io::stdout(), "\n{} cases: {} pass, {failed} fail, {} not yet", outcomes.len(), count(Verdict::Pass), count(Verdict::NotYet))
            .map_err(Error::io("cannot write"))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(outcomes: &[&Outcome]) -> Table {
    let columns = ["id", "op", "verdict", "expected", "given"].map(|name| (name.to_owned(), Kind::Text)).to_vec();
    let row = |outcome: &&Outcome| {
        let given = if outcome.verdict == Verdict::NotYet { None } else { Some(outcome.given.to_string()) };
        vec![
            Some(outcome.id.clone()),
            Some(outcome.op.clone()),
            Some(outcome.verdict.code().replace('_', " ")),
            Some(outcome.expected.to_string()),
            given,
        ]
    };
    Table { columns, rows: outcomes.iter().map(row).collect() }
}
