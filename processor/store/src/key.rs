//! Keys: big-endian tuples, so that byte order is the order of places.
//!
//! Shapes: blocks of rows `table 1 | epoch 4 | sequence 8 | ordinal 4` of their last row, outputs `out_seq 8`.

use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::row::Table;

/// Length of a row's key, bytes.
pub const ROW_BYTES: usize = 17;

/// The key of a row.
pub fn row(table: Table, position: Position, ordinal: u32) -> [u8; ROW_BYTES] {
    let mut key = [0; ROW_BYTES];
    key[0] = table as u8;
    key[1..5].copy_from_slice(&position.epoch.0.to_be_bytes());
    key[5..13].copy_from_slice(&position.sequence.to_be_bytes());
    key[13..].copy_from_slice(&ordinal.to_be_bytes());
    key
}

/// The least key of a table.
pub fn first(table: Table) -> [u8; ROW_BYTES] {
    row(table, Position::default(), 0)
}

/// The least key of a table behind every row of a position.
pub fn after(table: Table, position: Position) -> [u8; ROW_BYTES] {
    row(table, Position { epoch: position.epoch, sequence: position.sequence.saturating_add(1) }, 0)
}

/// Behind every key of a table.
pub fn end(table: Table) -> [u8; 1] {
    [table as u8 + 1]
}

/// The key of a commit's mark: `mark` and its position. Behind every word that is a key beside it.
pub fn mark(position: Position) -> [u8; 17] {
    let mut key = *b"~mark............";
    key[5..9].copy_from_slice(&position.epoch.0.to_be_bytes());
    key[9..].copy_from_slice(&position.sequence.to_be_bytes());
    key
}

/// The position in a mark's key; `None` if it is not one.
pub fn marked(key: &[u8]) -> Option<Position> {
    let key: &[u8; 17] = key.try_into().ok()?;
    let epoch = LogEpoch(u32::from_be_bytes(key[5..9].try_into().ok()?));
    Some(Position { epoch, sequence: u64::from_be_bytes(key[9..].try_into().ok()?) })
}

/// The key of an output.
pub fn output(out_seq: u64) -> [u8; 8] {
    out_seq.to_be_bytes()
}
