//! How busy GPUs are, as their newest closed 10 s windows say: means over the cell, or over what others than a tenant hold.
//!
//! A GPU without a fresh window is not counted, so nothing is known where nothing is heard.

use std::collections::BTreeMap;

use plimsoll_schemas::alert::Signal;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::time::NS_PER_S;
use serde::{Deserialize, Serialize};

use crate::State;
use crate::alerts::signal;
use crate::registry::Facts;
use crate::window::{PANE_NS, Pane};

/// How long after its end a window speaks for its GPU, ns.
const FRESH_NS: i64 = 60 * NS_PER_S;

/// How busy a GPU was in its newest closed window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceLoad {
    /// End of the window, ns.
    until_ns: i64,
    /// Mean utilisation, basis points.
    util_bp: Option<u32>,
    /// Greatest memory in use as a share of the GPU's memory, basis points.
    memory_bp: Option<u32>,
}

impl DeviceLoad {
    /// What a closed window says.
    pub fn of(pane: &Pane, facts: &Facts) -> Self {
        let stats = &pane.stats;
        let util_bp = stats.util_percent_min.and_then(|_| stats.util_percent_ms.saturating_mul(100).checked_div(stats.covered_ms));
        let known = |bp: Option<i64>| bp.and_then(|bp| u32::try_from(bp).ok());
        Self {
            until_ns: pane.start_ns.saturating_add(PANE_NS),
            util_bp: known(util_bp),
            memory_bp: known(signal::of_window(Signal::MemoryUsedBp, pane, facts)),
        }
    }
}

/// How busy some GPUs are on the mean; absent = not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Load {
    /// Utilisation, basis points.
    pub util_bp: Option<u32>,
    /// Memory in use, basis points.
    pub memory_bp: Option<u32>,
    /// GPUs counted.
    pub gpus: u32,
}

/// A sum and how many it is of.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: u64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: Option<u32>) {
        if let Some(value) = value {
            self.sum += u64::from(value);
            self.count += 1;
        }
    }

    fn without(self, part: Self) -> Self {
        Self { sum: self.sum - part.sum, count: self.count - part.count }
    }

    fn get(self) -> Option<u32> {
        self.sum.checked_div(u64::from(self.count)).and_then(|mean| u32::try_from(mean).ok())
    }
}

/// Sums over some GPUs.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    util: Mean,
    memory: Mean,
    gpus: u32,
}

impl Sums {
    fn add(&mut self, load: &DeviceLoad) {
        self.util.add(load.util_bp);
        self.memory.add(load.memory_bp);
        self.gpus += 1;
    }

    fn without(self, part: Self) -> Self {
        Self { util: self.util.without(part.util), memory: self.memory.without(part.memory), gpus: self.gpus - part.gpus }
    }

    fn load(self) -> Load {
        Load { util_bp: self.util.get(), memory_bp: self.memory.get(), gpus: self.gpus }
    }
}

/// The load of the cell, and what each of some tenants holds of it.
pub(crate) struct Loads {
    cell: Sums,
    own: BTreeMap<TenantId, Sums>,
}

impl Loads {
    /// Of the cell, or of what others than a tenant hold.
    pub fn of(&self, tenant: Option<&TenantId>) -> Load {
        let own = tenant.and_then(|tenant| self.own.get(tenant)).copied().unwrap_or_default();
        self.cell.without(own).load()
    }
}

impl State {
    /// The load now, with what each of the given tenants holds set apart. One walk over all GPUs, however many tenants there are.
    pub(crate) fn loads(&self, tenants: impl Iterator<Item = TenantId>) -> Loads {
        let mut loads = Loads { cell: Sums::default(), own: tenants.map(|tenant| (tenant, Sums::default())).collect() };
        for device in self.registry.devices.iter().filter(|device| !device.facts.retired) {
            let Some(load) = device.pulse.load.filter(|load| load.until_ns.saturating_add(FRESH_NS) >= self.clock.logged_at.0) else { continue };
            loads.cell.add(&load);
            if loads.own.is_empty() {
                continue;
            }
            let mut holders: Vec<&TenantId> =
                device.facts.reservations.iter().filter_map(|r| self.leases.by_fence.get(&r.fence)).map(|lease| &lease.tenant).collect();
            // A tenant with several leases on a GPU holds it once.
            holders.sort_unstable();
            holders.dedup();
            for tenant in holders {
                if let Some(own) = loads.own.get_mut(tenant) {
                    own.add(&load);
                }
            }
        }
        loads
    }
}
