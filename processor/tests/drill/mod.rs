//! The restore drill: the state is lost and the log has been trimmed. With a checkpoint everything is as if nothing had happened; without
//! one nobody starts until somebody says that the loss is accepted.

use std::path::Path;

use plimsoll_archive::{Archive, Checkpoint, Checkpoints};
use plimsoll_fold::durable::Digest;
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::id::{CellId, LogEpoch, Position};
use plimsoll_schemas::record::{Record, decode};
use plimsoll_schemas::time::LogTime;
use plimsoll_store::Store;

use super::harness::{Broker, GPUS, Processor, eventually};
use super::place;

fn cell() -> CellId {
    "local".parse().unwrap()
}

/// A fold that nothing ever happens to: it reads the log message by message.
struct Undisturbed {
    state: State,
    at: u64,
    logged_at: LogTime,
}

impl Undisturbed {
    fn new() -> Self {
        Self { state: State::new(cell()), at: 0, logged_at: LogTime::default() }
    }

    async fn catch_up(&mut self, broker: &Broker, to: u64) {
        while self.at < to {
            self.at += 1;
            let (subject, payload, published_ns) = broker.log_message(self.at).await;
            self.logged_at = LogTime(published_ns).max(self.logged_at);
            let position = Position { epoch: LogEpoch(0), sequence: self.at };
            let record = Record { position, logged_at: self.logged_at, body: decode(&cell(), &subject, &payload) };
            self.state.step(&record, &mut Effects::default());
        }
    }

    /// Rolling hash, and digest of everything that would be stored.
    fn hashes(mut self) -> (u64, u64) {
        let mut entries = self.state.take_dirty();
        entries.sort_by(|a, b| (a.table, &a.key).cmp(&(b.table, &b.key)));
        let mut digest = Digest::default();
        for entry in entries {
            if let Some(value) = entry.value {
                digest.add(entry.table, &entry.key, &value);
            }
        }
        (self.state.hash(), digest.finish())
    }
}

/// All checkpoints, newest first.
pub async fn checkpoints(data: &Path) -> Vec<Checkpoint> {
    let archive = Archive::open(data.join("archive").to_str().unwrap(), &cell()).unwrap();
    let checkpoints = Checkpoints::of(&archive);
    let mut found = Vec::new();
    for position in checkpoints.list().await.unwrap() {
        // A processor that makes a new one deletes an old one meanwhile.
        match checkpoints.read(position).await {
            Err(plimsoll_archive::Error::Absent { .. }) => {}
            read => found.push(read.unwrap()),
        }
    }
    found
}

/// Waits until so many checkpoints have been made of the state as it is now or later.
pub async fn checkpointed(processor: &Processor, data: &Path, count: usize) {
    let position = processor.status().await["position"]["sequence"].as_u64().unwrap();
    eventually("enough checkpoints were made", || async {
        checkpoints(data).await.iter().filter(|found| found.about.position.sequence >= position).count() >= count
    })
    .await;
}

fn lose_state(data: &Path) {
    std::fs::remove_dir_all(data.join("state")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_state_is_restored_from_a_checkpoint_and_is_what_it_would_have_been() {
    let Some(broker) = Broker::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut first = Processor::placing(&broker, data, &["--seal-interval-s", "3", "--checkpoint-interval-s", "1"]).await;
    let _feed = broker.feed(1);
    first.tail("gpu_windows_10s", 0, GPUS).await;
    broker.request(&place(1)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    checkpointed(&first, data, 2).await;
    broker.request(&place(2)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    first.kill();

    let kept = checkpoints(data).await;
    assert!((2..=4).contains(&kept.len()), "{} checkpoints", kept.len());
    let (damaged, used) = (&kept[0], &kept[1]);
    let file = data.join("archive").join(&damaged.folder).join(&damaged.files.iter().max_by_key(|file| file.bytes).unwrap().name);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut undisturbed = Undisturbed::new();
    undisturbed.catch_up(&broker, broker.log_len().await).await;
    let out = broker.out_bytes().await;
    lose_state(data);
    broker.trim_log(used.about.position.sequence - 1).await;

    let mut second = Processor::start(&broker, data, &["--seal-interval-s", "3"]).await;
    second.ready().await;
    let said = second.said();
    assert!(said.contains("this checkpoint cannot be used") && said.contains("restored from a checkpoint"), "{said}");
    broker.request(&place(3)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 3).await;
    assert!(second.stop().await.success());
    assert_eq!(broker.out_bytes().await[..out.len()], out[..], "what stood in OUT is unchanged");
    assert_eq!(broker.check_that_out_is_dense().await, [1, 2, 3]);

    let store = Store::open_read_only(&data.join("state")).unwrap();
    let commit = store.last_commit().unwrap().unwrap();
    undisturbed.catch_up(&broker, commit.position.sequence).await;
    assert_eq!((commit.hash, store.digest().unwrap()), undisturbed.hashes(), "the state at {}", commit.position);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_trimmed_log_without_a_checkpoint_nobody_starts_until_the_loss_is_accepted() {
    let Some(broker) = Broker::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path();
    let mut first = Processor::placing(&broker, data, &[]).await;
    let _feed = broker.feed(1);
    broker.request(&place(1)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 1).await;
    assert!(first.stop().await.success());
    let out = broker.out_bytes().await;
    lose_state(data);
    let trimmed = broker.log_len().await;
    broker.trim_log(trimmed).await;

    let mut refused = Processor::start(&broker, data, &[]).await;
    assert!(!refused.exited().await.success());
    let said = refused.said();
    assert!(said.contains(&format!("begins at {trimmed}")) && said.contains("--accept-loss"), "{said}");

    let mut accepted = Processor::start(&broker, data, &["--accept-loss"]).await;
    accepted.ready().await;
    broker.outputs_of("plimsoll.gap.v1", 1).await;
    broker.request(&place(2)).await;
    broker.outputs_of("plimsoll.place.decided.v1", 2).await;
    assert!(accepted.stop().await.success());
    assert_eq!(broker.out_bytes().await[..out.len()], out[..], "what stood in OUT is unchanged");
    assert_eq!(broker.check_that_out_is_dense().await, [1, 2]);
    let loss = broker.outputs().await.into_iter().find(|event| event["type"] == "plimsoll.gap.v1").unwrap();
    assert_eq!((loss["data"]["state"].as_str(), loss["data"]["to_sequence"].as_u64()), (Some("loss"), Some(trimmed - 1)), "{loss}");
}
