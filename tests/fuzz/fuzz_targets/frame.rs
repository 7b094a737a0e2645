//! Any bytes are a frame or are refused; what is a frame comes back the same.
#![no_main]

use plimsoll_schemas::frame::Frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::decode(bytes) {
        // The writer has no time before 1970, which no valid frame holds.
        if frame.ticks.first().is_none_or(|tick| tick.sampled_at.0 >= 0) {
            assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }
    }
});
