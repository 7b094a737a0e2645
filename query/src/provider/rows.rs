//! One table as it is stored: the manifest's files and the tail's rows of one snapshot, hidden columns included.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::memory::DataSourceExec;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, Result, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::union::UnionExec;
use plimsoll_archive::{Entry, table};
use plimsoll_schemas::row::Table;

use super::{plain_schema, prune};
use crate::snapshot::Snapshot;

/// The private name of the archive's store. No statement can name a store.
pub const ARCHIVE_URL: &str = "plimsoll-archive://cell";

/// How much of the archive a statement did not have to read.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Files left out by their bounds.
    pub files_pruned: AtomicU64,
    /// Files given to the scan.
    pub files: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
}

/// One stored table of one snapshot.
#[derive(Debug)]
pub struct Rows {
    table: Table,
    schema: SchemaRef,
    snapshot: Arc<Snapshot>,
    scanned: Arc<Scanned>,
}

impl Rows {
    /// The table as this snapshot holds it.
    pub fn new(table: Table, snapshot: Arc<Snapshot>, scanned: Arc<Scanned>) -> Self {
        Self { table, schema: plain_schema(&table::schema(table)), snapshot, scanned }
    }

    /// The files that may hold rows for the filter.
    fn files(&self, filter: Option<&Arc<dyn PhysicalExpr>>) -> Vec<&Entry> {
        let all: Vec<&Entry> = self.snapshot.manifest().into_iter().flat_map(|manifest| manifest.files_of(self.table)).collect();
        let count = all.len();
        let files = match filter {
            Some(filter) => prune::matching(all, filter, &self.schema),
            None => all,
        };
        self.scanned.files_pruned.fetch_add((count - files.len()) as u64, Ordering::Relaxed);
        self.scanned.files.fetch_add(files.len() as u64, Ordering::Relaxed);
        self.scanned.bytes.fetch_add(files.iter().map(|file| file.bytes).sum(), Ordering::Relaxed);
        files
    }

    fn archive_scan(
        &self,
        files: &[&Entry],
        partitions: usize,
        projection: Option<&Vec<usize>>,
        filter: Option<Arc<dyn PhysicalExpr>>,
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut groups: Vec<FileGroup> = (0..partitions.min(files.len())).map(|_| FileGroup::new(Vec::new())).collect();
        let count = groups.len();
        for (n, file) in files.iter().enumerate() {
            groups[n % count].push(PartitionedFile::new(file.path.clone(), file.bytes));
        }
        let mut source = ParquetSource::new(self.schema.clone());
        if let Some(filter) = filter {
            source = source.with_predicate(filter);
        }
        let rows: u64 = files.iter().map(|file| file.rows).sum();
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = Precision::Inexact(rows as usize);
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(ARCHIVE_URL)?, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

#[async_trait]
impl TableProvider for Rows {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filter = match conjunction(filters.to_vec()) {
            Some(filter) => Some(state.create_physical_expr(filter, &DFSchema::try_from(self.schema.clone())?)?),
            None => None,
        };
        let partitions = state.config().target_partitions().max(1);
        let files = self.files(filter.as_ref());
        let tail: Vec<_> = self.snapshot.tail(self.table).cloned().collect();
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !files.is_empty() {
            inputs.push(self.archive_scan(&files, partitions, projection, filter, limit)?);
        }
        if !tail.is_empty() {
            inputs.push(MemorySourceConfig::try_new_exec(&[tail], self.schema.clone(), projection.cloned())?);
        }
        match inputs.len() {
            0 => {
                let schema = match projection {
                    Some(indices) => Arc::new(self.schema.project(indices)?),
                    None => self.schema.clone(),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Bounds leave out files, row groups and pages, never single rows.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}
