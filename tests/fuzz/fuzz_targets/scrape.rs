//! Any text is a scrape of an exporter: every line is a series or is refused, never a panic.
#![no_main]

use plimsoll_agent::source::dcgm::{prom, scrape};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for line in text.lines() {
        let _ = prom::parse_line(line);
    }
    for unit in [scrape::UtilUnit::Percent, scrape::UtilUnit::Ratio] {
        let _ = scrape::read(text, "h", true, unit);
    }
});
