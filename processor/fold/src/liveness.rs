//! Silence: a host or GPU that is not heard from becomes stale, then lost, on the live clock. Being heard from undoes it.

use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::time::NS_PER_MS;

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::placement::reputation::Failure;
use crate::registry::Silence;
use crate::state_time::Cause;
use crate::timers::Timer;

/// How long after the last sign of life something is stale, ns: three intervals and 5 s unless set otherwise.
pub(crate) fn stale_ns(interval_ms: u32, settings: &Thresholds) -> i64 {
    intervals(settings.stale_intervals, interval_ms) + ns(settings.stale_extra_ms)
}

/// How long after the last sign of life something is lost, ns: 90 s or six intervals unless set otherwise, whichever is longer, and
/// never before it is stale.
fn lost_ns(interval_ms: u32, settings: &Thresholds) -> i64 {
    ns(settings.lost_ms).max(intervals(settings.lost_intervals, interval_ms)).max(stale_ns(interval_ms, settings))
}

fn intervals(count: u32, interval_ms: u32) -> i64 {
    (i64::from(count) * i64::from(interval_ms)).saturating_mul(NS_PER_MS)
}

/// How silent something is that was last heard at `heard_ns`.
fn silence(heard_ns: i64, interval_ms: u32, live_ns: i64, settings: &Thresholds) -> Silence {
    match live_ns - heard_ns {
        silent if silent >= lost_ns(interval_ms, settings) => Silence::Lost,
        silent if silent >= stale_ns(interval_ms, settings) => Silence::Stale,
        _ => Silence::Heard,
    }
}

/// When something that is `silence` gets one step more silent; absent if it is lost.
fn next_ns(heard_ns: i64, silence: Silence, interval_ms: u32, settings: &Thresholds) -> Option<i64> {
    match silence {
        Silence::Heard => Some(heard_ns + stale_ns(interval_ms, settings)),
        Silence::Stale => Some(heard_ns.saturating_add(lost_ns(interval_ms, settings))),
        Silence::Lost => None,
    }
}

impl State {
    /// When a host or one of its GPUs gets one step more silent, live clock in ns; absent if all are lost.
    pub(crate) fn silence_deadline(&self, number: u32) -> Option<i64> {
        let host = &self.registry.hosts[number as usize];
        let (interval_ms, settings) = (host.facts.interval_ms, &self.meta.settings);
        let devices = host.devices.iter().filter_map(|&d| {
            let device = &self.registry.devices[d as usize];
            next_ns(device.pulse.heard_ns, device.facts.silence, interval_ms, settings)
        });
        devices.chain(next_ns(host.heard_ns, host.silence, interval_ms, settings)).min()
    }

    /// Moves a host and its GPUs to where their silence puts them.
    pub(crate) fn note_silence(&mut self, number: u32, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        let host = &self.registry.hosts[number as usize];
        let (interval_ms, settings) = (host.facts.interval_ms, self.meta.settings);
        let now = silence(host.heard_ns, interval_ms, live_ns, &settings);
        if now > host.silence {
            self.close_host_version(number, emit);
            let host = self.registry.host_mut(number);
            host.silence = now;
            if now == Silence::Lost {
                host.reputation.fail(Failure::Silence);
            }
            self.publish_host(number, cause(now), emit);
        }
        let devices = self.registry.hosts[number as usize].devices.clone();
        for &d in &devices {
            let device = self.registry.device_mut(d);
            let now = silence(device.pulse.heard_ns, interval_ms, live_ns, &settings);
            if now > device.facts.silence {
                device.facts.silence = now;
                device.facts_dirty = true;
                device.pulse.calm_ns = None;
                device.pulse_dirty = true;
                self.restate(d, Cause::of(cause(now)), emit);
                if now == Silence::Lost {
                    self.suspend_sessions(d, emit);
                }
            }
        }
        if self.registry.hosts[number as usize].silence == Silence::Lost {
            self.suspend_leases(&devices, emit);
        }
    }

    /// A host spoke.
    pub(crate) fn host_heard(&mut self, number: u32, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        if self.registry.hosts[number as usize].silence != Silence::Heard {
            self.close_host_version(number, emit);
            let host = self.registry.host_mut(number);
            host.silence = Silence::Heard;
            host.heard_ns = live_ns;
            self.publish_host(number, "returned", emit);
            let devices = self.registry.hosts[number as usize].devices.clone();
            self.resume_leases(&devices, emit);
            self.wait_for_silence(number);
        }
        self.registry.host_mut(number).heard_ns = live_ns;
    }

    /// A GPU that was silent spoke.
    pub(crate) fn device_returned(&mut self, number: u32, emit: &mut Emit<'_>) {
        let device = self.registry.device_mut(number);
        device.facts.silence = Silence::Heard;
        device.facts_dirty = true;
        let host = device.facts.host;
        self.restate(number, Cause::of("returned"), emit);
        self.wait_for_silence(host);
    }

    /// Sets the timer of a host's silence.
    pub(crate) fn wait_for_silence(&mut self, number: u32) {
        if let Some(at_ns) = self.silence_deadline(number) {
            self.timers.set(at_ns, Timer::Silence(number));
        }
    }
}

fn cause(silence: Silence) -> &'static str {
    match silence {
        Silence::Heard => "returned",
        Silence::Stale => "stale",
        Silence::Lost => "lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::time::NS_PER_S;

    #[test]
    fn silence_grows_with_the_live_clock_and_the_interval() {
        let check = |seconds: i64, interval_ms: u32, expected: Silence| {
            assert_eq!(silence(0, interval_ms, seconds * NS_PER_S, &Thresholds::default()), expected, "{seconds} s")
        };
        check(7, 1_000, Silence::Heard);
        check(8, 1_000, Silence::Stale);
        check(89, 1_000, Silence::Stale);
        check(90, 1_000, Silence::Lost);
        check(49, 15_000, Silence::Heard);
        check(50, 15_000, Silence::Stale);
        check(359, 60_000, Silence::Stale);
        check(360, 60_000, Silence::Lost);
    }
}
