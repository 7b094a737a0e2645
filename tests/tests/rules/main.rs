//! What holds without anything running: who may import whom, that what is deployed is well-formed, and that every mutant can still be made.

mod architecture;
mod deploy;
mod mutants;

use std::path::PathBuf;

/// The top of the repository.
fn root() -> PathBuf {
    PathBuf::from("..").canonicalize().expect("tests/ lies in the repository")
}
