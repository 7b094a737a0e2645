//! Chooses a host with a policy. Remembers every host's bid per shape, so that only hosts that changed are asked again.

use std::collections::BTreeMap;

use super::Policy;
use super::fleet::{Fleet, Place};
use super::host::Misfit;
use super::shape::{Models, Shape};

/// Most shapes whose bids are remembered: 512 shapes × 10,000 hosts × 8 bytes = 41 MB.
pub const SHAPES_MAX: usize = 512;
/// Changes remembered for shapes that have not been asked for since; after that they are asked anew.
const CHANGES_MAX: usize = 1 << 16;
/// Where more than one host in so many is to be asked again, every bid is forgotten.
const VOID_PART_MAX: usize = 2;
/// The key of a host on which the shape does not fit.
const NO_FIT: i64 = i64::MIN;

/// A fleet, a policy, and what the policy said about the fleet.
pub struct Placer {
    fleet: Fleet,
    policy: Box<dyn Policy + Send>,
    keys: BTreeMap<Shape, Keys>,
    /// Hosts in the order in which they changed; `changed_at` holds each one's last place in it.
    changes: Vec<usize>,
    changed_at: Vec<usize>,
}

/// Every host's key for one shape, as of the first `seen` changes.
struct Keys {
    keys: Vec<i64>,
    seen: usize,
}

impl Placer {
    /// A placer on a fleet.
    pub fn new(fleet: Fleet, mut policy: Box<dyn Policy + Send>) -> Self {
        policy.start(&fleet);
        let changed_at = vec![0; fleet.len()];
        Self { fleet, policy, keys: BTreeMap::new(), changes: Vec::new(), changed_at }
    }

    /// The fleet as it is now.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Where the policy would put the shape now, or nothing where it fits nowhere. Changes nothing but what is remembered.
    pub fn choose(&mut self, shape: &Shape) -> Option<Place> {
        self.policy.next_turn();
        let best = if self.policy.bids_last() { self.best_remembered(shape) } else { self.best_asked(shape) };
        best.map(|host| Place { host, gpus: self.policy.bid(&self.fleet.host(host), shape).gpus })
    }

    /// Chooses and places.
    pub fn place(&mut self, shape: &Shape) -> Option<Place> {
        let place = self.choose(shape)?;
        self.take(place, shape);
        Some(place)
    }

    /// Places where the caller says. It fits there.
    pub fn take(&mut self, place: Place, shape: &Shape) {
        self.change(place.host, |fleet| fleet.place(place, shape));
    }

    /// Gives back what was placed.
    pub fn release(&mut self, place: Place, shape: &Shape) {
        self.change(place.host, |fleet| fleet.release(place, shape));
    }

    /// Takes a host out of service for new placements, or puts it back.
    pub fn exclude(&mut self, host: usize, excluded: bool) {
        self.change(host, |fleet| fleet.exclude(host, excluded));
    }

    /// Forgets every bid: the next decision asks every host.
    pub fn forget(&mut self) {
        self.keys.clear();
    }

    /// For every host on which the shape does not fit, why.
    pub fn misfits(&self, shape: &Shape) -> Vec<(usize, Misfit)> {
        self.fleet.hosts().filter_map(|host| host.fits(shape).err().map(|misfit| (host.index, misfit))).collect()
    }

    fn change(&mut self, host: usize, change: impl FnOnce(&mut Fleet)) {
        self.policy.before_change(&self.fleet.host(host));
        change(&mut self.fleet);
        let void = self.policy.after_change(&self.fleet.host(host));
        self.changed(host);
        if void != Models::NONE {
            self.changed_of(void);
        }
    }

    /// Every host with one of these models is to be asked again. Where these are most hosts, asking all of them costs least.
    fn changed_of(&mut self, models: Models) {
        let most = self.fleet.len() / VOID_PART_MAX;
        let hosts: Vec<usize> = self.fleet.hosts().filter(|host| models.allow(host.model)).map(|host| host.index).take(most + 1).collect();
        if hosts.len() > most {
            self.keys.clear();
        } else {
            hosts.into_iter().for_each(|host| self.changed(host));
        }
    }

    fn changed(&mut self, host: usize) {
        if self.changes.len() == CHANGES_MAX {
            self.changes.clear();
            self.keys.clear();
        }
        self.changed_at[host] = self.changes.len();
        self.changes.push(host);
    }

    fn best_asked(&self, shape: &Shape) -> Option<usize> {
        first_greatest(&ask_all(&self.fleet, &*self.policy, shape))
    }

    fn best_remembered(&mut self, shape: &Shape) -> Option<usize> {
        let now = self.changes.len();
        if let Some(known) = self.keys.get_mut(shape) {
            for (at, &host) in self.changes.iter().enumerate().skip(known.seen) {
                // Of several changes of one host the last one is enough.
                if self.changed_at[host] == at {
                    known.keys[host] = ask(&self.fleet, &*self.policy, host, shape);
                }
            }
            known.seen = now;
            return first_greatest(&known.keys);
        }
        let keys = ask_all(&self.fleet, &*self.policy, shape);
        let best = first_greatest(&keys);
        if self.keys.len() >= SHAPES_MAX
            && let Some(oldest) = self.keys.iter().min_by_key(|(_, keys)| keys.seen).map(|(shape, _)| *shape)
        {
            self.keys.remove(&oldest);
        }
        self.keys.insert(*shape, Keys { keys, seen: now });
        best
    }
}

fn ask(fleet: &Fleet, policy: &dyn Policy, host: usize, shape: &Shape) -> i64 {
    let host = fleet.host(host);
    match host.fits(shape) {
        Ok(()) => policy.bid(&host, shape).key,
        Err(_) => NO_FIT,
    }
}

/// Every host's key. A host that is like the one before it is not asked again.
fn ask_all(fleet: &Fleet, policy: &dyn Policy, shape: &Shape) -> Vec<i64> {
    let mut keys: Vec<i64> = Vec::with_capacity(fleet.len());
    for host in 0..fleet.len() {
        let like_the_last = policy.bids_last() && host > 0 && fleet.host(host).is_like(&fleet.host(host - 1));
        let key = if like_the_last { keys[host - 1] } else { ask(fleet, policy, host, shape) };
        keys.push(key);
    }
    keys
}

/// The first of the greatest keys, if the shape fits anywhere.
fn first_greatest(keys: &[i64]) -> Option<usize> {
    let greatest = keys.iter().copied().fold(NO_FIT, i64::max);
    if greatest == NO_FIT { None } else { keys.iter().position(|&key| key == greatest) }
}
