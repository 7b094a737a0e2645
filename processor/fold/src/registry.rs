//! Hosts and GPUs: who is registered, where each stands, and what is open for it. Dense numbers inside, names only at the border.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasherDefault;
use std::hint::black_box;

use plimsoll_schemas::id::{DeviceKey, GpuUuid, HostId};
use plimsoll_schemas::inventory::{Gpu, Placement};
use plimsoll_schemas::mig::Promise;
use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::row::Tier;
use plimsoll_schemas::sample::Sample;
use plimsoll_schemas::time::{EventTime, LogTime};
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;

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
    /// Whether a fresh live sample ever came since it was registered.
    pub live: bool,
    /// Live clock when a fresh sample came, ns.
    pub heard_ns: i64,
    /// Live clock since when every fresh sample showed it empty, ns.
    pub calm_ns: Option<i64>,
    /// Episodes that follow samples.
    pub sessions: Sessions,
    /// Live clock when the first one came, ns.
    pub live_ns: i64,
    /// State time is credited up to here, log time in ms.
    pub credited_ms: i64,
    /// How busy it was in its newest closed window.
    pub load: Option<DeviceLoad>,
}

/// A sample of the recent ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

/// What every sample asks of the facts, side by side: by themselves they are spread over many lines of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Glance {
    /// Bounds of its values.
    pub limits: Limits,
    pub slowdown_temperature_mk: Option<u64>,
    pub ecc: u64,
    pub draining_ns: Option<i64>,
    leased_from: Option<LogTime>,
    leased_before: Option<(LogTime, LogTime)>,
    /// Its host, by number.
    pub host: u32,
    pub retired: bool,
    pub hot: bool,
    pub silence: Silence,
}

impl Glance {
    fn of(facts: &Facts) -> Self {
        Self {
            limits: Limits::of(&facts.gpu),
            slowdown_temperature_mk: facts.gpu.slowdown_temperature_mk,
            ecc: facts.faults.ecc,
            draining_ns: facts.draining_ns,
            leased_from: facts.leased_from,
            leased_before: facts.leased_before,
            host: facts.host,
            retired: facts.retired,
            hot: facts.faults.hot,
            silence: facts.silence,
        }
    }

    /// Whether the GPU was leased at an instant of its host's clock.
    pub fn leased_at(&self, at: EventTime) -> bool {
        let inside = |from: LogTime, to: Option<LogTime>| at.0 >= from.0 && to.is_none_or(|to| at.0 < to.0);
        self.leased_from.is_some_and(|from| inside(from, None)) || self.leased_before.is_some_and(|(from, to)| inside(from, Some(to)))
    }
}

/// A registered GPU. What every sample touches comes first, and stays there: it is laid out as it is written.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(crate) struct Device {
    /// What it was when somebody looked last.
    pub glance: Glance,
    /// The facts have changed since the last commit, and the glance may be of older ones.
    pub facts_dirty: bool,
    pub pulse_dirty: bool,
    pub listed: bool,
    pub touched: bool,
    pub pulse: Pulse,
    /// Its newest samples; all but the newest are memory only.
    pub recent: Ring<Recent>,
    /// Open 10 s panes by start; seldom more than two, which lie here and not elsewhere: every sample changes one.
    pub open: SmallVec<[Pane; 2]>,
    pub facts: Facts,
    pub minute: Option<Box<Pane>>,
    pub hour: Option<Box<Pane>>,
    pub late: BTreeMap<(Tier, i64), LatePane>,
    /// How many parts of a window were closed, for windows with more than one.
    pub parts: BTreeMap<(Tier, i64), u32>,
    /// Panes and late parts that closed since the last commit and stand in the store.
    pub gone: Vec<(Kind, Tier, i64)>,
}

impl Device {
    pub fn new(facts: Facts) -> Self {
        Self {
            glance: Glance::of(&facts),
            facts_dirty: true,
            pulse_dirty: true,
            listed: false,
            touched: false,
            pulse: Pulse::default(),
            recent: Ring::default(),
            open: SmallVec::new(),
            facts,
            minute: None,
            hour: None,
            late: BTreeMap::new(),
            parts: BTreeMap::new(),
            gone: Vec::new(),
        }
    }

    /// Reads a little of everything that a sample will change, to no other end than that it comes into the cache. The GPUs of a frame are
    /// far apart in memory: read one after the other before they are folded, they are waited for together and not in turn.
    pub fn warm(&self) {
        let of_pane = self.open.last().map(|pane| {
            let stats = &pane.stats;
            (
                stats.covered_ms,
                stats.memory_used_mib_ms,
                stats.util_sketch.is_empty(),
                stats.energy_mj,
                stats.last.map(|last| last.sequence),
                stats.received,
            )
        });
        // The place of the oldest sample is where the next one goes.
        let oldest = self.recent.oldest().map(|&((at, ..), _)| at);
        black_box((of_pane, oldest, self.pulse.heard_ns, self.pulse.sessions.spread(), self.glance.silence, self.listed));
    }

    /// What a sample asks of the facts.
    #[inline]
    pub fn glance(&mut self) -> &Glance {
        self.look();
        &self.glance
    }

    /// Brings the glance up to date.
    #[inline]
    pub fn look(&mut self) {
        if self.facts_dirty {
            self.glance = Glance::of(&self.facts);
        }
        debug_assert_eq!(self.glance, Glance::of(&self.facts), "facts of {} have changed and are not marked as changed", self.uuid());
    }

    /// What stands in the store is what the facts are now.
    pub fn facts_are_stored(&mut self) {
        self.glance = Glance::of(&self.facts);
        self.facts_dirty = false;
    }

    /// Its newest sample.
    pub fn current(&self) -> Option<&Sample> {
        self.recent.current().map(|(_, recent)| &recent.sample)
    }

    pub fn uuid(&self) -> &GpuUuid {
        &self.facts.gpu.uuid
    }

    /// The open 10 s pane that starts at `start_ns`, made if there is none.
    #[inline]
    pub fn pane(&mut self, start_ns: i64) -> &mut Pane {
        let newest = self.open.len().wrapping_sub(1);
        if self.open.get(newest).is_some_and(|pane| pane.start_ns == start_ns) {
            return &mut self.open[newest];
        }
        self.other_pane(start_ns)
    }

    fn other_pane(&mut self, start_ns: i64) -> &mut Pane {
        let at = match self.open.iter().rposition(|pane| pane.start_ns <= start_ns) {
            Some(at) if self.open[at].start_ns == start_ns => return &mut self.open[at],
            Some(at) => at + 1,
            None => 0,
        };
        self.open.insert(at, Pane::new(start_ns));
        &mut self.open[at]
    }
}

/// The number of each host, for every frame to be looked up in. Nobody walks through it, so its order reaches nothing.
#[expect(clippy::disallowed_types, reason = "looked up, never walked")]
type Numbers = std::collections::HashMap<HostId, u32, BuildHasherDefault<SipHasher13>>;

/// Every host and GPU of a cell.
#[derive(Debug, Clone, Default)]
pub(crate) struct Registry {
    pub hosts: Vec<Host>,
    pub devices: Vec<Device>,
    numbers: Numbers,
    /// The same, in the order of the names.
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
        self.numbers.get(id).copied()
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
        self.numbers.insert(host.id.clone(), number);
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
