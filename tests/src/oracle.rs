//! Windows recomputed from the raw frames by brute force: every sample of a window is kept and looked at again.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::wire::{Frame, field};

/// One believed sample.
#[derive(Debug, Clone)]
pub struct Sample {
    at_ns: i64,
    epoch: u64,
    sequence: u64,
    held_ms: i64,
    util: Option<i64>,
    memory_used: Option<i64>,
    memory_total: Option<i64>,
    power: Option<i64>,
    energy: Option<i64>,
    temperature_mk: Option<i64>,
    /// How old it was when the log took it, ns; 0 = not known.
    age_ns: i64,
}

/// A sample further ahead of the log is not believed, ns.
const AHEAD_NS_MAX: i64 = 5_000_000_000;
/// An older sample counts only where its window is still open, ns.
const LATE_NS_MAX: i64 = 3_600_000_000_000;

/// What a window must say; the default is one in which nothing was heard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    /// Samples.
    pub received: i64,
    /// Sum of held_ms.
    pub covered_ms: i64,
    /// Sum of percent × held_ms.
    pub util_percent_ms: i64,
    /// Least percent.
    pub util_percent_min: Option<i64>,
    /// Greatest percent.
    pub util_percent_max: Option<i64>,
    /// The newest sample's percent.
    pub util_percent_last: Option<i64>,
    /// The 95th percentile of percent: rank ceil(0.95 n).
    pub util_p95: Option<i64>,
    /// Sum of MiB × held_ms.
    pub memory_used_mib_ms: i64,
    /// Least bytes.
    pub memory_used_bytes_min: Option<i64>,
    /// Greatest bytes.
    pub memory_used_bytes_max: Option<i64>,
    /// The newest sample's bytes.
    pub memory_used_bytes_last: Option<i64>,
    /// The newest sample's total.
    pub memory_total_bytes: Option<i64>,
    /// The 95th percentile of MiB.
    pub memory_mib_p95: Option<i64>,
    /// Sum of energy deltas.
    pub energy_mj: i64,
    /// Greatest power.
    pub power_mw_max: Option<i64>,
    /// Greatest temperature, °C.
    pub temperature_c_max: Option<i64>,
}

/// All samples of a log by GPU.
#[derive(Debug, Default)]
pub struct Oracle {
    /// (host, epoch, revision) → slot → UUID.
    inventories: BTreeMap<(String, u64, u64), BTreeMap<u64, String>>,
    /// (host, epoch, sequence) already counted.
    seen: BTreeSet<(String, u64, u64)>,
    /// UUID → samples.
    samples: BTreeMap<String, Vec<Sample>>,
    /// Frames that named an inventory nobody has sent.
    pub strangers: usize,
    /// Frames counted twice in the log.
    pub duplicates: usize,
}

impl Oracle {
    /// Takes one message of the LOG, from hosts whose clocks are right.
    pub fn take(&mut self, subject: &str, payload: &[u8]) -> Result<()> {
        self.take_at(subject, payload, None)
    }

    /// Takes one message that the log took at that time (a running maximum, ns UTC): a sample from the future is not believed.
    pub fn take_logged(&mut self, subject: &str, payload: &[u8], logged_ns: i64) -> Result<()> {
        self.take_at(subject, payload, Some(logged_ns))
    }

    fn take_at(&mut self, subject: &str, payload: &[u8], logged_ns: Option<i64>) -> Result<()> {
        match subject.split('.').nth(3) {
            Some("inventory") => self.take_inventory(&serde_json::from_slice(payload)?),
            Some("sample") => {
                let frame = Frame::read(payload)?;
                self.take_frame(&frame, logged_ns);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn take_inventory(&mut self, inventory: &Value) -> Result<()> {
        let host = inventory["host"].as_str().context("host")?.to_owned();
        let epoch = inventory["epoch"].as_u64().context("epoch")?;
        let revision = inventory["revision"].as_u64().context("revision")?;
        let slots = self.inventories.entry((host, epoch, revision)).or_default();
        for gpu in inventory["gpus"].as_array().context("gpus")? {
            slots.insert(gpu["slot"].as_u64().context("slot")?, gpu["uuid"].as_str().context("uuid")?.to_owned());
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: &Frame, logged_ns: Option<i64>) {
        // Of a host that nobody knows yet nothing is remembered: its frame counts when it comes again behind its first inventory.
        if !self.inventories.keys().any(|(host, _, _)| *host == frame.host) {
            self.strangers += 1;
            return;
        }
        if !self.seen.insert((frame.host.clone(), frame.epoch, frame.sequence)) {
            self.duplicates += 1;
            return;
        }
        let Some(slots) = self.inventories.get(&(frame.host.clone(), frame.epoch, frame.inventory_revision)) else {
            self.strangers += 1;
            return;
        };
        for (tick, &at_ns) in frame.ticks_ns.iter().enumerate() {
            let age_ns = logged_ns.map_or(0, |logged| logged - at_ns);
            if age_ns < -AHEAD_NS_MAX {
                continue;
            }
            for (gpu, slot) in frame.slots.iter().enumerate() {
                if !frame.gave_anything(tick, gpu) {
                    continue;
                }
                let value = |number| frame.value(number, tick, gpu).map(|v| v as i64);
                let power = value(field::POWER_MW);
                let held_ms = frame.held_ms[tick] as i64;
                self.samples.entry(slots[slot].clone()).or_default().push(Sample {
                    at_ns,
                    epoch: frame.epoch,
                    sequence: frame.sequence,
                    held_ms,
                    util: value(field::UTIL_PERCENT),
                    memory_used: value(field::MEMORY_USED_BYTES),
                    memory_total: value(field::MEMORY_TOTAL_BYTES),
                    power,
                    // Without a counter on the board, energy is power over the time it held.
                    energy: value(field::ENERGY_MJ).or(power.map(|mw| mw * held_ms / 1_000)),
                    temperature_mk: value(field::TEMPERATURE_MK),
                    age_ns,
                });
            }
        }
    }

    /// How many samples were believed.
    pub fn believed(&self) -> u64 {
        self.samples.values().map(|samples| samples.len() as u64).sum()
    }

    /// The GPUs seen.
    pub fn gpus(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(String::as_str)
    }

    /// Starts (seconds) of the windows of a GPU that hold at least one sample.
    pub fn starts(&self, uuid: &str, window_s: i64) -> BTreeSet<i64> {
        self.samples.get(uuid).into_iter().flatten().map(|sample| start_of(sample, window_s)).collect()
    }

    /// Whether a window has a sample so old that it counts only if the window was still open: then the log alone does not say what it must hold.
    pub fn is_ambiguous(&self, uuid: &str, window_s: i64, start_s: i64) -> bool {
        let samples = self.samples.get(uuid).into_iter().flatten();
        samples.filter(|sample| start_of(sample, window_s) == start_s).any(|sample| sample.age_ns > LATE_NS_MAX)
    }

    /// What the window of a GPU must say; absent without a sample.
    pub fn window(&self, uuid: &str, window_s: i64, start_s: i64) -> Option<Window> {
        let inside: Vec<&Sample> = self.samples.get(uuid)?.iter().filter(|sample| start_of(sample, window_s) == start_s).collect();
        let last = inside.iter().max_by_key(|s| (s.at_ns, s.epoch, s.sequence))?;
        let mib = |bytes: i64| bytes >> 20;
        let known = |of: fn(&Sample) -> Option<i64>| inside.iter().filter_map(|s| of(s)).collect::<Vec<_>>();
        let (utils, memories) = (known(|s| s.util), known(|s| s.memory_used));
        Some(Window {
            received: inside.len() as i64,
            covered_ms: inside.iter().map(|s| s.held_ms).sum(),
            util_percent_ms: inside.iter().filter_map(|s| Some(s.util? * s.held_ms)).sum(),
            util_percent_min: utils.iter().copied().min(),
            util_percent_max: utils.iter().copied().max(),
            util_percent_last: last.util,
            util_p95: p95(utils),
            memory_used_mib_ms: inside.iter().filter_map(|s| Some(mib(s.memory_used?) * s.held_ms)).sum(),
            memory_used_bytes_min: memories.iter().copied().min(),
            memory_used_bytes_max: memories.iter().copied().max(),
            memory_used_bytes_last: last.memory_used,
            memory_total_bytes: last.memory_total,
            memory_mib_p95: p95(memories.iter().map(|&bytes| mib(bytes)).collect()),
            energy_mj: inside.iter().filter_map(|s| s.energy).sum(),
            power_mw_max: inside.iter().filter_map(|s| s.power).max(),
            temperature_c_max: inside.iter().filter_map(|s| s.temperature_mk).map(celsius).max(),
        })
    }
}

fn start_of(sample: &Sample, window_s: i64) -> i64 {
    sample.at_ns.div_euclid(window_s * 1_000_000_000) * window_s
}

fn celsius(mk: i64) -> i64 {
    ((mk as f64 - 273_150.0) / 1_000.0).round() as i64
}

fn p95(mut values: Vec<i64>) -> Option<i64> {
    values.sort_unstable();
    let rank = (values.len() * 95).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}
