//! `gpu_clustering`: requests of one class (a share, or so many GPUs) together, as published with FGD.

use super::fit::GPU_MILLI_MAX;
use super::host::{Host, class};
use super::shape::Shape;
use super::{Bid, Policy};

/// Keeps classes together.
#[derive(Debug, Clone, Copy)]
pub struct GpuClustering;

impl Policy for GpuClustering {
    fn name(&self) -> &'static str {
        "gpu_clustering"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        Bid { key: if shape.gpus == 0 { 0 } else { score(host, class(shape)) }, gpus: host.tightest(shape) }
    }
}

fn score(host: &Host<'_>, class: usize) -> i64 {
    let classes = host.classes.iter().filter(|&&count| count > 0).count();
    let company = match (host.classes[class] > 0, classes) {
        (true, 1) => 75,
        (true, _) => 50,
        (false, 0) => 25,
        (false, _) => 0,
    };
    25 * (GPU_MILLI_MAX - host.idle_milli) / GPU_MILLI_MAX + company
}
