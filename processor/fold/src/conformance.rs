//! Conformance: runs cases from a file against the code that the pipeline itself uses. The file is `{"cases": [{id, op, input,
//! expect}, ...]}`; what each op means is in `conformance/ops.rs`.
//!
//! This is a border: cases hold floats, texts like `"NaN"` and numbers of any size. They become the core's integers here, or a
//! failure that says what was wrong with the case; nothing of the core is re-implemented.

mod input;
mod ops;

use serde::Serialize;
use serde_json::{Value, json};

/// How far a number may be from an expected fraction, relative.
const TOLERANCE: f64 = 1e-6;

/// What became of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Given is what was expected.
    Pass,
    /// It is not, or the case cannot be read.
    Fail,
    /// This version has no such op.
    NotYet,
}

impl Verdict {
    /// The snake_case name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::NotYet => "not_yet",
        }
    }
}

/// One case and its answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// The case's id, or its place in the file where it has none.
    pub id: String,
    /// What was to be done.
    pub op: String,
    /// What was expected.
    pub expected: Value,
    /// What was given; `{"error": sentence}` if the case cannot be read, null if it is not yet.
    pub given: Value,
    /// Whether they agree.
    pub verdict: Verdict,
}

/// The file holds no cases.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not JSON.
    #[error("the conformance file is not JSON: {0}")]
    NotJson(String),
    /// It is JSON of another form.
    #[error("the conformance file has no array named \"cases\"")]
    NoCases,
}

/// Runs every case of a file, in the file's order. A case that cannot be read fails; it never stops the others.
pub fn run(text: &str) -> Result<Vec<Outcome>, Error> {
    let file: Value = serde_json::from_str(text).map_err(|error| Error::NotJson(error.to_string()))?;
    let cases = file.get("cases").unwrap_or(&file).as_array().ok_or(Error::NoCases)?;
    Ok(cases.iter().enumerate().map(|(place, case)| run_one(place, case)).collect())
}

fn run_one(place: usize, case: &Value) -> Outcome {
    let text = |key: &str| case.get(key).and_then(Value::as_str);
    let id = text("id").map_or_else(|| format!("#{place}"), str::to_owned);
    let op = text("op").unwrap_or_default().to_owned();
    let expected = case.get("expect").cloned();
    let answer = match &expected {
        None => Some(Err("the case has no \"expect\"".to_owned())),
        Some(_) if op.is_empty() => Some(Err("the case has no \"op\"".to_owned())),
        Some(_) => ops::answer(&op, case.get("input").unwrap_or(&Value::Null)),
    };
    let expected = expected.unwrap_or(Value::Null);
    let (given, verdict) = match answer {
        None => (Value::Null, Verdict::NotYet),
        Some(Err(sentence)) => (json!({ "error": sentence }), Verdict::Fail),
        Some(Ok(given)) if agrees_at_the_top(&expected, &given) => (given, Verdict::Pass),
        Some(Ok(given)) => (given, Verdict::Fail),
    };
    Outcome { id, op, expected, given, verdict }
}

/// An answer may say more than a case asks for, so only the fields that are expected are compared; inside them all is exact.
fn agrees_at_the_top(expected: &Value, given: &Value) -> bool {
    match (expected, given) {
        (Value::Object(expected), Value::Object(given)) => {
            expected.iter().all(|(key, value)| given.get(key).is_some_and(|found| agrees(value, found)))
        }
        _ => agrees(expected, given),
    }
}

fn agrees(expected: &Value, given: &Value) -> bool {
    match (expected, given) {
        (Value::Number(expected), Value::Number(given)) => numbers_agree(expected, given),
        (Value::Array(expected), Value::Array(given)) => expected.len() == given.len() && expected.iter().zip(given).all(|(e, g)| agrees(e, g)),
        (Value::Object(expected), Value::Object(given)) => {
            expected.len() == given.len() && expected.iter().all(|(key, value)| given.get(key).is_some_and(|found| agrees(value, found)))
        }
        _ => expected == given,
    }
}

/// Integers are exact; a fraction may be off by one part in a million.
fn numbers_agree(expected: &serde_json::Number, given: &serde_json::Number) -> bool {
    if !expected.is_f64() && !given.is_f64() {
        return expected == given;
    }
    match (expected.as_f64(), given.as_f64()) {
        (Some(e), Some(g)) if expected.is_f64() => (e - g).abs() <= TOLERANCE * e.abs(),
        (Some(e), Some(g)) => e == g,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(case: Value, given: Value, verdict: Verdict) {
        let outcomes = run(&json!({ "cases": [case] }).to_string()).expect("a file of cases");
        assert_eq!((&outcomes[0].given, outcomes[0].verdict), (&given, verdict), "{outcomes:?}");
    }

    #[test]
    fn a_file_of_another_form_is_an_error_and_an_odd_case_only_a_failure() {
        assert_eq!(run("{}"), Err(Error::NoCases));
        assert_eq!(run("{\"cases\": 1}"), Err(Error::NoCases));
        assert!(matches!(run("x"), Err(Error::NotJson(_))));
        assert_eq!(run("[]"), Ok(Vec::new()));
        check(json!(7), json!({"error": "the case has no \"expect\""}), Verdict::Fail);
        check(json!({"expect": 1}), json!({"error": "the case has no \"op\""}), Verdict::Fail);
        check(json!({"op": "vram.limit", "expect": 1}), json!({"error": "total_bytes is missing"}), Verdict::Fail);
        check(json!({"op": "no.such_op", "expect": 1}), Value::Null, Verdict::NotYet);
    }

    #[test]
    fn integers_are_exact_and_fractions_are_close() {
        let agree = |expected: &str, given: &str| agrees(&serde_json::from_str(expected).expect("JSON"), &serde_json::from_str(given).expect("JSON"));
        assert!(agree("0.6", "0.6000005") && !agree("0.6", "0.60001"));
        assert!(agree("18446744073709551615", "18446744073709551615") && !agree("18446744073709551615", "18446744073709551614"));
        assert!(agree("5", "5.0") && !agree("5", "5.000001") && agree("5.0", "5"));
        assert!(agree("0.0", "0.0") && !agree("0.0", "0.001"));
        assert!(!agree("[1]", "[1,2]") && !agree("{\"a\":1}", "{\"a\":1,\"b\":2}") && !agree("null", "0"));
    }

    #[test]
    fn an_answer_may_say_more_than_is_asked_but_not_inside_a_field() {
        assert!(agrees_at_the_top(&json!({"len": 1}), &json!({"len": 1, "late_counted": 0})));
        assert!(!agrees_at_the_top(&json!({"counts": {"a": 1}}), &json!({"counts": {"a": 1, "b": 0}})));
    }
}
