//! A manifest: the complete list of files that hold up to a position. Version n + 1 names version n as its parent.
//!
//! On disk a version says only what it adds and removes; every [`BASE_EVERY`]th says all, so that reading one is bounded and
//! sealing often does not write the whole list each time.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::row::Table;
use serde::{Deserialize, Serialize};

use crate::encode::ColumnStats;

/// How many versions lie between two that list every file.
pub const BASE_EVERY: u64 = 64;

/// What holds: every row of the cell up to `position` is in exactly one of `files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Counts from 1.
    pub version: u64,
    /// The cell.
    pub cell: CellId,
    /// Every row whose position is at most this one is in the files, no other.
    pub position: Position,
    /// The files, by table and then in the order in which they were sealed.
    pub files: Vec<Entry>,
}

impl Manifest {
    /// The files of one table.
    pub fn files_of(&self, table: Table) -> impl Iterator<Item = &Entry> {
        self.files.iter().filter(move |entry| entry.table == table)
    }
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its table.
    #[serde(with = "table_name")]
    pub table: Table,
    /// Where it is, relative to the archive: `archive/<table>/day=YYYY-MM-DD/<version>-<n>.parquet`.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its length.
    pub bytes: u64,
    /// The least and greatest place in the log among its rows.
    pub positions: (Position, Position),
    /// Least and greatest window start (microseconds) among rows that are later parts of a window; absent if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late: Option<(i64, i64)>,
    /// Version of the table's columns.
    pub schema_version: u32,
    /// `siphash128:` and 32 hexadecimal digits over its bytes: damage is noticed, not malice.
    pub hash: String,
    /// Null counts and bounds of the columns that queries prune files by.
    pub columns: BTreeMap<String, ColumnStats>,
}

/// A manifest version as it stands in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    pub version: u64,
    pub parent: Option<u64>,
    pub cell: CellId,
    pub position: Position,
    /// Whether `added` lists every file.
    pub base: bool,
    pub added: Vec<Entry>,
    #[serde(default)]
    pub removed: BTreeSet<String>,
}

impl Stored {
    /// The version that follows `parent` by `added` and `removed`.
    pub fn after(parent: Option<&Manifest>, cell: &CellId, position: Position, added: Vec<Entry>, removed: BTreeSet<String>) -> Self {
        let version = parent.map_or(1, |parent| parent.version + 1);
        let stored = Self { version, parent: parent.map(|parent| parent.version), cell: cell.clone(), position, base: false, added, removed };
        if version % BASE_EVERY != 1 {
            return stored;
        }
        let all = stored.clone().onto(parent.map_or(Vec::new(), |parent| parent.files.clone()));
        Self { base: true, added: all.files, removed: BTreeSet::new(), ..stored }
    }

    /// The manifest, given the files of the parent (none for a base).
    pub fn onto(self, parent: Vec<Entry>) -> Manifest {
        let mut files: Vec<Entry> = if self.base { Vec::new() } else { parent };
        files.retain(|entry| !self.removed.contains(&entry.path));
        files.extend(self.added);
        files.sort_by_key(|entry| entry.table);
        Manifest { version: self.version, cell: self.cell, position: self.position, files }
    }
}

mod table_name {
    use super::Table;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(table: &Table, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(table.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Table, D::Error> {
        let name = String::deserialize(from)?;
        Table::from_name(&name).ok_or_else(|| D::Error::custom(format!("no table {name:?}")))
    }
}
