//! Learns tables by rehearsal: fills an empty fleet again and again with requests like the recorded ones, and notes how much of
//! what was left on a GPU was still idle in the end. In integers, from seeds: the same rehearsals give the same tables.

use super::Policy;
use super::draw::Draw;
use super::fleet::{Fleet, Place};
use super::host::Host;
use super::placer::Placer;
use super::random::Random;
use super::shape::Shape;
use super::tables::{CELLS, CENTI, RATIOS, Tables, cell, ratio};

/// Placements made at random instead, so that places nobody would choose are known too, percent.
const RANDOM_PERCENT: u64 = 3;
/// What is left after a round of the weight of the rounds before it, percent.
const KEPT_PERCENT: i64 = 60;
/// Weight of a range beside the one in question, by distance; thousandths.
const BESIDE: [i64; 4] = [1_000, 300, 90, 27];
/// Visits that the ranges beside count for together.
const BESIDE_VISITS: i64 = 100;
/// One visit.
const VISIT: i64 = 1_000;

/// What a round of rehearsals taught, and how well it does.
#[derive(Debug, Clone)]
pub struct Lesson {
    /// The tables after the best round.
    pub tables: Tables,
    /// The score of each round; the least was kept.
    pub scores: Vec<u64>,
}

/// Rehearses round after round and keeps the tables whose `score` is least, of equals the
/// earliest. `policy` makes the policy that plays with the tables learned so far.
pub fn learn(
    models: &[String],
    rounds: &[Vec<Rehearsal>],
    policy: impl Fn(&Tables) -> Box<dyn Policy + Send>,
    score: impl Fn(&Tables) -> u64,
) -> Lesson {
    let mut learner = Learner::new(models);
    let mut lesson = Lesson { tables: learner.tables(), scores: Vec::with_capacity(rounds.len()) };
    let mut tables = lesson.tables.clone();
    for rehearsals in rounds {
        learner.next_round();
        rehearsals.iter().for_each(|rehearsal| learner.rehearse(rehearsal, policy(&tables)));
        tables = learner.tables();
        let score = score(&tables);
        if lesson.scores.iter().all(|&earlier| score < earlier) {
            lesson.tables = tables.clone();
        }
        lesson.scores.push(score);
    }
    lesson
}

/// One filling: an empty fleet and what arrives.
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// The empty fleet.
    pub fleet: Fleet,
    /// What arrives, in order.
    pub requests: Vec<Shape>,
    /// For the random placements.
    pub seed: u64,
}

/// What has been seen so far.
#[derive(Debug, Clone)]
pub struct Learner {
    untaught: Tables,
    /// Visits of each cell.
    visits: Vec<i64>,
    /// Thousandths of a GPU still idle in the end, summed over visits.
    idle: Vec<i64>,
}

impl Learner {
    /// Nothing yet, for a fleet with these models.
    pub fn new(models: &[String]) -> Self {
        let untaught = Tables::untaught(models);
        let cells = untaught.cells.len();
        Self { untaught, visits: vec![0; cells], idle: vec![0; cells] }
    }

    /// Lets what was seen before count less than what comes.
    pub fn next_round(&mut self) {
        for number in self.visits.iter_mut().chain(&mut self.idle) {
            *number = *number * KEPT_PERCENT / 100;
        }
    }

    /// Fills the fleet with this policy and notes what became of every GPU.
    pub fn rehearse(&mut self, rehearsal: &Rehearsal, mut policy: Box<dyn Policy + Send>) {
        policy.rehearse();
        let mut placer = Placer::new(rehearsal.fleet.clone(), policy);
        let (mut draw, mut random) = (Draw::new(rehearsal.seed), Random::new(rehearsal.seed));
        let mut seen: Vec<(usize, usize)> = Vec::new();
        for host in 0..rehearsal.fleet.len() {
            note(&rehearsal.fleet, host, &mut seen);
        }
        for shape in &rehearsal.requests {
            let by_chance = draw.below(100) < RANDOM_PERCENT;
            let place = if by_chance { anywhere(placer.fleet(), &mut random, shape) } else { placer.choose(shape) };
            if let Some(place) = place {
                placer.take(place, shape);
                note(placer.fleet(), place.host, &mut seen);
            }
        }
        let left: Vec<i32> = placer.fleet().hosts().flat_map(|host| host.gpus.to_vec()).collect();
        for (gpu, cell) in seen {
            self.visits[cell] += VISIT;
            self.idle[cell] += VISIT * i64::from(left[gpu]);
        }
    }

    /// What has been learned. A cell that was seldom seen is taken to be like those beside it, and one that nobody has seen as
    /// untaught.
    pub fn tables(&self) -> Tables {
        let mut tables = self.untaught.clone();
        for (number, value) in tables.cells.iter_mut().enumerate().filter(|(number, _)| number % CELLS >= RATIOS) {
            let row = number - number % RATIOS;
            let (mut visits, mut idle) = (VISIT * VISIT, i128::from(VISIT * VISIT) * i128::from(*value));
            for ratio in 0..RATIOS {
                if let Some(&weight) = BESIDE.get((number % RATIOS).abs_diff(ratio)) {
                    visits += weight * self.visits[row + ratio];
                    idle += i128::from(weight) * i128::from(self.idle[row + ratio]) * i128::from(CENTI);
                }
            }
            let beside = idle / i128::from(visits);
            let own = i128::from(self.idle[number]) * i128::from(CENTI) + beside * i128::from(BESIDE_VISITS * VISIT);
            let mean = own / i128::from(self.visits[number] + BESIDE_VISITS * VISIT);
            *value = i32::try_from(mean).expect("at most a whole GPU stays idle of one");
        }
        tables
    }
}

/// Notes every GPU of a host with something left: its number in the fleet and its cell.
fn note(fleet: &Fleet, host: usize, seen: &mut Vec<(usize, usize)>) {
    let (first, host) = (fleet.first_gpu(host), fleet.host(host));
    let ratio = ratio(host.cpu_milli, host.idle_milli);
    let left = host.gpus.iter().enumerate().filter(|&(_, &left)| left > 0);
    seen.extend(left.map(|(gpu, &left)| (first + gpu, usize::from(host.model) * CELLS + cell(left, ratio))));
}

fn anywhere(fleet: &Fleet, random: &mut Random, shape: &Shape) -> Option<Place> {
    random.next_turn();
    let fitting = fleet.hosts().filter(|host: &Host<'_>| host.fits(shape).is_ok());
    let bids = fitting.map(|host| (random.bid(&host, shape), host.index));
    bids.max_by_key(|(bid, index)| (bid.key, *index)).map(|(bid, host)| Place { host, gpus: bid.gpus })
}

#[cfg(test)]
mod tests {
    use super::super::fleet::HostSpec;
    use super::super::shape::{Models, counted};
    use super::super::tw::Tw;
    use super::*;

    fn rehearsal(seed: u64) -> Rehearsal {
        let host =
            |number: u32| HostSpec { name: format!("h{number}"), rank: number, cpu_milli: 64_000, memory_mib: 0, gpus: 4, model: "G2".to_owned() };
        let fleet = Fleet::new((0..20).map(host).collect()).expect("valid");
        let mut draw = Draw::new(seed);
        let shape = |milli| Shape { cpu_milli: 1_000, memory_mib: 0, gpus: 1, milli, models: Models::ANY };
        // Of what 700 leaves nothing can be used; of what 400 leaves, another 400, and then 200 stay idle.
        let requests = (0..200).map(|_| shape(if draw.below(2) == 0 { 700 } else { 400 })).collect();
        Rehearsal { fleet, requests, seed }
    }

    #[test]
    fn what_nobody_can_use_is_learned_to_stay_idle() {
        let rounds = [vec![rehearsal(1), rehearsal(2)], vec![rehearsal(3)]];
        let requests = counted(&rehearsal(1).requests);
        let lesson = || learn(rounds[0][0].fleet.models(), &rounds, |tables| Box::new(Tw::new(tables, &requests)), |_| 7);
        let taught = lesson();
        assert_eq!(taught.scores, [7, 7]);
        let largest = |left: i32| (0..RATIOS).map(|ratio| taught.tables.cells[cell(left, ratio)]).max().expect("ratios");
        assert!(largest(300) > 25_000, "{}", largest(300));
        assert!((18_000..24_000).contains(&largest(600)), "{}", largest(600));
        assert_eq!(taught.tables, lesson().tables);
    }
}
