//! A program that ends when its parent does. `plimsoll up` starts each part as `plimsoll child PARENT PROGRAM ARGS`; that process asks the
//! kernel for a SIGTERM at its parent's death and then becomes the program. So even `kill -9` of `up` leaves nothing behind, and no part
//! has to know of it.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::PathBuf;
use std::process::Command;

use clap::Args;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use crate::error::Error;

/// What to become.
#[derive(Debug, Args)]
pub struct Exec {
    /// Process id of the parent
    parent: u32,
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Becomes the program; comes back only with the reason why not.
pub fn become_program(exec: &Exec) -> Error {
    if let Err(errno) = set_pdeathsig(Signal::SIGTERM) {
        return Error::Io { what: "cannot tie a part to its parent".to_owned(), source: errno.into() };
    }
    // The parent may have died before the kernel was asked.
    if parent_id() != exec.parent {
        return Error::Usage(format!("the parent, process {}, has ended", exec.parent));
    }
    let source = Command::new(&exec.program).args(&exec.arguments).exec();
    Error::Io { what: format!("cannot run {}", exec.program.display()), source }
}
