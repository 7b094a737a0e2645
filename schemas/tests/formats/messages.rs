//! Messages of the LOG: any bytes on any subject become a record, the right ones by value, the others by name.

use plimsoll_schemas::inventory::{DETAIL_BYTES_MAX, GPUS_MAX};
use plimsoll_schemas::out::CloudEvent;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{self, Body};
use plimsoll_schemas::subject::LogSubject;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::examples::{LogExample, cell, log_messages, outputs, to_bytes};

fn example(name: &str) -> LogExample {
    log_messages().into_iter().find(|example| example.name == name).expect("an example of that name")
}

/// The example with one field changed, as JSON.
fn changed(name: &str, pointer: &str, value: Value) -> (LogSubject, Vec<u8>) {
    let example = example(name);
    let mut message: Value = serde_json::from_slice(&to_bytes(&example.body)).expect("JSON");
    let (parent, field) = pointer.rsplit_once('/').expect("a pointer");
    message.pointer_mut(parent).expect("parent exists")[field] = value;
    (example.subject, message.to_string().into_bytes())
}

fn decode(subject: &LogSubject, payload: &[u8]) -> Body {
    record::decode(&cell(), &subject.to_subject(&cell()), payload)
}

fn check(name: &str, pointer: &str, value: Value, reason: Reason, detail: &str) {
    let (subject, payload) = changed(name, pointer, value);
    let body = decode(&subject, &payload);
    let Body::Refused(refused) = body else { panic!("{name}{pointer} was taken: {body:?}") };
    assert_eq!(refused.reason, reason, "{name}{pointer}: {}", refused.detail);
    assert!(refused.detail.contains(detail), "{name}{pointer}: {}", refused.detail);
    assert_eq!(refused.source, subject.to_string());
}

#[test]
fn a_message_that_breaks_its_rules_is_refused_by_name() {
    check("inventory", "/schema_version", json!(2), Reason::UnsupportedVersion, "schema version 2, this build reads 1");
    check("inventory", "/host", json!("other"), Reason::SpeakerMismatch, "the payload other");
    check("inventory", "/host", json!("a.b"), Reason::Undecodable, "malformed host");
    check("inventory", "/epoch", json!(0), Reason::Inconsistent, "count from 1");
    check("inventory", "/interval_ms", json!(0), Reason::Inconsistent, "expected 1 to 3600000");
    check("inventory", "/gpus/1/slot", json!(0), Reason::Inconsistent, "slot 0 twice");
    check("inventory", "/gpus/1/slot", json!(256), Reason::Undecodable, "256");
    check("inventory", "/gpus/1/uuid", json!("GPU-00000000-0000-0000-0000-000000000001"), Reason::Inconsistent, "twice");
    check("inventory", "/gpus/0/model", json!("x".repeat(257)), Reason::PayloadTooLarge, "model of 257 bytes, at most 256");
    check("inventory", "/placement/rack", json!("x".repeat(257)), Reason::PayloadTooLarge, "rack of 257 bytes");
    check("inventory", "/sent_at", json!("yesterday"), Reason::Undecodable, "RFC 3339");
    check("event-xid", "/schema_version", json!(7), Reason::UnsupportedVersion, "schema version 7");
    check("event-xid", "/host", json!("other"), Reason::SpeakerMismatch, "the payload other");
    check("event-xid", "/kind", json!("earthquake"), Reason::Undecodable, "earthquake");
    check("event-gap", "/from_sequence", json!(13), Reason::Inconsistent, "from sequence 13 to 12");
    check("request-place", "/type", json!("steal"), Reason::InvalidRequest, "steal");
    check("request-place", "/colour", json!("red"), Reason::InvalidRequest, "colour");
    check("request-place", "/bundles/0/count", json!(-1), Reason::InvalidRequest, "-1");
    check("request-distribute", "/strategy", json!("magic"), Reason::InvalidRequest, "magic");
    check("control-settings", "/vram", json!(1), Reason::Undecodable, "vram");
    check("control-pace", "/pace/colour", json!(1), Reason::Undecodable, "colour");
    check("control-pace", "/pace/max_vram_bp", json!(0.7), Reason::Undecodable, "0.7");
    check("control-pace-tenant", "/tenant", json!("a.b"), Reason::Undecodable, "malformed tenant");
    check("tick", "/second", json!("now"), Reason::Undecodable, "now");
}

#[test]
fn what_boards_and_their_mig_instances_say_of_each_other_must_agree() {
    let refused = |pointer: &str, value, detail: &str| check("inventory-mig", pointer, value, Reason::Inconsistent, detail);
    let places = |count: u8| (0..count).collect::<Vec<u8>>();
    refused("/gpus/0/mig/instances/1/start", json!(5), "overlaps another");
    refused("/gpus/0/mig/instances/1/size", json!(0), "0 slices from slice 0");
    refused("/gpus/0/mig/instances/1/size", json!(65), "none beyond 64");
    refused("/gpus/0/mig/instances/0/start", json!(64), "1 slices from slice 64");
    refused("/gpus/0/mig/instances", json!(vec![json!({"profile": "p", "start": 0, "size": 1}); 65]), "65 instances");
    refused("/gpus/0/mig/instances/0/uuid", json!("MIG-other"), "do not say the same");
    refused("/gpus/0/mig/instances/0/profile", json!("2g.20gb"), "do not say the same");
    refused("/gpus/0/mig/instances/1/uuid", json!("MIG-5fd15f09-d04c-5e64-a8a1-c9b3d1aaf5f0"), "twice");
    refused("/gpus/1/mig_parent_uuid", Value::Null, "do not say the same");
    refused("/gpus/1/mig", json!({"profiles": []}), "an instance of another");
    refused("/gpus/0/mig/profiles/0/size", json!(0), "0 slices from slice 0");
    refused("/gpus/0/mig/profiles/0/starts", json!(places(65)), "1 slices from slice 64");
    refused("/gpus/0/mig/profiles/0/starts", json!([1, 0]), "ascending");
    refused("/gpus/0/mig/profiles/0/starts", json!([]), "expected some");
    refused("/gpus/0/mig/profiles/0/memory_bytes", json!(0), "no name, memory or instance");
    refused("/gpus/0/mig/profiles/1/name", json!("1g.10gb"), "named twice");
    refused("/gpus/0/mig/profiles/1/instances_max", json!(0), "no name, memory or instance");
    let profile = |number: usize| json!({"name": number.to_string(), "memory_bytes": 1, "size": 1, "starts": [0]});
    refused("/gpus/0/mig/profiles", (0..33).map(profile).collect(), "33 MIG profiles");
    let long = json!("x".repeat(257));
    check("inventory-mig", "/gpus/0/mig/profiles/0/name", long, Reason::PayloadTooLarge, "a MIG profile's name of 257 bytes");
    check("inventory-mig", "/gpus/0/mig/profiles/0/size", json!(256), Reason::Undecodable, "256");
}

#[test]
fn an_inventory_of_more_gpus_than_a_host_has_is_too_large() {
    let (_, payload) = changed("inventory", "/gpus", Value::Null);
    let mut message: Value = serde_json::from_slice(&payload).expect("JSON");
    let gpu = |number: usize| json!({"slot": number % 256, "uuid": format!("GPU-{number}"), "index": 0, "model": "m"});
    message["gpus"] = (0..=GPUS_MAX).map(gpu).collect();
    let Body::Refused(refused) = decode(&example("inventory").subject, message.to_string().as_bytes()) else { panic!("taken") };
    assert_eq!((refused.reason, refused.detail.as_str()), (Reason::PayloadTooLarge, "257 GPUs, at most 256"));
}

#[test]
fn a_long_detail_is_cut_and_the_event_lives() {
    let (subject, payload) = changed("event-xid", "/detail", json!("ä".repeat(DETAIL_BYTES_MAX)));
    let Body::Event(event) = decode(&subject, &payload) else { panic!("refused") };
    assert_eq!(event.detail.map(|detail| detail.len()), Some(DETAIL_BYTES_MAX));
}

#[test]
fn a_request_may_come_as_a_cloud_event() {
    let LogExample { subject, body, .. } = example("request-place");
    let data: Value = serde_json::from_slice(&to_bytes(&body)).expect("JSON");
    let event = json!({"specversion": "1.0", "id": "1", "source": "/me", "type": "my.request", "data": data});
    assert_eq!(decode(&subject, event.to_string().as_bytes()), body);
    let empty = json!({"specversion": "1.0", "id": "1"});
    assert!(matches!(decode(&subject, empty.to_string().as_bytes()), Body::Refused(refused) if refused.reason == Reason::InvalidRequest));
}

#[test]
fn a_message_larger_than_the_broker_takes_is_refused_on_every_subject() {
    for example in log_messages() {
        let payload = vec![b' '; plimsoll_schemas::frame::BYTES_MAX + 1];
        assert!(
            matches!(decode(&example.subject, &payload), Body::Refused(refused) if refused.reason == Reason::PayloadTooLarge),
            "{}",
            example.name
        );
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        Just(json!("a".repeat(300))),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,12}", inner, 0..6).prop_map(|map| map.into_iter().collect())
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_on_any_subject_become_a_record(bytes in prop::collection::vec(any::<u8>(), 0..256), subject in "\\PC{0,40}") {
        prop_assert!(matches!(record::decode(&cell(), &subject, &bytes), Body::Refused(_)));
        for example in log_messages() {
            let _ = decode(&example.subject, &bytes);
        }
    }

    #[test]
    fn a_damaged_message_becomes_a_record(
        which in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let examples = log_messages();
        let example = &examples[which.index(examples.len())];
        let mut bytes = to_bytes(&example.body);
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = decode(&example.subject, &bytes);
        let _ = serde_json::from_slice::<CloudEvent>(&bytes);
    }

    #[test]
    fn a_message_with_any_value_in_any_field_becomes_a_record_and_what_is_taken_is_written_the_same(
        which in any::<prop::sample::Index>(),
        field in any::<prop::sample::Index>(),
        value in any_json(),
    ) {
        let examples: Vec<_> = log_messages().into_iter().filter(|example| example.name != "sample").collect();
        let example = &examples[which.index(examples.len())];
        let mut message: Value = serde_json::from_slice(&to_bytes(&example.body)).expect("JSON");
        let fields = message.as_object_mut().expect("an object");
        let name = fields.keys().nth(field.index(fields.len())).expect("a field").clone();
        fields.insert(name, value);
        let body = decode(&example.subject, message.to_string().as_bytes());
        if !matches!(body, Body::Refused(_)) {
            prop_assert_eq!(decode(&example.subject, &to_bytes(&body)), body);
        }
    }

    #[test]
    fn a_damaged_event_of_out_is_read_or_refused(
        which in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), value: u8,
    ) {
        let examples = outputs();
        let mut bytes = examples[which.index(examples.len())].output.bytes.clone();
        let place = place.index(bytes.len());
        bytes[place] = value;
        if let Ok(event) = serde_json::from_slice::<CloudEvent>(&bytes) {
            prop_assert_eq!(serde_json::from_slice::<CloudEvent>(&serde_json::to_vec(&event).expect("JSON")).expect("own bytes"), event);
        }
    }
}
