//! A broker that is away when the processor starts, or that cannot be used: the one is waited for, the other ends the start with a reason.

use std::time::Duration;

use tokio::time::Instant;

use super::harness::{Broker, Processor, eventually};

/// "At once", on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
const WAITS: &str = "waits for the broker: no nats-server at";

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_starts_before_its_broker_waits_and_then_works() {
    let Some(mut broker) = Broker::start().await else { return };
    broker.kill();
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &[]).await;
    // Long enough that the pauses between its attempts have grown.
    eventually("it has tried more than once", || async { processor.said().matches(WAITS).count() >= 3 }).await;
    let (status, body) = processor.readiness();
    assert!(status == 503 && body.contains(WAITS), "{body}");
    broker.start_again().await;
    processor.ready().await;
    let (_, body) = processor.readiness();
    assert!(!body.contains("waits for"), "{body}");
    broker.inventory().await;
    eventually("it folds", || async { processor.state().await.0 > 0 }).await;
    assert!(processor.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_waits_for_its_broker_stops_at_once_when_told_to() {
    let Some(mut broker) = Broker::start().await else { return };
    broker.kill();
    let data = tempfile::tempdir().unwrap();
    let mut processor = Processor::start(&broker, data.path(), &[]).await;
    eventually("it waits", || async { processor.said().matches(WAITS).count() >= 3 }).await;
    let began = Instant::now();
    assert!(processor.stop().await.success());
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_can_never_be_used_ends_the_start_with_the_reason() {
    let check = async |broker: &str, reason: &str| {
        let data = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let mut processor = Processor::start_at(broker, data.path(), &[]).await;
        assert!(!processor.exited().await.success());
        let said = processor.said();
        assert!(said.contains(reason) && !said.contains(WAITS) && began.elapsed() < AT_ONCE, "{:?}: {said}", began.elapsed());
    };
    check("nats://[not-an-address", "cannot be used").await;
    let Some(plain) = Broker::start_as("", None).await else { return };
    check(plain.url(), "runs without JetStream").await;
    let Some(locked) =
        Broker::start_as("jetstream { max_file_store: 64GB }\nauthorization { user: tester, password: secret }", Some(("tester", "secret"))).await
    else {
        return;
    };
    check(locked.url(), "authorization violation").await;
    let accounts = "jetstream { max_file_store: 64GB }\naccounts { A: { users: [{ user: a, password: a }] } }\nno_auth_user: a";
    let Some(without) = Broker::start_as(accounts, None).await else { return };
    check(without.url(), "PLIMSOLL_local_LOG: looking it up failed for good").await;
}
