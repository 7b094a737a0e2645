//! One column as a declaration: its name, its sentence, and how a row fills it. Builds Arrow columns from rows, column by column.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Float64Array, Int16Array, Int32Array, Int64Array, ListArray, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::row::SlotMask;

/// Key of a column's sentence in its field's metadata.
pub const COMMENT: &str = "comment";
/// The time zone of every timestamp.
pub const UTC: &str = "UTC";
/// First character of the columns that SQL does not show.
pub const HIDDEN: char = '_';

/// Whether SQL leaves this column out.
pub fn is_hidden(name: &str) -> bool {
    name.starts_with(HIDDEN)
}

/// A row with everything a column may ask of it.
pub(crate) struct Source<'a, R> {
    /// The cell it belongs to.
    pub cell: &'a CellId,
    /// Position of the record that made it.
    pub position: Position,
    /// Its place among the rows of that record.
    pub ordinal: u32,
    /// The row.
    pub row: &'a R,
}

/// How a column gets its value from a row; the variant is its Arrow type.
pub(crate) enum Get<R> {
    /// Microseconds since 1970, UTC.
    Time(for<'a> fn(&Source<'a, R>) -> Option<i64>),
    Int16(for<'a> fn(&Source<'a, R>) -> Option<i16>),
    Int32(for<'a> fn(&Source<'a, R>) -> Option<i32>),
    Int64(for<'a> fn(&Source<'a, R>) -> Option<i64>),
    Float32(for<'a> fn(&Source<'a, R>) -> Option<f32>),
    Float64(for<'a> fn(&Source<'a, R>) -> Option<f64>),
    Bool(for<'a> fn(&Source<'a, R>) -> Option<bool>),
    Text(for<'a> fn(&Source<'a, R>) -> Option<&'a str>),
    Bytes(for<'a> fn(&Source<'a, R>) -> Option<Vec<u8>>),
    /// A list of 64-bit words, lowest slots first; the bits of a word as SQL's signed integer.
    Mask(for<'a> fn(&Source<'a, R>) -> Option<&'a SlotMask>),
}

/// One column of a table.
pub(crate) struct Column<R> {
    name: &'static str,
    comment: &'static str,
    get: Get<R>,
    nullable: bool,
}

impl<R> Column<R> {
    pub(crate) fn new(name: &'static str, get: Get<R>, comment: &'static str) -> Self {
        Self { name, comment, get, nullable: true }
    }

    /// A part of the key: never absent.
    pub(crate) fn key(name: &'static str, get: Get<R>, comment: &'static str) -> Self {
        Self { nullable: false, ..Self::new(name, get, comment) }
    }

    fn field(&self) -> Field {
        let metadata = [(COMMENT.to_owned(), self.comment.to_owned())];
        Field::new(self.name, self.data_type(), self.nullable).with_metadata(metadata.into_iter().collect())
    }

    fn data_type(&self) -> DataType {
        match self.get {
            Get::Time(_) => DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into())),
            Get::Int16(_) => DataType::Int16,
            Get::Int32(_) => DataType::Int32,
            Get::Int64(_) => DataType::Int64,
            Get::Float32(_) => DataType::Float32,
            Get::Float64(_) => DataType::Float64,
            Get::Bool(_) => DataType::Boolean,
            Get::Text(_) => DataType::Utf8,
            Get::Bytes(_) => DataType::Binary,
            Get::Mask(_) => DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))),
        }
    }

    fn array(&self, rows: &[Source<'_, R>]) -> ArrayRef {
        match self.get {
            Get::Time(get) => Arc::new(rows.iter().map(get).collect::<TimestampMicrosecondArray>().with_timezone(UTC)),
            Get::Int16(get) => Arc::new(rows.iter().map(get).collect::<Int16Array>()),
            Get::Int32(get) => Arc::new(rows.iter().map(get).collect::<Int32Array>()),
            Get::Int64(get) => Arc::new(rows.iter().map(get).collect::<Int64Array>()),
            Get::Float32(get) => Arc::new(rows.iter().map(get).collect::<Float32Array>()),
            Get::Float64(get) => Arc::new(rows.iter().map(get).collect::<Float64Array>()),
            Get::Bool(get) => Arc::new(rows.iter().map(get).collect::<BooleanArray>()),
            Get::Text(get) => Arc::new(rows.iter().map(get).collect::<StringArray>()),
            Get::Bytes(get) => Arc::new(rows.iter().map(get).collect::<BinaryArray>()),
            Get::Mask(get) => {
                let words = |mask: &SlotMask| mask.words().iter().map(|word| Some(word.cast_signed())).collect::<Vec<_>>();
                Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(rows.iter().map(|row| get(row).map(words))))
            }
        }
    }
}

/// The schema of these columns.
pub(crate) fn schema<R>(columns: &[Column<R>]) -> SchemaRef {
    Arc::new(Schema::new(columns.iter().map(Column::field).collect::<Vec<_>>()))
}

/// These rows under that schema.
pub(crate) fn batch<R>(schema: SchemaRef, columns: &[Column<R>], rows: &[Source<'_, R>]) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(schema, columns.iter().map(|column| column.array(rows)).collect())
}

/// A count as a signed 32-bit integer, the greatest one if it does not fit.
pub(crate) fn int32(value: impl TryInto<i32>) -> Option<i32> {
    Some(value.try_into().unwrap_or(i32::MAX))
}

/// A number as a signed 16-bit integer, the greatest one if it does not fit.
pub(crate) fn int16(value: impl TryInto<i16>) -> Option<i16> {
    Some(value.try_into().unwrap_or(i16::MAX))
}

/// A number as a signed 64-bit integer, the greatest one if it does not fit.
pub(crate) fn int64(value: impl TryInto<i64>) -> Option<i64> {
    Some(value.try_into().unwrap_or(i64::MAX))
}
