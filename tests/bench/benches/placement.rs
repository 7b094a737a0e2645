//! The latency of one decision over the cell of the openb experiment: 1,213 hosts, 6,212 GPUs, every candidate looked at.

use plimsoll_bench::{host, measure, place, row, sample, uuid};
use plimsoll_fold::placement::Settings;
use plimsoll_fold::placement::candidate::Candidate;
use plimsoll_fold::placement::select::choose;
use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::reason::Reason;

const HOSTS: usize = 1_213;
const GPUS: usize = 6_212;

/// Hosts of 8 GPUs and of 2, as many as make up the cell.
fn gpus_of(number: usize) -> usize {
    if number < (GPUS - 2 * HOSTS) / 6 { 8 } else { 2 }
}

fn main() {
    let hosts: Vec<HostId> = (0..HOSTS).map(host).collect();
    let uuids: Vec<(usize, usize, GpuUuid)> =
        (0..HOSTS).flat_map(|number| (0..gpus_of(number)).map(move |gpu| (number, gpu, uuid(number, gpu)))).collect();
    let candidates: Vec<_> = uuids
        .iter()
        .enumerate()
        .map(|(place, (number, gpu, uuid))| {
            let sample = sample(place);
            Candidate {
                device: uuid.key(),
                uuid,
                host: &hosts[*number],
                slot: Slot(*gpu as u8),
                gpu_index: *gpu as u16,
                model: "NVIDIA H100 80GB HBM3",
                memory_total_bytes: sample.memory_total_bytes(),
                memory_used_bytes: sample.memory_used_bytes(),
                util_percent: sample.util_percent(),
                temperature_mk: sample.temperature_mk(),
                slowdown_temperature_mk: Some(363_150),
                gate: (place % 50 == 0).then_some(Reason::Stale),
                reserved_milli: if place % 3 == 0 { 1_000 } else { 0 },
                reserved_vram_bytes: if place % 3 == 0 { 40 << 30 } else { 0 },
            }
        })
        .collect();
    row(&[&format!("{} GPUs on {HOSTS} hosts", candidates.len()), "outcome", "median us", "p99 us", "decisions/s"]);
    for (name, request) in [
        ("1 GPU", place("r", 1, 1_000, 40)),
        ("half a GPU", place("r", 1, 500, 10)),
        ("4 GPUs on one host", place("r", 4, 1_000, 0)),
        ("8 GPUs on one host (none)", place("r", 8, 1_000, 79)),
    ] {
        let outcome = choose(&candidates, &request, &Settings::default()).outcome;
        let measured = measure(|| choose(&candidates, &request, &Settings::default()));
        row(&[
            name,
            outcome.code(),
            &format!("{:.1}", measured.median_ns as f64 / 1e3),
            &format!("{:.1}", measured.p99_ns as f64 / 1e3),
            &format!("{:.0}", 1e9 / measured.mean_ns as f64),
        ]);
    }
}
