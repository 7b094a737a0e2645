//! Backtest: a policy decides again what a cell was asked, in the order of its log, with everything leaving when it left.
//!
//! What a policy knows of the mix of requests is the mix of this very past; it is the same for all policies that are compared.

use std::collections::BTreeSet;

use plimsoll_schemas::tables::PPM;
use plimsoll_schemas::time::LogTime;

use super::fleet::Place;
use super::placer::Placer;
use super::recorded::Request;

/// What became of the recorded requests under one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backtest {
    /// Where each request went, one place per shape; empty = rejected.
    pub places: Vec<Vec<Place>>,
    /// Thousandths of GPU that rejected requests had asked for.
    pub rejected_milli: i64,
    /// Share of the fleet's GPUs that is unallocated after the last request, millionths.
    pub unallocated_end_ppm: u32,
    /// The same, mean over the time between the first and the last request.
    pub unallocated_mean_ppm: u32,
}

impl Backtest {
    /// Decides again.
    pub fn run(placer: &mut Placer, asked: &[Request]) -> Self {
        let mut run = Run { placer, asked, places: vec![Vec::new(); asked.len()], leaving: BTreeSet::new(), area: 0, now: first(asked) };
        let mut rejected_milli = 0;
        for (number, request) in asked.iter().enumerate() {
            run.wait(request.at);
            if !run.place(number) {
                rejected_milli += milli(request);
            }
        }
        let (idle, capacity) = (run.placer.fleet().idle_milli(), run.placer.fleet().capacity_milli());
        let passed = i128::from(run.now.0) - i128::from(first(asked).0);
        let unallocated_end_ppm = ppm(i128::from(idle), i128::from(capacity));
        let unallocated_mean_ppm = if passed > 0 { ppm(run.area, i128::from(capacity) * passed) } else { unallocated_end_ppm };
        Self { places: run.places, rejected_milli, unallocated_end_ppm, unallocated_mean_ppm }
    }

    /// How many requests were placed.
    pub fn placed(&self) -> usize {
        self.places.iter().filter(|places| !places.is_empty()).count()
    }

    /// How many requests were rejected.
    pub fn rejected(&self) -> usize {
        self.places.len() - self.placed()
    }

    /// How many requests this one placed and the other did not. Both are of the same past.
    pub fn wins(&self, other: &Self) -> usize {
        self.places.iter().zip(&other.places).filter(|(ours, theirs)| !ours.is_empty() && theirs.is_empty()).count()
    }

    /// The first request on which the two decided differently. Both are of the same past.
    pub fn divergence(&self, other: &Self) -> Option<usize> {
        self.places.iter().zip(&other.places).position(|(ours, theirs)| ours != theirs)
    }
}

struct Run<'a> {
    placer: &'a mut Placer,
    asked: &'a [Request],
    places: Vec<Vec<Place>>,
    /// Who leaves when.
    leaving: BTreeSet<(LogTime, usize)>,
    /// Idle thousandths of GPU × ns.
    area: i128,
    now: LogTime,
}

impl Run<'_> {
    /// Lets time pass, and what ends by then leave.
    fn wait(&mut self, until: LogTime) {
        while let Some(&(at, number)) = self.leaving.first()
            && at <= until
        {
            self.leaving.pop_first();
            self.pass(at);
            for (&place, shape) in self.places[number].iter().zip(&self.asked[number].shapes) {
                self.placer.release(place, shape);
            }
        }
        self.pass(until);
    }

    fn pass(&mut self, until: LogTime) {
        // Of two instants of the log the later one is not before the other, and an end before its request passes no time.
        let until = until.max(self.now);
        self.area += i128::from(self.placer.fleet().idle_milli()) * (i128::from(until.0) - i128::from(self.now.0));
        self.now = until;
    }

    /// Places all shapes of a request, or none.
    fn place(&mut self, number: usize) -> bool {
        let request = &self.asked[number];
        let mut places = Vec::with_capacity(request.shapes.len());
        for shape in &request.shapes {
            let Some(place) = self.placer.place(shape) else {
                places.iter().zip(&request.shapes).for_each(|(&place, shape)| self.placer.release(place, shape));
                return false;
            };
            places.push(place);
        }
        self.places[number] = places;
        self.leaving.extend(request.leaves_at.map(|at| (at, number)));
        true
    }
}

fn first(asked: &[Request]) -> LogTime {
    asked.first().map_or(LogTime(0), |asked| asked.at)
}

fn milli(asked: &Request) -> i64 {
    asked.shapes.iter().map(super::shape::Shape::total_milli).sum()
}

fn ppm(part: i128, whole: i128) -> u32 {
    u32::try_from(part * i128::from(PPM) / whole.max(1)).unwrap_or(PPM)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::catalogue::Name;
    use super::super::fleet::{HostSpec, MILLI};
    use super::super::recorded::Past;
    use super::super::tables::Tables;
    use super::*;

    fn host(name: &str) -> HostSpec {
        HostSpec { name: name.to_owned(), rank: 0, cpu_milli: 0, memory_mib: 0, gpus: 2, model: "A".to_owned() }
    }

    /// Requests of (at, GPUs, milli, leaves at) for two hosts of two GPUs; those with several GPUs on two hosts if `apart`.
    fn past(requests: &[(i64, u32, u32, Option<i64>)], apart: bool) -> Past {
        let mut past = Past::new(vec![host("b"), host("a")]).expect("a fleet");
        let tenant = "t".parse().expect("a token");
        for (number, &(at, count, milli, leaves_at)) in requests.iter().enumerate() {
            let bundle = serde_json::json!({ "count": count, "milli": milli });
            let bundles = if apart { serde_json::json!([bundle, bundle]) } else { serde_json::json!([bundle]) };
            let request_id = number.to_string();
            let place = serde_json::json!({ "request_id": request_id, "bundles": bundles });
            past.ask(LogTime(at), &tenant, &serde_json::from_value(place).expect("a request"));
            if let Some(at) = leaves_at {
                past.ended(LogTime(at), &tenant, &request_id);
            }
        }
        past
    }

    fn placer(past: &Past, policy: Name) -> Placer {
        let workload = past.workload(0..past.asked().len());
        Placer::new(past.fleet().clone(), workload.policy(policy, &Tables::untaught(&[]), 1))
    }

    fn run(past: &Past, policy: Name) -> Backtest {
        Backtest::run(&mut placer(past, policy), past.asked())
    }

    #[test]
    fn what_ended_makes_room_and_a_request_is_placed_whole_or_not_at_all() {
        let requests = [(0, 2, 1_000, Some(10)), (5, 2, 1_000, None), (10, 2, 1_000, None), (20, 1, 500, None)];
        let one = run(&past(&requests, false), Name::FirstFit);
        assert_eq!((one.placed(), one.rejected(), one.rejected_milli), (3, 1, 500));
        // All idle from 0 to 0, then 2 of 4 GPUs until 5, then none.
        assert_eq!((one.unallocated_end_ppm, one.unallocated_mean_ppm), (0, 125_000));
        let apart = run(&past(&requests, true), Name::FirstFit);
        assert_eq!(apart.places.iter().map(Vec::len).collect::<Vec<_>>(), [2, 0, 2, 0]);
        assert_eq!(apart.rejected_milli, 5_000);
    }

    #[test]
    fn two_policies_differ_first_where_they_first_choose_another_place() {
        let past = past(&[(0, 1, 500, None), (1, 1, 500, None), (2, 2, 1_000, None), (3, 2, 1_000, None)], false);
        let (packs, spreads) = (run(&past, Name::BestFit), run(&past, Name::WorstFit));
        assert_eq!((packs.divergence(&spreads), packs.divergence(&packs)), (Some(1), None));
        assert_eq!((packs.wins(&spreads), spreads.wins(&packs)), (1, 0));
        assert_eq!(past.host_name(packs.places[0][0].host), "a");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_whoever_decides(
            requests in prop::collection::vec((0..50_i64, 1..3_u32, 1..=10_u32, prop::option::of(0..80_i64)), 0..60),
            apart: bool,
        ) {
            let mut at = 0;
            let requests: Vec<_> = requests.into_iter().map(|(gap, gpus, tenths, stays)| {
                at += gap;
                (at, gpus, tenths * 100, stays.map(|stays| at + stays))
            }).collect();
            let past = past(&requests, apart);
            for policy in Name::ALL {
                let mut placer = placer(&past, policy);
                let gave = Backtest::run(&mut placer, past.asked());
                prop_assert_eq!(gave.placed() + gave.rejected(), requests.len());
                let held = |number: usize| past.asked()[number].leaves_at.is_none_or(|leaves_at| leaves_at.0 > at);
                let placed = (0..requests.len()).filter(|&number| !gave.places[number].is_empty());
                // What leaves at the instant of the last request or before it was asked for is gone, unless it came with it.
                let last: i64 = placed.clone().filter(|&n| held(n) || past.asked()[n].at.0 == at).map(|n| milli(&past.asked()[n])).sum();
                let least: i64 = placed.filter(|&n| held(n)).map(|n| milli(&past.asked()[n])).sum();
                let used = placer.fleet().capacity_milli() - placer.fleet().idle_milli();
                prop_assert!((least..=last).contains(&used), "{policy:?}: {used} of {least} to {last}");
                prop_assert!(gave.unallocated_mean_ppm <= PPM && i64::from(gave.unallocated_end_ppm) == placer.fleet().idle_milli() * i64::from(PPM) / i64::from(4 * MILLI));
                prop_assert_eq!(&gave, &run(&past, policy));
            }
        }
    }
}
