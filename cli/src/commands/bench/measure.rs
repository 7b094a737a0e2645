//! One run of one policy: what stays unallocated, and how long each decision takes.
#![expect(clippy::disallowed_methods, reason = "a bench measures time")]

use std::time::Instant;

use plimsoll_fold::placement::policy::curve::Curve;
use plimsoll_fold::placement::policy::placer::Placer;
use plimsoll_fold::placement::policy::power::Meter;
use plimsoll_fold::placement::policy::workload::{Sequence, Workload};

/// Thousandths of a watt in a kilowatt.
pub const MW_PER_KW: f64 = 1e6;

/// What one run gave.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Allocation by arrived load.
    pub curve: Curve,
    /// Decisions per second of deciding.
    pub decisions_per_s: f64,
    /// Half of the decisions took no longer, µs.
    pub p50_us: f64,
    /// 99 of 100 decisions took no longer, µs.
    pub p99_us: f64,
    /// Estimated mean power over the arrivals, kW; absent where a model's is not known.
    pub power_kw: Option<f64>,
}

/// Runs a sequence. Without `remember`, every decision asks every host.
pub fn run(workload: &Workload, sequence: &Sequence, placer: &mut Placer, mut meter: Option<Meter>, remember: bool) -> Measured {
    let mut curve = Curve::new(placer.fleet().capacity_milli());
    let mut power_mw = 0.0;
    let mut latencies_ns = Vec::with_capacity(sequence.requests.len());
    for shape in workload.asked(sequence) {
        if !remember {
            placer.forget();
        }
        let begun = Instant::now();
        let place = placer.place(shape);
        latencies_ns.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if let (Some(meter), Some(place)) = (&mut meter, place) {
            meter.changed(&placer.fleet().host(place.host));
        }
        power_mw += meter.as_ref().map_or(0.0, |meter| meter.mw() as f64);
        curve.add(shape.total_milli(), place.is_some());
    }
    let total_ns: u64 = latencies_ns.iter().sum();
    latencies_ns.sort_unstable();
    let at_percent = |percent: usize| {
        let index = (latencies_ns.len() * percent / 100).min(latencies_ns.len().saturating_sub(1));
        latencies_ns.get(index).map_or(0.0, |&ns| ns as f64 / 1e3)
    };
    Measured {
        curve,
        decisions_per_s: latencies_ns.len() as f64 * 1e9 / total_ns.max(1) as f64,
        p50_us: at_percent(50),
        p99_us: at_percent(99),
        power_kw: meter.map(|_| power_mw / latencies_ns.len().max(1) as f64 / MW_PER_KW),
    }
}
