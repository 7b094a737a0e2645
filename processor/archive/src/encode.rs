//! One Parquet file from rows: encodings, order and statistics. Any Parquet reader reads it as it is.
#![allow(clippy::wildcard_enum_match_arm, reason = "Arrow's data types have dozens of variants, of which few occur here")]

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{self, SortColumn};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::SortingColumn;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::row::Table;
use serde::{Deserialize, Serialize};

use crate::archive::Error;
use crate::table;

const ZSTD_LEVEL: i32 = 3;
const PAGE_ROWS: usize = 20_000;
const PAGE_BYTES: usize = 1 << 20;
const ROW_GROUP_ROWS: usize = 1 << 20;
const BLOOM_FALSE_POSITIVES: f64 = 0.01;
/// The order of windows inside a file: all of one GPU together.
const WINDOW_ORDER: [&str; 6] = ["host", "gpu_index", "window_at", "_epoch", "_seq", "_ordinal"];
/// Columns of event tables that are looked up by value.
const LOOKED_UP: [&str; 2] = ["request_id", "lease_id"];
/// Longest text kept as a bound; a column with a longer one has no bounds.
const BOUND_BYTES_MAX: usize = 128;

/// Least or greatest value of a column: integers and timestamps (microseconds) as numbers, text as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bound {
    /// An integer, or a timestamp's microseconds.
    Int(i64),
    /// Text.
    Text(String),
}

/// What a file's manifest entry says about one column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnStats {
    /// Rows in which it is NULL.
    pub nulls: u64,
    /// Least value, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Bound>,
    /// Greatest value, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Bound>,
}

/// The columns worth a min and max in the manifest: those that queries prune files by.
fn pruning_columns(table: Table) -> Vec<&'static str> {
    let mut names = vec![table::time_column(table), "device_key", "host", "revision", "request_id", "lease_id"];
    names.extend(table::key_columns(table));
    names.sort_unstable();
    names.dedup();
    names
}

/// Null counts and bounds of the columns that queries prune files by.
pub(crate) fn stats(table: Table, batch: &RecordBatch) -> BTreeMap<String, ColumnStats> {
    let named = |name: &'static str| Some((name.to_owned(), column_stats(batch.column_by_name(name)?)));
    pruning_columns(table).into_iter().filter_map(named).collect()
}

fn column_stats(array: &dyn Array) -> ColumnStats {
    let text = |value: Option<&str>| value.filter(|text| text.len() <= BOUND_BYTES_MAX).map(|text| Bound::Text(text.to_owned()));
    let (min, max) = match array.data_type() {
        DataType::Timestamp(..) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            (compute::min(values).map(Bound::Int), compute::max(values).map(Bound::Int))
        }
        DataType::Int64 => {
            let values = array.as_primitive::<Int64Type>();
            (compute::min(values).map(Bound::Int), compute::max(values).map(Bound::Int))
        }
        DataType::Int32 => {
            let values = array.as_primitive::<Int32Type>();
            (compute::min(values).map(|v| Bound::Int(v.into())), compute::max(values).map(|v| Bound::Int(v.into())))
        }
        DataType::Utf8 => {
            let values: &StringArray = array.as_string();
            (text(compute::min_string(values)), text(compute::max_string(values)))
        }
        _ => (None, None),
    };
    ColumnStats { nulls: array.null_count() as u64, min, max }
}

/// The least and greatest place in the log among the rows. Errors if the batch does not say.
pub fn positions(batch: &RecordBatch) -> Result<(Position, Position), Error> {
    let missing = || Error::Schema { detail: "a batch without _epoch and _seq".to_owned() };
    let epochs: &Int32Array = batch.column_by_name("_epoch").and_then(|c| c.as_primitive_opt()).ok_or_else(missing)?;
    let sequences: &Int64Array = batch.column_by_name("_seq").and_then(|c| c.as_primitive_opt()).ok_or_else(missing)?;
    let place = |(&epoch, &sequence): (&i32, &i64)| Position { epoch: LogEpoch(epoch as u32), sequence: sequence as u64 };
    let places = || epochs.values().iter().zip(sequences.values()).map(place);
    Ok((places().min().unwrap_or_default(), places().max().unwrap_or_default()))
}

/// Least and greatest window start (microseconds) among the rows that are later parts of a window; absent if there are none.
pub fn late(table: Table, batch: &RecordBatch) -> Option<(i64, i64)> {
    let parts = batch.column_by_name("revision").filter(|_| table::is_window(table))?.as_primitive_opt::<Int32Type>()?;
    let times = batch.column_by_name(table::time_column(table))?.as_primitive_opt::<TimestampMicrosecondType>()?;
    let late = || parts.iter().zip(times.iter()).filter(|(part, _)| part.unwrap_or(0) > 0).filter_map(|(_, at)| at);
    Some((late().min()?, late().max()?))
}

/// The rows of each day of the table's time column (days since 1970, UTC), in the order given; absent = without a time.
pub(crate) fn by_day(table: Table, batch: &RecordBatch) -> Result<BTreeMap<Option<i64>, RecordBatch>, Error> {
    let times = batch
        .column_by_name(table::time_column(table))
        .and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>())
        .ok_or_else(|| Error::Schema { detail: format!("a batch of {} without {}", table.name(), table::time_column(table)) })?;
    let mut days: BTreeMap<Option<i64>, Vec<u32>> = BTreeMap::new();
    for (row, at) in times.iter().enumerate() {
        days.entry(at.map(|at| at.div_euclid(86_400_000_000))).or_default().push(row as u32);
    }
    let only_day = days.len() == 1;
    days.into_iter()
        .map(|(day, rows)| Ok((day, if only_day { batch.clone() } else { compute::take_record_batch(batch, &UInt32Array::from(rows))? })))
        .collect()
}

/// The rows in the order the table is stored in: windows all of one GPU together, everything else as it came.
pub(crate) fn sorted(table: Table, batch: &RecordBatch) -> Result<RecordBatch, Error> {
    if !table::is_window(table) {
        return Ok(batch.clone());
    }
    let column = |name: &str| batch.column_by_name(name).map(|values| SortColumn { values: values.clone(), options: None });
    let columns: Vec<SortColumn> = WINDOW_ORDER.iter().filter_map(|name| column(name)).collect();
    let order = compute::lexsort_to_indices(&columns, None)?;
    Ok(compute::take_record_batch(batch, &order)?)
}

/// The rows as one Parquet file.
pub(crate) fn parquet(table: Table, batch: &RecordBatch) -> Result<Vec<u8>, Error> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties(table, batch)?))?;
    writer.write(batch)?;
    Ok(writer.into_inner()?)
}

fn properties(table: Table, batch: &RecordBatch) -> Result<WriterProperties, Error> {
    let mut properties = WriterProperties::builder()
        .set_created_by(concat!("plimsoll ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS));
    for field in batch.schema().fields() {
        let path = ColumnPath::from(field.name().as_str());
        properties = match field.data_type() {
            // Neighbouring times and integrals differ by little: deltas are 20 % smaller than a dictionary and scan twice as fast.
            DataType::Int16 | DataType::Int32 | DataType::Int64 | DataType::Timestamp(..) => {
                properties.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, Encoding::DELTA_BINARY_PACKED)
            }
            // Hardly two sketches are alike.
            DataType::Binary => properties.set_column_dictionary_enabled(path, false),
            _ if !table::is_window(table) && LOOKED_UP.contains(&field.name().as_str()) => properties
                .set_column_bloom_filter_enabled(path.clone(), true)
                .set_column_bloom_filter_fpp(path.clone(), BLOOM_FALSE_POSITIVES)
                .set_column_bloom_filter_max_ndv(path, batch.num_rows().max(1) as u64),
            _ => properties,
        };
    }
    if table::is_window(table) {
        let place = |name: &&str| {
            batch.schema().index_of(name).ok().map(|index| SortingColumn { column_idx: index as i32, descending: false, nulls_first: true })
        };
        properties = properties.set_sorting_columns(Some(WINDOW_ORDER.iter().filter_map(place).collect()));
    }
    Ok(properties.build())
}
