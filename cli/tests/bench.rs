//! `plimsoll bench` as it is typed, on a small list of our own.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const MARKS: [&str; 5] = ["90", "95", "100", "110", "130"];

/// 60 hosts of 4 GPUs, so that one GPU is less than a mark, and pods that ask for a share, a whole GPU or two.
fn lists(folder: &Path) {
    let mut nodes = "sn,cpu_milli,memory_mib,gpu,model\n".to_owned();
    (0..60).for_each(|n| writeln!(nodes, "node-{n:02},64000,262144,4,G2").expect("text"));
    let mut pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n".to_owned();
    for n in 0..600 {
        let (gpus, milli) = [(1, 300), (1, 1_000), (2, 1_000), (1, 810), (0, 0)][n % 5];
        writeln!(pods, "pod-{n:03},4000,8192,{gpus},{milli},").expect("text");
    }
    std::fs::write(folder.join("nodes.csv"), nodes).expect("a file");
    std::fs::write(folder.join("pods.csv"), pods).expect("a file");
}

fn openb(folder: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_plimsoll"));
    command.current_dir(folder).args(["bench", "openb", "--nodes", "nodes.csv", "--pods", "pods.csv"]).args(more).output().expect("plimsoll runs")
}

#[test]
fn every_policy_runs_on_lists_it_has_never_seen_and_gives_the_same_again() {
    let folder = tempfile::tempdir().expect("a folder");
    lists(folder.path());
    let run = || {
        let output = openb(folder.path(), &["--policies", "best_fit,fgd,tw,hybrid", "--seeds", "1..2", "--train-seeds", "10..13", "-o", "json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let runs = answer["runs"].as_array().expect("runs").clone();
        assert_eq!(runs.len(), 8);
        runs.iter().map(|run| (run["policy"].clone(), run["seed"].clone(), run["unallocated_pct"].clone())).collect::<Vec<_>>()
    };
    let runs = run();
    for (policy, seed, unallocated) in &runs {
        for mark in MARKS {
            let percent = unallocated[mark].as_f64().unwrap_or_else(|| panic!("{policy} {seed}: {unallocated}"));
            assert!((0.0..100.0).contains(&percent), "{policy} {seed} at {mark}: {percent}");
        }
    }
    assert_eq!(runs, run());
}

#[test]
fn power_is_estimated_where_models_are_known_and_heeded_where_it_has_a_weight() {
    let folder = tempfile::tempdir().expect("a folder");
    lists(folder.path());
    std::fs::write(folder.path().join("draws.csv"), "model,idle_mw,active_mw,host_mw\nG2,10000,20000,100000\n").expect("a file");
    std::fs::write(folder.path().join("others.csv"), "model,idle_mw,active_mw,host_mw\nG3,1,2,3\n").expect("a file");
    let power_kw = |more: &[&str]| {
        let output = openb(folder.path(), &[&["--policies", "worst_fit", "--seeds", "1", "-o", "json"], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["runs"][0]["power_kw"].as_f64()
    };
    for mode in [&[][..], &["--churn", "40"]] {
        let with = |weight| power_kw(&[&["--power", "draws.csv", "--power-weight", weight], mode].concat()).expect("G2 is known");
        let (off, on) = (with("0"), with("90"));
        // 60 hosts of 4 GPUs draw 2.4 kW asleep and 10.8 kW awake.
        assert!(2.4 < on && on < off && off < 10.8, "{mode:?}: {on} {off}");
    }
    assert!(power_kw(&[]).is_some());
    assert_eq!(power_kw(&["--power", "others.csv"]), None);
}

#[test]
fn what_is_wrong_with_a_list_or_a_flag_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    lists(folder.path());
    let check = |more: &[&str], expected: &[&str]| {
        let output = openb(folder.path(), more);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && expected.iter().all(|part| said.contains(part)), "{more:?}: {said}");
    };
    check(&["--policies", "nonsense"], &["nonsense", "hybrid"]);
    check(&["--policies", "tw", "--seeds", "1..2", "--train-seeds", "2..6"], &["2", "--train-seeds"]);
    check(&["--arrivals", "none.bin"], &["none.bin"]);
    check(&["--power", "nodes.csv"], &["nodes.csv:1", "idle_mw"]);
    std::fs::write(folder.path().join("pods.csv"), "name,cpu_milli,memory_mib,num_gpu,gpu_milli\na,1,1,1,x\n").expect("a file");
    check(&[], &["pods.csv", "2", "x"]);
}
