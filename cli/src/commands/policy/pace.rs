//! `plimsoll policy pace`: how fast placement requests may come, and when load pauses them.

use std::process::ExitCode;

use clap::{Args, ValueEnum};
use plimsoll_schemas::control::Control;
use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::pace::{self, Pace};
use serde_json::Value;

use crate::endpoint;
use crate::error::Error;
use crate::visible::{Wait, publish};

/// Which pace, and whose.
#[derive(Debug, Args)]
pub struct Options {
    /// The limits to begin with
    #[arg(long, required_unless_present = "off")]
    preset: Option<Preset>,
    /// Only this tenant's requests [default: those of the whole cell; both hold]
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Limits that differ from the preset, such as min_request_interval_ms=200 util_high_bp=8500 mode=queue
    #[arg(long = "set", value_name = "FIELD=VALUE", num_args = 1.., requires = "preset")]
    changes: Vec<String>,
    /// End the pace: requests come as they like
    #[arg(long, conflicts_with_all = ["preset", "changes"])]
    off: bool,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// One request every 100 ms; a pause above 60 % utilisation or 80 % memory
    Conservative,
    /// One request every 50 ms; a pause above 80 % utilisation or 90 % memory
    Default,
    /// As fast as requests come; no pause
    Aggressive,
}

impl Preset {
    const fn pace(self) -> Pace {
        match self {
            Self::Conservative => pace::Preset::Conservative.pace(),
            Self::Default => pace::Preset::Default.pace(),
            Self::Aggressive => pace::Preset::Aggressive.pace(),
        }
    }
}

/// Sets or ends it.
pub async fn run(options: Options, endpoint: &endpoint::Flags) -> Result<ExitCode, Error> {
    publish(endpoint, options.wait, &control(options.preset, options.tenant, &options.changes)?).await
}

/// No preset is the end of the pace.
fn control(preset: Option<Preset>, tenant: Option<TenantId>, changes: &[String]) -> Result<Control, Error> {
    Ok(match preset {
        Some(preset) => Control::Pace { tenant, pace: changed(preset.pace(), changes)? },
        None => Control::EndPace { tenant },
    })
}

/// A pace with some of its fields changed. What cannot be kept is refused here already, with the words of the fold.
fn changed(mut pace: Pace, changes: &[String]) -> Result<Pace, Error> {
    for change in changes {
        let (name, text) = change.split_once('=').ok_or_else(|| Error::Usage(format!("{change:?} is not FIELD=VALUE, such as util_high_bp=8500")))?;
        let (name, text) = (name.trim(), text.trim());
        let mut fields = serde_json::to_value(pace).expect("plain numbers");
        let names = fields.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let Some(field) = fields.get_mut(name) else {
            return Err(Error::Usage(format!("a pace has no {name:?}; it has {names}")));
        };
        *field = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
        pace = serde_json::from_value(fields).map_err(|error| Error::Usage(format!("{name} is {text:?}: {error}")))?;
    }
    pace.check().map_err(Error::Usage)?;
    Ok(pace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::pace::Mode;

    #[test]
    fn fields_of_a_preset_can_be_changed_and_wrong_changes_are_named() {
        let changed = |changes: &[&str]| {
            let changes: Vec<String> = changes.iter().map(|change| (*change).to_owned()).collect();
            changed(Preset::Default.pace(), &changes)
        };
        let pace = changed(&["mode=queue", "min_request_interval_ms = 200", "adaptive=false", "util_low_bp=1"]).expect("all hold");
        let expected =
            Pace { mode: Mode::Queue, min_request_interval_ms: 200, adaptive: false, util_low_bp: Some(1), ..pace::Preset::Default.pace() };
        assert_eq!(pace, expected);
        let check = |change: &str, expected: &str| {
            let error = changed(&[change]).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("check_ms", "is not FIELD=VALUE");
        check("colour=red", "a pace has no \"colour\"; it has ");
        check("mode=fast", "mode is \"fast\": unknown variant `fast`");
        check("check_ms=soon", "check_ms is \"soon\": invalid type");
        check("check_ms=-1", "check_ms is \"-1\": invalid value");
        check("check_ms=10", "check_ms is 10, expected 1000 to 3600000");
    }

    #[test]
    fn without_a_preset_the_pace_of_that_tenant_ends() {
        let tenant: Option<TenantId> = Some("research".parse().expect("valid"));
        assert_eq!(control(None, tenant.clone(), &[]).expect("nothing to check"), Control::EndPace { tenant });
        let Ok(Control::Pace { tenant: None, pace }) = control(Some(Preset::Aggressive), None, &[]) else { panic!("no pace") };
        assert_eq!(pace, pace::Preset::Aggressive.pace());
    }
}
