//! The cell as placement sees it: its hosts in tie order, with what is left on them, and the policies that sit over it. A request changes it
//! while it is tried, and changes it back; what hosts have answered is remembered for the next one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use plimsoll_schemas::id::HostId;
use plimsoll_schemas::inventory;
use plimsoll_schemas::request::{Bundle, CPU_MILLI_MAX, Domain, HOST_MEMORY_BYTES_MAX, MEMBERS_MAX, WHOLE_MILLI};
use plimsoll_schemas::tables::Tables;

use super::Settings;
use super::answers::{Answers, Question};
use super::candidate::Candidate;
use super::plan::Part;
use super::policy::Policy;
use super::policy::catalogue::{Bidder, Parts};
use super::policy::fleet::{Fleet, Place, Standing};
use super::policy::host::Classes;
use super::policy::mix::Mix;
use super::policy::shape::Shape;
use super::reputation::Reputation;

/// CPU of a host that has not said how much it has, thousandths of a core: enough for the largest gang.
pub const CPU_MILLI_UNKNOWN: i64 = CPU_MILLI_MAX as i64 * MEMBERS_MAX as i64;
/// Memory of such a host, MiB.
pub const MEMORY_MIB_UNKNOWN: i64 = HOST_MEMORY_BYTES_MAX as i64 / MIB * MEMBERS_MAX as i64;
/// One MiB, bytes.
const MIB: i64 = 1 << 20;
/// Most questions whose answers are remembered: 64 questions × 10,000 hosts of 8 GPUs × 40 bytes = 26 MB.
const REMEMBERED_MAX: usize = 64;
/// Seed of `random`: its turn is what makes its choices differ.
const SEED: u64 = 0;

/// One host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub id: HostId,
    /// Where it stands.
    pub stands: inventory::Placement,
    /// CPU left, thousandths of a core; absent = it has not said how much it has.
    pub cpu_milli: Option<i64>,
    /// Memory left, bytes; absent = it has not said how much it has.
    pub memory_bytes: Option<i64>,
    /// Its GPUs, by slot.
    pub gpus: Vec<Candidate>,
    /// How many leases of each class live on it.
    pub classes: Classes,
    /// How far it can be relied on.
    pub reputation: Reputation,
}

impl Host {
    /// What it has in common with others, if it says so.
    pub fn domain(&self, domain: Domain) -> Option<&str> {
        match domain {
            Domain::Host => Some(self.id.as_str()),
            Domain::Rack => self.stands.rack.as_deref(),
            Domain::Pool => self.stands.pool.as_deref(),
            Domain::Zone => self.stands.zone.as_deref(),
            Domain::Cluster => self.stands.cluster.as_deref(),
        }
    }

    /// Whether a member of the bundle asks for CPU or memory, and the host has not said how much it has.
    pub fn is_by_gpu_alone(&self, bundle: &Bundle) -> bool {
        (bundle.cpu_milli > 0 && self.cpu_milli.is_none()) || (bundle.memory_bytes > 0 && self.memory_bytes.is_none())
    }

    /// It as policies see it. Its model is that of its first GPU; which GPUs may be taken is seen GPU by GPU. A GPU on which nothing may be
    /// placed whatever is asked for has nothing left, nor has a board with MIG mode on: policies choose among what exists.
    fn standing(&self) -> Standing {
        let left = |gpu: &Candidate| if gpu.gate.is_some() || gpu.mig.is_some() { 0 } else { WHOLE_MILLI.saturating_sub(gpu.reserved_milli) as i32 };
        Standing {
            model: self.gpus.first().map_or_else(|| Arc::from(""), |gpu| Arc::clone(&gpu.model)),
            cpu_milli: self.cpu_milli.unwrap_or(CPU_MILLI_UNKNOWN),
            memory_mib: self.memory_bytes.map_or(MEMORY_MIB_UNKNOWN, |bytes| bytes.div_euclid(MIB)),
            gpus: self.gpus.iter().map(left).collect(),
            classes: self.classes,
        }
    }

    fn add(&mut self, bundle: &Bundle, parts: &[Part], sign: i64) {
        let amount = |bytes: u64| sign * i64::try_from(bytes).unwrap_or(i64::MAX);
        self.cpu_milli = self.cpu_milli.map(|left| left.saturating_sub(amount(bundle.cpu_milli)));
        self.memory_bytes = self.memory_bytes.map(|left| left.saturating_sub(amount(bundle.memory_bytes)));
        for &Part { gpu, vram_bytes, made, .. } in parts {
            let gpu = &mut self.gpus[gpu];
            if let (Some(board), Some(made)) = (&mut gpu.mig, made) {
                if sign > 0 { board.take(made) } else { board.give_back(made) }
            }
            gpu.reserved_milli = gpu.reserved_milli.saturating_add_signed(sign as i32 * bundle.milli as i32);
            gpu.reserved_vram_bytes = gpu.reserved_vram_bytes.saturating_add_signed(amount(vram_bytes));
            gpu.unseen_vram_bytes = gpu.unseen_vram_bytes.saturating_add_signed(amount(vram_bytes));
        }
    }
}

/// Something with the number that tells it apart from others of its kind.
#[derive(Debug)]
pub struct Hashed<'a, T> {
    /// What it is.
    pub of: &'a T,
    /// Its hash.
    pub hash: u64,
}

impl<T> Clone for Hashed<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Hashed<'_, T> {}

/// What to choose with.
#[derive(Debug, Clone, Copy)]
pub struct Chooser<'a> {
    /// The policy, and what counts besides.
    pub bidder: Bidder,
    /// What was asked for before.
    pub mix: Hashed<'a, Mix>,
    /// What was learned; absent = nothing.
    pub tables: Option<Hashed<'a, Tables>>,
    /// How many decisions were made before: the turn of `random`.
    pub turn: u64,
}

/// A policy that has started on the cell.
struct Seat {
    policy: Box<dyn Policy + Send>,
    /// The mix and the tables it was made of, by hash.
    made_of: (u64, Option<u64>),
    /// When the bids for hosts of each of the fleet's models were last void.
    void_at: Vec<u64>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("policy", &self.policy.name()).field("made_of", &self.made_of).finish_non_exhaustive()
    }
}

/// Every host, in tie order.
#[derive(Debug)]
pub struct Cell {
    settings: Settings,
    hosts: Vec<Host>,
    fleet: Fleet,
    /// The number of each host's first GPU among all of the cell.
    first_gpu: Vec<u32>,
    with_gpus: u32,
    /// How often something has changed, and at which of these times each host did: anything about it, and what policies see of it.
    now: u64,
    changed_at: Vec<u64>,
    standing_at: Vec<u64>,
    seats: BTreeMap<Bidder, Seat>,
    remembered: BTreeMap<Question, Answers>,
}

impl Cell {
    /// A cell of these hosts, in whatever order they and their GPUs come.
    pub fn new(mut hosts: Vec<Host>, settings: Settings) -> Self {
        hosts.sort_by(|a, b| a.id.cmp(&b.id));
        hosts.iter_mut().for_each(|host| host.gpus.sort_by_key(|gpu| gpu.slot));
        let first_gpu = hosts.iter().scan(0, |next, host| Some(std::mem::replace(next, *next + host.gpus.len() as u32))).collect();
        let with_gpus = hosts.iter().filter(|host| !host.gpus.is_empty()).count() as u32;
        let mut fleet = Fleet::standing(hosts.iter().map(Host::standing));
        hosts.iter().enumerate().for_each(|(number, host)| _ = fleet.wakes(number, host.gpus.iter().map(Candidate::wakes_mw), 0));
        let (now, at_first) = (1, vec![1; hosts.len()]);
        Self {
            settings,
            hosts,
            fleet,
            first_gpu,
            with_gpus,
            now,
            changed_at: at_first.clone(),
            standing_at: at_first,
            seats: BTreeMap::new(),
            remembered: BTreeMap::new(),
        }
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// How many hosts have a GPU.
    pub fn with_gpus(&self) -> u32 {
        self.with_gpus
    }

    /// Thresholds.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The hosts as policies see them.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The number of a host's first GPU among all GPUs of the cell.
    pub fn first_gpu(&self, host: usize) -> u32 {
        self.first_gpu[host]
    }

    /// How often something has changed.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Whether anything about a host has changed since.
    pub fn has_changed(&self, host: usize, since: u64) -> bool {
        self.changed_at[host] > since
    }

    /// Whether a policy may bid otherwise than before for hosts that have not changed themselves.
    pub fn voids_bids(&self, bidder: Bidder, since: u64) -> bool {
        let seat = &self.seats[&bidder];
        !seat.policy.bids_last() || seat.void_at.iter().any(|&at| at > since)
    }

    /// Whether a policy's bid for a host no longer holds, given that the same GPUs of it may be taken.
    pub fn is_void(&self, bidder: Bidder, host: usize, since: u64) -> bool {
        let seat = &self.seats[&bidder];
        let of_model = seat.void_at.get(usize::from(self.fleet.host(host).model)).copied().unwrap_or_default();
        self.standing_at[host] > since || of_model > since || !seat.policy.bids_last()
    }

    /// A policy that has been seated, and what it looks at.
    pub fn seated(&self, bidder: Bidder) -> (&dyn Policy, &Fleet) {
        (&*self.seats[&bidder].policy, &self.fleet)
    }

    /// Says which GPUs of a host may be taken by what is bid for next: bit i = GPU i.
    pub fn open(&mut self, host: usize, gpus: u64) {
        self.fleet.open(host, gpus);
    }

    /// Lets a policy look at the cell, if it does not sit there already. Of those that heed power only the newest stays. `scores` is what
    /// telemetry says of a GPU, for those that go by it, millionths.
    pub fn seat(&mut self, chooser: Chooser<'_>, scores: impl Fn(&Host, &Candidate) -> u32) {
        let bidder = chooser.bidder;
        let by_telemetry = bidder.policy.goes_by_telemetry();
        let made_of = (chooser.mix.hash, chooser.tables.map(|tables| tables.hash));
        if self.seats.get(&bidder).is_some_and(|seat| seat.made_of == made_of) {
            return;
        }
        self.unseat(|seated| seated == bidder || (seated.power_weight > 0 && bidder.power_weight > 0));
        let of_host = |host: &Host| host.gpus.iter().map(|gpu| scores(host, gpu)).collect::<Vec<_>>();
        self.fleet.measure(self.hosts.iter().filter(|_| by_telemetry).map(of_host));
        let untaught = Tables::untaught(&[]);
        let (requests, typical) = chooser.mix.of.of_fleet(&self.fleet);
        let tables = chooser.tables.map_or(&untaught, |tables| tables.of);
        let mut policy = bidder.made_of(Parts { typical: &typical, requests: &requests, tables, seed: SEED, turn: chooser.turn });
        policy.start(&self.fleet);
        policy.next_turn();
        self.seats.insert(bidder, Seat { policy, made_of, void_at: vec![self.now; self.fleet.models().len()] });
    }

    /// Lets a policy go whose bids do not outlive a request.
    pub fn leave(&mut self, bidder: Bidder) {
        if bidder.policy.goes_by_telemetry() || !self.seats[&bidder].policy.bids_last() {
            self.unseat(|seated| seated == bidder);
        }
    }

    fn unseat(&mut self, which: impl Fn(Bidder) -> bool) {
        self.seats.retain(|&bidder, _| !which(bidder));
        self.remembered.retain(|question, _| !which(question.bidder));
    }

    /// What hosts have answered to a question, to be brought up to date.
    pub fn recall(&mut self, question: &Question) -> Option<Answers> {
        self.remembered.remove(question)
    }

    /// Remembers what hosts have answered, as long as the policy sits here.
    pub fn remember(&mut self, question: Question, answers: Answers) {
        if self.remembered.len() >= REMEMBERED_MAX
            && let Some(oldest) = self.remembered.iter().min_by_key(|(_, answers)| answers.seen()).map(|(question, _)| question.clone())
        {
            self.remembered.remove(&oldest);
        }
        self.remembered.insert(question, answers);
    }

    /// Changes a host in what is left on it. Which GPUs it has must stay the same.
    pub fn update(&mut self, host: usize, change: impl FnOnce(&mut Host)) {
        change(&mut self.hosts[host]);
        self.now += 1;
        self.changed_at[host] = self.now;
        if self.fleet.wakes(host, self.hosts[host].gpus.iter().map(Candidate::wakes_mw), 0) {
            // What one host adds counts against the most that any does.
            self.unseat(|bidder| bidder.power_weight > 0);
        }
        let standing = self.hosts[host].standing();
        if !self.fleet.stands(host, &standing) {
            self.change_fleet(host, |fleet| fleet.set(host, &standing));
        }
    }

    /// Takes GPUs and what goes with them for a member of the bundle.
    pub fn take(&mut self, host: usize, bundle: &Bundle, shape: &Shape, parts: &[Part]) {
        self.hosts[host].add(bundle, parts, 1);
        self.change_fleet(host, |fleet| fleet.place(place(host, parts), &existing(shape, parts)));
    }

    /// Gives back what was taken.
    pub fn give_back(&mut self, host: usize, bundle: &Bundle, shape: &Shape, parts: &[Part]) {
        self.hosts[host].add(bundle, parts, -1);
        self.change_fleet(host, |fleet| fleet.release(place(host, parts), &existing(shape, parts)));
    }

    fn change_fleet(&mut self, host: usize, change: impl FnOnce(&mut Fleet)) {
        self.now += 1;
        (self.changed_at[host], self.standing_at[host]) = (self.now, self.now);
        self.seats.values_mut().for_each(|seat| seat.policy.before_change(&self.fleet.host(host)));
        change(&mut self.fleet);
        for seat in self.seats.values_mut() {
            let void = seat.policy.after_change(&self.fleet.host(host));
            let of_model = (0..).zip(&mut seat.void_at);
            of_model.filter(|&(model, _)| void.allow(model)).for_each(|(_, at)| *at = self.now);
        }
    }
}

/// What is taken of a host as policies see it: GPUs that exist.
fn place(host: usize, parts: &[Part]) -> Place {
    Place { host, gpus: parts.iter().filter(|part| part.made.is_none()).fold(0, |set, part| set | 1 << part.gpu) }
}

/// What is asked for of such GPUs.
fn existing(shape: &Shape, parts: &[Part]) -> Shape {
    Shape { gpus: parts.iter().filter(|part| part.made.is_none()).count() as u32, ..*shape }
}
