//! Closing windows: host by host, all its GPUs at once in the order of their keys, so panes close staggered over the fleet.
//!
//! A 10 s window closes when the host's watermark and log time have passed its end, or a minute of live clock after log time has.
//! Closed 10 s panes are added to the minute, closed minutes to the hour. A closed window is never touched again.

use plimsoll_schemas::row::{Row, Tier, WindowRow};
use plimsoll_schemas::time::{EventTime, NS_PER_MS, NS_PER_S};

use crate::State;
use crate::clock::floor;
use crate::emit::Emit;
use crate::host_window::DeviceMinute;
use crate::paces::load::DeviceLoad;
use crate::registry::{Device, Host, Use};
use crate::window::{PANE_NS, Pane, expected};

/// Most windows of hosts closed by force per record; the rest waits for the next record.
const FORCED_PER_RECORD: usize = 2_048;
/// A host that is further behind than this looks for the next window with content instead of walking, ns.
const WALK_NS: i64 = 12 * PANE_NS;

impl State {
    /// Closes what the watermark of one host lets close.
    pub(crate) fn close_due(&mut self, host: u32, emit: &mut Emit<'_>) {
        let Host { watermark_ns, closed_ns, .. } = self.registry.hosts[host as usize];
        let limit = emit.logged_at().0.min(watermark_ns.max(self.clock.forced_end_ns));
        if limit >= closed_ns.saturating_add(PANE_NS) {
            self.close_until(host, floor(limit, PANE_NS), usize::MAX, emit);
        }
    }

    /// Closes what is overdue, whatever the watermarks say, a bounded number per record.
    pub(crate) fn close_forced(&mut self, emit: &mut Emit<'_>) {
        let mut budget = FORCED_PER_RECORD;
        while budget > 0
            && let Some(&(closed_ns, host)) = self.behind.first()
            && closed_ns < self.clock.forced_end_ns
        {
            budget = budget.saturating_sub(self.close_until(host, self.clock.forced_end_ns, budget, emit));
        }
    }

    /// Closes the windows of one host up to `limit_ns`, at most `budget`; returns how many.
    fn close_until(&mut self, host: u32, limit_ns: i64, budget: usize, emit: &mut Emit<'_>) -> usize {
        let mut at_ns = self.registry.hosts[host as usize].closed_ns;
        let devices = std::mem::take(&mut self.registry.hosts[host as usize].devices);
        // A GPU that left its host closed its minutes alone.
        self.closed_minutes.clear();
        let mut closed = 0;
        while at_ns < limit_ns && closed < budget {
            if limit_ns - at_ns > WALK_NS {
                let next_ns = devices.iter().map(|&d| next_content(&self.registry.devices[d as usize])).min().unwrap_or(i64::MAX);
                at_ns = at_ns.max(next_ns.min(limit_ns - PANE_NS));
            }
            for &device in &devices {
                self.close_device_window(device, at_ns, emit);
            }
            self.close_host_minutes(host, &devices, emit);
            at_ns += PANE_NS;
            closed += 1;
        }
        let state = self.registry.host_mut(host);
        state.devices = devices;
        let before_ns = std::mem::replace(&mut state.closed_ns, at_ns);
        if state.limiter.is_waiting() {
            let id = state.id.clone();
            state.limiter.flush(Some(&id), emit);
        }
        self.behind.remove(&(before_ns, host));
        self.behind.insert((at_ns, host));
        closed.max(1)
    }

    /// Closes the window of one GPU that starts at `start_ns`, and the minute and hour that end before or with it.
    fn close_device_window(&mut self, number: u32, start_ns: i64, emit: &mut Emit<'_>) {
        let end_ns = start_ns + PANE_NS;
        if self.registry.devices[number as usize].pulse.credited_ms < end_ns / NS_PER_MS {
            self.credit(number, plimsoll_schemas::time::LogTime(end_ns));
        }
        self.flush_coarser(number, start_ns, emit);
        let device = self.registry.device_mut(number);
        if let Some(at) = device.open.iter().position(|pane| pane.start_ns == start_ns) {
            let pane = device.open.remove(at);
            self.close_finest(number, pane, end_ns, emit);
        }
        self.flush_coarser(number, end_ns, emit);
    }

    /// Closes a 10 s pane on time and adds it to its minute. Samples were to be expected up to `until_ns`.
    fn close_finest(&mut self, number: u32, mut pane: Pane, until_ns: i64, emit: &mut Emit<'_>) {
        let facts = &self.registry.devices[number as usize].facts;
        let interval_ms = self.registry.hosts[facts.host as usize].facts.interval_ms;
        let (start_ms, end_ms) = (pane.start_ns / NS_PER_MS, until_ns.clamp(pane.start_ns, pane.start_ns + PANE_NS) / NS_PER_MS);
        pane.expected = expected(start_ms.max(facts.registered_at.millis()).min(end_ms), end_ms, interval_ms);
        pane.state.allocated_idle_ms = pane.state.allocated_idle_ms.min(pane.state.allocated_ms);
        self.forget_pane(number, Tier::TenSeconds, &pane);
        let device = self.registry.device_mut(number);
        device.pulse.load = Some(DeviceLoad::of(&pane, &device.facts));
        device.pulse_dirty = true;
        let minute_ns = floor(pane.start_ns, Tier::Minute.seconds() * NS_PER_S);
        self.registry.device_mut(number).minute.get_or_insert_with(|| Box::new(Pane::new(minute_ns))).merge(&pane);
        self.alert_window(number, &pane, emit);
        self.emit_window(number, Tier::TenSeconds, pane, emit);
    }

    /// Closes the minute and the hour of a GPU that end at or before `until_ns`.
    fn flush_coarser(&mut self, number: u32, until_ns: i64, emit: &mut Emit<'_>) {
        let ended = |pane: &Pane, tier: Tier| pane.start_ns + tier.seconds() * NS_PER_S <= until_ns;
        let device = self.registry.device_mut(number);
        if let Some(mut minute) = device.minute.take_if(|pane| ended(pane, Tier::Minute)) {
            minute.stats.settle();
            let hour_ns = floor(minute.start_ns, Tier::Hour.seconds() * NS_PER_S);
            // The hour of an earlier minute may have ended long before this one.
            if let Some(hour) = device.hour.take_if(|hour| hour.start_ns != hour_ns) {
                self.close_coarse(number, Tier::Hour, *hour, emit);
            }
            let device = self.registry.device_mut(number);
            device.hour.get_or_insert_with(|| Box::new(Pane::new(hour_ns))).merge(&minute);
            self.closed_minutes.push(DeviceMinute::of(number, device, &minute, &self.meta.settings));
            self.judge_use(number, &minute, emit);
            self.close_coarse(number, Tier::Minute, *minute, emit);
        }
        if let Some(hour) = self.registry.device_mut(number).hour.take_if(|pane| ended(pane, Tier::Hour)) {
            self.close_coarse(number, Tier::Hour, *hour, emit);
        }
    }

    fn close_coarse(&mut self, number: u32, tier: Tier, pane: Pane, emit: &mut Emit<'_>) {
        self.forget_pane(number, tier, &pane);
        self.emit_window(number, tier, pane, emit);
    }

    /// Emits the row of an on-time pane.
    fn emit_window(&mut self, number: u32, tier: Tier, pane: Pane, emit: &mut Emit<'_>) {
        // Only a GPU that was retired inside this window and came back has closed a part of it before.
        let part = self.registry.devices[number as usize].parts.get(&(tier, pane.start_ns)).copied().unwrap_or(0);
        if part > 0 {
            self.count_part(number, tier, pane.start_ns, part + 1);
        }
        let row = self.window_row(number, pane, part);
        emit.row(Row::Window(tier, Box::new(row)));
    }

    /// A closed pane as a row.
    pub(crate) fn window_row(&self, number: u32, pane: Pane, part: u32) -> WindowRow {
        let facts = &self.registry.devices[number as usize].facts;
        let host = &self.registry.hosts[facts.host as usize];
        let (tenant, lease_id) = pane.top_holder().map(|holder| (holder.tenant.clone(), holder.lease_id.clone())).unzip();
        WindowRow {
            window_at: EventTime(pane.start_ns),
            device_key: facts.key,
            host: host.id.clone(),
            gpu_index: facts.gpu.index,
            model: facts.gpu.model.clone(),
            pool: host.facts.placement.pool.clone(),
            part,
            expected: pane.expected,
            stats: pane.stats,
            state: pane.state,
            tenant,
            lease_id,
        }
    }

    /// Closes everything that is open for a GPU that leaves its host, and notes that a part of those windows is out.
    pub(crate) fn close_all(&mut self, number: u32, emit: &mut Emit<'_>) {
        self.credit(number, emit.logged_at());
        while let Some(&(tier, start_ns)) = self.registry.devices[number as usize].late.keys().next() {
            self.close_late(number, tier, start_ns, emit);
        }
        let open = std::mem::take(&mut self.registry.device_mut(number).open);
        for pane in open {
            let start_ns = pane.start_ns;
            self.flush_coarser(number, start_ns, emit);
            self.close_finest(number, pane, emit.logged_at().0, emit);
            self.note_part(number, Tier::TenSeconds, start_ns);
        }
        for tier in [Tier::Minute, Tier::Hour] {
            let device = &self.registry.devices[number as usize];
            let start = if tier == Tier::Minute { device.minute.as_ref() } else { device.hour.as_ref() }.map(|pane| pane.start_ns);
            if let Some(start_ns) = start {
                self.flush_coarser(number, start_ns + tier.seconds() * NS_PER_S, emit);
                self.note_part(number, tier, start_ns);
            }
        }
    }

    fn note_part(&mut self, number: u32, tier: Tier, start_ns: i64) {
        let parts = self.registry.devices[number as usize].parts.get(&(tier, start_ns)).copied().unwrap_or(0);
        self.count_part(number, tier, start_ns, parts.max(1));
    }
}

/// Start of the earliest window for which a GPU has something to say, ns.
fn next_content(device: &Device) -> i64 {
    let open = device.open.first().map_or(i64::MAX, |pane| pane.start_ns);
    let credit = if device.facts.using == Use::Unknown { i64::MAX } else { floor(device.pulse.credited_ms.saturating_mul(NS_PER_MS), PANE_NS) };
    open.min(credit)
}
