//! The simulated fleet itself: real models and sizes, and signals that belong together. Jobs come and go; a job gives utilisation and
//! memory; utilisation gives power, power gives heat, heat and the power cap give clocks and throttle bits. Pure and deterministic.

use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::inventory::Gpu;
use plimsoll_schemas::reading::{Number, Reading};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Field, ZERO_CELSIUS_MK};
use plimsoll_schemas::validate::Violation;

use super::mig;
use crate::source::GpuReading;

/// A product: what NVML says of it.
#[derive(Debug, PartialEq)]
pub struct Model {
    name: &'static str,
    arch: &'static str,
    compute_capability: &'static str,
    memory_mib: u64,
    power_limit_w: f64,
    idle_w: f64,
    slowdown_celsius: f64,
    sm_mhz: f64,
    idle_sm_mhz: f64,
    memory_mhz: u64,
    has_memory_temperature: bool,
    has_nvlink: bool,
    /// Pool its hosts belong to.
    pub pool: &'static str,
    /// Cores of its hosts.
    pub cpu_cores: u32,
    /// Memory of its hosts, GiB.
    pub ram_gib: u64,
}

impl Model {
    /// Boards for training from Ampere on can be cut.
    fn can_mig(&self) -> bool {
        self.has_memory_temperature
    }
}

/// What a driver says of a board with MIG mode on: there is no utilisation of it.
fn without_utilization(out: GpuReading) -> GpuReading {
    const NONE: [Field; 2] = [Field::UtilPercent, Field::MemoryUtilPercent];
    let mut reading = Reading::default();
    for &field in Field::ALL.iter().filter(|field| !NONE.contains(field)) {
        if let Some(number) = out.reading.get(field) {
            reading.set(field, number);
        }
    }
    let refused = NONE.map(|field| Violation { field: Some(field), reason: Reason::NotSupported, raw: String::new() });
    GpuReading { reading, refused: refused.to_vec(), ..out }
}

macro_rules! model {
    ($name:literal, $arch:literal $capability:literal, $mib:literal MiB, $limit:literal W, idle $idle:literal W, $slow:literal C, $sm:literal / $idle_sm:literal / $mem:literal MHz,
     hbm $hbm:literal, nvlink $nvlink:literal, $pool:literal, $cores:literal cores, $ram:literal GiB) => {
        Model {
            name: $name,
            arch: $arch,
            compute_capability: $capability,
            memory_mib: $mib,
            power_limit_w: $limit,
            idle_w: $idle,
            slowdown_celsius: $slow,
            sm_mhz: $sm,
            idle_sm_mhz: $idle_sm,
            memory_mhz: $mem,
            has_memory_temperature: $hbm,
            has_nvlink: $nvlink,
            pool: $pool,
            cpu_cores: $cores,
            ram_gib: $ram,
        }
    };
}

static H100: Model = model!("NVIDIA H100 80GB HBM3", "hopper" "9.0", 81559 MiB, 700.0 W, idle 70.0 W, 87.0 C, 1980.0 / 345.0 / 2619 MHz,
    hbm true, nvlink true, "train", 192 cores, 2048 GiB);
static H200: Model = model!("NVIDIA H200", "hopper" "9.0", 143771 MiB, 700.0 W, idle 75.0 W, 87.0 C, 1980.0 / 345.0 / 3201 MHz,
    hbm true, nvlink true, "train", 192 cores, 2048 GiB);
static A100: Model = model!("NVIDIA A100-SXM4-80GB", "ampere" "8.0", 81920 MiB, 400.0 W, idle 58.0 W, 92.0 C, 1410.0 / 210.0 / 1593 MHz,
    hbm true, nvlink true, "train", 128 cores, 1024 GiB);
static L40S: Model = model!("NVIDIA L40S", "ada" "8.9", 46068 MiB, 350.0 W, idle 35.0 W, 92.0 C, 2520.0 / 210.0 / 9001 MHz,
    hbm false, nvlink false, "serve", 64 cores, 512 GiB);
static A10: Model = model!("NVIDIA A10", "ampere" "8.6", 23028 MiB, 150.0 W, idle 21.0 W, 95.0 C, 1695.0 / 210.0 / 6251 MHz,
    hbm false, nvlink false, "serve", 48 cores, 256 GiB);
static T4: Model = model!("Tesla T4", "turing" "7.5", 15360 MiB, 70.0 W, idle 13.0 W, 93.0 C, 1590.0 / 300.0 / 5001 MHz,
    hbm false, nvlink false, "serve", 32 cores, 128 GiB);

/// Which model host i has: host i is `MIX[i % 16]`.
static MIX: [&Model; 16] = [&H100, &A100, &H100, &L40S, &H100, &A100, &H200, &H100, &L40S, &A100, &H100, &T4, &H100, &A100, &H200, &A10];

/// SplitMix64: small, seeded, good enough for a simulation and the same everywhere.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }
}

/// What a group of GPUs on one host does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    /// Nothing: memory empty.
    Idle,
    /// Steady and high, with a pause for a checkpoint now and then.
    Training { level: f64, memory: f64 },
    /// Follows its callers: a slow wave and noise.
    Serving { level: f64, memory: f64 },
    /// Holds memory and does nothing: a forgotten notebook.
    Forgotten { memory: f64 },
}

/// GPUs that work on the same job.
#[derive(Debug)]
struct Group {
    work: Work,
    /// Milliseconds left of it.
    left_ms: u64,
    /// Milliseconds since it began.
    age_ms: u64,
}

/// One simulated GPU.
#[derive(Debug)]
pub struct SimGpu {
    /// Its UUID, from the seed.
    pub uuid: GpuUuid,
    group: usize,
    random: Random,
    util: f64,
    memory: f64,
    power_w: f64,
    celsius: f64,
    sm_mhz: f64,
    throttle_bits: u64,
    energy_mj: f64,
}

/// One simulated host.
#[derive(Debug)]
pub struct SimHost {
    /// Its token.
    pub id: HostId,
    /// Its model of GPU.
    pub model: &'static Model,
    /// Its GPUs.
    pub gpus: Vec<SimGpu>,
    groups: Vec<Group>,
    /// Stays empty, so that placement finds room.
    idle: bool,
    inlet_celsius: f64,
    random: Random,
}

/// The fleet.
#[derive(Debug)]
pub struct Fleet {
    /// Its hosts.
    pub hosts: Vec<SimHost>,
    mig_gpus: usize,
}

impl Fleet {
    /// A fleet of `hosts` × `gpus`, the same for the same seed.
    pub fn new(seed: u64, hosts: u32, gpus: u32) -> Self {
        Self { hosts: (0..hosts).map(|host| SimHost::new(seed, host, gpus)).collect(), mig_gpus: 0 }
    }

    /// The same with MIG mode on for the last so many GPUs of every host whose model can.
    pub fn with_mig(self, gpus: u32) -> Self {
        Self { mig_gpus: gpus as usize, ..self }
    }

    fn has_mig(&self, host: usize, gpu: usize) -> bool {
        let SimHost { model, gpus, .. } = &self.hosts[host];
        model.can_mig() && gpu + self.mig_gpus >= gpus.len()
    }

    /// What the driver says of a GPU.
    pub fn describe(&self, host: usize, gpu: usize) -> Gpu {
        let model = self.hosts[host].model;
        let limit_mw = (model.power_limit_w * 1_000.0) as u64;
        Gpu {
            slot: Slot(0),
            uuid: self.hosts[host].gpus[gpu].uuid.clone(),
            index: gpu as u16,
            model: model.name.to_owned(),
            memory_total_bytes: Some(model.memory_mib << 20),
            mig_parent_uuid: None,
            mig_profile: None,
            mig: self.has_mig(host, gpu).then(|| mig::uncut(model.memory_mib)),
            arch: Some(model.arch.to_owned()),
            nvlink_domain: model.has_nvlink.then_some((gpu / 8) as u32),
            numa_node: Some((gpu / 4 % 2) as u16),
            pci_bus_id: Some(format!("00000000:{:02X}:00.0", 0x10 + gpu)),
            driver_version: Some("580.105.08".to_owned()),
            compute_capability: Some(model.compute_capability.to_owned()),
            power_limit_mw: Some(limit_mw),
            power_limit_max_mw: Some(limit_mw),
            slowdown_temperature_mk: Some((ZERO_CELSIUS_MK + (model.slowdown_celsius * 1_000.0) as i64) as u64),
        }
    }

    /// Moves a host on by `step_ms` of simulated time.
    pub fn step(&mut self, host: usize, step_ms: u64) {
        self.hosts[host].step(step_ms);
    }

    /// What a GPU shows now.
    pub fn read(&self, host: usize, gpu: usize) -> GpuReading {
        let SimHost { model, gpus, groups, .. } = &self.hosts[host];
        let out = gpus[gpu].read(model, groups[gpus[gpu].group].work);
        if self.has_mig(host, gpu) { without_utilization(out) } else { out }
    }
}

impl SimHost {
    fn new(seed: u64, host: u32, gpus: u32) -> Self {
        let mut random = Random(seed ^ (u64::from(host) + 1).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let model = MIX[host as usize % MIX.len()];
        let id = format!("sim-{:04}", host + 1).parse::<HostId>().expect("letters, digits and a dash");
        // Jobs take 1, 2, 4 or 8 GPUs; the size is the host's habit, so that whole hosts and single GPUs both become free.
        let width = if model.has_nvlink { [8, 8, 4, 2][random.next() as usize % 4] } else { [1, 1, 2, 4][random.next() as usize % 4] };
        let count = (gpus as usize).div_ceil(width);
        let idle = random.unit() < 0.2;
        let mut this = Self { id, model, gpus: Vec::new(), groups: Vec::new(), idle, inlet_celsius: random.between(20.0, 27.0), random };
        for _ in 0..count {
            let work = this.choose(false);
            // Begun some time ago, not all at the start of the process.
            let total = this.lasts(work);
            let age_ms = (total as f64 * this.random.unit()) as u64;
            this.groups.push(Group { work, left_ms: total - age_ms, age_ms: age_ms + 60_000 });
        }
        for gpu in 0..gpus as usize {
            this.gpus.push(SimGpu::new(&mut this.random, model, gpu / width, this.inlet_celsius));
        }
        for _ in 0..600 {
            // Warm to where the work has brought it.
            for gpu in &mut this.gpus {
                gpu.step(model, &this.groups[gpu.group], this.inlet_celsius, 1_000);
            }
        }
        this
    }

    /// The next thing to do: work and rest take turns.
    fn choose(&mut self, was_busy: bool) -> Work {
        if self.idle || was_busy {
            return Work::Idle;
        }
        let dice = self.random.unit();
        let memory = self.random.between(0.25, 0.95);
        match self.model.pool {
            "train" if dice < 0.75 => Work::Training { level: self.random.between(0.86, 1.0), memory },
            "train" if dice < 0.85 => Work::Forgotten { memory: memory * 0.5 },
            _ if dice < 0.92 => Work::Serving { level: self.random.between(0.15, 0.75), memory },
            _ => Work::Idle,
        }
    }

    fn lasts(&mut self, work: Work) -> u64 {
        let minutes = match work {
            Work::Idle => self.random.between(1.0, 8.0),
            Work::Training { .. } => self.random.between(4.0, 45.0),
            Work::Serving { .. } => self.random.between(10.0, 90.0),
            Work::Forgotten { .. } => self.random.between(5.0, 30.0),
        };
        (minutes * 60_000.0) as u64
    }

    fn step(&mut self, step_ms: u64) {
        for group in 0..self.groups.len() {
            let done = self.groups[group].left_ms <= step_ms;
            if done {
                let work = self.choose(self.groups[group].work != Work::Idle);
                let left_ms = self.lasts(work);
                self.groups[group] = Group { work, left_ms, age_ms: 0 };
            } else {
                self.groups[group].left_ms -= step_ms;
                self.groups[group].age_ms += step_ms;
            }
        }
        for gpu in &mut self.gpus {
            gpu.step(self.model, &self.groups[gpu.group], self.inlet_celsius, step_ms);
        }
    }
}

impl SimGpu {
    fn new(random: &mut Random, model: &Model, group: usize, inlet_celsius: f64) -> Self {
        let (high, low) = (random.next(), random.next());
        let uuid =
            format!("GPU-{:08x}-{:04x}-{:04x}-{:04x}-{:012x}", high >> 32, high >> 16 & 0xffff, high & 0xffff, low >> 48, low & 0xffff_ffff_ffff);
        Self {
            uuid: uuid.parse().expect("hexadecimal and dashes"),
            group,
            random: Random(random.next()),
            util: 0.0,
            memory: 0.0,
            power_w: model.idle_w,
            celsius: inlet_celsius + 8.0,
            sm_mhz: model.idle_sm_mhz,
            throttle_bits: 0,
            // A driver that was loaded up to three months ago.
            energy_mj: random.between(1e9, 2e12).floor(),
        }
    }

    fn step(&mut self, model: &Model, group: &Group, inlet_celsius: f64, step_ms: u64) {
        let seconds = step_ms as f64 / 1_000.0;
        let noise = self.random.between(-1.0, 1.0);
        let age_s = group.age_ms as f64 / 1_000.0;
        let (util, memory) = match group.work {
            Work::Idle => (0.0, 0.0),
            // Loading takes a while; every ten minutes a checkpoint lets the GPUs wait 15 s.
            Work::Training { memory, .. } if age_s < 12.0 => (0.05, memory * age_s / 12.0),
            Work::Training { memory, .. } if age_s % 600.0 > 585.0 => (0.02, memory),
            Work::Training { level, memory } => (level + noise * 0.03, memory),
            Work::Serving { level, memory } => (level * (1.0 + 0.5 * (age_s / 240.0).sin()) + noise * 0.12, memory),
            Work::Forgotten { memory } => (0.0, memory),
        };
        self.util = util.clamp(0.0, 1.0);
        self.memory = memory;
        let busy = self.util > 0.0;
        // The first per cent costs clocks and leakage; the rest is nearly linear.
        let wanted_w = if busy { model.idle_w * 1.4 + (model.power_limit_w * 1.04 - model.idle_w * 1.4) * self.util } else { model.idle_w };
        self.power_w += (wanted_w * (1.0 + noise * 0.015) - self.power_w) * (seconds / 1.5).min(1.0);
        let target_celsius = inlet_celsius + 8.0 + 36.0 * self.power_w / model.power_limit_w;
        self.celsius += (target_celsius - self.celsius) * (1.0 - (-seconds / 45.0).exp());
        self.throttle_bits = 0;
        let mut clock = if busy { model.sm_mhz } else { model.idle_sm_mhz };
        if !busy {
            self.throttle_bits |= 0x1;
        }
        if self.power_w > model.power_limit_w {
            self.throttle_bits |= 0x4;
            clock *= 0.9;
        }
        if self.celsius > model.slowdown_celsius {
            self.throttle_bits |= 0x20;
            clock *= 0.8;
        }
        self.sm_mhz = (clock / 15.0).round() * 15.0;
        self.energy_mj += self.power_w * 1_000.0 * seconds;
    }

    fn read(&self, model: &Model, work: Work) -> GpuReading {
        let total = model.memory_mib << 20;
        // Driver and contexts hold a little as soon as anything runs.
        let context = if self.memory > 0.0 { 450 << 20 } else { 0 };
        let used = ((total as f64 * self.memory) as u64 >> 21 << 21) + context;
        let millikelvin = |celsius: f64| (ZERO_CELSIUS_MK + celsius.round() as i64 * 1_000) as u64;
        let mut reading = Reading::default()
            .with(Field::UtilPercent, (self.util * 100.0).round() as u64)
            .with(Field::MemoryUtilPercent, (self.util * 62.0).round() as u64)
            .with(Field::MemoryUsedBytes, used.min(total))
            .with(Field::MemoryTotalBytes, total)
            .with(Field::PowerMw, (self.power_w * 1_000.0).round() as u64)
            .with(Field::TemperatureMk, millikelvin(self.celsius))
            .with(Field::SmClockMhz, self.sm_mhz as u64)
            .with(Field::MemoryClockMhz, model.memory_mhz)
            .with(Field::ThrottleBits, self.throttle_bits)
            .with(Field::SmActiveBp, (self.util * 8_800.0).round() as u64)
            .with(Field::PcieTxBytesS, (self.util * 2.2e9).round() as u64 + 20_000)
            .with(Field::PcieRxBytesS, (self.util * 3.1e9).round() as u64 + 20_000)
            .with(Field::EccUncorrected, 0)
            .with(Field::Procs, u64::from(work != Work::Idle));
        if model.has_memory_temperature {
            reading.set(Field::MemoryTemperatureMk, millikelvin(self.celsius + 9.0));
        }
        GpuReading { reading, energy_counter_mj: Some(Number::Int(self.energy_mj as i128)), ..GpuReading::new(self.uuid.clone()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64, ticks: u32) -> Vec<Reading> {
        let mut fleet = Fleet::new(seed, 4, 8);
        for _ in 0..ticks {
            for host in 0..4 {
                fleet.step(host, 1_000);
            }
        }
        (0..32).map(|i| fleet.read(i / 8, i % 8).reading).collect()
    }

    #[test]
    fn the_same_seed_and_tick_give_the_same_readings() {
        assert_eq!(run(7, 300), run(7, 300));
        assert_ne!(run(7, 300), run(8, 300));
    }

    #[test]
    fn the_last_gpus_of_hosts_whose_model_can_have_mig_mode_on_and_no_utilisation() {
        let mut fleet = Fleet::new(7, 4, 8).with_mig(2);
        (0..4).for_each(|host| fleet.step(host, 1_000));
        let on = |host: usize| (0..8).filter(|&gpu| fleet.describe(host, gpu).mig.is_some()).collect::<Vec<_>>();
        // The fourth host has L40S, which cannot be cut.
        assert_eq!([on(0), on(1), on(2), on(3)], [vec![6, 7], vec![6, 7], vec![6, 7], vec![]]);
        let (board, plain) = (fleet.read(0, 7), fleet.read(0, 5));
        assert_eq!((board.reading.get(Field::UtilPercent), board.refused[0].reason), (None, Reason::NotSupported));
        assert!(plain.reading.get(Field::UtilPercent).is_some() && plain.refused.is_empty());
        assert_eq!(board.reading.get(Field::MemoryTotalBytes), plain.reading.get(Field::MemoryTotalBytes));
        let gpus: Vec<Gpu> = (0..8).map(|gpu| fleet.describe(0, gpu)).collect();
        assert_eq!(plimsoll_schemas::mig::check(&gpus), Ok(()));
    }

    #[test]
    fn uuids_depend_on_the_seed_alone() {
        let uuids = |seed| Fleet::new(seed, 3, 2).hosts.iter().flat_map(|host| host.gpus.iter().map(|gpu| gpu.uuid.clone())).collect::<Vec<_>>();
        assert_eq!(uuids(1), uuids(1));
        assert_ne!(uuids(1), uuids(2));
        // A larger fleet begins with the smaller one.
        assert_eq!(Fleet::new(1, 9, 2).hosts[2].gpus[1].uuid, Fleet::new(1, 3, 2).hosts[2].gpus[1].uuid);
    }

    #[test]
    fn signals_are_plausible_and_belong_together() {
        use plimsoll_schemas::validate::{Context, FUTURE_MS_AGENT, Registered, validate};
        let mut fleet = Fleet::new(42, 64, 8);
        let (mut busy, mut idle) = (0, 0);
        for _ in 0..300 {
            for host in 0..64 {
                fleet.step(host, 1_000);
                let model = fleet.hosts[host].model;
                for gpu in 0..8 {
                    let reading = fleet.read(host, gpu).reading;
                    let now = plimsoll_schemas::time::EventTime(1_800_000_000_000_000_000);
                    let registered = Some(Registered {
                        memory_total_bytes: Some(model.memory_mib << 20),
                        power_limit_max_mw: Some((model.power_limit_w * 1_000.0) as u64),
                    });
                    let context = Context { accepting: true, registered, sampled_at_ns: i128::from(now.0), now, future_ms: FUTURE_MS_AGENT };
                    let verdict = validate(&reading, &context);
                    assert_eq!(verdict.violations, [], "{reading:?}");
                    let sample = verdict.sample.expect("believed");
                    if sample.util_percent() >= Some(80) {
                        busy += 1;
                    }
                    if sample.util_percent() == Some(0) && sample.memory_used_bytes() == Some(0) {
                        idle += 1;
                    }
                }
            }
        }
        let share = |count: i32| count * 100 / (300 * 64 * 8);
        assert!(share(busy) >= 15, "{} % of all readings are busy", share(busy));
        assert!(share(idle) >= 15, "{} % of all readings are idle", share(idle));
    }
}
