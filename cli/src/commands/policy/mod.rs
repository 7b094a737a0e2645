//! `plimsoll policy`: what is in force, at any time, and changes of it; and what placement learns, before it comes into force.

mod compare;
pub mod file;
mod pace;
mod placing;
mod promote;
mod train;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use plimsoll_schemas::alert::Rule;
use plimsoll_schemas::control::Control;
use plimsoll_schemas::settings::Settings;
use plimsoll_schemas::time::parse_rfc3339_ns;

use crate::error::Error;
use crate::visible::{Wait, publish};
use crate::{endpoint, output, postgres};

/// What to do.
#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    endpoint: endpoint::Flags,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show what is in force, or was
    Show(Show),
    /// Change settings: NAME=VALUE, as many as you like, all or none
    Set(Set),
    /// Create an alert rule, or replace the one of its name
    Rule(FromFile),
    /// Remove an alert rule; what it has firing is resolved
    RemoveRule(Named),
    /// Choose how the cell places, where a request names no policy itself
    Use(placing::Use),
    /// Bound how much a tenant may hold
    Quota(placing::Quota),
    /// Set how fast placement requests may come, and when load pauses them
    Pace(pace::Options),
    /// Learn tables for placement from the cell's own requests
    Train(train::Train),
    /// Let two placement policies decide again what the cell was asked
    Compare(compare::Compare),
    /// Put learned tables into force, if they do better than those that are
    Promote(promote::Promote),
}

#[derive(Debug, Args)]
struct Show {
    /// Only this kind
    kind: Option<Kind>,
    /// As it was then, RFC 3339, such as 2026-11-20T14:05:00Z
    #[arg(long, value_parser = instant, conflicts_with = "history")]
    at: Option<String>,
    /// Everything that ever was
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    output: output::Flag,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    Settings,
    Placement,
    AlertRule,
    Logic,
    Enrolment,
    Cordon,
    Quota,
    Pace,
    Tables,
}

#[derive(Debug, Args)]
struct Set {
    /// Such as lost_ms=60000
    #[arg(required = true, value_name = "NAME=VALUE")]
    changes: Vec<String>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct FromFile {
    /// The rule as JSON, as `policy show alert_rule` shows it; - = standard input
    file: PathBuf,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
struct Named {
    /// The rule
    name: String,
    #[command(flatten)]
    wait: Wait,
}

/// Shows or changes.
pub async fn run(options: Options) -> Result<ExitCode, Error> {
    let endpoint = options.endpoint;
    match options.what {
        What::Show(show) => {
            let sql = question(show.kind, show.at.as_deref(), show.history);
            postgres::ask(&endpoint.resolve()?, &sql).await?.print(show.output.format)?;
            Ok(ExitCode::SUCCESS)
        }
        What::Set(set) => publish(&endpoint, set.wait, &Control::Settings(settings(&set.changes)?)).await,
        What::Rule(from) => publish(&endpoint, from.wait, &Control::AlertRule(rule(&from.file)?)).await,
        What::RemoveRule(named) => publish(&endpoint, named.wait, &Control::RemoveAlertRule { name: named.name }).await,
        What::Use(policy) => {
            let (wait, control) = policy.control();
            publish(&endpoint, wait, &control).await
        }
        What::Quota(quota) => {
            let (wait, control) = quota.control();
            publish(&endpoint, wait, &control).await
        }
        What::Pace(options) => pace::run(options, &endpoint).await,
        What::Train(train) => train::run(&endpoint.resolve()?, train).await,
        What::Compare(compare) => compare::run(&endpoint.resolve()?, compare).await,
        What::Promote(promote) => promote::run(&endpoint.resolve()?, promote).await,
    }
}

fn instant(text: &str) -> Result<String, String> {
    parse_rfc3339_ns(text).map(|_| text.to_owned()).ok_or_else(|| format!("{text:?} is not an RFC 3339 instant, such as 2026-11-20T14:05:00Z"))
}

/// Kind and instant were parsed, so they need no quoting inside quotes.
fn question(kind: Option<Kind>, at: Option<&str>, history: bool) -> String {
    let mut wanted = Vec::new();
    if let Some(kind) = kind.and_then(|kind| kind.to_possible_value()) {
        wanted.push(format!("kind = '{}'", kind.get_name()));
    }
    match at {
        Some(at) => wanted.push(format!("valid_from <= timestamptz '{at}' AND (valid_to IS NULL OR valid_to > timestamptz '{at}')")),
        None if !history => wanted.push("valid_to IS NULL".to_owned()),
        None => {}
    }
    let filter = if wanted.is_empty() { String::new() } else { format!("WHERE {} ", wanted.join(" AND ")) };
    format!("SELECT kind, name, version, valid_from, valid_to, set_by, params FROM policies {filter}ORDER BY kind, name, valid_from DESC LIMIT 1000")
}

/// The changes as one record. What is out of range is refused here already, with the words of the fold; whether they agree with what is in
/// force is for the fold to say.
fn settings(changes: &[String]) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    for change in changes {
        let (name, value) = change.split_once('=').ok_or_else(|| Error::Usage(format!("{change:?} is not NAME=VALUE, such as lost_ms=60000")))?;
        settings.set(name.trim(), value.trim()).map_err(Error::Usage)?;
    }
    settings.check().map_err(Error::Usage)?;
    Ok(settings)
}

fn rule(file: &std::path::Path) -> Result<Rule, Error> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).map_err(Error::io("cannot read standard input"))?
    } else {
        std::fs::read_to_string(file).map_err(Error::io(format!("cannot read {}", file.display())))?
    };
    let rule: Rule = serde_json::from_str(&text).map_err(|error| Error::Usage(format!("{} is no alert rule: {error}", file.display())))?;
    rule.check().map_err(Error::Usage)?;
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_force_then_is_one_question() {
        let sql = question(Some(Kind::AlertRule), Some("2026-11-20T14:05:00Z"), false);
        assert!(sql.contains("kind = 'alert_rule' AND valid_from <= timestamptz '2026-11-20T14:05:00Z' AND (valid_to IS NULL OR"), "{sql}");
        assert!(question(None, None, false).contains("WHERE valid_to IS NULL "));
        assert!(question(Some(Kind::Quota), None, false).contains(&format!("kind = '{}'", plimsoll_schemas::policy::Policy::QUOTA)));
        assert!(!question(None, None, true).contains("WHERE"));
        assert!(instant("yesterday").is_err());
    }

    #[test]
    fn changes_are_all_or_none_and_wrong_ones_are_named() {
        let check = |changes: &[&str], expected: &str| {
            let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
            assert!(settings(&changes).expect_err(expected).to_string().contains(expected), "{changes:?}");
        };
        check(&["lost_ms"], "is not NAME=VALUE");
        check(&["lost_ms=60000", "colour=red"], "there is no setting \"colour\"");
        check(&["lost_ms=60000", "lateness_ms=soon"], "lateness_ms is \"soon\"");
        check(&["lost_ms=1"], "lost_ms is 1, expected 1000 to 86400000");
        let both = settings(&["lost_ms=60000".to_owned(), "free_after_ms = 0".to_owned()]).expect("both hold");
        assert_eq!((both.lost_ms, both.free_after_ms), (Some(60_000), Some(0)));
        // With the settings in force this may well agree.
        assert!(settings(&["thermal_pause_mk=20000".to_owned()]).is_ok());
    }

    #[test]
    fn a_rule_that_cannot_work_never_reaches_the_log() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("rule.json");
        let check = |text: &str, expected: &str| {
            std::fs::write(&file, text).expect("writable");
            let error = rule(&file).map(|rule| rule.name).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("{", "is no alert rule");
        check(r#"{"name": "x", "severity": "warning", "signal": "luck", "limit": {"above": 1}}"#, "unknown variant `luck`");
        check(r#"{"name": "x", "severity": "warning", "signal": "temperature_c", "limit": {"above": 1}, "clear": 2}"#, "clears at 2");
    }
}
