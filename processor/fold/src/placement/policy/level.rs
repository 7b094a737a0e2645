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
