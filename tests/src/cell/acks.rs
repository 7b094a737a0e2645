//! Overhears every acknowledgement that the broker gives, and what it was given for: what was acknowledged must stand, with those bytes, for
//! ever. While the broker is down nothing is overheard, so this is a part of all acknowledgements, never one too many.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use plimsoll_schemas::subject::servers;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::witness::{Message, hash_of};

/// Publishes whose acknowledgement has not come; more are forgotten, oldest first.
const WAITING_MAX: usize = 16_384;

/// What was overheard.
#[derive(Debug, Clone, Default)]
pub struct Overheard {
    /// (stream, sequence) → the hash of what it was given for, and where that went.
    acknowledged: BTreeMap<(String, u64), (u64, String)>,
    /// What was sent to subjects that are of interest, by its hash: subject and payload.
    sent: BTreeMap<u64, (String, Vec<u8>)>,
    findings: Vec<String>,
}

/// An eavesdropper.
#[derive(Debug)]
pub struct Acks {
    heard: Arc<Mutex<Overheard>>,
    task: JoinHandle<()>,
}

impl Acks {
    /// Starts to listen; keeps what is sent to such subjects, acknowledged or not, for [`Overheard::sent`].
    pub fn start(url: &str, keep: fn(&str) -> bool) -> Self {
        let heard = Arc::new(Mutex::new(Overheard::default()));
        let task = tokio::spawn(listen(url.to_owned(), keep, heard.clone()));
        Self { heard, task }
    }

    /// What was overheard so far: a stream that is read after this must hold all of it.
    pub fn so_far(&self) -> Overheard {
        self.heard.lock().expect("no holder panics").clone()
    }

    /// The broker has gone back: what it acknowledged before need not stand any more.
    pub fn went_back(&self) {
        self.heard.lock().expect("no holder panics").acknowledged.clear();
    }
}

impl Overheard {
    /// What was sent to the subjects of interest: subject and payload, in no order.
    pub fn sent(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.sent.values().map(|(subject, payload)| (&**subject, &**payload))
    }

    /// What was acknowledged in a stream, by sequence: the hash of subject and payload.
    pub fn acknowledged_in(&self, stream: &str) -> Vec<(u64, u64)> {
        self.acknowledged.iter().filter(|((of, _), _)| of == stream).map(|((_, sequence), (hash, _))| (*sequence, *hash)).collect()
    }

    /// Every acknowledged message of a stream stands under its number with its bytes. Returns how many were overheard.
    pub fn stand_in(&self, stream: &str, messages: &[Message]) -> Result<usize> {
        ensure!(self.findings.is_empty(), "{}", self.findings.join("\n"));
        let mut count = 0;
        for ((_, sequence), (hash, subject)) in self.acknowledged.iter().filter(|((of, _), _)| of == stream) {
            let index = usize::try_from(*sequence)?.checked_sub(1).context("sequences begin at 1")?;
            let standing = messages.get(index).with_context(|| format!("{stream} {sequence} on {subject} was acknowledged and is gone"))?;
            ensure!(standing.hash() == *hash, "{stream} {sequence}: acknowledged on {subject}, something else stands on {}", standing.subject);
            count += 1;
        }
        Ok(count)
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(url: String, keep: fn(&str) -> bool, heard: Arc<Mutex<Overheard>>) {
    loop {
        let _ = listen_connected(&url, keep, &heard).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn listen_connected(url: &str, keep: fn(&str) -> bool, heard: &Mutex<Overheard>) -> Result<()> {
    // A connection for one life of the broker: what was published before is not acknowledged after.
    let client = async_nats::ConnectOptions::new().max_reconnects(1).connect(servers(url)).await?;
    // One subscription, so that a publish always comes before its acknowledgement.
    let mut messages = client.subscribe(">").await?;
    let mut waiting: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let mut order = std::collections::VecDeque::new();
    while let Some(message) = messages.next().await {
        let subject = message.subject.as_str();
        if subject.starts_with("plimsoll.local.") {
            // What consumers are given shows up here as well, with a reply that is no publisher's.
            let Some(reply) = message.reply.as_ref().filter(|reply| !reply.starts_with("$JS.")) else { continue };
            let hash = hash_of(subject, &message.payload);
            if keep(subject) {
                heard.lock().expect("no holder panics").sent.insert(hash, (subject.to_owned(), message.payload.to_vec()));
            }
            waiting.insert(reply.to_string(), (hash, subject.to_owned()));
            order.push_back(reply.to_string());
            if order.len() > WAITING_MAX
                && let Some(oldest) = order.pop_front()
            {
                waiting.remove(&oldest);
            }
        } else if let Some((hash, to)) = waiting.remove(subject) {
            let Ok(answer) = serde_json::from_slice::<Value>(&message.payload) else { continue };
            let (Some(stream), Some(sequence)) = (answer["stream"].as_str(), answer["seq"].as_u64()) else { continue };
            // A refusal names the stream as well.
            if !answer["error"].is_null() {
                continue;
            }
            let mut heard = heard.lock().expect("no holder panics");
            let before = heard.acknowledged.insert((stream.to_owned(), sequence), (hash, to.clone()));
            // The broker answers a message id that it knows with the number of the first one.
            if let Some((other, _)) = before.filter(|(other, _)| *other != hash) {
                heard.findings.push(format!("{stream} {sequence} was acknowledged for two messages ({other:x}, {hash:x} on {to})"));
            }
        }
    }
    Ok(())
}
