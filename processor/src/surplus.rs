//! Whether OUT shows more than the log makes, decided without I/O.
//!
//! OUT may hold outputs that this replica has not made: most often another one is further in the log, and what stands is compared as soon as it
//! is made here as well. If the log has lost the records that made them, or something else writes to OUT, it never is; and where nothing else
//! happens in the cell, no next output would show it either. An own tick tells the two apart. It is sent after OUT's end was heard, and the log
//! says where it stands: whoever wrote what stood in OUT by then had folded records before that place and no others. So a replica that has folded
//! its own tick, and has not made what stood in OUT before it was sent, never will.

use std::sync::{Arc, Mutex, PoisonError};

/// A tick of this replica that stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticked {
    /// Where OUT ended, as far as it was known when the tick was sent.
    out_end: u64,
    /// Where the tick stands.
    sequence: u64,
}

/// How far the fold is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The last record folded.
    pub sequence: u64,
    /// The last output made.
    pub out_seq: u64,
    /// Up to which output OUT is known to be right.
    pub standing: u64,
}

#[derive(Debug, Default)]
struct Known {
    out_end: u64,
    /// Where OUT ended when the tick was sent whose fate is not known yet.
    sent: Option<u64>,
    ticked: Option<Ticked>,
}

/// What one replica knows of OUT's end and of the log's. A clone is the same one: publisher, ticker and loop each tell what they hear.
#[derive(Debug, Clone, Default)]
pub struct Surplus(Arc<Mutex<Known>>);

impl Surplus {
    fn known<T>(&self, of: impl FnOnce(&mut Known) -> T) -> T {
        of(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// OUT was heard to end there.
    pub fn out_ends_at(&self, last: u64) {
        self.known(|known| known.out_end = last);
    }

    /// An own tick is about to be sent.
    pub fn ticks(&self) {
        self.known(|known| known.sent = Some(known.out_end));
    }

    /// The tick sent last stands there. The one before it has to be folded first, or a fold that lags would never come to an answer.
    pub fn ticked(&self, sequence: u64) {
        self.known(|known| {
            let sent = known.sent.take().map(|out_end| Ticked { out_end, sequence });
            known.ticked = known.ticked.or(sent);
        });
    }

    /// Where OUT ended, if that is more than the log makes. Nothing is said before everything made stands: what differs is the chain's to say.
    pub fn shown(&self, made: Made) -> Option<u64> {
        let judged = |ticked: &mut Ticked| ticked.sequence <= made.sequence && made.out_seq.min(ticked.out_end) <= made.standing;
        let Ticked { out_end, .. } = self.known(|known| known.ticked.take_if(judged))?;
        (out_end > made.out_seq).then_some(out_end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(sequence: u64, out_seq: u64) -> Made {
        Made { sequence, out_seq, standing: out_seq }
    }

    /// A replica that has heard that OUT ends at 5, and then ticked at 100.
    fn ticked() -> Surplus {
        let surplus = Surplus::default();
        surplus.out_ends_at(5);
        surplus.ticks();
        surplus.ticked(100);
        surplus
    }

    #[test]
    fn what_stood_in_out_before_an_own_tick_and_is_not_made_up_to_it_is_more_than_the_log_makes() {
        assert_eq!(ticked().shown(made(100, 4)), Some(5));
        assert_eq!(ticked().shown(made(117, 4)), Some(5));
        assert_eq!(ticked().shown(made(100, 5)), None);
        assert_eq!(ticked().shown(made(100, 6)), None);
    }

    #[test]
    fn a_replica_that_lags_is_only_late() {
        let surplus = ticked();
        assert_eq!(surplus.shown(made(99, 1)), None);
        // It ticks on meanwhile, and OUT goes on.
        surplus.out_ends_at(9);
        surplus.ticks();
        surplus.ticked(200);
        assert_eq!(surplus.shown(made(150, 5)), None);
        surplus.ticks();
        surplus.ticked(300);
        assert_eq!(surplus.shown(made(300, 5)), Some(9));
    }

    #[test]
    fn what_came_to_out_after_the_tick_was_sent_says_nothing() {
        let surplus = Surplus::default();
        surplus.ticks();
        surplus.out_ends_at(5);
        surplus.ticked(100);
        assert_eq!(surplus.shown(made(100, 4)), None);
    }

    #[test]
    fn nothing_is_said_before_everything_made_was_compared() {
        let surplus = ticked();
        assert_eq!(surplus.shown(Made { sequence: 100, out_seq: 4, standing: 3 }), None);
        assert_eq!(surplus.shown(made(100, 4)), Some(5));
        assert_eq!(surplus.shown(made(100, 4)), None, "once");
    }
}
