//! The cell as placement sees it: its hosts in tie order, with what is left on them. A request is tried on a view of its own, which may be
//! changed at will.

use std::collections::BTreeMap;

use plimsoll_schemas::id::HostId;
use plimsoll_schemas::inventory;
use plimsoll_schemas::request::{Bundle, CPU_MILLI_MAX, Domain, HOST_MEMORY_BYTES_MAX, MEMBERS_MAX, WHOLE_MILLI};

use super::candidate::Candidate;
use super::policy::fleet::Standing;
use super::policy::host::Classes;
use super::reputation::Reputation;

/// CPU of a host that has not said how much it has, thousandths of a core: enough for the largest gang.
pub const CPU_MILLI_UNKNOWN: i64 = CPU_MILLI_MAX as i64 * MEMBERS_MAX as i64;
/// Memory of such a host, MiB.
pub const MEMORY_MIB_UNKNOWN: i64 = HOST_MEMORY_BYTES_MAX as i64 / MIB * MEMBERS_MAX as i64;
/// One MiB, bytes.
const MIB: i64 = 1 << 20;

/// One host.
#[derive(Debug, Clone)]
pub struct Host<'a> {
    /// Its name.
    pub id: &'a HostId,
    /// Where it stands.
    pub stands: &'a inventory::Placement,
    /// CPU left, thousandths of a core; absent = it has not said how much it has.
    pub cpu_milli: Option<i64>,
    /// Memory left, bytes; absent = it has not said how much it has.
    pub memory_bytes: Option<i64>,
    /// Its GPUs, by slot.
    pub gpus: Vec<Candidate<'a>>,
    /// How many leases of each class live on it.
    pub classes: Classes,
    /// The labels of the asking tenant's leases on it.
    pub labels: Vec<&'a BTreeMap<String, String>>,
    /// How far it can be relied on.
    pub reputation: Reputation,
}

impl<'a> Host<'a> {
    /// What it has in common with others, if it says so.
    pub fn domain(&self, domain: Domain) -> Option<&'a str> {
        match domain {
            Domain::Host => Some(self.id.as_str()),
            Domain::Rack => self.stands.rack.as_deref(),
            Domain::Pool => self.stands.pool.as_deref(),
            Domain::Zone => self.stands.zone.as_deref(),
            Domain::Cluster => self.stands.cluster.as_deref(),
        }
    }

    /// Its model, as policies see it: that of its first GPU. Which GPUs may be taken is seen GPU by GPU.
    pub fn model(&self) -> &'a str {
        self.gpus.first().map_or("", |gpu| gpu.model)
    }

    /// Whether a member of the bundle asks for CPU or memory, and the host has not said how much it has.
    pub fn is_by_gpu_alone(&self, bundle: &Bundle) -> bool {
        (bundle.cpu_milli > 0 && self.cpu_milli.is_none()) || (bundle.memory_bytes > 0 && self.memory_bytes.is_none())
    }

    /// It as policies see it. `score` is what telemetry says of a GPU. A GPU on which nothing may be placed whatever is asked for has nothing left.
    pub fn standing(&self, score: impl Fn(&Candidate<'_>) -> u32) -> Standing {
        let left = |gpu: &Candidate<'_>| if gpu.gate.is_some() { 0 } else { WHOLE_MILLI.saturating_sub(gpu.reserved_milli) as i32 };
        Standing {
            model: self.model().to_owned(),
            cpu_milli: self.cpu_milli.unwrap_or(CPU_MILLI_UNKNOWN),
            memory_mib: self.memory_bytes.map_or(MEMORY_MIB_UNKNOWN, |bytes| bytes.div_euclid(MIB)),
            gpus: self.gpus.iter().map(left).collect(),
            scores: self.gpus.iter().map(score).collect(),
            classes: self.classes,
        }
    }

    /// Takes GPUs and what goes with them for a member of the bundle: (GPU's place, memory to reserve in bytes).
    pub fn take(&mut self, bundle: &Bundle, gpus: &[(usize, u64)]) {
        self.add(bundle, gpus, 1);
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, bundle: &Bundle, gpus: &[(usize, u64)]) {
        self.add(bundle, gpus, -1);
    }

    fn add(&mut self, bundle: &Bundle, gpus: &[(usize, u64)], sign: i64) {
        let amount = |bytes: u64| sign * i64::try_from(bytes).unwrap_or(i64::MAX);
        self.cpu_milli = self.cpu_milli.map(|left| left.saturating_sub(amount(bundle.cpu_milli)));
        self.memory_bytes = self.memory_bytes.map(|left| left.saturating_sub(amount(bundle.memory_bytes)));
        for &(gpu, vram_bytes) in gpus {
            let gpu = &mut self.gpus[gpu];
            gpu.reserved_milli = gpu.reserved_milli.saturating_add_signed(sign as i32 * bundle.milli as i32);
            gpu.reserved_vram_bytes = gpu.reserved_vram_bytes.saturating_add_signed(amount(vram_bytes));
            gpu.unseen_vram_bytes = gpu.unseen_vram_bytes.saturating_add_signed(amount(vram_bytes));
        }
    }
}
