//! Learning for the experiment: from sequences of our own, never from those that are tested.

use super::arrivals::{self, Sequence};
use super::{Workload, run};
use crate::placement::policy::Policy;
use crate::placement::policy::catalogue::{Name, Parts};
use crate::placement::policy::learn::{self, Lesson, Rehearsal};
use crate::placement::policy::placer::Placer;
use crate::placement::policy::tables::Tables;

/// Rounds of rehearsals.
const ROUNDS: usize = 6;
/// Last seeds that are not rehearsed with, but tell which round taught best.
pub const VALIDATING: usize = 2;
/// Load up to which these go, percent.
const VALIDATING_LOAD_PERCENT: u32 = 130;
/// Arrived load at which what stays unallocated counts, percent.
pub const MARKS: [usize; 5] = [90, 95, 100, 110, 130];

/// What to learn from.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Seeds of sequences; the last [`VALIDATING`] of them choose among the rounds.
    pub seeds: Vec<u64>,
    /// Load up to which the others go, percent of the GPUs.
    pub load_percent: u32,
}

/// What the policy learns, playing itself; nothing where the plan has too few seeds. Scores are millionths of the fleet that
/// stay unallocated, mean over the marks.
pub fn learn(workload: &Workload, policy: Name, plan: &Plan) -> Option<Lesson> {
    let rehearsed = plan.seeds.len().checked_sub(VALIDATING).filter(|&rehearsed| rehearsed > 0)?;
    let (rehearsed, validating) = plan.seeds.split_at(rehearsed);
    let rounds = rounds(rehearsed, |seed| rehearsal(workload, seed, plan.load_percent));
    let validating: Vec<Sequence> = validating.iter().map(|&seed| sequence(workload, seed, VALIDATING_LOAD_PERCENT)).collect();
    let made = |tables: &Tables| policy.policy(Parts { typical: &workload.typical, requests: &workload.requests, tables, seed: 0, turn: 0 });
    let score = |tables: &Tables| {
        let left = validating.iter().map(|sequence| unallocated_ppm(workload, sequence, made(tables)));
        left.sum::<u64>() / validating.len() as u64
    };
    Some(learn::learn(workload.models(), &rounds, made, score))
}

/// The rehearsals of each round: the seeds dealt out in order, and again from the first where there are fewer than rounds.
fn rounds(seeds: &[u64], rehearsal: impl Fn(u64) -> Rehearsal) -> Vec<Vec<Rehearsal>> {
    let each = (seeds.len() / ROUNDS).max(1);
    let mut dealt = seeds.iter().cycle();
    (0..ROUNDS).map(|_| dealt.by_ref().take(each).map(|&seed| rehearsal(seed)).collect()).collect()
}

fn sequence(workload: &Workload, seed: u64, load_percent: u32) -> Sequence {
    arrivals::drawn(seed, &workload.milli(), workload.hosts(), workload.capacity_milli() * i64::from(load_percent) / 100)
}

fn rehearsal(workload: &Workload, seed: u64, load_percent: u32) -> Rehearsal {
    let Sequence { seed, pods, ranks } = sequence(workload, seed, load_percent);
    Rehearsal { fleet: workload.fleet(&ranks), requests: pods.into_iter().map(|pod| workload.shapes[pod]).collect(), seed }
}

fn unallocated_ppm(workload: &Workload, sequence: &Sequence, policy: Box<dyn Policy + Send>) -> u64 {
    let mut placer = Placer::new(workload.fleet(&sequence.ranks), policy);
    let curve = run(&mut placer, sequence.pods.iter().map(|&pod| &workload.shapes[pod]));
    let left: Vec<u64> = MARKS.iter().filter_map(|&mark| curve.unallocated_ppm(mark)).map(u64::from).collect();
    left.iter().sum::<u64>() / left.len().max(1) as u64
}
