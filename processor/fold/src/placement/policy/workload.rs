//! Hosts, and what is asked of them: what policies are compared on and learn from.

use super::Policy;
use super::catalogue::{Name, Parts};
use super::curve::Curve;
use super::draw::Draw;
use super::fleet::{Error, Fleet, HostSpec};
use super::placer::Placer;
use super::shape::{Shape, counted};
use super::tables::Tables;
use super::typical::Typical;

/// Hosts, and what is asked of them.
#[derive(Debug, Clone)]
pub struct Workload {
    hosts: Vec<HostSpec>,
    models: Vec<String>,
    /// What each request asks for, in the order in which they were recorded.
    pub shapes: Vec<Shape>,
    /// How often each shape comes among them.
    requests: Vec<(Shape, i64)>,
    /// The mix of all requests.
    pub typical: Typical,
}

/// An order in which requests arrive, and one of hosts that are worth the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// The seed it was made from.
    pub seed: u64,
    /// Requests by their place in the workload.
    pub requests: Vec<usize>,
    /// Rank of each host, hosts in the workload's order; the lesser wins a tie.
    pub ranks: Vec<u32>,
}

impl Workload {
    /// Of these hosts and requests, each with its constraint as it was written. Errors: the hosts make no fleet.
    pub fn new<'a>(hosts: Vec<HostSpec>, requests: impl IntoIterator<Item = (Shape, &'a str)>) -> Result<Self, Error> {
        let models = Fleet::new(hosts.clone())?.models().to_vec();
        let (shapes, constraints): (Vec<Shape>, Vec<&str>) = requests.into_iter().unzip();
        let typical = Typical::of(shapes.iter().zip(constraints));
        let requests = counted(&shapes);
        Ok(Self { hosts, models, shapes, requests, typical })
    }

    /// A policy that knows this mix of requests. `seed` is for `random`.
    pub fn policy(&self, name: Name, tables: &Tables, seed: u64) -> Box<dyn Policy + Send> {
        name.policy(Parts { typical: &self.typical, requests: &self.requests, tables, seed, turn: 0 })
    }

    /// The hosts, empty, with these ranks.
    pub fn fleet(&self, ranks: &[u32]) -> Fleet {
        let ranked = self.hosts.iter().zip(ranks).map(|(host, &rank)| HostSpec { rank, ..host.clone() });
        Fleet::new(ranked.collect()).expect("the same hosts made a fleet before, and rank changes only their order")
    }

    /// The names of the models, by number.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// Number of hosts.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Thousandths of GPU there are.
    fn capacity_milli(&self) -> i64 {
        self.hosts.iter().map(|host| host.gpus as i64 * 1_000).sum()
    }

    /// A sequence of our own: all requests in a random order, then requests drawn again, until this load arrives, percent of the GPUs.
    pub fn drawn(&self, seed: u64, load_percent: u32) -> Sequence {
        let load_milli = self.capacity_milli() * i64::from(load_percent) / 100;
        let milli: Vec<i64> = self.shapes.iter().map(Shape::total_milli).collect();
        let mut draw = Draw::new(seed);
        let mut order: Vec<usize> = (0..milli.len()).collect();
        draw.shuffle(&mut order);
        let (mut requests, mut arrived) = (Vec::with_capacity(milli.len()), 0);
        let mut next = order.into_iter();
        // A list without any GPU would never arrive at a load: it arrives once.
        let endless = milli.iter().any(|&milli| milli > 0);
        while arrived < load_milli {
            let request = match next.next() {
                Some(request) => request,
                None if endless => draw.below(milli.len() as u64) as usize,
                None => break,
            };
            requests.push(request);
            arrived += milli[request];
        }
        let mut ranks: Vec<u32> = (0..).take(self.hosts.len()).collect();
        draw.shuffle(&mut ranks);
        Sequence { seed, requests, ranks }
    }

    /// What a sequence asks for, in its order.
    pub fn asked<'a>(&'a self, sequence: &'a Sequence) -> impl Iterator<Item = &'a Shape> {
        sequence.requests.iter().map(|&request| &self.shapes[request])
    }
}

/// Offers the shapes one after the other and measures; a request that does not fit is forgotten.
pub fn fill<'a>(placer: &mut Placer, shapes: impl IntoIterator<Item = &'a Shape>) -> Curve {
    let mut curve = Curve::new(placer.fleet().capacity_milli());
    for shape in shapes {
        let placed = placer.place(shape).is_some();
        curve.add(shape.total_milli(), placed);
    }
    curve
}

#[cfg(test)]
mod tests {
    use super::super::shape::Models;
    use super::*;

    #[test]
    fn a_drawn_sequence_brings_every_request_once_and_then_some_again() {
        let host = |name: &str, gpus| HostSpec { name: name.to_owned(), rank: 0, cpu_milli: 0, memory_mib: 0, gpus, model: "T4".to_owned() };
        let shape = |gpus, milli| Shape { cpu_milli: 0, memory_mib: 0, gpus, milli, models: Models::ANY };
        let workload = |shapes: &[Shape]| Workload::new(vec![host("a", 2), host("b", 1)], shapes.iter().map(|&shape| (shape, ""))).expect("valid");
        let mixed = workload(&[shape(1, 1_000), shape(1, 500), shape(0, 0)]);
        let sequence = mixed.drawn(7, 100);
        let mut first = sequence.requests[..3].to_vec();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2]);
        assert!(mixed.asked(&sequence).map(Shape::total_milli).sum::<i64>() >= 3_000);
        assert_eq!(sequence, mixed.drawn(7, 100));
        assert_eq!(workload(&[shape(0, 0), shape(0, 0)]).drawn(7, 100).requests.len(), 2);
    }
}
