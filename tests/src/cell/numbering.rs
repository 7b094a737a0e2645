//! Judges the log as its hosts number it: of every life of an agent, what stands in the log and what was said to be lost are disjoint, and
//! together everything up to the last one that stands.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::ledger::Ledger;
use super::witness::Message;
use crate::wire::Frame;

/// What the log came to.
#[derive(Debug, Default)]
pub struct Numbering {
    /// Frames, each once.
    pub frames: u64,
    /// Frames that stand in the log again.
    pub frames_again: u64,
    /// Samples of all frames, repeats included.
    pub samples: u64,
    /// Samples in the repeats.
    pub samples_again: u64,
    /// Lives of hosts.
    pub lives: usize,
    /// Sequences that the log lacks and that were said to be lost.
    pub lost: u64,
    /// (host, epoch, class) → sequence → how many samples it carried.
    received: BTreeMap<(String, u64, String), BTreeMap<u64, u64>>,
}

impl Numbering {
    /// Reads the log from its first message.
    pub fn read(log: &[Message]) -> Result<Self> {
        let mut numbering = Self::default();
        for message in log {
            numbering.take(message).with_context(|| format!("LOG {} on {}", message.sequence, message.subject))?;
        }
        let epochs = numbering.received.keys().filter(|(_, _, class)| class == "sample");
        numbering.lives = epochs.count();
        Ok(numbering)
    }

    fn take(&mut self, message: &Message) -> Result<()> {
        let (host, epoch, class, sequence, samples) = match message.subject.split('.').nth(3) {
            Some("sample") => {
                let frame = Frame::read(&message.payload)?;
                let cells = (0..frame.ticks_ns.len()).flat_map(|tick| (0..frame.slots.len()).map(move |gpu| (tick, gpu)));
                let samples = cells.filter(|&(tick, gpu)| frame.gave_anything(tick, gpu)).count() as u64;
                (frame.host, frame.epoch, "sample", frame.sequence, samples)
            }
            Some("inventory" | "event") => {
                let said: Value = serde_json::from_slice(&message.payload)?;
                let host = said["host"].as_str().context("host")?.to_owned();
                (host, said["epoch"].as_u64().context("epoch")?, "event", said["sequence"].as_u64().context("sequence")?, 0)
            }
            _ => return Ok(()),
        };
        let of_life = self.received.entry((host, epoch, class.to_owned())).or_default();
        self.samples += samples;
        match of_life.insert(sequence, samples) {
            Some(before) => {
                ensure!(before == samples, "sequence {sequence} came again with {samples} samples, at first it had {before}");
                self.frames_again += u64::from(class == "sample");
                self.samples_again += samples;
            }
            None => self.frames += u64::from(class == "sample"),
        }
        Ok(())
    }

    /// Every hole has a name, and nothing that stands is called lost.
    pub fn holes_are_named(&mut self, ledger: &Ledger) -> Result<()> {
        for (of, received) in &self.received {
            let lost = ledger.lost.get(of).map(Vec::as_slice).unwrap_or_default();
            let is_lost = |sequence: u64| lost.iter().any(|&(from, to)| (from..=to).contains(&sequence));
            let last = received.keys().next_back().copied().unwrap_or(0);
            for sequence in 1..=last {
                match (received.contains_key(&sequence), is_lost(sequence)) {
                    (true, false) => {}
                    (false, true) => self.lost += 1,
                    (true, true) => anyhow::bail!("{of:?} {sequence} stands in the log and was said to be lost"),
                    (false, false) => anyhow::bail!("{of:?} {sequence} is missing, and nobody says so (the last one is {last})"),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_hole_without_a_name_and_a_loss_that_stands_are_found() {
        let check = |sequences: &[u64], lost: &[(u64, u64)], expected: bool| {
            let message = |&sequence: &u64| {
                let payload = json!({ "host": "h", "epoch": 1, "sequence": sequence }).to_string().into_bytes();
                Message { sequence, logged_ns: 0, subject: "plimsoll.local.log.event.h".to_owned(), payload }
            };
            let mut numbering = Numbering::read(&sequences.iter().map(message).collect::<Vec<_>>()).expect("readable");
            let mut ledger = Ledger::default();
            ledger.lost.insert(("h".to_owned(), 1, "event".to_owned()), lost.to_vec());
            assert_eq!(numbering.holes_are_named(&ledger).is_ok(), expected, "{sequences:?} without {lost:?}");
        };
        check(&[1, 2, 3, 2], &[], true);
        check(&[1, 4], &[(2, 3)], true);
        check(&[2], &[], false);
        check(&[1, 4], &[(3, 3)], false);
        check(&[1, 2, 4], &[(2, 3)], false);
    }
}
