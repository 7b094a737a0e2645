//! What one statement sees: the files of one manifest and the tail's rows after it, up to one position. Never a gap, never a double.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::record_batch::RecordBatch;
use plimsoll_archive::{Manifest, encode, table};
use plimsoll_schemas::id::Position;
use plimsoll_schemas::row::Table;

use crate::tail::Part;

/// How many stretches of windows are added up at most; more are joined into longer ones.
const STRETCHES_MAX: usize = 16;

/// What is known of the tail's age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Freshness {
    /// Log time of the snapshot's position, ns UTC; absent if no stream ever said.
    pub logged_at_ns: Option<i64>,
    /// Whether every stream was connected.
    pub connected: bool,
}

/// One (manifest, position).
#[derive(Debug)]
pub struct Snapshot {
    manifest: Option<Arc<Manifest>>,
    position: Position,
    tail: BTreeMap<Table, Vec<Part>>,
    freshness: Freshness,
}

impl Snapshot {
    pub(crate) fn new(manifest: Option<Arc<Manifest>>, position: Position, tail: BTreeMap<Table, Vec<Part>>, freshness: Freshness) -> Self {
        Self { manifest, position, tail, freshness }
    }

    /// Only what is sealed.
    pub(crate) fn sealed_only(manifest: Option<Arc<Manifest>>) -> Self {
        let position = manifest.as_ref().map_or(Position::default(), |manifest| manifest.position);
        Self { manifest, position, tail: BTreeMap::new(), freshness: Freshness::default() }
    }

    /// Nothing at all, for describing tables.
    pub fn empty() -> Self {
        Self::sealed_only(None)
    }

    /// The manifest, if anything was sealed.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_deref()
    }

    /// Rows up to here are seen.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Rows up to here are in the manifest.
    pub fn sealed(&self) -> Position {
        self.manifest.as_ref().map_or(Position::default(), |manifest| manifest.position)
    }

    /// Whether every stream of the tail was connected.
    pub fn connected(&self) -> bool {
        self.freshness.connected
    }

    /// Log time that is seen, ns UTC: the tail's, or without one the newest time in the archive; absent if nothing is known.
    pub fn logged_at_ns(&self) -> Option<i64> {
        self.freshness.logged_at_ns.or_else(|| self.newest_sealed_ns())
    }

    /// The unsealed rows of a table.
    pub fn tail(&self, table: Table) -> impl Iterator<Item = &RecordBatch> {
        self.tail.get(&table).into_iter().flatten().map(|part| &part.batch)
    }

    /// The stretches of window starts (microseconds, both ends included) in which some window has later parts: few, sorted, disjoint.
    pub fn late(&self, table: Table) -> Vec<(i64, i64)> {
        let sealed = self.manifest().into_iter().flat_map(|manifest| manifest.files_of(table)).filter_map(|entry| entry.late);
        let unsealed = self.tail.get(&table).into_iter().flatten().filter_map(|part| part.late);
        stretches(sealed.chain(unsealed).collect())
    }

    fn newest_sealed_ns(&self) -> Option<i64> {
        let newest = |entry: &plimsoll_archive::Entry| match entry.columns.get(table::time_column(entry.table))?.max {
            Some(encode::Bound::Int(at)) => Some(at.saturating_mul(1_000)),
            Some(encode::Bound::Text(_)) | None => None,
        };
        self.manifest()?.files_of(Table::GpuWindows10s).filter_map(newest).max()
    }
}

/// Joins what overlaps, then the closest neighbours until there are few.
fn stretches(mut found: Vec<(i64, i64)>) -> Vec<(i64, i64)> {
    found.sort_unstable();
    let mut joined: Vec<(i64, i64)> = Vec::new();
    for (from, to) in found {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(to),
            Some(_) | None => joined.push((from, to)),
        }
    }
    while joined.len() > STRETCHES_MAX {
        let gap = |at: &usize| joined[at + 1].0 - joined[*at].1;
        let Some(closest) = (0..joined.len() - 1).min_by_key(gap) else { break };
        joined[closest].1 = joined[closest + 1].1;
        joined.remove(closest + 1);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_joined_where_they_overlap_and_where_there_are_too_many() {
        assert_eq!(stretches(vec![(5, 6), (1, 3), (2, 4)]), [(1, 4), (5, 6)]);
        let many: Vec<_> = (0..40).map(|n| (n * 10, n * 10 + 1)).collect();
        let few = stretches(many.clone());
        assert_eq!(few.len(), STRETCHES_MAX);
        assert!(many.iter().all(|one| few.iter().any(|stretch| stretch.0 <= one.0 && one.1 <= stretch.1)));
    }
}
