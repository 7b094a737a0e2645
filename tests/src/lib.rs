//! Tests that start the real processes and judge them from outside. Nothing here shares code with the fold: frames are read by a
//! decoder of its own ([`wire`]) and windows are recomputed by brute force ([`oracle`]). [`cell`] is what is killed. [`sim`] runs the production code itself, and judges it
//! with these.

pub mod cell;
pub mod oracle;
pub mod pipeline;
pub mod sim;
pub mod windows;
pub mod wire;
