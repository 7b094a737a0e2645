//! What happens on a host: XIDs, lost and returned GPUs, frames given up. Hardware faults gate placement, application errors do not.

use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::inventory::{EventKind, HostEvent, Remap};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::row::{DeviceEventRow, Row, Tier};
use plimsoll_schemas::time::EventTime;

use crate::State;
use crate::clock::floor;
use crate::control::ns;
use crate::emit::Emit;
use crate::faults::Faults;
use crate::ranges::Seen;
use crate::refuse::Refusal;
use crate::registry::Health;
use crate::state_time::Cause;
use crate::window::PANE_NS;
use crate::xid;

impl State {
    /// Folds a host event.
    pub(crate) fn event(&mut self, event: &HostEvent, emit: &mut Emit<'_>) {
        let Some(host) = self.registry.host_number(&event.host) else {
            return self.refuse_event(None, event, Reason::DeviceNotRegistered, event.host.to_string(), emit);
        };
        if self.mark(host, event.epoch, Class::Event, event.sequence, emit) != Seen::New {
            return;
        }
        let number = match &event.uuid {
            None => None,
            Some(uuid) => match self.registry.device_number(uuid).filter(|&d| self.registry.devices[d as usize].facts.host == host) {
                Some(number) => Some(number),
                None => return self.refuse_event(Some(host), event, Reason::DeviceNotRegistered, uuid.to_string(), emit),
            },
        };
        match (&event.kind, number) {
            (EventKind::Xid { code }, Some(number)) => self.xid(number, *code, event, emit),
            (EventKind::GpuLost, Some(number)) => {
                self.change_faults(number, |faults| faults.lost = true);
                self.say_fault(number, Cause::with(event, event.detail.as_deref()), Health::Failed, emit);
            }
            (EventKind::GpuReturned, Some(number)) => {
                self.change_faults(number, Faults::clear_on_return);
                self.say_fault(number, Cause::with(event, event.detail.as_deref()), Health::Ok, emit);
            }
            (EventKind::Ecc { volatile, aggregate }, Some(number)) => {
                let detail = format!("{volatile} uncorrected errors since the driver was loaded, {aggregate} in the board's life");
                self.note_ecc(number, *volatile, Some(&detail), emit);
            }
            (EventKind::Remap { state, rows }, Some(number)) => self.remap(number, *state, *rows, event, emit),
            (&EventKind::Gap { from_sequence, to_sequence, class, of_epoch, ref cause }, _) => {
                let epoch = of_epoch.unwrap_or(event.epoch);
                self.given_up(host, event, (epoch, class), (from_sequence, to_sequence), cause, emit);
            }
            (EventKind::Refused { reason, raw }, number) => {
                let device = number.map(|d| self.registry.devices[d as usize].facts.key);
                let refusal = Refusal {
                    at: Some(event.happened_at),
                    device,
                    by_agent: true,
                    epoch: Some(event.epoch),
                    sequence: Some(event.sequence),
                    ..Refusal::new(*reason, raw.clone())
                };
                self.refuse(Some(host), Some(&event.host), &format!("event.{}", event.host), refusal, emit);
            }
            (EventKind::ClockStep { step_ms }, number) => {
                self.event_row(number, event, None, "warn", Some(format!("{step_ms} ms")), emit);
            }
            (EventKind::SamplerHung { hung_ms }, number) => {
                self.event_row(number, event, None, "warn", Some(format!("{hung_ms} ms")), emit);
            }
            (
                EventKind::Stopping
                | EventKind::Xid { .. }
                | EventKind::Ecc { .. }
                | EventKind::Remap { .. }
                | EventKind::GpuLost
                | EventKind::GpuReturned,
                number,
            ) => {
                self.event_row(number, event, None, "info", event.detail.clone(), emit);
            }
        }
    }

    fn xid(&mut self, number: u32, code: u32, event: &HostEvent, emit: &mut Emit<'_>) {
        self.count_xid(number, event.happened_at, emit);
        self.change_faults(number, |faults| faults.note_xid(code));
        let class = xid::Class::of(code);
        let detail = match &event.detail {
            Some(detail) => format!("{code}: {}; {detail}", class.advice()),
            None => format!("{code}: {}", class.advice()),
        };
        let cause = Cause { code: Some(i32::try_from(code).unwrap_or(i32::MAX)), ..Cause::with(event, Some(&detail)) };
        self.say_fault(number, cause, class.health(), emit);
    }

    /// Counts an XID in the window in which it happened, in a late part of it if that has closed. One from the future, or older than
    /// the oldest sample that still counts, is in `device_events` only.
    fn count_xid(&mut self, number: u32, at: EventTime, emit: &mut Emit<'_>) {
        let start_ns = floor(at.0, PANE_NS);
        let age_ns = emit.logged_at().0.saturating_sub(at.0);
        if !(-PANE_NS..=ns(self.meta.settings.backfill_ms)).contains(&age_ns) {
            return;
        }
        let pane = if self.registry.is_open(number, start_ns) {
            self.registry.device_mut(number).pane(start_ns)
        } else {
            &mut self.late_pane(number, Tier::TenSeconds, start_ns, emit).pane
        };
        pane.stats.xid_count = pane.stats.xid_count.saturating_add(1);
        pane.dirty = true;
    }

    /// Rows of memory wait to be replaced, cannot be, or no longer wait.
    fn remap(&mut self, number: u32, state: Remap, rows: u64, event: &HostEvent, emit: &mut Emit<'_>) {
        let (what, health) = match state {
            Remap::Clean => ("nothing waits", Health::Ok),
            Remap::Pending => ("waits for a reset", Health::Degraded),
            Remap::Failed => ("has failed", Health::Failed),
        };
        self.change_faults(number, |faults| faults.remap = state);
        let detail = format!("{what}; rows remapped after uncorrected errors: {rows}");
        self.say_fault(number, Cause::with(event, Some(&detail)), health, emit);
    }

    /// Says what was noted about a GPU: by its new state if that moved, else by a row in `device_events`.
    pub(crate) fn say_fault(&mut self, number: u32, cause: Cause<'_>, health: Health, emit: &mut Emit<'_>) {
        if self.restate(number, cause, emit) {
            return;
        }
        let facts = &self.registry.devices[number as usize].facts;
        let severity = match health {
            Health::Ok => "info",
            Health::Degraded => "warn",
            Health::Failed => "fatal",
        };
        emit.row(Row::DeviceEvent(Box::new(DeviceEventRow {
            happened_at: cause.at.unwrap_or(EventTime(emit.logged_at().0)),
            device_key: Some(facts.key),
            host: self.registry.hosts[facts.host as usize].id.clone(),
            kind: cause.kind.to_owned(),
            code: cause.code,
            severity: severity.to_owned(),
            detail: cause.detail.map(str::to_owned),
        })));
    }

    /// What the agent no longer has counts as dealt with; what of it was missing is lost.
    fn given_up(&mut self, host: u32, event: &HostEvent, of: (u64, Class), (from, to): (u64, u64), cause: &str, emit: &mut Emit<'_>) {
        if from == 0 || from > to {
            return self.refuse_event(Some(host), event, Reason::Inconsistent, format!("gap {from}..={to}"), emit);
        }
        let (epoch, class) = of;
        let lost = self.lose(host, epoch, class, (from, to), cause, emit);
        let detail = format!("{} {from}..={to} of epoch {epoch}, {lost} never seen: {cause}", class.code());
        self.event_row(None, event, None, "warn", Some(detail), emit);
    }

    fn event_row(&self, number: Option<u32>, event: &HostEvent, code: Option<i32>, severity: &str, detail: Option<String>, emit: &mut Emit<'_>) {
        emit.row(Row::DeviceEvent(Box::new(DeviceEventRow {
            happened_at: event.happened_at,
            device_key: number.map(|d| self.registry.devices[d as usize].facts.key),
            host: event.host.clone(),
            kind: event.kind.code().to_owned(),
            code,
            severity: severity.to_owned(),
            detail,
        })));
    }

    fn refuse_event(&mut self, number: Option<u32>, event: &HostEvent, reason: Reason, raw: String, emit: &mut Emit<'_>) {
        let refusal = Refusal { at: Some(event.happened_at), epoch: Some(event.epoch), sequence: Some(event.sequence), ..Refusal::new(reason, raw) };
        self.refuse(number, Some(&event.host), &format!("event.{}", event.host), refusal, emit);
    }
}
