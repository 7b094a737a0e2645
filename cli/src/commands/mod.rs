//! One file per command; each is what is asked, how it is asked and how the answer is shown.

pub mod alerts;
pub mod bench;
pub mod cancel;
pub mod conformance;
pub mod control;
pub mod decisions;
pub mod explain;
pub mod leases;
pub mod place;
pub mod policy;
pub mod queue;
pub mod release;
pub mod sql;
pub mod status;
pub mod tools;

/// Exit code of a request that was decided against: not a failure of the command, and not a success for the asker.
pub const NOT_PLACED: u8 = 3;
/// Exit code of a request that still waits for room when the command gives up.
pub const STILL_WAITS: u8 = 4;
