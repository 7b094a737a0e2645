//! The private nats-server: finding one that is new enough, and its configuration.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use plimsoll_schemas::subject::check_nats_version;

use crate::error::Error;

/// The configuration that `up` starts it with, as it stands in deploy/.
pub const CONFIG: &str = include_str!("../../../deploy/nats/up.conf");

const PROGRAM: &str = "nats-server";

/// The program to start: the one that was named, else the first on PATH, else one in a `.tools` folder beside the sources. A named one that
/// cannot be used is an error; on PATH an old one is passed over where the tools folder has a better one.
pub fn find(named: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = named {
        return check(path).map(|()| path.to_owned());
    }
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>());
    let mut candidates: Vec<PathBuf> = on_path.map(|folder| folder.join(PROGRAM)).collect();
    candidates.extend(tools_folders().into_iter().map(|folder| folder.join(".tools").join(PROGRAM)));
    let mut refused = None;
    for path in candidates.iter().filter(|path| path.is_file()) {
        match check(path) {
            Ok(()) => return Ok(path.clone()),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| Error::NatsMissing {
        looked: "nats-server on PATH and .tools/nats-server in and above this folder and the program's".to_owned(),
    }))
}

/// This folder and the program's, each with all above it.
fn tools_folders() -> Vec<PathBuf> {
    let here = std::env::current_dir().ok();
    let program = std::env::current_exe().ok();
    [here, program].into_iter().flatten().flat_map(|start| start.ancestors().map(Path::to_owned).collect::<Vec<_>>()).collect()
}

fn check(path: &Path) -> Result<(), Error> {
    let unusable = |detail: String| Error::NatsUnusable { path: path.display().to_string(), detail };
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output().map_err(|error| unusable(format!("does not run ({error})")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version =
        text.trim().strip_prefix("nats-server: ").ok_or_else(|| unusable(format!("is no nats-server: --version says {:?}", text.trim())))?;
    check_nats_version(version).map_err(|old| unusable(old.to_string()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(dir: &Path, says: &str) -> PathBuf {
        let path = dir.join(PROGRAM);
        std::fs::write(&path, format!("#!/bin/sh\necho '{says}'\n")).expect("writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("our own file");
        path
    }

    #[test]
    fn an_old_or_foreign_program_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let check = |says: &str, expected: &[&str]| {
            let error = find(Some(&program(dir.path(), says))).expect_err(says).to_string();
            for word in expected {
                assert!(error.contains(word), "{error}");
            }
        };
        check("nats-server: v2.9.10", &["2.9.10", "2.10", "--nats-server"]);
        check("hello", &["is no nats-server", "hello"]);
        find(Some(&program(dir.path(), "nats-server: v2.15.1"))).expect("new enough");
        let missing = find(Some(Path::new("/nowhere/nats-server"))).expect_err("missing").to_string();
        assert!(missing.contains("/nowhere/nats-server") && missing.contains("does not run"), "{missing}");
    }
}
