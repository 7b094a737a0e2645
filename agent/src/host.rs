//! One host, real or simulated: stable slots, validation, sequences, inventory revisions, held times and energy deltas. Pure: every
//! clock is an argument, and nothing is sent from here.

use plimsoll_schemas::ctl::Class;
use plimsoll_schemas::frame::{Frame, GPUS_MAX, Rejected, Tick};
use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::{self, EventKind, Gpu, HostEvent, Inventory};
use plimsoll_schemas::reading::Number;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::EventTime;
use plimsoll_schemas::validate::{Context, FUTURE_MS_AGENT, POWER_MAX_MW, Registered, Violation, validate};

use crate::source::{GpuReading, Held, HostFacts, HostTick};
use crate::wear::Wear;

/// A wall clock that moves by more than this against CLOCK_BOOTTIME between two ticks has been set, ms.
pub const CLOCK_STEP_MS: i64 = 250;
/// Ticks in a row without an answer after which a GPU counts as lost.
pub const LOST_AFTER_TICKS: u32 = 3;
/// An energy counter that stood still (exporters renew theirs every 30 s) may make up for at least this long, ms.
const ENERGY_CATCH_UP_MS: u64 = 60_000;

/// What all hosts of a process have in common.
#[derive(Debug, Clone)]
pub struct Common {
    /// The agent's life.
    pub epoch: u64,
    /// Kernel boot id.
    pub boot_id: Option<[u8; 16]>,
    /// Name of the source.
    pub source: &'static str,
    /// Intended spacing of ticks, ms.
    pub interval_ms: u32,
    /// Ticks per frame.
    pub publish_ticks: usize,
}

/// One GPU of the host.
#[derive(Debug)]
struct Device {
    gpu: Gpu,
    /// Whether the source names it now.
    named: bool,
    missing_ticks: u32,
    lost: bool,
    energy: Option<Energy>,
    /// What was last believed.
    last: Sample,
    /// What was last said about its memory.
    wear: Wear,
}

#[derive(Debug)]
struct Energy {
    counter_mj: u64,
    changed_at_ns: u64,
}

/// A happening that the host noticed by itself.
#[derive(Debug, PartialEq)]
pub struct Noticed {
    /// The GPU concerned.
    pub uuid: Option<GpuUuid>,
    /// What.
    pub kind: EventKind,
    /// For people.
    pub detail: Option<String>,
}

/// What a tick led to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// A complete frame.
    pub frame: Option<Frame>,
    /// Happenings, to be sent before the frame.
    pub noticed: Vec<Noticed>,
    /// Reasons of this tick's refusals.
    pub refused: Vec<Reason>,
    /// GPU samples believed.
    pub samples: u64,
    /// GPUs nobody named.
    pub unknown: u64,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    common: Common,
    facts: HostFacts,
    devices: Vec<Device>,
    revision: u32,
    next_sample: u64,
    next_event: u64,
    last: Option<(EventTime, u64)>,
    pending: Pending,
}

/// Ticks that wait for their frame to be complete.
#[derive(Debug, Default)]
struct Pending {
    backfill: bool,
    slots: Vec<Slot>,
    ticks: Vec<Tick>,
    samples: Vec<Sample>,
    rejected: Vec<Rejected>,
}

impl Host {
    /// A host that was just named; its first inventory has revision 1.
    pub fn new(common: Common, facts: HostFacts) -> Self {
        let mut host = Self {
            common,
            facts: HostFacts { gpus: Vec::new(), ..facts.clone() },
            devices: Vec::new(),
            revision: 1,
            next_sample: 1,
            next_event: 1,
            last: None,
            pending: Pending::default(),
        };
        host.take(facts);
        host
    }

    /// Its token.
    pub fn id(&self) -> &HostId {
        &self.facts.host
    }

    /// How many GPUs the source names now.
    pub fn gpu_count(&self) -> usize {
        self.devices.iter().filter(|device| device.named).count()
    }

    /// What is known of each GPU now: UUID, memory on board, last sample.
    pub fn gpus(&self) -> impl Iterator<Item = (&GpuUuid, Option<u64>, &Sample)> {
        self.devices.iter().filter(|device| device.named).map(|device| (&device.gpu.uuid, device.gpu.memory_total_bytes, &device.last))
    }

    /// Takes what the source now says of the host: true = something changed and the revision grew.
    pub fn describe(&mut self, facts: HostFacts) -> bool {
        let changed = self.take(facts);
        if changed {
            self.revision += 1;
        }
        changed
    }

    fn take(&mut self, mut facts: HostFacts) -> bool {
        let gpus = std::mem::take(&mut facts.gpus);
        let mut changed = self.facts != facts;
        self.facts = facts;
        let named = |uuid: &GpuUuid| gpus.iter().any(|gpu| gpu.uuid == *uuid);
        for device in &mut self.devices {
            let still = named(&device.gpu.uuid);
            changed |= device.named != still;
            device.named = still;
        }
        for mut gpu in gpus {
            match self.devices.iter_mut().find(|device| device.gpu.uuid == gpu.uuid) {
                Some(device) => {
                    gpu.slot = device.gpu.slot;
                    changed |= device.gpu != gpu;
                    device.gpu = gpu;
                }
                None => {
                    // A slot is never given twice in an agent's life, so old frames always mean the same GPU.
                    let Ok(slot) = u8::try_from(self.devices.len()) else {
                        tracing::error!(host = %self.facts.host, uuid = %gpu.uuid, "more than {GPUS_MAX} GPUs on one host; this one is left out");
                        continue;
                    };
                    gpu.slot = Slot(slot);
                    changed = true;
                    self.devices.push(Device {
                        gpu,
                        named: true,
                        missing_ticks: 0,
                        lost: false,
                        energy: None,
                        last: Sample::default(),
                        wear: Wear::default(),
                    });
                }
            }
        }
        changed
    }

    /// The registration as of now. Takes the next sequence of class event.
    pub fn inventory(&mut self, sent_at: EventTime) -> Inventory {
        Inventory {
            schema_version: inventory::VERSION,
            host: self.facts.host.clone(),
            epoch: self.common.epoch,
            sequence: self.event_sequence(),
            revision: self.revision,
            sent_at,
            hostname: self.facts.hostname.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            source: self.common.source.to_owned(),
            interval_ms: self.common.interval_ms,
            placement: self.facts.placement.clone(),
            cpu_cores: self.facts.cpu_cores,
            ram_bytes: self.facts.ram_bytes,
            gpus: self.devices.iter().filter(|device| device.named).map(|device| device.gpu.clone()).collect(),
        }
    }

    /// A happening as a message. Takes the next sequence of class event.
    pub fn event(&mut self, happened_at: EventTime, uuid: Option<GpuUuid>, kind: EventKind, detail: Option<String>) -> HostEvent {
        HostEvent {
            schema_version: inventory::VERSION,
            host: self.facts.host.clone(),
            epoch: self.common.epoch,
            sequence: self.event_sequence(),
            happened_at,
            uuid,
            kind,
            detail,
        }
    }

    fn event_sequence(&mut self) -> u64 {
        self.next_event += 1;
        self.next_event - 1
    }

    /// The last number given in a numbering; 0 = none.
    pub fn numbered(&self, numbering: Class) -> u64 {
        match numbering {
            Class::Sample => self.next_sample - 1,
            Class::Event => self.next_event - 1,
        }
    }

    /// The agent's life.
    pub fn epoch(&self) -> u64 {
        self.common.epoch
    }

    /// Takes one tick. `now` is the agent's wall clock, against which recorded times are judged.
    pub fn observe(&mut self, tick: HostTick, now: EventTime) -> Outcome {
        let mut outcome = Outcome::default();
        let (held_ms, backfill) = self.held(&tick, &mut outcome);
        let slots: Vec<Slot> = self.devices.iter().filter(|device| device.named).map(|device| device.gpu.slot).collect();
        if !self.pending.ticks.is_empty() && (self.pending.slots != slots || self.pending.backfill != backfill) {
            // A frame is a rectangle: other GPUs, other frame.
            outcome.frame = self.flush();
        }
        let number = self.pending.ticks.len();
        let judged_at = if matches!(tick.held, Held::SinceBoot(_)) { tick.sampled_at } else { now };
        let boot_ns = if let Held::SinceBoot(ns) = tick.held { ns } else { u64::try_from(tick.sampled_at.0).unwrap_or(0) };
        let mut samples = vec![Sample::default(); slots.len()];
        for reading in tick.gpus {
            let Some((gpu, device)) = self.devices.iter_mut().filter(|device| device.named).enumerate().find(|(_, d)| d.gpu.uuid == reading.uuid)
            else {
                outcome.unknown += 1;
                continue;
            };
            let wear = reading.wear;
            let (sample, violations) = device.judge(reading, tick.sampled_at, judged_at, boot_ns);
            outcome.refused.extend(violations.iter().map(|violation| violation.reason));
            self.pending.rejected.extend(violations.into_iter().map(|Violation { field, reason, raw }| Rejected {
                field,
                tick: number,
                gpu,
                reason,
                raw,
            }));
            outcome.samples += u64::from(!sample.is_empty());
            device.last = sample;
            device.missing_ticks = 0;
            let news = device.wear.take(wear, sample.ecc_uncorrected());
            outcome.noticed.extend(news.into_iter().map(|kind| Noticed { uuid: Some(device.gpu.uuid.clone()), kind, detail: None }));
            if std::mem::take(&mut device.lost) {
                outcome.noticed.push(Noticed { uuid: Some(device.gpu.uuid.clone()), kind: EventKind::GpuReturned, detail: None });
            }
            samples[gpu] = sample;
        }
        // A recorded trace that does not mention a device says nothing about its health.
        if matches!(tick.held, Held::SinceBoot(_)) {
            self.count_missing(&samples, &mut outcome);
        }
        self.pending.slots = slots;
        self.pending.backfill = backfill;
        self.pending.ticks.push(Tick { sampled_at: tick.sampled_at, held_ms });
        self.pending.samples.extend(samples);
        // Two frames from one tick would need a second way out; the first one is complete anyway and the second follows with the next tick.
        if outcome.frame.is_none() && self.pending.ticks.len() >= self.common.publish_ticks {
            outcome.frame = self.flush();
        }
        outcome
    }

    fn held(&mut self, tick: &HostTick, outcome: &mut Outcome) -> (u32, bool) {
        let cap_ms = self.common.interval_ms.saturating_mul(5) / 2;
        match tick.held {
            Held::Recorded { held_ms, live } => (held_ms, !live),
            Held::SinceBoot(boot_ns) => {
                let before = self.last.replace((tick.sampled_at, boot_ns));
                let Some((wall_before, boot_before)) = before else { return (0, false) };
                let held_ms = boot_ns.saturating_sub(boot_before) / 1_000_000;
                let step_ms = tick.sampled_at.ms_since(wall_before) - i64::try_from(held_ms).unwrap_or(i64::MAX);
                if step_ms.abs() > CLOCK_STEP_MS {
                    outcome.noticed.push(Noticed { uuid: None, kind: EventKind::ClockStep { step_ms }, detail: None });
                }
                (u32::try_from(held_ms).unwrap_or(u32::MAX).min(cap_ms), false)
            }
        }
    }

    fn count_missing(&mut self, samples: &[Sample], outcome: &mut Outcome) {
        for (device, sample) in self.devices.iter_mut().filter(|device| device.named).zip(samples) {
            if !sample.is_empty() {
                continue;
            }
            device.last = Sample::default();
            device.missing_ticks = device.missing_ticks.saturating_add(1);
            if device.missing_ticks == LOST_AFTER_TICKS {
                device.lost = true;
                let detail = Some(format!("no answer for {LOST_AFTER_TICKS} ticks"));
                outcome.noticed.push(Noticed { uuid: Some(device.gpu.uuid.clone()), kind: EventKind::GpuLost, detail });
            }
        }
    }

    /// The frame of the ticks that wait, if any.
    pub fn flush(&mut self) -> Option<Frame> {
        if self.pending.ticks.is_empty() {
            return None;
        }
        let Pending { backfill, slots, ticks, samples, rejected } = std::mem::take(&mut self.pending);
        self.next_sample += 1;
        Some(Frame {
            host: self.facts.host.clone(),
            epoch: self.common.epoch,
            sequence: self.next_sample - 1,
            boot_id: self.common.boot_id,
            inventory_revision: self.revision,
            interval_ms: self.common.interval_ms,
            backfill,
            slots,
            ticks,
            samples,
            rejected,
            rejected_more: 0,
        })
    }
}

impl Device {
    /// What is believed of a reading, and everything that was refused.
    fn judge(&mut self, mut given: GpuReading, sampled_at: EventTime, now: EventTime, boot_ns: u64) -> (Sample, Vec<Violation>) {
        let mut violations = std::mem::take(&mut given.refused);
        if let Some(counter) = given.energy_counter_mj {
            match self.energy_delta(counter, boot_ns) {
                Ok(Some(delta)) => given.reading.set(Field::EnergyMj, delta),
                Ok(None) => {}
                Err(reason) => violations.push(Violation { field: Some(Field::EnergyMj), reason, raw: counter.to_string() }),
            }
        }
        let registered = Registered { memory_total_bytes: self.gpu.memory_total_bytes, power_limit_max_mw: self.gpu.power_limit_max_mw };
        let context =
            Context { accepting: true, registered: Some(registered), sampled_at_ns: i128::from(sampled_at.0), now, future_ms: FUTURE_MS_AGENT };
        let verdict = validate(&given.reading, &context);
        violations.extend(verdict.violations);
        (verdict.sample.unwrap_or_default(), violations)
    }

    /// Energy since the previous tick, mJ. Nothing at first, when there is nothing to compare with; after a reset the base moves.
    fn energy_delta(&mut self, counter: Number, boot_ns: u64) -> Result<Option<u64>, Reason> {
        if let Some(reason) = counter.sentinel() {
            return Err(reason);
        }
        if !counter.as_f64().is_finite() {
            return Err(Reason::NotFinite);
        }
        if !(0.0..=i64::MAX as f64).contains(&counter.as_f64()) {
            return Err(Reason::OutOfRange);
        }
        let counter_mj = match counter {
            Number::Int(int) => u64::try_from(int).unwrap_or(u64::MAX),
            Number::Float(float) => float.round() as u64,
        };
        let Some(base) = &mut self.energy else {
            self.energy = Some(Energy { counter_mj, changed_at_ns: boot_ns });
            return Ok(None);
        };
        if counter_mj == base.counter_mj {
            return Ok(Some(0));
        }
        let elapsed_ms = (boot_ns.saturating_sub(base.changed_at_ns) / 1_000_000).max(ENERGY_CATCH_UP_MS);
        let before_mj = std::mem::replace(&mut base.counter_mj, counter_mj);
        base.changed_at_ns = boot_ns;
        let Some(delta) = counter_mj.checked_sub(before_mj) else { return Err(Reason::CounterReset) };
        // The validator's bound on power, over the time in which it was used.
        let limit_mw = self.gpu.power_limit_max_mw.map_or(POWER_MAX_MW, |limit| limit.saturating_mul(2));
        if u128::from(delta) * 1_000 > u128::from(limit_mw) * u128::from(elapsed_ms) { Err(Reason::OutOfRange) } else { Ok(Some(delta)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Delivery;
    use plimsoll_schemas::inventory::Placement;
    use plimsoll_schemas::inventory::Remap;
    use plimsoll_schemas::reading::Reading;

    const START: EventTime = EventTime(1_800_000_000_000_000_000);

    fn gpu(uuid: &str) -> Gpu {
        Gpu {
            slot: Slot(0),
            uuid: uuid.parse().expect("valid"),
            index: 0,
            model: "M".to_owned(),
            memory_total_bytes: Some(80 << 30),
            mig_parent_uuid: None,
            mig_profile: None,
            mig: None,
            arch: None,
            nvlink_domain: None,
            numa_node: None,
            pci_bus_id: None,
            driver_version: None,
            compute_capability: None,
            power_limit_mw: None,
            power_limit_max_mw: Some(400_000),
            slowdown_temperature_mk: None,
        }
    }

    fn facts(uuids: &[&str]) -> HostFacts {
        HostFacts {
            host: "h".parse().expect("valid"),
            hostname: "h".to_owned(),
            placement: Placement::default(),
            cpu_cores: None,
            ram_bytes: None,
            gpus: uuids.iter().map(|uuid| gpu(uuid)).collect(),
        }
    }

    fn host(uuids: &[&str], publish_ticks: usize) -> Host {
        Host::new(Common { epoch: 9, boot_id: None, source: "sim", interval_ms: 1_000, publish_ticks }, facts(uuids))
    }

    fn tick(at_ms: i64, boot_ms: u64, gpus: &[(&str, Option<i128>)]) -> HostTick {
        let gpus = gpus
            .iter()
            .map(|&(uuid, energy)| GpuReading {
                reading: Reading::default().with(Field::UtilPercent, 50),
                energy_counter_mj: energy.map(Number::Int),
                ..GpuReading::new(uuid.parse().expect("valid"))
            })
            .collect();
        HostTick {
            host: "h".parse().expect("valid"),
            sampled_at: START.plus_ms(at_ms),
            held: Held::SinceBoot(boot_ms * 1_000_000),
            gpus,
            delivery: Delivery::Normal,
        }
    }

    #[test]
    fn held_is_the_boot_time_since_the_previous_tick_and_bounded() {
        let mut host = host(&["A"], 1);
        let mut held = |at, boot| host.observe(tick(at, boot, &[("A", None)]), START).frame.expect("one tick, one frame").ticks[0].held_ms;
        assert_eq!(held(0, 50_000), 0);
        assert_eq!(held(1_010, 51_010), 1_010);
        assert_eq!(held(9_000, 59_000), 2_500);
    }

    #[test]
    fn a_clock_that_was_set_is_an_event_and_leaves_held_alone() {
        let mut host = host(&["A"], 1);
        host.observe(tick(0, 1_000, &[("A", None)]), START);
        let outcome = host.observe(tick(3_601_000, 2_000, &[("A", None)]), START);
        assert_eq!(outcome.noticed, [Noticed { uuid: None, kind: EventKind::ClockStep { step_ms: 3_600_000 }, detail: None }]);
        assert_eq!(outcome.frame.expect("a frame").ticks[0].held_ms, 1_000);
        assert_eq!(outcome.samples, 1, "a host is judged by its own clock; the processor compares clocks");
        assert!(host.observe(tick(3_602_200, 3_000, &[("A", None)]), START).noticed.is_empty(), "200 ms are jitter");
    }

    #[test]
    fn energy_is_the_difference_of_two_ticks_and_a_reset_is_named() {
        let mut host = host(&["A"], 1);
        let mut energy = |at: i64, counter| {
            let outcome = host.observe(tick(at, at as u64, &[("A", Some(counter))]), START);
            (outcome.frame.expect("a frame").samples[0].energy_mj(), outcome.refused)
        };
        assert_eq!(energy(0, 5_000), (None, vec![]));
        assert_eq!(energy(1_000, 305_000), (Some(300_000), vec![]));
        assert_eq!(energy(2_000, 305_000), (Some(0), vec![]));
        assert_eq!(energy(3_000, 100), (None, vec![Reason::CounterReset]));
        assert_eq!(energy(4_000, 200_100), (Some(200_000), vec![]));
        assert_eq!(energy(5_000, 10_000_000_000), (None, vec![Reason::OutOfRange]), "nothing uses 10 MJ in a second");
        assert_eq!(energy(6_000, 0x7fff_ffff_ffff_fff2), (None, vec![Reason::NotSupported]));
    }

    #[test]
    fn a_slot_belongs_to_a_uuid_for_ever() {
        let mut host = host(&["A", "B"], 1);
        assert!(!host.describe(facts(&["A", "B"])), "nothing changed");
        assert!(host.describe(facts(&["B", "C"])));
        let inventory = host.inventory(START);
        let slots: Vec<_> = inventory.gpus.iter().map(|gpu| (gpu.uuid.as_str(), gpu.slot.0)).collect();
        assert_eq!((inventory.revision, slots), (2, vec![("B", 1), ("C", 2)]));
        assert!(host.describe(facts(&["A", "C"])));
        let slots: Vec<_> = host.inventory(START).gpus.iter().map(|gpu| gpu.slot.0).collect();
        assert_eq!(slots, [0, 2]);
    }

    #[test]
    fn frames_hold_as_many_ticks_as_asked_and_end_when_the_gpus_change() {
        let mut host = host(&["A", "B"], 3);
        let both = [("A", None), ("B", None)];
        assert!(host.observe(tick(0, 1_000, &both), START).frame.is_none());
        assert!(host.observe(tick(1_000, 2_000, &both), START).frame.is_none());
        let frame = host.observe(tick(2_000, 3_000, &both), START).frame.expect("three ticks");
        assert_eq!((frame.ticks.len(), frame.samples.len(), frame.sequence), (3, 6, 1));
        assert!(host.observe(tick(3_000, 4_000, &both), START).frame.is_none());
        host.describe(facts(&["A"]));
        let frame = host.observe(tick(4_000, 5_000, &[("A", None)]), START).frame.expect("cut short");
        assert_eq!((frame.ticks.len(), frame.slots.len(), frame.sequence), (1, 2, 2));
        assert_eq!(host.flush().expect("the rest").slots, [Slot(0)]);
        assert!(host.flush().is_none());
    }

    #[test]
    fn a_gpu_that_does_not_answer_has_an_empty_sample_and_is_lost_after_three_ticks() {
        let mut host = host(&["A", "B"], 1);
        let mut noticed = Vec::new();
        for second in 0..5 {
            let outcome = host.observe(tick(second * 1_000, second as u64 * 1_000, &[("B", None)]), START);
            assert!(outcome.frame.expect("a frame").samples[0].is_empty());
            noticed.extend(outcome.noticed.into_iter().map(|noticed| noticed.kind));
        }
        assert_eq!(noticed, [EventKind::GpuLost]);
        let outcome = host.observe(tick(5_000, 5_000, &[("A", None), ("B", None), ("X", None)]), START);
        assert_eq!((outcome.noticed[0].kind.clone(), outcome.unknown), (EventKind::GpuReturned, 1));
    }

    #[test]
    fn rows_that_wait_to_be_replaced_are_said_once_about_their_gpu() {
        let mut host = host(&["A", "B"], 1);
        let worn = |second: i64| {
            let mut tick = tick(second * 1_000, second as u64 * 1_000, &[("A", None), ("B", None)]);
            tick.gpus[1].wear = Wear { remap: Some(Remap::Pending), rows: Some(3), ..Wear::default() };
            tick
        };
        let said: Vec<_> = (0..3).flat_map(|second| host.observe(worn(second), START).noticed).collect();
        let kind = EventKind::Remap { state: Remap::Pending, rows: 3 };
        assert_eq!(said, [Noticed { uuid: Some("B".parse().expect("valid")), kind, detail: None }]);
    }

    #[test]
    fn refusals_travel_with_the_frame() {
        let mut host = host(&["A", "B"], 1);
        let mut bad = tick(0, 1_000, &[("A", None), ("B", None)]);
        bad.gpus[1].reading.set(Field::PowerMw, f64::NAN);
        let not_there = Violation { field: Some(Field::MemoryTemperatureMk), reason: Reason::NotSupported, raw: "0".to_owned() };
        bad.gpus[1].refused.push(not_there);
        let frame = host.observe(bad, START).frame.expect("a frame");
        let rejected: Vec<_> = frame.rejected.iter().map(|r| (r.gpu, r.field, r.reason, r.raw.as_str())).collect();
        assert_eq!(rejected, [(1, Some(Field::MemoryTemperatureMk), Reason::NotSupported, "0"), (1, Some(Field::PowerMw), Reason::NotFinite, "NaN")]);
        assert_eq!(Frame::decode(&frame.encode()).expect("decodes"), frame);
    }

    #[test]
    fn inventories_and_events_share_one_sequence_from_one() {
        let mut host = host(&["A"], 1);
        assert_eq!(host.inventory(START).sequence, 1);
        assert_eq!(host.event(START, None, EventKind::Stopping, None).sequence, 2);
        assert_eq!(host.inventory(START).sequence, 3);
    }
}
