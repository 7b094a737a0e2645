//! A fold with one hand on the clock: well-behaved hosts of two GPUs, second by second.

use std::collections::BTreeMap;

use plimsoll_fold::{Effects, State};
use plimsoll_schemas::control::{Control, Tick as Beat};
use plimsoll_schemas::frame::{Frame, Tick};
use plimsoll_schemas::id::{GpuUuid, LogEpoch, Position, Slot};
use plimsoll_schemas::inventory::{EventKind, Gpu, HostEvent};
use plimsoll_schemas::out::{AlertChanged, CloudEvent, DeviceState, LeaseState, Payload};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::request::{Bundle, Place, Request};
use plimsoll_schemas::row::{RejectedRow, Row};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};

use super::{GIB, START_S, TOTAL, cell, gpu, host_id, inventory, tenant, uuid};

pub struct Fleet {
    pub state: State,
    pub sequence: u64,
    pub now_ns: i64,
    pub effects: Effects,
    /// What every GPU says.
    pub sample: Sample,
    /// Every record since the start.
    pub bodies: Vec<Body>,
    frames: BTreeMap<usize, u64>,
    events: BTreeMap<usize, u64>,
}

impl Fleet {
    /// A cell in which every host is enrolled, with hosts that were heard for ten seconds.
    pub fn with_hosts(hosts: usize) -> Self {
        let sample = Sample::default().with(Field::UtilPercent, 50).with(Field::MemoryUsedBytes, 10 * GIB).with(Field::MemoryTotalBytes, TOTAL);
        let mut fleet = Self {
            state: State::new(cell()),
            sequence: 0,
            now_ns: START_S * NS_PER_S,
            effects: Effects::default(),
            sample,
            bodies: Vec::new(),
            frames: BTreeMap::new(),
            events: BTreeMap::new(),
        };
        fleet.control(Control::Enrol { hosts: vec![] });
        for host in 0..hosts {
            fleet.announce(host, 1, vec![gpu(host, 0), gpu(host, 1)]);
        }
        let all: Vec<usize> = (0..hosts).collect();
        fleet.live(10, &all);
        fleet
    }

    pub fn push(&mut self, body: Body) {
        self.sequence += 1;
        self.bodies.push(body.clone());
        let position = Position { epoch: LogEpoch(0), sequence: self.sequence };
        self.state.step(&Record { position, logged_at: LogTime(self.now_ns), body }, &mut self.effects);
    }

    pub fn control(&mut self, control: Control) {
        self.push(Body::Control(Box::new(control)));
    }

    pub fn announce(&mut self, host: usize, revision: u32, gpus: Vec<Gpu>) {
        let sequence = self.events.entry(host).or_default();
        *sequence += 1;
        let inventory = inventory(host, 1, *sequence, revision, gpus);
        self.push(Body::Inventory(Box::new(inventory)));
    }

    pub fn event(&mut self, host: usize, gpu: usize, kind: EventKind) {
        let sequence = self.events.entry(host).or_default();
        *sequence += 1;
        let (host, uuid, sequence) = (host_id(host), Some(uuid(host, gpu)), *sequence);
        let happened_at = EventTime(self.now_ns);
        self.push(Body::Event(Box::new(HostEvent { schema_version: 1, host, epoch: 1, sequence, happened_at, uuid, kind, detail: None })));
    }

    /// The next frame of a host: two GPUs, one tick, taken now.
    pub fn frame(&mut self, host: usize) -> Frame {
        let sequence = self.frames.entry(host).or_default();
        *sequence += 1;
        Frame {
            host: host_id(host),
            epoch: 1,
            sequence: *sequence,
            boot_id: None,
            inventory_revision: 1,
            interval_ms: 1_000,
            backfill: false,
            slots: vec![Slot(0), Slot(1)],
            ticks: vec![Tick { sampled_at: EventTime(self.now_ns), held_ms: 1_000 }],
            samples: vec![self.sample; 2],
            rejected: vec![],
            rejected_more: 0,
        }
    }

    pub fn send(&mut self, frame: Frame) {
        self.push(Body::Frame(Box::new(frame)));
    }

    /// Lets seconds pass in which the given hosts speak.
    pub fn live(&mut self, seconds: i64, hosts: &[usize]) {
        for _ in 0..seconds {
            self.now_ns += NS_PER_S;
            self.push(Body::Tick(Beat { replica: "a".to_owned(), second: 0 }));
            for &host in hosts {
                let frame = self.frame(host);
                self.send(frame);
            }
        }
    }

    /// From now on every GPU shows that it is empty.
    pub fn sample_empty(&mut self) {
        self.sample = self.sample.with(Field::MemoryUsedBytes, 0).with(Field::UtilPercent, 0);
    }

    pub fn ask(&mut self, request: Request) {
        self.push(Body::Request(tenant(0), Box::new(request)));
    }

    pub fn place(&mut self, id: &str, count: u32, ttl_ms: u64) {
        self.ask(Request::Place(Place {
            request_id: id.to_owned(),
            bundles: vec![Bundle { count, milli: 1_000, vram_bytes: 0, ..Bundle::default() }],
            lease_ttl_ms: Some(ttl_ms),
            ..Place::default()
        }));
    }

    /// Forgets what came out so far.
    pub fn clear(&mut self) {
        self.effects = Effects::default();
    }

    pub fn rejected(&self) -> Vec<&RejectedRow> {
        self.effects.rows.iter().filter_map(|row| if let Row::Rejected(rejected) = &row.row { Some(&**rejected) } else { None }).collect()
    }

    pub fn reasons(&self) -> Vec<Reason> {
        self.rejected().iter().map(|row| row.reason).collect()
    }

    pub fn payloads(&self) -> Vec<Payload> {
        self.effects.outputs.iter().map(|output| serde_json::from_slice::<CloudEvent>(&output.bytes).expect("an event").data).collect()
    }

    pub fn leases(&self) -> Vec<(LeaseState, String)> {
        let lease = |payload| if let Payload::Lease(lease) = payload { Some((lease.state, lease.cause)) } else { None };
        self.payloads().into_iter().filter_map(lease).collect()
    }

    pub fn alerts(&self) -> Vec<AlertChanged> {
        self.payloads().into_iter().filter_map(|payload| if let Payload::Alert(alert) = payload { Some(*alert) } else { None }).collect()
    }

    /// Where every GPU stands, by what was said so far.
    pub fn states(&self) -> BTreeMap<GpuUuid, DeviceState> {
        let device = |payload| if let Payload::Device(device) = payload { Some((device.device_uuid, device.state)) } else { None };
        let mut states: BTreeMap<_, _> = (0..2).flat_map(|host| [(uuid(host, 0), DeviceState::Ok), (uuid(host, 1), DeviceState::Ok)]).collect();
        states.extend(self.payloads().into_iter().filter_map(device));
        states
    }
}
