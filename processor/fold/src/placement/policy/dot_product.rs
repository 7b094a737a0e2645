//! `dot_product`: the host whose free CPU and GPU lie least in the direction of the request, as published with FGD.
//!
//! Source: Grandl et al., "Multi-resource packing for cluster schedulers" (Tetris), SIGCOMM 2014, as FGD's simulator has it.

use super::double::Double;
use super::fit::{CPU_MILLI_MAX, GPU_MILLI_MAX};
use super::host::Host;
use super::shape::Shape;
use super::{Bid, Policy};

/// The product of what is left and what is asked for.
#[derive(Debug, Clone, Copy)]
pub struct DotProduct;

impl Policy for DotProduct {
    fn name(&self) -> &'static str {
        "dot_product"
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        Bid { key: percent((host.cpu_milli, host.idle_milli), (shape.cpu_milli, shape.total_milli())), gpus: host.tightest(shape) }
    }
}

/// 100 × (1 - (cpu × cpu + gpu × gpu) / 2), cut to a whole number, as doubles give it: the exact value, except where that is
/// whole.
fn percent((cpu_left, gpu_left): (i64, i64), (cpu, gpu): (i64, i64)) -> i64 {
    let whole = 2 * CPU_MILLI_MAX * CPU_MILLI_MAX;
    let gpu_part = (CPU_MILLI_MAX / GPU_MILLI_MAX).pow(2) * gpu_left * gpu;
    let apart = i128::from(whole) - i128::from(cpu_left * cpu) - i128::from(gpu_part);
    if apart * 100 % i128::from(whole) != 0 {
        return (apart * 100 / i128::from(whole)) as i64;
    }
    let cpu = Double::quotient(cpu_left, CPU_MILLI_MAX).times(Double::quotient(cpu, CPU_MILLI_MAX));
    let gpu = Double::quotient(gpu_left, GPU_MILLI_MAX).times(Double::quotient(gpu, GPU_MILLI_MAX));
    Double::ONE.distance(cpu.plus(gpu).half()).percent() * apart.signum() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_what_doubles_give() {
        for cpu_left in (0..=128_000).step_by(4_000) {
            for gpu_left in (0..=8_000).step_by(250) {
                for (cpu, gpu) in [(0, 0), (4_000, 250), (8_000, 500), (64_000, 4_000), (16_000, 1_000), (128_000, 8_000)] {
                    let parts = |cpu: i64, gpu: i64| (cpu as f64 / 128_000.0, gpu as f64 / 8_000.0);
                    let ((a, b), (c, d)) = (parts(cpu_left, gpu_left), parts(cpu, gpu));
                    let expected = (100.0 * (1.0 - (a * c + b * d) / 2.0)) as i64;
                    assert_eq!(percent((cpu_left, gpu_left), (cpu, gpu)), expected, "{cpu_left} {gpu_left} {cpu} {gpu}");
                }
            }
        }
    }
}
