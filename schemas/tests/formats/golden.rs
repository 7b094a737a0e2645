//! Bytes once published stay readable: each golden file still decodes to its value, and the value still gives those bytes.

use plimsoll_schemas::ctl::Ctl;
use plimsoll_schemas::out::{CloudEvent, Payload};
use plimsoll_schemas::policy::{Placing, Policy};
use plimsoll_schemas::record;

use crate::bless::{blessing, names, path, read, write};
use crate::examples::{cell, ctl_messages, log_messages, outputs, to_bytes};

/// The golden bytes of a file, written first where there is none and that is asked for.
fn golden(file: &str, bytes: &[u8]) -> Vec<u8> {
    let relative = format!("golden/{file}");
    if blessing() && !path(&relative).exists() {
        write(&relative, bytes);
    }
    read(&relative)
}

fn assert_same(file: &str, now: &[u8], then: &[u8]) {
    assert!(
        now == then,
        "schemas/golden/{file} has other bytes than this build writes.\nthen: {}\nnow:  {}\nIf that is meant, it is a new version: give it a new file \
         and keep the old one readable",
        String::from_utf8_lossy(then),
        String::from_utf8_lossy(now)
    );
}

#[test]
fn every_message_of_the_log_reads_and_writes_its_golden_bytes() {
    for example in log_messages() {
        let extension = if example.name == "sample" { "bin" } else { "json" };
        let file = format!("log-{}-v1.{extension}", example.name);
        let bytes = to_bytes(&example.body);
        let golden = golden(&file, &bytes);
        assert_eq!(record::decode(&cell(), &example.subject.to_subject(&cell()), &golden), example.body, "{file}");
        assert_same(&file, &bytes, &golden);
    }
}

#[test]
fn every_event_of_out_reads_and_writes_its_golden_bytes() {
    for example in outputs() {
        let file = format!("out-{}-v1.json", example.name);
        let golden = golden(&file, &example.output.bytes);
        let event: CloudEvent = serde_json::from_slice(&golden).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!((event.kind.as_str(), &event.id, &event.data), (example.payload.kind(), &example.output.id, &example.payload), "{file}");
        assert_same(&file, &example.output.bytes, &golden);
    }
}

/// Files with bytes that nobody writes any more.
const READ_ONLY: usize = 1;

#[test]
fn what_says_less_than_today_is_read_as_it_was_meant() {
    let event: CloudEvent = serde_json::from_slice(&read("golden/out-policy.changed-placement-v1.json")).expect("an event");
    let Payload::Policy(changed) = event.data else { panic!("no change of a policy: {:?}", event.data) };
    assert_eq!((changed.policy, changed.name.as_str()), (Policy::Placement(Placing { power_weight: 0 }), "hybrid"));
}

#[test]
fn every_request_to_an_agent_reads_and_writes_its_golden_bytes() {
    for (name, ctl) in ctl_messages() {
        let file = format!("ctl-{name}-v1.json");
        let bytes = serde_json::to_vec(&ctl).expect("plain data");
        let golden = golden(&file, &bytes);
        assert_eq!(serde_json::from_slice::<Ctl>(&golden).unwrap_or_else(|error| panic!("{file}: {error}")), ctl, "{file}");
        assert_same(&file, &bytes, &golden);
    }
}

#[test]
fn no_golden_file_is_left_without_a_test() {
    let known = log_messages().len() + outputs().len() + ctl_messages().len() + READ_ONLY;
    assert_eq!(names("golden").len(), known, "{:?}", names("golden"));
}
