//! The broken lines that the simulation must notice can still be broken: a patch that no longer applies tests nothing.

use std::process::Command;

#[test]
fn every_mutant_applies() {
    let root = crate::root();
    let patches = std::fs::read_dir(root.join("tests/mutants")).expect("the mutants are there");
    let patches: Vec<_> =
        patches.map(|entry| entry.expect("a readable folder").path()).filter(|path| path.extension().is_some_and(|of| of == "patch")).collect();
    assert!(patches.len() >= 6, "{patches:?}");
    for patch in patches {
        let output = Command::new("git").args(["apply", "--check"]).arg(&patch).current_dir(&root).output().expect("git runs");
        assert!(output.status.success(), "{}: {}", patch.display(), String::from_utf8_lossy(&output.stderr));
    }
}
