//! Which statements are read at all: one at a time, of the kinds that only read. What may be planned is checked again on the plan.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use datafusion::sql::sqlparser::ast::{SetExpr, Statement};
use datafusion_pg_catalog::sql::PostgresCompatibilityParser;

use crate::error::Error;

/// Longest statement, bytes.
pub const BYTES_MAX: usize = 256 << 10;

/// Reads SQL as Postgres clients write it.
#[derive(Debug)]
pub struct Reader(PostgresCompatibilityParser);

impl Default for Reader {
    fn default() -> Self {
        Self(PostgresCompatibilityParser::new())
    }
}

impl Reader {
    /// The statements of a text. Errors if it is too long or not SQL.
    pub fn statements(&self, sql: &str) -> Result<Vec<Statement>, Error> {
        if sql.len() > BYTES_MAX {
            return Err(Error::TooLong { bytes: sql.len(), limit: BYTES_MAX });
        }
        self.0.parse(sql).map_err(|error| Error::Syntax(error.to_string().trim_start_matches("sql parser error: ").to_owned()))
    }

    /// The one statement of a text. Errors if there is none, or more than one.
    pub fn one(&self, sql: &str) -> Result<Statement, Error> {
        let mut statements = self.statements(sql)?;
        match (statements.pop(), statements.len()) {
            (Some(statement), 0) => Ok(statement),
            (Some(_), others) => Err(Error::Several(others + 1)),
            (None, _) => Err(Error::Syntax("there is no statement".to_owned())),
        }
    }
}

/// Lets a statement through if its kind only reads; the error names the kind.
pub fn only_reads(statement: &Statement) -> Result<(), Error> {
    match statement {
        Statement::Query(query) => match query.body.as_ref() {
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => Err(Error::ReadOnly(kind(statement))),
            _ => Ok(()),
        },
        Statement::Explain { statement, .. } => only_reads(statement),
        Statement::ExplainTable { .. }
        | Statement::ShowTables { .. }
        | Statement::ShowColumns { .. }
        | Statement::ShowVariable { .. }
        | Statement::ShowFunctions { .. }
        | Statement::ShowDatabases { .. }
        | Statement::ShowSchemas { .. } => Ok(()),
        other => Err(Error::ReadOnly(kind(other))),
    }
}

/// The first words of a statement: what it is.
fn kind(statement: &Statement) -> String {
    let text = statement.to_string();
    let words: Vec<&str> = text.split_whitespace().take_while(|word| word.chars().all(|c| c.is_ascii_uppercase())).take(2).collect();
    if words.is_empty() { text.split_whitespace().next().unwrap_or("this").to_owned() } else { words.join(" ") }
}
