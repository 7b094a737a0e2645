//! `plimsoll alerts --webhook` with a real nats-server and a receiver that fails first: every alert arrives, in order, each under one id.
#![expect(clippy::disallowed_methods, reason = "tests wait for conditions with a deadline")]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod support;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use plimsoll_schemas::alert::{Limit, Scope, Severity, Signal};
use plimsoll_schemas::id::{CellId, LogEpoch, Position};
use plimsoll_schemas::out::{AlertChanged, AlertState, Output, Payload};
use plimsoll_schemas::subject::{OutSubject, out_stream};
use plimsoll_schemas::time::LogTime;
use support::{PATIENCE, Server, Started, eventually};

const CONSUMER: &str = "on-call";

fn cell() -> CellId {
    "local".parse().unwrap()
}

/// A broker of the test's own with an empty OUT.
struct Broker(Server);

impl Broker {
    async fn start(folder: &Path) -> Option<Self> {
        Server::start(folder, &[out_stream(&cell(), 1 << 20)]).await.map(Self)
    }

    /// Publishes the `number`th alert and returns its id.
    async fn alert(&self, number: u64) -> String {
        let state = if number.is_multiple_of(2) { AlertState::Resolved } else { AlertState::Firing };
        let alert = AlertChanged {
            alert_id: "local-0-1-0".to_owned(),
            dedup_key: "fleet_full/cell".to_owned(),
            rule: "fleet_full".to_owned(),
            severity: Severity::Info,
            state,
            cause: "limit_passed".to_owned(),
            scope: Scope::Cell,
            host: None,
            device_uuid: None,
            device_key: None,
            signal: Signal::PlaceablePercent,
            value: 0,
            limit: Limit::Below(5),
            began_at: LogTime(1).rfc3339(),
            summary: None,
        };
        let position = Position { epoch: LogEpoch(0), sequence: number };
        let output = Output::new(&cell(), number, position, 0, LogTime(1), &OutSubject::Alert, Payload::Alert(Box::new(alert)));
        self.0.jetstream.publish(output.subject, output.bytes.into()).await.unwrap().await.unwrap();
        output.id
    }

    /// Waits until the broker knows that everything was taken.
    async fn all_acknowledged(&self) {
        let name = out_stream(&cell(), 0).name;
        eventually("everything is acknowledged", async || {
            let stream = self.0.jetstream.get_stream(&name).await.unwrap();
            let info = stream.consumer_info(CONSUMER).await.unwrap();
            info.num_pending == 0 && info.num_ack_pending == 0
        })
        .await;
    }

    /// The command, once it has its place in OUT.
    fn sink(&self, folder: &Path, webhook: &str) -> Started {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.args(["alerts", "--webhook", webhook, "--consumer", CONSUMER, "--cell", "local", "--nats", &self.0.url, "--data-dir"]).arg(folder);
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap()).lines();
        let first = said.next().unwrap().unwrap();
        assert!(first.contains("delivering as on-call"), "{first}");
        // What else it says is read, so that it never waits for its reader.
        std::thread::spawn(move || said.for_each(drop));
        Started(process)
    }
}

/// A receiver that answers as told, then always with 200; says which id it was asked to take, of which type, and what it answered.
struct Hook {
    url: String,
    calls: Receiver<(String, String, u16)>,
}

impl Hook {
    /// `answers`: statuses in order; 0 = hang up without a word.
    fn start(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (sender, calls) = sync_channel(64);
        let mut answers: VecDeque<u16> = answers.iter().copied().collect();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                if serve(connection.unwrap(), answers.pop_front().unwrap_or(200), &sender).is_none() {
                    return;
                }
            }
        });
        Self { url, calls }
    }

    fn next(&self) -> (String, u16) {
        let (id, kind, status) = self.calls.recv_timeout(PATIENCE).expect("a call in time");
        assert_eq!(kind, "plimsoll.alert.changed.v1");
        (id, status)
    }
}

/// One call per connection; absent when nobody listens any more.
fn serve(mut connection: TcpStream, status: u16, sender: &SyncSender<(String, String, u16)>) -> Option<()> {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let (mut id, mut length) = (String::new(), 0);
    for line in reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()) {
        match line.to_ascii_lowercase().split_once(": ") {
            Some(("idempotency-key", value)) => id = value.to_owned(),
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(("content-type", value)) => assert_eq!(value, "application/cloudevents+json"),
            Some(_) | None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(event["id"], id.as_str(), "the event's id is its idempotency key");
    if status != 0 {
        let _ = connection.write_all(format!("HTTP/1.1 {status} x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok").as_bytes());
    }
    sender.send((id, event["type"].as_str().unwrap().to_owned(), status)).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_alert_arrives_in_order_although_the_receiver_fails_and_the_sink_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = Broker::start(folder.path()).await else { return };
    let hook = Hook::start(&[503, 0]);
    broker.alert(1).await;
    let mut sink = broker.sink(folder.path(), &hook.url);

    let (second, third) = (broker.alert(2).await, broker.alert(3).await);
    let calls: Vec<_> = (0..4).map(|_| hook.next()).collect();
    let expected = [(&second, 503), (&second, 0), (&second, 200), (&third, 200)];
    assert_eq!(calls.iter().map(|(id, status)| (id, *status)).collect::<Vec<_>>(), expected, "what was there before it began is not sent");
    broker.all_acknowledged().await;

    sink.kill();
    let fourth = broker.alert(4).await;
    let _sink = broker.sink(folder.path(), &hook.url);
    assert_eq!(hook.next(), (fourth, 200), "the broker remembers what was taken, and keeps what came meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_the_receiver_will_never_take_is_left_out_and_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let Some(broker) = Broker::start(folder.path()).await else { return };
    let hook = Hook::start(&[400]);
    let _sink = broker.sink(folder.path(), &hook.url);
    let (first, second) = (broker.alert(1).await, broker.alert(2).await);
    assert_eq!([hook.next(), hook.next()], [(first, 400), (second, 200)]);
    broker.all_acknowledged().await;
}
