//! The hosts and what is left on them. A placement can be taken back exactly.

use std::sync::Arc;

use super::host::{CLASSES, Classes, Host, class};
use super::shape::{Models, Shape};

/// Thousandths of a whole GPU.
pub const MILLI: i32 = 1_000;
/// Most GPUs on one host: a set of them is 64 bits.
pub const GPUS_PER_HOST_MAX: usize = 64;
/// Most models in one fleet: a set of them is 64 bits.
pub const MODELS_MAX: usize = 64;

/// A host as it is registered, with nothing placed on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// Its name: decides between equal ranks.
    pub name: String,
    /// Its place among equals; the lesser wins.
    pub rank: u32,
    /// CPU, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory, MiB.
    pub memory_mib: i64,
    /// GPUs.
    pub gpus: usize,
    /// Their model.
    pub model: String,
}

/// A host as it stands: what is left on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its GPUs' model.
    pub model: Arc<str>,
    /// CPU left, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory left, MiB.
    pub memory_mib: i64,
    /// Thousandths left on each GPU.
    pub gpus: Vec<i32>,
    /// How many requests of each class live here.
    pub classes: Classes,
}

/// What does not fit a fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Too many GPUs.
    #[error("host {host} has {gpus} GPUs, at most {GPUS_PER_HOST_MAX} can be placed on")]
    Gpus {
        /// Which.
        host: String,
        /// How many.
        gpus: usize,
    },
    /// Too many models.
    #[error("{0} GPU models, at most {MODELS_MAX} can be told apart")]
    Models(usize),
    /// A name twice.
    #[error("host {0} is named twice")]
    Twice(String),
}

/// Where a request was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The host, by its place in the fleet.
    pub host: usize,
    /// Its GPUs: bit i = GPU i.
    pub gpus: u64,
}

/// The part of a host that does not change in size.
#[derive(Debug, Clone)]
struct Slot {
    model: u8,
    excluded: bool,
    cpu_milli: i64,
    memory_mib: i64,
    idle_milli: i64,
    first_gpu: usize,
    end_gpu: usize,
    classes: Classes,
    open: u64,
    host_mw: u32,
}

/// The hosts, in tie order, and what is left on them.
#[derive(Debug, Clone)]
pub struct Fleet {
    models: Vec<String>,
    slots: Vec<Slot>,
    left: Vec<i32>,
    /// As long as `left`, or empty where nobody measures.
    scores: Vec<u32>,
    /// As long as `left`, or empty where nobody has said.
    wakes_mw: Vec<Option<u32>>,
    idle_milli: i64,
}

impl Fleet {
    /// An empty fleet of these hosts, in whatever order they come. Errors: more GPUs or models than can be told apart, a name twice.
    pub fn new(mut specs: Vec<HostSpec>) -> Result<Self, Error> {
        specs.sort_by(|a, b| (a.rank, &a.name).cmp(&(b.rank, &b.name)));
        let mut names: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Twice(pair[0].to_owned()));
        }
        let mut models: Vec<String> = specs.iter().map(|spec| spec.model.clone()).collect();
        models.sort_unstable();
        models.dedup();
        if models.len() > MODELS_MAX {
            return Err(Error::Models(models.len()));
        }
        let (mut slots, mut left) = (Vec::with_capacity(specs.len()), Vec::new());
        for spec in &specs {
            if spec.gpus > GPUS_PER_HOST_MAX {
                return Err(Error::Gpus { host: spec.name.clone(), gpus: spec.gpus });
            }
            let first_gpu = left.len();
            left.resize(first_gpu + spec.gpus, MILLI);
            slots.push(Slot {
                model: models.binary_search(&spec.model).expect("every model is in the list") as u8,
                excluded: false,
                cpu_milli: spec.cpu_milli,
                memory_mib: spec.memory_mib,
                idle_milli: spec.gpus as i64 * i64::from(MILLI),
                first_gpu,
                end_gpu: left.len(),
                classes: [0; CLASSES],
                open: u64::MAX,
                host_mw: 0,
            });
        }
        let idle_milli = left.len() as i64 * i64::from(MILLI);
        Ok(Self { models, slots, left, scores: Vec::new(), wakes_mw: Vec::new(), idle_milli })
    }

    /// A fleet as it stands, in tie order. Of a host's GPUs the first [`GPUS_PER_HOST_MAX`] count; models beyond [`MODELS_MAX`] are taken
    /// for the last one.
    pub fn standing(hosts: impl IntoIterator<Item = Standing>) -> Self {
        let hosts: Vec<Standing> = hosts.into_iter().collect();
        let mut models: Vec<String> = hosts.iter().map(|host| host.model.to_string()).collect();
        models.sort_unstable();
        models.dedup();
        models.truncate(MODELS_MAX);
        let (mut slots, mut left) = (Vec::with_capacity(hosts.len()), Vec::new());
        for host in hosts {
            let first_gpu = left.len();
            left.extend(host.gpus.iter().take(GPUS_PER_HOST_MAX));
            slots.push(Slot {
                model: number_of(&models, &host.model),
                excluded: false,
                cpu_milli: host.cpu_milli,
                memory_mib: host.memory_mib,
                idle_milli: sum(&left[first_gpu..]),
                first_gpu,
                end_gpu: left.len(),
                classes: host.classes,
                open: u64::MAX,
                host_mw: 0,
            });
        }
        let idle_milli = slots.iter().map(|slot| slot.idle_milli).sum();
        Self { models, slots, left, scores: Vec::new(), wakes_mw: Vec::new(), idle_milli }
    }

    /// Whether a host stands like this.
    pub fn stands(&self, index: usize, host: &Standing) -> bool {
        let here = self.host(index);
        let gpus = &host.gpus[..host.gpus.len().min(GPUS_PER_HOST_MAX)];
        (here.model, here.cpu_milli, here.memory_mib, here.gpus, here.classes)
            == (number_of(&self.models, &host.model), host.cpu_milli, host.memory_mib, gpus, &host.classes)
    }

    /// Says how a host stands. It has the model and the number of GPUs that it had.
    pub fn set(&mut self, index: usize, host: &Standing) {
        let slot = &mut self.slots[index];
        self.idle_milli -= slot.idle_milli;
        let left = &mut self.left[slot.first_gpu..slot.end_gpu];
        left.copy_from_slice(&host.gpus[..left.len()]);
        (slot.cpu_milli, slot.memory_mib, slot.idle_milli, slot.classes) = (host.cpu_milli, host.memory_mib, sum(left), host.classes);
        self.idle_milli += slot.idle_milli;
    }

    /// Says what telemetry says of each GPU of every host, millionths; of no host = nobody measures.
    pub fn measure(&mut self, hosts: impl IntoIterator<Item = Vec<u32>>) {
        self.scores = hosts.into_iter().flat_map(|scores| scores.into_iter().take(GPUS_PER_HOST_MAX)).collect();
    }

    /// Says what each GPU of a host adds to what is drawn when it is woken, thousandths of a watt (absent = not known), and what the host adds
    /// with the first of them. Comes back with whether that is news.
    pub fn wakes(&mut self, index: usize, gpus_mw: impl IntoIterator<Item = Option<u32>>, host_mw: u32) -> bool {
        self.wakes_mw.resize(self.left.len(), None);
        let slot = &mut self.slots[index];
        let mut is_news = std::mem::replace(&mut slot.host_mw, host_mw) != host_mw;
        for (said, new) in self.wakes_mw[slot.first_gpu..slot.end_gpu].iter_mut().zip(gpus_mw) {
            is_news |= std::mem::replace(said, new) != new;
        }
        is_news
    }

    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether it has no host.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// What is left on a host.
    pub fn host(&self, index: usize) -> Host<'_> {
        let slot = &self.slots[index];
        Host {
            index,
            model: slot.model,
            excluded: slot.excluded,
            cpu_milli: slot.cpu_milli,
            memory_mib: slot.memory_mib,
            gpus: &self.left[slot.first_gpu..slot.end_gpu],
            idle_milli: slot.idle_milli,
            classes: &slot.classes,
            open: slot.open,
            scores: self.scores.get(slot.first_gpu..slot.end_gpu).unwrap_or_default(),
            wakes_mw: self.wakes_mw.get(slot.first_gpu..slot.end_gpu).unwrap_or_default(),
            host_mw: slot.host_mw,
        }
    }

    /// What is left on every host, in tie order.
    pub fn hosts(&self) -> impl Iterator<Item = Host<'_>> {
        (0..self.len()).map(|index| self.host(index))
    }

    /// The models, by number.
    pub fn models(&self) -> &[String] {
        &self.models
    }

    /// The set of models of these names; a name that no host has allows nothing.
    pub fn models_of<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Models {
        let bit = |name: &str| self.models.iter().position(|model| model == name).map_or(0, |number| 1 << number);
        Models(names.into_iter().map(bit).fold(0, |set, bit| set | bit))
    }

    /// Thousandths of GPU left on all hosts.
    pub fn idle_milli(&self) -> i64 {
        self.idle_milli
    }

    /// Thousandths of GPU there are.
    pub fn capacity_milli(&self) -> i64 {
        self.left.len() as i64 * i64::from(MILLI)
    }

    /// The number of a host's first GPU among all GPUs of the fleet.
    pub fn first_gpu(&self, index: usize) -> usize {
        self.slots[index].first_gpu
    }

    /// Takes a host out of service for new placements, or puts it back.
    pub fn exclude(&mut self, index: usize, excluded: bool) {
        self.slots[index].excluded = excluded;
    }

    /// Says which of a host's GPUs may be taken: bit i = GPU i.
    pub fn open(&mut self, index: usize, gpus: u64) {
        self.slots[index].open = gpus;
    }

    /// Takes what the shape asks for. It fits there.
    pub fn place(&mut self, place: Place, shape: &Shape) {
        self.add(place, shape, -1);
    }

    /// Gives back what [`Fleet::place`] took.
    pub fn release(&mut self, place: Place, shape: &Shape) {
        self.add(place, shape, 1);
    }

    fn add(&mut self, place: Place, shape: &Shape, sign: i32) {
        let slot = &mut self.slots[place.host];
        slot.cpu_milli += i64::from(sign) * shape.cpu_milli;
        slot.memory_mib += i64::from(sign) * shape.memory_mib;
        for (gpu, left) in self.left[slot.first_gpu..slot.end_gpu].iter_mut().enumerate() {
            *left += sign * shape.milli * (place.gpus >> gpu & 1) as i32;
            debug_assert!((0..=MILLI).contains(left), "{left} thousandths left on GPU {gpu} of host {}", place.host);
        }
        let milli = i64::from(sign) * shape.total_milli();
        slot.idle_milli += milli;
        self.idle_milli += milli;
        if shape.gpus > 0 {
            let count = &mut slot.classes[class(shape)];
            *count = if sign < 0 { count.saturating_add(1) } else { count.saturating_sub(1) };
        }
    }
}

fn sum(left: &[i32]) -> i64 {
    left.iter().map(|&left| i64::from(left)).sum()
}

/// The number of a model; one beyond those that can be told apart is taken for the last.
fn number_of(models: &[String], model: &str) -> u8 {
    models.binary_search_by(|known| known.as_str().cmp(model)).unwrap_or(models.len() - 1) as u8
}
