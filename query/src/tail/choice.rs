//! Which of several tails to follow. Decided once a beat from what they say of themselves; no clock, no I/O.
//!
//! The one that is followed stays followed as long as it is good: it answers, its streams stand, and no other one is further while it
//! stands still or lies behind what is already held. After a few bad beats in a row the next good one in the list is taken. Each
//! change without a good beat after it doubles that patience, so that nobody goes round in circles where the fault lies elsewhere.

use std::fmt;

use plimsoll_schemas::id::Position;

/// Bad beats in a row before another tail is taken.
const PATIENCE_MIN: u32 = 3;
const PATIENCE_MAX: u32 = 60;

/// How it stands here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Every row up to here is held or sealed.
    pub held: Position,
    /// Whether a stream of the tail that is followed does not stand.
    pub broken: bool,
}

/// What is wrong with a tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It does not answer, or with something that cannot be used.
    Away,
    /// It answers, and its streams do not stand.
    Broken,
    /// It stands still.
    Still {
        /// Where.
        at: Position,
        /// Where another one is.
        other: Position,
    },
    /// It is behind what is held.
    Behind {
        /// Where it is.
        at: Position,
        /// What is held.
        held: Position,
    },
}

/// Another tail to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Its place in the list.
    pub to: usize,
    /// What was wrong with the one before.
    pub why: Why,
}

/// Who is followed, and how good that has been of late.
#[derive(Debug)]
pub struct Choice {
    followed: usize,
    /// Where it was at the beat before.
    before: Option<Position>,
    bad_beats: u32,
    patience: u32,
}

impl Choice {
    /// Follows the first.
    pub fn new() -> Self {
        Self { followed: 0, before: None, bad_beats: 0, patience: PATIENCE_MIN }
    }

    /// The place in the list of the one that is followed.
    pub fn followed(&self) -> usize {
        self.followed
    }

    /// One beat. `seen` = where each tail of the list is; absent where it cannot be followed. Another one to follow, if it is time for it.
    pub fn beat(&mut self, seen: &[Option<Position>], here: Standing) -> Option<Change> {
        let own = seen.get(self.followed).copied().flatten();
        let others = || (1..seen.len()).map(|n| (self.followed + n) % seen.len()).filter_map(|index| Some((index, seen[index]?)));
        let furthest = others().max_by_key(|(_, at)| *at);
        let why = wrong(own, self.before, furthest.map(|(_, at)| at), here);
        let ahead = others().find(|(_, at)| *at >= here.held);
        self.before = own;
        let Some(why) = why else {
            (self.bad_beats, self.patience) = (0, PATIENCE_MIN);
            return None;
        };
        self.bad_beats = self.bad_beats.saturating_add(1);
        if self.bad_beats < self.patience {
            return None;
        }
        let (to, _) = ahead.or(furthest)?;
        *self = Self { followed: to, before: None, bad_beats: 0, patience: (self.patience * 2).min(PATIENCE_MAX) };
        Some(Change { to, why })
    }
}

fn wrong(own: Option<Position>, before: Option<Position>, furthest: Option<Position>, here: Standing) -> Option<Why> {
    let Some(at) = own else { return Some(Why::Away) };
    if here.broken {
        return Some(Why::Broken);
    }
    let other = furthest.filter(|other| *other > at)?;
    if before == Some(at) {
        return Some(Why::Still { at, other });
    }
    (at < here.held).then_some(Why::Behind { at, held: here.held })
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Away => f.write_str("it does not answer, or cannot be used"),
            Self::Broken => f.write_str("its streams do not stand"),
            Self::Still { at, other } => write!(f, "it stands still at {at}, another one is at {other}"),
            Self::Behind { at, held } => write!(f, "it is at {at}, behind {held}, which is held already"),
        }
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_schemas::id::LogEpoch;

    use super::*;

    fn at(sequence: u64) -> Position {
        Position { epoch: LogEpoch(0), sequence }
    }

    fn good(held: u64) -> Standing {
        Standing { held: at(held), broken: false }
    }

    /// Beats until a change, at most 100: how many, and to whom.
    fn beats(choice: &mut Choice, here: Standing, seen: impl Fn(u64) -> Vec<Option<Position>>) -> Option<(u64, usize)> {
        (1..=100).find_map(|beat| choice.beat(&seen(beat), here).map(|change| (beat, change.to)))
    }

    #[test]
    fn a_tail_that_is_good_stays_followed_however_far_another_one_is() {
        let mut choice = Choice::new();
        assert_eq!(beats(&mut choice, good(5), |beat| vec![Some(at(10 + beat)), Some(at(1_000))]), None);
        // A moment of silence is nothing.
        for beat in 0..90 {
            let own = (beat % 3 == 0).then_some(at(2_000 + beat));
            assert_eq!(choice.beat(&[own, Some(at(3_000))], good(5)), None, "{beat}");
        }
    }

    #[test]
    fn alone_or_among_others_that_are_away_nothing_changes() {
        for own in [None, Some(at(1))] {
            assert_eq!(beats(&mut Choice::new(), good(9), |_| vec![own]), None);
            assert_eq!(beats(&mut Choice::new(), Standing { held: at(9), broken: true }, |_| vec![own, None]), None);
        }
    }

    #[test]
    fn one_that_is_away_broken_still_or_behind_is_left_after_three_beats() {
        let check = |here: Standing, seen: fn(u64) -> Vec<Option<Position>>, expected: u64| {
            assert_eq!(beats(&mut Choice::new(), here, seen), Some((expected, 1)));
        };
        check(good(5), |_| vec![None, Some(at(9))], 3);
        check(Standing { held: at(5), broken: true }, |beat| vec![Some(at(beat)), Some(at(9))], 3);
        // The first beat knows of no other one to compare with.
        check(good(5), |beat| vec![Some(at(7)), Some(at(7 + beat))], 4);
        check(good(50), |beat| vec![Some(at(beat)), Some(at(60 + beat))], 3);
    }

    #[test]
    fn the_broker_being_away_is_no_reason_to_change() {
        assert_eq!(beats(&mut Choice::new(), good(7), |_| vec![Some(at(7)), Some(at(7))]), None);
        assert_eq!(beats(&mut Choice::new(), good(7), |_| vec![Some(at(7)), Some(at(4))]), None);
    }

    #[test]
    fn the_next_in_the_list_that_has_what_is_held_is_taken_and_else_the_furthest() {
        let seen = |own: Option<u64>, second: u64, third: u64| vec![own.map(at), Some(at(second)), Some(at(third))];
        assert_eq!(beats(&mut Choice::new(), good(5), |_| seen(None, 6, 7)), Some((3, 1)));
        assert_eq!(beats(&mut Choice::new(), good(5), |_| seen(None, 4, 5)), Some((3, 2)));
        assert_eq!(beats(&mut Choice::new(), good(9), |_| seen(None, 6, 5)), Some((3, 1)));
        let mut choice = Choice::new();
        assert_eq!(beats(&mut choice, good(5), |_| seen(None, 6, 7)), Some((3, 1)));
        assert_eq!(beats(&mut choice, good(5), |_| vec![Some(at(8)), None, None]), Some((6, 0)), "round again");
    }

    #[test]
    fn going_round_without_a_good_beat_grows_slower_and_slower() {
        let mut choice = Choice::new();
        let broken = Standing { held: at(5), broken: true };
        let both = |beat: u64| vec![Some(at(10 + beat)), Some(at(10 + beat))];
        let waits: Vec<_> = (0..7).map(|_| beats(&mut choice, broken, both).expect("the other one").0).collect();
        assert_eq!(waits, [3, 6, 12, 24, 48, 60, 60]);
        assert_eq!(choice.beat(&both(1), good(5)), None);
        assert_eq!(beats(&mut choice, broken, both).expect("the other one").0, 3, "a good beat begins anew");
    }
}
