//! `replay`, `verify` and `inspect` on what a processor has left behind.

use std::path::Path;

use serde_json::Value;

use super::drill::{checkpointed, checkpoints};
use super::harness::{Broker, GPUS, Processor, tool};
use super::place;

/// A processor's life with two decisions and at least two checkpoints, ended in order.
async fn stage(broker: &Broker, data: &Path) {
    let mut processor = Processor::placing(broker, data, &["--seal-interval-s", "3", "--checkpoint-interval-s", "1"]).await;
    let _feed = broker.feed(1);
    broker.request(&place(1)).await;
    processor.tail("gpu_windows_10s", 0, GPUS).await;
    checkpointed(&processor, data, 2).await;
    broker.request(&place(2)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    assert!(processor.stop().await.success());
}

/// A log that a processor has folded to its end gives the same state again, from its beginning and from a checkpoint.
pub fn folds_again(broker: &Broker, data: &Path, archive: &Path) {
    let archive = ["--archive", archive.to_str().unwrap()];
    let commit = run(broker, data, &[&["inspect", "commit"], &archive[..]].concat());
    let to = commit["position"].as_str().unwrap().split_once(':').unwrap().1;
    for from in ["first", "checkpoint"] {
        let into = data.join(from);
        let again = run(broker, data, &[&["replay", "--from", from, "--to", to, "--into", into.to_str().unwrap()], &archive[..]].concat());
        for name in ["position", "hash", "digest", "out_seq", "decision_seq"] {
            assert_eq!(again[name], commit[name], "{name} from {from}");
        }
    }
    let verdict = run(broker, data, &[&["verify"], &archive[..]].concat());
    assert_eq!(verdict["verdict"], "equal", "{verdict}");
    assert!(verdict["states_compared"].as_u64().unwrap() >= 1, "{verdict}");
}

fn run(broker: &Broker, data: &Path, arguments: &[&str]) -> Value {
    let (success, out, err) = tool(broker, data, arguments);
    assert!(success, "{arguments:?}: {out} {err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_gives_the_same_state_from_anywhere_and_a_difference_is_shown_with_both_values() {
    let Some(broker) = Broker::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    stage(&broker, data).await;
    let commit = run(&broker, data, &["inspect", "commit"]);
    let to = commit["position"].as_str().unwrap().strip_prefix("0:").unwrap();
    let (again, from_checkpoint) = (folder.path().join("again"), folder.path().join("from-checkpoint"));
    for (from, into) in [("first", &again), ("checkpoint", &from_checkpoint)] {
        let answer = run(&broker, data, &["replay", "--from", from, "--to", to, "--into", into.to_str().unwrap()]);
        for name in ["position", "hash", "digest", "out_seq", "decision_seq"] {
            assert_eq!(answer[name], commit[name], "{name} from {from}");
        }
    }
    let out = broker.out_len().await;
    let verdict = run(&broker, data, &["verify"]);
    assert_eq!((verdict["verdict"].as_str(), verdict["outputs_compared"].as_u64()), (Some("equal"), Some(out)), "{verdict}");
    assert!(verdict["states_compared"].as_u64().unwrap() >= 3, "two checkpoints and the store: {verdict}");
    assert_eq!(broker.out_len().await, out, "a tool publishes nothing");

    let newest = &checkpoints(data).await[0];
    let name = format!("{:010}-{:020}.json", newest.about.position.epoch.0, newest.about.position.sequence);
    let manifest = data.join("archive/checkpoints/local").join(name);
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace(&format!("{:016x}", newest.about.hash), "00000000deadbeef")).unwrap();
    let (success, said, _) = tool(&broker, data, &["verify"]);
    assert!(!success && said.contains("00000000deadbeef") && said.contains(&format!("{:016x}", newest.about.hash)), "{said}");
    std::fs::write(&manifest, text).unwrap();

    broker.publish("plimsoll.local.out.device", b"not from the fold".to_vec()).await;
    let (success, said, _) = tool(&broker, data, &["verify"]);
    assert!(!success && said.contains(&format!("\"recorded\":\"{}\"", out + 1)), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_in_a_store_a_checkpoint_and_a_record_can_be_looked_at() {
    let Some(broker) = Broker::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    stage(&broker, data).await;
    let lines = |arguments: &[&str]| {
        let (success, out, err) = tool(&broker, data, arguments);
        assert!(success, "{arguments:?}: {out} {err}");
        out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let tables = lines(&["inspect", "tables"]);
    let count = |name: &str| tables.iter().find(|line| line["table"] == name).unwrap_or_else(|| panic!("no {name}"))["value"].as_u64().unwrap();
    assert_eq!((count("state.hosts"), count("state.requests"), count("outputs")), (1, 2, broker.out_len().await));
    for table in tables.iter().map(|line| line["table"].as_str().unwrap()) {
        lines(&["inspect", "table", table]);
    }
    assert_eq!(lines(&["inspect", "table", "state.leases", "--containing", "r-2"]).len(), 1);
    assert_eq!(lines(&["inspect", "table", "state.devices", "--checkpoint", "newest"]).len(), 2 * GPUS);
    assert_eq!(run(&broker, data, &["inspect", "key", "state.hosts", "0"])["id"], "gpu-1");
    let (success, _, said) = tool(&broker, data, &["inspect", "table", "nonsense"]);
    assert!(!success && said.contains("nonsense") && said.contains("state.hosts"), "{said}");

    let decided = broker.outputs().await.into_iter().rfind(|event| event["type"] == "plimsoll.place.decided.v1").unwrap();
    let sequence = decided["data"]["position"]["sequence"].as_u64().unwrap().to_string();
    let record = run(&broker, data, &["inspect", "sequence", &sequence]);
    assert_eq!((record["kind"].as_str(), record["says"]["tenant"].as_str()), (Some("request"), Some("research")), "{record}");
    assert!(record["outputs"].as_array().unwrap().iter().any(|output| output["value"] == decided), "{record}");
    assert!(!record["rows"].as_array().unwrap().is_empty(), "{record}");
}
