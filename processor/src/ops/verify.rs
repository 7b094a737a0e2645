//! `verify`: folds the log again and compares with everything that was written down about it: the checkpoints, the store's commit, OUT.

use std::collections::BTreeMap;
use std::process::ExitCode;

use clap::Args;
use plimsoll_archive::Checkpoints;
use plimsoll_fold::LOGIC;
use plimsoll_schemas::id::Position;
use plimsoll_store::{Error as StoreError, FORMAT, Store};
use serde_json::{Value, json};

use super::progress::Progress;
use super::published::{Found, Published};
use super::refold::{self, Bases, Refold};
use super::source::{Flags, From, Scratch};
use super::{Format, answer, say};
use crate::error::Error;

/// What is verified.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// From where: first, checkpoint (the newest), or a place [default: first, or on a trimmed log the oldest checkpoint that reaches into it].
    #[arg(long, value_name = "first|checkpoint|SEQ")]
    from: Option<From>,
    /// How the answer is written.
    #[arg(short, long, value_enum, default_value = "table", env = "PLIMSOLL_OUTPUT")]
    output: Format,
    #[command(flatten)]
    source: Flags,
}

/// A state that somebody wrote down.
struct Recorded {
    who: String,
    hash: u64,
    digest: u64,
}

/// Two values that should be one.
struct Difference {
    what: String,
    recorded: String,
    folded: String,
}

/// Folds once to the log's end. Exit code 1 if anything differs; what differs is shown with both values.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let Options { from, output, source } = options;
    let streams = source.streams().await?;
    let archive = source.archive()?;
    // OUT is asked before the log: what stands there then comes from records that the log has.
    let out_last = Published::open(&streams, u64::MAX).await?.last;
    let extent = refold::extent(&streams).await?;
    let bases = Bases::find(&archive, &streams, &source.cell, extent.first).await?;
    let from = match from {
        Some(from) => from,
        None if extent.first == 1 => From::First,
        None => bases.checkpoints.first().map_or(From::Checkpoint, |&oldest| From::Place(oldest)),
    };
    let mut recorded = recorded_by_checkpoints(&archive, &bases.checkpoints).await?;
    for (position, mut by_store) in recorded_by_store(&source)? {
        recorded.entry(position).or_default().append(&mut by_store);
    }

    let scratch = Scratch(source.scratch("verify"));
    let mut refold = Refold::open(&archive, &streams, &source.cell, from, &bases, &scratch.0).await?;
    let base = refold.position();
    let mut published = Published::open(&streams, refold.out_seq()).await?;
    let mut progress = Progress::new(extent.last.saturating_sub(base.sequence));
    let (mut states, mut outputs, mut unknown) = (0u64, 0u64, 0u64);
    let mut differences = Vec::new();
    recorded.retain(|position, _| *position > base && position.sequence <= extent.last);
    let stops: Vec<u64> = recorded.keys().map(|position| position.sequence).chain([extent.last]).collect();
    for stop in stops {
        let folded = refold
            .fold(&streams, stop, &mut progress, async |_, made| {
                for output in made {
                    match published.compare(output).await? {
                        Found::Equal => outputs += 1,
                        Found::Unknown => unknown += 1,
                        Found::Differs { found, produced } => {
                            let what = format!("output {} of OUT", output.out_seq);
                            differences.push(Difference { what, recorded: found, folded: produced });
                            return Err(Error::Differs);
                        }
                    }
                }
                Ok(())
            })
            .await;
        match folded {
            Ok(()) => {}
            // One wrong output makes all later ones wrong.
            Err(Error::Differs) => break,
            Err(error) => return Err(error),
        }
        if let Some(all) = recorded.get(&refold.position()) {
            refold.commit()?;
            let (hash, digest) = (refold.state.hash(), refold.store.digest()?);
            for Recorded { who, hash: recorded_hash, digest: recorded_digest } in all {
                states += 1;
                for (name, recorded, folded) in [("hash", recorded_hash, hash), ("digest", recorded_digest, digest)] {
                    if *recorded != folded {
                        let what = format!("{name} of {who} at {}", refold.position());
                        differences.push(Difference { what, recorded: format!("{recorded:016x}"), folded: format!("{folded:016x}") });
                    }
                }
            }
        }
    }
    progress.end();
    if differences.is_empty() && refold.out_seq() < out_last {
        let what = "the last output of OUT".to_owned();
        differences.push(Difference { what, recorded: out_last.to_string(), folded: refold.out_seq().to_string() });
    }
    let (records, _, per_s) = progress.rate();
    let equal = differences.is_empty();
    let mut values = vec![
        ("verdict", json!(if equal { "equal" } else { "different" })),
        ("from", json!(base.to_string())),
        ("to", json!(refold.position().to_string())),
        ("hash", json!(format!("{:016x}", refold.state.hash()))),
        ("records", json!(records)),
        ("records_per_s", json!(per_s.round())),
        ("states_compared", json!(states)),
        ("outputs_compared", json!(outputs)),
        ("outputs_not_in_out", json!(unknown)),
    ];
    if output == Format::Json {
        let shown = |difference: &Difference| json!({ "what": difference.what, "recorded": difference.recorded, "folded": difference.folded });
        values.push(("differences", Value::Array(differences.iter().map(shown).collect())));
    }
    answer(output, &values);
    if output == Format::Table {
        for Difference { what, recorded, folded } in &differences {
            say(&format!("\n{what} differs:\n  recorded  {recorded}\n  folded    {folded}\n"));
        }
    }
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type ByPosition = BTreeMap<Position, Vec<Recorded>>;

async fn recorded_by_checkpoints(archive: &plimsoll_archive::Archive, positions: &[Position]) -> Result<ByPosition, Error> {
    let checkpoints = Checkpoints::of(archive);
    let mut recorded = ByPosition::new();
    for &position in positions {
        let about = checkpoints.read(position).await.map_err(|error| Error::Checkpoint(error.into()))?.about;
        let entry = Recorded { who: "the checkpoint".to_owned(), hash: about.hash, digest: about.digest };
        recorded.entry(position).or_default().push(entry);
    }
    Ok(recorded)
}

/// What the processor's own store says, if there is one and it was made by this build's logic.
fn recorded_by_store(source: &Flags) -> Result<ByPosition, Error> {
    let path = source.state_path();
    let mut recorded = ByPosition::new();
    if !path.join("CURRENT").is_file() {
        tracing::warn!(path = %path.display(), "there is no store here, so only checkpoints and OUT are compared");
        return Ok(recorded);
    }
    let store = Store::open_read_only(&path)?;
    match store.last_commit() {
        Ok(Some(commit)) if commit.logic == LOGIC => {
            let entry = Recorded { who: "the store".to_owned(), hash: commit.hash, digest: store.digest()? };
            recorded.entry(commit.position).or_default().push(entry);
        }
        Ok(Some(commit)) => tracing::warn!(logic = commit.logic, "the store was folded by another logic and is not compared"),
        Ok(None) => {}
        Err(error @ (StoreError::OlderFormat { .. } | StoreError::NewerFormat { .. })) => {
            tracing::warn!(%error, format = FORMAT, "the store is not compared");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(recorded)
}
