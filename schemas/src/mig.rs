//! MIG: what a board can be cut into and what it is cut into, as its driver says. Nothing here knows a board's table; every legal place comes
//! from the agent.
//!
//! A place is a run of memory slices. Two instances can stand on a board together if their slices do not overlap.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::GpuUuid;
use crate::inventory::Gpu;

/// Most memory slices of a board: a set of them is 64 bits.
pub const SLICES_MAX: u8 = 64;
/// Most profiles of a board.
pub const PROFILES_MAX: usize = 32;

/// A run of memory slices of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Slices {
    /// The first, from 0.
    pub start: u8,
    /// How many, at least 1.
    pub size: u8,
}

impl Slices {
    /// Bit i = slice i. What lies beyond the last slice there can be is left out.
    pub fn mask(self) -> u64 {
        let ones = u64::MAX.checked_shr(u32::from(SLICES_MAX.saturating_sub(self.size))).unwrap_or(0);
        ones.checked_shl(u32::from(self.start)).unwrap_or(0)
    }

    fn check(self, of: &str) -> Result<(), String> {
        if self.size == 0 || u16::from(self.start) + u16::from(self.size) > u16::from(SLICES_MAX) {
            return Err(format!("{of}: {} slices from slice {}, expected at least 1 and none beyond {SLICES_MAX}", self.size, self.start));
        }
        Ok(())
    }
}

/// A board on which MIG mode is on: it is used through instances, never as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Mig {
    /// What it can be cut into, at most 32.
    #[schemars(length(max = PROFILES_MAX))]
    pub profiles: Vec<Profile>,
    /// What it is cut into, whoever did it, at most 64; no two overlap.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = SLICES_MAX))]
    pub instances: Vec<Instance>,
}

/// A kind of instance that a board can have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    /// Such as `1g.10gb`.
    pub name: String,
    /// Memory of an instance, bytes.
    pub memory_bytes: u64,
    /// Memory slices of an instance.
    pub size: u8,
    /// Slices at which an instance may start, ascending.
    #[schemars(length(min = 1, max = SLICES_MAX))]
    pub starts: Vec<u8>,
    /// Most such instances at once, where that is less than there are starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances_max: Option<u8>,
}

impl Profile {
    /// Every legal place, by start.
    pub fn places(&self) -> impl Iterator<Item = Slices> {
        self.starts.iter().map(|&start| Slices { start, size: self.size })
    }
}

/// An instance that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Instance {
    /// Its profile.
    pub profile: String,
    /// Its first memory slice.
    pub start: u8,
    /// How many memory slices it has.
    pub size: u8,
    /// The UUID that jobs use it by; absent = nothing can run on it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<GpuUuid>,
}

impl Instance {
    /// Where it stands.
    pub fn slices(&self) -> Slices {
        Slices { start: self.start, size: self.size }
    }
}

/// An instance that does not exist yet and that a lease may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Promise {
    /// Of which profile.
    pub profile: String,
    /// At which memory slice.
    pub start: u8,
    /// How many memory slices it takes.
    pub size: u8,
}

impl Promise {
    /// Where it is to stand.
    pub fn slices(&self) -> Slices {
        Slices { start: self.start, size: self.size }
    }
}

impl Mig {
    /// The instance of this UUID.
    pub fn instance(&self, uuid: &GpuUuid) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.uuid.as_ref() == Some(uuid))
    }

    /// Every text with its field's name.
    pub fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let of_profiles = self.profiles.iter().map(|profile| ("a MIG profile's name", profile.name.as_str()));
        of_profiles.chain(self.instances.iter().map(|instance| ("a MIG instance's profile", instance.profile.as_str())))
    }

    /// Refuses a board that cannot be: absurd sizes, too many places, instances that overlap.
    pub fn check(&self) -> Result<(), String> {
        if self.profiles.len() > PROFILES_MAX || self.instances.len() > usize::from(SLICES_MAX) {
            let (profiles, instances) = (self.profiles.len(), self.instances.len());
            return Err(format!("{profiles} MIG profiles and {instances} instances, at most {PROFILES_MAX} and {SLICES_MAX}"));
        }
        let mut names = BTreeSet::new();
        for profile in &self.profiles {
            let name = &profile.name;
            if name.is_empty() || profile.memory_bytes == 0 || profile.instances_max == Some(0) || !names.insert(name) {
                return Err(format!("MIG profile {name:?} is named twice, or has no name, memory or instance"));
            }
            if profile.starts.is_empty() || !profile.starts.is_sorted_by(|a, b| a < b) {
                return Err(format!("MIG profile {name}: starts {:?}, expected some, ascending", profile.starts));
            }
            profile.places().try_for_each(|place| place.check(name))?;
        }
        let mut taken = 0;
        for instance in &self.instances {
            let (slices, of) = (instance.slices(), &instance.profile);
            slices.check(of)?;
            if taken & slices.mask() != 0 {
                return Err(format!("MIG instance {of} of {} slices from slice {} overlaps another", slices.size, slices.start));
            }
            taken |= slices.mask();
        }
        Ok(())
    }
}

/// Refuses the GPUs of a host if what boards and instances say of each other does not agree. A board that says nothing of MIG is not asked.
pub fn check(gpus: &[Gpu]) -> Result<(), String> {
    let boards: BTreeMap<&GpuUuid, &Mig> = gpus.iter().filter_map(|gpu| Some((&gpu.uuid, gpu.mig.as_ref()?))).collect();
    let mut of_board = BTreeMap::<&GpuUuid, (&GpuUuid, &Instance)>::new();
    for (&uuid, mig) in &boards {
        mig.check().map_err(|detail| format!("{uuid}: {detail}"))?;
        for (instance, of) in mig.instances.iter().filter_map(|instance| Some((instance.uuid.as_ref()?, instance))) {
            if of_board.insert(instance, (uuid, of)).is_some() {
                return Err(format!("MIG instance {instance} twice"));
            }
        }
    }
    for gpu in gpus {
        let (uuid, parent) = (&gpu.uuid, gpu.mig_parent_uuid.as_ref());
        if gpu.mig.is_some() && parent.is_some() {
            return Err(format!("{uuid} is a board with MIG mode on and an instance of another"));
        }
        let listed = of_board.get(uuid);
        if (listed.is_some() || parent.is_some_and(|parent| boards.contains_key(parent)))
            && listed.map(|&(board, of)| (Some(board), Some(of.profile.as_str()))) != Some((parent, gpu.mig_profile.as_deref()))
        {
            return Err(format!("{uuid}: it and its board do not say the same of it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_bits_and_none_of_them_lies_beyond_the_last() {
        let check = |start, size, expected: u64| assert_eq!(Slices { start, size }.mask(), expected, "{size} from {start}");
        check(0, 1, 0b1);
        check(4, 3, 0b111_0000);
        check(0, 64, u64::MAX);
        check(63, 1, 1 << 63);
        check(0, 0, 0);
        check(63, 2, 1 << 63);
        check(255, 255, 0);
    }
}
