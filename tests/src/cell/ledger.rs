//! Judges OUT as a consumer that trusts nobody: dense, no event twice, one decision for each request and none for what was never asked, no GPU
//! given away twice.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::tenant::Sent;
use super::witness::Message;

/// Exclusive use of a GPU.
const WHOLE_MILLI: u64 = 1_000;

/// What OUT came to.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Decisions.
    pub decisions: u64,
    /// Of them, requests that were placed.
    pub placed: u64,
    /// Leases that ran out although they were renewed.
    pub expired: u64,
    /// (host, epoch, class) → ranges said to be lost.
    pub lost: BTreeMap<(String, u64, String), Vec<(u64, u64)>>,
    /// Sequences of the log said to be lost.
    pub log_lost: u64,
    ids: BTreeSet<String>,
    decided: BTreeSet<String>,
    fences: BTreeSet<u64>,
    /// Leases that have not ended: GPU and thousandths.
    leases: BTreeMap<String, (String, u64)>,
    ended: BTreeSet<String>,
    used_milli: BTreeMap<String, u64>,
}

impl Ledger {
    /// Reads OUT from its first message.
    pub fn read(out: &[Message]) -> Result<Self> {
        let mut ledger = Self::default();
        for (message, expected) in out.iter().zip(1..) {
            let event: Value = serde_json::from_slice(&message.payload)?;
            ensure!(message.sequence == expected && event["outseq"] == expected, "OUT {} holds output {}", message.sequence, event["outseq"]);
            ledger.take(&event).with_context(|| format!("output {expected}: {event}"))?;
        }
        Ok(ledger)
    }

    fn take(&mut self, event: &Value) -> Result<()> {
        ensure!(self.ids.insert(event["id"].to_string()), "this id stands twice in OUT");
        let data = &event["data"];
        if let Some(number) = data["decision_seq"].as_u64() {
            self.decisions += 1;
            ensure!(number == self.decisions, "decision {} was expected", self.decisions);
            let request = data["request_id"].as_str().context("request_id")?;
            ensure!(self.decided.insert(request.to_owned()), "{request} was decided before");
        }
        match event["type"].as_str() {
            Some("plimsoll.place.decided.v1") if data["outcome"] == "placed" => self.grant(data),
            Some("plimsoll.lease.changed.v1") => self.lease(data),
            Some("plimsoll.gap.v1") if data["state"] == "loss" => self.lose(data),
            _ => Ok(()),
        }
    }

    fn grant(&mut self, data: &Value) -> Result<()> {
        self.placed += 1;
        ensure!(self.fences.insert(data["lease"]["fence"].as_u64().context("fence")?), "this fence was given before");
        let assignments = data["assignments"].as_array().context("assignments")?;
        ensure!(assignments.len() == 1, "one GPU was asked for");
        let gpu = assignments[0]["device_uuid"].as_str().context("device_uuid")?.to_owned();
        let milli = assignments[0]["milli"].as_u64().context("milli")?;
        let used = self.used_milli.entry(gpu.clone()).or_default();
        *used += milli;
        ensure!(*used <= WHOLE_MILLI, "{used} thousandths of {gpu} are given away");
        let lease = data["lease"]["lease_id"].as_str().context("lease_id")?.to_owned();
        ensure!(!self.ended.contains(&lease) && self.leases.insert(lease, (gpu, milli)).is_none(), "this lease was granted before");
        Ok(())
    }

    fn lease(&mut self, data: &Value) -> Result<()> {
        self.expired += u64::from(data["cause"] == "expired");
        let lease = data["lease_id"].as_str().context("lease_id")?;
        if data["state"] != "ended" {
            ensure!(self.leases.contains_key(lease), "a lease that is not held");
            return Ok(());
        }
        let (gpu, milli) = self.leases.remove(lease).context("a lease that is not held has ended")?;
        *self.used_milli.get_mut(&gpu).context("a GPU of a lease")? -= milli;
        self.ended.insert(lease.to_owned());
        Ok(())
    }

    fn lose(&mut self, data: &Value) -> Result<()> {
        let (from, to) = (data["from_sequence"].as_u64().context("from_sequence")?, data["to_sequence"].as_u64().context("to_sequence")?);
        match (data["host"].as_str(), data["epoch"].as_u64(), data["class"].as_str()) {
            (Some(host), Some(epoch), Some(class)) => self.lost.entry((host.to_owned(), epoch, class.to_owned())).or_default().push((from, to)),
            _ => self.log_lost += to - from + 1,
        }
        Ok(())
    }

    /// Every request sent has its one decision, nothing else was decided, and what was given back has ended.
    pub fn answers(&self, sent: &Sent) -> Result<()> {
        let missing: Vec<_> = sent.decisions.difference(&self.decided).collect();
        ensure!(missing.is_empty(), "{} requests have no decision: {missing:?}", missing.len());
        let strange: Vec<_> = self.decided.difference(&sent.decisions).collect();
        ensure!(strange.is_empty(), "{} decisions that nobody asked for: {strange:?}", strange.len());
        let kept: Vec<_> = sent.releases.difference(&self.ended).collect();
        ensure!(kept.is_empty(), "{} leases were given back and have not ended: {kept:?}", kept.len());
        ensure!(self.leases.is_empty(), "leases that nobody holds any more: {:?}", self.leases);
        Ok(())
    }
}
