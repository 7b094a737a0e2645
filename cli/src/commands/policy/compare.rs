//! `plimsoll policy compare`: two policies decide again what the cell was asked, in the order of its log.
#![expect(clippy::disallowed_methods, reason = "how fast policies decide is measured")]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use plimsoll_fold::placement::policy::backtest::Backtest;
use plimsoll_fold::placement::policy::catalogue::Name;
use plimsoll_fold::placement::policy::fleet::Place;
use plimsoll_fold::placement::policy::placer::Placer;
use plimsoll_fold::placement::policy::recorded::Past;
use plimsoll_fold::placement::policy::workload::Workload;
use plimsoll_schemas::tables::Tables;
use serde_json::{Value, json};

use super::file;
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::output::{Flag, Format, Kind, Table};
use crate::past::{self, Range};

/// Seed of `random`.
const SEED: u64 = 1;

/// Which policies, on which part of the log.
#[derive(Debug, Args)]
pub struct Compare {
    /// A policy, or policy=FILE for one that plays with the tables in a file
    a: Player,
    /// The one it is compared with; the same policy with other tables is another one
    b: Player,
    /// Tables for policies without a file of their own [default: those in force]
    #[arg(long, value_name = "FILE")]
    tables: Option<PathBuf>,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    output: Flag,
}

/// A policy, and a file with tables for it.
#[derive(Debug, Clone)]
struct Player {
    policy: Name,
    tables: Option<PathBuf>,
}

impl FromStr for Player {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (code, tables) = text.split_once('=').map_or((text, None), |(code, file)| (code, Some(PathBuf::from(file))));
        let policy = Name::from_code(code)
            .filter(|name| Name::BY_CAPACITY.contains(name))
            .ok_or_else(|| format!("no such policy; there are {}", Name::BY_CAPACITY.map(Name::code).join(", ")))?;
        if tables.is_some() && !policy.learns() {
            return Err(format!("{code} learns nothing, so it needs no tables"));
        }
        Ok(Self { policy, tables })
    }
}

/// One policy's run.
struct Ran {
    policy: Name,
    /// Hash of its tables.
    tables: Option<String>,
    gave: Backtest,
    decisions_per_s: f64,
}

/// Runs both and prints.
pub async fn run(endpoints: &Endpoints, options: Compare) -> Result<ExitCode, Error> {
    let mut past = past::read(endpoints, options.range, 1).await?;
    past::read_ends(endpoints, &mut past).await?;
    let default = match &options.tables {
        Some(file) => Some(file::tables(file)?),
        None => past::tables_in_force(endpoints).await?.map(|learned| learned.tables),
    };
    let workload = past.workload(0..past.asked().len());
    let default = default.unwrap_or_else(|| Tables::untaught(workload.models()));
    let ran = |player: &Player| -> Result<Ran, Error> {
        let tables = player.tables.as_deref().map(file::tables).transpose()?;
        Ok(play(player.policy, tables.as_ref().unwrap_or(&default), &past, &workload))
    };
    print(&past, &ran(&options.a)?, &ran(&options.b)?, options.output.format)?;
    Ok(ExitCode::SUCCESS)
}

fn play(policy: Name, tables: &Tables, past: &Past, workload: &Workload) -> Ran {
    let mut placer = Placer::new(past.fleet().clone(), workload.policy(policy, tables, SEED));
    let begun = Instant::now();
    let gave = Backtest::run(&mut placer, past.asked());
    let decisions_per_s = gave.places.len() as f64 / begun.elapsed().as_secs_f64().max(1e-9);
    Ran { policy, tables: policy.learns().then(|| tables.hash_hex()), gave, decisions_per_s }
}

fn print(past: &Past, a: &Ran, b: &Ran, format: Format) -> Result<(), Error> {
    let rows = table(a, b);
    let divergence = divergence(past, a, b);
    let mut stdout = std::io::stdout();
    match format {
        Format::Json => {
            writeln!(stdout, "{:#}", json!({ "policies": rows.to_json(), "first_divergence": divergence, "impossible": past.impossible }))
        }
        Format::Csv => return rows.print(format),
        Format::Table => writeln!(stdout, "{}{}{}", rows.text(""), left_out(past.impossible), sentence(&divergence, a, b)),
    }
    .map_err(Error::io("cannot write the answer"))
}

fn left_out(impossible: usize) -> String {
    if impossible == 0 { String::new() } else { format!("left out: {impossible} requests for what no host could ever give\n") }
}

fn table(a: &Ran, b: &Ran) -> Table {
    let numbers = ["requests", "placed", "rejected", "rejected_milli", "unallocated_end_pct", "unallocated_mean_pct", "wins", "decisions_per_s"];
    let texts = ["policy", "tables"].map(|name| (name.to_owned(), Kind::Text));
    let row = |ran: &Ran, other: &Ran| {
        let percent = |ppm: u32| format!("{:.2}", f64::from(ppm) / 1e4);
        let gave = &ran.gave;
        let numbers = [
            gave.places.len().to_string(),
            gave.placed().to_string(),
            gave.rejected().to_string(),
            gave.rejected_milli.to_string(),
            percent(gave.unallocated_end_ppm),
            percent(gave.unallocated_mean_ppm),
            gave.wins(&other.gave).to_string(),
            format!("{:.0}", ran.decisions_per_s),
        ];
        [Some(ran.policy.code().to_owned()), ran.tables.clone()].into_iter().chain(numbers.map(Some)).collect()
    };
    Table { columns: texts.into_iter().chain(numbers.map(|name| (name.to_owned(), Kind::Number))).collect(), rows: vec![row(a, b), row(b, a)] }
}

/// The first request on which they differ, and where each put it; null where they never do.
fn divergence(past: &Past, a: &Ran, b: &Ran) -> Value {
    let Some(number) = a.gave.divergence(&b.gave) else { return Value::Null };
    let asked = &past.asked()[number];
    let places = |ran: &Ran| -> Vec<Value> { ran.gave.places[number].iter().map(|place| place_json(past, place)).collect() };
    json!({ "request_id": asked.request_id, "tenant": asked.tenant, "at": asked.at.rfc3339(), "a": places(a), "b": places(b) })
}

fn place_json(past: &Past, place: &Place) -> Value {
    let gpus: Vec<u32> = (0..u64::BITS).filter(|gpu| place.gpus >> gpu & 1 == 1).collect();
    json!({ "host": past.host_name(place.host), "gpus": gpus })
}

fn sentence(divergence: &Value, a: &Ran, b: &Ran) -> String {
    if divergence.is_null() {
        return "they decide alike on every request".to_owned();
    }
    let place = |place: &Value| format!("{} GPUs {}", place["host"].as_str().unwrap_or_default(), place["gpus"]);
    let places = |side: &str| match divergence[side].as_array().map(Vec::as_slice) {
        None | Some([]) => "rejects it".to_owned(),
        Some(places) => format!("takes {}", places.iter().map(place).collect::<Vec<_>>().join(" and ")),
    };
    format!(
        "first difference: request {} of {} at {}: {} {}, {} {}",
        divergence["request_id"],
        divergence["tenant"].as_str().unwrap_or_default(),
        divergence["at"].as_str().unwrap_or_default(),
        a.policy.code(),
        places("a"),
        b.policy.code(),
        places("b")
    )
}

#[cfg(test)]
mod tests {
    use plimsoll_fold::placement::policy::fleet::HostSpec;
    use plimsoll_schemas::time::LogTime;

    use super::*;

    #[test]
    fn the_first_request_on_which_they_differ_is_said_with_both_places() {
        let host = |name: &str| HostSpec { name: name.to_owned(), rank: 0, cpu_milli: 0, memory_mib: 0, gpus: 2, model: "A".to_owned() };
        let mut past = Past::new(vec![host("h1"), host("h2")]).expect("a fleet");
        for (id, count, milli) in [("a", 1, 500), ("b", 1, 500), ("c", 2, 1_000), ("d", 2, 1_000)] {
            let place = json!({ "request_id": id, "bundles": [{ "count": count, "milli": milli }] });
            past.ask(LogTime(0), &"t".parse().expect("a token"), &serde_json::from_value(place).expect("a request"));
        }
        let workload = past.workload(0..past.asked().len());
        let ran = |policy| play(policy, &Tables::untaught(&[]), &past, &workload);
        let (packs, spreads) = (ran(Name::BestFit), ran(Name::WorstFit));
        assert_eq!(
            sentence(&divergence(&past, &packs, &spreads), &packs, &spreads),
            "first difference: request \"b\" of t at 1970-01-01T00:00:00.000000000Z: best_fit takes h1 GPUs [0], worst_fit takes h2 GPUs [0]"
        );
        assert_eq!(sentence(&divergence(&past, &packs, &packs), &packs, &packs), "they decide alike on every request");
        let table = table(&packs, &spreads).to_json();
        let numbers = |row: usize| ["requests", "placed", "rejected_milli", "wins"].map(|column| table[row][column].as_i64());
        assert_eq!((numbers(0), numbers(1)), ([4, 3, 2_000, 1].map(Some), [4, 2, 4_000, 0].map(Some)));
    }

    #[test]
    fn a_policy_is_named_with_or_without_a_file_of_tables() {
        let player = |text: &str| text.parse::<Player>().map(|player| (player.policy, player.tables));
        assert_eq!(player("fgd"), Ok((Name::Fgd, None)));
        assert_eq!(player("hybrid=new.json"), Ok((Name::Hybrid, Some("new.json".into()))));
        assert!(player("luck").expect_err("no policy").contains("there are random, first_fit"));
        assert!(player("fgd=new.json").expect_err("no tables").contains("learns nothing"));
    }
}
