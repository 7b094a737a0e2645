//! Reading a case's input: every getter says what is missing or odd, none panics.

use plimsoll_schemas::reading::Number;
use serde_json::Value;

/// The fields of a case's input, or of an object in it.
#[derive(Clone, Copy)]
pub(super) struct Input<'a>(pub &'a Value);

impl<'a> Input<'a> {
    /// The value of a field; absent if it is missing or null.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub fn has(self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn flag(self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }

    pub fn array(self, key: &str) -> Result<&'a [Value], String> {
        self.get(key).and_then(Value::as_array).map(Vec::as_slice).ok_or_else(|| format!("{key} is not an array"))
    }

    pub fn text(self, key: &str) -> Result<&'a str, String> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| format!("{key} is not a text"))
    }

    /// A number if there is one; texts such as `"NaN"` and `"inf"` are numbers.
    pub fn number(self, key: &str) -> Result<Option<Number>, String> {
        self.get(key).map(|value| number(value).ok_or_else(|| format!("{key} is no number: {value}"))).transpose()
    }

    pub fn required(self, key: &str) -> Result<Number, String> {
        self.number(key)?.ok_or_else(|| format!("{key} is missing"))
    }

    /// A whole number 0..2^64.
    pub fn unsigned(self, key: &str) -> Result<u64, String> {
        let value = self.required(key)?;
        whole(value).and_then(|whole| u64::try_from(whole).ok()).ok_or_else(|| format!("{key} is no whole number from 0 to 2^64 - 1: {value}"))
    }

    /// A number scaled to the core's integers, rounded and cut to 0..2^64; absent if it is missing or not finite, which
    /// validation would have made of it.
    pub fn scaled(self, key: &str, scale: i32, offset: i64) -> Result<Option<u64>, String> {
        Ok(self.number(key)?.filter(|value| value.as_f64().is_finite()).map(|value| match value {
            Number::Int(int) => {
                let scaled = int.saturating_mul(i128::from(scale)).saturating_add(i128::from(offset));
                u64::try_from(scaled.max(0)).unwrap_or(u64::MAX)
            }
            // A cast from float saturates, and no such number is near 2^64.
            Number::Float(float) => (float * f64::from(scale) + offset as f64).round() as u64,
        }))
    }
}

/// The number a JSON value stands for.
pub(super) fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Number(number) => {
            let int = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            int.map(Number::Int).or_else(|| number.as_f64().map(Number::Float))
        }
        Value::String(text) => Number::parse(text).ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The whole number a number is, if it is one.
pub(super) fn whole(value: Number) -> Option<i128> {
    match value {
        Number::Int(int) => Some(int),
        Number::Float(float) if float.is_finite() && float.fract() == 0.0 => Some(float as i128),
        Number::Float(_) => None,
    }
}
