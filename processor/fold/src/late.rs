//! Late samples: a closed window is never touched again; what comes later opens a part of it that holds only late contributions.
//!
//! A part closes after a minute of live clock and is added to the minute and the hour: to the open pane if there still is one, else
//! to a late part of that. Parts of one window add up to the whole.

use plimsoll_schemas::row::{Row, Tier};
use plimsoll_schemas::time::NS_PER_S;

use crate::State;
use crate::clock::floor;
use crate::control::ns;
use crate::emit::Emit;
use crate::registry::LatePane;
use crate::timers::Timer;
use crate::window::{Arrival, Pane};

/// Most open parts of one GPU; one more closes the one opened first.
const OPEN_MAX: usize = 1_024;
/// Most windows of one GPU whose parts are numbered; beyond it the oldest window starts again at 1 (rows stay apart by position).
const NUMBERED_MAX: usize = 1_024;

impl State {
    /// Adds a sample to the late part of its 10 s window.
    pub(crate) fn add_late(&mut self, number: u32, start_ns: i64, arrival: &Arrival<'_>, emit: &mut Emit<'_>) {
        let late = self.late_pane(number, Tier::TenSeconds, start_ns, emit);
        late.pane.add(&Arrival { idle_leased: false, ..*arrival });
        late.pane.stats.late = late.pane.stats.late.saturating_add(1);
    }

    /// The open late part of a window, made if there is none.
    pub(crate) fn late_pane(&mut self, number: u32, tier: Tier, start_ns: i64, emit: &mut Emit<'_>) -> &mut LatePane {
        let live_ns = self.clock.live_ns;
        let late = &self.registry.devices[number as usize].late;
        if !late.contains_key(&(tier, start_ns)) {
            if late.is_empty() {
                self.timers.set(live_ns + ns(self.meta.settings.late_part_ms), Timer::Late(number));
            }
            if late.len() >= OPEN_MAX
                && let Some((_, (tier, start_ns))) = late.iter().map(|(&key, pane)| (pane.opened_ns, key)).min()
            {
                self.close_late(number, tier, start_ns, emit);
            }
        }
        self.registry.device_mut(number).late.entry((tier, start_ns)).or_insert_with(|| LatePane { pane: Pane::new(start_ns), opened_ns: live_ns })
    }

    /// When the earliest late part of a GPU closes, live clock in ns.
    pub(crate) fn late_deadline(&self, number: u32) -> Option<i64> {
        self.registry.devices[number as usize].late.values().map(|late| late.opened_ns + ns(self.meta.settings.late_part_ms)).min()
    }

    /// Sets the timer of a GPU's late parts.
    pub(crate) fn wait_for_late(&mut self, number: u32) {
        if let Some(at_ns) = self.late_deadline(number) {
            self.timers.set(at_ns, Timer::Late(number));
        }
    }

    /// Closes the late parts of a GPU that are due.
    pub(crate) fn close_late_due(&mut self, number: u32, emit: &mut Emit<'_>) {
        let opened_until_ns = self.clock.live_ns - ns(self.meta.settings.late_part_ms);
        let due: Vec<(Tier, i64)> =
            self.registry.devices[number as usize].late.iter().filter(|(_, late)| late.opened_ns <= opened_until_ns).map(|(&key, _)| key).collect();
        for (tier, start_ns) in due {
            self.close_late(number, tier, start_ns, emit);
        }
    }

    /// Closes one late part.
    pub(crate) fn close_late(&mut self, number: u32, tier: Tier, start_ns: i64, emit: &mut Emit<'_>) {
        let Some(LatePane { pane, .. }) = self.registry.device_mut(number).late.remove(&(tier, start_ns)) else { return };
        self.forget_late(number, tier, &pane);
        if let Some(coarser) = tier.coarser() {
            self.roll_up(number, coarser, &pane, emit);
        }
        let part = self.registry.devices[number as usize].parts.get(&(tier, start_ns)).copied().unwrap_or(1);
        self.count_part(number, tier, start_ns, part + 1);
        let row = self.window_row(number, pane, part);
        emit.row(Row::Window(tier, Box::new(row)));
    }

    /// Adds a closed late part to the coarser window it lies in.
    fn roll_up(&mut self, number: u32, tier: Tier, pane: &Pane, emit: &mut Emit<'_>) {
        let start_ns = floor(pane.start_ns, tier.seconds() * NS_PER_S);
        let device = self.registry.device_mut(number);
        let open = match tier {
            Tier::TenSeconds => None,
            Tier::Minute => device.minute.as_deref_mut(),
            Tier::Hour => device.hour.as_deref_mut(),
        };
        match open.filter(|open| open.start_ns == start_ns) {
            Some(open) => open.merge(pane),
            None => self.late_pane(number, tier, start_ns, emit).pane.merge(pane),
        }
    }

    /// Notes how many parts of a window were closed.
    pub(crate) fn count_part(&mut self, number: u32, tier: Tier, start_ns: i64, parts: u32) {
        let device = self.registry.device_mut(number);
        device.parts.insert((tier, start_ns), parts);
        self.dirty_parts.insert((number, tier, start_ns));
        let device = &mut self.registry.devices[number as usize];
        if device.parts.len() > NUMBERED_MAX
            && let Some(&oldest) = device.parts.keys().min_by_key(|&&(tier, start_ns)| (start_ns, tier))
        {
            device.parts.remove(&oldest);
            self.dirty_parts.insert((number, oldest.0, oldest.1));
        }
    }
}
