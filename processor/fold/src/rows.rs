//! Rows on their way out of the fold: each as a value, and as the bytes that were hashed, so that whoever keeps or sends it need not encode it
//! again.

use std::ops::Deref;

use plimsoll_schemas::id::Position;
use plimsoll_schemas::row::{PlacedRow, Row, Table};

use crate::encode;

/// First byte of a row's bytes: postcard follows.
const POSTCARD: u8 = 1;
/// JSON follows: announced facts leave absent fields out, and postcard cannot tell that they are missing.
const JSON: u8 = 2;

/// Rows in order of place. As a slice they are values; [`Rows::encoded`] has the same rows as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    placed: Vec<PlacedRow>,
    encoded: Encoded,
}

impl Rows {
    /// Appends a row and gives back the bytes that count for the hash.
    pub(crate) fn push(&mut self, row: PlacedRow) -> &[u8] {
        self.encoded.push(&row);
        self.placed.push(row);
        // The first byte says how to read the others, which is not for the hash.
        self.encoded.last().get(1..).unwrap_or_default()
    }

    /// The rows as bytes.
    pub fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    /// Moves the rows of another to the end of this.
    pub fn append(&mut self, other: &mut Rows) {
        self.placed.append(&mut other.placed);
        self.encoded.append(&mut other.encoded);
    }

    /// Moves the rows, as bytes, to the end of others, and forgets the values.
    pub fn drain_into(&mut self, to: &mut Encoded) {
        self.placed.clear();
        to.append(&mut self.encoded);
    }
}

impl Deref for Rows {
    type Target = [PlacedRow];

    fn deref(&self) -> &[PlacedRow] {
        &self.placed
    }
}

impl IntoIterator for Rows {
    type Item = PlacedRow;
    type IntoIter = std::vec::IntoIter<PlacedRow>;

    fn into_iter(self) -> Self::IntoIter {
        self.placed.into_iter()
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = &'a PlacedRow;
    type IntoIter = std::slice::Iter<'a, PlacedRow>;

    fn into_iter(self) -> Self::IntoIter {
        self.placed.iter()
    }
}

/// Rows as bytes, one behind the other in one buffer, in order of place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// Whose bytes end where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    table: Table,
    position: Position,
    ordinal: u32,
    end: usize,
}

/// One row as bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedRow<'a> {
    /// The table it belongs to.
    pub table: Table,
    /// Position of the record that made it.
    pub position: Position,
    /// Counts the rows of one record from 0.
    pub ordinal: u32,
    /// A byte for the encoding, then the row in it.
    pub bytes: &'a [u8],
}

impl Encoded {
    /// None yet, with room for as many as there are here.
    pub fn of_same_size(&self) -> Self {
        Self { bytes: Vec::with_capacity(self.bytes.len()), places: Vec::with_capacity(self.places.len()) }
    }

    /// Appends a row.
    pub fn push(&mut self, PlacedRow { position, ordinal, row }: &PlacedRow) {
        match row {
            Row::Device(_) | Row::Host(_) => {
                self.bytes.push(JSON);
                serde_json::to_writer(&mut self.bytes, row).expect("a vector grows, and plain structs always serialise");
            }
            Row::Window(..)
            | Row::Request(_)
            | Row::Decision(_)
            | Row::Lease(_)
            | Row::LeaseDevice(_)
            | Row::Rejected(_)
            | Row::DeviceEvent(_)
            | Row::Gap(_)
            | Row::Policy(_)
            | Row::Alert(_)
            | Row::HostWindow(_)
            | Row::Episode(_) => {
                self.bytes.push(POSTCARD);
                self.bytes = encode::append(row, std::mem::take(&mut self.bytes));
            }
        }
        self.places.push(Place { table: row.table(), position: *position, ordinal: *ordinal, end: self.bytes.len() });
    }

    /// Moves the rows of another to the end of this.
    pub fn append(&mut self, other: &mut Encoded) {
        let begin = self.bytes.len();
        self.bytes.append(&mut other.bytes);
        self.places.extend(other.places.drain(..).map(|place| Place { end: begin + place.end, ..place }));
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = EncodedRow<'_>> {
        let begins = std::iter::once(0).chain(self.places.iter().map(|place| place.end));
        self.places.iter().zip(begins).map(|(&Place { table, position, ordinal, end }, begin)| {
            let bytes = &self.bytes[begin..end];
            EncodedRow { table, position, ordinal, bytes }
        })
    }

    /// The bytes of the last one.
    fn last(&self) -> &[u8] {
        let before = self.places.len().checked_sub(2).map_or(0, |index| self.places[index].end);
        &self.bytes[before..]
    }
}

impl<'a> FromIterator<&'a PlacedRow> for Encoded {
    fn from_iter<I: IntoIterator<Item = &'a PlacedRow>>(rows: I) -> Self {
        let mut encoded = Self::default();
        rows.into_iter().for_each(|row| encoded.push(row));
        encoded
    }
}

/// Bytes that are no row.
#[derive(Debug, thiserror::Error)]
pub enum NoRow {
    /// There are none.
    #[error("no bytes")]
    Empty,
    /// The first one is not known.
    #[error("encoding {0}")]
    Encoding(u8),
    /// The others are not postcard of a row.
    #[error(transparent)]
    Postcard(#[from] postcard::Error),
    /// The others are not JSON of a row.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl EncodedRow<'_> {
    /// The row as a value. Errors if the bytes are not what was encoded.
    pub fn decode(&self) -> Result<PlacedRow, NoRow> {
        let row = match self.bytes {
            [POSTCARD, rest @ ..] => postcard::from_bytes(rest)?,
            [JSON, rest @ ..] => serde_json::from_slice(rest)?,
            [encoding, ..] => return Err(NoRow::Encoding(*encoding)),
            [] => return Err(NoRow::Empty),
        };
        Ok(PlacedRow { position: self.position, ordinal: self.ordinal, row })
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_schemas::id::LogEpoch;
    use plimsoll_schemas::inventory::Placement;
    use plimsoll_schemas::out::DeviceState;
    use plimsoll_schemas::row::{DeviceEventRow, HostRow};
    use plimsoll_schemas::time::{EventTime, LogTime};

    use super::*;

    fn event(sequence: u64, ordinal: u32) -> PlacedRow {
        let row = DeviceEventRow {
            happened_at: EventTime(sequence as i64),
            device_key: None,
            host: "gpu-1".parse().expect("a name"),
            kind: "xid".to_owned(),
            code: Some(79),
            severity: "fatal".to_owned(),
            detail: None,
        };
        PlacedRow { position: Position { epoch: LogEpoch(3), sequence }, ordinal, row: Row::DeviceEvent(Box::new(row)) }
    }

    fn host(sequence: u64) -> PlacedRow {
        let row = HostRow {
            host: "gpu-1".parse().expect("a name"),
            valid_from: LogTime(1),
            valid_to: None,
            hostname: "gpu-1.example.com".to_owned(),
            placement: Placement { rack: Some("r7".to_owned()), ..Placement::default() },
            agent_version: "0.1.0".to_owned(),
            gpu_count: 8,
            cpu_cores: None,
            ram_bytes: Some(1 << 40),
            state: DeviceState::Ok,
            clock_skew_ms: None,
        };
        PlacedRow { position: Position { epoch: LogEpoch(3), sequence }, ordinal: 0, row: Row::Host(Box::new(row)) }
    }

    fn decoded(encoded: &Encoded) -> Vec<PlacedRow> {
        encoded.iter().map(|row| row.decode().expect("what was encoded")).collect()
    }

    #[test]
    fn values_and_bytes_stay_the_same_rows_wherever_they_are_moved() {
        let all = [event(1, 0), host(2), event(2, 1), event(5, 0), host(9)];
        let (mut first, mut second) = (Rows::default(), Rows::default());
        for (n, row) in all.iter().enumerate() {
            let rows = if n < 2 { &mut first } else { &mut second };
            let hashed = rows.push(row.clone()).to_vec();
            let alone: Encoded = [row].into_iter().collect();
            assert_eq!(alone.iter().next().expect("one").bytes[1..], hashed);
        }
        first.append(&mut second);
        assert!(second.is_empty() && second.encoded().is_empty());
        assert_eq!((&first[..], decoded(first.encoded())), (&all[..], all.to_vec()));
        let mut taken: Encoded = [event(0, 0)].iter().collect();
        first.drain_into(&mut taken);
        assert!(first.is_empty() && first.encoded().is_empty());
        assert_eq!(decoded(&taken), [&[event(0, 0)], &all[..]].concat());
        let tables: Vec<_> = taken.iter().map(|row| row.table).collect();
        assert_eq!(tables, decoded(&taken).iter().map(|row| row.row.table()).collect::<Vec<_>>());
    }

    #[test]
    fn bytes_that_are_no_row_are_errors() {
        let encoded: Encoded = [event(1, 0), host(2)].iter().collect();
        for row in encoded.iter() {
            assert!(row.decode().is_ok());
            for bytes in [&[][..], &[9, 1, 2], &row.bytes[..1], &row.bytes[..row.bytes.len() - 1]] {
                assert!(EncodedRow { bytes, ..row }.decode().is_err(), "{bytes:?}");
            }
        }
    }
}
