//! A naive agent: samples its GPUs each second, numbers its frames, keeps every one until it is acknowledged and sends it again if it is not.

use std::collections::VecDeque;

use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{CellId, GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::{Gpu, Inventory};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::subject::LogSubject;
use plimsoll_schemas::time::EventTime;

use super::rng::Rng;

const INTERVAL_MS: u32 = 1_000;
const MEMORY_BYTES: u64 = 80 << 30;

/// A message on its way to the log.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Subject.
    pub subject: String,
    /// Payload.
    pub payload: Vec<u8>,
}

/// One host.
#[derive(Debug)]
pub struct Host {
    cell: CellId,
    /// Its token.
    pub id: HostId,
    gpus: u8,
    epoch: u64,
    samples: u64,
    events: u64,
    /// What its clock shows more than the true time, ns.
    pub skew_ns: i64,
    /// What was not acknowledged yet, oldest first.
    pub unacknowledged: VecDeque<Letter>,
}

impl Host {
    /// A host that has just started.
    pub fn new(cell: CellId, number: u64, gpus: u8) -> Self {
        let id = format!("host-{number}").parse().expect("letters and digits");
        Self { cell, id, gpus, epoch: 0, samples: 0, events: 0, skew_ns: 0, unacknowledged: VecDeque::new() }
    }

    /// Starts (again): what it had in memory is gone, its numbers begin anew under a new epoch.
    pub fn start(&mut self, now_ns: i64) {
        self.unacknowledged.clear();
        (self.epoch, self.samples, self.events) = (self.epoch + 1, 0, 0);
        self.announce(now_ns);
    }

    /// Announces its GPUs.
    pub fn announce(&mut self, now_ns: i64) {
        self.events += 1;
        let inventory = Inventory {
            schema_version: 1,
            host: self.id.clone(),
            epoch: self.epoch,
            sequence: self.events,
            revision: 1,
            sent_at: EventTime(now_ns + self.skew_ns),
            hostname: self.id.to_string(),
            agent_version: "sim".to_owned(),
            source: "sim".to_owned(),
            interval_ms: INTERVAL_MS,
            placement: Default::default(),
            cpu_cores: None,
            ram_bytes: None,
            gpus: (0..self.gpus).map(|slot| self.gpu(slot)).collect(),
        };
        let payload = serde_json::to_vec(&inventory).expect("an inventory is plain data");
        self.unacknowledged.push_back(Letter { subject: LogSubject::Inventory(self.id.clone()).to_subject(&self.cell), payload });
    }

    /// Takes a sample of every GPU.
    pub fn sample(&mut self, now_ns: i64, rng: &mut Rng) {
        self.samples += 1;
        let samples = (0..self.gpus)
            .map(|_| {
                let used = if rng.chance(50) { rng.below(1 << 29) } else { rng.below(MEMORY_BYTES) };
                Sample::default()
                    .with(Field::UtilPercent, rng.below(101))
                    .with(Field::MemoryUsedBytes, used)
                    .with(Field::MemoryTotalBytes, MEMORY_BYTES)
                    .with(Field::TemperatureMk, 300_000 + rng.below(60_000))
                    .with(Field::PowerMw, rng.below(700_000))
            })
            .collect();
        let frame = Frame {
            host: self.id.clone(),
            epoch: self.epoch,
            sequence: self.samples,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: INTERVAL_MS,
            backfill: false,
            slots: (0..self.gpus).map(Slot).collect(),
            ticks: vec![Tick { sampled_at: EventTime(now_ns + self.skew_ns), held_ms: INTERVAL_MS }],
            samples,
            rejected: Vec::new(),
            rejected_more: 0,
        };
        self.unacknowledged.push_back(Letter { subject: LogSubject::Sample(self.id.clone()).to_subject(&self.cell), payload: frame.encode() });
    }

    fn gpu(&self, slot: u8) -> Gpu {
        let uuid: GpuUuid = format!("GPU-{}-{slot}", self.id).parse().expect("letters, digits and dashes");
        Gpu {
            slot: Slot(slot),
            uuid,
            index: u16::from(slot),
            model: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_total_bytes: Some(MEMORY_BYTES),
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
            power_limit_max_mw: None,
            slowdown_temperature_mk: None,
        }
    }
}
