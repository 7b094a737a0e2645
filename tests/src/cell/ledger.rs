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
    /// Of them, those about GPUs: number → request.
    pub placements: BTreeMap<u64, String>,
    /// Of them, requests that were placed.
    pub placed: u64,
    /// Leases that ran out although they were renewed.
    pub expired: u64,
    /// (host, epoch, class) → ranges said to be lost.
    pub lost: BTreeMap<(String, u64, String), Vec<(u64, u64)>>,
    /// Sequences of the log said to be lost.
    pub log_lost: u64,
    /// Leases that have ended.
    pub ended: BTreeSet<String>,
    ids: BTreeSet<String>,
    decided: BTreeSet<String>,
    fences: BTreeSet<u64>,
    /// Leases that have not ended: GPU and thousandths.
    leases: BTreeMap<String, (String, u64)>,
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
            if event["type"] == "plimsoll.place.decided.v1" {
                self.placements.insert(number, request.to_owned());
            }
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
        if data["cause"] == "unknown_lease" {
            // The answer to whoever gives back once more what has ended.
            ensure!(!self.leases.contains_key(lease), "a lease that is held is said to be unknown");
            return Ok(());
        }
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
        ensure!(self.expired == 0, "{} leases ran out although they were renewed", self.expired);
        ensure!(self.leases.is_empty(), "leases that nobody holds any more: {:?}", self.leases);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn placed(number: u64, lease: &str, milli: u64) -> Value {
        let assignment = json!({ "device_uuid": "GPU-1", "milli": milli });
        let data = json!({ "decision_seq": number, "request_id": format!("r-{number}"), "outcome": "placed", "assignments": [assignment],
            "lease": { "lease_id": lease, "fence": number } });
        json!({ "type": "plimsoll.place.decided.v1", "data": data })
    }

    fn ended(lease: &str) -> Value {
        json!({ "type": "plimsoll.lease.changed.v1", "data": { "lease_id": lease, "state": "ended", "cause": "released" } })
    }

    /// The events as they would stand in OUT.
    fn read(events: &[Value]) -> Result<Ledger> {
        let number = |(event, n): (&Value, u64)| {
            let mut event = event.clone();
            let id = event.get("id").cloned().unwrap_or(json!(n));
            event["id"] = id;
            event["outseq"] = json!(n);
            Message { sequence: n, logged_ns: 0, subject: String::new(), payload: event.to_string().into_bytes() }
        };
        Ledger::read(&events.iter().zip(1..).map(number).collect::<Vec<_>>())
    }

    #[test]
    fn what_stands_twice_is_skipped_or_given_away_twice_is_found() {
        let check = |events: &[Value], expected: Option<&str>| {
            let found = read(events).err().map(|error| format!("{error:#}"));
            let as_expected = match (&found, expected) {
                (Some(found), Some(expected)) => found.contains(expected),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            assert!(as_expected, "{found:?}, expected {expected:?}");
        };
        let mut same_id = placed(2, "l-2", 500);
        same_id["id"] = json!(1);
        let mut same_request = placed(2, "l-2", 500);
        same_request["data"]["request_id"] = json!("r-1");
        check(&[placed(1, "l-1", 500), placed(2, "l-2", 500), ended("l-1"), placed(3, "l-3", 500)], None);
        check(&[placed(1, "l-1", 500), same_id], Some("stands twice"));
        check(&[placed(1, "l-1", 500), same_request], Some("decided before"));
        check(&[placed(1, "l-1", 500), placed(3, "l-3", 500)], Some("decision 2 was expected"));
        check(&[placed(1, "l-1", 600), placed(2, "l-2", 500)], Some("1100 thousandths"));
        check(&[placed(1, "l-1", 500), placed(2, "l-1", 500)], Some("granted before"));
        check(&[ended("l-1")], Some("not held has ended"));
    }

    #[test]
    fn a_request_without_a_decision_and_a_decision_without_a_request_are_found() {
        let ledger = read(&[placed(1, "l-1", 500), ended("l-1")]).expect("a good ledger");
        let sent = |ids: &[&str]| Sent { decisions: ids.iter().map(|id| (*id).to_owned()).collect(), ..Sent::default() };
        assert!(ledger.answers(&sent(&["r-1"])).is_ok());
        assert!(ledger.answers(&sent(&["r-1", "r-2"])).is_err(), "one was never decided");
        assert!(ledger.answers(&sent(&[])).is_err(), "one was never asked for");
    }
}
