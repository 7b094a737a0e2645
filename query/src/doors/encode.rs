//! Rows as JSON values and as CSV.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use datafusion::arrow::array::{Array, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{
    DataType, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Schema, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Value, json};

/// The columns as `[{"name", "type"}]`, types as SQL names them.
pub fn columns(schema: &Schema) -> Value {
    schema.fields().iter().map(|field| json!({ "name": field.name(), "type": sql_type(field.data_type()) })).collect()
}

fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64 | DataType::Decimal128(..) | DataType::Decimal256(..) => "numeric",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => "text",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "bytea",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Interval(_) | DataType::Duration(_) => "interval",
        DataType::Dictionary(_, value) => return sql_type(value),
        other => return other.to_string(),
    }
    .to_owned()
}

/// Appends the rows as JSON arrays. 64-bit integers are numbers, times RFC 3339, bytes `\x` and hexadecimal digits; what JSON cannot say
/// (NaN, infinities) is NULL.
pub fn json_rows(batch: &RecordBatch, rows: &mut Vec<Value>) -> Result<(), ArrowError> {
    let options = FormatOptions::default();
    let columns: Vec<Cells<'_>> = batch.columns().iter().map(|column| Cells::of(column.as_ref(), &options)).collect::<Result<_, _>>()?;
    rows.extend((0..batch.num_rows()).map(|row| Value::Array(columns.iter().map(|column| column.json(row)).collect())));
    Ok(())
}

/// Appends the rows as CSV records, NULL as nothing, without a header.
pub fn csv_rows(batch: &RecordBatch, to: &mut csv::Writer<Vec<u8>>) -> Result<(), ArrowError> {
    let options = FormatOptions::default();
    let columns: Vec<Cells<'_>> = batch.columns().iter().map(|column| Cells::of(column.as_ref(), &options)).collect::<Result<_, _>>()?;
    for row in 0..batch.num_rows() {
        let record = columns.iter().map(|column| column.text(row));
        to.write_record(record).map_err(|error| ArrowError::CsvError(error.to_string()))?;
    }
    Ok(())
}

/// One column, ready to be read cell by cell.
struct Cells<'a> {
    array: &'a dyn Array,
    format: ArrayFormatter<'a>,
    options: &'a FormatOptions<'a>,
}

impl<'a> Cells<'a> {
    fn of(array: &'a dyn Array, options: &'a FormatOptions<'a>) -> Result<Self, ArrowError> {
        Ok(Self { array, format: ArrayFormatter::try_new(array, options)?, options })
    }

    fn text(&self, row: usize) -> String {
        if self.array.is_null(row) {
            return String::new();
        }
        match self.array.data_type() {
            DataType::Binary => hex(self.array.as_binary::<i32>().value(row)),
            _ => self.format.value(row).to_string(),
        }
    }

    fn json(&self, row: usize) -> Value {
        if self.array.is_null(row) {
            return Value::Null;
        }
        match self.array.data_type() {
            DataType::Boolean => self.array.as_boolean().value(row).into(),
            DataType::Int8 => self.array.as_primitive::<Int8Type>().value(row).into(),
            DataType::Int16 => self.array.as_primitive::<Int16Type>().value(row).into(),
            DataType::Int32 => self.array.as_primitive::<Int32Type>().value(row).into(),
            DataType::Int64 => self.array.as_primitive::<Int64Type>().value(row).into(),
            DataType::UInt8 => self.array.as_primitive::<UInt8Type>().value(row).into(),
            DataType::UInt16 => self.array.as_primitive::<UInt16Type>().value(row).into(),
            DataType::UInt32 => self.array.as_primitive::<UInt32Type>().value(row).into(),
            DataType::UInt64 => self.array.as_primitive::<UInt64Type>().value(row).into(),
            DataType::Float32 => self.array.as_primitive::<Float32Type>().value(row).into(),
            DataType::Float64 => self.array.as_primitive::<Float64Type>().value(row).into(),
            DataType::List(_) => self.list(&self.array.as_list::<i32>().value(row)),
            _ => self.text(row).into(),
        }
    }

    fn list(&self, items: &dyn Array) -> Value {
        match Cells::of(items, self.options) {
            Ok(cells) => (0..items.len()).map(|item| cells.json(item)).collect(),
            Err(_) => Value::Null,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("\\x");
    for byte in bytes {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
