//! What a signal's value is: integers out of a closed window, a GPU's or host's state, or a minute of the cell. Nothing where nothing is known.

use plimsoll_schemas::alert::Signal;
use plimsoll_schemas::sample::celsius;
use plimsoll_schemas::time::NS_PER_S;
use serde::{Deserialize, Serialize};

use crate::faults::Faults;
use crate::registry::{Facts, Health, Host, Registry, Silence};
use crate::window::Pane;

/// The cell's counters at an instant of the live clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Counted {
    pub live_ns: i64,
    pub samples: u64,
    pub rejected: u64,
}

/// What the cell's signals are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CellNow {
    before: Counted,
    now: Counted,
    placeable: i64,
    gpus: i64,
    hosts_lost: i64,
}

/// The value of a signal of a closed window.
pub(crate) fn of_window(signal: Signal, pane: &Pane, facts: &Facts) -> Option<i64> {
    let stats = &pane.stats;
    if signal == Signal::XidCount {
        return Some(i64::from(stats.xid_count));
    }
    if stats.received == 0 {
        return None;
    }
    let share = |part: i64, whole: i64| (whole > 0).then(|| part.saturating_mul(100) / whole);
    let hottest = stats.temperature_c_max.map(i64::from);
    match signal {
        Signal::UtilPercent => stats.util_percent_min.and_then(|_| stats.util_percent_ms.checked_div(stats.covered_ms)),
        Signal::MemoryUsedBp => {
            let total = facts.gpu.memory_total_bytes.and_then(|total| i64::try_from(total).ok()).or(stats.last?.memory_total_bytes)?;
            let used = stats.memory_used_bytes_max?;
            match used.checked_mul(10_000) {
                Some(product) => product.checked_div(total),
                // Of a petabyte and more it takes 128 bits, which are slow to divide.
                None => i64::try_from((i128::from(used) * 10_000).checked_div(i128::from(total))?).ok(),
            }
        }
        Signal::TemperatureC => hottest,
        Signal::ThermalMarginC => Some(i64::from(celsius(facts.gpu.slowdown_temperature_mk?)) - hottest?),
        Signal::PowerMw => stats.power_mw_max,
        Signal::IdleAllocatedPercent => share(pane.state.allocated_idle_ms, pane.state.allocated_ms).or(Some(0)),
        Signal::CoveragePercent => share(i64::from(stats.received), i64::from(pane.expected)).map(|percent| percent.min(100)),
        Signal::ThrottleThermalPercent => share(stats.throttle_thermal_ms, stats.covered_ms),
        Signal::ThrottlePowerPercent => share(stats.throttle_power_ms, stats.covered_ms),
        Signal::XidCount
        | Signal::GpuHealth
        | Signal::GpuSilence
        | Signal::HostSilence
        | Signal::SamplesPerMin
        | Signal::RejectedPercent
        | Signal::PlaceableGpus
        | Signal::PlaceablePercent
        | Signal::HostsLost => None,
    }
}

/// The value of a signal of a GPU's state.
pub(crate) fn of_gpu(signal: Signal, facts: &Facts, host_heard: bool) -> Option<i64> {
    match signal {
        // Heat has signals of its own.
        Signal::GpuHealth => Some(match (Faults { hot: false, ..facts.faults }).health() {
            Health::Ok => 0,
            Health::Degraded => 1,
            Health::Failed => 2,
        }),
        Signal::GpuSilence => host_heard.then(|| silent(facts.silence)),
        Signal::UtilPercent
        | Signal::MemoryUsedBp
        | Signal::TemperatureC
        | Signal::ThermalMarginC
        | Signal::PowerMw
        | Signal::IdleAllocatedPercent
        | Signal::CoveragePercent
        | Signal::ThrottleThermalPercent
        | Signal::ThrottlePowerPercent
        | Signal::XidCount
        | Signal::HostSilence
        | Signal::SamplesPerMin
        | Signal::RejectedPercent
        | Signal::PlaceableGpus
        | Signal::PlaceablePercent
        | Signal::HostsLost => None,
    }
}

/// The value of a signal of a host's state.
pub(crate) fn of_host(signal: Signal, host: &Host) -> Option<i64> {
    (signal == Signal::HostSilence).then(|| silent(host.silence))
}

fn silent(silence: Silence) -> i64 {
    match silence {
        Silence::Heard => 0,
        Silence::Stale => 1,
        Silence::Lost => 2,
    }
}

/// Events per minute over a time that is past, floor: events that stop bring it down.
pub(crate) fn per_minute(events: u64, elapsed_ns: i64) -> Option<i64> {
    let elapsed_ns = i128::from(elapsed_ns);
    (elapsed_ns > 0).then(|| i64::try_from(i128::from(events) * i128::from(60 * NS_PER_S) / elapsed_ns).unwrap_or(i64::MAX))
}

/// Samples per minute between two readings of the counters; nothing before the first sample ever.
pub(crate) fn samples_per_minute(before: Counted, now: Counted) -> Option<i64> {
    if now.samples == 0 {
        return None;
    }
    per_minute(now.samples - before.samples, now.live_ns - before.live_ns)
}

impl CellNow {
    /// How the cell stands now, and how its counters stood a minute ago. Walks all GPUs and hosts.
    pub fn of(registry: &Registry, before: Counted, now: Counted) -> Self {
        let gpus = || registry.devices.iter().filter(|device| !device.facts.retired);
        Self {
            before,
            now,
            placeable: gpus().filter(|device| device.is_placeable()).count() as i64,
            gpus: gpus().count() as i64,
            hosts_lost: registry.hosts.iter().filter(|host| host.silence == Silence::Lost).count() as i64,
        }
    }

    /// The value of a signal of the cell.
    pub fn value(&self, signal: Signal) -> Option<i64> {
        let samples = i64::try_from(self.now.samples - self.before.samples).unwrap_or(i64::MAX);
        let rejected = i64::try_from(self.now.rejected - self.before.rejected).unwrap_or(i64::MAX);
        match signal {
            Signal::SamplesPerMin => samples_per_minute(self.before, self.now),
            Signal::RejectedPercent => rejected.saturating_mul(100).checked_div(samples),
            Signal::PlaceableGpus => (self.gpus > 0).then_some(self.placeable),
            Signal::PlaceablePercent => (self.placeable * 100).checked_div(self.gpus),
            Signal::HostsLost => Some(self.hosts_lost),
            Signal::UtilPercent
            | Signal::MemoryUsedBp
            | Signal::TemperatureC
            | Signal::ThermalMarginC
            | Signal::PowerMw
            | Signal::IdleAllocatedPercent
            | Signal::CoveragePercent
            | Signal::ThrottleThermalPercent
            | Signal::ThrottlePowerPercent
            | Signal::XidCount
            | Signal::GpuHealth
            | Signal::GpuSilence
            | Signal::HostSilence => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_falls_when_events_stop_and_is_nothing_before_the_first_ever() {
        let at = |seconds: i64, samples: u64| Counted { live_ns: seconds * NS_PER_S, samples, rejected: 0 };
        assert_eq!(samples_per_minute(at(0, 0), at(60, 0)), None);
        assert_eq!(samples_per_minute(at(0, 0), at(60, 480)), Some(480));
        assert_eq!(samples_per_minute(at(60, 480), at(120, 480)), Some(0));
        assert_eq!((per_minute(6, 60 * NS_PER_S), per_minute(4, 240 * NS_PER_S), per_minute(1, 0)), (Some(6), Some(1), None));
    }
}
