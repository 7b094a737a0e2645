//! Making a running plan stop. The engine's operators give way between batches; a join can work for minutes without making one.
//! So joins give way after each batch they make, and their conditions look at the clock each time they are evaluated.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use datafusion::arrow::datatypes::{FieldRef, Schema};
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec};

use crate::clock;
use crate::error::Error;

/// When a statement must end.
#[derive(Debug)]
pub struct Stop {
    at: Instant,
    ms: u64,
    cancelled: AtomicBool,
}

impl Stop {
    /// At this instant, which is `ms` after its start, or earlier if it is cancelled.
    pub fn new(at: Instant, ms: u64) -> Self {
        Self { at, ms, cancelled: AtomicBool::new(false) }
    }

    /// The deadline.
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Ends it now.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Why it must end, if it must.
    pub fn check(&self) -> std::result::Result<(), Error> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if clock::instant() >= self.at {
            return Err(self.deadline());
        }
        Ok(())
    }

    /// The error of a statement that reached its deadline.
    pub fn deadline(&self) -> Error {
        Error::Deadline { ms: self.ms }
    }
}

/// The rule that puts the stops into a plan; the last one to run.
#[derive(Debug)]
pub struct StopInJoins(pub Arc<Stop>);

impl PhysicalOptimizerRule for StopInJoins {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            if let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() {
                let filter = join.filter().map(|filter| self.watched(filter));
                let join = datafusion::physical_plan::joins::NestedLoopJoinExecBuilder::from(join).with_filter(filter).build()?;
                return Ok(Transformed::yes(Arc::new(CooperativeExec::new(Arc::new(join))) as _));
            }
            if let Some(join) = node.downcast_ref::<HashJoinExec>() {
                let filter = join.filter().map(|filter| self.watched(filter));
                let join = join.builder().with_filter(filter).build_exec()?;
                return Ok(Transformed::yes(Arc::new(CooperativeExec::new(join)) as _));
            }
            if multiplies(node.as_ref()) {
                return Ok(Transformed::yes(Arc::new(CooperativeExec::new(node)) as _));
            }
            Ok(Transformed::no(node))
        })
        .data()
    }

    fn name(&self) -> &str {
        "StopInJoins"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Operators that can make many rows of few.
fn multiplies(node: &dyn ExecutionPlan) -> bool {
    matches!(node.name(), "CrossJoinExec" | "SortMergeJoinExec" | "SymmetricHashJoinExec" | "UnnestExec" | "RecursiveQueryExec")
}

impl StopInJoins {
    fn watched(&self, filter: &JoinFilter) -> JoinFilter {
        let inner = Watched { inner: filter.expression().clone(), stop: self.0.clone() };
        JoinFilter::new(Arc::new(inner), filter.column_indices().to_vec(), filter.schema().clone())
    }
}

/// A condition that looks at the clock before it is evaluated.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn PhysicalExpr>,
    stop: Arc<Stop>,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PhysicalExpr for Watched {
    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.stop.check()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let inner = children.pop().unwrap_or_else(|| self.inner.clone());
        Ok(Arc::new(Self { inner, stop: self.stop.clone() }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
