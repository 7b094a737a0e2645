//! What the GPUs of the bench draw, and how much that counts.

use std::path::PathBuf;

use clap::Args;
use plimsoll_fold::placement::openb::boards;
use plimsoll_fold::placement::policy::power::Powers;

use super::input;
use crate::error::Error;

/// Power as the bench looks at it.
#[derive(Debug, Args)]
pub struct Power {
    /// How much of a decision is to wake no GPU that sleeps, percent; the policy decides the rest. random pays no heed to it
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub power_weight: u32,
    /// What GPUs draw: model, idle_mw, active_mw, host_mw (a host with any GPU in use, on top); without it, what the boards of the openb list are rated for
    #[arg(long, value_name = "CSV")]
    power: Option<PathBuf>,
}

impl Power {
    /// What each model draws.
    pub fn powers(&self) -> Result<Powers, Error> {
        match &self.power {
            Some(path) => input::powers(path),
            None => Ok(boards::powers()),
        }
    }
}
