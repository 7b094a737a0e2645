//! Where readings come from: one trait, four sources. A source runs on its own threads and only says what it sees; it numbers nothing,
//! validates nothing and knows no broker.

pub mod sim;
pub mod dcgm;
pub mod replay;
pub mod nvml;
pub mod rate;

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use plimsoll_schemas::id::{GpuUuid, HostId};
use plimsoll_schemas::inventory::{EventKind, Gpu, Placement};
use plimsoll_schemas::reading::{Number, Reading};
use plimsoll_schemas::time::EventTime;
use plimsoll_schemas::validate::Violation;

use crate::clock::Stop;
use crate::wear::Wear;

/// Most signals waiting for the collector. A source that finds it full waits, so it loses ticks rather than memory.
pub const SIGNALS_MAX: usize = 4_096;

/// Everything a source can say.
#[derive(Debug)]
pub enum Signal {
    /// A host exists and has these GPUs. Said before its first tick and again when anything of it changes.
    Host(HostFacts),
    /// A host was read.
    Tick(HostTick),
    /// Something happened on a host.
    Event(HostEvent),
    /// The source has nothing more to say (a replay at its end, `--sim-ticks` reached).
    Finished,
}

/// What is known about a host. Slots of `gpus` are ignored: the collector gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Its token.
    pub host: HostId,
    /// Its own name, dots and all.
    pub hostname: String,
    /// Where it stands.
    pub placement: Placement,
    /// Cores, if known.
    pub cpu_cores: Option<u32>,
    /// Memory, bytes, if known.
    pub ram_bytes: Option<u64>,
    /// Its GPUs and MIG instances, in the order in which new ones get slots.
    pub gpus: Vec<Gpu>,
}

/// One reading of all GPUs of one host.
#[derive(Debug)]
pub struct HostTick {
    /// Which host.
    pub host: HostId,
    /// Its wall clock when it was read.
    pub sampled_at: EventTime,
    /// How long the tick holds.
    pub held: Held,
    /// The GPUs that answered.
    pub gpus: Vec<GpuReading>,
    /// How the frame is to be sent.
    pub delivery: Delivery,
}

/// How long a tick's values hold, and whether they are live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Read now: since the host's previous tick by CLOCK_BOOTTIME, which stood at this value, nanoseconds.
    SinceBoot(u64),
    /// Recorded: this long, milliseconds. Live = re-stamped to now; otherwise it travels as backfill.
    Recorded {
        /// Milliseconds.
        held_ms: u32,
        /// Re-stamped to now.
        live: bool,
    },
}

/// How a frame is sent: other than `Normal` only by fault script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// Once, at once.
    #[default]
    Normal,
    /// The same bytes twice.
    Twice,
    /// After that many further ticks of the host.
    After {
        /// Ticks.
        ticks: u32,
        /// Marked as backfill.
        backfill: bool,
    },
}

/// What was read of one GPU.
#[derive(Debug, Clone)]
pub struct GpuReading {
    /// Which GPU.
    pub uuid: GpuUuid,
    /// Its values, nothing checked.
    pub reading: Reading,
    /// Its energy counter, millijoules since the driver was loaded; the host turns it into deltas.
    pub energy_counter_mj: Option<Number>,
    /// What the source itself knows to be no value (texts, zeros that mean unsupported).
    pub refused: Vec<Violation>,
    /// What the board says about its memory over its life.
    pub wear: Wear,
}

impl GpuReading {
    /// A GPU of which nothing was read yet.
    pub fn new(uuid: GpuUuid) -> Self {
        Self { uuid, reading: Reading::default(), energy_counter_mj: None, refused: Vec::new(), wear: Wear::default() }
    }
}

/// Something that happened on a host.
#[derive(Debug, Clone)]
pub struct HostEvent {
    /// Which host.
    pub host: HostId,
    /// Its wall clock.
    pub happened_at: EventTime,
    /// The GPU concerned; absent = the host.
    pub uuid: Option<GpuUuid>,
    /// What happened.
    pub kind: EventKind,
    /// For people.
    pub detail: Option<String>,
}

/// A source of readings.
pub trait Source: Send {
    /// `nvml`, `dcgm`, `replay` or `sim`.
    fn name(&self) -> &'static str;

    /// Says what it sees until it is asked to stop or has nothing more to say. Blocks; runs on its own thread. An unreachable GPU,
    /// endpoint or library is not an end: it is said in the log and retried.
    fn run(self: Box<Self>, out: Outlet, stop: Stop);
}

/// Where a source says what it sees.
#[derive(Debug, Clone)]
pub struct Outlet {
    sender: SyncSender<Signal>,
}

/// A bounded channel of signals.
pub fn channel() -> (Outlet, Receiver<Signal>) {
    let (sender, receiver) = sync_channel(SIGNALS_MAX);
    (Outlet { sender }, receiver)
}

impl Outlet {
    /// Says something; false = nobody listens any more. Waits while the channel is full.
    pub fn say(&self, signal: Signal) -> bool {
        self.sender.send(signal).is_ok()
    }
}
