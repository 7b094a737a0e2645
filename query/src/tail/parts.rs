//! Rows of one table as they came, with the places they have in the log: joined where they are few, cut where a position lies between them.

use datafusion::arrow::array::{AsArray, BooleanArray};
use datafusion::arrow::compute::{concat_batches, filter_record_batch};
use datafusion::arrow::datatypes::{Int32Type, Int64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;
use plimsoll_archive::encode;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::row::Table;

use crate::provider::plain;

/// Batches smaller than this are put together, so that a quiet day does not become a thousand slivers.
const SLIVER_ROWS: usize = 4_096;

/// A batch with the places of its rows.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub batch: RecordBatch,
    pub first: Position,
    pub last: Position,
    /// Window starts of later parts of windows, microseconds.
    pub late: Option<(i64, i64)>,
    /// Memory, bytes.
    pub bytes: usize,
}

impl Part {
    /// The batch with its places; absent if it has no rows.
    pub fn new(table: Table, batch: RecordBatch) -> Result<Option<Self>, String> {
        if batch.num_rows() == 0 {
            return Ok(None);
        }
        let (first, last) = encode::positions(&batch).map_err(|error| error.to_string())?;
        let batch = plain(&batch).map_err(|error| error.to_string())?;
        let (late, bytes) = (encode::late(table, &batch), batch.get_array_memory_size());
        Ok(Some(Self { batch, first, last, late, bytes }))
    }
}

/// Adds a part and counts what it adds.
pub(crate) fn push(parts: &mut Vec<Part>, part: Part, rows: &mut usize, bytes: &mut usize) {
    *rows += part.batch.num_rows();
    let joined = match parts.last() {
        Some(last) if last.batch.num_rows() + part.batch.num_rows() <= SLIVER_ROWS => {
            concat_batches(&last.batch.schema(), [&last.batch, &part.batch]).ok().map(|batch| Part {
                first: last.first.min(part.first),
                last: last.last.max(part.last),
                late: [last.late, part.late].into_iter().flatten().reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))),
                bytes: batch.get_array_memory_size(),
                batch,
            })
        }
        Some(_) | None => None,
    };
    let part = match joined {
        Some(joined) => {
            *bytes -= parts.pop().map_or(0, |last| last.bytes);
            joined
        }
        None => part,
    };
    *bytes += part.bytes;
    parts.push(part);
}

/// The parts with rows after `from` and up to `to`; those that reach over an edge are cut.
pub(crate) fn between(parts: &[Part], from: Position, to: Position) -> Vec<Part> {
    let inside = |part: &&Part| part.last > from && part.first <= to;
    let cut = |part: &Part| {
        if part.first > from && part.last <= to {
            return Some(part.clone());
        }
        let batch = rows_where(&part.batch, |at| from < at && at <= to).ok()?;
        let (first, last) = encode::positions(&batch).ok()?;
        (batch.num_rows() > 0).then(|| Part { batch, first, last, ..part.clone() })
    };
    parts.iter().filter(inside).filter_map(cut).collect()
}

/// The rows of a batch behind a position.
pub(crate) fn after(batch: &RecordBatch, position: Position) -> Result<RecordBatch, ArrowError> {
    rows_where(batch, |at| at > position)
}

fn rows_where(batch: &RecordBatch, holds: impl Fn(Position) -> bool) -> Result<RecordBatch, ArrowError> {
    let epochs = batch.column_by_name("_epoch").and_then(|column| column.as_primitive_opt::<Int32Type>());
    let sequences = batch.column_by_name("_seq").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let (Some(epochs), Some(sequences)) = (epochs, sequences) else {
        return Err(ArrowError::SchemaError("rows without _epoch and _seq".to_owned()));
    };
    let place = |(&epoch, &sequence): (&i32, &i64)| Position { epoch: LogEpoch(epoch as u32), sequence: sequence as u64 };
    let mask: BooleanArray = epochs.values().iter().zip(sequences.values()).map(|pair| Some(holds(place(pair)))).collect();
    filter_record_batch(batch, &mask)
}
