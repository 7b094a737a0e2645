//! The agent: one per GPU host. Reads a source, validates, numbers and publishes with acknowledgement; never disturbs the GPUs.
//!
//! Read in this order: a [`source`] says what it sees as a stream of [`source::Signal`]s; the [`collect`] loop turns them into frames
//! and events through one [`host::Host`] per host; the [`buffer`] owns every record until the broker has acknowledged it; [`publish`]
//! drains the buffer into what is [`kept`], from which a [`repair`] is answered. [`http`] and [`metrics`] only look on. There is no disk
//! spool here: what the buffer cannot hold is dropped, counted and reported as a gap.

pub mod clock;
pub mod config;
pub mod source;
pub mod sampler;
pub mod record;
pub mod wear;
pub mod host;
pub mod buffer;
pub mod kept;
pub mod repair;
pub mod publish;
pub mod collect;
pub mod state;
pub mod status;
pub mod metrics;
pub mod http;
pub mod run;
