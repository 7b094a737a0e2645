//! Every case of a conformance file whose op this version has passes: of our own file always, of the shared one where there is one.

use std::path::Path;

use plimsoll_fold::conformance::{Verdict, run};
use serde_json::{Value, json};

const OWN: &str = include_str!("../fixtures/conformance.json");
/// From where cargo runs the tests.
const WORKSPACE: &str = "../..";
/// The shared cases, beside the repository unless the environment names another file.
const SHARED: &str = "../shared/conformance/cases.json";

fn check(text: &str) -> usize {
    let outcomes = run(text).expect("a file of cases");
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Fail).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Pass).count()
}

#[test]
fn every_own_case_passes_but_the_one_of_a_later_version() {
    assert_eq!(check(OWN), 32);
}

#[test]
fn every_shared_case_of_an_op_we_have_passes() {
    let path = Path::new(WORKSPACE).join(std::env::var("CONFORMANCE_CASES").unwrap_or_else(|_| SHARED.to_owned()));
    match std::fs::read_to_string(&path) {
        Ok(text) => assert!(check(&text) > 0, "{} holds no case of ours", path.display()),
        Err(error) => eprintln!("skipped: no conformance cases at {}: {error} (name a file with CONFORMANCE_CASES)", path.display()),
    }
}

#[test]
fn odd_values_in_any_field_are_answered_and_never_a_panic() {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(0.5),
        json!(u64::MAX),
        json!(1e300),
        json!("NaN"),
        json!("-inf"),
        json!("x"),
        json!([]),
        json!([null, {}, 1e300, "NaN"]),
        json!({}),
        json!({"a": "inf", "b": -1e300}),
    ];
    let cases: Value = serde_json::from_str(OWN).expect("JSON");
    let mut changed = Vec::new();
    for case in cases["cases"].as_array().expect("cases") {
        for key in case["input"].as_object().expect("fields").keys() {
            for value in &odd {
                let mut case = case.clone();
                case["input"][key] = value.clone();
                changed.push(case);
            }
        }
    }
    assert!(changed.len() > 500, "{}", changed.len());
    assert_eq!(run(&json!(changed).to_string()).expect("an array of cases").len(), changed.len());
}
