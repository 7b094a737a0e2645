//! Reads a stream from outside as it appears, message by message by its number: no consumer that a broker could forget, and what was read
//! once is read again at the end. Anything that has changed or vanished in between is a finding, unless the broker was made to go back.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream;
use async_nats::jetstream::stream::{RawMessageErrorKind, State, Stream};
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinHandle;

use super::connect;
use crate::pipeline::eventually;

/// How often to look for more.
const LOOK: Duration = Duration::from_millis(50);
/// Messages asked for at once when everything is read again.
const AT_ONCE: usize = 64;

/// One message.
#[derive(Debug, Clone)]
pub struct Message {
    /// Its number in the stream.
    pub sequence: u64,
    /// When the broker took it, ns UTC.
    pub logged_ns: i64,
    /// Where it was sent to.
    pub subject: String,
    /// What it says.
    pub payload: Vec<u8>,
}

impl Message {
    /// Tells it from every other one.
    pub fn hash(&self) -> u64 {
        hash_of(&self.subject, &self.payload)
    }
}

/// Hash of a subject and what was sent to it.
pub fn hash_of(subject: &str, payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (subject, payload).hash(&mut hasher);
    hasher.finish()
}

#[derive(Debug, Default)]
struct Read {
    /// Hash of each message when it was read first, and when the broker had taken it; place = sequence - 1.
    first: Vec<(u64, i64)>,
    /// Hashes of the messages read before the stream went back, if they must come again.
    before: Vec<u64>,
    /// Messages that were wanted as they came.
    kept: Vec<Message>,
    findings: Vec<String>,
}

impl Read {
    fn take(&mut self, message: Message, keep: fn(&str) -> bool) {
        let hash = message.hash();
        let before = self.before.get(self.first.len()).copied();
        self.first.push((hash, message.logged_ns));
        match before {
            Some(before) if before != hash => self.findings.push(format!("{} is not what it was before the stream went back", message.sequence)),
            Some(_) => {}
            None if keep(&message.subject) => self.kept.push(message),
            None => {}
        }
    }

    /// Nothing was found at `next`: there is nothing yet, or what was there is gone.
    fn looked(&mut self, next: u64, state: &State, is_missing: bool) -> Result<()> {
        if self.first.len() as u64 + 1 != next {
            return Ok(());
        }
        if is_missing {
            self.findings.push(format!("{next} is missing, the stream ends at {}", state.last_sequence));
            self.first.push((0, 0));
        } else if state.last_sequence + 1 < next {
            self.findings.push(format!("{} messages were read, now the stream ends at {}", next - 1, state.last_sequence));
            bail!("the stream is shorter than it was");
        }
        Ok(())
    }
}

/// A reader of one stream.
#[derive(Debug)]
pub struct Witness {
    stream: String,
    url: String,
    read: Arc<Mutex<Read>>,
    task: JoinHandle<()>,
}

impl Witness {
    /// Starts to read; keeps the messages to such subjects for [`Self::kept_from`].
    pub fn start(url: &str, stream: &str, keep: fn(&str) -> bool) -> Self {
        let read = Arc::new(Mutex::new(Read::default()));
        let task = tokio::spawn(follow(url.to_owned(), stream.to_owned(), keep, read.clone()));
        Self { stream: stream.to_owned(), url: url.to_owned(), read, task }
    }

    fn lock(&self) -> MutexGuard<'_, Read> {
        self.read.lock().expect("no holder panics")
    }

    /// The kept messages from the n-th on.
    pub fn kept_from(&self, from: usize) -> Vec<Message> {
        self.lock().kept.get(from..).unwrap_or_default().to_vec()
    }

    /// The newest message kept that went to such a subject.
    pub fn newest_kept_on(&self, wanted: fn(&str) -> bool) -> Option<Message> {
        self.lock().kept.iter().rev().find(|message| wanted(&message.subject)).cloned()
    }

    /// The broker has gone back: the stream is read from its first message again. `comes_again` = it must show once more what it showed.
    pub fn went_back(&self, comes_again: bool) {
        let mut read = self.lock();
        let first = std::mem::take(&mut read.first);
        if comes_again && first.len() > read.before.len() {
            read.before = first.into_iter().map(|(hash, _)| hash).collect();
        }
    }

    /// How many messages were read.
    pub fn len(&self) -> u64 {
        self.lock().first.len() as u64
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads everything there is once more, and compares it with what was read first.
    pub async fn read_again(&self) -> Result<Vec<Message>> {
        let jetstream = jetstream::new(connect(&self.url).await?);
        let stream = jetstream.get_stream(&self.stream).await?;
        let last = stream.get_info().await?.state.last_sequence;
        eventually(async || {
            ensure!(self.len() >= last, "{} of {last} messages of {} were read", self.len(), self.stream);
            Ok(())
        })
        .await?;
        let messages = futures::stream::iter(1..=last).map(|sequence| get(&stream, sequence)).buffered(AT_ONCE);
        let messages: Vec<Message> = messages
            .map(|message| message.and_then(|message| message.context("it is gone")))
            .try_collect()
            .await
            .with_context(|| format!("reading {} again", self.stream))?;
        let read = self.lock();
        for (message, &(hash, logged_ns)) in messages.iter().zip(&read.first) {
            let same = message.hash() == hash && message.logged_ns == logged_ns;
            ensure!(same, "{} {} on {} is not what it was when it was read first", self.stream, message.sequence, message.subject);
        }
        ensure!(read.first.len() >= read.before.len(), "{} ends at {}, and at {} before", self.stream, read.first.len(), read.before.len());
        ensure!(read.findings.is_empty(), "{}:\n{}", self.stream, read.findings.join("\n"));
        Ok(messages)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(url: String, name: String, keep: fn(&str) -> bool, read: Arc<Mutex<Read>>) {
    loop {
        // The broker is away: that is what it is killed for.
        let _ = follow_connected(&url, &name, keep, &read).await;
        tokio::time::sleep(LOOK).await;
    }
}

async fn follow_connected(url: &str, name: &str, keep: fn(&str) -> bool, read: &Mutex<Read>) -> Result<()> {
    let lock = || read.lock().expect("no holder panics");
    let client = connect(url).await?;
    let jetstream = jetstream::context::ContextBuilder::new().timeout(Duration::from_secs(2)).build(client);
    let stream = jetstream.get_stream(name).await?;
    loop {
        let next = lock().first.len() as u64 + 1;
        if let Some(message) = get(&stream, next).await? {
            let mut read = lock();
            // In between it may have been told to begin again.
            if read.first.len() as u64 + 1 == next {
                read.take(message, keep);
            }
            continue;
        }
        let state = stream.get_info().await?.state;
        let is_missing = state.last_sequence > next && get(&stream, next).await?.is_none();
        lock().looked(next, &state, is_missing)?;
        tokio::time::sleep(LOOK).await;
    }
}

async fn get(stream: &Stream, sequence: u64) -> Result<Option<Message>> {
    match stream.get_raw_message(sequence).await {
        Ok(found) => Ok(Some(Message {
            sequence,
            logged_ns: i64::try_from(found.time.unix_timestamp_nanos())?,
            subject: found.subject.to_string(),
            payload: found.payload.to_vec(),
        })),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Who ticked when, from the log: (sequence, replica, ns UTC).
pub fn ticks(messages: &[Message]) -> Result<Vec<(u64, String, i64)>> {
    let ticks = messages.iter().filter(|message| is_tick(&message.subject));
    let read = |message: &Message| {
        let tick: serde_json::Value = serde_json::from_slice(&message.payload)?;
        Ok((message.sequence, tick["replica"].as_str().context("replica")?.to_owned(), message.logged_ns))
    };
    ticks.map(read).collect()
}

/// Whether a subject is that of ticks.
pub fn is_tick(subject: &str) -> bool {
    subject.ends_with(".log.tick")
}

/// Every replica that said the hash of its state at a position said the same. Returns how many positions two of them spoke of.
pub fn hashes_agree(messages: &[Message]) -> Result<usize> {
    let mut said: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for message in messages.iter().filter(|message| message.subject.ends_with(".log.check")) {
        let check: serde_json::Value = serde_json::from_slice(&message.payload)?;
        let of = said.entry(check["position"].to_string()).or_default();
        of.insert(check["replica"].to_string(), check["hash"].to_string());
    }
    for (position, hashes) in &said {
        let mut different: Vec<_> = hashes.values().collect();
        different.dedup();
        ensure!(different.len() == 1, "at {position} the replicas have folded to different states: {hashes:?}");
    }
    Ok(said.values().filter(|hashes| hashes.len() > 1).count())
}
