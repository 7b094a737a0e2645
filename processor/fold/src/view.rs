//! The living cell as placement sees it: what is left of every host and GPU, and what keeps a GPU from being used whatever is asked for.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::WHOLE_MILLI;
use plimsoll_schemas::time::NS_PER_S;

use crate::State;
use crate::control::ns;
use crate::liveness::stale_ns;
use crate::placement::ask::Ask;
use crate::placement::candidate::Candidate;
use crate::placement::cell::Host;
use crate::placement::policy::catalogue::Name;
use crate::placement::policy::host::CLASSES;
use crate::placing::Assume;
use crate::registry::{Device, Silence};

/// So long after its grant a lease may not show in what telemetry says is in use, ns of live clock: whoever runs the job has to start it.
const UNSEEN_NS: i64 = 60 * NS_PER_S;

impl State {
    /// The cell as a request sees it.
    pub(crate) fn hosts_for<'a>(&'a self, tenant: &TenantId, ask: &Ask<'_>, assume: &Assume) -> Vec<Host<'a>> {
        let mut held = BTreeMap::<u32, (u64, u64)>::new();
        let mut labels = BTreeMap::<u32, Vec<&'a BTreeMap<String, String>>>::new();
        let looks_at_labels = ask.constraints().anti_affinity.is_some() || self.policy_for(ask.place) == Ok(Name::Reliability);
        for lease in self.leases.by_fence.values().filter(|lease| !assume.ended.contains(&lease.fence)) {
            for share in &lease.hosts {
                let sum = held.entry(share.host).or_default();
                *sum = (sum.0.saturating_add(share.cpu_milli), sum.1.saturating_add(share.memory_bytes));
            }
            if looks_at_labels && lease.tenant == *tenant {
                let hosts: BTreeSet<u32> = lease.held.iter().map(|&d| self.registry.devices[d as usize].facts.host).collect();
                hosts.into_iter().for_each(|host| labels.entry(host).or_default().push(&lease.labels));
            }
        }
        let host = |&number: &u32| {
            let host = &self.registry.hosts[number as usize];
            let left = |all: Option<u64>, held: u64| all.map(|all| i64::try_from(all).unwrap_or(i64::MAX).saturating_sub_unsigned(held));
            let (cpu_held, memory_held) = held.get(&number).copied().unwrap_or_default();
            Host {
                id: &host.id,
                stands: &host.facts.placement,
                cpu_milli: left(host.facts.cpu_cores.map(|cores| u64::from(cores) * 1_000), cpu_held),
                memory_bytes: left(host.facts.ram_bytes, memory_held),
                gpus: self.candidates_of(host, assume),
                classes: self.classes_of(host, assume),
                labels: labels.remove(&number).unwrap_or_default(),
                reputation: host.reputation,
            }
        };
        self.registry.by_host.values().map(host).collect()
    }

    /// A host's GPUs as placement sees them.
    fn candidates_of<'a>(&'a self, host: &'a crate::registry::Host, assume: &Assume) -> Vec<Candidate<'a>> {
        let devices =
            || host.devices.iter().map(|&number| (number, &self.registry.devices[number as usize])).filter(|(_, device)| !device.facts.retired);
        let cut: BTreeSet<_> = devices().filter_map(|(_, device)| device.facts.gpu.mig_parent_uuid.as_ref()).collect();
        let candidate = |(number, device): (u32, &'a Device)| Candidate {
            is_cut: cut.contains(device.uuid()),
            kept: assume.kept.contains(&number),
            ..self.candidate(number, device, &assume.ended)
        };
        devices().map(candidate).collect()
    }

    /// How many leases of each class live on a host: shares, then by number of GPUs.
    fn classes_of(&self, host: &crate::registry::Host, assume: &Assume) -> [u16; CLASSES] {
        let mut leases = BTreeMap::<u64, (bool, usize)>::new();
        for &number in &host.devices {
            for reservation in self.registry.devices[number as usize].facts.reservations.iter().filter(|r| !assume.ended.contains(&r.fence)) {
                let (share, gpus) = leases.entry(reservation.fence).or_default();
                (*share, *gpus) = (reservation.milli < WHOLE_MILLI, *gpus + 1);
            }
        }
        let mut classes = [0_u16; CLASSES];
        for (share, gpus) in leases.into_values() {
            let class = &mut classes[if share && gpus == 1 { 0 } else { gpus.min(CLASSES - 1) }];
            *class = class.saturating_add(1);
        }
        classes
    }

    /// A GPU as placement sees it, where some leases are taken to have ended.
    pub(crate) fn candidate<'a>(&'a self, number: u32, device: &'a Device, ended: &BTreeSet<u64>) -> Candidate<'a> {
        let facts = &device.facts;
        let gpu = &facts.gpu;
        let sample = device.pulse.current.map(|current| current.sample).unwrap_or_default();
        let unseen_ns = self.clock.live_ns - UNSEEN_NS;
        let reservations = || facts.reservations.iter().filter(|r| !ended.contains(&r.fence));
        Candidate {
            number,
            uuid: &gpu.uuid,
            slot: gpu.slot,
            model: &gpu.model,
            driver: gpu.driver_version.as_deref(),
            compute_capability: gpu.compute_capability.as_deref(),
            mig_profile: gpu.mig_profile.as_deref(),
            is_cut: false,
            nvlink_domain: gpu.nvlink_domain,
            numa_node: gpu.numa_node,
            memory_total_bytes: gpu.memory_total_bytes.or(sample.memory_total_bytes()),
            // What an ended lease would leave behind nobody knows; it promised to use no more than it held.
            memory_used_bytes: if reservations().count() < facts.reservations.len() { Some(0) } else { sample.memory_used_bytes() },
            util_percent: sample.util_percent(),
            temperature_mk: sample.temperature_mk(),
            slowdown_temperature_mk: gpu.slowdown_temperature_mk,
            gate: self.gate(device),
            kept: false,
            reserved_milli: reservations().map(|r| r.milli).sum(),
            reserved_vram_bytes: reservations().map(|r| r.vram_bytes).fold(0, u64::saturating_add),
            unseen_vram_bytes: reservations().filter(|r| r.since_ns > unseen_ns).map(|r| r.vram_bytes).fold(0, u64::saturating_add),
        }
    }

    /// Why nothing may be placed on a GPU whatever is asked for, in the order of precedence.
    pub(crate) fn gate(&self, device: &Device) -> Option<Reason> {
        let host = &self.registry.hosts[device.facts.host as usize];
        // Timers may lag behind in a burst; the clock does not.
        let silent = self.clock.live_ns - device.pulse.heard_ns >= stale_ns(host.facts.interval_ms, &self.meta.settings);
        let gates = [
            (silent || device.facts.silence != Silence::Heard, Reason::Stale),
            (!device.pulse.live, Reason::NoSample),
            (!self.is_enrolled(host), Reason::NotEnrolled),
            (device.facts.cordoned || host.cordoned, Reason::Cordoned),
            (device.facts.draining_ns.is_some(), Reason::Draining),
            (self.clock.live_ns - device.pulse.live_ns < ns(self.meta.settings.warm_up_ms), Reason::WarmingUp),
        ];
        gates.into_iter().find(|&(shut, _)| shut).map(|(_, reason)| reason).or_else(|| device.facts.faults.reason())
    }
}
