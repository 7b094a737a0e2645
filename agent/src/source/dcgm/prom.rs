//! The Prometheus text format, as much of it as exporters write: one series per line, labels with escapes, value, maybe a timestamp.
//! OpenMetrics' exemplars and `# EOF` are passed over. Never panics, whatever the text.

/// One series of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Series<'a> {
    /// Family name.
    pub name: &'a str,
    /// Labels in the order of the line.
    pub labels: Vec<(&'a str, String)>,
    /// The value's text: a number, or whatever stands there instead.
    pub value: &'a str,
}

/// Why a line is no series; the name used in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It does not start with a name.
    #[error("no metric name")]
    Name,
    /// Its labels do not parse.
    #[error("malformed labels")]
    Labels,
    /// Nothing stands where the value is expected.
    #[error("no value")]
    Value,
}

impl LineError {
    /// Name in metrics.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Name => "malformed_name",
            Self::Labels => "malformed_labels",
            Self::Value => "no_value",
        }
    }
}

impl Series<'_> {
    /// The first of these labels that is there and not empty.
    pub fn label(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.labels.iter().find(|(label, value)| label == name && !value.is_empty())).map(|(_, value)| value.as_str())
    }
}

/// The series of a line; nothing for comments and empty lines.
pub fn parse_line(line: &str) -> Result<Option<Series<'_>>, LineError> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(LineError::Name);
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => parse_labels(inside)?,
        None => (Vec::new(), rest),
    };
    // An exemplar starts with ` # {`; what is before it is value and timestamp.
    let rest = rest.split(" # {").next().unwrap_or(rest).trim();
    let first = rest.split_ascii_whitespace().next().ok_or(LineError::Value)?;
    // A text in the place of a number may contain spaces and is kept whole, to be shown.
    let value = if first.parse::<f64>().is_ok() { first } else { rest };
    Ok(Some(Series { name, labels, value }))
}

type Labels<'a> = Vec<(&'a str, String)>;

fn parse_labels(mut rest: &str) -> Result<(Labels<'_>, &str), LineError> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((labels, after));
        }
        let (name, after) = rest.split_once('=').ok_or(LineError::Labels)?;
        let (value, after) = parse_quoted(after.trim_start())?;
        labels.push((name.trim(), value));
        rest = after;
    }
}

fn parse_quoted(text: &str) -> Result<(String, &str), LineError> {
    let inside = text.strip_prefix('"').ok_or(LineError::Labels)?;
    let mut value = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &inside[at + 1..])),
            '\\' => match chars.next().ok_or(LineError::Labels)?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    Err(LineError::Labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Name, labels and value as they should be read.
    type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str);

    #[test]
    fn lines_are_read_as_they_are_written() {
        let check = |line: &str, expected: Result<Option<Expected>, LineError>| {
            let expected = expected.map(|series| {
                series.map(|(name, labels, value)| Series { name, labels: labels.iter().map(|&(k, v)| (k, v.to_owned())).collect(), value })
            });
            assert_eq!(parse_line(line), expected, "{line}");
        };
        check("# HELP A help", Ok(None));
        check("# EOF", Ok(None));
        check("", Ok(None));
        check("A 1", Ok(Some(("A", &[], "1"))));
        check("A{} 1 1700000000000", Ok(Some(("A", &[], "1"))));
        check(r#"A{gpu="0", UUID="GPU-1"} 139"#, Ok(Some(("A", &[("gpu", "0"), ("UUID", "GPU-1")], "139"))));
        check(r#"A{p="a\"b\\c\nd",} NaN"#, Ok(Some(("A", &[("p", "a\"b\\c\nd")], "NaN"))));
        check(r#"A{p="}=,{"} +Inf"#, Ok(Some(("A", &[("p", "}=,{")], "+Inf"))));
        check(r#"A{p="x"} ERROR - FAILED TO CONVERT TO STRING"#, Ok(Some(("A", &[("p", "x")], "ERROR - FAILED TO CONVERT TO STRING"))));
        check(r##"A{p="x"} 5 # {trace="1"} 5 1"##, Ok(Some(("A", &[("p", "x")], "5"))));
        check(r#"A{p="x" 5"#, Err(LineError::Labels));
        check(r#"A{p="x}"#, Err(LineError::Labels));
        check(r#"A{p=x} 5"#, Err(LineError::Labels));
        check(r#"A{p="x"}"#, Err(LineError::Value));
        check("{} 5", Err(LineError::Name));
        check("7up 5", Err(LineError::Name));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            let _ = parse_line(&text);
        }

        #[test]
        fn no_nearly_right_line_makes_the_parser_panic(text in r#"[A-Z]{0,3}[{]?([a-z]{0,2}="?[a-z\\"]{0,3}"?,?){0,3}[}]? ?[0-9eE.+-]{0,5}"#) {
            let _ = parse_line(&text);
        }
    }
}
