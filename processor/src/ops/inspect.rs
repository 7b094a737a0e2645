//! `inspect`: what stands in a store or a checkpoint, and what a record of the log says and made. Nothing is written.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use plimsoll_archive::Archive;
use plimsoll_schemas::id::Position;
use plimsoll_store::Store;
use serde_json::{Value, json};

use super::progress::Progress;
use super::refold::{self, Bases, Refold};
use super::shown::{self, Item, Named};
use super::source::{Flags, From, Place, Scratch};
use super::{Format, answer, plain, say};
use crate::checkpoint;
use crate::error::Error;
use crate::follow::Stored;

/// Longest value in a line for people, characters.
const LINE_CHARS: usize = 240;

/// What is looked at.
#[derive(Debug, Clone, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
    /// Look into a checkpoint instead of the store: newest, or its place.
    #[arg(long, global = true, value_name = "newest|SEQ")]
    checkpoint: Option<String>,
    /// How the answer is written; json = one object per line.
    #[arg(short, long, value_enum, default_value = "table", env = "PLIMSOLL_OUTPUT", global = true)]
    output: Format,
    #[command(flatten)]
    source: Flags,
}

/// The question.
#[derive(Debug, Clone, Subcommand)]
enum What {
    /// The commit: position, hash, versions, numbers
    Commit,
    /// All tables with their number of entries
    Tables,
    /// The entries of a table, such as state.hosts, rows.leases, outputs
    Table {
        /// The table
        name: String,
        /// Only entries in which this text stands
        #[arg(long)]
        containing: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// One entry, by the key that `inspect table` shows
    Key {
        /// The table
        table: String,
        /// The key
        key: String,
    },
    /// A record of the log: what it says, and the rows and outputs it made
    Sequence {
        /// Its place in the log
        place: Place,
        /// Fold at most so many records to find out what it made
        #[arg(long, default_value_t = 1_000_000)]
        within: u64,
    },
}

/// Answers one question.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let Options { what, checkpoint, output, source } = options;
    if let What::Sequence { place, within } = what {
        return sequence(&source, place.0, within, output).await;
    }
    let scratch = Scratch(source.scratch("inspect"));
    let store = match checkpoint {
        Some(which) => open_checkpoint(&source.archive()?, &which, &scratch).await?,
        None => Store::open_read_only(&source.state_path())?,
    };
    match what {
        What::Commit => {
            let commit = store.last_commit()?.ok_or_else(|| Error::NoCommit { path: source.state_path() })?;
            let mut values = shown::commit(&commit);
            values.push(("digest", json!(format!("{:016x}", store.digest()?))));
            answer(output, &values);
        }
        What::Tables => {
            for table in Named::all() {
                let mut count = 0u64;
                for item in table.items(&store) {
                    item?;
                    count += 1;
                }
                line(output, "table", &(table.name(), json!(count)));
            }
        }
        What::Table { name, containing, limit } => {
            let mut left = limit;
            for item in Named::of(&name)?.items(&store) {
                let item = item?;
                if containing.as_ref().is_some_and(|text| !item.0.contains(text.as_str()) && !item.1.to_string().contains(text.as_str())) {
                    continue;
                }
                if left == 0 {
                    say(if output == Format::Table { "… there are more: --limit\n" } else { "" });
                    break;
                }
                left -= 1;
                line(output, "key", &item);
            }
        }
        What::Key { table, key } => {
            for item in Named::of(&table)?.items(&store) {
                let (found, value) = item?;
                if found == key {
                    say(&format!("{value:#}\n"));
                    return Ok(ExitCode::SUCCESS);
                }
            }
            return Err(Error::Unknown { what: "key", name: key, known: format!("those of `inspect table {table}`") });
        }
        What::Sequence { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn open_checkpoint(archive: &Archive, which: &str, scratch: &Scratch) -> Result<Store, Error> {
    let found = match which {
        "newest" => checkpoint::newest(archive, None).await,
        place => {
            let Place(position) = place.parse().map_err(|known| Error::Unknown { what: "checkpoint", name: place.to_owned(), known })?;
            checkpoint::newest(archive, Some(position)).await.map(|found| found.filter(|found| found.about.position == position))
        }
    };
    let Some(found) = found.map_err(Error::Checkpoint)? else {
        let known = checkpoint::list(archive).await.map_err(Error::Checkpoint)?;
        let known = known.iter().map(Position::to_string).collect::<Vec<_>>().join(", ");
        return Err(Error::Unknown { what: "checkpoint", name: which.to_owned(), known });
    };
    checkpoint::load(archive, &found, &scratch.0).await.map_err(Error::Checkpoint)?;
    Ok(Store::open_read_only(&scratch.0)?)
}

/// The record, then what it made: folded again from the nearest base, if that is near enough.
async fn sequence(source: &Flags, place: Position, within: u64, output: Format) -> Result<ExitCode, Error> {
    let streams = source.streams().await?;
    let extent = refold::extent(&streams).await?;
    let sequence = place.sequence;
    if sequence < extent.first || sequence > extent.last {
        return Err(Error::NotInLog { sequence, first: extent.first, last: extent.last });
    }
    let message = streams.log.get_raw_message(sequence).await.map_err(|error| {
        let stream = streams.log.cached_info().config.name.clone();
        Error::Stream { stream, what: "reading a message of it", detail: error.to_string() }
    })?;
    let subject = ("subject", json!(message.subject.to_string()));
    let bytes = ("bytes", json!(message.payload.len()));
    let hash = ("message_hash", json!(format!("{:016x}", Stored::from(&message).hash())));

    let scratch = Scratch(source.scratch("inspect"));
    let before = Position { sequence: sequence - 1, ..place };
    let archive = source.archive()?;
    let bases = Bases::find(&archive, &streams, &source.cell, extent.first).await?;
    let mut refold = match Refold::open(&archive, &streams, &source.cell, From::Place(before), &bases, &scratch.0).await {
        // What stands before the place where a new epoch begins was folded under the one before.
        Ok(refold) if sequence.checked_sub(refold.position().sequence).is_some_and(|apart| (1..=within).contains(&apart)) => refold,
        Ok(_) | Err(Error::NoBase { .. }) => {
            let body = plimsoll_schemas::record::decode(&source.cell, &message.subject, &message.payload);
            let logged_at = plimsoll_schemas::time::LogTime(crate::streams::nanos(message.time));
            let record = plimsoll_schemas::record::Record { position: place, logged_at, body };
            let (kind, says) = shown::body(&record);
            let made = ("made", json!("out of reach: no checkpoint is near enough before it (--within)"));
            let at = ("logged_at", json!(logged_at.rfc3339()));
            answer(output, &[("position", json!(place.to_string())), at, subject, bytes, hash, ("kind", json!(kind)), ("says", says), made]);
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    let mut progress = Progress::new(sequence - refold.position().sequence);
    let mut last = None;
    let mut outputs = Vec::new();
    let note = async |record: &plimsoll_schemas::record::Record, made: &[plimsoll_schemas::out::Output]| {
        if record.position.sequence == sequence {
            last = Some(record.clone());
            outputs = made.iter().map(shown::output).collect();
        }
        Ok(())
    };
    refold.fold(&streams, sequence, &mut progress, note).await?;
    let Some(record) = last else { return Err(Error::NotInLog { sequence, first: extent.first, last: extent.last }) };
    let rows: Vec<(&str, Item)> = refold.rows_of(record.position).map(|placed| (placed.row.table().name(), shown::row(placed))).collect();
    let (kind, says) = shown::body(&record);
    let mut values = vec![("position", json!(record.position.to_string())), ("logged_at", json!(record.logged_at.rfc3339())), subject, bytes, hash];
    values.extend([("kind", json!(kind)), ("says", says)]);
    let objects = |items: &[Item]| Value::Array(items.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect());
    match output {
        Format::Json => {
            let rows = rows.iter().map(|(table, (key, value))| json!({ "table": table, "key": key, "value": value })).collect();
            values.extend([("rows", Value::Array(rows)), ("outputs", objects(&outputs)), ("hash", json!(format!("{:016x}", refold.state.hash())))]);
            answer(output, &values);
        }
        Format::Table => {
            values.extend([("rows", json!(rows.len())), ("outputs", json!(outputs.len())), ("hash", json!(format!("{:016x}", refold.state.hash())))]);
            answer(output, &values);
            for (table, item) in &rows {
                say(&format!("{table}  "));
                line(output, "key", item);
            }
            for item in &outputs {
                say("OUT  ");
                line(output, "key", item);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One entry on one line; for people it is cut.
fn line(format: Format, name: &str, (key, value): &Item) {
    match format {
        Format::Json => say(&format!("{}\n", json!({ name: key, "value": value }))),
        Format::Table => {
            let text = plain(value);
            let cut: String = text.chars().take(LINE_CHARS).collect();
            let more = if cut.len() < text.len() { "…" } else { "" };
            say(&format!("{key}  {cut}{more}\n"));
        }
    }
}
