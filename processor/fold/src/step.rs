//! One record: time moves, what is due happens, then what the record says.

use plimsoll_schemas::id::Position;
use plimsoll_schemas::out::{Gap, GapState, Payload};
use plimsoll_schemas::record::{Body, Record, Refused};
use plimsoll_schemas::row::{GapRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{EventTime, LogTime};

use crate::clock::Moved;
use crate::control::ns;
use crate::emit::Emit;
use crate::gaps::ASKS_PER_RECORD;
use crate::refuse::Refusal;
use crate::timers::Timer;
use crate::{Effects, State};

/// Most timers that act per record; the rest waits for the next record. One that fires early only waits again and does not count: a state
/// rebuilt with exact deadlines has none of those, and must act at the same records.
const TIMERS_PER_RECORD: usize = 4_096;

impl State {
    /// Folds one record, appending what follows from it. A record at or before [`State::position`] was folded already: nothing happens.
    pub fn step(&mut self, record: &Record, effects: &mut Effects) {
        if record.position <= self.meta.position {
            return;
        }
        let before = std::mem::replace(&mut self.meta.position, record.position);
        self.asks_left = ASKS_PER_RECORD;
        let moved = self.clock.advance(record.logged_at, ns(self.meta.settings.close_delay_ms));
        let cell = self.cell.clone();
        let mut emit = Emit::new(&cell, effects, record.position, self.clock.logged_at, self.meta.chain);
        // Not by position: a log that was replaced before anything of it was folded begins with a position of its own.
        if self.policies.by_key.is_empty() {
            self.introduce(&mut emit);
        }
        self.contiguous(before, record.position, &mut emit);
        if let Moved::Stalled { before } = moved {
            self.stalled(before);
        }
        self.serve_timers(&mut emit);
        self.close_forced(&mut emit);
        match &record.body {
            Body::Frame(frame) => self.frame(frame, &mut emit),
            Body::Inventory(inventory) => self.inventory(inventory, &mut emit),
            Body::Event(event) => self.event(event, &mut emit),
            Body::Request(tenant, request) => self.request(tenant, request, &mut emit),
            Body::Control(control) => self.control(control, &mut emit),
            // Whoever reads a replaced log has begun its epoch before it folds anything of it.
            Body::Tick(_) | Body::Check(_) | Body::Epoch(_) => {}
            Body::Refused(refused) => self.refused(refused, &mut emit),
        }
        if self.queue.woken || matches!(record.body, Body::Tick(_)) {
            self.try_waiting(&mut emit);
        }
        self.keep_view();
        let counters = &self.meta.counters;
        self.meta.chain = emit.finish(&[counters.samples, counters.folded, counters.late, counters.rejected, counters.duplicate, self.meta.fence]);
    }

    /// A hole in the log's own sequence is said once: what is missing there is gone. What hosts had said there shows as gaps of theirs.
    fn contiguous(&self, before: Position, now: Position, emit: &mut Emit<'_>) {
        let expected = if now.epoch == before.epoch { before.sequence + 1 } else { return };
        if now.sequence > expected {
            let (from, to, at) = (expected, now.sequence - 1, emit.logged_at());
            let (state, cause) = (GapState::Loss, "the log no longer holds these records".to_owned());
            emit.row(Row::Gap(Box::new(GapRow {
                opened_at: at,
                host: None,
                epoch: u64::from(now.epoch.0),
                class: None,
                from_seq: from,
                to_seq: to,
                state,
                cause: cause.clone(),
                closed_at: Some(at),
            })));
            let gap = Gap { host: None, epoch: None, class: None, from_sequence: from, to_sequence: to, state, cause };
            emit.out(&OutSubject::Gap, Payload::Gap(gap));
        }
    }

    /// Log time jumped: what every GPU was used for meanwhile is unknown, so the time until the jump is credited and the rest is not.
    fn stalled(&mut self, before: LogTime) {
        let now_ms = self.clock.logged_at.millis();
        for number in 0..self.registry.devices.len() as u32 {
            self.credit(number, before);
            let device = self.registry.device_mut(number);
            device.pulse.credited_ms = device.pulse.credited_ms.max(now_ms);
            device.pulse_dirty = true;
        }
    }

    fn serve_timers(&mut self, emit: &mut Emit<'_>) {
        let live_ns = self.clock.live_ns;
        let mut acted = 0;
        while acted < TIMERS_PER_RECORD
            && let Some((queued_ns, timer)) = self.timers.pop(live_ns)
        {
            let deadline = match timer {
                Timer::Silence(host) => self.silence_deadline(host),
                Timer::Lease(fence) => self.lease_deadline(fence),
                Timer::Waiting(number) => self.waiting_deadline(number),
                Timer::Late(number) => self.late_deadline(number),
                Timer::Gap(host) => self.gap_deadline(host),
                Timer::Alert(subject, rule) => self.alert_deadline(subject, rule),
                Timer::Minute => Some(self.minute_deadline()),
                Timer::Load => self.load_deadline(),
            };
            match deadline {
                None => {}
                Some(at_ns) if at_ns != queued_ns => {
                    debug_assert!(at_ns > queued_ns, "{timer:?} is due at {at_ns}, and was queued only under {queued_ns}");
                    self.timers.set(at_ns, timer);
                }
                Some(_) => {
                    self.wake(timer, emit);
                    acted += 1;
                }
            }
        }
    }

    fn wake(&mut self, timer: Timer, emit: &mut Emit<'_>) {
        match timer {
            Timer::Silence(host) => {
                self.note_silence(host, emit);
                self.wait_for_silence(host);
            }
            Timer::Lease(fence) => self.expire(fence, emit),
            Timer::Waiting(number) => self.waited_enough(number, emit),
            Timer::Alert(subject, rule) => self.alert_due(subject, rule, emit),
            Timer::Minute => self.alert_minute(emit),
            Timer::Load => self.look_at_load(emit),
            Timer::Late(number) => {
                self.close_late_due(number, emit);
                self.wait_for_late(number);
            }
            Timer::Gap(host) => {
                self.tend_gaps(host, emit);
                self.wait_for_gaps(host);
            }
        }
    }

    /// A message that nobody can read: counted, shown, and that is all.
    fn refused(&mut self, refused: &Refused, emit: &mut Emit<'_>) {
        self.meta.counters.messages_refused += 1;
        let number = refused.host.as_ref().and_then(|host| self.registry.host_number(host));
        let refusal = Refusal { at: Some(EventTime(emit.logged_at().0)), ..Refusal::new(refused.reason, refused.detail.clone()) };
        self.refuse(number, refused.host.as_ref(), &refused.source, refusal, emit);
    }
}
