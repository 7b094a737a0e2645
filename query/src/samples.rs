//! `samples`: the processor's recent ring, fetched when a statement asks, with the GPUs it names and a cap on rows.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use plimsoll_archive::table;

use crate::error::Error;
use crate::provider::{plain, plain_schema};
use crate::tail::processor::Processors;

const KEY: &str = "device_key";

/// The recent ring as a table.
#[derive(Debug)]
pub struct SamplesTable {
    processors: Option<Processors>,
    rows_max: u64,
    schema: SchemaRef,
}

impl SamplesTable {
    /// The ring of the processor that is followed; without one the table only describes itself. Statements that would need more than `rows_max`
    /// rows are refused.
    pub fn new(processors: Option<Processors>, rows_max: u64) -> Self {
        Self { processors, rows_max, schema: plain_schema(&table::samples_schema()) }
    }
}

#[async_trait]
impl TableProvider for SamplesTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let processors = self.processors.as_ref().ok_or_else(|| Error::ProcessorAway("none is configured".to_owned()))?;
        let devices = filters.iter().filter_map(devices).next();
        // A limit that the engine pushed down may cut; our own must not, silently.
        let wanted = limit.map_or(self.rows_max + 1, |limit| (limit as u64).min(self.rows_max + 1));
        let batches = processors.samples(devices, wanted).await?;
        let rows: usize = batches.iter().map(|batch| batch.num_rows()).sum();
        if rows as u64 > self.rows_max {
            return Err(Error::Invalid(format!("samples: more than {} rows; name GPUs (WHERE device_key = ...) or add LIMIT", self.rows_max)).into());
        }
        let batches = batches.iter().map(plain).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(MemorySourceConfig::try_new_exec(&[batches], self.schema.clone(), projection.cloned())?)
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let answer = |filter: &&Expr| match devices(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(answer).collect())
    }
}

/// The GPUs that a filter names: `device_key = x`, `device_key IN (...)`, or several of these joined by OR; absent if it is none of these.
fn devices(filter: &Expr) -> Option<Vec<i64>> {
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => match (key(left), key(right)) {
            (true, false) => Some(vec![value(right)?]),
            (false, true) => Some(vec![value(left)?]),
            _ => None,
        },
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
            let mut named = devices(left)?;
            named.extend(devices(right)?);
            Some(named)
        }
        Expr::InList(list) if !list.negated && key(&list.expr) => list.list.iter().map(value).collect(),
        _ => None,
    }
}

fn key(expr: &Expr) -> bool {
    matches!(expr, Expr::Column(column) if column.name == KEY)
}

fn value(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::Int64(value), _) => *value,
        _ => None,
    }
}
