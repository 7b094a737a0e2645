//! Where fragmentation neither falls nor grows, the published program does not always see that: it sums doubles by the reason
//! for which a shape finds no use for what is idle, and where a placement only changes that reason, the sums are rounded
//! differently. What comes out a little below zero loses against what comes out at zero, so its decisions depend on it. Here
//! are the same sums, in integers.

use super::double::Double;
use super::host::Host;
use super::shape::Shape;
use super::typical::{Typical, Weighted};

/// A difference this far below zero, in thousandths of a GPU, is the first that the published program sees as a loss:
/// 1.5 × 2^-52 as the argument of its logistic function, where e^x becomes a number whose inverse lies below a half.
const SEEN: (i64, u32) = (1_500, 52);
/// Reasons, in the order in which they are summed: CPU and GPU are short, GPU, CPU, no GPU asked for, that and CPU short, model.
const LABELS: usize = 6;

/// The published sums.
#[derive(Debug, Clone)]
pub struct Level {
    shapes: Vec<(Weighted, Double)>,
}

impl Level {
    /// Against this mix of requests.
    pub fn new(typical: &Typical) -> Self {
        let requests = typical.requests.max(1);
        let covered = Double::quotient(typical.weight, requests);
        let share = |weight: i64| {
            let share = Double::quotient(weight, requests);
            // Where every shape is typical nothing is left to be made up for.
            if typical.weight == typical.requests { share } else { share.over(covered) }
        };
        Self { shapes: typical.shapes.iter().map(|shape| (*shape, share(shape.weight))).collect() }
    }

    /// Whether a placement that changes nothing in fragmentation is published as a loss. It fits.
    pub fn seen_as_loss(&self, host: &Host<'_>, shape: &Shape, gpus: u64) -> bool {
        let cpu_after = host.cpu_milli - shape.cpu_milli;
        let crosses = |cpu_milli: i64| cpu_after < cpu_milli && cpu_milli <= host.cpu_milli;
        if host.idle_milli == 0 || (shape.gpus == 0 && !self.shapes.iter().any(|(typical, _)| crosses(typical.cpu_milli))) {
            return false;
        }
        let after: Vec<i32> = host.gpus.iter().enumerate().map(|(gpu, left)| left - shape.milli * (gpus >> gpu & 1) as i32).collect();
        let (before, after) = (self.sum(host.model, host.cpu_milli, host.gpus), self.sum(host.model, cpu_after, &after));
        let (least, point) = SEEN;
        before.is_below(after) && !before.distance(after).is_below(Double::scaled(least, point))
    }

    fn sum(&self, model: u8, cpu_milli: i64, gpus: &[i32]) -> Double {
        let idle = sum_of(gpus.iter());
        let mut sums = [Double::ZERO; LABELS];
        for (shape, share) in &self.shapes {
            let enough_cpu = cpu_milli >= shape.cpu_milli;
            let enough_gpus = gpus.iter().filter(|&&left| left >= shape.milli).count() >= shape.gpus as usize;
            let (label, amount) = match (shape.gpus, enough_cpu, enough_gpus) {
                (0, true, _) => (3, idle),
                (0, false, _) => (4, idle),
                _ if !shape.models.allow(model) => (5, idle),
                (_, true, true) => (1, sum_of(gpus.iter().filter(|&&left| left < shape.milli))),
                (_, false, false) => (0, idle),
                (_, true, false) => (1, idle),
                (_, false, true) => (2, idle),
            };
            sums[label] = sums[label].plus(share.times(Double::scaled(amount, 0)));
        }
        sums.into_iter().fold(Double::ZERO, Double::plus)
    }
}

fn sum_of<'a>(lefts: impl Iterator<Item = &'a i32>) -> i64 {
    lefts.map(|&left| i64::from(left)).sum()
}

#[cfg(test)]
mod tests {
    use super::super::host::CLASSES;
    use super::super::shape::Models;
    use super::*;

    /// The same with the machine's doubles.
    fn by_doubles(typical: &Typical, cpu_milli: i64, gpus: &[i32]) -> f64 {
        let idle: i32 = gpus.iter().sum();
        let mut sums = [0.0; LABELS];
        for shape in &typical.shapes {
            let requests = typical.requests as f64;
            let share = shape.weight as f64 / requests / (typical.weight as f64 / requests);
            let room = gpus.iter().filter(|&&left| left >= shape.milli).count() >= shape.gpus as usize;
            let small: i32 = gpus.iter().filter(|&&left| left < shape.milli).sum();
            let (label, amount) = match (shape.gpus, cpu_milli >= shape.cpu_milli, room) {
                (0, enough, _) => (if enough { 3 } else { 4 }, idle),
                (_, true, true) => (1, small),
                (_, true, false) => (1, idle),
                (_, false, room) => (if room { 2 } else { 0 }, idle),
            };
            sums[label] += share * f64::from(amount);
        }
        sums.iter().sum()
    }

    #[test]
    fn a_loss_is_seen_where_doubles_show_one() {
        let weights = [3_001, 1_733, 919, 401, 211, 101, 53, 29];
        let shapes: Vec<Weighted> = (0..)
            .zip(weights)
            .map(|(number, weight)| Weighted {
                cpu_milli: number * 1_000,
                gpus: u32::from(number % 3 != 0),
                milli: if number % 3 == 0 { 0 } else { 1_000 },
                models: Models::ANY,
                weight,
            })
            .collect();
        let weight = shapes.iter().map(|shape| shape.weight).sum();
        let typical = Typical { shapes, weight, requests: weight + 313 };
        let level = Level::new(&typical);
        let mut seen = 0;
        for left in (10..1_000).step_by(10) {
            for cpu_milli in 1..8 {
                let gpus = [left, 990, 980, 970, 810, 760, 540, 190];
                let host = Host {
                    index: 0,
                    model: 0,
                    excluded: false,
                    cpu_milli: cpu_milli * 1_000,
                    memory_mib: 0,
                    gpus: &gpus,
                    idle_milli: i64::from(gpus.iter().sum::<i32>()),
                    classes: &[0; CLASSES],
                    open: u64::MAX,
                    scores: &[],
                    wakes_mw: &[],
                    host_mw: 0,
                };
                let shape = Shape { cpu_milli: 1_000, memory_mib: 0, gpus: 0, milli: 0, models: Models::ANY };
                let loss = by_doubles(&typical, (cpu_milli - 1) * 1_000, &gpus) - by_doubles(&typical, cpu_milli * 1_000, &gpus);
                let expected = (100.0 / (1.0 + (loss / 1_000.0).exp())) as i64 == 49;
                assert_eq!(level.seen_as_loss(&host, &shape, 0), expected, "{gpus:?} {cpu_milli} {loss:e}");
                seen += u32::from(expected);
            }
        }
        assert!(seen > 0, "no case in which a loss is seen");
    }
}
