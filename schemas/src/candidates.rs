//! Why each candidate of a decision was refused: one set of GPUs per reason, small enough to stand in every decision.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use roaring::RoaringBitmap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reason::Reason;

/// Which GPUs were refused. The GPUs of the cell are numbered from 0 in the order of (host, slot), as they were registered at the position
/// the decision was made on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Candidates {
    /// How many GPUs there were.
    pub gpus: u32,
    /// By reason the set of GPUs refused for it: a roaring bitmap in its portable format, as base64. No GPU is in two of them; one in none
    /// of them could have been taken.
    #[schemars(extend("propertyNames" = { "$ref": "#/$defs/Reason" }))]
    pub refused: BTreeMap<Reason, String>,
}

/// A set that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the GPUs refused for {reason} are no roaring bitmap in base64")]
pub struct Unreadable {
    /// Whose set.
    pub reason: Reason,
}

/// The same while reasons still change: one set of GPUs per reason.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sets {
    gpus: u32,
    sets: BTreeMap<Reason, RoaringBitmap>,
}

impl Sets {
    /// Of every GPU's reason in the order of the GPUs; `None` = it could have been taken.
    pub fn of(reasons: impl IntoIterator<Item = Option<Reason>>) -> Self {
        let (mut by_reason, mut gpus) = (BTreeMap::<Reason, Vec<u32>>::new(), 0);
        for reason in reasons {
            if let Some(reason) = reason {
                by_reason.entry(reason).or_default().push(gpus);
            }
            gpus += 1;
        }
        let set = |gpus: Vec<u32>| RoaringBitmap::from_sorted_iter(gpus).expect("counted upwards");
        Self { gpus, sets: by_reason.into_iter().map(|(reason, gpus)| (reason, set(gpus))).collect() }
    }

    /// The GPU of this number had one reason and has another now.
    pub fn change(&mut self, gpu: u32, before: Option<Reason>, now: Option<Reason>) {
        if let Some(set) = before.and_then(|reason| self.sets.get_mut(&reason)) {
            set.remove(gpu);
        }
        if let Some(reason) = now {
            self.sets.entry(reason).or_default().insert(gpu);
        }
    }

    /// How many GPUs were refused, by reason.
    pub fn counts(&self) -> BTreeMap<Reason, u32> {
        self.sets.iter().filter(|(_, set)| !set.is_empty()).map(|(&reason, set)| (reason, set.len() as u32)).collect()
    }

    /// As decisions carry them.
    pub fn candidates(&self) -> Candidates {
        let text = |set: &RoaringBitmap| {
            let mut set = set.clone();
            set.optimize();
            let mut bytes = Vec::with_capacity(set.serialized_size());
            set.serialize_into(&mut bytes).expect("memory takes what is written");
            STANDARD.encode(bytes)
        };
        let sets = self.sets.iter().filter(|(_, set)| !set.is_empty());
        Candidates { gpus: self.gpus, refused: sets.map(|(&reason, set)| (reason, text(set))).collect() }
    }
}

impl Candidates {
    /// Of every GPU's reason in the order of the GPUs; `None` = it could have been taken.
    pub fn of(reasons: impl IntoIterator<Item = Option<Reason>>) -> Self {
        Sets::of(reasons).candidates()
    }

    /// Every GPU's reason in the order of the GPUs. Errors on a set that cannot be read; GPUs beyond the last one are left out.
    pub fn reasons(&self) -> Result<Vec<Option<Reason>>, Unreadable> {
        let mut reasons = vec![None; self.gpus as usize];
        for (&reason, text) in &self.refused {
            let bytes = STANDARD.decode(text).map_err(|_| Unreadable { reason })?;
            let set = RoaringBitmap::deserialize_from(bytes.as_slice()).map_err(|_| Unreadable { reason })?;
            for gpu in set {
                if let Some(place) = reasons.get_mut(gpu as usize) {
                    *place = Some(reason);
                }
            }
        }
        Ok(reasons)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_keeps_its_reason_and_long_runs_are_small() {
        let reason = |gpu: usize| match gpu {
            0..9_000 => Some(Reason::LeaseConflict),
            9_000..9_007 => None,
            _ if gpu.is_multiple_of(3) => Some(Reason::Stale),
            _ => Some(Reason::Thermal),
        };
        let reasons: Vec<_> = (0..10_000).map(reason).collect();
        let candidates = Candidates::of(reasons.iter().copied());
        assert_eq!(candidates.reasons(), Ok(reasons));
        assert!(candidates.refused[&Reason::LeaseConflict].len() < 40);
        assert!(candidates.refused[&Reason::Stale].len() < 1_000);
    }

    #[test]
    fn a_set_does_not_depend_on_how_it_came_to_be() {
        let mut sets = Sets::of([None, Some(Reason::Stale), Some(Reason::Stale)]);
        sets.change(1, Some(Reason::Stale), Some(Reason::Thermal));
        sets.change(2, Some(Reason::Stale), None);
        let fresh = Sets::of([None, Some(Reason::Thermal), None]);
        assert_eq!((sets.candidates(), sets.counts()), (fresh.candidates(), fresh.counts()));
    }

    #[test]
    fn a_set_that_is_none_is_named() {
        let candidates = Candidates { gpus: 1, refused: [(Reason::Stale, "????".to_owned())].into() };
        assert_eq!(candidates.reasons(), Err(Unreadable { reason: Reason::Stale }));
    }
}
