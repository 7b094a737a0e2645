//! A fleet on which requests come and go: they arrive at random, stay for an exponentially distributed time, and are lost if
//! they do not fit on arrival (a loss system).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use plimsoll_fold::placement::policy::draw::Draw;
use plimsoll_fold::placement::policy::fleet::Place;
use plimsoll_fold::placement::policy::placer::Placer;
use plimsoll_fold::placement::policy::power::Meter;
use plimsoll_fold::placement::policy::shape::Shape;
use plimsoll_fold::placement::policy::workload::Workload;

use super::measure::MW_PER_KW;

/// Mean stays that pass before anything is counted.
const WARM_UP_STAYS: f64 = 4.0;
/// Mean stays that are counted.
const COUNTED_STAYS: f64 = 6.0;

/// What one run gave, in percent.
#[derive(Debug, Clone, Copy)]
pub struct Lost {
    /// Mean share of the GPUs that was allocated.
    pub allocated_pct: f64,
    /// Share of the GPU demand that was lost.
    pub rejected_pct: f64,
    /// The same of requests for several GPUs.
    pub rejected_multi_pct: f64,
    /// Estimated mean power, kW; absent where a model's is not known.
    pub power_kw: Option<f64>,
}

/// Runs with this offered load, percent of the GPUs. Time is counted in mean gaps between arrivals.
pub fn run(workload: &Workload, placer: &mut Placer, mut meter: Option<Meter>, load_pct: f64, seed: u64) -> Lost {
    let mut draw = Draw::new(seed);
    let milli: i64 = workload.shapes.iter().map(Shape::total_milli).sum();
    let capacity = placer.fleet().capacity_milli() as f64;
    let stay = load_pct / 100.0 * capacity * workload.shapes.len() as f64 / milli.max(1) as f64;
    let (counted_from, end) = (stay * WARM_UP_STAYS, stay * (WARM_UP_STAYS + COUNTED_STAYS));
    let mut leaving: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut living: BTreeMap<usize, (Place, usize)> = BTreeMap::new();
    let (mut now, mut arrived, mut area, mut energy) = (0.0, 0, 0.0, 0.0);
    let draws = |meter: &Option<Meter>| meter.as_ref().map_or(0.0, |meter| meter.mw() as f64);
    let (mut all, mut multi) = (Demand::default(), Demand::default());
    while now < end {
        let next = now + exponential(&mut draw);
        while let Some(&Reverse((at, request))) = leaving.peek()
            && f64::from_bits(at) <= next
        {
            leaving.pop();
            let waited = (f64::from_bits(at) - now.max(counted_from)).max(0.0);
            area += waited * (capacity - placer.fleet().idle_milli() as f64);
            energy += waited * draws(&meter);
            now = f64::from_bits(at);
            if let Some((place, pod)) = living.remove(&request) {
                placer.release(place, &workload.shapes[pod]);
                note(&mut meter, placer, place);
            }
        }
        let waited = (next - now.max(counted_from)).max(0.0);
        area += waited * (capacity - placer.fleet().idle_milli() as f64);
        energy += waited * draws(&meter);
        now = next;
        let pod = draw.below(workload.shapes.len() as u64) as usize;
        // Drawn even where the request is lost, so that every policy sees the same requests.
        let stays = stay * exponential(&mut draw);
        let shape = &workload.shapes[pod];
        let place = placer.place(shape);
        if now >= counted_from {
            all.add(shape.total_milli(), place.is_some());
            if shape.gpus > 1 {
                multi.add(shape.total_milli(), place.is_some());
            }
        }
        if let Some(place) = place {
            // Times are not below zero, so their bits have their order.
            leaving.push(Reverse(((now + stays).to_bits(), arrived)));
            living.insert(arrived, (place, pod));
            note(&mut meter, placer, place);
        }
        arrived += 1;
    }
    Lost {
        allocated_pct: 100.0 * area / (now - counted_from) / capacity,
        rejected_pct: all.rejected_pct(),
        rejected_multi_pct: multi.rejected_pct(),
        power_kw: meter.map(|_| energy / (now - counted_from) / MW_PER_KW),
    }
}

fn note(meter: &mut Option<Meter>, placer: &Placer, place: Place) {
    if let Some(meter) = meter {
        meter.changed(&placer.fleet().host(place.host));
    }
}

#[derive(Default)]
struct Demand {
    milli: i64,
    rejected_milli: i64,
}

impl Demand {
    fn add(&mut self, milli: i64, placed: bool) {
        self.milli += milli;
        self.rejected_milli += if placed { 0 } else { milli };
    }

    fn rejected_pct(&self) -> f64 {
        100.0 * self.rejected_milli as f64 / self.milli.max(1) as f64
    }
}

/// A number with mean 1.
fn exponential(draw: &mut Draw) -> f64 {
    // 53 bits make a number in (0, 1].
    -(((draw.next_u64() >> 11) + 1) as f64 / (1_u64 << 53) as f64).ln()
}
