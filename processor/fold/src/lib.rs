//! The pure core: a record of the log in, rows and outputs out. No clock, no randomness, no I/O, integers only, sorted iteration.
//!
//! `State::step` is the whole interface of time: the same records in the same order give the same state, rows and outputs, byte for byte.

mod clock;
pub mod encode;
pub mod rows;
mod emit;
mod timers;
mod ranges;
mod gaps;
mod as_json;
mod check;
mod window;
pub mod ring;
mod registry;
mod refuse;
mod frames;
mod close;
mod late;
mod liveness;
mod state_time;
mod inventory;
mod xid;
mod thermal;
mod faults;
mod health;
mod skew;
mod host_window;
mod episodes;
pub mod control;
pub mod pace;
mod paces;
mod policies;
mod alerts;
pub mod placement;
mod leases;
mod lease_use;
mod mig;
mod view;
mod decision;
mod placing;
mod preemption;
mod waiting;
mod requests;
pub mod epoch;
pub mod cluster;
mod step;
pub mod durable;
pub mod shown;
pub mod conformance;

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::ctl::{Class, Repair};
use plimsoll_schemas::id::{CellId, DeviceKey, HostId, Position, TenantId};
use plimsoll_schemas::out::{Output, PaceCounts};
use plimsoll_schemas::row::{SampleRow, Tier};
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::time::LogTime;
use serde::{Deserialize, Serialize};

use crate::alerts::Alerts;
use crate::clock::Clock;
use crate::control::Sealed;
use crate::emit::Chain;
use crate::gaps::Turn;
use crate::host_window::DeviceMinute;
use crate::leases::Leases;
use crate::paces::Paces;
use crate::placement::policy::catalogue::{Bidder, Name};
use crate::placement::policy::mix::Settled;
use crate::policies::Policies;
use crate::refuse::{Announcer, Limiter};
use crate::registry::{Device, Registry, Silence};
use crate::requests::{Bucket, Requests};
use crate::rows::Rows;
use crate::timers::Timers;
use crate::view::View;
use crate::waiting::Queue;

/// Version of what the fold does with the same log. It grows when the same records would give other rows, outputs or states; the shape
/// of what is stored has a version of its own, [`durable::FORMAT`].
pub const LOGIC: u32 = 11;

/// What folding records has produced since it was last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// Rows for SQL, in order.
    pub rows: Rows,
    /// Outputs for OUT, in order, `out_seq` dense.
    pub outputs: Vec<Output>,
    /// What to ask agents for. A wish, not an output: it is neither kept nor numbered, and repeated until what is missing has come.
    pub repairs: Vec<Repair>,
}

/// Counts since the log began. samples = folded + late + rejected + duplicate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    samples: u64,
    folded: u64,
    late: u64,
    rejected: u64,
    duplicate: u64,
    messages_refused: u64,
}

/// What the state knows besides hosts, GPUs, requests and leases.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Meta {
    position: Position,
    chain: Chain,
    counters: Counters,
    settings: Thresholds,
    enrol_all: bool,
    /// Hosts that were enrolled before they registered.
    enrolled_early: BTreeSet<HostId>,
    sealed: Sealed,
    /// The last lease's fence.
    fence: u64,
    /// Requests remembered so far.
    requests: u64,
    /// Name of the policy that places; empty = nobody has chosen one.
    policy: String,
    /// How many of 100 parts of its decisions power has.
    power_weight: u32,
    /// Bound on rows of `rejected` that belong to no registered host.
    limiter: Limiter,
}

impl Meta {
    /// The policy that places.
    fn policy(&self) -> Name {
        Name::from_code(&self.policy).unwrap_or(placing::DEFAULT)
    }

    /// The same with what counts besides.
    fn bidder(&self) -> Bidder {
        Bidder { policy: self.policy(), power_weight: self.power_weight }
    }
}

/// Everything the fold knows.
#[derive(Debug)]
pub struct State {
    cell: CellId,
    meta: Meta,
    clock: Clock,
    registry: Registry,
    leases: Leases,
    requests: Requests,
    queue: Queue,
    /// What was asked for so far.
    mix: Settled,
    mix_dirty: bool,
    /// Shares of the tenants.
    buckets: BTreeMap<TenantId, Bucket>,
    announcer: Announcer,
    policies: Policies,
    alerts: Alerts,
    paces: Paces,
    timers: Timers,
    /// The cell as placement last saw it; memory only.
    view: Option<View>,
    /// Hosts by the end of their last closed window.
    behind: BTreeSet<(i64, u32)>,
    /// Devices of the frame being folded.
    scratch: Vec<u32>,
    /// What the sequence being marked means for gaps.
    turns: Vec<Turn>,
    /// How many ranges this record may still ask for.
    asks_left: usize,
    /// Minutes of GPUs that closed with the windows being closed.
    closed_minutes: Vec<DeviceMinute>,
    dirty_parts: BTreeSet<(u32, Tier, i64)>,
    dropped_ranges: Vec<(u32, u64, Class)>,
    buckets_dirty: bool,
}

/// Numbers about the state for metrics, readiness and `plimsoll status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Hosts ever registered and not retired.
    pub hosts: u64,
    /// Hosts not heard from.
    pub hosts_silent: u64,
    /// GPUs registered.
    pub devices: u64,
    /// GPUs that could take a placement now.
    pub devices_placeable: u64,
    /// Leases not ended.
    pub leases: u64,
    /// Requests that wait for room.
    pub requests_waiting: u64,
    /// Panes open.
    pub panes_open: u64,
    /// Gaps in hosts' numberings that are open.
    pub gaps_open: u64,
    /// Samples in frames since the log began: folded + late + rejected + duplicate.
    pub samples: u64,
    /// Samples folded since the log began.
    pub samples_folded: u64,
    /// Samples refused.
    pub samples_rejected: u64,
    /// Samples that came too late for their window.
    pub samples_late: u64,
    /// Samples seen before.
    pub samples_duplicate: u64,
    /// Messages that nobody could read.
    pub messages_refused: u64,
    /// Alerts firing.
    pub alerts_firing: u64,
    /// Sequence of the last output.
    pub out_seq: u64,
    /// Number of the last decision.
    pub decision_seq: u64,
    /// What became of the requests under each pace in force, by `cell` or `tenant/<id>`, since it came into force. Of tenants the first
    /// hundred, the others together under `others`.
    pub paces: BTreeMap<String, PaceCounts>,
    /// Sums over the current samples of the GPUs that are heard from; absent without one.
    pub cluster: Option<cluster::Cluster>,
}

impl State {
    /// The state before the first record.
    pub fn new(cell: CellId) -> Self {
        Self {
            cell,
            meta: Meta::default(),
            clock: Clock::default(),
            registry: Registry::default(),
            leases: Leases::default(),
            requests: Requests::default(),
            queue: Queue::default(),
            mix: Settled::default(),
            mix_dirty: false,
            buckets: BTreeMap::new(),
            announcer: Announcer::default(),
            policies: Policies::default(),
            alerts: Alerts::new(),
            paces: Paces::default(),
            timers: Timers::default(),
            view: None,
            behind: BTreeSet::new(),
            scratch: Vec::new(),
            turns: Vec::new(),
            asks_left: 0,
            closed_minutes: Vec::new(),
            dirty_parts: BTreeSet::new(),
            dropped_ranges: Vec::new(),
            buckets_dirty: false,
        }
    }

    /// The cell.
    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// Position of the last record folded.
    pub fn position(&self) -> Position {
        self.meta.position
    }

    /// Log time of the last record folded.
    pub fn logged_at(&self) -> LogTime {
        self.clock.logged_at
    }

    /// Numbers what comes after what was published before, where the records that led to it are lost: the next output, decision and
    /// lease get higher numbers than any of them. Only for a state whose loss somebody has accepted.
    pub fn number_after(&mut self, out_seq: u64, decision_seq: u64) {
        let chain = &mut self.meta.chain;
        chain.out_seq = chain.out_seq.max(out_seq);
        chain.decision_seq = chain.decision_seq.max(decision_seq);
        // Every lease was a decision, so no fence was higher than its number.
        self.meta.fence = self.meta.fence.max(decision_seq);
    }

    /// What the archive holds, as the log says.
    pub fn sealed(&self) -> Sealed {
        self.meta.sealed
    }

    /// Rolling hash over all rows, outputs and counts up to [`State::position`].
    pub fn hash(&self) -> u64 {
        self.meta.chain.hash
    }

    /// Memory, utilisation, temperature and power over the current samples of the GPUs that are heard from.
    fn cluster(&self) -> Option<cluster::Cluster> {
        let devices = || self.registry.devices.iter().filter(|device| !device.facts.retired);
        let heard = devices().filter(|device| device.facts.silence == Silence::Heard).filter_map(Device::current).map(|sample| cluster::Member {
            memory_total_bytes: sample.memory_total_bytes(),
            memory_used_bytes: sample.memory_used_bytes(),
            util: sample.util_percent(),
            temperature: sample.temperature_mk(),
            power: sample.power_mw(),
        });
        cluster::Cluster::of(heard, devices().filter(|device| device.facts.silence != Silence::Heard).count() as u64)
    }

    /// Numbers for metrics and status. Walks all GPUs: for a timer, not for every record.
    pub fn summary(&self) -> Summary {
        let devices = || self.registry.devices.iter().filter(|device| !device.facts.retired);
        let counters = &self.meta.counters;
        Summary {
            hosts: self.registry.hosts.len() as u64,
            hosts_silent: self.registry.hosts.iter().filter(|host| host.silence != Silence::Heard).count() as u64,
            devices: devices().count() as u64,
            devices_placeable: devices().filter(|device| device.is_placeable()).count() as u64,
            leases: self.leases.by_fence.len() as u64,
            requests_waiting: self.queue.by_turn.len() as u64,
            panes_open: self
                .registry
                .devices
                .iter()
                .map(|device| {
                    (device.open.len() + device.late.len() + usize::from(device.minute.is_some()) + usize::from(device.hour.is_some())) as u64
                })
                .sum(),
            gaps_open: self.registry.hosts.iter().flat_map(|host| &host.ranges.entries).map(|entry| entry.ranges.gaps_open()).sum(),
            samples: counters.samples,
            samples_folded: counters.folded,
            samples_rejected: counters.rejected,
            samples_late: counters.late,
            samples_duplicate: counters.duplicate,
            messages_refused: counters.messages_refused,
            alerts_firing: self.alerts.firing(),
            out_seq: self.meta.chain.out_seq,
            decision_seq: self.meta.chain.decision_seq,
            paces: self.paces.counts(),
            cluster: self.cluster(),
        }
    }

    /// The newest samples of the recent ring, of some devices or of all, at most `limit` rows in all. Grouped by GPU in the order
    /// of the keys (of `devices`, if given), oldest first; where the limit bites, every GPU keeps its newest ones.
    pub fn recent(&self, devices: Option<&[DeviceKey]>, limit: usize) -> Vec<SampleRow> {
        let numbers: Vec<u32> = match devices {
            Some(keys) => keys.iter().filter_map(|key| self.registry.by_key.get(key).copied()).collect(),
            None => self.registry.by_key.values().copied().collect(),
        };
        let each = limit.checked_div(numbers.len()).unwrap_or(0).max(1);
        let mut rows = Vec::new();
        for &number in &numbers {
            let device = &self.registry.devices[number as usize];
            let skip = device.recent.len().saturating_sub(each.min(limit - rows.len()));
            let host = &self.registry.hosts[device.facts.host as usize].id;
            let lease = self.holding(device).next().and_then(|r| self.leases.by_fence.get(&r.fence));
            rows.extend(device.recent.iter().skip(skip).map(|&((at, _, sequence), recent)| SampleRow {
                sampled_at: at,
                device_key: device.facts.key,
                host: host.clone(),
                gpu_index: device.facts.gpu.index,
                seq: sequence,
                received_at: recent.logged_at,
                sample: recent.sample,
                lease_id: lease.filter(|lease| at.0 >= lease.granted_at.0).map(|lease| lease.lease_id.clone()),
            }));
        }
        rows
    }
}
