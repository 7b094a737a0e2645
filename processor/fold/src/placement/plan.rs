//! Where the members of a gang would stand: placed one after the other, all of them or none.
//!
//! The largest members go first. Each goes where the policy likes it best as the cell is after those before it; nothing is tried again.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::id::HostId;
use plimsoll_schemas::out::ScoreParts;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Domain, Locality};

use super::answers::{Answers, Question};
use super::ask::Ask;
use super::cell::{Cell, Host};
use super::mig::{self, Made};
use super::policy::catalogue::Bidder;
use super::policy::fleet::GPUS_PER_HOST_MAX;
use super::policy::shape::Shape;

/// Most hosts or racks that a gang which must stay together is tried on; a record must not take for ever.
const GROUPS_MAX: usize = 64;

/// The labels of the asking tenant's leases, by the host they stand on.
pub type Neighbours<'a> = BTreeMap<&'a HostId, Vec<&'a BTreeMap<String, String>>>;

/// A member that found its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The member.
    pub member: usize,
    /// Its host, by its place in the cell.
    pub host: usize,
    /// Its GPUs.
    pub gpus: Vec<Part>,
    /// What the place was worth to the policy.
    pub key: i64,
    /// What that is made of.
    pub parts: Option<ScoreParts>,
}

/// A GPU for a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The GPU, by its place on the host.
    pub gpu: usize,
    /// Memory to reserve, bytes.
    pub vram_bytes: u64,
    /// How much room it had before, by `headroom@1`, millionths.
    pub score_micro: u32,
    /// The MIG instance that is to be made on it; absent = it exists.
    pub made: Option<Made>,
}

/// A gang on its way. Whoever ends it says so with [`Plan::end`]: then the cell is as it was.
pub struct Plan<'c, 'a> {
    cell: &'c mut Cell,
    ask: &'a Ask<'a>,
    bidder: Bidder,
    shapes: Vec<Shape>,
    /// The different questions of the bundles with their answers, and the one of each bundle.
    answers: Vec<(Question, Answers)>,
    of_bundle: Vec<usize>,
    /// Hosts on which nothing of this request may stand, and why; empty = there is none.
    shut: Vec<Option<Reason>>,
    taken: Vec<Taken>,
}

impl<'c, 'a> Plan<'c, 'a> {
    /// Nothing placed yet. The policy sits on the cell.
    pub fn new(cell: &'c mut Cell, ask: &'a Ask<'a>, bidder: Bidder, neighbours: &Neighbours<'_>) -> Self {
        let shapes = ask.bundles().iter().map(|bundle| ask.asked_of(bundle).shape(cell.fleet())).collect();
        let shut = shut(cell.hosts(), ask, neighbours);
        let mut answers = Vec::<(Question, Answers)>::new();
        let mut of_bundle = Vec::new();
        for bundle in ask.bundles() {
            let question = Question::new(bidder, ask, bundle);
            let known = answers.iter().position(|(asked, _)| *asked == question);
            of_bundle.push(known.unwrap_or(answers.len()));
            if known.is_none() {
                let recalled = cell.recall(&question).filter(|_| shut.is_empty());
                answers.push((question, recalled.unwrap_or_else(|| Answers::none(cell))));
            }
        }
        Self { cell, ask, bidder, shapes, answers, of_bundle, shut, taken: Vec::new() }
    }

    /// The cell as it is after those that are placed.
    pub fn cell(&self) -> &Cell {
        self.cell
    }

    /// Members placed so far.
    pub fn taken(&self) -> &[Taken] {
        &self.taken
    }

    /// What the hosts answer to a bundle, as the cell is now.
    pub fn answers(&mut self, bundle: usize) -> &Answers {
        let answers = &mut self.answers[self.of_bundle[bundle]].1;
        answers.refresh(self.cell, self.ask, &self.ask.bundles()[bundle], &self.shapes[bundle], self.bidder, &self.shut);
        answers
    }

    /// What they have answered, as of the last time they were asked.
    pub fn answered(&self, bundle: usize) -> &Answers {
        &self.answers[self.of_bundle[bundle]].1
    }

    /// The bundle of this number.
    pub fn bundle(&self, bundle: usize) -> &'a Bundle {
        &self.ask.bundles()[bundle]
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
        // Where no host could take it at all, the GPUs say why.
        let fits = self.answers(bundle).best(|_| true).is_some();
        let reason = if groups.len() > GROUPS_MAX { Reason::BudgetExhausted } else { Reason::Topology };
        Err(Stuck { member, because: fits.then_some(reason) })
    }

    /// What a host's key is made of.
    pub fn parts(&mut self, host: usize, bundle: usize) -> Option<ScoreParts> {
        let look = self.answers(bundle).look(host);
        self.cell.open(host, look.ready);
        if mig::making(&self.cell.hosts()[host].gpus, look, self.bundle(bundle)).is_some() {
            return None;
        }
        let ((policy, fleet), shape) = (self.cell.seated(self.bidder), &self.shapes[bundle]);
        let host = fleet.host(host);
        policy.parts(&host, shape, policy.bid(&host, shape).gpus)
    }

    /// What a key is worth, in millionths of the policy's unit; where MIG instances have to be made, less the legal places lost, in millionths.
    pub fn worth_micro(&self, key: i64) -> i64 {
        mig::worth_micro(key).unwrap_or_else(|| self.cell.seated(self.bidder).0.worth_micro(key))
    }

    /// Takes all members back and remembers what was answered.
    pub fn end(mut self) {
        self.take_back();
        if self.shut.is_empty() {
            self.answers.into_iter().for_each(|(question, answers)| self.cell.remember(question, answers));
        }
        self.cell.leave(self.bidder);
    }

    /// The largest members first, of equals in their order.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.ask.members.len()).collect();
        let bundles = self.ask.bundles().iter().zip(&self.shapes);
        let gpus = || self.cell.hosts().iter().flat_map(|host| &host.gpus);
        let sizes: Vec<_> = bundles.map(|(bundle, shape)| (std::cmp::Reverse(shape.total_milli()), mig::largest_first(gpus(), bundle))).collect();
        order.sort_by_key(|&member| sizes[self.ask.members[member]]);
        order
    }

    /// The values of a domain under which the whole gang might fit, the tightest first.
    fn groups(&self, domain: Domain) -> Vec<String> {
        let mut left = BTreeMap::<&str, i64>::new();
        for (number, host) in self.cell.hosts().iter().enumerate().filter(|&(number, _)| self.shut.get(number).copied().flatten().is_none()) {
            if let Some(value) = host.domain(domain) {
                *left.entry(value).or_default() += self.cell.fleet().host(number).idle_milli;
            }
        }
        // What can be made of MIG instances is not among what is left.
        let makes = self.ask.bundles().iter().any(|bundle| bundle.mig_profile.is_some());
        let need = if makes { 0 } else { i64::try_from(self.ask.total_milli()).unwrap_or(i64::MAX) };
        let mut groups: Vec<(i64, &str)> = left.into_iter().map(|(value, left)| (left, value)).filter(|&(left, _)| left >= need).collect();
        groups.sort_unstable();
        groups.into_iter().map(|(_, value)| value.to_owned()).collect()
    }

    fn place_in(&mut self, order: &[usize], group: Option<(Domain, &String)>) -> Result<(), Stuck> {
        let apart = self.ask.constraints().spread.clone();
        let mut used = BTreeSet::<String>::new();
        for &member in order {
            let bundle = self.ask.members[member];
            self.answers(bundle);
            let (hosts, answers) = (self.cell.hosts(), &self.answers[self.of_bundle[bundle]].1);
            let within = |host: usize| group.is_none_or(|(domain, value)| hosts[host].domain(domain) == Some(value.as_str()));
            let fresh = |host: usize| apart.as_ref().is_none_or(|apart| hosts[host].domain(apart.over).is_some_and(|value| !used.contains(value)));
            let best = answers.best(|host| within(host) && fresh(host)).or_else(|| match &apart {
                Some(apart) if !apart.required => answers.best(within),
                Some(_) | None => None,
            });
            let Some(host) = best else {
                let fits_near = answers.best(within).is_some();
                return Err(Stuck { member, because: fits_near.then_some(Reason::AntiAffinity) });
            };
            if let Some(apart) = &apart {
                used.extend(hosts[host].domain(apart.over).map(str::to_owned));
            }
            self.take(member, host);
        }
        Ok(())
    }

    fn take(&mut self, member: usize, host: usize) {
        let number = self.ask.members[member];
        let bundle = &self.ask.bundles()[number];
        let parts = self.parts(host, number);
        let gpus = &self.cell.hosts()[host].gpus;
        let (bits, key, made) = match mig::making(gpus, self.answered(number).look(host), bundle) {
            Some(making) => (making.gpus, making.key, making.made),
            None => {
                let (policy, fleet) = self.cell.seated(self.bidder);
                let bid = policy.bid(&fleet.host(host), &self.shapes[number]);
                (bid.gpus, bid.key, Vec::new())
            }
        };
        let part = |gpu: usize| Part {
            gpu,
            vram_bytes: gpus[gpu].offer(self.ask, bundle, self.cell.settings()).map_or(0, |offer| offer.vram_bytes),
            score_micro: gpus[gpu].score().micro(),
            made: made.iter().find(|&&(board, _)| board == gpu).map(|&(_, made)| made),
        };
        let gpus: Vec<Part> = (0..GPUS_PER_HOST_MAX).filter(|gpu| bits >> gpu & 1 == 1).map(part).collect();
        self.cell.take(host, bundle, &self.shapes[number], &gpus);
        self.taken.push(Taken { member, host, gpus, key, parts });
    }

    /// Takes all members back.
    fn take_back(&mut self) {
        while let Some(taken) = self.taken.pop() {
            let number = self.ask.members[taken.member];
            self.cell.give_back(taken.host, &self.ask.bundles()[number], &self.shapes[number], &taken.gpus);
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

/// Which hosts nothing of the request may stand on: elsewhere than asked for, or too near to what it must avoid. Empty = there is none.
fn shut(hosts: &[Host], ask: &Ask<'_>, neighbours: &Neighbours<'_>) -> Vec<Option<Reason>> {
    let constraints = ask.constraints();
    if constraints.within.is_empty() && constraints.anti_affinity.is_none() {
        return Vec::new();
    }
    let mut avoided = BTreeSet::<&str>::new();
    if let Some(anti) = &constraints.anti_affinity {
        let has_all = |labels: &BTreeMap<String, String>| anti.labels.iter().all(|(name, value)| labels.get(name) == Some(value));
        let lives = |host: &&Host| neighbours.get(&host.id).is_some_and(|leases| leases.iter().any(|labels| has_all(labels)));
        avoided.extend(hosts.iter().filter(lives).filter_map(|host| host.domain(anti.over)));
    }
    let of = |host: &Host| {
        if constraints.within.iter().any(|(&domain, value)| host.domain(domain) != Some(value.as_str())) {
            return Some(Reason::LabelMismatch);
        }
        let over = constraints.anti_affinity.as_ref().map(|anti| anti.over)?;
        host.domain(over).is_some_and(|value| avoided.contains(value)).then_some(Reason::AntiAffinity)
    };
    hosts.iter().map(of).collect()
}
