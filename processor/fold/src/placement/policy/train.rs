//! Trains tables on a cell's own past: rehearses with the first part of its requests at several loads, keeps what leaves least
//! unallocated on the rest, and says how much that is beside policies that learned nothing.
//!
//! The horizon, the load up to which rehearsals go, is chosen and not known beforehand: where shares dominate, a fleet is full earlier.

use std::ops::Range;

use super::catalogue::Name;
use super::lesson::{self, Judge, Plan, mean};
use super::tables::Tables;
use super::workload::Workload;

/// The policy that learns: the one a cell is meant to place with.
pub const LEARNS: Name = Name::Hybrid;
/// Sequences that choose among rounds and loads.
const CHOOSING: u64 = 4;
/// Sequences on which what was chosen is judged in the end.
pub const JUDGING: u64 = 6;

/// How to train. The same past and the same training give the same tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Training {
    /// Rounds of rehearsals.
    pub rounds: usize,
    /// Rehearsals of each round.
    pub sequences: usize,
    /// First seed. Every sequence has its own: rehearsals first, then those that choose, then those that judge.
    pub seed: u64,
    /// Loads up to which rehearsals go, percent of the GPUs; of those that teach equally well the first is kept.
    pub loads: Vec<u32>,
}

/// What rehearsals up to one load taught.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tried {
    /// The load, percent of the GPUs.
    pub load_percent: u32,
    /// What each round left unallocated on the sequences that choose, millionths of the fleet.
    pub unallocated_ppm: Vec<u64>,
}

/// What was learned. Scores are millionths of the fleet unallocated: means over the sequences that judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trained {
    /// The tables of the best round at the best load.
    pub tables: Tables,
    /// That load, percent of the GPUs.
    pub load_percent: u32,
    /// Every load that was tried.
    pub tried: Vec<Tried>,
    /// The score with these tables.
    pub unallocated_ppm: u64,
    /// The score of the same policy untaught.
    pub untaught_unallocated_ppm: u64,
    /// The score of `fgd`.
    pub fgd_unallocated_ppm: u64,
}

impl Training {
    fn rehearsing(&self) -> Range<u64> {
        self.seed..self.seed + (self.rounds * self.sequences) as u64
    }

    fn choosing(&self) -> Range<u64> {
        let first = self.rehearsing().end;
        first..first + CHOOSING
    }

    fn judging(&self) -> Range<u64> {
        let first = self.choosing().end;
        first..first + JUDGING
    }

    /// The first seed that training does not use.
    pub fn seed_after(&self) -> u64 {
        self.judging().end
    }

    fn plan<'a>(&self, load_percent: u32, judge: &'a Judge<'a>) -> Plan<'a> {
        Plan { policy: LEARNS, rounds: self.rounds, rehearsed: self.rehearsing().collect(), load_percent, judge }
    }

    /// Learns from `rehearsed`, chooses and judges on `held_out`, a workload on the same hosts. `next` is called before each of
    /// [`Training::runs`].
    pub fn run(&self, rehearsed: &Workload, held_out: &Workload, next: &dyn Fn()) -> Trained {
        let choosing = Judge::new(held_out, self.choosing());
        let (mut best, mut tried): (Option<(u64, u32, Tables)>, _) = (None, Vec::new());
        for &load_percent in &self.loads {
            let lesson = lesson::learn(rehearsed, &self.plan(load_percent, &choosing), next);
            let score = lesson.scores.iter().copied().min().unwrap_or(u64::MAX);
            if best.as_ref().is_none_or(|(least, ..)| score < *least) {
                best = Some((score, load_percent, lesson.tables));
            }
            tried.push(Tried { load_percent, unallocated_ppm: lesson.scores });
        }
        let (_, load_percent, tables) = best.unwrap_or_else(|| (0, 0, Tables::untaught(rehearsed.models())));
        let judging = Judge::new(held_out, self.judging());
        let score = |policy: Name, tables: &Tables| mean(&judge(&judging, rehearsed, policy, tables, next));
        Trained {
            unallocated_ppm: score(LEARNS, &tables),
            untaught_unallocated_ppm: score(LEARNS, &Tables::untaught(rehearsed.models())),
            fgd_unallocated_ppm: score(Name::Fgd, &tables),
            load_percent,
            tables,
            tried,
        }
    }

    /// How often a fleet is filled.
    pub fn runs(&self) -> usize {
        let each = self.rounds * (self.sequences + CHOOSING as usize);
        self.loads.len() * each + 3 * JUDGING as usize
    }
}

/// What a policy that knows the mix of a workload leaves unallocated on each of the judge's sequences, millionths of the fleet. `next` is
/// called before each.
pub fn judge(judge: &Judge<'_>, known: &Workload, policy: Name, tables: &Tables, next: &dyn Fn()) -> Vec<u64> {
    judge.scores(|| {
        next();
        known.policy(policy, tables, 0)
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::fleet::HostSpec;
    use super::super::shape::{Models, Shape};
    use super::*;

    fn workload(milli: [i32; 4]) -> Workload {
        let host = |number: u32| HostSpec { name: format!("h{number}"), rank: 0, cpu_milli: 0, memory_mib: 0, gpus: 4, model: "A".to_owned() };
        let shape = |milli| (Shape { cpu_milli: 0, memory_mib: 0, gpus: 1, milli, models: Models::ANY }, "");
        Workload::new((0..10).map(host).collect(), milli.map(shape)).expect("a fleet")
    }

    #[test]
    fn the_same_past_and_seed_give_the_same_tables_and_every_filling_is_counted() {
        let (rehearsed, held_out) = (workload([700, 400, 400, 1_000]), workload([700, 400, 300, 1_000]));
        let training = Training { rounds: 2, sequences: 2, seed: 5, loads: vec![92, 100] };
        let fillings = Cell::new(0);
        let trained = training.run(&rehearsed, &held_out, &|| fillings.set(fillings.get() + 1));
        assert_eq!(fillings.get(), training.runs());
        assert_eq!(trained, training.run(&rehearsed, &held_out, &|| {}));
        assert_eq!(trained.tables.check(), Ok(()));
        let least = trained.tried.iter().map(|tried| *tried.unallocated_ppm.iter().min().expect("rounds")).collect::<Vec<_>>();
        assert_eq!(trained.load_percent, if least[1] < least[0] { 100 } else { 92 }, "{least:?}");
        // Rehearsals, four that choose, six that judge: no sequence is used for two ends.
        assert_eq!(training.seed_after(), 5 + 4 + 4 + 6);
        let other = Training { seed: 6, ..training };
        assert_ne!(other.run(&rehearsed, &held_out, &|| {}).tables, trained.tables);
    }
}
