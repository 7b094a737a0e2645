//! The latency of one decision in a living cell of the size of the openb experiment, 1,213 hosts with 6,212 GPUs, and in one of 10,000 hosts:
//! every GPU is looked at, nothing is remembered from the decision before. Dry runs, which decide as real ones do and change nothing.

use plimsoll_bench::{BEGIN_S, frame, inventory, measure, place, row};
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

struct Cell {
    state: State,
    sequence: u64,
    second: i64,
}

impl Cell {
    fn step(&mut self, body: Body) {
        self.sequence += 1;
        let position = Position { epoch: LogEpoch(0), sequence: self.sequence };
        let logged_at = LogTime((BEGIN_S + self.second) * NS_PER_S + NS_PER_S / 2);
        self.state.step(&Record { position, logged_at, body }, &mut Effects::default());
    }

    /// Every host has spoken for some seconds, and some requests live.
    fn of(hosts: usize, large: usize) -> Self {
        let gpus = |number: usize| if number < large { 8 } else { 2 };
        let mut cell = Self { state: State::new("bench".parse().expect("a token")), sequence: 0, second: 0 };
        cell.step(Body::Control(Box::new(Control::Enrol { hosts: Vec::new() })));
        (0..hosts).for_each(|number| cell.step(Body::Inventory(Box::new(inventory(number, gpus(number))))));
        for second in 0..SECONDS {
            cell.second = second;
            (0..hosts).for_each(|number| cell.step(Body::Frame(Box::new(frame(number, gpus(number), second, 1, second as u64 + 1)))));
        }
        for number in 0..LIVING {
            let (count, milli) = [(1, 1_000), (1, 500), (2, 1_000), (1, 250), (4, 1_000)][number as usize % 5];
            let request = Request::Place(place(&format!("r{number}"), count, milli, 1));
            cell.step(Body::Request("bench".parse().expect("a token"), Box::new(request)));
        }
        cell
    }
}

fn main() {
    for (hosts, large) in CELLS {
        let mut cell = Cell::of(hosts, large);
        let gpus = hosts * 2 + large * 6;
        row(&[&format!("{gpus} GPUs on {hosts} hosts"), "outcome", "policy", "median us", "p99 us", "decisions/s"]);
        let gang = Place { bundles: vec![Bundle { count: 4, members: 8, ..Bundle::default() }], ..place("r", 4, 1_000, 0) };
        for (name, request) in [
            ("1 GPU", place("r", 1, 1_000, 10)),
            ("half a GPU", place("r", 1, 500, 10)),
            ("4 GPUs on one host", place("r", 4, 1_000, 0)),
            ("a gang of 8 x 4 GPUs", gang),
            ("8 GPUs on one host (none)", place("r", 8, 1_000, 79)),
        ] {
            for policy in ["headroom", "best_fit", "fgd", "hybrid"] {
                let request = Place { policy: Some(policy.to_owned()), ..request.clone() };
                let tenant = "bench".parse().expect("a token");
                let outcome = cell.state.dry_run(&tenant, &request).outcome;
                let measured = measure(|| cell.state.dry_run(&tenant, &request));
                row(&[
                    name,
                    outcome.code(),
                    policy,
                    &format!("{:.1}", measured.median_ns as f64 / 1e3),
                    &format!("{:.1}", measured.p99_ns as f64 / 1e3),
                    &format!("{:.0}", 1e9 / measured.mean_ns as f64),
                ]);
            }
        }
    }
}
