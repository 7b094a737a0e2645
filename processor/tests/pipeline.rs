//! The real binary against a real nats-server: what goes in comes out once, whatever is killed in between.

#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod away;
mod drill;
mod harness;
mod tools;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use harness::{Broker, GPUS, Processor, eventually};
use plimsoll_schemas::alert::{Limit, Rule, Severity, Signal};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::request::{Bundle, Place, Request};
use plimsoll_store::Store;

fn place(number: u32) -> Request {
    Request::Place(Place {
        request_id: format!("r-{number}"),
        bundles: vec![Bundle { count: 1, milli: 1_000, vram_bytes: 1 << 30, ..Bundle::default() }],
        ..Place::default()
    })
}

fn at(sequence: u64) -> Position {
    Position { epoch: LogEpoch(0), sequence }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_it_goes_on_and_doubles_nothing() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut first = Processor::placing(&broker, data.path(), &["--seal-interval-s", "3600"]).await;
    let feed = broker.feed(1);
    let windows = first.tail("gpu_windows_10s", 0, GPUS).await;
    assert_eq!(windows.len(), windows.iter().collect::<BTreeSet<_>>().len(), "no row comes twice");
    for number in 0..5 {
        broker.request(&place(number)).await;
    }
    broker.outputs_of("plimsoll.place.decided.v1", 5).await;
    first.kill();

    for number in 5..10 {
        broker.request(&place(number)).await;
    }
    let mut second = Processor::start(&broker, data.path(), &["--seal-interval-s", "3600"]).await;
    second.ready().await;
    broker.outputs_of("plimsoll.place.decided.v1", 10).await;
    let decisions = broker.check_that_out_is_dense().await;
    assert_eq!(decisions, (1..=10).collect::<Vec<_>>());
    let again = second.tail("gpu_windows_10s", 0, windows.len()).await;
    assert_eq!(again[..windows.len()], windows[..], "the rows from before the kill are the same, each once");
    let more = second.tail("gpu_windows_10s", 0, windows.len() + GPUS).await;
    assert_eq!(more.len(), more.iter().collect::<BTreeSet<_>>().len(), "no row comes twice");
    assert_eq!(second.metric("samples_duplicate").await, 0.0, "nothing was folded twice");
    drop(feed);
    assert!(second.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_the_last_record_folded_is_read_on() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut first = Processor::placing(&broker, data.path(), &[]).await;
    let feed = broker.feed(1);
    first.tail("gpu_windows_10s", 0, GPUS).await;
    drop(feed);
    assert!(first.stop().await.success());
    broker.lose_newest(3).await;

    let mut second = Processor::start(&broker, data.path(), &[]).await;
    second.ready().await;
    let _feed = broker.feed(1_000);
    second.tail("gpu_windows_10s", 0, 2 * GPUS).await;
    assert!(second.said().contains("the log has lost the last record folded"), "{}", second.said());
    // The frames from before are missed, and nobody answers for them.
    eventually("the gap is open and asked for", || async {
        second.metric("gaps_open").await == 1.0 && second.metric("repairs_sent_total").await >= 1.0
    })
    .await;
    broker.check_that_out_is_dense().await;
    assert!(second.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_or_damaged_store_is_folded_again_and_out_is_compared_not_doubled() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut first = Processor::placing(&broker, data.path(), &[]).await;
    let _feed = broker.feed(1);
    broker.request(&place(1)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    assert!(first.stop().await.success());
    let before = broker.check_that_out_is_dense().await;
    let standing = broker.out_len().await;

    for file in std::fs::read_dir(data.path().join("state")).unwrap().map(|file| file.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("MANIFEST") {
            std::fs::write(file, b"damaged").unwrap();
        }
    }
    let mut second = Processor::start(&broker, data.path(), &[]).await;
    second.ready().await;
    assert!(data.path().join("state.damaged-1").is_dir(), "the damaged store was set aside");
    eventually("every standing output was compared", || async { second.metric("out_compared_total").await >= standing as f64 }).await;
    broker.request(&place(2)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    assert_eq!(broker.check_that_out_is_dense().await, [before, vec![2]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_log_begins_a_new_epoch_and_nothing_is_decided_or_counted_twice() {
    let Some(broker) = Broker::start().await else { return };
    let (one, two, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shared = ["--archive", archive.path().to_str().unwrap()];
    let mut first = Processor::start(&broker, one.path(), &shared).await;
    first.ready().await;
    first.becomes(true).await;
    let mut second = Processor::placing(&broker, two.path(), &shared).await;
    let _feed = broker.feed(1);
    for number in 0..3 {
        broker.request(&place(number)).await;
    }
    broker.outputs_of("plimsoll.place.decided.v1", 3).await;
    let samples = first.status().await["summary"]["samples"].as_u64().unwrap();
    broker.recreate_log().await;
    // What the lost log said comes again: clients and hosts repeat what they are not sure of.
    eventually("both go on in a new epoch", || async {
        broker.request(&place(1)).await;
        first.epoch().await == Some(1) && second.epoch().await == Some(1)
    })
    .await;
    broker.inventory().await;
    broker.request(&place(2)).await;
    broker.request(&place(3)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 4).await;
    assert_eq!(broker.check_that_out_is_dense().await, [1, 2, 3, 4], "each request has one decision");
    eventually("both fold the same", || async { first.state().await == second.state().await }).await;
    eventually("samples are counted on", || async { first.status().await["summary"]["samples"].as_u64().unwrap() > samples }).await;
    assert_eq!(first.metric("divergences_total").await, 0.0);
    assert!(first.said().contains("goes on from this state") || second.said().contains("goes on from this state"), "somebody said where to go on");
    assert!(second.stop().await.success());
    assert!(first.stop().await.success());
    tools::folds_again(&broker, one.path(), archive.path());
}

/// The log is again what it was when it was copied.
fn put_back_log(streams: &Path, copy: &Path) {
    let log = streams.join("PLIMSOLL_local_LOG");
    std::fs::remove_dir_all(&log).unwrap();
    copy_folder(copy, &log);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_from_an_old_copy_goes_on_where_both_are_the_same() {
    let Some(mut broker) = Broker::start().await else { return };
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut processor = Processor::placing(&broker, data.path(), &[]).await;
    let feed = broker.feed(1);
    broker.request(&place(0)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    let before = processor.state().await.0;
    eventually("a commit is behind", || async { processor.state().await.0 > before + 10 }).await;
    broker.kill_and(|streams| copy_folder(&streams.join("PLIMSOLL_local_LOG"), copy.path())).await;
    eventually("it is ready again", || async { processor.is_ready().await }).await;
    broker.request(&place(1)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    let samples = processor.status().await["summary"]["samples_folded"].as_u64().unwrap();
    broker.kill_and(|streams| put_back_log(streams, copy.path())).await;
    eventually("it goes on in a new epoch", || async { processor.epoch().await == Some(1) }).await;
    broker.request(&place(1)).await;
    broker.request(&place(2)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 3).await;
    assert_eq!(broker.check_that_out_is_dense().await, [1, 2, 3]);
    let after = processor.status().await["summary"].clone();
    assert!(after["samples_folded"].as_u64().unwrap() >= samples, "nothing that was folded is forgotten: {after}");
    drop(feed);
    assert!(processor.stop().await.success());
    let mut again = Processor::start(&broker, data.path(), &[]).await;
    again.ready().await;
    assert_eq!(again.epoch().await, Some(1), "the epoch is kept over a restart");
    assert!(again.stop().await.success());
    tools::folds_again(&broker, data.path(), &data.path().join("archive"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_out_tells_of_and_the_log_has_lost_stands_and_nothing_is_decided_twice() {
    // With a commit to go on from, and with none at all.
    for commits in [true, false] {
        let Some(mut broker) = Broker::start().await else { return };
        let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let never: &[&str] = &["--commit-interval-s", "3600"];
        let mut processor = Processor::placing(&broker, data.path(), if commits { &[] } else { never }).await;
        let feed = broker.feed(1);
        broker.request(&place(0)).await;
        broker.outputs_of("plimsoll.place.decided.v1", 1).await;
        if commits {
            assert!(processor.stop().await.success());
            processor = Processor::start(&broker, data.path(), never).await;
            processor.ready().await;
        }
        broker.kill_and(|streams| copy_folder(&streams.join("PLIMSOLL_local_LOG"), copy.path())).await;
        eventually("it is ready again", || async { processor.is_ready().await }).await;
        broker.request(&place(1)).await;
        broker.outputs_of("plimsoll.place.decided.v1", 2).await;
        drop(feed);
        processor.kill();
        let standing = broker.out_bytes().await;
        broker.kill_and(|streams| put_back_log(streams, copy.path())).await;
        let mut again = Processor::start(&broker, data.path(), never).await;
        again.ready().await;
        let feed = broker.feed(1_000);
        broker.request(&place(2)).await;
        broker.request(&place(1)).await;
        broker.outputs_of("plimsoll.place.decided.v1", 3).await;
        assert_eq!(again.epoch().await, Some(1), "commits: {commits}");
        assert_eq!(broker.check_that_out_is_dense().await, [1, 2, 3], "commits: {commits}");
        assert!(broker.out_bytes().await.starts_with(&standing), "what stood in OUT stands");
        drop(feed);
        assert!(again.stop().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_out_shows_and_the_log_does_not_make_is_adopted_though_nothing_else_is_published() {
    let Some(mut broker) = Broker::start().await else { return };
    let (data, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut processor = Processor::placing(&broker, data.path(), &["--commit-interval-s", "3600"]).await;
    let feed = broker.feed(1);
    broker.request(&place(0)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    drop(feed);
    broker.kill_and(|streams| copy_folder(&streams.join("PLIMSOLL_local_LOG"), copy.path())).await;
    eventually("it is ready again", || async { processor.is_ready().await }).await;
    broker.request(&place(1)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    processor.kill();
    let standing = broker.out_bytes().await;
    broker.kill_and(|streams| put_back_log(streams, copy.path())).await;

    let mut again = Processor::start(&broker, data.path(), &[]).await;
    eventually("it begins a new epoch", || async { again.is_ready().await && again.epoch().await == Some(1) }).await;
    assert!(again.said().contains("OUT ends at"), "{}", again.said());
    assert_eq!(again.status().await["decision_seq"], 2, "the decision of which only OUT tells is known");
    assert!(broker.out_bytes().await.starts_with(&standing), "what stood in OUT stands");
    assert!(again.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_output_in_out_stops_the_processor_though_it_has_nothing_to_publish() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &[]).await;
    processor.ready().await;
    broker.publish("plimsoll.local.out.device", b"not from the fold".to_vec()).await;
    assert!(!processor.exited().await.success());
    assert!(processor.said().contains("not from the fold"), "{}", processor.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_before_out_confirmed_it_is_compared_with_all_that_stands() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut first = Processor::placing(&broker, data.path(), &[]).await;
    broker.request(&place(0)).await;
    broker.request(&place(1)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    assert!(first.stop().await.success());
    // Outputs that were sent in one go: another's message has taken the place of one, and the next ones stand behind it.
    let store = Store::open(&data.path().join("state")).unwrap();
    let commit = store.last_commit().unwrap().unwrap();
    store.commit_in_a_hurry(&commit, commit.out_seq - 2, &[], [], []).unwrap();
    drop(store);
    broker.replace_output(commit.out_seq - 1, b"not from the fold").await;
    let mut second = Processor::start(&broker, data.path(), &[]).await;
    assert!(!second.exited().await.success());
    assert!(second.said().contains("OUT holds another output than this state made"), "{}", second.said());
    assert!(second.said().contains("not from the fold"), "{}", second.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_output_in_out_stops_the_processor() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &[]).await;
    processor.ready().await;
    broker.publish("plimsoll.local.out.device", b"not from the fold".to_vec()).await;
    broker.inventory().await;
    assert!(!processor.exited().await.success());
    assert!(processor.said().contains("not from the fold"), "{}", processor.said());
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_rows_leave_the_store_one_manifest_later() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &["--seal-interval-s", "3"]).await;
    processor.ready().await;
    broker.inventory().await;
    let _feed = broker.feed(1);
    processor.tail("gpu_windows_10s", 0, GPUS).await;
    eventually("rows were pruned behind a sealed record", || async {
        processor.tail_refusal("gpu_windows_10s", at(0)).await.is_some_and(|status| status.code() == tonic::Code::OutOfRange)
    })
    .await;
    let status = processor.status().await;
    assert!(status["sealed"]["version"].as_u64().unwrap() >= 2, "{status}");
    assert!(processor.stop().await.success());
    let cell: plimsoll_schemas::id::CellId = "local".parse().unwrap();
    let archive = plimsoll_archive::Archive::open(data.path().join("archive").to_str().unwrap(), &cell).unwrap();
    let newest = archive.newest().await.unwrap().unwrap();
    assert!(newest.files.iter().map(|file| file.rows).sum::<u64>() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_over_seals_on_from_what_the_other_has_sealed() {
    let Some(broker) = Broker::start().await else { return };
    let (one, two, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shared = ["--archive", archive.path().to_str().unwrap(), "--seal-interval-s", "2"];
    let mut first = Processor::start(&broker, one.path(), &shared).await;
    first.ready().await;
    first.becomes(true).await;
    let mut second = Processor::start(&broker, two.path(), &shared).await;
    second.ready().await;
    broker.inventory().await;
    let _feed = broker.feed(1);
    let sealed = async |processor: &Processor| processor.status().await["sealed"]["version"].as_u64().unwrap_or(0);
    eventually("the active replica has sealed twice", || async { sealed(&second).await >= 2 }).await;
    first.kill();
    let before = sealed(&second).await;
    second.becomes(true).await;
    eventually("the other one seals", || async { sealed(&second).await > before + 1 }).await;
    assert_eq!(second.metric("seal_failures_total").await, 0.0, "{}", second.said());
    assert!(second.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_answered_and_changes_nothing() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &[]).await;
    processor.ready().await;
    for subject in ["sample.gpu-1", "inventory.gpu-1", "event.gpu-1", "request.research", "control", "tick", "check", "nonsense.x.y"] {
        broker.publish(&format!("plimsoll.local.log.{subject}"), vec![0xff; 300]).await;
    }
    for (ticket, code) in [
        ("", tonic::Code::InvalidArgument),
        ("{\"table\":\"nonsense\"}", tonic::Code::InvalidArgument),
        ("{\"table\":\"devices\",\"drop\":true}", tonic::Code::InvalidArgument),
    ] {
        assert_eq!(processor.refusal_of(ticket).await.map(|status| status.code()), Some(code), "{ticket}");
    }
    let position = processor.status().await["position"]["sequence"].as_u64().unwrap();
    eventually("the log goes on", || async { processor.status().await["position"]["sequence"].as_u64().unwrap() > position.max(9) }).await;
    assert!(processor.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_comes_back_and_nothing_is_missing() {
    let Some(mut broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &[]).await;
    processor.ready().await;
    broker.inventory().await;
    broker.kill_and_restart().await;
    eventually("it is ready again", || async { processor.is_ready().await }).await;
    let before = processor.status().await["position"]["sequence"].as_u64().unwrap();
    eventually("it folds again", || async { processor.status().await["position"]["sequence"].as_u64().unwrap() > before }).await;
    assert_eq!(processor.metric("log_missing_records_total").await, 0.0);
    broker.check_that_out_is_dense().await;
    assert!(processor.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_and_a_paused_active_one_publishes_nothing_when_it_wakes() {
    let Some(broker) = Broker::start().await else { return };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = Processor::start(&broker, one.path(), &[]).await;
    first.ready().await;
    first.becomes(true).await;
    let mut second = Processor::placing(&broker, two.path(), &[]).await;
    let _feed = broker.feed(1);
    broker.request(&place(0)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    assert_eq!((first.metric("active").await, second.metric("active").await), (1.0, 0.0));

    let mut decisions = 1;
    for round in 0..3 {
        let (paused, other) = if round % 2 == 0 { (&first, &second) } else { (&second, &first) };
        paused.signal("-STOP");
        let took = other.becomes(true).await;
        eprintln!("round {round}: the standby was active {} ms after the active one was paused", took.as_millis());
        for _ in 0..3 {
            broker.request(&place(decisions)).await;
            decisions += 1;
        }
        broker.outputs_of("plimsoll.place.decided.v1", decisions as usize).await;
        paused.signal("-CONT");
        paused.becomes(false).await;
        assert_eq!(broker.check_that_out_is_dense().await, (1..=u64::from(decisions)).collect::<Vec<_>>());
    }
    eventually("both replicas fold the same", || async { first.state().await == second.state().await }).await;
    eventually("the standby knows what stands in OUT", || async { first.metric("out_acked").await == second.metric("out_acked").await }).await;
    eventually("a hash was said in the log", || async { broker.holds("plimsoll.local.log.check").await }).await;
    assert_eq!((first.metric("divergences_total").await, second.metric("divergences_total").await), (0.0, 0.0));
    second.kill();
    first.becomes(true).await;
    assert!(first.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn out_that_lost_its_tail_gets_it_again_under_the_same_ids() {
    let Some(mut broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let mut processor = Processor::placing(&broker, data.path(), &[]).await;
    let _feed = broker.feed(1);
    broker.request(&place(0)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    broker.kill_and(|streams| copy_folder(&streams.join("PLIMSOLL_local_OUT"), copy.path())).await;
    eventually("it is ready again", || async { processor.is_ready().await }).await;
    for number in 1..6 {
        broker.request(&place(number)).await;
    }
    broker.outputs_of("plimsoll.place.decided.v1", 6).await;
    let before = broker.outputs().await;
    broker
        .kill_and(|streams| {
            let out = streams.join("PLIMSOLL_local_OUT");
            std::fs::remove_dir_all(&out).unwrap();
            copy_folder(copy.path(), &out);
        })
        .await;
    // Only the next output makes it look.
    broker.request(&place(6)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 7).await;
    assert_eq!(broker.outputs().await[..before.len()], before[..], "the same outputs under the same ids");
    assert_eq!(broker.check_that_out_is_dense().await, (1..=7).collect::<Vec<_>>());
    assert!(processor.stop().await.success());
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Long enough for a slow machine; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_fires_and_resolves_once_although_the_processor_is_killed_in_between() {
    let Some(broker) = Broker::start().await else { return };
    let data = tempfile::tempdir().unwrap();
    let mut first = Processor::start(&broker, data.path(), &["--seal-interval-s", "3600"]).await;
    first.ready().await;
    broker.inventory().await;
    let heard = Rule {
        name: "heard".to_owned(),
        severity: Severity::Info,
        signal: Signal::HostSilence,
        limit: Limit::Below(1),
        clear: None,
        for_s: 0,
        cooldown_s: 0,
        summary: None,
    };
    broker.control(&Control::AlertRule(heard)).await;
    broker.outputs_of("plimsoll.alert.changed.v1", 1).await;
    first.kill();
    broker.control(&Control::RemoveAlertRule { name: "heard".to_owned() }).await;
    let mut second = Processor::start(&broker, data.path(), &["--seal-interval-s", "3600"]).await;
    second.ready().await;
    broker.outputs_of("plimsoll.alert.changed.v1", 2).await;
    broker.check_that_out_is_dense().await;
    let outputs = broker.outputs().await;
    let of = |kind: &str| outputs.iter().filter(|event| event["type"] == kind).map(|event| event["data"].clone()).collect::<Vec<_>>();
    let alerts = of("plimsoll.alert.changed.v1");
    let said: Vec<_> = alerts.iter().map(|alert| (alert["state"].as_str().unwrap(), alert["dedup_key"].as_str().unwrap())).collect();
    assert_eq!(said, [("firing", "heard/gpu-1"), ("resolved", "heard/gpu-1")]);
    assert_eq!(alerts[0]["alert_id"], alerts[1]["alert_id"]);
    let rules: Vec<_> = of("plimsoll.policy.changed.v1").iter().map(|policy| policy["in_force"].as_bool().unwrap()).collect();
    assert_eq!(rules, [true, false]);
    assert_eq!(second.tail("alerts", 0, 2).await.len(), 2);
}
