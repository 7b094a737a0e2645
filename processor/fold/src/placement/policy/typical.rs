//! The mix of requests a fleet usually gets: its most frequent shapes, with how often they come.

use std::collections::BTreeMap;

use super::shape::{Models, Shape};

/// Share of all requests that the typical shapes cover, percent.
pub const COVERED_PERCENT: i64 = 95;

/// One typical shape. The host's memory plays no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted {
    /// CPU, thousandths of a core.
    pub cpu_milli: i64,
    /// GPUs; 0 = CPU only.
    pub gpus: u32,
    /// Thousandths of each.
    pub milli: i32,
    /// The models that will do.
    pub models: Models,
    /// How many requests had it.
    pub weight: i64,
}

/// The typical shapes, most frequent first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Typical {
    /// The shapes.
    pub shapes: Vec<Weighted>,
    /// Sum of their weights.
    pub weight: i64,
    /// How many requests there were, of any shape.
    pub requests: i64,
}

impl Typical {
    /// The most frequent shapes that cover [`COVERED_PERCENT`] of the requests; of equally frequent ones the larger first.
    ///
    /// A request is told apart from others by its constraint as it was written, so `A|B` and `B|A` are two.
    ///
    /// Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, section 4, as its published simulator counts.
    pub fn of<'a>(requests: impl IntoIterator<Item = (&'a Shape, &'a str)>) -> Self {
        Self::of_counted(requests.into_iter().map(|(shape, constraint)| (shape, constraint, 1)))
    }

    /// The same, of requests that are counted already.
    pub fn of_counted<'a>(requests: impl IntoIterator<Item = (&'a Shape, &'a str, i64)>) -> Self {
        let mut typical = Self::default();
        let mut counts: BTreeMap<(i64, i32, u32, &str), (i64, Models)> = BTreeMap::new();
        for (shape, constraint, count) in requests {
            let models = if shape.gpus == 0 { Models::ANY } else { shape.models };
            counts.entry((shape.cpu_milli, shape.milli, shape.gpus, constraint)).or_insert((0, models)).0 += count;
            typical.requests += count;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|(a, (a_count, _)), (b, (b_count, _))| (b_count, b).cmp(&(a_count, a)));
        for ((cpu_milli, milli, gpus, _), (weight, models)) in counts {
            if typical.weight * 100 >= typical.requests * COVERED_PERCENT {
                break;
            }
            typical.shapes.push(Weighted { cpu_milli, gpus, milli, models, weight });
            typical.weight += weight;
        }
        typical
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_shapes_are_left_out_once_enough_are_covered() {
        let shape = |cpu_milli, milli| Shape { cpu_milli, memory_mib: 0, gpus: 1, milli, models: Models::ANY };
        let (often, less, rare) = (shape(1, 1_000), shape(2, 500), shape(3, 100));
        let mix = |counts: [usize; 3]| {
            let requests =
                std::iter::repeat_n(&often, counts[0]).chain(std::iter::repeat_n(&less, counts[1])).chain(std::iter::repeat_n(&rare, counts[2]));
            let typical = Typical::of(requests.map(|shape| (shape, "")));
            assert_eq!(typical.weight, typical.shapes.iter().map(|shape| shape.weight).sum::<i64>());
            typical.shapes.iter().map(|shape| shape.cpu_milli).collect::<Vec<_>>()
        };
        assert_eq!(mix([95, 4, 1]), [1]);
        assert_eq!(mix([94, 4, 2]), [1, 2]);
        assert_eq!(mix([40, 40, 20]), [2, 1, 3]);
    }
}
