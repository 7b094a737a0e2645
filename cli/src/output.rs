//! Rows for people (`table`) and for programs (`json`, `csv`).

use std::io::Write;

use clap::{Args, ValueEnum};
use serde_json::{Map, Number, Value};

use crate::error::Error;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// One array of objects.
    Json,
    /// A header line, then one line per row; NULL is empty.
    Csv,
}

/// The flag that chooses the format.
#[derive(Debug, Clone, Copy, Args)]
pub struct Flag {
    /// How the answer is written
    #[arg(short = 'o', long = "output", value_enum, default_value = "table", env = "PLIMSOLL_OUTPUT")]
    pub format: Format,
}

/// What a column's text stands for; JSON keeps numbers and booleans as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// `t` or `f`.
    Boolean,
    /// Anything else.
    Text,
}

/// Named columns and rows of text; absent = NULL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Table {
    /// Name and kind.
    pub columns: Vec<(String, Kind)>,
    /// One entry per column.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// A table of text columns without rows.
    pub fn of_text(columns: &[&str]) -> Self {
        Self { columns: columns.iter().map(|name| ((*name).to_owned(), Kind::Text)).collect(), rows: Vec::new() }
    }

    /// The text of a cell of the first row, by column name.
    pub fn first(&self, column: &str) -> Option<&str> {
        let index = self.columns.iter().position(|(name, _)| name == column)?;
        self.rows.first()?.get(index)?.as_deref()
    }

    /// The texts of a column, by its name; none if there is no such column.
    pub fn column<'a>(&'a self, column: &str) -> impl Iterator<Item = Option<&'a str>> {
        let index = self.columns.iter().position(|(name, _)| name == column);
        self.rows.iter().filter_map(move |row| Some(row.get(index?)?.as_deref()))
    }

    /// The same with one line per column: its name, then its value in each row.
    pub fn upright(&self) -> Self {
        let mut upright = Self::of_text(&["name"]);
        upright.columns.extend(self.rows.iter().map(|_| ("value".to_owned(), Kind::Text)));
        let line = |(index, (name, _)): (usize, &(String, Kind))| {
            std::iter::once(Some(name.clone())).chain(self.rows.iter().map(|row| row.get(index).cloned().flatten())).collect()
        };
        upright.rows = self.columns.iter().enumerate().map(line).collect();
        upright
    }

    /// One object per row, columns in order.
    pub fn to_json(&self) -> Value {
        let row = |row: &Vec<Option<String>>| -> Value {
            let object: Map<String, Value> = self
                .columns
                .iter()
                .zip(row)
                .map(|((name, kind), cell)| (name.clone(), cell.as_deref().map_or(Value::Null, |text| value(*kind, text))))
                .collect();
            Value::Object(object)
        };
        Value::Array(self.rows.iter().map(row).collect())
    }

    /// Writes the table to standard output.
    pub fn print(&self, format: Format) -> Result<(), Error> {
        let stdout = std::io::stdout();
        self.write(format, &mut stdout.lock()).map_err(Error::io("cannot write the answer"))
    }

    /// Writes the table.
    pub fn write(&self, format: Format, to: &mut impl Write) -> std::io::Result<()> {
        match format {
            Format::Table => write!(to, "{}", self.text("")),
            Format::Json => writeln!(to, "{:#}", self.to_json()),
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(to);
                writer.write_record(self.columns.iter().map(|(name, _)| name))?;
                for row in &self.rows {
                    writer.write_record(row.iter().map(|cell| cell.as_deref().unwrap_or("")))?;
                }
                writer.flush()
            }
        }
    }

    /// Aligned columns, numbers to the right, every line after `indent`; ends with the number of rows if there are none.
    pub fn text(&self, indent: &str) -> String {
        let mut table = comfy_table::Table::new();
        table.load_preset(comfy_table::presets::NOTHING).set_header(self.columns.iter().map(|(name, _)| name));
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| cell.as_deref().unwrap_or("")));
        }
        for (index, (_, kind)) in self.columns.iter().enumerate() {
            if *kind == Kind::Number
                && let Some(column) = table.column_mut(index)
            {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        let mut text: String = table.lines().map(|line| format!("{indent}{}\n", line.trim_end())).collect();
        if self.rows.is_empty() {
            text.push_str(&format!("{indent} (no rows)\n"));
        }
        text
    }
}

fn value(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Number => text
            .parse::<i64>()
            .map(Number::from)
            .ok()
            .or_else(|| text.parse::<f64>().ok().and_then(Number::from_f64))
            .map_or_else(|| Value::String(text.to_owned()), Value::Number),
        Kind::Boolean => Value::Bool(matches!(text, "t" | "true")),
        Kind::Text => Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        Table {
            columns: vec![("host".to_owned(), Kind::Text), ("gpus".to_owned(), Kind::Number), ("busy".to_owned(), Kind::Boolean)],
            rows: vec![vec![Some("a,b".to_owned()), Some("8".to_owned()), Some("t".to_owned())], vec![None, Some("NaN".to_owned()), None]],
        }
    }

    fn check(format: Format, expected: &str) {
        let mut bytes = Vec::new();
        sample().write(format, &mut bytes).expect("memory takes everything");
        assert_eq!(String::from_utf8(bytes).expect("text"), expected);
    }

    #[test]
    fn the_same_rows_read_well_in_every_format() {
        check(Format::Csv, "host,gpus,busy\n\"a,b\",8,t\n,NaN,\n");
        check(
            Format::Json,
            "[\n  {\n    \"host\": \"a,b\",\n    \"gpus\": 8,\n    \"busy\": true\n  },\n  {\n    \"host\": null,\n    \"gpus\": \"NaN\",\n    \"busy\": null\n  }\n]\n",
        );
        check(Format::Table, " host  gpus  busy\n a,b      8  t\n        NaN\n");
    }

    #[test]
    fn upright_has_one_line_per_column() {
        let expected = " name  value  value\n host  a,b\n gpus  8      NaN\n busy  t\n";
        assert_eq!(sample().upright().text(""), expected);
    }

    #[test]
    fn an_empty_answer_says_so() {
        assert_eq!(Table::of_text(&["x"]).text(""), " x\n (no rows)\n");
    }
}
