//! The published experiment on the openb traces: what it places, and in which order. Pure: texts and bytes in, numbers out. It has
//! nothing to do with the placement of a living cell, but shows on known ground what a policy is worth.
//!
//! Source: Weng et al., "Beware of Fragmentation", USENIX ATC 2023, and its published simulator and results.

pub mod trace;
pub mod arrivals;
pub mod boards;

use super::policy::fleet::{Error, Fleet, HostSpec};
use super::policy::shape::Shape;
use super::policy::workload::Workload;
use trace::Pod;

/// Hosts in name order and a pod list. Errors: the hosts make no fleet.
pub fn workload(hosts: Vec<HostSpec>, pods: &[Pod]) -> Result<Workload, Error> {
    let fleet = Fleet::new(hosts.clone())?;
    let shapes: Vec<Shape> = pods.iter().map(|pod| pod.shape(&fleet)).collect();
    Workload::new(hosts, shapes.into_iter().zip(pods.iter().map(|pod| pod.models.as_str())))
}
