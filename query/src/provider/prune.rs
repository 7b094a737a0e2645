//! Which files of a manifest can hold rows that a filter wants, by the bounds in their entries.

use datafusion::arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use plimsoll_archive::Entry;
use plimsoll_archive::encode::{Bound, ColumnStats};
use std::sync::Arc;

/// The files that may hold matching rows; all of them if the filter cannot be turned into bounds.
pub(super) fn matching<'a>(files: Vec<&'a Entry>, filter: &Arc<dyn PhysicalExpr>, schema: &SchemaRef) -> Vec<&'a Entry> {
    let bounds = Bounds { files: &files, schema };
    match PruningPredicateBuilder::new().with_file_schema(schema.clone()).try_build(filter.clone()).and_then(|predicate| predicate.prune(&bounds)) {
        Ok(keep) => files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(file, _)| *file).collect(),
        Err(_) => files,
    }
}

struct Bounds<'a> {
    files: &'a [&'a Entry],
    schema: &'a SchemaRef,
}

impl Bounds<'_> {
    fn values(&self, column: &Column, of: impl Fn(&ColumnStats) -> &Option<Bound>) -> Option<ArrayRef> {
        let data_type = self.schema.field_with_name(&column.name).ok()?.data_type();
        let scalar = |file: &&Entry| match file.columns.get(&column.name).and_then(|stats| of(stats).as_ref()) {
            Some(Bound::Int(value)) => ScalarValue::Int64(Some(*value)).cast_to(data_type).ok(),
            Some(Bound::Text(value)) => ScalarValue::Utf8(Some(value.clone())).cast_to(data_type).ok(),
            None => ScalarValue::try_from(data_type).ok(),
        };
        let scalars: Option<Vec<_>> = self.files.iter().map(scalar).collect();
        ScalarValue::iter_to_array(scalars.filter(|scalars| !scalars.is_empty())?).ok()
    }
}

impl PruningStatistics for Bounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |stats| &stats.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |stats| &stats.max)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let nulls: UInt64Array = self.files.iter().map(|file| Some(file.columns.get(&column.name)?.nulls)).collect();
        Some(Arc::new(nulls))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.files.iter().map(|file| Some(file.rows)).collect::<UInt64Array>()))
    }

    #[expect(clippy::disallowed_types, reason = "the trait's own signature; nothing is iterated")]
    fn contained(&self, _column: &Column, _values: &std::collections::HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
