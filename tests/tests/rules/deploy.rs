//! What is deployed is judged by the program that will read it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn deploy(path: &str) -> PathBuf {
    crate::root().join("deploy").join(path)
}

/// nats-server from PATH or the tools folder; absent = say so.
fn nats_server() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").into_iter().flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>());
    let found = on_path.chain([crate::root().join(".tools")]).map(|folder| folder.join("nats-server")).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("not checked: no nats-server on PATH or in .tools (make tools)");
    }
    found
}

/// What `nats-server -t` says: success, and its words.
fn judge(server: &Path, config: &Path, variables: &[(&str, &str)]) -> (bool, String) {
    let output = Command::new(server).arg("-t").arg("-c").arg(config).envs(variables.iter().copied()).output().expect("nats-server runs");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout))
}

const SECRETS: [(&str, &str); 9] = [
    ("NATS_SERVER_NAME", "nats-1"),
    ("AGENT_GPU_1_USER", "gpu-1"),
    ("AGENT_GPU_1_PASSWORD", "one-for-this-test"),
    ("TENANT_RESEARCH_USER", "research"),
    ("TENANT_RESEARCH_PASSWORD", "two-for-this-test"),
    ("PROCESSOR_USER", "processor"),
    ("PROCESSOR_PASSWORD", "three-for-this-test"),
    ("OPERATOR_USER", "operator"),
    ("OPERATOR_PASSWORD", "four-for-this-test"),
];

#[test]
fn nats_server_accepts_every_configuration() {
    let Some(server) = nats_server() else { return };
    for (config, variables) in [("nats/up.conf", &[] as &[_]), ("nats/production.conf", &SECRETS)] {
        let (fine, said) = judge(&server, &deploy(config), variables);
        assert!(fine, "{config}: {said}");
    }
}

#[test]
fn nats_server_in_production_does_not_start_without_every_credential() {
    let Some(server) = nats_server() else { return };
    for missing in SECRETS {
        let others: Vec<_> = SECRETS.into_iter().filter(|given| *given != missing).collect();
        let (fine, said) = judge(&server, &deploy("nats/production.conf"), &others);
        assert!(!fine && said.contains(missing.0), "{}: {said}", missing.0);
    }
}

#[test]
fn systemd_accepts_every_unit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["agent", "processor", "query"] {
        let unit = format!("plimsoll-{name}.service");
        let text = std::fs::read_to_string(deploy("systemd").join(&unit)).expect("a unit");
        // The programs are installed where the units are used, not where they are checked; everything else is judged as it stands.
        let program = format!("/usr/bin/plimsoll-{name}");
        assert!(text.contains(&format!("ExecStart={program} ")), "{unit} starts {program}");
        let copy = folder.path().join(&unit);
        std::fs::write(&copy, text.replace(&format!("ExecStart={program} "), "ExecStart=/bin/true ")).expect("writable");
        match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                // Units of this machine that ours pull in are not ours to judge.
                let ours: Vec<&str> = said.lines().filter(|line| line.contains("plimsoll")).collect();
                assert!(output.status.success() && ours.is_empty(), "{unit}: {said}");
            }
            Err(error) => eprintln!("not checked: systemd-analyze does not run here ({error})"),
        }
    }
}

#[test]
fn the_compose_file_names_only_files_and_services_that_exist() {
    let text = std::fs::read_to_string(deploy("compose/compose.yaml")).expect("a compose file");
    for line in text.lines().map(str::trim) {
        if let Some(path) = line.strip_prefix("dockerfile: ").map(|path| crate::root().join(path)).or_else(|| mounted(line)) {
            assert!(path.exists(), "{} does not exist", path.display());
        }
    }
    let services: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("  ") && !line.starts_with("   ") && line.trim_end().ends_with(':'))
        .map(|line| line.trim().trim_end_matches(':'))
        .collect();
    for expected in ["nats", "processor", "query", "agent"] {
        assert!(services.contains(&expected), "{expected} among {services:?}");
    }
}

/// The file on this side of a bind mount such as `- ../nats/up.conf:/etc/nats.conf:ro`.
fn mounted(line: &str) -> Option<PathBuf> {
    let path = line.strip_prefix("- ../")?.split(':').next()?;
    Some(deploy(path))
}
