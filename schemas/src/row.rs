//! The rows that SQL shows, as the fold makes them. Column names, units and meaning are those of the SQL tables.
//!
//! Windows and events are appended once. Hosts, devices, leases, lease devices and gaps are versions: of one key the row with the
//! greatest (position, ordinal) holds.

use serde::{Deserialize, Serialize};

use crate::alert::{Limit, Scope, Severity, Signal};
use crate::ctl::Class;
use crate::id::{DeviceKey, GpuUuid, HostId, Position, Slot, TenantId};
use crate::out::{AlertState, DeviceState, GapState, LeaseState, Outcome};
use crate::policy::SetBy;
use crate::reason::Reason;
use crate::sketch::Sketch;
use crate::time::{EventTime, LogTime};

/// Every table whose rows the fold makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Table {
    /// One row per GPU and 10 s.
    GpuWindows10s = 1,
    /// One row per GPU and minute.
    GpuWindows1m = 2,
    /// One row per GPU and hour.
    GpuWindows1h = 3,
    /// GPUs: versions by key (device_key, valid_from).
    Devices = 4,
    /// Hosts: versions by key (host, valid_from).
    Hosts = 5,
    /// What was asked.
    PlacementRequests = 6,
    /// What was decided.
    PlacementDecisions = 7,
    /// Leases: versions by key lease_id.
    Leases = 8,
    /// GPUs of leases: versions by key (lease_id, device_key).
    LeaseDevices = 9,
    /// What was refused.
    Rejected = 10,
    /// What happened to GPUs and hosts.
    DeviceEvents = 11,
    /// What is missing: versions by key (host, epoch, class, from_seq).
    Gaps = 12,
    /// What was in force: versions by key (kind, name, valid_from).
    Policies = 20,
    /// Alerts: versions by key alert_id.
    Alerts = 21,
    /// One row per host, model and minute.
    HostWindows1m = 13,
    /// How long GPUs were busy, idle, throttled or unwell: versions by key (device_key, kind, started_at).
    Episodes = 14,
}

impl Table {
    /// Every table.
    pub const ALL: &[Table] = &[
        Table::GpuWindows10s,
        Table::GpuWindows1m,
        Table::GpuWindows1h,
        Table::Devices,
        Table::Hosts,
        Table::PlacementRequests,
        Table::PlacementDecisions,
        Table::Leases,
        Table::LeaseDevices,
        Table::Rejected,
        Table::DeviceEvents,
        Table::Gaps,
        Table::Policies,
        Table::Alerts,
        Table::HostWindows1m,
        Table::Episodes,
    ];

    /// The name in SQL and in the archive.
    pub const fn name(self) -> &'static str {
        match self {
            Table::GpuWindows10s => "gpu_windows_10s",
            Table::GpuWindows1m => "gpu_windows_1m",
            Table::GpuWindows1h => "gpu_windows_1h",
            Table::Devices => "devices",
            Table::Hosts => "hosts",
            Table::PlacementRequests => "placement_requests",
            Table::PlacementDecisions => "placement_decisions",
            Table::Leases => "leases",
            Table::LeaseDevices => "lease_devices",
            Table::Rejected => "rejected",
            Table::DeviceEvents => "device_events",
            Table::Gaps => "gaps",
            Table::Policies => "policies",
            Table::Alerts => "alerts",
            Table::HostWindows1m => "host_windows_1m",
            Table::Episodes => "episodes",
        }
    }

    /// The table of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|table| table.name() == name)
    }

    /// The table of that number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|&table| table as u8 == number)
    }
}

/// One row with the place it came from: the key of exactly-once between store, archive and tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacedRow {
    /// Position of the record that made it.
    pub position: Position,
    /// Counts the rows of one record from 0.
    pub ordinal: u32,
    /// The row.
    pub row: Row,
}

/// A row of one of the tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Row {
    /// Of one of the three window tables.
    Window(Tier, Box<WindowRow>),
    /// Of `devices`.
    Device(Box<DeviceRow>),
    /// Of `hosts`.
    Host(Box<HostRow>),
    /// Of `placement_requests`.
    Request(Box<RequestRow>),
    /// Of `placement_decisions`.
    Decision(Box<DecisionRow>),
    /// Of `leases`.
    Lease(Box<LeaseRow>),
    /// Of `lease_devices`.
    LeaseDevice(Box<LeaseDeviceRow>),
    /// Of `rejected`.
    Rejected(Box<RejectedRow>),
    /// Of `device_events`.
    DeviceEvent(Box<DeviceEventRow>),
    /// Of `gaps`.
    Gap(Box<GapRow>),
    /// Of `policies`.
    Policy(Box<PolicyRow>),
    /// Of `alerts`.
    Alert(Box<AlertRow>),
    /// Of `host_windows_1m`.
    HostWindow(Box<HostWindowRow>),
    /// Of `episodes`.
    Episode(Box<EpisodeRow>),
}

impl Row {
    /// The table it belongs to.
    pub const fn table(&self) -> Table {
        match self {
            Row::Window(Tier::TenSeconds, _) => Table::GpuWindows10s,
            Row::Window(Tier::Minute, _) => Table::GpuWindows1m,
            Row::Window(Tier::Hour, _) => Table::GpuWindows1h,
            Row::Device(_) => Table::Devices,
            Row::Host(_) => Table::Hosts,
            Row::Request(_) => Table::PlacementRequests,
            Row::Decision(_) => Table::PlacementDecisions,
            Row::Lease(_) => Table::Leases,
            Row::LeaseDevice(_) => Table::LeaseDevices,
            Row::Rejected(_) => Table::Rejected,
            Row::DeviceEvent(_) => Table::DeviceEvents,
            Row::Gap(_) => Table::Gaps,
            Row::Policy(_) => Table::Policies,
            Row::Alert(_) => Table::Alerts,
            Row::HostWindow(_) => Table::HostWindows1m,
            Row::Episode(_) => Table::Episodes,
        }
    }
}

/// A window length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Tier {
    /// 10 s: the only one folded per sample.
    TenSeconds = 1,
    /// 1 min: merged from 10 s.
    Minute = 2,
    /// 1 h: merged from 1 min.
    Hour = 3,
}

impl Tier {
    /// The window's length, seconds.
    pub const fn seconds(self) -> i64 {
        match self {
            Tier::TenSeconds => 10,
            Tier::Minute => 60,
            Tier::Hour => 3_600,
        }
    }

    /// The next coarser tier.
    pub const fn coarser(self) -> Option<Tier> {
        match self {
            Tier::TenSeconds => Some(Tier::Minute),
            Tier::Minute => Some(Tier::Hour),
            Tier::Hour => None,
        }
    }
}

/// The aggregates of one GPU over one window: all mergeable, all order-free.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Samples counted.
    pub received: u32,
    /// Samples of those that were refused as already folded.
    pub duplicate: u32,
    /// Samples that came after the window had closed.
    pub late: u32,
    /// Sum of held_ms of the samples whose sampled_at lies in the window.
    pub covered_ms: i64,
    /// Longest held_ms above the interval: the longest hole before a sample of this window, ms.
    pub gap_ms_max: i64,
    /// Sum of percent × held_ms.
    pub util_percent_ms: i64,
    /// Least percent.
    pub util_percent_min: Option<i16>,
    /// Greatest percent.
    pub util_percent_max: Option<i16>,
    /// Histogram of percent, one count per sample.
    pub util_sketch: Sketch,
    /// Sum of MiB (floor) × held_ms.
    pub memory_used_mib_ms: i64,
    /// Least memory in use, bytes.
    pub memory_used_bytes_min: Option<i64>,
    /// Greatest memory in use, bytes.
    pub memory_used_bytes_max: Option<i64>,
    /// Histogram of MiB (floor), one count per sample.
    pub memory_sketch: Sketch,
    /// Sum of the agent's energy deltas, mJ.
    pub energy_mj: i64,
    /// Greatest power, mW.
    pub power_mw_max: Option<i64>,
    /// Greatest temperature, °C rounded.
    pub temperature_c_max: Option<i16>,
    /// Sum of held_ms of samples with a thermal throttle bit.
    pub throttle_thermal_ms: i64,
    /// Sum of held_ms of samples with a power throttle bit.
    pub throttle_power_ms: i64,
    /// XID events.
    pub xid_count: u32,
    /// What the sample with the greatest (sampled_at, epoch, sequence) said.
    pub last: Option<Last>,
}

impl Stats {
    /// Puts the histograms in order: what is written or merged soon is so at less cost.
    pub fn settle(&mut self) {
        self.util_sketch.settle();
        self.memory_sketch.settle();
    }
}

/// The newest sample of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// When.
    pub at: EventTime,
    /// The agent's life.
    pub epoch: u64,
    /// The frame's sequence.
    pub sequence: u64,
    /// Percent, if known.
    pub util_percent: Option<i16>,
    /// Memory in use, bytes, if known.
    pub memory_used_bytes: Option<i64>,
    /// Memory on board, bytes, if known.
    pub memory_total_bytes: Option<i64>,
}

impl Last {
    /// The order of samples: event time, then who said it later.
    pub fn order(&self) -> (EventTime, u64, u64) {
        (self.at, self.epoch, self.sequence)
    }
}

/// Integrals of what a GPU was used for, over log time, cut at window edges. The rest of the window is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StateTime {
    /// Leased, ms.
    pub allocated_ms: i64,
    /// Leased and idle, ms.
    pub allocated_idle_ms: i64,
    /// Placeable, ms.
    pub free_ms: i64,
    /// Not well, stale or lost, ms.
    pub unhealthy_ms: i64,
    /// Cordoned, draining or drained, ms.
    pub drained_ms: i64,
}

/// One GPU over one window (or a late part of one).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowRow {
    /// Start of the window.
    pub window_at: EventTime,
    /// The GPU.
    pub device_key: DeviceKey,
    /// Its host as of the window.
    pub host: HostId,
    /// The driver's index as of the window.
    pub gpu_index: u16,
    /// Its model as of the window.
    pub model: String,
    /// Its pool as of the window.
    pub pool: Option<String>,
    /// 0 for the first part; each later one holds only late samples. Parts of one window are added.
    pub part: u32,
    /// Samples the interval promised.
    pub expected: u32,
    /// The aggregates.
    pub stats: Stats,
    /// State time.
    pub state: StateTime,
    /// The holder with the most time.
    pub tenant: Option<TenantId>,
    /// Its lease.
    pub lease_id: Option<String>,
}

/// A GPU from one instant on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRow {
    /// Key in SQL.
    pub device_key: DeviceKey,
    /// From when (log time).
    pub valid_from: LogTime,
    /// Until when; absent = now.
    pub valid_to: Option<LogTime>,
    /// UUID.
    pub device_uuid: GpuUuid,
    /// Host.
    pub host: HostId,
    /// Stable number there.
    pub slot: Slot,
    /// Where it stands.
    pub state: DeviceState,
    /// Its facts as announced.
    pub gpu: crate::inventory::Gpu,
}

/// A host from one instant on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRow {
    /// Token.
    pub host: HostId,
    /// From when (log time).
    pub valid_from: LogTime,
    /// Until when; absent = now.
    pub valid_to: Option<LogTime>,
    /// Its own name.
    pub hostname: String,
    /// Where it stands in the building.
    pub placement: crate::inventory::Placement,
    /// Version of its agent.
    pub agent_version: String,
    /// GPUs.
    pub gpu_count: u16,
    /// Cores.
    pub cpu_cores: Option<u32>,
    /// Memory, bytes.
    pub ram_bytes: Option<u64>,
    /// `ok`, `stale`, `lost` or `cordoned`.
    pub state: DeviceState,
    /// How far its clock is ahead of the log's, ms, less the shortest way of a frame; negative = behind, absent = not known yet.
    pub clock_skew_ms: Option<i64>,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRow {
    /// Id.
    pub request_id: String,
    /// When the log took it.
    pub requested_at: LogTime,
    /// Who asked.
    pub tenant: TenantId,
    /// What for.
    pub workload: Option<String>,
    /// GPUs.
    pub n_gpus: u32,
    /// Memory per GPU, bytes.
    pub memory_per_gpu_bytes: i64,
    /// Model.
    pub model: Option<String>,
    /// Whether one host must take all.
    pub same_host: bool,
    /// Whether one NVLink domain must.
    pub same_nvlink: bool,
    /// Expected run time, ms.
    pub duration_ms: Option<i64>,
    /// Priority.
    pub priority: i16,
    /// Labels as JSON.
    pub labels: Option<String>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// Id.
    pub decision_id: String,
    /// Dense number.
    pub decision_seq: u64,
    /// Request.
    pub request_id: String,
    /// Who asked.
    pub tenant: TenantId,
    /// When (log time).
    pub decided_at: LogTime,
    /// How it ended.
    pub outcome: Outcome,
    /// Dominant reason.
    pub reason: Option<Reason>,
    /// Which try it was, from 1.
    pub attempt: u32,
    /// How long it waited, ms of live clock.
    pub queue_ms: i64,
    /// Score of what was chosen, millionths of the policy's unit.
    pub score_micro: Option<i64>,
    /// Policy's name.
    pub policy: String,
    /// Policy's version.
    pub policy_version: u32,
    /// Hosts looked at.
    pub hosts_considered: u32,
    /// Hosts that could have taken it.
    pub hosts_feasible: u32,
    /// Which GPUs were refused, as in the event, as JSON.
    pub candidates: Option<String>,
    /// Lease, if placed.
    pub lease_id: Option<String>,
}

/// A lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRow {
    /// Id.
    pub lease_id: String,
    /// Request.
    pub request_id: String,
    /// Holder.
    pub tenant: TenantId,
    /// GPUs.
    pub n_gpus: u32,
    /// Where it stands.
    pub state: LeaseState,
    /// When it was granted (log time).
    pub granted_at: LogTime,
    /// When it would end if the log goes on without a break.
    pub expires_at: LogTime,
    /// When its GPUs became free.
    pub ended_at: Option<LogTime>,
    /// What ended it.
    pub end_reason: Option<String>,
}

/// A GPU of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseDeviceRow {
    /// Lease.
    pub lease_id: String,
    /// GPU.
    pub device_key: DeviceKey,
    /// Its host.
    pub host: HostId,
    /// Holder.
    pub tenant: TenantId,
    /// From when.
    pub from_at: LogTime,
    /// Until when; absent = still.
    pub to_at: Option<LogTime>,
    /// Memory reserved, bytes.
    pub memory_reserved_bytes: i64,
}

/// Something refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedRow {
    /// When it happened on the host; the log's time where that is unknown.
    pub rejected_at: EventTime,
    /// When the log took it.
    pub logged_at: LogTime,
    /// Host, if it came from one.
    pub host: Option<HostId>,
    /// GPU, if it is registered.
    pub device_key: Option<DeviceKey>,
    /// Field; absent = the whole sample or message.
    pub field: Option<crate::sample::Field>,
    /// Why.
    pub reason: Reason,
    /// What was given.
    pub raw_value: String,
    /// Who refused: `agent` or `processor`.
    pub source: String,
    /// The agent's life.
    pub epoch: Option<u64>,
    /// The frame's or message's sequence.
    pub seq: Option<u64>,
}

/// Something that happened to a GPU or host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEventRow {
    /// When.
    pub happened_at: EventTime,
    /// GPU; absent = the host.
    pub device_key: Option<DeviceKey>,
    /// Host.
    pub host: HostId,
    /// What: `xid`, `gpu_lost`, `stale`, `lost`, `returned`, `cordon`, ...
    pub kind: String,
    /// Its number, such as the XID's.
    pub code: Option<i32>,
    /// `info`, `warn` or `fatal`.
    pub severity: String,
    /// For people.
    pub detail: Option<String>,
}

/// A range of sequences that was missing when it was opened, and what became of it. The ranges of one (host, epoch, class) are disjoint:
/// a gap of which a part is lost goes on as the ranges around it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRow {
    /// When it was opened (log time).
    pub opened_at: LogTime,
    /// Host; absent = the log itself.
    pub host: Option<HostId>,
    /// The agent's life; for the log its own epoch.
    pub epoch: u64,
    /// Which of the host's numberings; absent = the log's sequences.
    pub class: Option<Class>,
    /// First sequence.
    pub from_seq: u64,
    /// Last sequence.
    pub to_seq: u64,
    /// What became of it.
    pub state: GapState,
    /// Why, as far as it is known.
    pub cause: String,
    /// When it was repaired or lost (log time).
    pub closed_at: Option<LogTime>,
}

/// What was in force under a kind and a name, from one instant on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRow {
    /// Such as `settings` or `alert_rule`.
    pub kind: String,
    /// Name within its kind.
    pub name: String,
    /// How often something came into force under that kind and name, or the version of what it names.
    pub version: u32,
    /// From when (log time).
    pub valid_from: LogTime,
    /// Until when; absent = now.
    pub valid_to: Option<LogTime>,
    /// What it says, a JSON object.
    pub params: String,
    /// Whose word it is.
    pub set_by: SetBy,
}

/// One life of an alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlertRow {
    /// Id.
    pub alert_id: String,
    /// Rule and subject: the same for every life.
    pub dedup_key: String,
    /// Rule.
    pub rule: String,
    /// How grave.
    pub severity: Severity,
    /// Where it stands.
    pub state: AlertState,
    /// What moved it.
    pub cause: String,
    /// What it is about.
    pub scope: Scope,
    /// GPU, if it is about one.
    pub device_key: Option<DeviceKey>,
    /// Host, unless it is about the cell.
    pub host: Option<HostId>,
    /// What is watched.
    pub signal: Signal,
    /// Its value when the alert last moved.
    pub value: i64,
    /// The limit.
    pub limit: Limit,
    /// Since when the limit was passed.
    pub began_at: EventTime,
    /// When it fired (log time).
    pub fired_at: LogTime,
    /// When it was over.
    pub resolved_at: Option<LogTime>,
    /// For people.
    pub summary: Option<String>,
}

/// A set of slots of one host: word 0 holds slots 0..=63, its lowest bit slot 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotMask {
    words: Vec<u64>,
}

impl SlotMask {
    /// No slot, in that many words.
    pub fn of_words(words: usize) -> Self {
        Self { words: vec![0; words] }
    }

    /// Adds a slot if `wanted`, with as many words as it takes.
    pub fn set_if(&mut self, slot: Slot, wanted: bool) {
        let (word, bit) = (usize::from(slot.0) / 64, slot.0 % 64);
        if wanted {
            self.words.resize(self.words.len().max(word + 1), 0);
            self.words[word] |= 1 << bit;
        }
    }

    /// How many slots there are.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// The words, lowest slots first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

/// The classes of free memory that host windows tell apart, GiB.
pub const MEMORY_CLASSES_GIB: [u64; 5] = [20, 40, 64, 80, 140];

/// The GPUs of one model on one host over one minute, as they were when its windows closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostWindowRow {
    /// Start of the minute.
    pub window_at: EventTime,
    /// Host.
    pub host: HostId,
    /// Model.
    pub model: String,
    /// Its pool as of the window.
    pub pool: Option<String>,
    /// GPUs registered, MIG instances apart.
    pub gpus_total: u16,
    /// GPUs neither unwell nor unknown for any of it.
    pub gpus_up: u16,
    /// Fewest GPUs free at once; absent = not known.
    pub gpus_free_min: Option<u16>,
    /// Most GPUs free at once.
    pub gpus_free_max: Option<u16>,
    /// Most GPUs leased at once.
    pub gpus_alloc_max: Option<u16>,
    /// GPUs leased and idle for all of it.
    pub gpus_idle_alloc_min: u16,
    /// GPUs free, healthy and not drained for all of it.
    pub free: SlotMask,
    /// Those of them with so much memory free for all of it, by [`MEMORY_CLASSES_GIB`].
    pub free_by_memory: [SlotMask; 5],
    /// Most GPUs of `free` in one NVLink domain; absent = no domain is known.
    pub largest_free_nvlink: Option<u16>,
    /// MIG instances registered.
    pub mig_total: u16,
    /// MIG instances free for all of it.
    pub mig_free: SlotMask,
}

/// What an episode is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EpisodeKind {
    /// At work.
    Busy,
    /// Not at work.
    Idle,
    /// Slowed down, for a reason that NVML names.
    Throttled,
    /// Degraded, failed, stale or lost.
    Unhealthy,
    /// Leased and not at work.
    AllocatedIdle,
}

impl EpisodeKind {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Idle => "idle",
            Self::Throttled => "throttled",
            Self::Unhealthy => "unhealthy",
            Self::AllocatedIdle => "allocated_idle",
        }
    }
}

/// A stretch of time in which something held for a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpisodeRow {
    /// GPU.
    pub device_key: DeviceKey,
    /// Its host.
    pub host: HostId,
    /// What held.
    pub kind: EpisodeKind,
    /// From when: by the host's clock, or the log's for `unhealthy`.
    pub started_at: EventTime,
    /// Until when; absent = it goes on.
    pub ended_at: Option<EventTime>,
    /// What shows it, for people.
    pub evidence: Option<String>,
}

/// A sample of the recent ring, as SQL's `samples` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRow {
    /// When it was taken.
    pub sampled_at: EventTime,
    /// GPU.
    pub device_key: DeviceKey,
    /// Its host.
    pub host: HostId,
    /// The driver's index.
    pub gpu_index: u16,
    /// The frame's sequence.
    pub seq: u64,
    /// When the log took it.
    pub received_at: LogTime,
    /// The values.
    pub sample: crate::sample::Sample,
    /// Lease it fell into.
    pub lease_id: Option<String>,
}
