//! Any bytes are an event of OUT or are refused; what is one comes back the same.
#![no_main]

use plimsoll_schemas::out::CloudEvent;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(event) = serde_json::from_slice::<CloudEvent>(bytes) {
        let again = serde_json::to_vec(&event).expect("plain structs serialise");
        assert_eq!(serde_json::from_slice::<CloudEvent>(&again).expect("own bytes"), event);
    }
});
