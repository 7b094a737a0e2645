//! Whose rows a stream carries, and whether they go on from those held here.
//!
//! Two processors of a cell make the same rows in the same order, so that a position says exactly what is held, whoever sent it. That holds
//! within one log epoch and one logic of the fold. A new epoch goes on from a base that may lie before what was seen of the old one,
//! and another logic may make other rows: then what is not sealed is read again.

use plimsoll_schemas::id::CellId;

use super::wire::Origin;

/// What a stream's rows are to those held.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meeting {
    /// The same: go on behind the last position held.
    Same,
    /// Of a newer log epoch or another logic: begin again behind the manifest. With a sentence for the log.
    Turned(String),
    /// Not to be read at all. With the reason.
    Refused(String),
}

/// Compares the rows held, if there are any yet, with a stream's.
pub(super) fn meet(cell: &CellId, held: Option<&Origin>, met: &Origin) -> Meeting {
    if met.cell != cell.as_str() {
        return Meeting::Refused(format!("it is a tail of cell {}, this service answers for cell {cell}", met.cell));
    }
    let Some(held) = held else { return Meeting::Same };
    let (epoch, known) = (met.folded.epoch, held.folded.epoch);
    if epoch < known {
        return Meeting::Refused(format!("it is still in log epoch {}, what is held here is of {}", epoch.0, known.0));
    }
    if epoch > known {
        return Meeting::Turned(format!("log epoch {} has begun after {}", epoch.0, known.0));
    }
    if met.logic != held.logic {
        return Meeting::Turned(format!("its rows are folded by logic {}, those held here by {}", met.logic, held.logic));
    }
    Meeting::Same
}

#[cfg(test)]
mod tests {
    use plimsoll_schemas::id::{LogEpoch, Position};

    use super::*;

    fn origin(cell: &str, epoch: u32, sequence: u64, logic: u32) -> Origin {
        Origin { cell: cell.to_owned(), folded: Position { epoch: LogEpoch(epoch), sequence }, logic }
    }

    #[test]
    fn only_rows_of_one_cell_one_epoch_and_one_logic_go_on_from_each_other() {
        let cell: CellId = "east".parse().expect("a token");
        let check = |held: Option<Origin>, met: Origin, expected: &str| {
            let found = match meet(&cell, held.as_ref(), &met) {
                Meeting::Same => "same".to_owned(),
                Meeting::Turned(why) => format!("turned: {why}"),
                Meeting::Refused(why) => format!("refused: {why}"),
            };
            assert_eq!(found, expected);
        };
        let held = || Some(origin("east", 1, 50, 3));
        check(None, origin("east", 0, 9, 3), "same");
        check(None, origin("west", 0, 9, 3), "refused: it is a tail of cell west, this service answers for cell east");
        check(held(), origin("east", 1, 7, 3), "same");
        check(held(), origin("east", 0, 900, 3), "refused: it is still in log epoch 0, what is held here is of 1");
        check(held(), origin("east", 2, 1, 3), "turned: log epoch 2 has begun after 1");
        check(held(), origin("east", 1, 50, 4), "turned: its rows are folded by logic 4, those held here by 3");
    }
}
