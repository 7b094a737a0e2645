//! Everything that is watched and not simply quiet: by subject, and within it by the number of the rule. Every window that closes looks
//! here, so a subject is found by its place and not by search.

use plimsoll_schemas::time::{EventTime, LogTime};
use serde::{Deserialize, Serialize};

use crate::alerts::Subject;
use crate::alerts::watch::Watch;

/// A rule on a subject that is not simply quiet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Watched {
    pub watch: Watch,
    /// The value that last moved it.
    pub value: i64,
    /// Since when the limit is passed, as people read it.
    pub began_at: EventTime,
    /// The life of the alert that fires: its id and when it fired.
    pub life: Option<(String, LogTime)>,
}

/// What is watched on one subject, by number of the rule: seldom more than a few.
type Few = Vec<(u32, Watched)>;

/// What is watched, by (subject, number of the rule).
#[derive(Debug, Clone, Default)]
pub(crate) struct All {
    cell: Few,
    hosts: Vec<Few>,
    gpus: Vec<Few>,
    len: usize,
}

impl All {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// What is watched on a subject, in the order of the rules' numbers.
    pub fn on(&self, subject: Subject) -> &[(u32, Watched)] {
        let few = match subject {
            Subject::Cell => Some(&self.cell),
            Subject::Host(number) => self.hosts.get(number as usize),
            Subject::Gpu(number) => self.gpus.get(number as usize),
        };
        few.map_or(&[], |few| few.as_slice())
    }

    fn on_mut(&mut self, subject: Subject) -> &mut Few {
        let (all, number) = match subject {
            Subject::Cell => return &mut self.cell,
            Subject::Host(number) => (&mut self.hosts, number as usize),
            Subject::Gpu(number) => (&mut self.gpus, number as usize),
        };
        if number >= all.len() {
            all.resize_with(number + 1, Vec::new);
        }
        &mut all[number]
    }

    pub fn get(&self, (subject, rule): (Subject, u32)) -> Option<&Watched> {
        self.on(subject).iter().find(|&&(number, _)| number == rule).map(|(_, watched)| watched)
    }

    pub fn get_mut(&mut self, (subject, rule): (Subject, u32)) -> Option<&mut Watched> {
        self.on_mut(subject).iter_mut().find(|&&mut (number, _)| number == rule).map(|(_, watched)| watched)
    }

    /// Adds one, or replaces it.
    pub fn insert(&mut self, (subject, rule): (Subject, u32), watched: Watched) {
        let few = self.on_mut(subject);
        match few.binary_search_by_key(&rule, |&(number, _)| number) {
            Ok(at) => few[at].1 = watched,
            Err(at) => {
                few.insert(at, (rule, watched));
                self.len += 1;
            }
        }
    }

    /// Takes one away, if it is there.
    pub fn remove(&mut self, (subject, rule): (Subject, u32)) {
        let few = self.on_mut(subject);
        if let Ok(at) = few.binary_search_by_key(&rule, |&(number, _)| number) {
            few.remove(at);
            self.len -= 1;
        }
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = ((Subject, u32), &Watched)> {
        let hosts = self.hosts.iter().zip(0..).map(|(few, number)| (Subject::Host(number), few));
        let gpus = self.gpus.iter().zip(0..).map(|(few, number)| (Subject::Gpu(number), few));
        let all = std::iter::once((Subject::Cell, &self.cell)).chain(hosts).chain(gpus);
        all.flat_map(|(subject, few)| few.iter().map(move |(rule, watched)| ((subject, *rule), watched)))
    }

    /// What is watched, in order.
    pub fn keys(&self) -> impl Iterator<Item = (Subject, u32)> {
        self.iter().map(|(key, _)| key)
    }
}
