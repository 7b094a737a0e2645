//! Replicas watch each other: at positions that the log itself defines, each one says its state's hash; whoever differs from the active one
//! stops and says so.

use std::collections::VecDeque;

use plimsoll_schemas::control::{Check, Tick};
use plimsoll_schemas::id::Position;

/// A tick for a second that is a multiple of this asks every replica for its hash.
const EVERY_S: i64 = 10;
/// Own hashes remembered, to compare with what others say later.
const KEPT: usize = 256;

/// Own hashes, and how they compare with others'.
#[derive(Debug, Default)]
pub struct Checks {
    own: VecDeque<(Position, u64)>,
}

/// Two replicas have folded the same records to different states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Up to where.
    pub position: Position,
    /// The own hash.
    pub own: String,
    /// The other replica.
    pub replica: String,
    /// Its hash.
    pub theirs: String,
}

impl Checks {
    /// After a tick was folded: the hash to say, if this tick asks for one.
    pub fn at_tick(&mut self, tick: &Tick, position: Position, hash: u64) -> Option<(Position, u64)> {
        if tick.second.rem_euclid(EVERY_S) != 0 {
            return None;
        }
        if self.own.len() == KEPT {
            self.own.pop_front();
        }
        self.own.push_back((position, hash));
        Some((position, hash))
    }

    /// Compares what another replica said. Only replicas of the same logic can be compared.
    pub fn compare(&self, check: &Check, replica: &str, logic: u32) -> Option<Divergence> {
        if check.replica == replica || check.logic != logic {
            return None;
        }
        let at = self.own.binary_search_by_key(&check.position, |&(position, _)| position).ok()?;
        let own = written(self.own[at].1);
        (own != check.hash).then(|| Divergence { position: check.position, own, replica: check.replica.clone(), theirs: check.hash.clone() })
    }
}

/// A hash as it is written in a check.
pub fn written(hash: u64) -> String {
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::id::LogEpoch;

    fn at(sequence: u64) -> Position {
        Position { epoch: LogEpoch(0), sequence }
    }

    fn check(replica: &str, sequence: u64, hash: u64, logic: u32) -> Check {
        Check { replica: replica.to_owned(), position: at(sequence), hash: written(hash), logic }
    }

    #[test]
    fn only_the_same_position_and_logic_of_another_replica_is_compared() {
        let mut checks = Checks::default();
        for second in 0..30 {
            let asked = checks.at_tick(&Tick { replica: "a".to_owned(), second }, at(second as u64 + 1), second as u64);
            assert_eq!(asked.is_some(), second % 10 == 0);
        }
        let differs = |check: Check| checks.compare(&check, "a", 1).is_some();
        assert!(!differs(check("b", 11, 10, 1)), "the same hash");
        assert!(differs(check("b", 11, 9, 1)), "another hash");
        assert!(!differs(check("a", 11, 9, 1)), "what this replica said itself");
        assert!(!differs(check("b", 11, 9, 2)), "another logic");
        assert!(!differs(check("b", 12, 9, 1)), "no hash was asked for there");
    }
}
