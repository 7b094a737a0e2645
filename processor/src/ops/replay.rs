//! `replay`: the state as the log makes it, in a folder of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::progress::Progress;
use super::refold::{self, Bases, Refold};
use super::source::{Flags, From, To};
use super::{Format, answer};
use crate::error::Error;

/// What is folded, and into what.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// From where: first, checkpoint (the newest), or a place: the newest checkpoint at or before it.
    #[arg(long, default_value = "first", value_name = "first|checkpoint|SEQ")]
    from: From,
    /// Up to where: end, or a sequence.
    #[arg(long, default_value = "end", value_name = "SEQ|end")]
    to: To,
    /// Folder for the rebuilt store; it must be empty or not there yet.
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value = "table", env = "PLIMSOLL_OUTPUT")]
    output: Format,
    #[command(flatten)]
    source: Flags,
}

/// Folds, commits and shows where that leads. Publishes nothing.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let Options { from, to, into, output, source } = options;
    let streams = source.streams().await?;
    let extent = refold::extent(&streams).await?;
    let to = match to {
        To::End => extent.last,
        To::Sequence(sequence) if sequence <= extent.last => sequence,
        To::Sequence(sequence) => return Err(Error::NotInLog { sequence, first: extent.first, last: extent.last }),
    };
    // A state is never unfolded: its base lies at or before where it is to end.
    let from = match from {
        From::First => From::First,
        From::Checkpoint => From::Checkpoint,
        From::Place(place) if place.sequence <= to => From::Place(place),
        From::Place(place) => return Err(Error::NotInLog { sequence: place.sequence, first: extent.first, last: to }),
    };
    let archive = source.archive()?;
    let bases = Bases::find(&archive, &streams, &source.cell, extent.first).await?;
    let mut refold = Refold::open(&archive, &streams, &source.cell, from, &bases, &into).await?;
    let base = refold.position();
    if base.sequence > to {
        return Err(Error::NotInLog { sequence: to, first: base.sequence, last: extent.last });
    }
    let mut progress = Progress::new(to - base.sequence);
    refold.fold(&streams, to, &mut progress, async |_, _| Ok(())).await?;
    refold.commit()?;
    progress.end();
    let (records, seconds, per_s) = progress.rate();
    let summary = refold.state.summary();
    answer(
        output,
        &[
            ("from", json!(base.to_string())),
            ("position", json!(refold.position().to_string())),
            ("hash", json!(format!("{:016x}", refold.state.hash()))),
            ("digest", json!(format!("{:016x}", refold.store.digest()?))),
            ("out_seq", json!(refold.out_seq())),
            ("decision_seq", json!(summary.decision_seq)),
            ("samples", json!(summary.samples)),
            ("records", json!(records)),
            ("seconds", json!((seconds * 1_000.0).round() / 1_000.0)),
            ("records_per_s", json!(per_s.round())),
            ("into", json!(into)),
        ],
    );
    Ok(ExitCode::SUCCESS)
}
