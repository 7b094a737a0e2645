//! Any bytes are a sketch or are refused; what is one comes back the same.
#![no_main]

use plimsoll_schemas::sketch::Sketch;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(sketch) = Sketch::from_bytes(bytes) {
        let _ = (sketch.count(), sketch.quantile(0.95), sketch.fraction_below(50));
        assert_eq!(Sketch::from_bytes(&sketch.to_bytes()), Ok(sketch));
    }
});
