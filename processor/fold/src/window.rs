//! A pane: one GPU over one window, its aggregates mergeable and order-free, so that any order of samples gives the same bytes.

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::row::{Last, StateTime, Stats};
use plimsoll_schemas::sample::{Sample, celsius};
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use serde::{Deserialize, Serialize};

/// Length of the finest window, ns.
pub(crate) const PANE_NS: i64 = 10 * NS_PER_S;
/// Most holders told apart in one pane; beyond it the one with the least time is dropped.
const HOLDERS_MAX: usize = 16;
/// NVML clocks-event reasons that are thermal: software and hardware thermal slowdown.
const THROTTLE_THERMAL: u64 = 0x20 | 0x40;
/// NVML clocks-event reasons that are about power: software power cap and hardware power brake.
const THROTTLE_POWER: u64 = 0x4 | 0x80;

/// Who held the GPU, and for how much of the pane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub lease_id: String,
    pub tenant: TenantId,
    pub held_ms: i64,
}

/// One GPU over one window.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Pane {
    /// Start, ns.
    pub start_ns: i64,
    /// Samples the interval promised.
    pub expected: u32,
    pub stats: Stats,
    pub state: StateTime,
    pub holders: Vec<Holder>,
    /// Changed since the last commit.
    #[serde(skip)]
    pub dirty: bool,
    /// Stands in the store.
    #[serde(skip)]
    pub stored: bool,
}

/// One sample on its way into a pane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival<'a> {
    pub at: EventTime,
    pub epoch: u64,
    pub sequence: u64,
    /// How long it holds, ms, already capped.
    pub held_ms: i64,
    /// The agent's interval, ms.
    pub interval_ms: i64,
    pub sample: &'a Sample,
    /// Whether the GPU was leased at `at`, and idle.
    pub idle_leased: bool,
}

impl Pane {
    pub fn new(start_ns: i64) -> Self {
        Self { start_ns, ..Self::default() }
    }

    /// Adds one sample. Integrals of a field grow only where the field is known; covered_ms grows with every sample.
    pub fn add(&mut self, arrival: &Arrival<'_>) {
        self.dirty = true;
        add_sample(&mut self.stats, arrival);
        if arrival.idle_leased {
            self.state.allocated_idle_ms += arrival.held_ms;
        }
    }

    /// Adds a whole pane: a finer one on its close, or a late part.
    pub fn merge(&mut self, other: &Pane) {
        self.dirty = true;
        self.expected = self.expected.saturating_add(other.expected);
        merge_stats(&mut self.stats, &other.stats);
        self.state.allocated_ms += other.state.allocated_ms;
        self.state.allocated_idle_ms += other.state.allocated_idle_ms;
        self.state.free_ms += other.state.free_ms;
        self.state.unhealthy_ms += other.state.unhealthy_ms;
        self.state.drained_ms += other.state.drained_ms;
        for holder in &other.holders {
            self.hold(&holder.lease_id, &holder.tenant, holder.held_ms);
        }
    }

    /// Credits a holder with time.
    pub fn hold(&mut self, lease_id: &str, tenant: &TenantId, held_ms: i64) {
        self.dirty = true;
        match self.holders.iter_mut().find(|holder| holder.lease_id == lease_id) {
            Some(holder) => holder.held_ms += held_ms,
            None => self.holders.push(Holder { lease_id: lease_id.to_owned(), tenant: tenant.clone(), held_ms }),
        }
        if self.holders.len() > HOLDERS_MAX {
            let least = self.holders.iter().enumerate().min_by_key(|(at, holder)| (holder.held_ms, *at)).map_or(0, |(at, _)| at);
            self.holders.swap_remove(least);
        }
    }

    /// The holder with the most time; the lower lease id of equals.
    pub fn top_holder(&self) -> Option<&Holder> {
        self.holders.iter().max_by(|a, b| a.held_ms.cmp(&b.held_ms).then_with(|| b.lease_id.cmp(&a.lease_id)))
    }
}

fn add_sample(stats: &mut Stats, arrival: &Arrival<'_>) {
    let (sample, held_ms) = (arrival.sample, arrival.held_ms);
    stats.received = stats.received.saturating_add(1);
    stats.covered_ms += held_ms;
    stats.gap_ms_max = stats.gap_ms_max.max(held_ms - arrival.interval_ms);
    let util = sample.util_percent().map(|util| util as i16);
    if let Some(util) = util {
        stats.util_percent_ms += i64::from(util) * held_ms;
        widen(&mut stats.util_percent_min, &mut stats.util_percent_max, util);
        stats.util_sketch.add(util as u64);
    }
    let used = sample.memory_used_bytes();
    if let Some(used) = used {
        let mib = used >> 20;
        stats.memory_used_mib_ms = stats.memory_used_mib_ms.saturating_add((mib as i64).saturating_mul(held_ms));
        widen(&mut stats.memory_used_bytes_min, &mut stats.memory_used_bytes_max, used as i64);
        stats.memory_sketch.add(mib);
    }
    if let Some(energy) = sample.energy_mj() {
        stats.energy_mj = stats.energy_mj.saturating_add(energy as i64);
    } else if let Some(power) = sample.power_mw() {
        // mW x ms = uJ; floored per sample, so the sum does not depend on the order.
        stats.energy_mj = stats.energy_mj.saturating_add((power as i64).saturating_mul(held_ms) / 1_000);
    }
    if let Some(power) = sample.power_mw() {
        stats.power_mw_max = stats.power_mw_max.max(Some(power as i64));
    }
    if let Some(temperature) = sample.temperature_mk() {
        stats.temperature_c_max = stats.temperature_c_max.max(Some(celsius(temperature)));
    }
    if let Some(bits) = sample.throttle_bits() {
        if bits & THROTTLE_THERMAL != 0 {
            stats.throttle_thermal_ms += held_ms;
        }
        if bits & THROTTLE_POWER != 0 {
            stats.throttle_power_ms += held_ms;
        }
    }
    let order = (arrival.at, arrival.epoch, arrival.sequence);
    if stats.last.is_none_or(|last| last.order() < order) {
        stats.last = Some(Last {
            at: arrival.at,
            epoch: arrival.epoch,
            sequence: arrival.sequence,
            util_percent: util,
            memory_used_bytes: used.map(|used| used as i64),
            memory_total_bytes: sample.memory_total_bytes().map(|total| total as i64),
        });
    }
}

fn widen<T: Ord + Copy>(min: &mut Option<T>, max: &mut Option<T>, value: T) {
    *min = Some(min.map_or(value, |min| min.min(value)));
    *max = (*max).max(Some(value));
}

/// Adds `other` to `stats`: commutative and associative.
pub(crate) fn merge_stats(stats: &mut Stats, other: &Stats) {
    stats.received = stats.received.saturating_add(other.received);
    stats.duplicate = stats.duplicate.saturating_add(other.duplicate);
    stats.late = stats.late.saturating_add(other.late);
    stats.covered_ms += other.covered_ms;
    stats.gap_ms_max = stats.gap_ms_max.max(other.gap_ms_max);
    stats.util_percent_ms += other.util_percent_ms;
    stats.util_percent_min = least(stats.util_percent_min, other.util_percent_min);
    stats.util_percent_max = stats.util_percent_max.max(other.util_percent_max);
    stats.util_sketch.merge(&other.util_sketch);
    stats.memory_used_mib_ms = stats.memory_used_mib_ms.saturating_add(other.memory_used_mib_ms);
    stats.memory_used_bytes_min = least(stats.memory_used_bytes_min, other.memory_used_bytes_min);
    stats.memory_used_bytes_max = stats.memory_used_bytes_max.max(other.memory_used_bytes_max);
    stats.memory_sketch.merge(&other.memory_sketch);
    stats.energy_mj = stats.energy_mj.saturating_add(other.energy_mj);
    stats.power_mw_max = stats.power_mw_max.max(other.power_mw_max);
    stats.temperature_c_max = stats.temperature_c_max.max(other.temperature_c_max);
    stats.throttle_thermal_ms += other.throttle_thermal_ms;
    stats.throttle_power_ms += other.throttle_power_ms;
    stats.xid_count = stats.xid_count.saturating_add(other.xid_count);
    if other.last.map(|last| last.order()) > stats.last.map(|last| last.order()) {
        stats.last = other.last;
    }
}

fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// How many ticks of `interval_ms` lie in `[from_ms, to_ms)`, counted on a grid from 1970, so that the counts of parts add up.
pub(crate) fn expected(from_ms: i64, to_ms: i64, interval_ms: u32) -> u32 {
    let interval = i64::from(interval_ms.max(1));
    let up_to = |ms: i64| (ms - 1).div_euclid(interval);
    u32::try_from(up_to(to_ms) - up_to(from_ms)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::sample::Field;
    use proptest::prelude::*;

    #[test]
    fn expected_counts_of_parts_add_up_to_that_of_the_whole() {
        let check = |interval: u32, each: &[u32]| {
            let parts: Vec<u32> = (0..6).map(|n| expected(n * 10_000, (n + 1) * 10_000, interval)).collect();
            assert_eq!(parts, each);
            assert_eq!(parts.iter().sum::<u32>(), expected(0, 60_000, interval));
        };
        check(1_000, &[10; 6]);
        check(15_000, &[1, 1, 0, 1, 1, 0]);
        check(3_000, &[4, 3, 3, 4, 3, 3]);
    }

    proptest! {
        #[test]
        fn samples_in_any_order_and_grouping_give_the_same_pane(
            samples in proptest::collection::vec((0i64..50, 0u64..=100, 0u64..1 << 40, 0i64..2_500, any::<bool>()), 1..40),
            split in 0usize..40,
        ) {
            let add = |pane: &mut Pane, n: usize, &(at, util, used, held_ms, known): &(i64, u64, u64, i64, bool)| {
                let sample = if known { Sample::default().with(Field::UtilPercent, util).with(Field::MemoryUsedBytes, used).with(Field::PowerMw, used % 700_000) }
                    else { Sample::default().with(Field::TemperatureMk, 300_000 + util) };
                pane.add(&Arrival { at: EventTime(at), epoch: 1, sequence: n as u64, held_ms, interval_ms: 1_000, sample: &sample, idle_leased: known });
            };
            let mut forward = Pane::default();
            samples.iter().enumerate().for_each(|(n, s)| add(&mut forward, n, s));
            let (mut a, mut b) = (Pane::default(), Pane::default());
            samples.iter().enumerate().rev().for_each(|(n, s)| add(if n < split { &mut a } else { &mut b }, n, s));
            b.merge(&a);
            prop_assert_eq!(forward.stats, b.stats);
            prop_assert_eq!(forward.state, b.state);
        }

        #[test]
        fn merging_panes_in_any_order_and_grouping_gives_the_same_bytes(
            samples in proptest::collection::vec((0usize..3, 0i64..50, 0u64..=100, 0u64..1 << 40, 0i64..2_500), 0..60),
        ) {
            let mut parts = [Pane::default(), Pane::default(), Pane::default()];
            for (n, &(part, at, util, used, held_ms)) in samples.iter().enumerate() {
                let sample = Sample::default().with(Field::UtilPercent, util).with(Field::MemoryUsedBytes, used).with(Field::ThrottleBits, used & 0xff);
                let arrival = Arrival { at: EventTime(at), epoch: 1, sequence: n as u64, held_ms, interval_ms: 1_000, sample: &sample, idle_leased: util < 50 };
                parts[part].add(&arrival);
            }
            let merged = |order: &[&Pane]| order.iter().fold(Pane::default(), |mut sum, pane| { sum.merge(pane); sum });
            let [a, b, c] = &parts;
            let left = merged(&[&merged(&[a, b]), c]);
            let bytes = |pane: &Pane| postcard::to_stdvec(&(&pane.stats, &pane.state)).expect("plain data");
            for other in [merged(&[a, &merged(&[b, c])]), merged(&[c, a, b]), merged(&[b, &merged(&[c, a])])] {
                prop_assert_eq!(&left.stats, &other.stats);
                prop_assert_eq!(bytes(&left), bytes(&other));
                prop_assert_eq!(left.stats.util_sketch.to_bytes(), other.stats.util_sketch.to_bytes());
            }
        }
    }
}
