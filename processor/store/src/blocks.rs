//! Rows in blocks: those of one table that a commit brings, a few hundred to a value, compressed. Next to each other they have much in common,
//! and the database has less to sort, to log and to write again than with a key for each.
//!
//! A block stands under the key of its last row, so what begins behind a place is found by seeking to it. Its value: the length of what follows
//! uncompressed, 4 bytes, then in lz4 for each row `epoch 4 | sequence 8 | ordinal 4 | length 4 | bytes`, numbers in little-endian order.

use std::collections::BTreeMap;

use plimsoll_fold::rows::EncodedRow;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::row::Table;

use crate::key;

/// A block is closed when it has this many bytes before compression.
const BLOCK_BYTES: usize = 64 << 10;
/// What stands before a row's bytes.
const PLACE_BYTES: usize = 20;
/// lz4 makes nothing smaller than this part of what it was.
const RATIO_MAX: usize = 255;

/// The key of a block's last row.
pub type Key = [u8; key::ROW_BYTES];

/// Puts rows into blocks.
#[derive(Debug, Default)]
pub struct Blocks {
    open: BTreeMap<Table, Open>,
    closed: Vec<(Key, Vec<u8>)>,
}

/// A block that may take more rows.
#[derive(Debug, Default)]
struct Open {
    last: Key,
    bytes: Vec<u8>,
}

impl Blocks {
    /// Takes a row. Those of one table come in order of place.
    pub fn add(&mut self, row: &EncodedRow<'_>) {
        let open = self.open.entry(row.table).or_default();
        open.last = key::row(row.table, row.position, row.ordinal);
        open.bytes.extend_from_slice(&row.position.epoch.0.to_le_bytes());
        open.bytes.extend_from_slice(&row.position.sequence.to_le_bytes());
        open.bytes.extend_from_slice(&row.ordinal.to_le_bytes());
        open.bytes.extend_from_slice(&(row.bytes.len() as u32).to_le_bytes());
        open.bytes.extend_from_slice(row.bytes);
        if open.bytes.len() >= BLOCK_BYTES {
            self.closed.push(open.close());
        }
    }

    /// The blocks of everything taken, each with its key.
    pub fn finish(mut self) -> Vec<(Key, Vec<u8>)> {
        let rest = self.open.values_mut().filter(|open| !open.bytes.is_empty()).map(Open::close);
        self.closed.extend(rest);
        self.closed
    }
}

impl Open {
    fn close(&mut self) -> (Key, Vec<u8>) {
        let block = (self.last, lz4_flex::compress_prepend_size(&self.bytes));
        self.bytes.clear();
        block
    }
}

/// A block as it was before it was compressed.
#[derive(Debug)]
pub struct Block {
    table: Table,
    bytes: Vec<u8>,
}

impl Block {
    /// The block of a table in a value. The error says what is wrong with it.
    pub fn open(table: Table, value: &[u8]) -> Result<Self, String> {
        let length = value.first_chunk().map_or(0, |length| u32::from_le_bytes(*length)) as usize;
        if length > value.len().saturating_mul(RATIO_MAX) {
            return Err(format!("{} bytes cannot hold {length}", value.len()));
        }
        let bytes = lz4_flex::decompress_size_prepended(value).map_err(|error| error.to_string())?;
        Ok(Self { table, bytes })
    }

    /// Its rows. What is cut off is an error, and the last item.
    pub fn rows(&self) -> impl Iterator<Item = Result<EncodedRow<'_>, String>> {
        let mut rest = &self.bytes[..];
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let Some((row, behind)) = split(self.table, rest) else {
                let cut = rest.len();
                rest = &[];
                return Some(Err(format!("the last {cut} bytes are cut off")));
            };
            rest = behind;
            Some(Ok(row))
        })
    }

    /// Where its first row belongs; absent where there is none.
    pub fn begins(&self) -> Option<Position> {
        self.rows().next()?.ok().map(|row| row.position)
    }
}

/// The first row, and what stands behind it.
fn split(table: Table, bytes: &[u8]) -> Option<(EncodedRow<'_>, &[u8])> {
    let (place, rest) = bytes.split_first_chunk::<PLACE_BYTES>()?;
    let number = |at: usize| place[at..at + 4].try_into().map(u32::from_le_bytes).ok();
    let (epoch, ordinal, length) = (number(0)?, number(12)?, number(16)?);
    let sequence = place[4..12].try_into().map(u64::from_le_bytes).ok()?;
    let (bytes, rest) = rest.split_at_checked(length as usize)?;
    Some((EncodedRow { table, position: Position { epoch: LogEpoch(epoch), sequence }, ordinal, bytes }, rest))
}
