//! `plimsoll policy train`, `compare` and `promote` as they are typed, on a real nats-server whose log the real fold folds.
#![expect(clippy::disallowed_methods, reason = "tests wait for conditions with a deadline")]
#![expect(clippy::unwrap_used, reason = "a test that cannot set its stage has failed")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use async_nats::jetstream::{self, consumer::pull};
use futures::StreamExt;
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::id::{CellId, LogEpoch, Position};
use plimsoll_schemas::record::{self, Record};
use plimsoll_schemas::subject::{log_stream, out_stream};
use plimsoll_schemas::tables::{CELLS, CENTI, LEFT_STEP, LEFTS, RATIOS, Tables};
use plimsoll_schemas::time::LogTime;
use serde_json::{Value, json};
use support::Server;

fn cell() -> CellId {
    "local".parse().unwrap()
}

/// Folds LOG and publishes to OUT, as a processor does.
async fn process(jetstream: jetstream::Context) {
    let stream = jetstream.get_stream(log_stream(&cell(), 0).name).await.unwrap();
    let mut messages = stream.create_consumer(pull::OrderedConfig::default()).await.unwrap().messages().await.unwrap();
    let (mut state, mut effects) = (State::new(cell()), Effects::default());
    while let Some(Ok(message)) = messages.next().await {
        let info = message.info().unwrap();
        let position = Position { epoch: LogEpoch(0), sequence: info.stream_sequence };
        let logged_at = LogTime(i64::try_from(info.published.unix_timestamp_nanos()).unwrap());
        let body = record::decode(&cell(), &message.subject, &message.payload);
        state.step(&Record { position, logged_at, body }, &mut effects);
        for output in effects.outputs.drain(..) {
            jetstream.publish(output.subject, output.bytes.into()).await.unwrap().await.unwrap();
        }
    }
}

/// A cell whose log is folded, with the folder of the one who types.
struct Stage {
    server: Server,
    folder: tempfile::TempDir,
}

impl Stage {
    /// 20 hosts of four GPUs.
    async fn set() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path(), &[log_stream(&cell(), 1 << 26), out_stream(&cell(), 1 << 26)]).await?;
        tokio::spawn(process(server.jetstream.clone()));
        let stage = Self { server, folder };
        for n in 0..20 {
            let host = format!("gpu-{n}");
            let gpu = |slot: u32| json!({ "slot": slot, "uuid": format!("GPU-{n}-{slot}"), "index": slot, "model": "H100" });
            let inventory = json!({
                "schema_version": 1, "host": host, "epoch": 1, "sequence": 1, "revision": 1, "sent_at": "2026-01-02T03:04:05Z", "hostname": host,
                "agent_version": "1", "source": "sim", "interval_ms": 1_000, "gpus": (0..4).map(gpu).collect::<Vec<_>>()
            });
            stage.append(&format!("inventory.{host}"), &inventory).await;
        }
        Some(stage)
    }

    async fn append(&self, tail: &str, message: &Value) {
        let subject = format!("plimsoll.local.log.{tail}");
        self.server.jetstream.publish(subject, message.to_string().into()).await.unwrap().await.unwrap();
    }

    /// Asks for shares and whole GPUs, in turn.
    async fn ask(&self, numbers: std::ops::Range<usize>) {
        for n in numbers {
            let (count, milli) = [(1, 300), (1, 700), (1, 1_000), (1, 450), (2, 1_000)][n * 7919 % 5];
            let request =
                json!({ "type": "place", "request_id": format!("r{n}"), "bundles": [{ "count": count, "milli": milli }], "duration_ms": n });
            self.append("request.research", &request).await;
        }
    }

    /// `plimsoll policy …`, as it is typed.
    fn policy(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.current_dir(self.folder.path()).arg("policy").args(arguments).args(["--cell", "local", "--nats", &self.server.url]);
        command.output().unwrap()
    }

    fn said(&self, arguments: &[&str]) -> String {
        let output = self.policy(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.policy(arguments);
        assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// The trained file with other tables: of whole GPUs much is said to stay idle and of parts nothing, so that whole ones are broken up first. Said to
/// stay idle mostly, they would be taken for a fleet that is as full as it gets, and count for nothing.
fn spoiled(folder: &Path) {
    let mut file: Value = serde_json::from_slice(&std::fs::read(folder.join("tables.json")).unwrap()).unwrap();
    let mut cells = vec![0; CELLS];
    cells[(LEFTS - 1) * RATIOS..].fill((LEFTS - 1) as i32 * LEFT_STEP * CENTI * 2 / 5);
    let tables = Tables { models: vec!["H100".to_owned()], cells };
    (file["hash"], file["cells"]) = (json!(tables.hash_hex()), json!(tables.cells));
    std::fs::write(folder.join("spoiled.json"), file.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_learned_from_the_cells_own_requests_and_come_into_force_only_if_better() {
    let Some(stage) = Stage::set().await else { return };
    let train = |file: &'static str| ["train", "--out", file, "--rounds", "2", "--sequences", "2"];

    stage.ask(0..20).await;
    let refused = stage.refused(&train("none.json"));
    assert!(refused.contains("holds 20 placement requests in this range, at least 100 are needed"), "{refused}");

    stage.ask(20..400).await;
    let said = stage.said(&train("tables.json"));
    assert!(said.contains("learned from 280 requests") && said.contains("on 120 others hybrid leaves"), "{said}");
    stage.said(&train("again.json"));
    let bytes = |file: &str| std::fs::read(stage.folder.path().join(file)).unwrap();
    assert!(bytes("tables.json") == bytes("again.json"), "the same past and seed give the same file");

    let answer: Value = serde_json::from_str(&stage.said(&["compare", "fgd", "hybrid=tables.json", "-o", "json"])).unwrap();
    let run = |number: usize| &answer["policies"][number];
    assert_eq!((&run(0)["policy"], &run(1)["policy"], &run(0)["requests"]), (&json!("fgd"), &json!("hybrid"), &json!(400)));
    assert_eq!(run(1)["tables"], serde_json::from_slice::<Value>(&bytes("tables.json")).unwrap()["hash"]);
    let count = |run: &Value, column: &str| run[column].as_u64().unwrap();
    assert_eq!(count(run(1), "placed") + count(run(1), "rejected"), 400);

    let said = stage.said(&["promote", "tables.json", "--force"]);
    assert!(said.contains("without tables") && said.trim_end().ends_with(", in force"), "{said}");
    assert!(stage.said(&["promote", "tables.json"]).contains("are in force already"));

    spoiled(stage.folder.path());
    let refused = stage.refused(&["promote", "spoiled.json"]);
    assert!(refused.contains("not promoted") && refused.contains("percentage points worse"), "{refused}");
    assert!(stage.said(&["promote", "spoiled.json", "--force"]).contains("those in force"));
    assert!(stage.said(&["promote", "tables.json"]).contains(", in force"), "better than what is in force now");
}
