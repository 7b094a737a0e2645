//! Who is active, decided without I/O: the sender of the newest tick in the log. No lease and no election.
//!
//! A tick is appended by compare-and-set: it names the sequence of the newest tick its sender knows of, and the log refuses it if another one
//! came in between. So a replica that was paused and wakes cannot take the role back by accident, and of several standbys only one gets it.
//! This is about liveness only: that no output stands twice is the chain's doing ([`crate::chain`]), whoever believes to be active.

use std::time::Duration;

/// The active replica ticks this often.
pub const PERIOD: Duration = Duration::from_secs(1);
/// A standby that has seen no tick for so long sends one itself.
pub const SILENCE: Duration = Duration::from_secs(2);
/// A tick whose fate is not known after this long is given up.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The newest tick known of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its sequence in the log.
    pub sequence: u64,
    /// Who sent it.
    pub replica: String,
}

/// What one replica knows of who is active. Instants are its own monotonic clock, from any zero.
#[derive(Debug)]
pub struct Role {
    replica: String,
    newest: Option<Seen>,
    /// When the newest tick was noticed.
    heard_at: Duration,
    /// When the tick whose fate is not known yet was sent.
    asked_at: Option<Duration>,
    /// When the last own tick was sent.
    sent_at: Option<Duration>,
}

/// A tick to send: it stands only if the newest tick is still this one (0 = there is none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Sequence of the newest tick known of.
    pub after: u64,
}

impl Role {
    /// The role of `replica`, which finds `newest` at `now`. Whoever sent the last tick goes on; where nobody ever did, the first comer begins.
    pub fn new(replica: String, newest: Option<Seen>, now: Duration) -> Self {
        Self { replica, newest, heard_at: now, asked_at: None, sent_at: None }
    }

    /// The replica's name.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Whether this replica sent the newest tick.
    pub fn is_active(&self) -> bool {
        self.newest.as_ref().is_some_and(|newest| newest.replica == self.replica)
    }

    /// Who sent the newest tick.
    pub fn active(&self) -> Option<&str> {
        self.newest.as_ref().map(|newest| newest.replica.as_str())
    }

    /// A tick was read from the log. Older ones than the newest known say nothing.
    pub fn seen(&mut self, seen: Seen, now: Duration) {
        if self.newest.as_ref().is_none_or(|newest| newest.sequence < seen.sequence) {
            self.newest = Some(seen);
            self.heard_at = now;
        }
    }

    /// The tick to send now, if one is due.
    pub fn due(&mut self, now: Duration) -> Option<Claim> {
        if self.asked_at.is_some_and(|asked| now.saturating_sub(asked) < ANSWER_MAX) {
            return None;
        }
        let due = match (&self.newest, self.is_active()) {
            (None, _) => self.sent_at.is_none_or(|sent| now.saturating_sub(sent) >= PERIOD),
            (Some(_), true) => self.sent_at.is_none_or(|sent| now.saturating_sub(sent) >= PERIOD),
            (Some(_), false) => now.saturating_sub(self.heard_at) >= SILENCE,
        };
        if !due {
            return None;
        }
        self.asked_at = Some(now);
        self.sent_at = Some(now);
        Some(Claim { after: self.newest.as_ref().map_or(0, |newest| newest.sequence) })
    }

    /// The tick sent last stands under this sequence.
    pub fn stands(&mut self, sequence: u64, now: Duration) {
        self.asked_at = None;
        self.seen(Seen { sequence, replica: self.replica.clone() }, now);
    }

    /// The tick sent last was refused: `newest` is what stands instead. A newer tick than the one known of is a sign of life.
    pub fn refused(&mut self, newest: Option<Seen>, now: Duration) {
        self.asked_at = None;
        match newest {
            Some(newest) => self.seen(newest, now),
            // The log holds no tick at all (any more).
            None => self.newest = None,
        }
    }

    /// Nobody knows whether the tick sent last stands.
    pub fn unanswered(&mut self) {
        self.asked_at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn tick(sequence: u64, replica: &str) -> Seen {
        Seen { sequence, replica: replica.to_owned() }
    }

    #[test]
    fn the_first_comer_begins_and_then_ticks_each_second() {
        let mut role = Role::new("a".to_owned(), None, at(0));
        assert_eq!(role.due(at(0)), Some(Claim { after: 0 }));
        assert_eq!(role.due(at(1)), None, "one at a time");
        role.stands(7, at(5));
        assert!(role.is_active());
        assert_eq!(role.due(at(900)), None);
        assert_eq!(role.due(at(1_000)), Some(Claim { after: 7 }));
    }

    #[test]
    fn a_standby_waits_for_two_seconds_of_silence() {
        let mut role = Role::new("b".to_owned(), Some(tick(5, "a")), at(0));
        for second in 1..10 {
            role.seen(tick(5 + second, "a"), at(second * 1_000));
            assert_eq!(role.due(at(second * 1_000 + 999)), None);
        }
        assert_eq!(role.due(at(11_000)), Some(Claim { after: 14 }));
        role.stands(15, at(11_001));
        assert!(role.is_active());
    }

    #[test]
    fn a_paused_replica_that_wakes_is_refused_and_stands_by() {
        let mut role = Role::new("a".to_owned(), Some(tick(5, "a")), at(0));
        assert_eq!(role.due(at(600_000)), Some(Claim { after: 5 }));
        role.refused(Some(tick(600, "b")), at(600_010));
        assert!(!role.is_active());
        assert_eq!(role.due(at(601_000)), None);
        assert_eq!(role.active(), Some("b"));
    }

    #[test]
    fn a_tick_nobody_answered_is_asked_again() {
        let mut role = Role::new("a".to_owned(), Some(tick(5, "a")), at(0));
        assert!(role.due(at(0)).is_some());
        assert_eq!(role.due(at(2_000)), None);
        assert!(role.due(at(3_000)).is_some(), "given up after a while");
        role.unanswered();
        assert!(role.due(at(4_000)).is_some());
    }
}
