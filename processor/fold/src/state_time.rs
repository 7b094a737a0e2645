//! Where a GPU stands and what its time is used for: one place that decides both, and credits log time to the open panes.

use plimsoll_schemas::id::{HostId, TenantId};
use plimsoll_schemas::inventory::HostEvent;
use plimsoll_schemas::out::{DeviceChanged, DeviceState, HostChanged, Payload};
use plimsoll_schemas::row::{DeviceEventRow, DeviceRow, HostRow, Row};
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{EventTime, LogTime};

use crate::State;
use crate::clock::floor;
use crate::emit::Emit;
use crate::registry::{Device, Facts, Health, Host, Reservation, Silence, Use};
use crate::window::PANE_NS;
use plimsoll_schemas::time::NS_PER_MS;

/// Length of the finest window, ms.
pub(crate) const PANE_MS: i64 = PANE_NS / NS_PER_MS;

impl Facts {
    /// Where the GPU stands, the gravest first.
    pub fn state(&self, host: &Host) -> DeviceState {
        match (self.faults.health(), self.silence) {
            (Health::Failed, _) => DeviceState::Failed,
            (_, Silence::Lost) => DeviceState::Lost,
            (_, Silence::Stale) => DeviceState::Stale,
            (Health::Degraded, Silence::Heard) => DeviceState::Degraded,
            (Health::Ok, Silence::Heard) if self.draining_ns.is_some() => DeviceState::Draining,
            (Health::Ok, Silence::Heard) if (self.drains || host.drains) && self.reservations.is_empty() => DeviceState::Drained,
            (Health::Ok, Silence::Heard) if self.cordoned || host.cordoned => DeviceState::Cordoned,
            (Health::Ok, Silence::Heard) => DeviceState::Ok,
        }
    }

    /// What its time counts as. Leased time is leased whatever else is wrong: the holder pays for it.
    fn using(&self, state: DeviceState, enrolled: bool, heard: bool, promised: bool) -> Use {
        if self.retired {
            return Use::Unknown;
        }
        match state {
            DeviceState::Draining => Use::Drained,
            _ if promised || (self.draining_ns.is_none() && !self.reservations.is_empty()) => Use::Allocated,
            DeviceState::Failed | DeviceState::Degraded | DeviceState::Lost | DeviceState::Stale => Use::Unhealthy,
            DeviceState::Cordoned | DeviceState::Drained => Use::Drained,
            DeviceState::Ok if enrolled && heard && self.cut => Use::Cut,
            DeviceState::Ok if enrolled && heard => Use::Free,
            DeviceState::Ok => Use::Unknown,
        }
    }
}

/// What moved a GPU from one state to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cause<'a> {
    /// Such as `stale` or `xid`.
    pub kind: &'a str,
    /// Its number, such as the XID's.
    pub code: Option<i32>,
    /// For people.
    pub detail: Option<&'a str>,
    /// When it happened on the host; absent = now, by the log.
    pub at: Option<EventTime>,
}

impl<'a> Cause<'a> {
    /// A cause without number or detail.
    pub const fn of(kind: &'a str) -> Self {
        Self { kind, code: None, detail: None, at: None }
    }

    /// What a host says that happened.
    pub const fn with(event: &'a HostEvent, detail: Option<&'a str>) -> Self {
        Self { kind: event.kind.code(), code: None, detail, at: Some(event.happened_at) }
    }
}

impl State {
    /// Works out anew where a GPU stands after something about it changed; says so if it differs, and returns whether it did.
    pub(crate) fn restate(&mut self, number: u32, cause: Cause<'_>, emit: &mut Emit<'_>) -> bool {
        let device = &self.registry.devices[number as usize];
        let host = &self.registry.hosts[device.facts.host as usize];
        let state = device.facts.state(host);
        let promised = self.promised_of(device).next().is_some();
        let using = device.facts.using(state, self.is_enrolled(host), device.pulse.live, promised);
        if using != device.facts.using {
            self.credit(number, emit.logged_at());
            let device = self.registry.device_mut(number);
            device.facts.using = using;
            device.facts_dirty = true;
            let host = device.facts.host;
            self.recount(host, emit.logged_at());
        }
        let facts = &self.registry.devices[number as usize].facts;
        let moved = state != facts.published && !facts.retired;
        if moved {
            self.close_device_version(number, emit);
            self.open_device_version(number, state, cause, emit);
        }
        self.alert_gpu(number, emit);
        moved
    }

    /// Whether a host may take placements.
    pub(crate) fn is_enrolled(&self, host: &Host) -> bool {
        !host.expelled && (self.meta.enrol_all || host.enrolled)
    }

    /// Credits the time since the last credit to what the GPU was used for, window by window.
    pub(crate) fn credit(&mut self, number: u32, until: LogTime) {
        let until_ms = until.millis();
        let device = self.registry.device_mut(number);
        let from_ms = device.pulse.credited_ms;
        if until_ms <= from_ms {
            return;
        }
        device.pulse.credited_ms = until_ms;
        device.pulse_dirty = true;
        if matches!(device.facts.using, Use::Unknown | Use::Cut) {
            return;
        }
        let promised: Vec<Reservation> = self.promised_of(&self.registry.devices[number as usize]).cloned().collect();
        let device = self.registry.device_mut(number);
        let reservations = std::mem::take(&mut device.facts.reservations);
        let holding = if reservations.is_empty() { &promised } else { &reservations };
        let holders = if device.facts.using == Use::Allocated { self.leases.holders(holding) } else { Vec::new() };
        let mut at_ms = from_ms;
        while at_ms < until_ms {
            let start_ms = floor(at_ms, PANE_MS);
            let end_ms = (start_ms + PANE_MS).min(until_ms);
            credit_pane(device, start_ms, end_ms - at_ms, &holders);
            at_ms = end_ms;
        }
        device.facts.reservations = reservations;
    }

    /// Opens the next version of a GPU in `devices` and says what moved it.
    pub(crate) fn open_device_version(&mut self, number: u32, state: DeviceState, cause: Cause<'_>, emit: &mut Emit<'_>) {
        let now = emit.logged_at();
        let device = self.registry.device_mut(number);
        device.facts.valid_from = now;
        device.facts.published = state;
        device.facts_dirty = true;
        let device = &self.registry.devices[number as usize];
        let host = &self.registry.hosts[device.facts.host as usize].id;
        emit.row(Row::Device(Box::new(device_row(device, host, None))));
        self.say_device(number, state, cause, emit);
        self.note_unwell(number, state, cause, emit);
    }

    /// Ends the version that stands in `devices`, unless it began at this very instant and is about to be replaced. Call before the
    /// facts change.
    pub(crate) fn close_device_version(&self, number: u32, emit: &mut Emit<'_>) {
        let device = &self.registry.devices[number as usize];
        let now = emit.logged_at();
        if device.facts.valid_from != LogTime::default() && device.facts.valid_from < now {
            let host = &self.registry.hosts[device.facts.host as usize].id;
            emit.row(Row::Device(Box::new(device_row(device, host, Some(now)))));
        }
    }

    /// Says on OUT and in `device_events` what moved a GPU.
    pub(crate) fn say_device(&self, number: u32, state: DeviceState, cause: Cause<'_>, emit: &mut Emit<'_>) {
        let device = &self.registry.devices[number as usize];
        let host = &self.registry.hosts[device.facts.host as usize].id;
        emit.row(Row::DeviceEvent(Box::new(DeviceEventRow {
            happened_at: cause.at.unwrap_or(EventTime(emit.logged_at().0)),
            device_key: Some(device.facts.key),
            host: host.clone(),
            kind: cause.kind.to_owned(),
            code: cause.code,
            severity: severity(state).to_owned(),
            detail: cause.detail.map(str::to_owned),
        })));
        emit.out(
            &OutSubject::Device,
            Payload::Device(DeviceChanged {
                device_uuid: device.uuid().clone(),
                device_key: device.facts.key,
                host: host.clone(),
                slot: device.facts.gpu.slot,
                state,
                cause: cause.kind.to_owned(),
                detail: cause.detail.map(str::to_owned).or_else(|| cause.code.map(|code| code.to_string())),
            }),
        );
    }

    /// Opens the next version of a host in `hosts`, without a word about it elsewhere.
    pub(crate) fn open_host_version(&mut self, number: u32, emit: &mut Emit<'_>) {
        let host = self.registry.host_mut(number);
        host.valid_from = emit.logged_at();
        emit.row(Row::Host(Box::new(host_row(host, None))));
    }

    /// Opens the next version of a host in `hosts` and says what moved it.
    pub(crate) fn publish_host(&mut self, number: u32, cause: &str, emit: &mut Emit<'_>) {
        let now = emit.logged_at();
        let host = self.registry.host_mut(number);
        let state = match host.silence {
            Silence::Lost => DeviceState::Lost,
            Silence::Stale => DeviceState::Stale,
            Silence::Heard if host.cordoned => DeviceState::Cordoned,
            Silence::Heard => DeviceState::Ok,
        };
        host.published = state;
        self.open_host_version(number, emit);
        let host = &self.registry.hosts[number as usize];
        emit.row(Row::DeviceEvent(Box::new(DeviceEventRow {
            happened_at: EventTime(now.0),
            device_key: None,
            host: host.id.clone(),
            kind: cause.to_owned(),
            code: None,
            severity: severity(state).to_owned(),
            detail: None,
        })));
        let payload = HostChanged { host: host.id.clone(), state, cause: cause.to_owned(), gpu_count: u32::from(host.facts.gpu_count) };
        emit.out(&OutSubject::Device, Payload::Host(payload));
        self.alert_host(number, emit);
    }

    /// Ends the version that stands in `hosts`; call before the host's facts change.
    pub(crate) fn close_host_version(&self, number: u32, emit: &mut Emit<'_>) {
        let host = &self.registry.hosts[number as usize];
        if host.valid_from < emit.logged_at() {
            emit.row(Row::Host(Box::new(host_row(host, Some(emit.logged_at())))));
        }
    }
}

fn credit_pane(device: &mut Device, start_ms: i64, ms: i64, holders: &[(&str, &TenantId)]) {
    let using = device.facts.using;
    let pane = device.pane(start_ms * NS_PER_MS);
    pane.dirty = true;
    match using {
        Use::Unknown | Use::Cut => {}
        Use::Allocated => pane.state.allocated_ms += ms,
        Use::Free => pane.state.free_ms += ms,
        Use::Unhealthy => pane.state.unhealthy_ms += ms,
        Use::Drained => pane.state.drained_ms += ms,
    }
    for (lease_id, tenant) in holders {
        pane.hold(lease_id, tenant, ms);
    }
}

fn severity(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Ok | DeviceState::Cordoned | DeviceState::Draining | DeviceState::Drained => "info",
        DeviceState::Degraded | DeviceState::Stale => "warn",
        DeviceState::Failed | DeviceState::Lost => "fatal",
    }
}

fn device_row(device: &Device, host: &HostId, valid_to: Option<LogTime>) -> DeviceRow {
    DeviceRow {
        device_key: device.facts.key,
        valid_from: device.facts.valid_from,
        valid_to,
        device_uuid: device.uuid().clone(),
        host: host.clone(),
        slot: device.facts.gpu.slot,
        state: device.facts.published,
        gpu: device.facts.gpu.clone(),
    }
}

fn host_row(host: &Host, valid_to: Option<LogTime>) -> HostRow {
    HostRow {
        host: host.id.clone(),
        valid_from: host.valid_from,
        valid_to,
        hostname: host.facts.hostname.clone(),
        placement: host.facts.placement.clone(),
        agent_version: host.facts.agent_version.clone(),
        gpu_count: host.facts.gpu_count,
        cpu_cores: host.facts.cpu_cores,
        ram_bytes: host.facts.ram_bytes,
        state: host.published,
        clock_skew_ms: host.skew.published_ms,
    }
}
