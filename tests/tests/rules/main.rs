//! What holds without anything running: who may import whom, and that what is deployed is well-formed.

mod architecture;
mod deploy;

use std::path::PathBuf;

/// The top of the repository.
fn root() -> PathBuf {
    PathBuf::from("..").canonicalize().expect("tests/ lies in the repository")
}
