//! Alert rules: which signal, beyond which limit, for how long. A rule is a control record; the fold evaluates it.
//!
//! A signal without a value (nothing was measured) neither fires nor resolves a rule. Silence has signals of its own: a rule about
//! `host_silence`, `gpu_silence` or `samples_per_min` is the rule about missing data.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest name of a rule, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest text for people, bytes.
pub const SUMMARY_BYTES_MAX: usize = 256;
/// Longest time that a limit must be passed: a week, s.
pub const FOR_S_MAX: u32 = 7 * 86_400;
/// Longest cool-down: thirty days, s.
pub const COOLDOWN_S_MAX: u32 = 30 * 86_400;

/// When somebody should be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name: 1 to 64 of a-z 0-9 _. A rule of the same name is replaced.
    #[schemars(extend("pattern" = "^[a-z0-9_]{1,64}$"))]
    pub name: String,
    /// How grave it is.
    pub severity: Severity,
    /// What is watched.
    pub signal: Signal,
    /// Beyond which value it fires.
    pub limit: Limit,
    /// At which value it resolves again, which lies on the quiet side of the limit; absent = at the limit.
    #[serde(default)]
    pub clear: Option<i64>,
    /// How long the limit must be passed before it fires, s.
    #[serde(default)]
    pub for_s: u32,
    /// How long it stays quiet after it has resolved, s.
    #[serde(default)]
    pub cooldown_s: u32,
    /// For people, at most 256 bytes.
    #[serde(default)]
    pub summary: Option<String>,
}

/// How grave an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
    /// Drop everything.
    Emergency,
}

impl Severity {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Emergency => "emergency",
        }
    }
}

/// Beyond which value a rule fires; the value itself does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Fires above it.
    Above(#[schemars(extend("description" = "Fires above it."))] i64),
    /// Fires below it.
    Below(#[schemars(extend("description" = "Fires below it."))] i64),
}

impl Limit {
    /// The value itself.
    pub const fn value(self) -> i64 {
        match self {
            Self::Above(value) | Self::Below(value) => value,
        }
    }
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each GPU.
    Gpu,
    /// Each host.
    Host,
    /// The cell.
    Cell,
}

impl Scope {
    /// The snake_case name in SQL.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Host => "host",
            Self::Cell => "cell",
        }
    }
}

/// When a signal gets a value, and on which clock it is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// With every 10 s window of a GPU that closes and holds samples; on the clock of the windows.
    Window,
    /// When the state of a GPU or host changes; on the live clock.
    State,
    /// Once a minute of live clock; on the live clock.
    Minute,
}

macro_rules! signals {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $scope:ident, $basis:ident;)*) => {
        /// What is watched: always an integer, or nothing where nothing is known.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Signal {
            $($(#[$doc])* $name,)*
        }

        impl Signal {
            /// Every signal.
            pub const ALL: &[Signal] = &[$(Signal::$name),*];

            /// The snake_case name in JSON and SQL.
            pub const fn code(self) -> &'static str {
                match self { $(Signal::$name => $code,)* }
            }

            /// What has it.
            pub const fn scope(self) -> Scope {
                match self { $(Signal::$name => Scope::$scope,)* }
            }

            /// When it gets a value.
            pub const fn basis(self) -> Basis {
                match self { $(Signal::$name => Basis::$basis,)* }
            }
        }
    };
}

signals! {
    /// Mean utilisation of a window, percent.
    UtilPercent = "util_percent", Gpu, Window;
    /// Greatest memory in use of a window as a share of the GPU's memory, basis points.
    MemoryUsedBp = "memory_used_bp", Gpu, Window;
    /// Greatest temperature of a window, °C.
    TemperatureC = "temperature_c", Gpu, Window;
    /// How far the greatest temperature of a window was below the GPU's slowdown temperature, °C; no value where that is unknown.
    ThermalMarginC = "thermal_margin_c", Gpu, Window;
    /// Greatest power of a window, mW.
    PowerMw = "power_mw", Gpu, Window;
    /// Share of a window's leased time in which the GPU was idle, percent; 0 where it was not leased.
    IdleAllocatedPercent = "idle_allocated_percent", Gpu, Window;
    /// Samples that came of those the interval promised in a window, percent.
    CoveragePercent = "coverage_percent", Gpu, Window;
    /// Share of a window slowed down by heat, percent.
    ThrottleThermalPercent = "throttle_thermal_percent", Gpu, Window;
    /// Share of a window slowed down by a power limit, percent.
    ThrottlePowerPercent = "throttle_power_percent", Gpu, Window;
    /// XID events of a window.
    XidCount = "xid_count", Gpu, Window;
    /// What the hardware says, heat apart: 0 well, 1 degraded, 2 failed.
    GpuHealth = "gpu_health", Gpu, State;
    /// How silent a GPU is: 0 heard, 1 stale, 2 lost; no value while its whole host is silent.
    GpuSilence = "gpu_silence", Gpu, State;
    /// How silent a host is: 0 heard, 1 stale, 2 lost.
    HostSilence = "host_silence", Host, State;
    /// Samples that came in the last minute; no value before the first one ever.
    SamplesPerMin = "samples_per_min", Cell, Minute;
    /// Share of them that was refused, percent; no value without samples.
    RejectedPercent = "rejected_percent", Cell, Minute;
    /// GPUs that could take a placement now; no value without GPUs.
    PlaceableGpus = "placeable_gpus", Cell, Minute;
    /// Share of the GPUs that could take a placement now, percent; no value without GPUs.
    PlaceablePercent = "placeable_percent", Cell, Minute;
    /// Hosts that are lost.
    HostsLost = "hosts_lost", Cell, Minute;
}

impl Rule {
    /// Whether a value lies beyond the limit.
    pub const fn fires_at(&self, value: i64) -> bool {
        match self.limit {
            Limit::Above(limit) => value > limit,
            Limit::Below(limit) => value < limit,
        }
    }

    /// Whether a value lets a firing alert resolve: at `clear`, or further on the quiet side.
    pub const fn clears_at(&self, value: i64) -> bool {
        let clear = match self.clear {
            Some(clear) => clear,
            None => self.limit.value(),
        };
        match self.limit {
            Limit::Above(_) => value <= clear,
            Limit::Below(_) => value >= clear,
        }
    }

    /// Whether the rule can be used; if not, what is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        let name = self.name.as_bytes();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_') {
            let shown: String = self.name.chars().take(NAME_BYTES_MAX).collect();
            return Err(format!("the name {shown:?} is not 1 to {NAME_BYTES_MAX} of a-z 0-9 _"));
        }
        let name = &self.name;
        match (self.limit, self.clear) {
            (Limit::Above(limit), Some(clear)) if clear > limit => {
                return Err(format!("{name} fires above {limit} but clears at {clear}: it must clear at or below its limit"));
            }
            (Limit::Below(limit), Some(clear)) if clear < limit => {
                return Err(format!("{name} fires below {limit} but clears at {clear}: it must clear at or above its limit"));
            }
            (Limit::Above(_) | Limit::Below(_), _) => {}
        }
        if self.for_s > FOR_S_MAX {
            return Err(format!("{name} must hold for {} s, at most {FOR_S_MAX}", self.for_s));
        }
        if self.cooldown_s > COOLDOWN_S_MAX {
            return Err(format!("{name} cools down for {} s, at most {COOLDOWN_S_MAX}", self.cooldown_s));
        }
        match &self.summary {
            Some(summary) if summary.len() > SUMMARY_BYTES_MAX => {
                Err(format!("the summary of {name} has {} bytes, at most {SUMMARY_BYTES_MAX}", summary.len()))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// The rules that hold until an operator says otherwise.
pub fn defaults() -> Vec<Rule> {
    use Limit::{Above, Below};
    use Severity::{Critical, Emergency, Info, Warning};
    let rule = |name: &str, severity, signal, limit, clear, (for_s, cooldown_s), summary: &str| Rule {
        name: name.to_owned(),
        severity,
        signal,
        limit,
        clear,
        for_s,
        cooldown_s,
        summary: Some(summary.to_owned()),
    };
    vec![
        rule("host_lost", Critical, Signal::HostSilence, Above(1), Some(0), (0, 300), "The host is not heard from"),
        rule("gpu_lost", Critical, Signal::GpuSilence, Above(1), Some(0), (0, 300), "The GPU is not heard from, its host is"),
        rule("gpu_degraded", Warning, Signal::GpuHealth, Above(0), None, (0, 300), "The GPU works with a fault"),
        rule("gpu_failed", Critical, Signal::GpuHealth, Above(1), None, (0, 300), "The GPU needs a reset or a repair"),
        rule("gpu_memory_high", Critical, Signal::MemoryUsedBp, Above(9_000), Some(8_500), (60, 300), "More than 90 % of the memory is in use"),
        rule("gpu_memory_full", Emergency, Signal::MemoryUsedBp, Above(9_500), Some(9_000), (60, 300), "More than 95 % of the memory is in use"),
        rule("gpu_hot", Warning, Signal::TemperatureC, Above(90), Some(85), (60, 300), "Hotter than 90 °C"),
        rule("gpu_near_slowdown", Critical, Signal::ThermalMarginC, Below(5), Some(10), (30, 300), "Less than 5 °C below its slowdown temperature"),
        rule("gpu_throttled", Warning, Signal::ThrottleThermalPercent, Above(10), Some(0), (300, 600), "Heat slows the GPU down"),
        rule("gpu_idle_leased", Warning, Signal::IdleAllocatedPercent, Above(90), Some(50), (900, 3_600), "Leased and idle for a quarter of an hour"),
        rule("coverage_low", Warning, Signal::CoveragePercent, Below(50), Some(80), (300, 600), "Half of the samples are missing"),
        rule("no_samples", Warning, Signal::SamplesPerMin, Below(1), None, (0, 600), "No sample came for a minute"),
        rule("samples_refused", Critical, Signal::RejectedPercent, Above(10), Some(5), (0, 300), "More than a tenth of the samples is refused"),
        rule("fleet_full", Info, Signal::PlaceablePercent, Below(5), Some(10), (300, 3_600), "Under 5 % of the GPUs could take a placement"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_can_be_used_and_no_two_share_a_name() {
        let rules = defaults();
        for rule in &rules {
            assert_eq!(rule.check(), Ok(()), "{}", rule.name);
        }
        let names: std::collections::BTreeSet<_> = rules.iter().map(|rule| &rule.name).collect();
        assert_eq!(names.len(), rules.len());
    }

    #[test]
    fn code_and_json_name_of_every_signal_agree() {
        for &signal in Signal::ALL {
            assert_eq!(serde_json::to_value(signal).expect("plain enum"), signal.code());
        }
    }

    #[test]
    fn a_rule_that_cannot_work_says_why() {
        let rule = defaults().remove(6);
        let check = |change: &dyn Fn(&mut Rule), expected: &str| {
            let mut rule = rule.clone();
            change(&mut rule);
            let error = rule.check().expect_err(expected);
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        };
        check(&|rule| rule.name.clear(), "is not 1 to 64 of a-z 0-9 _");
        check(&|rule| rule.name = "a.b".to_owned(), "is not 1 to 64 of a-z 0-9 _");
        check(&|rule| rule.clear = Some(91), "fires above 90 but clears at 91");
        check(&|rule| rule.limit = Limit::Below(95), "fires below 95 but clears at 85");
        check(&|rule| rule.for_s = u32::MAX, "at most 604800");
        check(&|rule| rule.cooldown_s = u32::MAX, "at most 2592000");
        check(&|rule| rule.summary = Some("x".repeat(257)), "257 bytes");
    }

    #[test]
    fn exactly_at_the_limit_does_not_fire_and_between_clear_and_limit_nothing_changes() {
        let rule = defaults().remove(6);
        let at = |value| (rule.fires_at(value), rule.clears_at(value));
        assert_eq!([at(91), at(90), at(86), at(85)], [(true, false), (false, false), (false, false), (false, true)]);
    }
}
