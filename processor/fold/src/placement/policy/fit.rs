//! `first_fit`, `best_fit` and `worst_fit`: the first host, the one with least left afterwards, the one with most.

use super::double::Double;
use super::host::Host;
use super::shape::Shape;
use super::{Bid, Policy};

/// CPU of the largest host, thousandths of a core: what CPU left is measured against.
pub const CPU_MILLI_MAX: i64 = 128_000;
/// GPUs of the largest host, thousandths.
pub const GPU_MILLI_MAX: i64 = 8_000;

/// The first host on which it fits.
#[derive(Debug, Clone, Copy)]
pub struct FirstFit;

impl Policy for FirstFit {
    fn name(&self) -> &'static str {
        "first_fit"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        Bid { key: 0, gpus: host.tightest(shape) }
    }
}

/// The host with the least CPU and GPU left afterwards, in percent, as published with FGD.
#[derive(Debug, Clone, Copy)]
pub struct BestFit;

impl Policy for BestFit {
    fn name(&self) -> &'static str {
        "best_fit"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        Bid { key: fullness_percent(host.cpu_milli - shape.cpu_milli, host.idle_milli - shape.total_milli()), gpus: host.tightest(shape) }
    }
}

/// The host with the most CPU and GPU left afterwards, and there the GPU with the most left.
#[derive(Debug, Clone, Copy)]
pub struct WorstFit;

impl Policy for WorstFit {
    fn name(&self) -> &'static str {
        "worst_fit"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let gpus = match host.with_room(shape.milli).rev().max_by_key(|&(_, left)| left) {
            Some((gpu, _)) if shape.is_share() => 1 << gpu,
            Some(_) | None => host.tightest(shape),
        };
        Bid { key: left_over(host, shape), gpus }
    }

    fn key_per_percent(&self) -> i64 {
        2 * CPU_MILLI_MAX / 100
    }
}

/// What is left of a host afterwards, as parts of the largest host's: 1/256000 of CPU and GPU together.
fn left_over(host: &Host<'_>, shape: &Shape) -> i64 {
    let (cpu_left, gpu_left) = (host.cpu_milli - shape.cpu_milli, host.idle_milli - shape.total_milli());
    cpu_left + CPU_MILLI_MAX / GPU_MILLI_MAX * gpu_left
}

/// 100 × (1 - cpu/2 - gpu/2), cut to a whole number, as doubles give it: the exact value, except where that is whole.
fn fullness_percent(cpu_left: i64, gpu_left: i64) -> i64 {
    let whole = 2 * CPU_MILLI_MAX;
    let full = whole - cpu_left - CPU_MILLI_MAX / GPU_MILLI_MAX * gpu_left;
    if full * 100 % whole != 0 {
        return full * 100 / whole;
    }
    let left = Double::quotient(cpu_left, CPU_MILLI_MAX).half().plus(Double::quotient(gpu_left, GPU_MILLI_MAX).half());
    Double::ONE.distance(left).percent() * full.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fullness_is_what_doubles_give() {
        for cpu in (0..=128_000).step_by(500) {
            for gpu in (0..=8_000).step_by(10) {
                let left = cpu as f64 / 128_000.0 * 0.5 + gpu as f64 / 8_000.0 * 0.5;
                assert_eq!(fullness_percent(cpu, gpu), ((1.0 - left) * 100.0) as i64, "{cpu} {gpu}");
            }
        }
    }
}
