//! The latency of one decision in a living cell of the size of the openb experiment, 1,213 hosts with 6,212 GPUs, and in one of 10,000 hosts
//! with 50,000: where nothing has changed since the decision before, where some hosts have spoken, and where every host has spoken and such a
//! request was never made before. Dry runs, which decide as real ones do and change nothing.

use std::cell::RefCell;

use plimsoll_bench::{BEGIN_S, Measured, frame, inventory, measure, measure_after, place, row};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::request::{Bundle, Place, Request};
use plimsoll_schemas::time::{LogTime, NS_PER_S};

/// As in the processor.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Hosts, and how many of them have eight GPUs; the others have two.
const CELLS: [(usize, usize); 2] = [(1_213, 631), (10_000, 5_000)];
/// Requests that are placed before anything is measured, and make the mix.
const LIVING: u32 = 500;
const SECONDS: i64 = 4;
/// Hosts that speak between two decisions: 1,000 of them each second, and 100 decisions.
const SPEAK: usize = 10;

struct Cell {
    state: State,
    hosts: usize,
    large: usize,
    sequence: u64,
    second: i64,
    /// Who speaks next.
    next: usize,
}

impl Cell {
    fn step(&mut self, body: Body) {
        self.sequence += 1;
        let position = Position { epoch: LogEpoch(0), sequence: self.sequence };
        let logged_at = LogTime((BEGIN_S + self.second) * NS_PER_S + NS_PER_S / 2);
        self.state.step(&Record { position, logged_at, body }, &mut Effects::default());
    }

    fn gpus(&self, number: usize) -> usize {
        if number < self.large { 8 } else { 2 }
    }

    /// So many hosts say a frame each.
    fn speak(&mut self, hosts: usize) {
        for _ in 0..hosts {
            let number = self.next;
            self.step(Body::Frame(Box::new(frame(number, self.gpus(number), self.second, 1, self.second as u64 + 1))));
            self.next = (number + 1) % self.hosts;
            self.second += i64::from(self.next == 0);
        }
    }

    /// Every host has spoken for some seconds, and some requests live.
    fn of(hosts: usize, large: usize) -> Self {
        let mut cell = Self { state: State::new("bench".parse().expect("a token")), hosts, large, sequence: 0, second: 0, next: 0 };
        cell.step(Body::Control(Box::new(Control::Enrol { hosts: Vec::new() })));
        (0..hosts).for_each(|number| cell.step(Body::Inventory(Box::new(inventory(number, cell.gpus(number))))));
        (0..SECONDS).for_each(|_| cell.speak(hosts));
        for number in 0..LIVING {
            let (count, milli) = [(1, 1_000), (1, 500), (2, 1_000), (1, 250), (4, 1_000)][number as usize % 5];
            let request = Request::Place(place(&format!("r{number}"), count, milli, 1));
            cell.step(Body::Request("bench".parse().expect("a token"), Box::new(request)));
        }
        cell
    }
}

fn main() {
    let tenant = "bench".parse().expect("a token");
    for (hosts, large) in CELLS {
        let cell = RefCell::new(Cell::of(hosts, large));
        let gpus = hosts * 2 + large * 6;
        row(&[&format!("{gpus} GPUs on {hosts} hosts, us"), "outcome", "policy", "quiet p50", "p99", "10 spoke p50", "p99", "all spoke p50", "p99"]);
        let gang = Place { bundles: vec![Bundle { count: 4, members: 8, ..Bundle::default() }], ..place("r", 4, 1_000, 0) };
        for (name, request) in [
            ("1 GPU", place("r", 1, 1_000, 10)),
            ("half a GPU", place("r", 1, 500, 10)),
            ("4 GPUs on one host", place("r", 4, 1_000, 0)),
            ("a gang of 8 x 4 GPUs", gang),
            ("8 GPUs on one host (none)", place("r", 8, 1_000, 79)),
        ] {
            for policy in ["hybrid", "fgd", "best_fit", "headroom"] {
                let mut request = Place { policy: Some(policy.to_owned()), ..request.clone() };
                let dry_run = |request: &Place| cell.borrow_mut().state.dry_run(&tenant, request);
                let outcome = dry_run(&request).outcome;
                let quiet = measure(|| dry_run(&request));
                let some = measure_after(|| cell.borrow_mut().speak(SPEAK), |()| dry_run(&request));
                let all = measure_after(
                    || {
                        cell.borrow_mut().speak(hosts);
                        request.bundles[0].cpu_milli += 1;
                        request.clone()
                    },
                    |request| dry_run(&request),
                );
                let us = |ns: u64| format!("{:.1}", ns as f64 / 1e3);
                let times = [quiet, some, all].map(|Measured { median_ns, p99_ns, .. }| [us(median_ns), us(p99_ns)]);
                let cells: Vec<&str> = [name, outcome.code(), policy].into_iter().chain(times.iter().flatten().map(String::as_str)).collect();
                row(&cells);
            }
        }
    }
}
