//! The functions that SQL gets besides the engine's own, and those of the engine's that it does not get.

pub mod sketch;
pub mod time_bucket;

use datafusion::prelude::SessionContext;

/// Functions that make a large value out of a small one; one call could take all memory before any limit sees it.
const REFUSED: [&str; 10] =
    ["repeat", "lpad", "rpad", "generate_series", "range", "array_repeat", "list_repeat", "array_resize", "list_resize", "space"];

/// Adds ours and takes the refused ones out. The table function `generate_series` stays: it streams.
pub fn register(context: &SessionContext) {
    for name in REFUSED {
        context.deregister_udf(name);
    }
    context.register_udf(time_bucket::udf());
    context.register_udf(sketch::quantile_udf());
    context.register_udf(sketch::fraction_below_udf());
    context.register_udaf(sketch::sketch_merge_udaf().as_ref().clone());
    context.register_udaf(sketch::percentile_merge_udaf());
}
