//! One lesson: rehearses with sequences drawn from some requests, and judges on sequences drawn from others, or of other seeds.

use super::Policy;
use super::catalogue::Name;
use super::learn::{self, Lesson, Rehearsal};
use super::placer::Placer;
use super::tables::Tables;
use super::workload::{Sequence, Workload, fill};

/// Load up to which sequences go on which tables are judged, percent.
pub const JUDGED_LOAD_PERCENT: u32 = 130;
/// Arrived load at which what stays unallocated counts, percent.
pub const MARKS: [usize; 5] = [90, 95, 100, 110, 130];

/// How to learn.
#[derive(Debug, Clone)]
pub struct Plan<'a> {
    /// The policy that learns, by playing itself.
    pub policy: Name,
    /// Rounds of rehearsals.
    pub rounds: usize,
    /// Seeds to rehearse with: dealt out to the rounds in order, and again from the first where there are too few.
    pub rehearsed: Vec<u64>,
    /// Load up to which rehearsals go, percent of the GPUs.
    pub load_percent: u32,
    /// What tells which round taught best.
    pub judge: &'a Judge<'a>,
}

/// Sequences on which tables are judged.
#[derive(Debug, Clone)]
pub struct Judge<'a> {
    workload: &'a Workload,
    sequences: Vec<Sequence>,
}

impl<'a> Judge<'a> {
    /// On sequences of these seeds, drawn from a workload.
    pub fn new(workload: &'a Workload, seeds: impl IntoIterator<Item = u64>) -> Self {
        Self { workload, sequences: seeds.into_iter().map(|seed| workload.drawn(seed, JUDGED_LOAD_PERCENT)).collect() }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there is no sequence, and so no judgement.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// What a policy leaves unallocated on each sequence, millionths of the fleet, mean over the marks. `policy` makes it anew for each.
    pub fn scores(&self, policy: impl Fn() -> Box<dyn Policy + Send>) -> Vec<u64> {
        self.sequences.iter().map(|sequence| unallocated_ppm(self.workload, sequence, policy())).collect()
    }
}

/// The mean of scores.
pub fn mean(scores: &[u64]) -> u64 {
    scores.iter().sum::<u64>() / scores.len().max(1) as u64
}

/// What the policy learns from a workload. Scores are [`mean`]s over the judge's sequences. `next` is called before each of
/// [`Plan::runs`].
pub fn learn(workload: &Workload, plan: &Plan<'_>, next: &dyn Fn()) -> Lesson {
    let each = plan.each();
    let mut dealt = plan.rehearsed.iter().cycle();
    let round = |_| dealt.by_ref().take(each).map(|&seed| rehearsal(workload, seed, plan.load_percent)).collect();
    let rounds: Vec<Vec<Rehearsal>> = (0..plan.rounds).map(round).collect();
    let made = |tables: &Tables| {
        next();
        workload.policy(plan.policy, tables, 0)
    };
    learn::learn(workload.models(), &rounds, made, |tables| mean(&plan.judge.scores(|| made(tables))))
}

impl Plan<'_> {
    /// Rehearsals of each round.
    fn each(&self) -> usize {
        (self.rehearsed.len() / self.rounds.max(1)).max(1)
    }

    /// How often a fleet is filled.
    pub fn runs(&self) -> usize {
        self.rounds * (self.each() + self.judge.len())
    }
}

fn rehearsal(workload: &Workload, seed: u64, load_percent: u32) -> Rehearsal {
    let sequence = workload.drawn(seed, load_percent);
    Rehearsal { fleet: workload.fleet(&sequence.ranks), requests: workload.asked(&sequence).copied().collect(), seed }
}

fn unallocated_ppm(workload: &Workload, sequence: &Sequence, policy: Box<dyn Policy + Send>) -> u64 {
    let mut placer = Placer::new(workload.fleet(&sequence.ranks), policy);
    let curve = fill(&mut placer, workload.asked(sequence));
    let left: Vec<u64> = MARKS.iter().filter_map(|&mark| curve.unallocated_ppm(mark)).map(u64::from).collect();
    mean(&left)
}
