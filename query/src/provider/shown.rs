//! What SQL shows of a stored table, as a plan over it, so that the optimizer prunes columns and pushes filters through.
//!
//! Versions: of one key the row with the greatest place in the log. Windows: the parts of one window are added. Most windows have
//! one part only; the adding is done for the stretches of time in which some window has more.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ScalarValue, not_impl_err};
use datafusion::datasource::{TableType, provider_as_source};
use datafusion::functions_aggregate::expr_fn::{count, max, min, sum};
use datafusion::functions_aggregate::first_last::{first_value_udaf, last_value_udaf};
use datafusion::functions_window::expr_fn::row_number;
use datafusion::logical_expr::expr::{AggregateFunction, Sort};
use datafusion::logical_expr::{Expr, ExprFunctionExt, LogicalPlan, LogicalPlanBuilder, cast, col, ident, lit};
use datafusion::physical_plan::ExecutionPlan;
use plimsoll_archive::{column, table};
use plimsoll_schemas::row::Table;

use super::rows::{Rows, Scanned};
use crate::functions::sketch::sketch_merge_udaf;
use crate::snapshot::Snapshot;

/// How late a sample can still open a part of its window, seconds.
const LATENESS_S: i64 = 3_600;
const US_PER_S: i64 = 1_000_000;
const PLACE: [&str; 3] = ["_epoch", "_seq", "_ordinal"];
const LAST: [&str; 3] = ["_last_at", "_last_epoch", "_last_sequence"];
const RANK: &str = "_rank";

/// A table as SQL shows it.
#[derive(Debug)]
pub struct Shown {
    schema: SchemaRef,
    plan: LogicalPlan,
}

impl Shown {
    /// The table of one snapshot. Errors only if the engine refuses our own plan.
    pub fn new(table: Table, snapshot: &Arc<Snapshot>, scanned: &Arc<Scanned>) -> Result<Self> {
        let source = provider_as_source(Arc::new(Rows::new(table, snapshot.clone(), scanned.clone())));
        let stored = || LogicalPlanBuilder::scan(table.name(), source.clone(), None);
        let plan = match table::window_seconds(table) {
            Some(seconds) => windows(stored, &snapshot.late(table), table, final_before(snapshot, seconds))?,
            None if table::key_columns(table).is_empty() => stored()?.project(visible_columns(table))?.build()?,
            None => newest_versions(stored()?, table)?,
        };
        Ok(Self { schema: visible(table), plan })
    }
}

/// The columns that SQL shows, with their comments.
pub fn visible(table: Table) -> SchemaRef {
    let schema = table::schema(table);
    let fields: Vec<_> = schema.fields().iter().filter(|field| !column::is_hidden(field.name())).cloned().collect();
    Arc::new(Schema::new(fields))
}

fn visible_columns(table: Table) -> Vec<Expr> {
    visible(table).fields().iter().map(|field| ident(field.name())).collect()
}

/// Windows that start before this (microseconds) are final; absent if the log's time is not known.
fn final_before(snapshot: &Snapshot, seconds: i64) -> Option<i64> {
    snapshot.logged_at_ns().map(|at| at / 1_000 - (LATENESS_S + seconds) * US_PER_S)
}

fn newest_versions(stored: LogicalPlanBuilder, table: Table) -> Result<LogicalPlan> {
    let rank = row_number()
        .partition_by(table::key_columns(table).iter().map(|key| ident(*key)).collect())
        .order_by(PLACE.iter().map(|name| ident(*name).sort(false, false)).collect())
        .build()?
        .alias(RANK);
    stored.window(vec![rank])?.filter(ident(RANK).eq(lit(1u64)))?.project(visible_columns(table))?.build()
}

fn windows(stored: impl Fn() -> Result<LogicalPlanBuilder>, late: &[(i64, i64)], table: Table, final_before: Option<i64>) -> Result<LogicalPlan> {
    let at = |us: i64| lit(ScalarValue::TimestampMicrosecond(Some(us), Some(column::UTC.into())));
    let last_final = match final_before {
        Some(us) => ident("window_at").lt_eq(at(us)),
        None => lit(ScalarValue::Boolean(None)),
    };
    let shown = |name: &str| if name == "final" { last_final.clone().alias("final") } else { ident(name) };
    let columns: Vec<Expr> = visible(table).fields().iter().map(|field| shown(field.name())).collect();
    let inside = late.iter().map(|&(from, to)| ident("window_at").between(at(from), at(to))).reduce(Expr::or);
    let Some(inside) = inside else { return stored()?.project(columns)?.build() };
    let (keys, sums) = added(table);
    let whole = stored()?.filter(inside.clone())?.aggregate(keys, sums)?.project(columns.clone())?.build()?;
    stored()?.filter(Expr::Not(Box::new(inside)))?.project(columns)?.union(whole)?.build()
}

/// The parts of one window as one: the keys, and every other column with how its parts are put together.
fn added(table: Table) -> (Vec<Expr>, Vec<Expr>) {
    let keys: Vec<Expr> = table::key_columns(table).iter().map(|key| ident(*key)).collect();
    let schema = visible(table);
    let rest = schema.fields().iter().filter(|field| !table::key_columns(table).contains(&field.name().as_str()) && field.name() != "final");
    (keys, rest.map(|field| together(field.name(), field.data_type()).alias(field.name())).collect())
}

fn together(name: &str, data_type: &DataType) -> Expr {
    let own_type = |expr: Expr| cast(expr, data_type.clone());
    match name {
        "revision" => own_type(count(lit(1i64)) - lit(1i64)),
        "host" | "gpu_index" | "model" | "pool" | "cell" | "tenant" | "lease_id" => {
            ordered(first_value_udaf(), name, &["revision", "_epoch", "_seq", "_ordinal"])
        }
        "util_percent_last" | "memory_used_bytes_last" | "memory_total_bytes" => ordered(last_value_udaf(), name, &LAST),
        "util_sketch" | "memory_sketch" => sketch_merge_udaf().call(vec![ident(name)]),
        name if name.ends_with("_min") => min(ident(name)),
        name if name.ends_with("_max") => max(ident(name)),
        name => own_type(sum(ident(name))),
    }
}

fn ordered(function: Arc<datafusion::logical_expr::AggregateUDF>, name: &str, by: &[&str]) -> Expr {
    let order = by.iter().map(|name| Sort::new(col(*name), true, true)).collect();
    Expr::AggregateFunction(AggregateFunction::new_udf(function, vec![ident(name)], false, None, order, None))
}

#[async_trait]
impl TableProvider for Shown {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_logical_plan(&'_ self) -> Option<Cow<'_, LogicalPlan>> {
        Some(Cow::Borrowed(&self.plan))
    }

    async fn scan(&self, _: &dyn Session, _: Option<&Vec<usize>>, _: &[Expr], _: Option<usize>) -> Result<Arc<dyn ExecutionPlan>> {
        // The planner puts the plan above in the place of every scan.
        not_impl_err!("a shown table is a plan over its stored rows")
    }
}
