//! Registration: the newest inventory of a host says which GPUs it has. UUIDs identify; two live claims to one are refused.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::id::{GpuUuid, Slot};
use plimsoll_schemas::inventory::{Gpu, Inventory};
use plimsoll_schemas::mig;
use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::time::{LogTime, NS_PER_S};

use crate::State;
use crate::clock::floor;
use crate::emit::Emit;
use crate::faults::Faults;
use crate::frames::INTERVAL_MS_MAX;
use crate::lease_use::LeaseUse;
use crate::placement::reputation::Reputation;
use crate::ranges::{HostRanges, Seen};
use crate::refuse::{Limiter, Refusal};
use crate::registry::{DEVICES_MAX, Facts, HOSTS_MAX, Health, Host, HostFacts, INVENTORIES_MAX, Known, NO_DEVICE, Pulse, Silence, Use};
use crate::ring::Ring;
use crate::skew::Skew;
use crate::state_time::Cause;
use crate::window::PANE_NS;

/// How far before its registration a host's windows are still open: frames may have been taken before the inventory arrived, ns.
const BEFORE_NS: i64 = 60 * NS_PER_S;

impl State {
    /// Folds an inventory.
    pub(crate) fn inventory(&mut self, inventory: &Inventory, emit: &mut Emit<'_>) {
        if let Err(detail) = check(inventory) {
            let host = self.registry.host_number(&inventory.host);
            return self.refuse_inventory(host, inventory, Reason::Inconsistent, detail, emit);
        }
        let Some((host, new)) = self.host_of(inventory, emit) else { return };
        if self.mark(host, inventory.epoch, Class::Event, inventory.sequence, emit) != Seen::New {
            return;
        }
        let state = &self.registry.hosts[host as usize];
        let newest = (state.epoch, state.revision);
        let this = (inventory.epoch, inventory.revision);
        if this < newest {
            return self.remember_old(host, inventory);
        }
        let facts = facts_of(inventory);
        let changed = !new && state.facts != facts;
        if changed {
            self.close_host_version(host, emit);
        }
        let state = self.registry.host_mut(host);
        state.facts = facts;
        (state.epoch, state.revision) = this;
        let numbers = self.register_gpus(host, inventory, emit);
        self.retire_missing(host, &numbers, emit);
        self.set_devices(host, inventory, numbers);
        self.restate_boards(host, emit);
        self.recount(host, emit.logged_at());
        if new || changed {
            self.publish_host(host, if new { "registered" } else { "changed" }, emit);
        }
        if this.0 > newest.0 {
            self.clear_health(host, emit);
        }
        self.wait_for_silence(host);
    }

    /// The host of an inventory, made if it is new; absent if the cell is full.
    fn host_of(&mut self, inventory: &Inventory, emit: &mut Emit<'_>) -> Option<(u32, bool)> {
        if let Some(number) = self.registry.host_number(&inventory.host) {
            return Some((number, false));
        }
        if self.registry.hosts.len() >= HOSTS_MAX {
            self.refuse_inventory(None, inventory, Reason::LimitReached, format!("the cell has {HOSTS_MAX} hosts"), emit);
            return None;
        }
        let now = emit.logged_at();
        let closed_ns = floor(now.0.saturating_sub(BEFORE_NS), PANE_NS);
        let number = self.registry.add_host(Host {
            id: inventory.host.clone(),
            facts: facts_of(inventory),
            epoch: 0,
            revision: 0,
            inventories: Vec::new(),
            devices: Vec::new(),
            enrolled: self.meta.enrolled_early.remove(&inventory.host),
            expelled: false,
            cordoned: false,
            drains: false,
            watermark_ns: closed_ns,
            closed_ns,
            heard_ns: self.clock.live_ns,
            silence: Silence::Heard,
            valid_from: now,
            published: DeviceState::Ok,
            limiter: Limiter::default(),
            skew: Skew::default(),
            reputation: Reputation::default(),
            tallies: Vec::new(),
            ranges: HostRanges::default(),
            forgotten_epoch: 0,
            dirty: true,
            touched: false,
        });
        self.behind.insert((closed_ns, number));
        Some((number, true))
    }

    /// An inventory older than the newest one only helps to read the frames of a backlog.
    fn remember_old(&mut self, host: u32, inventory: &Inventory) {
        let known: Vec<(Slot, u32)> = inventory
            .gpus
            .iter()
            .filter_map(|gpu| {
                let number = self.registry.device_number(&gpu.uuid)?;
                (self.registry.devices[number as usize].facts.host == host).then_some((gpu.slot, number))
            })
            .collect();
        self.remember(host, Known { epoch: inventory.epoch, revision: inventory.revision, slots: slot_table(&known) });
    }

    fn remember(&mut self, host: u32, known: Known) {
        let inventories = &mut self.registry.host_mut(host).inventories;
        match inventories.binary_search_by_key(&(known.epoch, known.revision), |k| (k.epoch, k.revision)) {
            Ok(at) => inventories[at] = known,
            Err(at) => inventories.insert(at, known),
        }
        if inventories.len() > INVENTORIES_MAX {
            inventories.remove(0);
        }
    }

    /// Registers every GPU of an inventory that may be; returns their slots and numbers.
    fn register_gpus(&mut self, host: u32, inventory: &Inventory, emit: &mut Emit<'_>) -> Vec<(Slot, u32)> {
        let mut numbers = Vec::with_capacity(inventory.gpus.len());
        for gpu in &inventory.gpus {
            let number = match self.registry.device_number(&gpu.uuid) {
                Some(number) => self.known_gpu(host, number, gpu, emit),
                None => self.new_gpu(host, gpu, emit),
            };
            match number {
                Ok(number) => numbers.push((gpu.slot, number)),
                Err((reason, detail)) => self.refuse_inventory(Some(host), inventory, reason, detail, emit),
            }
        }
        numbers
    }

    fn new_gpu(&mut self, host: u32, gpu: &Gpu, emit: &mut Emit<'_>) -> Result<u32, (Reason, String)> {
        let key = gpu.uuid.key();
        if let Some(&other) = self.registry.by_key.get(&key) {
            let other = self.registry.devices[other as usize].uuid();
            return Err((Reason::DeviceKeyCollision, format!("{} and {other} have the key {key}", gpu.uuid)));
        }
        if self.registry.devices.len() >= DEVICES_MAX {
            return Err((Reason::LimitReached, format!("{}: the cell has had {DEVICES_MAX} GPUs", gpu.uuid)));
        }
        let now = emit.logged_at();
        let number = self.registry.add_device(Facts {
            gpu: gpu.clone(),
            key,
            host,
            cut: false,
            registered_at: now,
            retired: false,
            cordoned: false,
            drains: false,
            faults: Faults::default(),
            reservations: Vec::new(),
            draining_ns: None,
            leased_from: None,
            leased_before: None,
            valid_from: LogTime::default(),
            published: DeviceState::Ok,
            silence: Silence::Heard,
            using: Use::Unknown,
            lease_use: LeaseUse::default(),
            unwell: None,
        });
        self.registry.devices[number as usize].pulse = Pulse { heard_ns: self.clock.live_ns, credited_ms: now.millis(), ..Pulse::default() };
        let state = self.stands(number);
        self.open_device_version(number, state, Cause::of("registered"), emit);
        Ok(number)
    }

    fn known_gpu(&mut self, host: u32, number: u32, gpu: &Gpu, emit: &mut Emit<'_>) -> Result<u32, (Reason, String)> {
        let facts = &self.registry.devices[number as usize].facts;
        let moved = facts.host != host;
        if moved && !facts.retired {
            let other = &self.registry.hosts[facts.host as usize];
            if other.silence != Silence::Lost {
                return Err((Reason::DuplicateUuid, format!("{} is live on {}", gpu.uuid, other.id)));
            }
            self.retire(number, "moved", emit);
            let other = self.registry.devices[number as usize].facts.host;
            self.registry.host_mut(other).devices.retain(|&d| d != number);
            self.registry.restated.insert(other);
            self.recount(other, emit.logged_at());
        }
        let facts = &self.registry.devices[number as usize].facts;
        let returns = facts.retired;
        if !returns && facts.gpu == *gpu {
            return Ok(number);
        }
        if !returns {
            self.close_device_version(number, emit);
        }
        let live_ns = self.clock.live_ns;
        let device = self.registry.device_mut(number);
        device.facts.gpu = gpu.clone();
        device.facts.host = host;
        device.facts_dirty = true;
        if returns {
            device.facts.retired = false;
            device.facts.registered_at = emit.logged_at();
            device.facts.silence = Silence::Heard;
            let credited_ms = emit.logged_at().millis();
            device.pulse = Pulse { heard_ns: live_ns, credited_ms, sessions: device.pulse.sessions, ..Pulse::default() };
            device.pulse_dirty = true;
            // What it said before was by another host's clock, or of another life.
            device.recent = Ring::default();
        }
        let state = self.stands(number);
        self.open_device_version(number, state, Cause::of(if returns { "registered" } else { "changed" }), emit);
        self.restate(number, Cause::of("changed"), emit);
        Ok(number)
    }

    /// Notes which GPUs of a host are cut into MIG instances, or can be, and works out anew where those stand of which that has changed.
    fn restate_boards(&mut self, host: u32, emit: &mut Emit<'_>) {
        let devices = self.registry.hosts[host as usize].devices.clone();
        let gpu = |number: u32| &self.registry.devices[number as usize].facts.gpu;
        let parents: BTreeSet<GpuUuid> = devices.iter().filter_map(|&number| gpu(number).mig_parent_uuid.clone()).collect();
        for number in devices {
            let facts = &self.registry.devices[number as usize].facts;
            let cut = facts.gpu.mig.is_some() || parents.contains(&facts.gpu.uuid);
            if cut != facts.cut {
                let device = self.registry.device_mut(number);
                device.facts.cut = cut;
                device.facts_dirty = true;
                self.restate(number, Cause::of("changed"), emit);
            }
        }
    }

    /// GPUs that the inventory no longer names are retired.
    fn retire_missing(&mut self, host: u32, numbers: &[(Slot, u32)], emit: &mut Emit<'_>) {
        let missing: Vec<u32> =
            self.registry.hosts[host as usize].devices.iter().copied().filter(|&d| !numbers.iter().any(|&(_, number)| number == d)).collect();
        for number in missing {
            self.retire(number, "retired", emit);
        }
    }

    /// Ends what is open for a GPU. Its leases keep what they hold: nothing becomes free by silence.
    fn retire(&mut self, number: u32, cause: &str, emit: &mut Emit<'_>) {
        self.close_all(number, emit);
        self.end_episodes(number, emit);
        self.close_device_version(number, emit);
        let device = self.registry.device_mut(number);
        device.facts.retired = true;
        device.facts.using = Use::Unknown;
        device.facts_dirty = true;
        device.pulse.live = false;
        device.pulse.calm_ns = None;
        device.pulse_dirty = true;
        let state = device.facts.published;
        self.say_device(number, state, Cause::of(cause), emit);
        self.alert_gone(number, emit);
    }

    fn set_devices(&mut self, host: u32, inventory: &Inventory, numbers: Vec<(Slot, u32)>) {
        self.remember(host, Known { epoch: inventory.epoch, revision: inventory.revision, slots: slot_table(&numbers) });
        let mut devices: Vec<u32> = numbers.into_iter().map(|(_, number)| number).collect();
        self.registry.sort_devices(&mut devices);
        self.registry.host_mut(host).devices = devices;
        self.registry.restated.insert(host);
    }

    /// A new life of the agent clears what an older one complained about.
    fn clear_health(&mut self, host: u32, emit: &mut Emit<'_>) {
        let epoch = self.registry.hosts[host as usize].epoch;
        for number in self.registry.hosts[host as usize].devices.clone() {
            let faults = &self.registry.devices[number as usize].facts.faults;
            if faults.health() != Health::Ok && faults.noted_epoch < epoch {
                self.change_faults(number, Faults::clear_on_restart);
                self.restate(number, Cause::of("agent_restarted"), emit);
            }
        }
    }

    /// Where a GPU stands now.
    fn stands(&self, number: u32) -> DeviceState {
        let facts = &self.registry.devices[number as usize].facts;
        facts.state(&self.registry.hosts[facts.host as usize])
    }

    fn refuse_inventory(&mut self, number: Option<u32>, inventory: &Inventory, reason: Reason, detail: String, emit: &mut Emit<'_>) {
        let refusal =
            Refusal { at: Some(inventory.sent_at), epoch: Some(inventory.epoch), sequence: Some(inventory.sequence), ..Refusal::new(reason, detail) };
        self.refuse(number, Some(&inventory.host), &format!("inventory.{}", inventory.host), refusal, emit);
    }
}

fn facts_of(inventory: &Inventory) -> HostFacts {
    HostFacts {
        hostname: inventory.hostname.clone(),
        agent_version: inventory.agent_version.clone(),
        placement: inventory.placement.clone(),
        cpu_cores: inventory.cpu_cores,
        ram_bytes: inventory.ram_bytes,
        gpu_count: u16::try_from(inventory.gpus.len()).unwrap_or(u16::MAX),
        interval_ms: inventory.interval_ms,
    }
}

fn slot_table(numbers: &[(Slot, u32)]) -> Vec<u32> {
    let by_slot: BTreeMap<usize, u32> = numbers.iter().map(|&(slot, number)| (usize::from(slot.0), number)).collect();
    let length = by_slot.keys().next_back().map_or(0, |&last| last + 1);
    (0..length).map(|slot| by_slot.get(&slot).copied().unwrap_or(NO_DEVICE)).collect()
}

/// Whether the parts of an inventory agree.
fn check(inventory: &Inventory) -> Result<(), String> {
    if inventory.epoch == 0 || inventory.sequence == 0 {
        return Err(format!("epoch {} and sequence {} count from 1", inventory.epoch, inventory.sequence));
    }
    if !(1..=INTERVAL_MS_MAX).contains(&inventory.interval_ms) {
        return Err(format!("interval_ms {}, expected 1 to {INTERVAL_MS_MAX}", inventory.interval_ms));
    }
    let (mut slots, mut uuids) = (BTreeSet::new(), BTreeSet::new());
    for gpu in &inventory.gpus {
        if !slots.insert(gpu.slot) {
            return Err(format!("slot {} twice", gpu.slot.0));
        }
        if !uuids.insert(&gpu.uuid) {
            return Err(format!("{} twice", gpu.uuid));
        }
    }
    mig::check(&inventory.gpus)
}
