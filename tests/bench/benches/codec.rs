//! The telemetry codec: nanoseconds per sample to write and to read a frame, at one tick and at a minute of ticks for 8 GPUs.

use plimsoll_bench::{frame, measure, row};
use plimsoll_schemas::frame::Frame;

fn main() {
    row(&["frame of 8 GPUs x 11 fields", "bytes", "bytes/sample", "median us", "p99 us", "ns/sample"]);
    for ticks in [1, 60] {
        let frame = frame(1, 8, 0, ticks, 1);
        let bytes = frame.encode();
        let samples = frame.samples.len();
        let line = |name: &str, measured: plimsoll_bench::Measured| {
            row(&[
                &format!("{name}, {samples} samples"),
                &bytes.len().to_string(),
                &format!("{:.1}", bytes.len() as f64 / samples as f64),
                &format!("{:.2}", measured.median_ns as f64 / 1e3),
                &format!("{:.2}", measured.p99_ns as f64 / 1e3),
                &format!("{:.1}", measured.median_ns as f64 / samples as f64),
            ]);
        };
        line("encode", measure(|| frame.encode()));
        line("decode", measure(|| Frame::decode(&bytes).expect("own bytes")));
    }
}
