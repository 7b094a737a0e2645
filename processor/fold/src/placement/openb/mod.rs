//! The published experiment on the openb traces: what it places, in which order, and how the result is measured. Pure: texts and
//! bytes in, numbers out. It has nothing to do with the placement of a living cell, but shows on known ground what a policy is
//! worth.
//!
//! Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, and its published simulator and results.

pub mod trace;
pub mod arrivals;
pub mod curve;
pub mod lesson;

use super::policy::fleet::{Error, Fleet, HostSpec};
use super::policy::placer::Placer;
use super::policy::shape::{Shape, counted};
use super::policy::typical::Typical;
use curve::Curve;
use trace::Pod;

/// Hosts, and what is asked of them.
#[derive(Debug, Clone)]
pub struct Workload {
    hosts: Vec<HostSpec>,
    models: Vec<String>,
    /// The shape of each pod, in the order of the pod list.
    pub shapes: Vec<Shape>,
    /// How often each shape comes among all pods.
    pub requests: Vec<(Shape, i64)>,
    /// The mix of all pods.
    pub typical: Typical,
}

impl Workload {
    /// Of hosts in name order and a pod list. Errors: the hosts make no fleet.
    pub fn new(hosts: Vec<HostSpec>, pods: &[Pod]) -> Result<Self, Error> {
        let fleet = Fleet::new(hosts.clone())?;
        let shapes: Vec<Shape> = pods.iter().map(|pod| pod.shape(&fleet)).collect();
        let typical = Typical::of(shapes.iter().zip(pods.iter().map(|pod| pod.models.as_str())));
        let requests = counted(&shapes);
        Ok(Self { hosts, models: fleet.models().to_vec(), shapes, requests, typical })
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
    pub fn capacity_milli(&self) -> i64 {
        self.hosts.iter().map(|host| host.gpus as i64 * 1_000).sum()
    }

    /// Thousandths of GPU that each pod asks for.
    pub fn milli(&self) -> Vec<i64> {
        self.shapes.iter().map(Shape::total_milli).collect()
    }
}

/// Offers the shapes one after the other and measures; a request that does not fit is forgotten.
pub fn run<'a>(placer: &mut Placer, shapes: impl IntoIterator<Item = &'a Shape>) -> Curve {
    let mut curve = Curve::new(placer.fleet().capacity_milli());
    for shape in shapes {
        let placed = placer.place(shape).is_some();
        curve.add(shape.total_milli(), placed);
    }
    curve
}
