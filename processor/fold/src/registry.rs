//! Hosts and GPUs: who is registered, where each stands, and what is open for it. Dense numbers inside, names only at the border.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;

use plimsoll_schemas::id::{DeviceKey, GpuUuid, HostId};
use plimsoll_schemas::inventory::{Gpu, Placement};
use plimsoll_schemas::mig::Promise;
use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::row::Tier;
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::sketch::Sketch;
use plimsoll_schemas::time::{EventTime, LogTime};
use serde::{Deserialize, Serialize};

use crate::check::Limits;
use crate::durable::Kind;
use crate::episodes::{Sessions, Unwell};
use crate::faults::Faults;
use crate::host_window::Tally;
use crate::lease_use::LeaseUse;
use crate::paces::load::DeviceLoad;
use crate::placement::reputation::Reputation;
use crate::ranges::HostRanges;
use crate::refuse::Limiter;
use crate::ring::Ring;
use crate::skew::Skew;
use crate::window::{PANE_NS, Pane};

/// Most hosts in a cell; the next one is refused with `limit_reached`.
pub(crate) const HOSTS_MAX: usize = 20_000;
/// Most GPUs in a cell, retired ones included; the next one is refused with `limit_reached`.
pub(crate) const DEVICES_MAX: usize = 400_000;
/// Inventories remembered per host, so that frames of a backlog still find their slots.
pub(crate) const INVENTORIES_MAX: usize = 8;
/// No device stands in this slot.
pub(crate) const NO_DEVICE: u32 = u32::MAX;

/// How long ago something was heard from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) enum Silence {
    /// It speaks.
    #[default]
    Heard,
    /// Silent for three intervals and 5 s.
    Stale,
    /// Silent for 90 s or six intervals.
    Lost,
}

/// One inventory as frames need it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub epoch: u64,
    pub revision: u32,
    /// Device per slot; [`NO_DEVICE`] where there is none.
    pub slots: Vec<u32>,
}

/// What a host says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostFacts {
    pub hostname: String,
    pub agent_version: String,
    #[serde(with = "crate::as_json")]
    pub placement: Placement,
    pub cpu_cores: Option<u32>,
    pub ram_bytes: Option<u64>,
    pub gpu_count: u16,
    pub interval_ms: u32,
}

/// A registered host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Host {
    pub id: HostId,
    pub facts: HostFacts,
    /// Newest inventory: the agent's life and its revision.
    pub epoch: u64,
    pub revision: u32,
    /// The newest inventories, newest last.
    pub inventories: Vec<Known>,
    /// Its GPUs now, sorted by device key.
    pub devices: Vec<u32>,
    pub enrolled: bool,
    /// An operator took its enrolment back, also where every host is enrolled.
    pub expelled: bool,
    pub cordoned: bool,
    /// Its leases end and are not renewed; it is cordoned as well.
    pub drains: bool,
    /// Newest sampled_at of live frames - 2 s, at most log time; ns.
    pub watermark_ns: i64,
    /// Every window that ends here or before is closed; ns, a multiple of 10 s.
    pub closed_ns: i64,
    /// Live clock when it was last heard from, ns.
    pub heard_ns: i64,
    pub silence: Silence,
    /// The version that stands in `hosts`.
    pub valid_from: LogTime,
    pub published: DeviceState,
    /// Bound on rows of `rejected`.
    pub limiter: Limiter,
    /// How far its clock is from the log's.
    pub skew: Skew,
    /// How far it can be relied on.
    pub reputation: Reputation,
    /// How many GPUs of each model are free and leased, sorted by model.
    pub tallies: Vec<Tally>,
    #[serde(skip)]
    pub ranges: HostRanges,
    pub forgotten_epoch: u64,
    #[serde(skip)]
    pub dirty: bool,
    #[serde(skip)]
    pub touched: bool,
}

/// How well the hardware says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) enum Health {
    /// No complaint.
    #[default]
    Ok,
    /// Works, with a fault; takes no new placement.
    Degraded,
    /// Broken until somebody has looked at it.
    Failed,
}

/// What a GPU is used for, as state time counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Use {
    /// Not observed, or not enrolled.
    #[default]
    Unknown,
    /// Leased.
    Allocated,
    /// Placeable.
    Free,
    /// Not well, stale or lost.
    Unhealthy,
    /// Cordoned or draining.
    Drained,
    /// Well, and nobody's as a whole: what is placed on are its MIG instances, each a GPU of its own.
    Cut,
}

/// A part of a GPU that a lease holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservation {
    /// The lease's fence, which is its number.
    pub fence: u64,
    pub milli: u32,
    pub vram_bytes: u64,
    /// Live clock when it was granted, ns.
    pub since_ns: i64,
    /// MIG instances that the lease may make on it; none = it holds the GPU itself.
    pub promised: Vec<Promise>,
}

/// The newest sample of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Current {
    pub at: EventTime,
    pub epoch: u64,
    pub sequence: u64,
    pub sample: Sample,
}

impl Current {
    pub fn order(&self) -> (EventTime, u64, u64) {
        (self.at, self.epoch, self.sequence)
    }
}

/// What changes seldom about a GPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Facts {
    #[serde(with = "crate::as_json")]
    pub gpu: Gpu,
    pub key: DeviceKey,
    /// Its host, by number.
    pub host: u32,
    /// It is a board that is cut into MIG instances, or can be because MIG mode is on: nobody's as a whole.
    pub cut: bool,
    pub registered_at: LogTime,
    pub retired: bool,
    pub cordoned: bool,
    /// Its leases end and are not renewed; it is cordoned as well.
    pub drains: bool,
    pub faults: Faults,
    pub reservations: Vec<Reservation>,
    /// Live clock since when it drains: leases have ended and it is not yet shown to be free; ns.
    pub draining_ns: Option<i64>,
    /// Log time of the newest grant, and of the end of what was leased before.
    pub leased_from: Option<LogTime>,
    pub leased_before: Option<(LogTime, LogTime)>,
    /// The version that stands in `devices`.
    pub valid_from: LogTime,
    pub published: DeviceState,
    pub silence: Silence,
    pub using: Use,
    pub lease_use: LeaseUse,
    /// The episode of being unwell that goes on.
    pub unwell: Option<Unwell>,
}

/// What changes with every sample and every window.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Pulse {
    pub current: Option<Current>,
    /// Whether a fresh live sample ever came since it was registered.
    pub live: bool,
    /// Live clock when the first one came, ns.
    pub live_ns: i64,
    /// Live clock when a fresh sample came, ns.
    pub heard_ns: i64,
    /// Live clock since when every fresh sample showed it empty, ns.
    pub calm_ns: Option<i64>,
    /// State time is credited up to here, log time in ms.
    pub credited_ms: i64,
    /// Episodes that follow samples.
    pub sessions: Sessions,
    /// How busy it was in its newest closed window.
    pub load: Option<DeviceLoad>,
}

/// A sample of the recent ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recent {
    pub logged_at: LogTime,
    pub sample: Sample,
}

/// A late part of a window that had closed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LatePane {
    pub pane: Pane,
    /// Live clock when its first sample came, ns.
    pub opened_ns: i64,
}

/// A registered GPU.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    pub facts: Facts,
    pub pulse: Pulse,
    /// Open 10 s panes by start; seldom more than two.
    pub open: Vec<Pane>,
    pub minute: Option<Pane>,
    pub hour: Option<Pane>,
    pub late: BTreeMap<(Tier, i64), LatePane>,
    /// How many parts of a window were closed, for windows with more than one.
    pub parts: BTreeMap<(Tier, i64), u32>,
    /// Its newest samples; memory only.
    pub recent: Ring<Recent>,
    /// Bounds of its values, from the facts.
    pub limits: Limits,
    /// Panes and late parts that closed since the last commit and stand in the store.
    pub gone: Vec<(Kind, Tier, i64)>,
    pub facts_dirty: bool,
    pub pulse_dirty: bool,
    pub listed: bool,
    pub touched: bool,
}

impl Device {
    pub fn new(facts: Facts) -> Self {
        let limits = Limits::of(&facts.gpu);
        Self {
            facts,
            pulse: Pulse::default(),
            open: Vec::new(),
            minute: None,
            hour: None,
            late: BTreeMap::new(),
            parts: BTreeMap::new(),
            recent: Ring::default(),
            limits,
            gone: Vec::new(),
            facts_dirty: true,
            pulse_dirty: true,
            listed: false,
            touched: false,
        }
    }

    /// Reads a little of everything that a sample will change, to no other end than that it comes into the cache. The GPUs of a frame are
    /// far apart in memory: read one after the other before they are folded, they are waited for together and not in turn.
    pub fn warm(&self) {
        let (facts, pulse) = (&self.facts, &self.pulse);
        let of_pane = self.open.last().map(|pane| {
            let (stats, state) = (&pane.stats, &pane.state);
            let bins = |sketch: &Sketch| sketch.held_first();
            (stats.received, stats.last.map(|last| last.sequence), state.allocated_ms, bins(&stats.util_sketch), bins(&stats.memory_sketch))
        });
        let newest = self.recent.current().map(|&((at, ..), _)| at);
        let current = pulse.current.map(|current| (current.sequence, current.sample.wire(Field::Procs)));
        let sessions = pulse.sessions.newest_ns();
        black_box((of_pane, newest, current, pulse.heard_ns, sessions, facts.silence, facts.leased_from, facts.draining_ns, self.listed));
    }

    pub fn uuid(&self) -> &GpuUuid {
        &self.facts.gpu.uuid
    }

    /// The open 10 s pane that starts at `start_ns`, made if there is none.
    pub fn pane(&mut self, start_ns: i64) -> &mut Pane {
        let at = match self.open.iter().rposition(|pane| pane.start_ns <= start_ns) {
            Some(at) if self.open[at].start_ns == start_ns => return &mut self.open[at],
            Some(at) => at + 1,
            None => 0,
        };
        self.open.insert(at, Pane::new(start_ns));
        &mut self.open[at]
    }

    /// Whether it was leased at an instant of its host's clock.
    pub fn leased_at(&self, at: EventTime) -> bool {
        let inside = |from: LogTime, to: Option<LogTime>| at.0 >= from.0 && to.is_none_or(|to| at.0 < to.0);
        self.facts.leased_from.is_some_and(|from| inside(from, None)) || self.facts.leased_before.is_some_and(|(from, to)| inside(from, Some(to)))
    }
}

/// Every host and GPU of a cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    pub hosts: Vec<Host>,
    pub devices: Vec<Device>,
    pub by_host: BTreeMap<HostId, u32>,
    pub by_uuid: BTreeMap<GpuUuid, u32>,
    pub by_key: BTreeMap<DeviceKey, u32>,
    pub dirty_hosts: Vec<u32>,
    pub dirty_devices: Vec<u32>,
    /// What has changed since placement last looked, and the hosts that have said anew what they have.
    pub touched_hosts: Vec<u32>,
    pub touched_devices: Vec<u32>,
    pub restated: BTreeSet<u32>,
}

impl Registry {
    pub fn host_number(&self, id: &HostId) -> Option<u32> {
        self.by_host.get(id).copied()
    }

    pub fn device_number(&self, uuid: &GpuUuid) -> Option<u32> {
        self.by_uuid.get(uuid).copied()
    }

    /// The host, marked as changed.
    pub fn host_mut(&mut self, number: u32) -> &mut Host {
        self.touch_host(number);
        let host = &mut self.hosts[number as usize];
        if !host.dirty {
            host.dirty = true;
            self.dirty_hosts.push(number);
        }
        host
    }

    /// What is left on the host has changed.
    pub fn touch_host(&mut self, number: u32) {
        let host = &mut self.hosts[number as usize];
        if !host.touched {
            host.touched = true;
            self.touched_hosts.push(number);
        }
    }

    /// The device, listed as changed; the caller says which part of it.
    pub fn device_mut(&mut self, number: u32) -> &mut Device {
        let device = &mut self.devices[number as usize];
        if !device.touched {
            device.touched = true;
            self.touched_devices.push(number);
        }
        if !device.listed {
            device.listed = true;
            self.dirty_devices.push(number);
        }
        device
    }

    /// A host heard of for the first time.
    pub fn add_host(&mut self, host: Host) -> u32 {
        let number = self.hosts.len() as u32;
        self.by_host.insert(host.id.clone(), number);
        self.dirty_hosts.push(number);
        self.hosts.push(Host { dirty: true, ..host });
        number
    }

    /// A GPU heard of for the first time.
    pub fn add_device(&mut self, facts: Facts) -> u32 {
        let number = self.devices.len() as u32;
        self.by_uuid.insert(facts.gpu.uuid.clone(), number);
        self.by_key.insert(facts.key, number);
        self.dirty_devices.push(number);
        self.devices.push(Device { listed: true, ..Device::new(facts) });
        number
    }

    /// The GPUs of a host, sorted by key: the order in which everything about them is emitted.
    pub fn sort_devices(&self, devices: &mut [u32]) {
        devices.sort_unstable_by_key(|&d| self.devices[d as usize].facts.key);
    }

    /// Whether a window of this device that starts at `start_ns` is still open.
    pub fn is_open(&self, device: u32, start_ns: i64) -> bool {
        let facts = &self.devices[device as usize].facts;
        !facts.retired && start_ns.saturating_add(PANE_NS) > self.hosts[facts.host as usize].closed_ns
    }
}
