//! What every host and every GPU answers to one member of a bundle. Answers are brought up to date host by host: only those that have changed
//! are asked again.

use plimsoll_schemas::candidates::Sets;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Locality, Topology};

use super::ask::Ask;
use super::candidate::Candidate;
use super::cell::{Cell, Host};
use super::mig;
use super::policy::catalogue::Bidder;
use super::policy::fleet::GPUS_PER_HOST_MAX;
use super::policy::shape::Shape;

/// The key of a host on which a member does not fit.
const NO_FIT: i64 = i64::MIN;

/// Everything that answers depend on besides the cell: equal questions have equal answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// Who bids.
    pub bidder: Bidder,
    bundle: Bundle,
    models: Vec<String>,
    driver_min: Option<String>,
    compute_capability_min: Option<String>,
    near: Option<Topology>,
}

impl Question {
    /// The question of a bundle.
    pub fn new(bidder: Bidder, ask: &Ask<'_>, bundle: &Bundle) -> Self {
        let constraints = ask.constraints();
        Self {
            bidder,
            bundle: Bundle { name: None, members: 1, ..bundle.clone() },
            models: ask.models().map(str::to_owned).collect(),
            driver_min: constraints.driver_min.clone(),
            compute_capability_min: constraints.compute_capability_min.clone(),
            near: constraints.topology,
        }
    }
}

/// What a host has for a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// The GPUs that would do, and are near enough to each other: bit i = GPU i.
    pub open: u64,
    /// Those of them that exist: of a board with MIG mode on only new instances can be had.
    pub ready: u64,
    /// How many GPUs would do by themselves.
    pub passing: u32,
    /// What the host lacks.
    pub misfit: Option<Reason>,
}

/// The answers to one question.
#[derive(Debug, Clone)]
pub struct Answers {
    looks: Vec<Look>,
    keys: Vec<i64>,
    reasons: Vec<Option<Reason>>,
    refused: Sets,
    /// What the GPUs of the host that is being asked say for themselves.
    own: Vec<Option<Reason>>,
    /// Up to which change of the cell they are right.
    seen: u64,
}

impl Answers {
    /// Nobody has been asked yet.
    pub fn none(cell: &Cell) -> Self {
        let (hosts, gpus) = (cell.hosts().len(), cell.hosts().iter().map(|host| host.gpus.len()).sum());
        let (looks, keys, reasons) = (vec![Look::default(); hosts], vec![NO_FIT; hosts], vec![None; gpus]);
        Self { looks, keys, reasons, refused: Sets::default(), own: Vec::new(), seen: 0 }
    }

    /// Up to which change of the cell they are right.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// What a host has.
    pub fn look(&self, host: usize) -> Look {
        self.looks[host]
    }

    /// Every GPU's reason why it is not for a member, in the order of the cell; `None` = it could be taken.
    pub fn reasons(&self) -> &[Option<Reason>] {
        &self.reasons
    }

    /// The same as sets.
    pub fn refused(&self) -> &Sets {
        &self.refused
    }

    /// The hosts on which a member fits, each with its key.
    pub fn fitting(&self) -> impl Iterator<Item = (usize, i64)> {
        self.keys.iter().copied().enumerate().filter(|&(_, key)| key != NO_FIT)
    }

    /// The host of the greatest key among those allowed, the first of equals.
    pub fn best(&self, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let fitting = self.fitting().filter(|&(host, _)| allowed(host));
        fitting.reduce(|best, host| if host.1 > best.1 { host } else { best }).map(|(host, _)| host)
    }

    /// Asks the hosts that have changed. `shut`: on which hosts nothing of the request may stand, and why; empty = on none.
    pub fn refresh(&mut self, cell: &mut Cell, ask: &Ask<'_>, bundle: &Bundle, shape: &Shape, bidder: Bidder, shut: &[Option<Reason>]) {
        let voids = cell.voids_bids(bidder, self.seen);
        if self.seen == cell.now() && !voids {
            return;
        }
        for host in 0..cell.hosts().len() {
            let changed = cell.has_changed(host, self.seen);
            if !changed && !voids {
                continue;
            }
            let before = self.looks[host];
            if changed {
                self.ask_gpus(cell, host, ask, bundle, shut.get(host).copied().flatten());
            }
            // What is left of a board decides what a new instance costs, and shows in no look.
            if self.looks[host] != before || cell.is_void(bidder, host, self.seen) || (changed && bundle.mig_profile.is_some()) {
                self.keys[host] = if self.looks[host].misfit.is_some() { NO_FIT } else { self.key(cell, host, bundle, shape, bidder) };
            }
        }
        if self.seen == 0 {
            self.refused = Sets::of(self.reasons.iter().copied());
        }
        self.seen = cell.now();
    }

    fn key(&self, cell: &mut Cell, host: usize, bundle: &Bundle, shape: &Shape, bidder: Bidder) -> i64 {
        let making = mig::making(&cell.hosts()[host].gpus, self.looks[host], bundle);
        making.map_or_else(|| self.bid(cell, host, shape, bidder), |making| making.key)
    }

    /// What the policy bids for a host. One that is like the one before it is not asked for.
    fn bid(&self, cell: &mut Cell, host: usize, shape: &Shape, bidder: Bidder) -> i64 {
        cell.open(host, self.looks[host].ready);
        if host > 0 {
            cell.open(host - 1, self.looks[host - 1].ready);
        }
        let (policy, fleet) = cell.seated(bidder);
        let like_the_last = host > 0 && self.keys[host - 1] != NO_FIT && policy.bids_last() && fleet.host(host).is_like(&fleet.host(host - 1));
        if like_the_last { self.keys[host - 1] } else { policy.bid(&fleet.host(host), shape).key }
    }

    fn ask_gpus(&mut self, cell: &Cell, number: usize, ask: &Ask<'_>, bundle: &Bundle, shut: Option<Reason>) {
        let (host, first) = (&cell.hosts()[number], cell.first_gpu(number));
        self.own.clear();
        self.own.extend(host.gpus.iter().map(|gpu| gpu.offer(ask, bundle, cell.settings()).err()));
        let passing = self.own.iter().filter(|own| own.is_none()).count() as u32;
        let would_do = self.own.iter().take(GPUS_PER_HOST_MAX).enumerate().filter(|(_, own)| own.is_none());
        let open = would_do.fold(0_u64, |open, (gpu, _)| open | 1 << gpu);
        let (open, misfit) = if shut.is_some() { (0, shut) } else { lacks(host, open, ask, bundle) };
        self.looks[number] = Look { open, ready: mig::ready(&host.gpus, open, bundle), passing, misfit };
        for (at, own) in self.own.iter().enumerate() {
            let reason = if at < GPUS_PER_HOST_MAX {
                own.iter().copied().chain(shut).min_by_key(|reason| reason.precedence()).or(misfit)
            } else {
                Some(Reason::LimitReached)
            };
            let gpu = first + at as u32;
            let before = std::mem::replace(&mut self.reasons[gpu as usize], reason);
            // Where nobody had been asked the sets are made at the end.
            if before != reason && self.seen > 0 {
                self.refused.change(gpu, before, reason);
            }
        }
    }
}

/// Of a host's GPUs that would do by themselves those that do together, and what the host lacks.
fn lacks(host: &Host, open: u64, ask: &Ask<'_>, bundle: &Bundle) -> (u64, Option<Reason>) {
    let short = |left: Option<i64>, asked: u64| left.is_some_and(|left| i64::try_from(asked).is_ok_and(|asked| asked > left.max(0)));
    let (near, apart) = near(host, open, ask, bundle);
    let misfit = if short(host.cpu_milli, bundle.cpu_milli) {
        Some(Reason::InsufficientCpu)
    } else if short(host.memory_bytes, bundle.memory_bytes) {
        Some(Reason::InsufficientHostMemory)
    } else if open.count_ones() < bundle.count {
        Some(Reason::TooFewDevices)
    } else if apart {
        Some(Reason::Topology)
    } else {
        None
    };
    (near, misfit)
}

/// Of the GPUs that would do, those near enough to each other, and whether there must be some and are not.
fn near(host: &Host, open: u64, ask: &Ask<'_>, bundle: &Bundle) -> (u64, bool) {
    let Some(near) = ask.constraints().topology.as_ref().filter(|_| bundle.count > 1) else { return (open, false) };
    let number = |gpu: &Candidate| match near.scope {
        Locality::Nvlink => gpu.nvlink_domain,
        Locality::Numa => gpu.numa_node.map(u32::from),
        Locality::Host | Locality::Rack => Some(0),
    };
    let mut sets = std::collections::BTreeMap::<u32, u64>::new();
    for (at, gpu) in host.gpus.iter().enumerate().take(GPUS_PER_HOST_MAX).filter(|(at, _)| open >> at & 1 == 1) {
        if let Some(number) = number(gpu) {
            *sets.entry(number).or_default() |= 1 << at;
        }
    }
    let enough = sets.into_iter().filter(|(_, set)| set.count_ones() >= bundle.count);
    match enough.min_by_key(|&(number, set)| (set.count_ones(), number)) {
        Some((_, set)) => (set, false),
        None => (open, near.required),
    }
}
