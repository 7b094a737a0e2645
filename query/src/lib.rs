//! Archive and tail to SQL: one engine, a Postgres and an HTTP door, nothing that writes.
//!
//! Read in this order: the [`tail`] follows the processor and keeps what is not sealed; a [`snapshot`] is one (manifest, position);
//! [`provider`] and [`catalog`] show it as tables; the [`engine`] runs every statement under its [`limits`]; [`doors`] let people in.

pub mod clock;
pub mod error;
pub mod tail;
pub mod snapshot;
pub mod provider;
pub mod samples;
pub mod functions;
pub mod system;
pub mod catalog;
pub mod statement;
pub mod limits;
pub mod stop;
pub mod engine;
pub mod metrics;
pub mod doors;
pub mod service;
