//! `plimsoll sql`: one question, one answer.

use std::io::{IsTerminal, Read};
use std::process::ExitCode;

use clap::Args;

use crate::error::Error;
use crate::{endpoint, output, postgres};

/// What is asked.
#[derive(Debug, Args)]
pub struct Options {
    /// The question; `-` or nothing reads it from standard input
    query: Option<String>,
    #[command(flatten)]
    output: output::Flag,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

/// Asks and prints.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let query = match options.query {
        Some(query) if query != "-" => query,
        None if std::io::stdin().is_terminal() => {
            return Err(Error::Usage("no question: try plimsoll sql \"select host, state, count(*) from devices group by 1, 2\"".to_owned()));
        }
        Some(_) | None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(Error::io("cannot read the question from standard input"))?;
            text
        }
    };
    postgres::ask(&options.endpoint.resolve()?, &query).await?.print(options.output.format)?;
    Ok(ExitCode::SUCCESS)
}
