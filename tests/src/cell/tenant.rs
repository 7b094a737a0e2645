//! A tenant that always wants something: asks for GPUs and for work to be split, renews what it holds and gives it back. A request that OUT has
//! not answered is sent again under the same id, sometimes also one that needs no repeating.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::connect;
use super::witness::{Message, Witness};
use crate::pipeline::eventually;
use crate::sim::rng::Rng;

/// A turn of its loop.
const TURN: Duration = Duration::from_millis(100);
/// An unanswered request is sent again after this long.
const AGAIN: Duration = Duration::from_secs(2);
/// New requests wait while so many are unanswered.
const UNANSWERED_MAX: usize = 64;
/// Leases held at once; more are given back first.
const HELD_MAX: usize = 150;
/// Leases are renewed this often, and live ten times as long without.
const RENEW: Duration = Duration::from_secs(6);
const TTL_MS: u64 = 60_000;

/// Its name in subjects.
pub const TENANT: &str = "research";

/// What it has sent.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    /// Requests that are to be decided, by id.
    pub decisions: BTreeSet<String>,
    /// Leases given back.
    pub releases: BTreeSet<String>,
    /// Renewals: no answer means that all is well.
    pub renewals: u64,
    /// Messages sent in all, repeats included.
    pub messages: u64,
}

/// The tenant at work.
#[derive(Debug)]
pub struct Tenant {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<Sent>>,
}

impl Tenant {
    /// Begins; what it learns it learns from `out`.
    pub fn start(url: &str, out: std::sync::Arc<Witness>, seed: u64) -> Self {
        let (stop, stopping) = watch::channel(false);
        let url = url.to_owned();
        let task = tokio::spawn(async move {
            let client = eventually(async || connect(&url).await).await?;
            Work::new(client, seed).run(&out, stopping).await
        });
        Self { stop, task }
    }

    /// Asks for nothing new, gives everything back and waits until every request is answered.
    pub async fn finish(self) -> Result<Sent> {
        self.stop.send_replace(true);
        let sent = self.task.await??;
        ensure!(!sent.decisions.is_empty(), "nothing was asked for");
        Ok(sent)
    }
}

struct Asked {
    body: Vec<u8>,
    sent_at: Instant,
}

struct Work {
    client: Client,
    rng: Rng,
    number: u64,
    /// Unanswered, by what answers them: the id of a request, or of the lease it gives back.
    unanswered: BTreeMap<String, Asked>,
    /// Leases held, and when they are given back.
    held: BTreeMap<String, Instant>,
    renewed_at: Instant,
    sent: Sent,
    /// How many messages of OUT were looked at.
    heard: usize,
}

impl Work {
    fn new(client: Client, seed: u64) -> Self {
        let now = Instant::now();
        let (unanswered, held, sent) = Default::default();
        Self { client, rng: Rng::new(seed), number: 0, unanswered, held, renewed_at: now, sent, heard: 0 }
    }

    async fn run(mut self, out: &Witness, stopping: watch::Receiver<bool>) -> Result<Sent> {
        let mut turn = tokio::time::interval(TURN);
        loop {
            turn.tick().await;
            for message in out.kept_from(self.heard) {
                self.heard += 1;
                self.hear(&message)?;
            }
            let stops = *stopping.borrow();
            if stops && self.unanswered.is_empty() && self.held.is_empty() {
                return Ok(self.sent);
            }
            if !stops && self.unanswered.len() < UNANSWERED_MAX && self.rng.chance(70) {
                self.ask().await?;
            }
            self.give_back(stops).await?;
            self.renew().await?;
            self.repeat().await?;
        }
    }

    fn hear(&mut self, message: &Message) -> Result<()> {
        let event: Value = serde_json::from_slice(&message.payload)?;
        let data = &event["data"];
        match event["type"].as_str() {
            Some("plimsoll.place.decided.v1") => {
                self.unanswered.remove(data["request_id"].as_str().context("request_id")?);
                if data["outcome"] == "placed" {
                    let lease = data["lease"]["lease_id"].as_str().context("a placed request has a lease")?;
                    self.held.insert(lease.to_owned(), Instant::now() + Duration::from_millis(self.rng.between(500, 20_000)));
                }
            }
            Some("plimsoll.work.distributed.v1") => {
                self.unanswered.remove(data["request_id"].as_str().context("request_id")?);
            }
            Some("plimsoll.lease.changed.v1") if data["state"] == "ended" => {
                let lease = data["lease_id"].as_str().context("lease_id")?;
                self.unanswered.remove(lease);
                self.held.remove(lease);
            }
            _ => {}
        }
        Ok(())
    }

    fn next_id(&mut self) -> String {
        self.number += 1;
        format!("r-{}", self.number)
    }

    async fn ask(&mut self) -> Result<()> {
        let id = self.next_id();
        let body = match self.rng.below(10) {
            0 => json!({ "type": "distribute", "request_id": id, "items": self.rng.between(1, 100_000), "strategy": "uniform" }),
            kind => {
                let milli = if kind < 4 { 1_000 } else { self.rng.between(1, 10) * 100 };
                let bundle = json!({ "count": 1, "milli": milli, "vram_bytes": self.rng.below(4) << 30 });
                json!({ "type": "place", "request_id": id, "bundles": [bundle], "lease_ttl_ms": TTL_MS })
            }
        };
        self.sent.decisions.insert(id.clone());
        let body = serde_json::to_vec(&body)?;
        // Who is not sure asks twice.
        if self.rng.chance(10) {
            self.send(&body).await?;
        }
        self.send_until_answered(id, body).await
    }

    async fn give_back(&mut self, all: bool) -> Result<()> {
        let now = Instant::now();
        let over = self.held.len().saturating_sub(HELD_MAX);
        let due = |(at, until): (usize, &Instant)| all || at < over || *until <= now;
        let due: Vec<String> =
            self.held.iter().enumerate().filter(|(at, (_, until))| due((*at, *until))).map(|(_, (lease, _))| lease.clone()).collect();
        for lease in due {
            self.held.remove(&lease);
            let id = self.next_id();
            let body = serde_json::to_vec(&json!({ "type": "release", "request_id": id, "lease_id": lease }))?;
            self.sent.releases.insert(lease.clone());
            self.send_until_answered(lease, body).await?;
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<()> {
        if self.renewed_at.elapsed() < RENEW || self.held.is_empty() {
            return Ok(());
        }
        self.renewed_at = Instant::now();
        let id = self.next_id();
        let leases: Vec<&String> = self.held.keys().collect();
        let body = serde_json::to_vec(&json!({ "type": "renew", "request_id": id, "lease_ids": leases }))?;
        self.sent.renewals += 1;
        self.send(&body).await
    }

    async fn repeat(&mut self) -> Result<()> {
        let now = Instant::now();
        let mut due = Vec::new();
        for asked in self.unanswered.values_mut().filter(|asked| now - asked.sent_at >= AGAIN) {
            asked.sent_at = now;
            due.push(asked.body.clone());
        }
        for body in due {
            self.send(&body).await?;
        }
        Ok(())
    }

    async fn send_until_answered(&mut self, answered_by: String, body: Vec<u8>) -> Result<()> {
        self.send(&body).await?;
        self.unanswered.insert(answered_by, Asked { body, sent_at: Instant::now() });
        Ok(())
    }

    /// Without waiting for an acknowledgement: only OUT answers.
    async fn send(&mut self, body: &[u8]) -> Result<()> {
        self.sent.messages += 1;
        Ok(self.client.publish(format!("plimsoll.local.log.request.{TENANT}"), body.to_vec().into()).await?)
    }
}
