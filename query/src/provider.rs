//! Archive and tail as SQL tables.
//!
//! [`rows::Rows`] is one table as it is stored, every version and every part of it. [`shown`] makes of it what SQL shows: of a
//! mutable table the newest version of each key, of a window all its parts added. Both are plans of the engine's own operators.

pub mod rows;
pub mod shown;
mod prune;

pub use rows::{ARCHIVE_URL, Rows};
pub use shown::{Shown, visible};
