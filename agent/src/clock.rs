//! The host's two clocks: wall time, which people may set, and CLOCK_BOOTTIME, which only runs.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use plimsoll_schemas::time::EventTime;

/// Both clocks at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Wall clock.
    pub wall: EventTime,
    /// CLOCK_BOOTTIME, nanoseconds since boot.
    pub boot_ns: u64,
}

impl Moment {
    /// Both clocks now.
    pub fn now() -> Self {
        Self { wall: wall_now(), boot_ns: boot_ns() }
    }
}

/// The wall clock now.
pub fn wall_now() -> EventTime {
    EventTime(read(ClockId::CLOCK_REALTIME))
}

/// CLOCK_BOOTTIME now, nanoseconds since boot.
pub fn boot_ns() -> u64 {
    u64::try_from(read(ClockId::CLOCK_BOOTTIME)).unwrap_or(0)
}

fn read(id: ClockId) -> i64 {
    let at = clock_gettime(id).expect("Linux always has this clock");
    at.tv_sec() * 1_000_000_000 + at.tv_nsec()
}

/// The kernel's boot id; absent where there is none.
pub fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let mut id = [0u8; 16];
    if hex.len() != 32 {
        return None;
    }
    for (byte, pair) in id.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(id)
}

/// Tells threads to stop, and lets them wait without missing it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    shared: Arc<(Mutex<bool>, Condvar)>,
}

impl Stop {
    /// Asks everyone to stop.
    pub fn stop(&self) {
        *self.shared.0.lock().expect("no holder panics") = true;
        self.shared.1.notify_all();
    }

    /// Whether everyone was asked to stop.
    pub fn is_stopped(&self) -> bool {
        *self.shared.0.lock().expect("no holder panics")
    }

    /// Waits for `time` or until asked to stop; true = stop.
    pub fn wait(&self, time: Duration) -> bool {
        let guard = self.shared.0.lock().expect("no holder panics");
        let (guard, _) = self.shared.1.wait_timeout_while(guard, time, |stopped| !*stopped).expect("no holder panics");
        *guard
    }

    /// Waits until CLOCK_BOOTTIME reaches `deadline_ns` or until asked to stop; true = stop.
    pub fn wait_until(&self, deadline_ns: u64) -> bool {
        self.wait(Duration::from_nanos(deadline_ns.saturating_sub(boot_ns())))
    }
}
