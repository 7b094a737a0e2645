//! Settings of the fold: one list with the name, type, default and range of each. A change of them is a control record; what was
//! in force when is a question to `policies`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr, $min:expr => $max:expr;)*) => {
        /// A change of settings; what is absent stays as it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Settings {
            $(
                $(#[$doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                #[schemars(range(min = $min, max = $max))]
                pub $name: Option<$type>,
            )*
        }

        /// The settings in force. Events from before a setting existed read with its default.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct Thresholds {
            $($(#[$doc])* pub $name: $type,)*
        }

        impl Default for Thresholds {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Thresholds {
            /// Every setting by name.
            pub const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// These settings with a change. Errors, in words, on the first value outside its range; then nothing changes.
            pub fn with(mut self, change: &Settings) -> Result<Self, String> {
                $(if let Some(value) = change.$name {
                    // A range that spans the whole type is a range too.
                    #[allow(unused_comparisons, clippy::absurd_extreme_comparisons)]
                    if !($min..=$max).contains(&value) {
                        return Err(format!("{} is {value}, expected {} to {}", stringify!($name), $min, $max));
                    }
                    self.$name = value;
                })*
                Ok(self)
            }
        }

        impl Settings {
            /// Sets one by its name, as a person types it. Errors, in words, on another name or what is no number of its type.
            pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
                match name {
                    $(stringify!($name) => {
                        self.$name = Some(value.parse().map_err(|_| format!("{name} is {value:?}, expected a number from {} to {}", $min, $max))?);
                    })*
                    _ => return Err(format!("there is no setting {name:?}; there are {}", Thresholds::NAMES.join(", "))),
                }
                Ok(())
            }
        }
    };
}

settings! {
    /// Share of a GPU's memory that may be reserved, basis points 1..=10000.
    vram_limit_bp: u32 = 10_000, 1 => 10_000;
    /// Memory in use below which a drained GPU counts as free, bytes.
    free_memory_bytes_max: u64 = 1 << 30, 0 => u64::MAX;
    /// How long a drained GPU must look free, ms.
    free_after_ms: u64 = 30_000, 0 => 86_400_000;
    /// How late a live sample may be and still open a part of its closed window, ms. Readers call a window final after an hour, so no more.
    lateness_ms: u64 = 3_600_000, 0 => 3_600_000;
    /// The same for samples of a backlog, ms: at most as long as the log is kept.
    backfill_ms: u64 = 259_200_000, 0 => 259_200_000;
    /// How long a late part of a window stays open, ms of live clock.
    late_part_ms: u64 = 60_000, 1_000 => 3_600_000;
    /// How long after log time has passed its end a window closes whatever the watermark says, ms of live clock.
    close_delay_ms: u64 = 60_000, 1_000 => 600_000;
    /// How far the watermark stays behind a host's newest sample, ms.
    disorder_ms: u64 = 2_000, 0 => 60_000;
    /// A host or GPU is stale when it was silent for so many of its intervals …
    stale_intervals: u32 = 3, 1 => 1_000;
    /// … and this long beyond, ms of live clock.
    stale_extra_ms: u64 = 5_000, 0 => 3_600_000;
    /// It is lost when it was silent for so many of its intervals …
    lost_intervals: u32 = 6, 1 => 10_000;
    /// … and for at least this long, ms of live clock.
    lost_ms: u64 = 90_000, 1_000 => 86_400_000;
    /// Margin to its temperature limit below which a GPU takes nothing new, mK …
    thermal_pause_mk: u32 = 5_000, 0 => 100_000;
    /// … and above which it does again, mK.
    thermal_resume_mk: u32 = 10_000, 0 => 100_000;
    /// Most rows of `rejected` per host and ten seconds of log time; the rest is shown as a number.
    rejected_rows_max: u32 = 100, 1 => 10_000;
    /// Events on OUT about refusals of one source and reason are at least this far apart, ms of live clock.
    rejected_out_every_ms: u64 = 10_000, 100 => 3_600_000;
    /// Requests per second that a tenant may send for long.
    requests_per_s: u32 = 200, 1 => 100_000;
    /// Requests that a tenant may send at once.
    request_burst: u32 = 2_000, 1 => 1_000_000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_within_their_ranges_and_a_value_outside_changes_nothing() {
        let defaults = Thresholds::default();
        let json = serde_json::to_value(defaults).expect("plain numbers");
        let all: Settings = serde_json::from_value(json).expect("every setting in force can be set");
        assert_eq!(defaults.with(&all), Ok(defaults));
        let check = |name: &str, value: &str, expected: &str| {
            let mut change = Settings::default();
            let result = change.set(name, value).and_then(|()| defaults.with(&change).map(|_| ()));
            assert_eq!(result.err().unwrap_or_default(), expected);
        };
        check("lost_ms", "60000", "");
        check("lost_ms", "999", "lost_ms is 999, expected 1000 to 86400000");
        check("vram_limit_bp", "0", "vram_limit_bp is 0, expected 1 to 10000");
        check("vram_limit_bp", "-1", "vram_limit_bp is \"-1\", expected a number from 1 to 10000");
        let mut change = Settings::default();
        assert!(change.set("colour", "1").expect_err("no such setting").contains("lateness_ms"));
    }
}
