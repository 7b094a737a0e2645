//! What happens on a host: XIDs, lost and returned GPUs, frames given up. Hardware faults gate placement, application errors do not.

use plimsoll_schemas::inventory::{EventKind, HostEvent};
use plimsoll_schemas::out::{Gap, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::row::{DeviceEventRow, Row, Tier};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::EventTime;

use crate::State;
use crate::clock::floor;
use crate::emit::Emit;
use crate::late::BACKFILL_NS_MAX;
use crate::ranges::{Class, Seen};
use crate::refuse::Refusal;
use crate::registry::Health;
use crate::state_time::Cause;
use crate::window::PANE_NS;

/// XIDs after which a GPU needs a reset or repair (NVIDIA's catalogue: RESET_GPU without 109, RESTART_BM, CHECK_MECHANICALS,
/// CONTACT_SUPPORT). 109 follows an application's hang and is no verdict on the board.
const FATAL: &[u32] = &[46, 54, 62, 64, 79, 95, 110, 119, 120, 136, 140, 142, 143, 155, 156, 158];
/// XIDs after which it works with a fault: double-bit ECC, NVLink.
const DEGRADING: &[u32] = &[48, 74, 144, 145, 146, 147, 148, 149, 150];

/// What an XID says about the board.
fn health_after(xid: u32) -> Health {
    if FATAL.contains(&xid) {
        Health::Failed
    } else if DEGRADING.contains(&xid) {
        Health::Degraded
    } else {
        Health::Ok
    }
}

impl State {
    /// Folds a host event.
    pub(crate) fn event(&mut self, event: &HostEvent, emit: &mut Emit<'_>) {
        let Some(host) = self.registry.host_number(&event.host) else {
            return self.refuse_event(None, event, Reason::DeviceNotRegistered, event.host.to_string(), emit);
        };
        if self.mark(host, event.epoch, Class::Event, event.sequence) != Seen::New {
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
            (EventKind::GpuLost, Some(number)) => self.unwell(number, Health::Failed, None, event, emit),
            (EventKind::GpuReturned, Some(number)) => {
                self.set_health(number, Health::Ok);
                self.unwell(number, Health::Ok, None, event, emit);
            }
            (EventKind::Gap { from_sequence, to_sequence, cause }, _) => {
                self.given_up(host, event, *from_sequence, *to_sequence, cause, emit);
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
            (EventKind::Stopping | EventKind::Xid { .. } | EventKind::GpuLost | EventKind::GpuReturned, number) => {
                self.event_row(number, event, None, "info", event.detail.clone(), emit);
            }
        }
    }

    fn xid(&mut self, number: u32, code: u32, event: &HostEvent, emit: &mut Emit<'_>) {
        self.count_xid(number, event.happened_at, emit);
        self.unwell(number, health_after(code), Some(code), event, emit);
    }

    /// Counts an XID in the window in which it happened, in a late part of it if that has closed. One from the future, or older than
    /// the oldest sample that still counts, is in `device_events` only.
    fn count_xid(&mut self, number: u32, at: EventTime, emit: &mut Emit<'_>) {
        let start_ns = floor(at.0, PANE_NS);
        let age_ns = emit.logged_at().0.saturating_sub(at.0);
        if !(-PANE_NS..=BACKFILL_NS_MAX).contains(&age_ns) {
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

    /// Notes how well a GPU is, if that is worse than before, and that something happened to it.
    fn unwell(&mut self, number: u32, health: Health, code: Option<u32>, event: &HostEvent, emit: &mut Emit<'_>) {
        if health > self.registry.devices[number as usize].facts.health {
            self.set_health(number, health);
        }
        let code = code.map(|code| i32::try_from(code).unwrap_or(i32::MAX));
        let cause = Cause { kind: event.kind.code(), code, detail: event.detail.as_deref() };
        if !self.restate(number, cause, emit) {
            let severity = match health {
                Health::Ok => "info",
                Health::Degraded => "warn",
                Health::Failed => "fatal",
            };
            self.event_row(Some(number), event, code, severity, event.detail.clone(), emit);
        }
    }

    /// Frames that the agent gave up count as dealt with, and are named.
    fn given_up(&mut self, host: u32, event: &HostEvent, from: u64, to: u64, cause: &str, emit: &mut Emit<'_>) {
        if from == 0 || from > to {
            return self.refuse_event(Some(host), event, Reason::Inconsistent, format!("gap {from}..={to}"), emit);
        }
        let state = self.registry.host_mut(host);
        let new = state.ranges.entry(event.epoch, Class::Sample).map_or(0, |entry| {
            entry.dirty = true;
            entry.ranges.add(from, to)
        });
        self.event_row(None, event, None, "warn", Some(format!("{from}..={to}, {new} never seen: {cause}")), emit);
        let gap = Gap {
            host: Some(event.host.clone()),
            epoch: Some(event.epoch),
            from_sequence: from,
            to_sequence: to,
            state: "loss".to_owned(),
            cause: cause.to_owned(),
        };
        emit.out(&OutSubject::Gap, Payload::Gap(gap));
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
