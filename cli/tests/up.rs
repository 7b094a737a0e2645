//! `plimsoll up` as a whole, with the real parts: what a stranger, a script or a power cut does to it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

struct Up {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Up {
    fn start(folder: &Path, more: &[&str]) -> Self {
        let mut process = command(folder, more).stdout(Stdio::piped()).spawn().expect("plimsoll runs");
        let lines = BufReader::new(process.stdout.take().expect("asked for")).lines();
        Self { process, lines }
    }

    /// The next event of a kind. `up` gives up by itself where it cannot become ready, so this ends.
    fn event(&mut self, kind: &str) -> Value {
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line.expect("text")).expect("one JSON value per line");
            if event["event"] == kind {
                return event;
            }
        }
        panic!("up ended ({:?}) without {kind:?}", self.process.wait());
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("our own child");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Its parts end with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.args(["up", "--json", "--no-demo", "--ports", "auto", "--hosts", "2", "--gpus", "2", "--data-dir"]).arg(folder).args(more);
    command
}

/// A process that has ended but that nobody has waited for has no command line any more.
fn is_running(pid: &Value) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| !command.is_empty())
}

fn sql(folder: &Path, question: &str) -> Value {
    let output =
        Command::new(env!("CARGO_BIN_EXE_plimsoll")).args(["sql", "-o", "json", question, "--data-dir"]).arg(folder).output().expect("plimsoll runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_killed_up_leaves_nothing_running_and_the_next_one_goes_on_from_its_log() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut first = Up::start(folder.path(), &[]);
    let ready = first.event("ready");
    assert!(ready["seconds"].as_f64().expect("a number") < 15.0, "{ready}");

    let second = command(folder.path(), &[]).output().expect("plimsoll runs");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains(&first.process.id().to_string()) && said.contains("--data-dir"), "{said}");

    first.signal(Signal::SIGKILL);
    first.process.wait().expect("killed");
    let mut next = Up::start(folder.path(), &[]);
    // It says this only when nothing of the first one is left.
    next.event("starting");
    for (part, pid) in ready["pids"].as_object().expect("process ids by part") {
        assert!(!is_running(pid), "{part} outlived its up");
    }
    next.event("ready");
    let position = sql(folder.path(), "SELECT commit_seq FROM system.cells")[0]["commit_seq"].as_i64().expect("a position");
    assert!(position > 2, "the log went on, not anew: {position}");

    next.signal(Signal::SIGTERM);
    let order: Vec<Value> = (0..4).map(|_| next.event("stopped")["part"].clone()).collect();
    assert_eq!(order, ["agent", "processor", "query", "nats"]);
    assert!(next.process.wait().expect("told to stop").success());
}
