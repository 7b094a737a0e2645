//! `system.*`: the cell as this service sees it, the columns with their meaning, the statements that were run.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use datafusion::arrow::array::{ArrayRef, BooleanArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::Result;
use plimsoll_archive::column::{COMMENT, UTC};
use plimsoll_archive::table;
use plimsoll_schemas::retention::{self, Keep};
use plimsoll_schemas::row::Table;

use crate::snapshot::Snapshot;
use crate::tail::Health;

/// Names of the tables of this schema.
pub const NAMES: [&str; 4] = ["cells", "columns", "queries", "retention"];
/// Most statements remembered.
const LOG_ENTRIES: usize = 1_000;
/// Longest text remembered of a statement, characters.
const LOG_CHARS: usize = 2_000;

fn one(batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    Ok(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?))
}

fn time(us: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter(us).with_timezone(UTC))
}

/// `system.cells`: one row, how fresh and how whole the answers are.
pub fn cells(cell: &str, snapshot: &Snapshot, health: &Health) -> Result<Arc<dyn TableProvider>> {
    let status = health.status.as_ref();
    let int64 = |value: Option<i64>| -> ArrayRef { Arc::new(Int64Array::from(vec![value])) };
    let int32 = |value: u32| -> ArrayRef { Arc::new(Int32Array::from(vec![i32::try_from(value).ok()])) };
    let signed = |value: u64| i64::try_from(value).ok();
    let (sealed, position) = (snapshot.sealed(), snapshot.position());
    let ahead =
        status.filter(|status| status.position.epoch == position.epoch).map(|status| status.position.sequence.saturating_sub(position.sequence));
    let reasons = (!health.reasons.is_empty()).then(|| health.reasons.join("; "));
    let columns: Vec<(&str, ArrayRef, bool)> = vec![
        ("cell", Arc::new(StringArray::from(vec![cell])), false),
        ("freshness_ms", int64(snapshot.freshness_ms()), true),
        ("watermark_at", time([snapshot.logged_at_ns().map(|ns| ns.div_euclid(1_000))]), true),
        ("commit_epoch", int32(position.epoch.0), true),
        ("commit_seq", int64(signed(position.sequence)), true),
        ("sealed_epoch", int32(sealed.epoch.0), true),
        ("sealed_seq", int64(signed(sealed.sequence)), true),
        ("manifest_version", int64(snapshot.manifest().and_then(|manifest| signed(manifest.version))), true),
        ("files", int64(signed(snapshot.manifest().map_or(0, |manifest| manifest.files.len() as u64))), true),
        ("lag", int64(ahead.and_then(signed)), true),
        ("connected", Arc::new(BooleanArray::from(vec![snapshot.connected()])), true),
        ("tail", Arc::new(StringArray::from(vec![health.followed.url.as_str()])), false),
        ("tail_changes", int64(signed(health.followed.changes_total)), true),
        ("replica", Arc::new(StringArray::from(vec![status.and_then(|status| status.replica.clone())])), true),
        ("out_seq", int64(status.and_then(|status| signed(status.out_seq))), true),
        ("decision_seq", int64(status.and_then(|status| signed(status.decision_seq))), true),
        ("tail_rows", int64(signed(health.rows as u64)), true),
        ("tail_bytes", int64(signed(health.bytes as u64)), true),
        ("ready", Arc::new(BooleanArray::from(vec![health.reasons.is_empty()])), true),
        ("reason", Arc::new(StringArray::from(vec![reasons])), true),
    ];
    one(RecordBatch::try_from_iter_with_nullable(columns)?)
}

/// `system.columns`: every column of every table with its type and its sentence.
pub fn columns() -> Result<Arc<dyn TableProvider>> {
    let of_table = |table: Table| super::provider::visible(table).fields().iter().map(|field| (table.name(), field.clone())).collect::<Vec<_>>();
    let samples = table::samples_schema().fields().iter().map(|field| ("samples", field.clone())).collect::<Vec<_>>();
    let rows: Vec<_> = Table::ALL.iter().flat_map(|&table| of_table(table)).chain(samples).collect();
    let text = |values: Vec<Option<String>>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    one(RecordBatch::try_from_iter_with_nullable(vec![
        ("table_name", text(rows.iter().map(|(table, _)| Some((*table).to_owned())).collect()), false),
        ("column_name", text(rows.iter().map(|(_, field)| Some(field.name().clone())).collect()), false),
        ("data_type", text(rows.iter().map(|(_, field)| Some(field.data_type().to_string())).collect()), false),
        ("comment", text(rows.iter().map(|(_, field)| field.metadata().get(COMMENT).cloned()).collect()), true),
    ])?)
}

/// `system.retention`: what is kept, where, how long and within how many bytes. NULL = no limit.
pub fn retention() -> Result<Arc<dyn TableProvider>> {
    let text = |of: fn(&Keep) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(retention::ALL.iter().map(of))) };
    let limit = |of: fn(&Keep) -> Option<u64>| -> ArrayRef {
        Arc::new(Int64Array::from_iter(retention::ALL.iter().map(|keep| of(keep).and_then(|limit| i64::try_from(limit).ok()))))
    };
    one(RecordBatch::try_from_iter_with_nullable(vec![
        ("what", text(|keep| keep.what), false),
        ("place", text(|keep| keep.place), false),
        ("max_age_s", limit(|keep| keep.max_age_s), true),
        ("max_bytes", limit(|keep| keep.max_bytes), true),
        ("max_count", limit(|keep| keep.max_count), true),
        ("enforced", text(|keep| keep.enforced), false),
    ])?)
}

/// One statement that was run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Counts the statements of this process from 1.
    pub id: u64,
    /// When it came, ns UTC.
    pub at_ns: i64,
    /// `http` or `pg`.
    pub door: &'static str,
    /// What it said, cut.
    pub text: String,
    /// Until it was planned, ms.
    pub planned_ms: i64,
    /// Until its end, ms.
    pub run_ms: i64,
    /// Rows given out.
    pub rows: i64,
    /// Bytes of the files that were scanned.
    pub bytes_scanned: i64,
    /// Files left out by their bounds.
    pub files_pruned: i64,
    /// Greatest memory, bytes.
    pub peak_bytes: i64,
    /// `ok`, `truncated` or the code of its error.
    pub outcome: &'static str,
}

/// The last statements, newest last.
#[derive(Debug, Default)]
pub struct QueryLog(Mutex<VecDeque<Ran>>);

impl QueryLog {
    /// Remembers a statement, forgetting the oldest where there are too many.
    pub fn add(&self, mut ran: Ran) {
        if let Some((cut, _)) = ran.text.char_indices().nth(LOG_CHARS) {
            ran.text.truncate(cut);
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= LOG_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(ran);
    }

    /// Those remembered, oldest first.
    pub fn entries(&self) -> Vec<Ran> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// `system.queries`.
    pub fn table(&self) -> Result<Arc<dyn TableProvider>> {
        let entries = self.entries();
        let int64 = |of: fn(&Ran) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values(entries.iter().map(of))) };
        let text = |of: fn(&Ran) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(entries.iter().map(of))) };
        one(RecordBatch::try_from_iter_with_nullable(vec![
            ("id", int64(|ran| ran.id as i64), false),
            ("at", time(entries.iter().map(|ran| Some(ran.at_ns.div_euclid(1_000)))), false),
            ("door", text(|ran| ran.door), false),
            ("text", text(|ran| &ran.text), false),
            ("planned_ms", int64(|ran| ran.planned_ms), false),
            ("run_ms", int64(|ran| ran.run_ms), false),
            ("rows", int64(|ran| ran.rows), false),
            ("bytes_scanned", int64(|ran| ran.bytes_scanned), false),
            ("files_pruned", int64(|ran| ran.files_pruned), false),
            ("peak_bytes", int64(|ran| ran.peak_bytes), false),
            ("outcome", text(|ran| ran.outcome), false),
        ])?)
    }
}
