//! What a statement can fail with: one clear sentence, what to do, a SQLSTATE for one door and a status for the other.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};

/// Why a statement gave no answer, or only a part of one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is not SQL.
    #[error("{0}")]
    Syntax(String),
    /// It would change something.
    #[error("{0} is refused: this service only reads")]
    ReadOnly(String),
    /// More than one statement at a time.
    #[error("one statement at a time, {0} were given")]
    Several(usize),
    /// No such table.
    #[error("{0}")]
    UnknownTable(String),
    /// No such column.
    #[error("{0}")]
    UnknownColumn(String),
    /// No such function.
    #[error("{0}")]
    UnknownFunction(String),
    /// It cannot be planned for another reason.
    #[error("{0}")]
    Invalid(String),
    /// The engine lacks it.
    #[error("{0}")]
    Unsupported(String),
    /// A value made it fail.
    #[error("{0}")]
    Data(String),
    /// It took too long.
    #[error("stopped at its deadline of {ms} ms")]
    Deadline {
        /// The deadline, ms.
        ms: u64,
    },
    /// Someone stopped it.
    #[error("cancelled")]
    Cancelled,
    /// It gives more rows than allowed.
    #[error("stopped after {limit} rows, the most one answer may have")]
    Rows {
        /// The limit.
        limit: u64,
    },
    /// It needs more memory than allowed.
    #[error("stopped: it needs more memory than it may use ({0})")]
    Memory(String),
    /// Too many are running and waiting.
    #[error("busy: {running} statements are running and {waiting} are waiting")]
    Busy {
        /// Running now.
        running: usize,
        /// Waiting now.
        waiting: usize,
    },
    /// The text is too long.
    #[error("the statement has {bytes} bytes, at most {limit} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// What it needs is in the processor, which does not answer.
    #[error("the processor cannot be reached: {0}")]
    ProcessorAway(String),
    /// It cannot answer yet.
    #[error("not ready: {0}")]
    Starting(String),
    /// A setting that clients may not change, or that does not exist.
    #[error("{0}")]
    Setting(String),
    /// The service failed, not the statement.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The SQLSTATE.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Syntax(_) | Self::Several(_) => "42601",
            Self::ReadOnly(_) => "25006",
            Self::UnknownTable(_) => "42P01",
            Self::UnknownColumn(_) => "42703",
            Self::UnknownFunction(_) => "42883",
            Self::Invalid(_) => "42000",
            Self::Unsupported(_) => "0A000",
            Self::Data(_) => "22000",
            Self::Deadline { .. } | Self::Cancelled => "57014",
            Self::Rows { .. } => "53400",
            Self::Memory(_) => "53200",
            Self::Busy { .. } => "53300",
            Self::TooLong { .. } => "54000",
            Self::ProcessorAway(_) => "08006",
            Self::Starting(_) => "57P03",
            Self::Setting(_) => "42704",
            Self::Internal(_) => "XX000",
        }
    }

    /// The snake_case code in JSON, the query log and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax(_) => "syntax",
            Self::Several(_) => "several_statements",
            Self::ReadOnly(_) => "read_only",
            Self::UnknownTable(_) => "unknown_table",
            Self::UnknownColumn(_) => "unknown_column",
            Self::UnknownFunction(_) => "unknown_function",
            Self::Invalid(_) => "invalid",
            Self::Unsupported(_) => "unsupported",
            Self::Data(_) => "data",
            Self::Deadline { .. } => "deadline",
            Self::Cancelled => "cancelled",
            Self::Rows { .. } => "row_limit",
            Self::Memory(_) => "memory",
            Self::Busy { .. } => "busy",
            Self::TooLong { .. } => "too_long",
            Self::ProcessorAway(_) => "processor_away",
            Self::Starting(_) => "starting",
            Self::Setting(_) => "setting",
            Self::Internal(_) => "internal",
        }
    }

    /// What to do about it, where there is something to say.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::ReadOnly(_) => Some("SELECT, WITH, VALUES, SHOW and EXPLAIN are answered"),
            Self::Several(_) => Some("send them one after the other"),
            Self::UnknownTable(_) => Some("SELECT table_schema, table_name FROM information_schema.tables lists the tables"),
            Self::UnknownColumn(_) => Some("SELECT * FROM system.columns lists every column with its meaning"),
            Self::Deadline { .. } => Some("narrow the time range (WHERE window_at >= ...) or ask a coarser table such as gpu_windows_1h"),
            Self::Rows { .. } => Some("add LIMIT, or aggregate"),
            Self::Memory(_) => Some("narrow the time range, or group by fewer values"),
            Self::Busy { .. } | Self::Starting(_) => Some("try again in a moment"),
            Self::ProcessorAway(_) => Some("tables other than samples are still answered; see system.cells for their freshness"),
            Self::Syntax(_)
            | Self::UnknownFunction(_)
            | Self::Invalid(_)
            | Self::Unsupported(_)
            | Self::Data(_)
            | Self::Cancelled
            | Self::TooLong { .. }
            | Self::Setting(_)
            | Self::Internal(_) => None,
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Self::Syntax(_)
            | Self::Several(_)
            | Self::UnknownTable(_)
            | Self::UnknownColumn(_)
            | Self::UnknownFunction(_)
            | Self::Invalid(_)
            | Self::Unsupported(_)
            | Self::Data(_)
            | Self::Setting(_) => 400,
            Self::ReadOnly(_) => 403,
            Self::Deadline { .. } | Self::Cancelled => 408,
            Self::Rows { .. } | Self::TooLong { .. } => 413,
            Self::Memory(_) => 422,
            Self::Busy { .. } => 429,
            Self::ProcessorAway(_) | Self::Starting(_) => 503,
            Self::Internal(_) => 500,
        }
    }

    /// The same with every occurrence of a text (a folder of the server) taken out.
    pub fn without(self, hidden: &str) -> Self {
        let clean = |text: String| if hidden.is_empty() { text } else { text.replace(hidden, "archive:") };
        match self {
            Self::Invalid(text) => Self::Invalid(clean(text)),
            Self::Data(text) => Self::Data(clean(text)),
            Self::Internal(text) => Self::Internal(clean(text)),
            Self::ProcessorAway(text) => Self::ProcessorAway(clean(text)),
            Self::Starting(text) => Self::Starting(clean(text)),
            other => other,
        }
    }
}

/// So that our own errors travel through the engine and come out as they were.
impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        DataFusionError::External(Box::new(error))
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        if let Some(own) = own(&error) {
            return own;
        }
        let text = first_sentence(&error.strip_backtrace());
        match error.find_root() {
            DataFusionError::SQL(..) => Self::Syntax(text),
            DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
                SchemaError::FieldNotFound { .. } => Self::UnknownColumn(text),
                SchemaError::AmbiguousReference { .. }
                | SchemaError::DuplicateQualifiedField { .. }
                | SchemaError::DuplicateUnqualifiedField { .. } => Self::Invalid(text),
            },
            DataFusionError::Plan(detail) if detail.starts_with("table '") => Self::UnknownTable(text),
            DataFusionError::Plan(detail) if detail.starts_with("Invalid function") => Self::UnknownFunction(text),
            DataFusionError::Plan(_) | DataFusionError::Configuration(_) => Self::Invalid(text),
            DataFusionError::NotImplemented(_) => Self::Unsupported(text),
            DataFusionError::Execution(_) => Self::Data(text),
            DataFusionError::ArrowError(arrow, _) => match arrow.as_ref() {
                ArrowError::ExternalError(inner) => match inner.downcast_ref::<DataFusionError>().and_then(own) {
                    Some(own) => own,
                    None => Self::Data(text),
                },
                ArrowError::MemoryError(_) => Self::Memory(text),
                _ => Self::Data(text),
            },
            DataFusionError::ResourcesExhausted(detail) => Self::Memory(first_sentence(detail)),
            _ => Self::Internal(text),
        }
    }
}

/// Our own error, wherever in the chain it is.
fn own(error: &DataFusionError) -> Option<Error> {
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(here) = at {
        if let Some(own) = here.downcast_ref::<Error>() {
            return Some(own.clone());
        }
        if let Some(DataFusionError::Shared(shared)) = here.downcast_ref::<DataFusionError>()
            && let Some(own) = own(shared)
        {
            return Some(own);
        }
        if let Some(DataFusionError::External(inner)) = here.downcast_ref::<DataFusionError>() {
            at = Some(inner.as_ref());
            continue;
        }
        at = here.source();
    }
    None
}

/// The message without the labels that the engine's layers put before it, cut to what a person reads.
fn first_sentence(text: &str) -> String {
    const LABELS: [&str; 8] = [
        "External error: ",
        "Error during planning: ",
        "Execution error: ",
        "Schema error: ",
        "SQL error: ",
        "Arrow error: ",
        "Resources exhausted: ",
        "This feature is not implemented: ",
    ];
    let mut text = text.trim();
    while let Some(rest) = LABELS.iter().find_map(|label| text.strip_prefix(label)) {
        text = rest;
    }
    let text = text.trim_start_matches("ParserError(\"").trim_end_matches("\")");
    text.chars().take(600).collect()
}
