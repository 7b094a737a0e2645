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

            /// These settings with a change. Errors, in words, on the first value outside its range and on settings that contradict each
            /// other; then nothing changes.
            pub fn with(mut self, change: &Settings) -> Result<Self, String> {
                change.check()?;
                $(self.$name = change.$name.unwrap_or(self.$name);)*
                self.agree()?;
                Ok(self)
            }
        }

        impl Settings {
            /// Errors, in words, on the first value outside its range. Whether it agrees with the other settings, only those in force can say.
            pub fn check(&self) -> Result<(), String> {
                $(if let Some(value) = self.$name {
                    if !($min..=$max).contains(&value) {
                        return Err(format!("{} is {value}, expected {} to {}", stringify!($name), $min, $max));
                    }
                })*
                Ok(())
            }

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
    /// How long a hole in a host's numbering may be mere disorder before it is a gap, ms of live clock.
    gap_grace_ms: u64 = 5_000, 0 => 600_000;
    /// A gap is asked for when it opens, again after this long, then after twice as long each time, …
    gap_ask_ms: u64 = 5_000, 1_000 => 600_000;
    /// … but at least this often, ms of live clock.
    gap_ask_ms_max: u64 = 120_000, 1_000 => 3_600_000;
    /// What a gap misses is lost when it was open for this long, ms of live clock.
    gap_open_ms_max: u64 = 900_000, 1_000 => 86_400_000;
    /// Utilisation below which a GPU is idle, percent …
    idle_below_percent: u32 = 5, 1 => 100;
    /// … and from which on it is busy; between the two it stays what it was.
    busy_from_percent: u32 = 10, 1 => 100;
    /// Least length of an episode of being busy, idle, or leased and idle, and the longest pause in it, ms; three of the host's intervals
    /// where those are longer.
    load_episode_ms: u64 = 30_000, 1_000 => 3_600_000;
    /// The same for an episode of throttling, ms.
    throttle_episode_ms: u64 = 30_000, 1_000 => 3_600_000;
    /// Most rows of `rejected` per host and ten seconds of log time; the rest is shown as a number.
    rejected_rows_max: u32 = 100, 1 => 10_000;
    /// Events on OUT about refusals of one source and reason are at least this far apart, ms of live clock.
    rejected_out_every_ms: u64 = 10_000, 100 => 3_600_000;
    /// How long a leased GPU must be idle and empty before its lease is said to be unused, ms.
    lease_unused_ms: u64 = 600_000, 60_000 => 86_400_000;
    /// How long a GPU must have been heard since it was registered before anything is placed on it, ms of live clock.
    warm_up_ms: u64 = 2_000, 0 => 3_600_000;
    /// Requests per second that a tenant may send for long.
    requests_per_s: u32 = 200, 1 => 100_000;
    /// Requests that a tenant may send at once.
    request_burst: u32 = 2_000, 1 => 1_000_000;
}

impl Thresholds {
    /// Errors, in words, on the first two settings of which one makes the other senseless.
    fn agree(&self) -> Result<(), String> {
        let at_least = [
            // What pauses a GPU must not let it go on.
            ("thermal_resume_mk", u64::from(self.thermal_resume_mk), "thermal_pause_mk", u64::from(self.thermal_pause_mk)),
            // A GPU is not idle and busy at once.
            ("busy_from_percent", u64::from(self.busy_from_percent), "idle_below_percent", u64::from(self.idle_below_percent)),
            // Pauses grow, and what is never asked for again needs none.
            ("gap_ask_ms_max", self.gap_ask_ms_max, "gap_ask_ms", self.gap_ask_ms),
            ("gap_open_ms_max", self.gap_open_ms_max, "gap_ask_ms", self.gap_ask_ms),
        ];
        match at_least.into_iter().find(|(_, greater, _, lesser)| greater < lesser) {
            Some((name, greater, other, lesser)) => Err(format!("{name} is {greater}, expected at least {other}, which is {lesser}")),
            None => Ok(()),
        }
    }
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
        check("gap_open_ms_max", "999", "gap_open_ms_max is 999, expected 1000 to 86400000");
        let mut change = Settings::default();
        assert!(change.set("colour", "1").expect_err("no such setting").contains("lateness_ms"));
    }
    #[test]
    fn settings_that_contradict_each_other_are_refused_and_both_are_named() {
        let check = |changes: &[(&str, &str)], expected: &str| {
            let mut change = Settings::default();
            changes.iter().for_each(|(name, value)| change.set(name, value).expect("a setting"));
            assert_eq!(change.check(), Ok(()), "each is within its range");
            assert_eq!(Thresholds::default().with(&change).err().unwrap_or_default(), expected);
        };
        check(&[("thermal_resume_mk", "4999")], "thermal_resume_mk is 4999, expected at least thermal_pause_mk, which is 5000");
        check(&[("thermal_pause_mk", "10001")], "thermal_resume_mk is 10000, expected at least thermal_pause_mk, which is 10001");
        check(&[("thermal_pause_mk", "10001"), ("thermal_resume_mk", "10001")], "");
        check(&[("idle_below_percent", "11")], "busy_from_percent is 10, expected at least idle_below_percent, which is 11");
        check(&[("idle_below_percent", "50"), ("busy_from_percent", "50")], "");
        check(&[("gap_ask_ms_max", "4000")], "gap_ask_ms_max is 4000, expected at least gap_ask_ms, which is 5000");
        check(&[("gap_open_ms_max", "4000")], "gap_open_ms_max is 4000, expected at least gap_ask_ms, which is 5000");
        check(&[("gap_open_ms_max", "4000"), ("gap_ask_ms", "4000")], "");
    }
}
