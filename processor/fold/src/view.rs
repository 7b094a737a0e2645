//! The living cell as placement sees it: what is left of every host and GPU, and what keeps a GPU from being used whatever is asked for. It is
//! kept from one decision to the next, and brought up to date where something has changed; what is kept is memory only, and says nothing that
//! could not be worked out anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_schemas::id::{GpuUuid, TenantId};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::WHOLE_MILLI;
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::time::NS_PER_S;

use crate::State;
use crate::control::ns;
use crate::liveness::stale_ns;
use crate::mig::see_board;
use crate::placement::ask::Ask;
use crate::placement::candidate::Candidate;
use crate::placement::cell::{Cell, Chooser, Host};
use crate::placement::mig::Board;
use crate::placement::plan::Neighbours;
use crate::placement::policy::catalogue::{Bidder, Name};
use crate::placement::policy::host::{CLASSES, Classes};
use crate::placement::select::{Choice, choose};
use crate::placing::Assume;
use crate::registry::{self, Device, Silence};

/// So long after its grant a lease may not show in what telemetry says is in use, ns of live clock: whoever runs the job has to start it.
const UNSEEN_NS: i64 = 60 * NS_PER_S;
/// A view that nobody has asked for so long is let go, ns of live clock: keeping it costs a little with every frame.
const IDLE_NS: i64 = 60 * NS_PER_S;

/// The cell as it was for the last decision.
#[derive(Debug)]
pub(crate) struct View {
    cell: Cell,
    /// By a host's place in the cell: its number, and from when on it looks different without anybody's word, live clock in ns.
    numbers: Vec<u32>,
    until_ns: Vec<i64>,
    /// By a host's number its place.
    places: Vec<usize>,
    /// What it was seen under.
    settings: Thresholds,
    enrol_all: bool,
    /// Live clock when it was last asked for, ns.
    asked_ns: i64,
}

impl View {
    /// Whether a host that has said anew what it has can take its old place: policies see as many GPUs of the same model.
    fn has_place_for(&self, number: u32, host: &Host) -> bool {
        let as_policies_see = |host: &Host| (host.gpus.len(), host.gpus.first().map(|gpu| Arc::clone(&gpu.model)));
        self.places.get(number as usize).is_some_and(|&place| as_policies_see(&self.cell.hosts()[place]) == as_policies_see(host))
    }
}

impl State {
    /// The choice for a request under some assumptions.
    pub(crate) fn choose(&mut self, tenant: &TenantId, ask: &Ask<'_>, bidder: Bidder, assume: &Assume) -> Choice {
        let mut view = self.up_to_date();
        let assumed = self.assumed_hosts(assume);
        for &host in &assumed {
            view.cell.update(view.places[host as usize], |seen| _ = self.see(seen, host, assume));
        }
        let neighbours = self.neighbours(tenant, ask, bidder.policy, assume);
        let chooser = Chooser { bidder, mix: self.mix.seen(), tables: self.hashed_tables(), turn: self.meta.chain.decision_seq };
        let choice = choose(&mut view.cell, ask, chooser, &neighbours);
        for &host in &assumed {
            view.cell.update(view.places[host as usize], |seen| _ = self.see(seen, host, &Assume::default()));
        }
        self.view = Some(view);
        choice
    }

    /// The cell as it is now.
    fn up_to_date(&mut self) -> View {
        self.keep_view();
        let live_ns = self.clock.live_ns;
        let mut view = self.view.take().unwrap_or_else(|| self.look_anew());
        view.asked_ns = live_ns;
        for place in 0..view.numbers.len() {
            if view.until_ns[place] <= live_ns {
                let host = view.numbers[place];
                self.see_again(&mut view, host);
            }
        }
        debug_assert_eq!(view.cell.hosts(), self.look_anew().cell.hosts(), "what is kept is what is seen anew");
        view
    }

    /// Takes over into the view what a record has changed, while that is still in the processor's cache.
    pub(crate) fn keep_view(&mut self) {
        let Some(mut view) = self.view.take() else { return };
        let mut hosts = std::mem::take(&mut self.registry.touched_hosts);
        for &host in &hosts {
            self.registry.hosts[host as usize].touched = false;
        }
        let mut devices = std::mem::take(&mut self.registry.touched_devices);
        for &device in &devices {
            let device = &mut self.registry.devices[device as usize];
            device.touched = false;
            if hosts.last() != Some(&device.facts.host) {
                hosts.push(device.facts.host);
            }
        }
        let restated = std::mem::take(&mut self.registry.restated);
        let restated: Vec<(u32, Host)> = restated.into_iter().map(|number| (number, self.host(number))).collect();
        let holds = (view.settings, view.enrol_all) == (self.meta.settings, self.meta.enrol_all)
            && self.clock.live_ns - view.asked_ns < IDLE_NS
            && restated.iter().all(|(number, host)| view.has_place_for(*number, host));
        if !holds {
            return;
        }
        for (number, host) in restated {
            view.cell.update(view.places[number as usize], |seen| *seen = host);
            hosts.push(number);
        }
        hosts.iter().for_each(|&host| self.see_again(&mut view, host));
        self.view = Some(view);
        hosts.clear();
        devices.clear();
        (self.registry.touched_hosts, self.registry.touched_devices) = (hosts, devices);
    }

    fn see_again(&self, view: &mut View, host: u32) {
        let place = view.places[host as usize];
        let until_ns = &mut view.until_ns[place];
        view.cell.update(place, |seen| *until_ns = self.see(seen, host, &Assume::default()));
    }

    fn look_anew(&self) -> View {
        let numbers: Vec<u32> = self.registry.by_host.values().copied().collect();
        let mut places = vec![0; numbers.len()];
        numbers.iter().enumerate().for_each(|(place, &number)| places[number as usize] = place);
        let mut until_ns = vec![i64::MAX; numbers.len()];
        let seen = |(&number, until_ns): (&u32, &mut i64)| {
            let mut seen = self.host(number);
            *until_ns = self.see(&mut seen, number, &Assume::default());
            seen
        };
        let hosts = numbers.iter().zip(&mut until_ns).map(seen).collect();
        let cell = Cell::new(hosts, self.placement_settings());
        let asked_ns = self.clock.live_ns;
        View { cell, numbers, until_ns, places, settings: self.meta.settings, enrol_all: self.meta.enrol_all, asked_ns }
    }

    /// A host and its GPUs by what they say of themselves; what is left on them is yet to be seen.
    fn host(&self, number: u32) -> Host {
        let host = &self.registry.hosts[number as usize];
        let devices =
            || host.devices.iter().map(|&number| (number, &self.registry.devices[number as usize])).filter(|(_, device)| !device.facts.retired);
        let cut: BTreeSet<_> = devices().filter_map(|(_, device)| device.facts.gpu.mig_parent_uuid.as_ref()).collect();
        let mut gpus: Vec<Candidate> =
            devices().map(|(number, device)| Candidate { is_cut: cut.contains(device.uuid()), ..candidate(number, device) }).collect();
        gpus.sort_by_key(|gpu| gpu.slot);
        let (id, stands, reputation) = (host.id.clone(), host.facts.placement.clone(), host.reputation);
        Host { id, stands, cpu_milli: None, memory_bytes: None, gpus, classes: [0; CLASSES], reputation }
    }

    /// Sees what is left of a host. Comes back with when it will look different by itself, live clock in ns.
    fn see(&self, seen: &mut Host, number: u32, assume: &Assume) -> i64 {
        let host = &self.registry.hosts[number as usize];
        let left = |all: Option<u64>, held: u64| all.map(|all| i64::try_from(all).unwrap_or(i64::MAX).saturating_sub_unsigned(held));
        let (cpu_held, memory_held) = self.leases.held_of_host(number, &assume.ended);
        seen.cpu_milli = left(host.facts.cpu_cores.map(|cores| u64::from(cores) * 1_000), cpu_held);
        seen.memory_bytes = left(host.facts.ram_bytes, memory_held);
        seen.reputation = host.reputation;
        seen.classes = self.classes_of(host, assume);
        let mut until_ns = i64::MAX;
        for gpu in &mut seen.gpus {
            until_ns = until_ns.min(self.see_gpu(gpu, host, assume));
        }
        until_ns
    }

    /// Sees what is left of a GPU, where some leases are taken to have ended.
    fn see_gpu(&self, seen: &mut Candidate, host: &registry::Host, assume: &Assume) -> i64 {
        let device = &self.registry.devices[seen.number as usize];
        let (facts, live_ns) = (&device.facts, self.clock.live_ns);
        let sample = device.current().copied().unwrap_or_default();
        seen.memory_total_bytes = facts.gpu.memory_total_bytes.or(sample.memory_total_bytes());
        seen.util_percent = sample.util_percent();
        seen.temperature_mk = sample.temperature_mk();
        seen.kept = assume.kept.contains(&seen.number);
        (seen.reserved_milli, seen.reserved_vram_bytes, seen.unseen_vram_bytes) = (0, 0, 0);
        let (mut ended, mut until_ns) = (false, i64::MAX);
        for reservation in &facts.reservations {
            if assume.ended.contains(&reservation.fence) {
                ended = true;
                continue;
            }
            seen.reserved_milli += reservation.milli;
            seen.reserved_vram_bytes = seen.reserved_vram_bytes.saturating_add(reservation.vram_bytes);
            if reservation.since_ns > live_ns - UNSEEN_NS {
                seen.unseen_vram_bytes = seen.unseen_vram_bytes.saturating_add(reservation.vram_bytes);
                until_ns = until_ns.min(reservation.since_ns + UNSEEN_NS);
            }
        }
        seen.reserved_milli += self.mig_milli(device, &assume.ended);
        let slices = assume.kept_slices.get(&seen.number).map_or(&[][..], Vec::as_slice);
        seen.mig.iter_mut().for_each(|board| see_board(board, &facts.reservations, &assume.ended, slices));
        // What an ended lease would leave behind nobody knows; it promised to use no more than it held.
        seen.memory_used_bytes = if ended { Some(0) } else { sample.memory_used_bytes() };
        seen.gate = self.gate(device);
        let stale_at_ns = device.pulse.heard_ns + stale_ns(host.facts.interval_ms, &self.meta.settings);
        let warm_at_ns = device.pulse.live_ns + ns(self.meta.settings.warm_up_ms);
        [stale_at_ns, warm_at_ns].into_iter().filter(|&at_ns| at_ns > live_ns).fold(until_ns, i64::min)
    }

    /// How many leases of each class live on a host: shares, then by number of GPUs.
    fn classes_of(&self, host: &registry::Host, assume: &Assume) -> Classes {
        let mut leases = Vec::<(u64, bool, usize)>::new();
        for &number in &host.devices {
            for reservation in self.registry.devices[number as usize].facts.reservations.iter().filter(|r| !assume.ended.contains(&r.fence)) {
                let share = reservation.milli < WHOLE_MILLI;
                match leases.iter_mut().find(|(fence, ..)| *fence == reservation.fence) {
                    Some(known) => (known.1, known.2) = (share, known.2 + 1),
                    None => leases.push((reservation.fence, share, 1)),
                }
            }
        }
        let mut classes = [0_u16; CLASSES];
        for (_, share, gpus) in leases {
            let class = &mut classes[if share && gpus == 1 { 0 } else { gpus.min(CLASSES - 1) }];
            *class = class.saturating_add(1);
        }
        classes
    }

    /// The hosts that look different under some assumptions.
    fn assumed_hosts(&self, assume: &Assume) -> BTreeSet<u32> {
        let ended = assume.ended.iter().filter_map(|fence| self.leases.by_fence.get(fence));
        let devices = ended.clone().flat_map(|lease| &lease.held).chain(&assume.kept).chain(assume.kept_slices.keys());
        let of_devices = devices.map(|&number| self.registry.devices[number as usize].facts.host);
        of_devices.chain(ended.flat_map(|lease| lease.hosts.iter().map(|share| share.host))).collect()
    }

    /// The labels of a tenant's leases by host, where they matter.
    fn neighbours<'a>(&'a self, tenant: &TenantId, ask: &Ask<'_>, policy: Name, assume: &Assume) -> Neighbours<'a> {
        let mut neighbours = Neighbours::new();
        if ask.constraints().anti_affinity.is_none() && policy != Name::Reliability {
            return neighbours;
        }
        for lease in self.leases.by_fence.values().filter(|lease| lease.tenant == *tenant && !assume.ended.contains(&lease.fence)) {
            let hosts: BTreeSet<u32> = lease.held.iter().map(|&d| self.registry.devices[d as usize].facts.host).collect();
            for host in hosts {
                neighbours.entry(&self.registry.hosts[host as usize].id).or_default().push(&lease.labels);
            }
        }
        neighbours
    }

    /// Bytes that a new lease may still reserve on each GPU, or what keeps it from being used.
    pub(crate) fn free_memory(&self) -> BTreeMap<GpuUuid, Result<u64, Reason>> {
        let settings = self.placement_settings();
        let free = |(number, device): (u32, &Device)| {
            let mut seen = candidate(number, device);
            self.see_gpu(&mut seen, &self.registry.hosts[device.facts.host as usize], &Assume::default());
            let shut = seen.gate.or(seen.mig.as_ref().map(|_| Reason::MigProfile));
            (device.uuid().clone(), shut.map_or_else(|| Ok(seen.free_vram_bytes(&settings)), Err))
        };
        (0..).zip(&self.registry.devices).filter(|(_, device)| !device.facts.retired).map(free).collect()
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
            // Of a board with MIG mode on, what drains is a part.
            (device.facts.draining_ns.is_some() && device.facts.gpu.mig.is_none(), Reason::Draining),
            (self.clock.live_ns - device.pulse.live_ns < ns(self.meta.settings.warm_up_ms), Reason::WarmingUp),
        ];
        gates.into_iter().find(|&(shut, _)| shut).map(|(_, reason)| reason).or_else(|| device.facts.faults.reason())
    }
}

/// A GPU by what it says of itself.
fn candidate(number: u32, device: &Device) -> Candidate {
    let gpu = &device.facts.gpu;
    let text = |text: &Option<String>| text.as_deref().map(Arc::from);
    Candidate {
        number,
        slot: gpu.slot,
        model: Arc::from(gpu.model.as_str()),
        driver: text(&gpu.driver_version),
        compute_capability: text(&gpu.compute_capability),
        mig_profile: text(&gpu.mig_profile),
        mig: gpu.mig.as_ref().map(|mig| Board::new(Arc::new(mig.clone()))),
        is_cut: false,
        nvlink_domain: gpu.nvlink_domain,
        numa_node: gpu.numa_node,
        memory_total_bytes: None,
        memory_used_bytes: None,
        util_percent: None,
        temperature_mk: None,
        slowdown_temperature_mk: gpu.slowdown_temperature_mk,
        power_limit_mw: gpu.power_limit_mw.or(gpu.power_limit_max_mw),
        gate: None,
        kept: false,
        reserved_milli: 0,
        reserved_vram_bytes: 0,
        unseen_vram_bytes: 0,
    }
}
