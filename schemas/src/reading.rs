//! A reading: what a source said about one GPU, before anyone believed it. Sentinels become absent here, ranges are checked in `validate`.

use crate::reason::Reason;
use crate::sample::Field;

/// A number as a source gave it: integers keep all their digits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// An integer.
    Int(i128),
    /// Anything else that parses, NaN and infinities included.
    Float(f64),
}

impl Number {
    /// The number a text stands for, or why there is none: `N/A` texts, DCGM blanks (`<<<..>>>`), nonsense.
    pub fn parse(text: &str) -> Result<Self, Reason> {
        let text = text.trim();
        if let Ok(int) = text.parse::<i128>() {
            return Ok(Self::Int(int));
        }
        if let Ok(float) = text.parse::<f64>() {
            return Ok(Self::Float(float));
        }
        let bare = text.trim_matches(['[', ']']).to_ascii_lowercase();
        Err(match bare.as_str() {
            "n/a" | "not supported" => Reason::NotSupported,
            "insufficient permissions" => Reason::NotPermitted,
            "" | "-" => Reason::Blank,
            other if other.starts_with("<<<") => Reason::Blank,
            _ => Reason::ParseError,
        })
    }

    /// The value as a float (integers rounded to 53 bits).
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(int) => int as f64,
            Self::Float(float) => float,
        }
    }

    /// Why this number stands for "no value", if it does. DCGM prints int64 0x7ffffffffffffff0..f3 (which as a float is
    /// 9.2e18 and above), int32 0x7ffffff0..f3 and 2^47..2^47+3; NVML returns `u32::MAX` and `u64::MAX`.
    /// The low two bits of a DCGM blank say: 0 blank, 1 not found, 2 not supported, 3 not permitted.
    pub fn sentinel(self) -> Option<Reason> {
        const I64: i128 = 0x7fff_ffff_ffff_fff0;
        const I32: i128 = 0x7fff_fff0;
        const F64: i128 = 1 << 47;
        let dcgm = |offset: i128| match offset {
            2 => Reason::NotSupported,
            3 => Reason::NotPermitted,
            _ => Reason::Blank,
        };
        let int = match self {
            Self::Int(int) => int,
            Self::Float(float) if float.is_finite() && float.fract() == 0.0 => {
                if (9.2e18..1.0e19).contains(&float) {
                    return Some(Reason::Blank);
                }
                float as i128
            }
            Self::Float(_) => return None,
        };
        match int {
            int if (I64..=I64 + 3).contains(&int) => Some(dcgm(int - I64)),
            int if (I32..=I32 + 3).contains(&int) => Some(dcgm(int - I32)),
            int if (F64..=F64 + 3).contains(&int) => Some(dcgm(int - F64)),
            int if int == i128::from(u32::MAX) || int == i128::from(u64::MAX) => Some(Reason::NotSupported),
            _ => None,
        }
    }
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Int(i128::from(value))
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(int) => int.fmt(f),
            Self::Float(float) => float.fmt(f),
        }
    }
}

/// What a source said about one GPU at one instant, in the units of [`Field`], nothing checked. Absent = the source said nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    values: [Option<Number>; Field::COUNT],
}

impl Default for Reading {
    fn default() -> Self {
        Self { values: [None; Field::COUNT] }
    }
}

impl Reading {
    /// The value of a field.
    pub fn get(&self, field: Field) -> Option<Number> {
        self.values[field.index()]
    }

    /// Sets the value of a field.
    pub fn set(&mut self, field: Field, value: impl Into<Number>) {
        self.values[field.index()] = Some(value.into());
    }

    /// The same, for chains.
    pub fn with(mut self, field: Field, value: impl Into<Number>) -> Self {
        self.set(field, value);
        self
    }

    /// Removes the value of a field.
    pub fn clear(&mut self, field: Field) {
        self.values[field.index()] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentinels_become_reasons_before_any_range_is_checked() {
        let check = |text: &str, expected: Option<Reason>| assert_eq!(Number::parse(text).expect("a number").sentinel(), expected, "{text}");
        check("9223372036854775792", Some(Reason::Blank));
        check("9223372036854775794", Some(Reason::NotSupported));
        check("9223372036854775795", Some(Reason::NotPermitted));
        check("9.223372036854775807e18", Some(Reason::Blank));
        check("140737488355328.0", Some(Reason::Blank));
        check("2147483634", Some(Reason::NotSupported));
        check("4294967295", Some(Reason::NotSupported));
        check("18446744073709551615", Some(Reason::NotSupported));
        check("0", None);
        check("NaN", None);
    }

    #[test]
    fn texts_that_mean_no_value_have_a_reason() {
        let check = |text: &str, expected: Reason| assert_eq!(Number::parse(text), Err(expected), "{text}");
        check("[N/A]", Reason::NotSupported);
        check("[Not Supported]", Reason::NotSupported);
        check("Insufficient Permissions", Reason::NotPermitted);
        check("ERROR - FAILED TO CONVERT TO STRING", Reason::ParseError);
        check("", Reason::Blank);
    }
}
