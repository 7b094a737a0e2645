//! Any text is a number, a sentinel or no number, and never a panic.
#![no_main]

use plimsoll_schemas::reading::Number;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(number) = Number::parse(text) {
        let _ = (number.sentinel(), number.as_f64(), number.to_string());
    }
});
