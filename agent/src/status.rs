//! What the agent's parts tell each other without waiting: the broker connection and the last tick.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Shared facts, each written by one part.
#[derive(Debug, Default)]
pub struct Status {
    /// Connections to the broker so far; a change asks for new inventories.
    pub connects: AtomicU64,
    /// Whether the broker is connected now.
    pub connected: AtomicBool,
    /// Whether the newest publish was acknowledged.
    pub publishing: AtomicBool,
    /// Hosts whose GPUs are known.
    pub hosts: AtomicU64,
    /// CLOCK_BOOTTIME of the newest tick, nanoseconds; 0 = none yet.
    pub last_tick_ns: AtomicU64,
    /// Whether the source has ended by itself.
    pub finished: AtomicBool,
    /// Why publishing stands still, for people; empty = it does not.
    trouble: Mutex<String>,
}

impl Status {
    /// Says why publishing stands still; empty = it does not.
    pub fn set_trouble(&self, text: &str) {
        let mut trouble = self.trouble.lock().expect("no holder panics");
        if *trouble != text {
            text.clone_into(&mut trouble);
        }
    }

    /// Everything that keeps the agent from being ready at `now_ns` of CLOCK_BOOTTIME; empty = ready.
    pub fn not_ready(&self, now_ns: u64, interval_ms: u32) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.hosts.load(Relaxed) == 0 {
            reasons.push("no inventory yet: the source has not named a host".to_owned());
        }
        let last = self.last_tick_ns.load(Relaxed);
        let age_ms = now_ns.saturating_sub(last) / 1_000_000;
        let allowed_ms = u64::from(interval_ms) * 3;
        if last == 0 {
            reasons.push("no tick yet".to_owned());
        } else if age_ms > allowed_ms && !self.finished.load(Relaxed) {
            reasons.push(format!("the last tick is {age_ms} ms old, at most {allowed_ms} ms"));
        }
        if !self.connected.load(Relaxed) {
            reasons.push("not connected to the broker".to_owned());
        }
        let trouble = self.trouble.lock().expect("no holder panics");
        if !trouble.is_empty() {
            reasons.push(trouble.clone());
        }
        reasons
    }
}
