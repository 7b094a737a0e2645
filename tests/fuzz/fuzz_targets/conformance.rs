//! Any text is a file of cases or is refused; every case is answered.
#![no_main]

use plimsoll_fold::conformance;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = conformance::run(text);
});
