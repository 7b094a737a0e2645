//! The doors to the engine. None of them knows a limit: those are the engine's.

pub mod encode;
pub mod http;
pub mod postgres;
