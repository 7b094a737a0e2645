//! The simulation: the production fold, store, reader, chain and roles against a broker in memory that misbehaves as the real one was measured
//! to, with every kind of crash in between. A run is a seed; the same seed is the same run.

pub mod faults;
pub mod host;
pub mod judge;
pub mod replica;
pub mod rng;
pub mod stream;
pub mod world;
