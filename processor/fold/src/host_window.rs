//! A host's minute: which of its GPUs were free for all of it, how many were free and leased at the least and at the most. Boards that are cut
//! into MIG instances, or can be, are GPUs of it and never free or leased ones.
//!
//! Masks come from the closed minute windows of the GPUs, so they agree with `free_ms` to the millisecond and stay as at first close. The
//! least and greatest counts need to know when GPUs changed at once, which no window of one GPU tells: they are kept per model while it
//! happens, and only minutes in which something changed take room.

use std::collections::BTreeMap;

use plimsoll_schemas::row::{HostWindowRow, MEMORY_CLASSES_GIB, Row, SlotMask, Tier};
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::clock::floor;
use crate::emit::Emit;
use crate::registry::{Device, Use};
use crate::window::Pane;

/// Length of a host window, ms.
const MINUTE_MS: i64 = Tier::Minute.seconds() * 1_000;
/// Most minutes with changes kept per model; log time can outrun the windows by that much only when it jumps.
const CHANGED_MAX: usize = 64;

/// GPUs of one model that are free and leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Counts {
    free: u16,
    leased: u16,
}

/// A minute in which the counts changed: what lasted in it, a millisecond at the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Minute {
    start_ms: i64,
    first: Counts,
    last: Counts,
    free_min: u16,
    free_max: u16,
    leased_max: u16,
}

impl Minute {
    /// A minute in which nothing changed.
    fn still(start_ms: i64, counts: Counts) -> Self {
        Self { start_ms, first: counts, last: counts, free_min: counts.free, free_max: counts.free, leased_max: counts.leased }
    }

    fn add(&mut self, counts: Counts) {
        self.last = counts;
        self.free_min = self.free_min.min(counts.free);
        self.free_max = self.free_max.max(counts.free);
        self.leased_max = self.leased_max.max(counts.leased);
    }
}

/// The counts of one model on one host, through the minutes that are not closed yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    model: String,
    now: Counts,
    /// Since when, log time in ms.
    since_ms: i64,
    /// Minutes with changes before that, oldest first.
    changed: Vec<Minute>,
    /// Before this minute nothing is known any more.
    known_from_ms: i64,
}

impl Tally {
    fn new(model: String, at_ms: i64) -> Self {
        Self { model, now: Counts::default(), since_ms: at_ms, changed: Vec::new(), known_from_ms: floor(at_ms, MINUTE_MS) }
    }

    /// The counts are these from now on. What lasted no time at all leaves no trace.
    fn set(&mut self, counts: Counts, at_ms: i64) {
        if counts == self.now {
            return;
        }
        if at_ms > self.since_ms {
            // In the minutes between these two nothing changed.
            self.lasted(floor(self.since_ms, MINUTE_MS));
            self.lasted(floor(at_ms - 1, MINUTE_MS));
            self.since_ms = at_ms;
        }
        self.now = counts;
        if self.changed.len() > CHANGED_MAX {
            self.known_from_ms = self.changed.remove(0).start_ms + MINUTE_MS;
        }
    }

    fn lasted(&mut self, start_ms: i64) {
        match self.changed.last_mut().filter(|minute| minute.start_ms == start_ms) {
            Some(minute) => minute.add(self.now),
            None => self.changed.push(Minute::still(start_ms, self.now)),
        }
    }

    /// The minute that starts at `start_ms`; absent if that was too long ago.
    fn minute(&self, start_ms: i64) -> Option<Minute> {
        if start_ms < self.known_from_ms {
            return None;
        }
        let at = self.changed.partition_point(|minute| minute.start_ms < start_ms);
        let own = self.changed.get(at).filter(|minute| minute.start_ms == start_ms).copied();
        if self.since_ms < start_ms + MINUTE_MS {
            let mut minute = own.unwrap_or_else(|| Minute::still(start_ms, self.now));
            minute.add(self.now);
            return Some(minute);
        }
        let before = at.checked_sub(1).map(|before| self.changed[before].last);
        let after = self.changed.get(at).map(|next| next.first);
        own.or_else(|| Some(Minute::still(start_ms, before.or(after)?)))
    }

    /// Minutes before `start_ms` are closed.
    fn forget(&mut self, start_ms: i64) {
        let closed = self.changed.partition_point(|minute| minute.start_ms < start_ms);
        self.changed.drain(..closed);
    }
}

/// What a GPU's closed minute says about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceMinute {
    device: u32,
    start_ms: i64,
    /// Free for all of it.
    free: bool,
    /// Neither unwell nor unknown for any of it.
    up: bool,
    /// Heard from, and unwell at no time of it: all that is known of a board whose instances are placed on.
    well: bool,
    /// Leased and idle for all of it.
    idle_leased: bool,
    /// Memory not in use at any time of it, bytes; absent = not known.
    memory_free_bytes: Option<u64>,
}

impl DeviceMinute {
    /// From the closed pane of a minute.
    pub fn of(number: u32, device: &Device, pane: &Pane, settings: &Thresholds) -> Self {
        let (state, stats) = (&pane.state, &pane.stats);
        let total = device.facts.gpu.memory_total_bytes.or(stats.last.and_then(|last| u64::try_from(last.memory_total_bytes?).ok()));
        let used = stats.memory_used_bytes_max.and_then(|used| u64::try_from(used).ok());
        Self {
            device: number,
            start_ms: pane.start_ns / NS_PER_MS,
            free: state.free_ms >= MINUTE_MS,
            up: state.free_ms + state.allocated_ms + state.drained_ms >= MINUTE_MS,
            well: stats.received > 0 && state.unhealthy_ms == 0,
            idle_leased: state.allocated_ms >= MINUTE_MS && stats.util_percent_max.is_some_and(|most| (most as u32) < settings.idle_below_percent),
            memory_free_bytes: total.zip(used).map(|(total, used)| total.saturating_sub(used)),
        }
    }
}

impl State {
    /// Counts the free and leased GPUs of a host anew, after one of them changed or its GPUs did.
    pub(crate) fn recount(&mut self, number: u32, at: LogTime) {
        let host = &self.registry.hosts[number as usize];
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for tally in host.tallies.iter().filter(|tally| tally.now != Counts::default()) {
            counts.insert(&tally.model, Counts::default());
        }
        for &d in &host.devices {
            let facts = &self.registry.devices[d as usize].facts;
            if facts.gpu.mig_parent_uuid.is_none() {
                let of_model = counts.entry(&facts.gpu.model).or_default();
                of_model.free += u16::from(facts.using == Use::Free);
                of_model.leased += u16::from(facts.using == Use::Allocated && !facts.cut);
            }
        }
        let counts: Vec<(String, Counts)> = counts.into_iter().map(|(model, counts)| (model.to_owned(), counts)).collect();
        let host = self.registry.host_mut(number);
        // A model that has left is kept for as long as a minute in which it was there is open.
        host.tallies.retain(|tally| !tally.changed.is_empty() || counts.iter().any(|(model, _)| *model == tally.model));
        for (model, counts) in counts {
            let at_tally = match host.tallies.binary_search_by(|tally| tally.model.as_str().cmp(&model)) {
                Ok(at_tally) => at_tally,
                Err(at_tally) => {
                    host.tallies.insert(at_tally, Tally::new(model, at.millis()));
                    at_tally
                }
            };
            host.tallies[at_tally].set(counts, at.millis());
        }
    }

    /// Emits the host's minutes that closed with the windows of its GPUs.
    pub(crate) fn close_host_minutes(&mut self, host: u32, devices: &[u32], emit: &mut Emit<'_>) {
        let mut closed = std::mem::take(&mut self.closed_minutes);
        closed.sort_by_key(|minute| minute.start_ms);
        for minute in closed.chunk_by(|a, b| a.start_ms == b.start_ms) {
            self.close_host_minute(host, devices, minute, emit);
        }
        closed.clear();
        self.closed_minutes = closed;
    }

    fn close_host_minute(&mut self, host: u32, devices: &[u32], minute: &[DeviceMinute], emit: &mut Emit<'_>) {
        let start_ms = minute[0].start_ms;
        let facts = |d: u32| &self.registry.devices[d as usize].facts;
        let words = devices.iter().map(|&d| usize::from(facts(d).gpu.slot.0) / 64 + 1).max().unwrap_or(1);
        let mut models: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for &d in devices {
            models.entry(&facts(d).gpu.model).or_default().push(d);
        }
        let mut rows = Vec::with_capacity(models.len());
        for (model, devices) in models {
            let tally = self.registry.hosts[host as usize].tallies.iter().find(|tally| tally.model == model);
            let counts = tally.and_then(|tally| tally.minute(start_ms));
            let mut row = HostWindowRow {
                window_at: EventTime(start_ms * NS_PER_MS),
                host: self.registry.hosts[host as usize].id.clone(),
                model: model.to_owned(),
                pool: self.registry.hosts[host as usize].facts.placement.pool.clone(),
                gpus_total: 0,
                gpus_up: 0,
                gpus_free_min: counts.map(|counts| counts.free_min),
                gpus_free_max: counts.map(|counts| counts.free_max),
                gpus_alloc_max: counts.map(|counts| counts.leased_max),
                gpus_idle_alloc_min: 0,
                free: SlotMask::of_words(words),
                free_by_memory: std::array::from_fn(|_| SlotMask::of_words(words)),
                largest_free_nvlink: None,
                mig_total: 0,
                mig_free: SlotMask::of_words(words),
            };
            let mut domains: BTreeMap<u32, u16> = BTreeMap::new();
            for d in devices {
                let gpu = &facts(d).gpu;
                let own = minute.iter().find(|own| own.device == d);
                let free = own.is_some_and(|own| own.free);
                if gpu.mig_parent_uuid.is_some() {
                    row.mig_total += 1;
                    row.mig_free.set_if(gpu.slot, free);
                    continue;
                }
                let cut = facts(d).cut;
                let whole = free && !cut;
                row.gpus_total += 1;
                row.gpus_up += u16::from(own.is_some_and(|own| own.up || (cut && own.well)));
                row.gpus_idle_alloc_min += u16::from(own.is_some_and(|own| own.idle_leased) && !cut);
                row.free.set_if(gpu.slot, whole);
                let memory_free = own.and_then(|own| own.memory_free_bytes);
                for (mask, gib) in row.free_by_memory.iter_mut().zip(MEMORY_CLASSES_GIB) {
                    mask.set_if(gpu.slot, whole && memory_free.is_some_and(|bytes| bytes >= gib << 30));
                }
                if let Some(domain) = gpu.nvlink_domain {
                    *domains.entry(domain).or_default() += u16::from(whole);
                }
            }
            row.largest_free_nvlink = domains.into_values().max();
            rows.push(row);
        }
        rows.into_iter().for_each(|row| emit.row(Row::HostWindow(Box::new(row))));
        for tally in &mut self.registry.host_mut(host).tallies {
            tally.forget(start_ms + MINUTE_MS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn least_and_greatest_counts_equal_those_of_a_naive_walk(
            changes in proptest::collection::vec((prop_oneof![Just(0i64), 0i64..40_000, 0i64..200_000], 0u16..9, 0u16..9), 0..40), closed in 0i64..12,
        ) {
            let mut tally = Tally::new("m".to_owned(), 0);
            let (mut at_ms, mut pieces) = (0, vec![(0, Counts::default())]);
            for (ms, free, leased) in changes {
                at_ms += ms;
                tally.set(Counts { free, leased }, at_ms);
                pieces.push((at_ms, Counts { free, leased }));
            }
            let closed_ms = (closed * MINUTE_MS).min(floor(at_ms, MINUTE_MS));
            tally.forget(closed_ms);
            for start_ms in (closed_ms..at_ms + 3 * MINUTE_MS).step_by(MINUTE_MS as usize) {
                let ends = pieces[1..].iter().map(|&(end, _)| end).chain([i64::MAX]);
                let within = |&(&(from, _), to): &(&(i64, Counts), i64)| from < to && from < start_ms + MINUTE_MS && to > start_ms;
                let seen: Vec<Counts> = pieces.iter().zip(ends).filter(within).map(|(&(_, counts), _)| counts).collect();
                let found = tally.minute(start_ms).expect("known");
                prop_assert_eq!(Some(found.free_min), seen.iter().map(|counts| counts.free).min());
                prop_assert_eq!(Some(found.free_max), seen.iter().map(|counts| counts.free).max());
                prop_assert_eq!(Some(found.leased_max), seen.iter().map(|counts| counts.leased).max());
            }
        }
    }

    #[test]
    fn minutes_that_are_kept_are_bounded_and_older_ones_are_unknown() {
        let mut tally = Tally::new("m".to_owned(), 0);
        (0..200).for_each(|n| tally.set(Counts { free: n as u16, leased: 0 }, n * MINUTE_MS + 1));
        assert_eq!(tally.changed.len(), CHANGED_MAX);
        assert_eq!(tally.minute(100 * MINUTE_MS), None);
        assert_eq!(tally.minute(199 * MINUTE_MS).map(|minute| (minute.free_min, minute.free_max)), Some((198, 199)));
        assert_eq!(tally.minute(150 * MINUTE_MS).map(|minute| (minute.free_min, minute.free_max)), Some((149, 150)));
    }
}
