//! Where the members of a gang would stand: placed one after the other on a view of the cell, all of them or none.
//!
//! The largest members go first. Each goes where the policy likes it best as the cell is after those before it; nothing is tried again.

use std::collections::BTreeSet;

use plimsoll_schemas::out::ScoreParts;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Domain, Locality};

use super::Settings;
use super::ask::Ask;
use super::candidate::Candidate;
use super::cell::Host;
use super::policy::Policy;
use super::policy::fleet::{Fleet, GPUS_PER_HOST_MAX, Place};
use super::policy::shape::{Models, Shape};

/// Most hosts or racks that a gang which must stay together is tried on; a record must not take for ever.
const GROUPS_MAX: usize = 64;
/// The key of a host on which a member does not fit.
const NO_FIT: i64 = i64::MIN;

/// A member that found its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The member.
    pub member: usize,
    /// Its host, by its place in the cell.
    pub host: usize,
    /// Its GPUs by their place on the host, each with the memory to reserve, bytes.
    pub gpus: Vec<(usize, u64)>,
    /// What the place was worth to the policy.
    pub key: i64,
    /// What that is made of.
    pub parts: Option<ScoreParts>,
}

/// Why a member finds no place on a host, or what it may take there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The GPUs that would do: bit i = GPU i.
    pub open: u64,
    /// What the host lacks.
    pub misfit: Option<Reason>,
}

/// A gang on its way.
pub struct Plan<'c, 'a> {
    /// The cell as it is after those that are placed.
    pub hosts: Vec<Host<'c>>,
    ask: &'a Ask<'a>,
    settings: &'a Settings,
    fleet: Fleet,
    policy: Box<dyn Policy + Send>,
    shapes: Vec<Shape>,
    /// By bundle, every host's key; empty = not asked yet.
    keys: Vec<Vec<i64>>,
    /// Hosts on which nothing of this request may stand, and why.
    shut: Vec<Option<Reason>>,
    /// Members placed so far.
    pub taken: Vec<Taken>,
}

impl<'c, 'a> Plan<'c, 'a> {
    /// Nothing placed yet. The fleet is that of the hosts, and the policy has not started on it.
    pub fn new(hosts: Vec<Host<'c>>, ask: &'a Ask<'a>, settings: &'a Settings, fleet: Fleet, mut policy: Box<dyn Policy + Send>) -> Self {
        policy.start(&fleet);
        policy.next_turn();
        let shapes = ask.bundles().iter().map(|bundle| ask.asked_of(bundle).shape(&fleet)).collect();
        let shut = shut(&hosts, ask);
        Self { hosts, ask, settings, fleet, policy, shapes, keys: vec![Vec::new(); ask.bundles().len()], shut, taken: Vec::new() }
    }

    /// Places every member. Errors: the member that found no place; those before it stay placed, so that it can be seen why.
    pub fn place_all(&mut self) -> Result<(), Stuck> {
        let (first, members) = (self.order(), self.ask.members.len());
        let near = self.ask.constraints().topology.as_ref().filter(|near| members > 1 && matches!(near.scope, Locality::Host | Locality::Rack));
        let Some(near) = near else { return self.place_in(&first, None) };
        let domain = if near.scope == Locality::Host { Domain::Host } else { Domain::Rack };
        let groups = self.groups(domain);
        for group in groups.iter().take(GROUPS_MAX) {
            match self.place_in(&first, Some((domain, group))) {
                Ok(()) => return Ok(()),
                Err(_) => self.take_back(),
            }
        }
        if !near.required {
            return self.place_in(&first, None);
        }
        let (member, bundle) = (first[0], self.ask.members[first[0]]);
        self.ask_hosts(bundle);
        // Where no host could take it at all, the GPUs say why.
        let fits = self.best(bundle, |_| true).is_some();
        let reason = if groups.len() > GROUPS_MAX { Reason::BudgetExhausted } else { Reason::Topology };
        Err(Stuck { member, because: fits.then_some(reason) })
    }

    /// What a host has for a member of a bundle.
    pub fn look(&self, host: usize, bundle: &Bundle) -> Look {
        if self.shut[host].is_some() {
            return Look { open: 0, misfit: self.shut[host] };
        }
        let here = &self.hosts[host];
        let offers = here.gpus.iter().take(GPUS_PER_HOST_MAX).map(|gpu| self.would_do(gpu, bundle));
        let open = offers.enumerate().fold(0_u64, |open, (gpu, fits)| open | u64::from(fits) << gpu);
        let short = |left: Option<i64>, asked: u64| left.is_some_and(|left| i64::try_from(asked).is_ok_and(|asked| asked > left.max(0)));
        let (near, apart) = self.near(here, open, bundle);
        let misfit = if short(here.cpu_milli, bundle.cpu_milli) {
            Some(Reason::InsufficientCpu)
        } else if short(here.memory_bytes, bundle.memory_bytes) {
            Some(Reason::InsufficientHostMemory)
        } else if open.count_ones() < bundle.count {
            Some(Reason::TooFewDevices)
        } else if apart {
            Some(Reason::Topology)
        } else {
            None
        };
        Look { open: near, misfit }
    }

    /// Whether a GPU by itself would do for a member of a bundle.
    pub fn would_do(&self, gpu: &Candidate<'_>, bundle: &Bundle) -> bool {
        gpu.offer(self.ask, bundle, self.settings).is_ok()
    }

    /// Every GPU's reason why it was not for a member of this bundle, in the order of the cell; `None` = it could have been taken.
    pub fn reasons(&self, bundle: &Bundle) -> Vec<Option<Reason>> {
        let mut reasons = Vec::new();
        for (number, host) in self.hosts.iter().enumerate() {
            let misfit = self.look(number, bundle).misfit;
            let of_gpu = |gpu: &Candidate<'_>| {
                let own = gpu.offer(self.ask, bundle, self.settings).err();
                own.into_iter().chain(self.shut[number]).min_by_key(|reason| reason.precedence()).or(misfit)
            };
            reasons
                .extend(host.gpus.iter().enumerate().map(|(at, gpu)| if at < GPUS_PER_HOST_MAX { of_gpu(gpu) } else { Some(Reason::LimitReached) }));
        }
        reasons
    }

    /// The hosts on which a member of the bundle fits, best first, each with its key.
    pub fn ranked(&mut self, bundle: usize) -> Vec<(usize, i64)> {
        self.ask_hosts(bundle);
        let mut ranked: Vec<(usize, i64)> = self.keys[bundle].iter().copied().enumerate().filter(|&(_, key)| key != NO_FIT).collect();
        ranked.sort_by_key(|&(host, key)| (std::cmp::Reverse(key), host));
        ranked
    }

    /// How much one step of a key is, in millionths of the policy's unit.
    pub fn micro_per_key(&self) -> i64 {
        self.policy.micro_per_key()
    }

    /// The largest members first, of equals in their order.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.ask.members.len()).collect();
        order.sort_by_key(|&member| std::cmp::Reverse(self.shapes[self.ask.members[member]].total_milli()));
        order
    }

    /// The values of a domain under which the whole gang might fit, the tightest first.
    fn groups(&self, domain: Domain) -> Vec<String> {
        let mut left = std::collections::BTreeMap::<&str, i64>::new();
        for (number, host) in self.hosts.iter().enumerate().filter(|&(number, _)| self.shut[number].is_none()) {
            if let Some(value) = host.domain(domain) {
                *left.entry(value).or_default() += self.fleet.host(number).idle_milli;
            }
        }
        let need = i64::try_from(self.ask.total_milli()).unwrap_or(i64::MAX);
        let mut groups: Vec<(i64, &str)> = left.into_iter().map(|(value, left)| (left, value)).filter(|&(left, _)| left >= need).collect();
        groups.sort_unstable();
        groups.into_iter().map(|(_, value)| value.to_owned()).collect()
    }

    fn place_in(&mut self, order: &[usize], group: Option<(Domain, &String)>) -> Result<(), Stuck> {
        let apart = self.ask.constraints().spread.clone();
        let mut used = BTreeSet::<String>::new();
        for &member in order {
            let bundle = self.ask.members[member];
            self.ask_hosts(bundle);
            let within = |host: &Host<'_>| group.is_none_or(|(domain, value)| host.domain(domain) == Some(value.as_str()));
            let fresh = |host: &Host<'_>| apart.as_ref().is_none_or(|apart| host.domain(apart.over).is_some_and(|value| !used.contains(value)));
            let hosts = &self.hosts;
            let best = self.best(bundle, |host| within(&hosts[host]) && fresh(&hosts[host])).or_else(|| match &apart {
                Some(apart) if !apart.required => self.best(bundle, |host| within(&hosts[host])),
                Some(_) | None => None,
            });
            let Some(host) = best else {
                let fits_near = self.best(bundle, |host| within(&hosts[host])).is_some();
                return Err(Stuck { member, because: fits_near.then_some(Reason::AntiAffinity) });
            };
            if let Some(apart) = &apart {
                used.extend(self.hosts[host].domain(apart.over).map(str::to_owned));
            }
            self.take(member, host);
        }
        Ok(())
    }

    fn best(&self, bundle: usize, allowed: impl Fn(usize) -> bool) -> Option<usize> {
        let fitting = self.keys[bundle].iter().enumerate().filter(|&(host, &key)| key != NO_FIT && allowed(host));
        fitting.reduce(|best, host| if host.1 > best.1 { host } else { best }).map(|(host, _)| host)
    }

    /// Asks the hosts for their keys, where that was not done yet.
    fn ask_hosts(&mut self, bundle: usize) {
        if self.keys[bundle].is_empty() || !self.policy.bids_last() {
            self.keys[bundle] = (0..self.hosts.len()).map(|host| self.key(host, bundle)).collect();
        }
    }

    fn key(&mut self, host: usize, bundle: usize) -> i64 {
        let Look { open, misfit } = self.look(host, &self.ask.bundles()[bundle]);
        self.fleet.open(host, open);
        if misfit.is_some() { NO_FIT } else { self.policy.bid(&self.fleet.host(host), &self.shapes[bundle]).key }
    }

    /// What a host's key is made of.
    pub fn parts(&mut self, host: usize, bundle: usize) -> Option<ScoreParts> {
        self.fleet.open(host, self.look(host, &self.ask.bundles()[bundle]).open);
        let (view, shape) = (self.fleet.host(host), &self.shapes[bundle]);
        self.policy.parts(&view, shape, self.policy.bid(&view, shape).gpus)
    }

    fn take(&mut self, member: usize, host: usize) {
        let number = self.ask.members[member];
        let bundle = &self.ask.bundles()[number];
        let parts = self.parts(host, number);
        let bid = self.policy.bid(&self.fleet.host(host), &self.shapes[number]);
        let offer = |gpu: usize| self.hosts[host].gpus[gpu].offer(self.ask, bundle, self.settings).map_or(0, |offer| offer.vram_bytes);
        let gpus: Vec<(usize, u64)> = (0..GPUS_PER_HOST_MAX).filter(|gpu| bid.gpus >> gpu & 1 == 1).map(|gpu| (gpu, offer(gpu))).collect();
        self.hosts[host].take(bundle, &gpus);
        self.change(host, |fleet, shape| fleet.place(Place { host, gpus: bid.gpus }, shape), number);
        self.taken.push(Taken { member, host, gpus, key: bid.key, parts });
    }

    /// Takes all members back.
    fn take_back(&mut self) {
        while let Some(taken) = self.taken.pop() {
            let (number, host) = (self.ask.members[taken.member], taken.host);
            self.hosts[host].give_back(&self.ask.bundles()[number], &taken.gpus);
            let gpus = taken.gpus.iter().fold(0, |set, &(gpu, _)| set | 1 << gpu);
            self.change(host, |fleet, shape| fleet.release(Place { host, gpus }, shape), number);
        }
    }

    /// Changes a host, and asks it again, and every host whose earlier key no longer holds.
    fn change(&mut self, host: usize, change: impl FnOnce(&mut Fleet, &Shape), bundle: usize) {
        self.policy.before_change(&self.fleet.host(host));
        change(&mut self.fleet, &self.shapes[bundle]);
        let void = self.policy.after_change(&self.fleet.host(host));
        let stale: Vec<usize> = match void {
            Models::NONE => vec![host],
            models => (0..self.hosts.len()).filter(|&other| other == host || models.allow(self.fleet.host(other).model)).collect(),
        };
        for bundle in (0..self.keys.len()).filter(|&bundle| !self.keys[bundle].is_empty()).collect::<Vec<_>>() {
            for &host in &stale {
                self.keys[bundle][host] = self.key(host, bundle);
            }
        }
    }

    /// Of the GPUs that would do, those near enough to each other, and whether there must be some and are not.
    fn near(&self, host: &Host<'_>, open: u64, bundle: &Bundle) -> (u64, bool) {
        let Some(near) = self.ask.constraints().topology.as_ref().filter(|_| bundle.count > 1) else { return (open, false) };
        let number = |gpu: &Candidate<'_>| match near.scope {
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
}

/// A member that found no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    /// Which.
    pub member: usize,
    /// What stood in the way beyond what each GPU says for itself.
    pub because: Option<Reason>,
}

/// Which hosts nothing of the request may stand on: elsewhere than asked for, or too near to what it must avoid.
fn shut(hosts: &[Host<'_>], ask: &Ask<'_>) -> Vec<Option<Reason>> {
    let constraints = ask.constraints();
    let mut avoided = BTreeSet::<&str>::new();
    if let Some(anti) = &constraints.anti_affinity {
        let has_all = |labels: &std::collections::BTreeMap<String, String>| anti.labels.iter().all(|(name, value)| labels.get(name) == Some(value));
        let near = hosts.iter().filter(|host| host.labels.iter().any(|labels| has_all(labels)));
        avoided.extend(near.filter_map(|host| host.domain(anti.over)));
    }
    let of = |host: &Host<'_>| {
        if constraints.within.iter().any(|(&domain, value)| host.domain(domain) != Some(value.as_str())) {
            return Some(Reason::LabelMismatch);
        }
        let over = constraints.anti_affinity.as_ref().map(|anti| anti.over)?;
        host.domain(over).is_some_and(|value| avoided.contains(value)).then_some(Reason::AntiAffinity)
    };
    hosts.iter().map(of).collect()
}
