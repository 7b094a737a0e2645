//! `plimsoll place` and `plimsoll cancel` with a real nats-server and a processor played by the test: what is said while a request waits.
#![expect(clippy::disallowed_methods, reason = "tests wait for conditions with a deadline")]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod support;

use std::process::{Child, Command, Output as Ended, Stdio};

use plimsoll_schemas::id::{CellId, LogEpoch, Position, TenantId};
use plimsoll_schemas::out::{Output, Payload};
use plimsoll_schemas::request::Request;
use plimsoll_schemas::subject::{OutSubject, log_stream, out_stream};
use plimsoll_schemas::time::LogTime;
use serde_json::{Value, json};
use support::{Server, eventually};

fn cell() -> CellId {
    "local".parse().unwrap()
}

fn tenant() -> TenantId {
    "research".parse().unwrap()
}

/// A cell without a processor: the test says what stands in OUT.
struct Cell {
    server: Server,
    folder: tempfile::TempDir,
}

impl Cell {
    async fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), &[log_stream(&cell(), 1 << 20), out_stream(&cell(), 1 << 20)]).await?;
        Some(Self { server, folder })
    }

    fn plimsoll(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.env_clear().args(arguments).args(["--nats", &self.server.url, "--data-dir"]).arg(self.folder.path().join("data"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The records of LOG, once there are so many.
    async fn asked(&self, records: u64) -> Vec<(u64, Request)> {
        let mut stream = self.server.jetstream.get_stream(log_stream(&cell(), 0).name).await.unwrap();
        let mut last = 0;
        eventually("the request is in LOG", async || {
            last = stream.info().await.unwrap().state.last_sequence;
            last >= records
        })
        .await;
        let mut asked = Vec::new();
        for sequence in 1..=last {
            let message = stream.get_raw_message(sequence).await.unwrap();
            asked.push((sequence, serde_json::from_slice(&message.payload).unwrap()));
        }
        asked
    }

    /// Says something in OUT, made by a record of LOG.
    async fn say(&self, number: u64, sequence: u64, subject: OutSubject, payload: Value) {
        let payload: Payload = serde_json::from_value(payload).unwrap();
        let position = Position { epoch: LogEpoch(0), sequence };
        let output = Output::new(&cell(), number, position, 0, LogTime(1), &subject, payload);
        self.server.jetstream.publish(output.subject, output.bytes.into()).await.unwrap().await.unwrap();
    }

    async fn decide(&self, number: u64, outcome: &str) {
        let payload = json!({
            "decision_id": format!("local-0-{number}-0"), "decision_seq": number, "request_id": "r-1", "tenant": "research", "outcome": outcome,
            "reason": "lease_conflict", "detail": "all 8 GPUs are leased", "position": {"epoch": 0, "sequence": number}, "policy": "hybrid@1",
            "queue_ms": 4_000, "hosts_considered": 1, "hosts_feasible": 0, "refused": {}, "assignments": [], "runners_up": [],
        });
        self.say(number, number, OutSubject::Decision(tenant()), payload).await;
    }
}

fn ended(child: Child) -> (Option<i32>, String, String) {
    let Ended { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn a_request_that_waits_is_waited_for_and_said_once() {
    let Some(cell) = Cell::start().await else { return };
    let place = cell.plimsoll(&["place", "--tenant", "research", "--request-id", "r-1", "--max-wait", "1m"]);
    let Request::Place(asked) = &cell.asked(1).await[0].1 else { panic!("no placement") };
    assert_eq!((asked.request_id.as_str(), asked.max_wait_ms), ("r-1", Some(60_000)));
    cell.decide(1, "deferred").await;
    cell.decide(2, "placed").await;
    let (code, _, stderr) = ended(place);
    assert_eq!((code, stderr.as_str()), (Some(0), "plimsoll: request r-1 waits: lease_conflict: all 8 GPUs are leased\n"));
}

#[tokio::test]
async fn what_still_waits_at_the_end_is_said_with_how_to_withdraw_it() {
    let Some(cell) = Cell::start().await else { return };
    let place = cell.plimsoll(&["place", "--tenant", "research", "--request-id", "r-1", "--max-wait", "1m", "--timeout", "5s"]);
    cell.asked(1).await;
    cell.decide(1, "deferred").await;
    let (code, stdout, stderr) = ended(place);
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stdout.contains("deferred"), "{stdout}");
    assert!(stderr.ends_with("request r-1 still waits after 5 s: `plimsoll cancel r-1 --tenant research` withdraws it\n"), "{stderr}");
    // It was heard, so it was not sent again and again.
    assert!(cell.asked(1).await.len() <= 2);
}

#[tokio::test]
async fn a_withdrawal_ends_with_the_decision_or_with_its_own_refusal() {
    let Some(cell) = Cell::start().await else { return };
    let cancel = cell.plimsoll(&["cancel", "r-1", "--tenant", "research"]);
    assert!(matches!(&cell.asked(1).await[0].1, Request::Cancel(cancel) if cancel.cancels == "r-1"));
    cell.decide(1, "cancelled").await;
    let (code, stdout, stderr) = ended(cancel);
    assert!(code == Some(0) && stdout.contains("waited 4000 ms"), "{stdout}{stderr}");

    let cancel = cell.plimsoll(&["cancel", "r-1", "--tenant", "research"]);
    let (sequence, _) = cell.asked(2).await[1];
    let refused = json!({"source": "request.research", "reason": "unknown_request", "count": 1, "raw": "r-1"});
    cell.say(2, sequence, OutSubject::Rejected, refused).await;
    let (code, stdout, stderr) = ended(cancel);
    assert!(code == Some(3) && stdout.contains("unknown_request"), "{stdout}{stderr}");
}
