//! `gpu_packing`: GPUs in use before free ones, free ones on a host in use before a host that is all free, as published with
//! FGD.

use super::fleet::MILLI;
use super::host::Host;
use super::shape::Shape;
use super::{Bid, Policy};

/// Score of the fullest GPU in use.
const IN_USE: i64 = 100;
/// Least score of GPUs in use, and the most of free ones on a host in use.
const FREE: i64 = 50;
/// Least score of free GPUs on a host in use, and the most of a host that is all free.
const FREE_HOST: i64 = 33;

/// Packs GPUs.
#[derive(Debug, Clone, Copy)]
pub struct GpuPacking;

impl Policy for GpuPacking {
    fn name(&self) -> &'static str {
        "gpu_packing"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let gpus = host.tightest(shape);
        Bid { key: if shape.gpus == 0 { 0 } else { score(host, gpus) }, gpus }
    }
}

fn score(host: &Host<'_>, gpus: u64) -> i64 {
    let free = host.gpus.iter().filter(|&&left| left == MILLI).count();
    if free == host.gpus.len() {
        return (FREE_HOST - free as i64).max(free as i64);
    }
    let taken = || host.gpus.iter().enumerate().filter(|&(gpu, _)| gpus >> gpu & 1 == 1).map(|(_, &left)| left);
    match taken().filter(|&left| left == MILLI).count() as i64 {
        0 => (IN_USE - taken().map(|left| i64::from(left * 100 / MILLI)).sum::<i64>() / 10).max(FREE),
        newly_used => (FREE - newly_used).max(FREE_HOST),
    }
}
