//! `plimsoll policy promote`: tables from a file into force, if they do better than those in force on requests that nothing was learned from.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use plimsoll_fold::placement::policy::lesson::{Judge, mean};
use plimsoll_fold::placement::policy::recorded::{Past, REQUESTS_MIN};
use plimsoll_fold::placement::policy::train::{JUDGING, LEARNS, judge};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::out::Payload;
use plimsoll_schemas::policy::Policy;
use plimsoll_schemas::subject::LogSubject;
use plimsoll_schemas::tables::{Learned, Tables};
use tokio::time::timeout;

use super::file::Trained;
use crate::broker::{Broker, Since};
use crate::endpoint::Endpoints;
use crate::error::Error;
use crate::outputs::MadeBy;
use crate::past::{self, Range};
use crate::progress::Progress;

/// Fewest requests to judge on.
const HELD_OUT_MIN: usize = REQUESTS_MIN / 4;
/// How long OUT may take to show what was folded.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which tables.
#[derive(Debug, Args)]
pub struct Promote {
    /// A file that `policy train` wrote
    file: PathBuf,
    /// Put them into force even if they do not do better
    #[arg(long)]
    force: bool,
}

/// Judges, and puts into force.
pub async fn run(endpoints: &Endpoints, options: Promote) -> Result<ExitCode, Error> {
    let trained = Trained::read(&options.file)?;
    let incumbent = past::tables_in_force(endpoints).await?;
    if incumbent.as_ref().is_some_and(|incumbent| incumbent.hash == trained.hash) {
        say(&format!("tables {} are in force already", trained.hash))?;
        return Ok(ExitCode::SUCCESS);
    }
    let past = past::read(endpoints, Range { from: Some(trained.held_out_from), to: None }, HELD_OUT_MIN).await?;
    let verdict = Verdict::of(&past, &trained, incumbent.as_ref());
    say(&verdict.text(&trained.hash, incumbent.as_ref()))?;
    if !verdict.is_better() && !options.force {
        return Err(Error::Refused(format!(
            "not promoted: {:.2} percentage points worse; --force puts them into force anyway",
            (mean(&verdict.new) - mean(&verdict.incumbent)) as f64 / 1e4
        )));
    }
    let learned = Learned {
        hash: trained.hash,
        unallocated_ppm: ppm(&verdict.new),
        incumbent_unallocated_ppm: ppm(&verdict.incumbent),
        incumbent_hash: incumbent.map(|incumbent| incumbent.hash),
        tables: trained.tables,
    };
    let sequence = put_into_force(endpoints, learned).await?;
    say(&format!("in the log as record {sequence}, in force"))?;
    Ok(ExitCode::SUCCESS)
}

/// What new tables and those in force leave unallocated, millionths, sequence by sequence.
struct Verdict {
    requests: usize,
    new: Vec<u64>,
    incumbent: Vec<u64>,
}

impl Verdict {
    /// On sequences of seeds that training did not use.
    fn of(past: &Past, trained: &Trained, incumbent: Option<&Learned>) -> Self {
        let workload = past.workload(0..past.asked().len());
        let sequences = Judge::new(&workload, trained.seed_after..trained.seed_after + JUDGING);
        let progress = Progress::new("fillings", 2 * sequences.len());
        let untaught = Tables::untaught(workload.models());
        let scores = |tables: &Tables| judge(&sequences, &workload, LEARNS, tables, &|| progress.next());
        let (new, incumbent) = (scores(&trained.tables), scores(incumbent.map_or(&untaught, |learned| &learned.tables)));
        progress.end();
        Self { requests: past.asked().len(), new, incumbent }
    }

    /// Whether the new tables leave less; as much is not better.
    fn is_better(&self) -> bool {
        mean(&self.new) < mean(&self.incumbent)
    }

    fn text(&self, hash: &str, incumbent: Option<&Learned>) -> String {
        let wins = self.new.iter().zip(&self.incumbent).filter(|(new, incumbent)| new < incumbent).count();
        format!(
            "on {} sequences of {} requests that nothing was learned from, tables {hash} leave {} unallocated, {} {}; better on {wins}",
            self.new.len(),
            self.requests,
            percent(mean(&self.new)),
            incumbent.map_or_else(|| "without tables".to_owned(), |incumbent| format!("those in force ({})", incumbent.hash)),
            percent(mean(&self.incumbent)),
        )
    }
}

/// Appends the record and waits until OUT shows what became of it.
async fn put_into_force(endpoints: &Endpoints, learned: Learned) -> Result<u64, Error> {
    let broker = Broker::connect(endpoints).await?;
    let mut follow = broker.follow(&["policy".to_owned(), "rejected".to_owned()], Since::Now).await?;
    let hash = learned.hash.clone();
    let sequence = broker.append(&LogSubject::Control, &Control::Tables(Box::new(learned))).await?;
    let shown = async {
        loop {
            let (event, _) = follow.next().await?;
            if MadeBy::of_event(&event).is_none_or(|made_by| made_by.sequence != sequence) {
                continue;
            }
            match event.data {
                Payload::Policy(changed) => {
                    if let Policy::Tables(learned) = changed.policy
                        && learned.hash == hash
                    {
                        return Ok(sequence);
                    }
                }
                Payload::Rejected(rejected) => {
                    let (reason, why) = (rejected.reason, rejected.raw);
                    return Err(Error::Refused(format!("record {sequence} was refused and changes nothing: {reason}: {why}")));
                }
                Payload::Decided(_)
                | Payload::Distributed(_)
                | Payload::Lease(_)
                | Payload::Device(_)
                | Payload::Host(_)
                | Payload::Gap(_)
                | Payload::Alert(_)
                | Payload::Preemption(_)
                | Payload::Pace(_) => {}
            }
        }
    };
    timeout(PATIENCE, shown).await.unwrap_or_else(|_| {
        let seconds = PATIENCE.as_secs();
        Err(Error::Refused(format!("record {sequence} is in the log, but OUT does not show it after {seconds} s: is the processor running?")))
    })
}

fn say(text: &str) -> Result<(), Error> {
    writeln!(std::io::stdout(), "{text}").map_err(Error::io("cannot write the answer"))
}

fn ppm(scores: &[u64]) -> u32 {
    u32::try_from(mean(scores)).unwrap_or(u32::MAX)
}

fn percent(ppm: u64) -> String {
    format!("{:.2} %", ppm as f64 / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tables_that_leave_less_are_better() {
        let verdict = |new: [u64; 2], incumbent: [u64; 2]| Verdict { requests: 40, new: new.to_vec(), incumbent: incumbent.to_vec() };
        assert!(verdict([40_000, 50_000], [60_000, 40_000]).is_better());
        assert!(!verdict([40_000, 60_000], [60_000, 40_000]).is_better());
        let text = verdict([40_000, 50_000], [60_000, 40_000]).text("00ff", None);
        assert!(text.ends_with("tables 00ff leave 4.50 % unallocated, without tables 5.00 %; better on 1"), "{text}");
    }
}
