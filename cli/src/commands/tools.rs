//! `plimsoll replay`, `verify` and `inspect`: the processor's own tools, run on the pipeline that the other commands speak to.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use clap::Args;

use crate::endpoint::{self, DATA_DIR, Endpoints};
use crate::error::Error;

const PROGRAM: &str = "plimsoll-processor";

/// Everything behind the tool's name.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct Options {
    /// The tool's own arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    arguments: Vec<OsString>,
}

/// Becomes the tool; comes back only with the reason why not. Addresses go by environment, so flags still win.
pub fn become_tool(tool: &str, options: &Options) -> Error {
    match command(tool, &options.arguments) {
        Ok(mut command) => {
            let source = command.exec();
            Error::Io { what: format!("cannot run {PROGRAM}"), source }
        }
        Err(error) => error,
    }
}

fn command(tool: &str, arguments: &[OsString]) -> Result<Command, Error> {
    let me = std::env::current_exe().map_err(Error::io("cannot tell where this program is"))?;
    let path = me.parent().expect("a program lies in a folder").join(PROGRAM);
    if !path.is_file() {
        return Err(Error::ProgramMissing { path });
    }
    let mut command = Command::new(path);
    command.arg(tool).args(arguments);
    let data_dir = data_dir(arguments).or_else(|| std::env::var_os("PLIMSOLL_DATA_DIR")).map_or_else(|| PathBuf::from(DATA_DIR), PathBuf::from);
    if let Some(Endpoints { cell, nats, .. }) = endpoint::of_running_up(&data_dir)? {
        for (name, value) in [("PLIMSOLL_CELL", cell.to_string()), ("PLIMSOLL_NATS", nats)] {
            if std::env::var_os(name).is_none() {
                command.env(name, value);
            }
        }
    }
    Ok(command)
}

/// What the tool is told about the data folder, which also says where the pipeline is.
fn data_dir(arguments: &[OsString]) -> Option<OsString> {
    let flag = arguments.iter().position(|argument| argument.to_str().is_some_and(|text| text == "--data-dir" || text.starts_with("--data-dir=")))?;
    match arguments[flag].to_str()?.split_once('=') {
        Some((_, value)) => Some(OsString::from(value)),
        None => arguments.get(flag + 1).cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_is_found_wherever_it_stands() {
        let check = |arguments: &[&str], expected: Option<&str>| {
            let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
            assert_eq!(data_dir(&arguments), expected.map(OsString::from), "{arguments:?}");
        };
        check(&["--from", "first", "--data-dir", "x"], Some("x"));
        check(&["--data-dir=a b", "tables"], Some("a b"));
        check(&["--from", "first"], None);
        check(&["--data-dir"], None);
    }
}
