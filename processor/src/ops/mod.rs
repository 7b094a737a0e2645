//! The operator's tools on state and log: `replay`, `verify` and `inspect`. They read what a processor works with and change none of it:
//! nothing is published, no stream is created, and no store is written but the scratch one they were given.
//!
//! Read in this order: where they read (`source`), how they fold (`refold`, `progress`), what each does.

mod source;
mod progress;
mod refold;
mod replay;
mod published;
mod verify;
mod inspect;
mod shown;

use std::io::Write;
use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};

use crate::error::Error;

/// The tools.
#[derive(Debug, Clone, Subcommand)]
pub enum Tool {
    /// Rebuild the state from the log into a folder, and show its hash
    Replay(replay::Options),
    /// Fold the log again and compare: the hash at every checkpoint and at the store's commit, and every output with OUT
    Verify(verify::Options),
    /// Show what stands in a store or checkpoint, or what a record of the log says and made
    Inspect(inspect::Options),
}

/// Runs one tool. The exit code says whether what it compared is equal.
pub async fn run(tool: Tool) -> Result<ExitCode, Error> {
    match tool {
        Tool::Replay(options) => replay::run(options).await,
        Tool::Verify(options) => verify::run(options).await,
        Tool::Inspect(options) => inspect::run(options).await,
    }
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Writes the answer to standard output. Whoever closed it wants no more.
fn say(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Values under their names: aligned lines for people, one JSON line for programs.
fn answer(format: Format, values: &[(&str, serde_json::Value)]) {
    match format {
        Format::Json => {
            let object: serde_json::Map<_, _> = values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            say(&format!("{}\n", serde_json::Value::Object(object)));
        }
        Format::Table => {
            let width = values.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
            let line = |(name, value): &(&str, serde_json::Value)| format!("{name:width$}  {}\n", plain(value));
            say(&values.iter().map(line).collect::<String>());
        }
    }
}

fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::Bool(_) | serde_json::Value::Number(_) | serde_json::Value::Array(_) | serde_json::Value::Object(_) => value.to_string(),
    }
}
