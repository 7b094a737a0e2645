//! What a board says about its memory beside the samples: uncorrected errors in its life, and rows that wait to be replaced. It changes
//! seldom, so only changes are said, as events.

use plimsoll_schemas::inventory::{EventKind, Remap};

/// One reading of it; absent = not read, or not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wear {
    /// Uncorrected ECC errors in the board's life.
    pub ecc_aggregate: Option<u64>,
    /// Where the replacement of rows stands.
    pub remap: Option<Remap>,
    /// Rows remapped after uncorrected errors.
    pub rows: Option<u64>,
}

impl Wear {
    /// Where remapping stands by the board's two flags.
    pub fn remap_of(pending: Option<bool>, failed: Option<bool>) -> Option<Remap> {
        match (pending, failed) {
            (None, None) => None,
            (_, Some(true)) => Some(Remap::Failed),
            (Some(true), Some(false) | None) => Some(Remap::Pending),
            (Some(false) | None, Some(false)) | (Some(false), None) => Some(Remap::Clean),
        }
    }

    /// Takes a reading; returns what it says that was not said before. `volatile` are the uncorrected errors since the driver was loaded.
    /// A board is clean until it says otherwise, and its errors before the first reading are no news.
    pub fn take(&mut self, now: Wear, volatile: Option<u64>) -> Vec<EventKind> {
        let mut news = Vec::new();
        self.rows = now.rows.or(self.rows);
        if let Some(state) = now.remap {
            if state != self.remap.unwrap_or_default() {
                news.push(EventKind::Remap { state, rows: self.rows.unwrap_or(0) });
            }
            self.remap = Some(state);
        }
        if let (Some(aggregate), Some(volatile)) = (now.ecc_aggregate, volatile) {
            if self.ecc_aggregate.is_some_and(|before| before != aggregate) {
                news.push(EventKind::Ecc { volatile, aggregate });
            }
            self.ecc_aggregate = Some(aggregate);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_said_and_a_clean_board_says_nothing() {
        let mut wear = Wear::default();
        let mut take = |ecc_aggregate, remap, volatile| wear.take(Wear { ecc_aggregate, remap, rows: Some(2) }, volatile);
        assert_eq!(take(Some(7), Some(Remap::Clean), Some(0)), []);
        assert_eq!(take(None, None, None), []);
        assert_eq!(take(Some(8), Some(Remap::Pending), None), [EventKind::Remap { state: Remap::Pending, rows: 2 }]);
        assert_eq!(take(Some(8), Some(Remap::Pending), Some(1)), [EventKind::Ecc { volatile: 1, aggregate: 8 }]);
        assert_eq!(take(Some(8), Some(Remap::Clean), Some(0)), [EventKind::Remap { state: Remap::Clean, rows: 2 }]);
        assert_eq!(take(Some(8), Some(Remap::Clean), Some(0)), []);
    }

    #[test]
    fn a_failure_outweighs_what_waits_and_unknown_is_not_clean() {
        let check = |pending, failed, expected| assert_eq!(Wear::remap_of(pending, failed), expected);
        check(None, None, None);
        check(Some(true), Some(true), Some(Remap::Failed));
        check(Some(true), None, Some(Remap::Pending));
        check(Some(false), Some(false), Some(Remap::Clean));
    }
}
