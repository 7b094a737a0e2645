//! Archive and tail as SQL tables.
//!
//! [`rows::Rows`] is one table as it is stored, every version and every part of it. [`shown`] makes of it what SQL shows: of a
//! mutable table the newest version of each key, of a window all its parts added. Both are plans of the engine's own operators.

pub mod rows;
pub mod shown;
mod prune;

use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::record_batch::RecordBatch;

pub use rows::{ARCHIVE_URL, Rows};
pub use shown::{Shown, visible};

/// The columns without their comments: in plans they would only be carried about and compared.
pub fn plain_schema(schema: &Schema) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().iter().map(|field| field.as_ref().clone().with_metadata(Default::default())).collect::<Vec<_>>()))
}

/// The rows under columns without comments.
pub fn plain(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(plain_schema(batch.schema_ref()), batch.columns().to_vec())
}
