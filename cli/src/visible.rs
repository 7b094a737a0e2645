//! Control records as an operator means them: appended to the log, folded, and either in force or refused with a reason.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use plimsoll_schemas::control::Control;
use plimsoll_schemas::subject::LogSubject;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::broker::Broker;
use crate::endpoint::{self, Endpoints};
use crate::error::Error;
use crate::postgres;

/// How long SQL may take to show what was folded.
const PATIENCE: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// Whether to wait.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Return as soon as the log has it, without asking what became of it
    #[arg(long)]
    no_wait: bool,
}

/// Appends a control record and waits until SQL shows what became of it. Errors if it was refused, with the reason.
pub async fn publish(endpoint: &endpoint::Flags, wait: Wait, control: &Control) -> Result<ExitCode, Error> {
    let endpoints = endpoint.resolve()?;
    let sequence = Broker::connect(&endpoints).await?.append(&LogSubject::Control, control).await?;
    let what_of_it = if wait.no_wait {
        String::new()
    } else {
        match outcome(&endpoints, sequence).await {
            Ok(()) => ", in force".to_owned(),
            // It stands in the log whether or not anybody can be asked.
            Err(Error::NoQuery { address, .. }) => format!("; no query service at {address} to say what became of it"),
            Err(other) => return Err(other),
        }
    };
    writeln!(std::io::stdout(), "in the log as record {sequence}{what_of_it}").map_err(Error::io("cannot write"))?;
    Ok(ExitCode::SUCCESS)
}

/// Waits until SQL shows what follows from a record of the log. Errors if that takes too long.
pub async fn until(endpoints: &Endpoints, sequence: u64) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    let mut beat = interval(ASK_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let seen = postgres::ask(endpoints, "SELECT commit_seq FROM system.cells").await?;
        let shown = seen.first("commit_seq").and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if shown >= sequence {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Refused(format!(
                "record {sequence} is in the log, but SQL shows only what came up to {shown} after {} s: is the processor running?",
                PATIENCE.as_secs()
            )));
        }
    }
}

async fn outcome(endpoints: &Endpoints, sequence: u64) -> Result<(), Error> {
    until(endpoints, sequence).await?;
    let refused = postgres::ask(
        endpoints,
        &format!(
            "SELECT reason, raw_value FROM rejected WHERE seq = {sequence} AND source = 'processor' AND host IS NULL ORDER BY logged_at DESC LIMIT 1"
        ),
    )
    .await?;
    match (refused.first("reason"), refused.first("raw_value")) {
        (Some(reason), detail) => {
            Err(Error::Refused(format!("record {sequence} was refused and changes nothing: {reason}: {}", detail.unwrap_or_default())))
        }
        (None, _) => Ok(()),
    }
}
