//! Sealed rows as Parquet under a manifest: written by the processor, read by the query service, readable by anyone.
//!
//! Read in this order: [`mod@column`] and [`table`] say what a row looks like in Arrow; [`encode`] makes one Parquet file of them;
//! a [`manifest`] names the files that hold; [`Archive`] commits the two together. Beside them stand [`checkpoints`] of the state, as files
//! that are only copied here, and [`retention`] says what leaves. Nothing here knows RocksDB, the log or SQL.

mod archive;
pub mod checkpoints;
pub mod column;
pub mod encode;
pub mod manifest;
pub mod retention;
pub mod table;

pub use archive::{Archive, Error};
pub use checkpoints::{Checkpoint, Checkpoints};
pub use manifest::{Entry, Manifest};

#[cfg(test)]
mod tests;
