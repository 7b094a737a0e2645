//! `plimsoll status`: the cell on one screen, from SQL.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value};

use crate::endpoint;
use crate::error::Error;
use crate::output::{Flag, Format, Table};
use crate::postgres;

/// What is shown, and the question behind it.
const PARTS: [(&str, &str); 4] = [
    ("cell", "SELECT * FROM system.cells ORDER BY cell"),
    ("hosts", "SELECT state, count(*) AS hosts FROM hosts WHERE valid_to IS NULL GROUP BY state ORDER BY state"),
    ("gpus", "SELECT model, state, count(*) AS gpus FROM devices WHERE valid_to IS NULL GROUP BY model, state ORDER BY model, state"),
    ("leases", "SELECT state, count(*) AS leases, sum(n_gpus) AS gpus FROM leases WHERE state <> 'ended' GROUP BY state ORDER BY state"),
];

/// How it is shown.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    output: Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Asks and prints.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoints = options.endpoint.resolve()?;
    let mut answers: Vec<(&str, Table)> = Vec::new();
    for (name, question) in PARTS {
        answers.push((name, postgres::ask(&endpoints, question).await?));
    }
    let mut stdout = std::io::stdout().lock();
    let written = match options.output.format {
        Format::Json => {
            let object: Map<String, Value> = answers.iter().map(|(name, table)| ((*name).to_owned(), table.to_json())).collect();
            writeln!(stdout, "{:#}", Value::Object(object))
        }
        // A cell has more facts than a line has room for.
        Format::Table => answers.iter().try_for_each(|(name, table)| {
            let text = if *name == "cell" { table.upright().text("  ") } else { table.text("  ") };
            writeln!(stdout, "{name}\n{text}")
        }),
        Format::Csv => answers.iter().try_for_each(|(name, table)| {
            writeln!(stdout, "# {name}")?;
            table.write(Format::Csv, &mut stdout)
        }),
    };
    written.map_err(Error::io("cannot write"))?;
    Ok(ExitCode::SUCCESS)
}
