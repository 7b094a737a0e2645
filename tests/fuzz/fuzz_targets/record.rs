//! Any bytes on any subject become a record. The first byte chooses the subject, the rest is the payload.
#![no_main]

use plimsoll_schemas::record;

const SUBJECTS: [&str; 7] = ["sample.h", "inventory.h", "event.h", "request.t", "control", "tick", "check"];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((&first, payload)) = bytes.split_first() {
        let cell = "c".parse().expect("a token");
        let subject = SUBJECTS[usize::from(first) % SUBJECTS.len()];
        let _ = record::decode(&cell, &format!("plimsoll.c.log.{subject}"), payload);
    }
});
