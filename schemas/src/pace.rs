//! Pace: how fast requests may come, how much of a GPU their jobs should use, and when load pauses everybody. *Throttle* is what a GPU
//! does to its clocks; pace is what we do. Of a cell or of one tenant; a control record sets it.
//!
//! The processor enforces the interval between placements and the pause. The other limits are advice to whoever runs the jobs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::TenantId;

/// Longest interval between two requests: an hour, ms.
pub const REQUEST_INTERVAL_MS_MAX: u32 = 3_600_000;
/// Most requests in one batch.
pub const BATCH_SIZE_MAX: u32 = 1_000_000;
/// Everything, in basis points.
pub const BP_MAX: u32 = 10_000;
/// How far a low threshold lies below its high one unless told, basis points.
pub const HYSTERESIS_BP: u32 = 1_000;
/// Shortest time between two looks at the load, and shortest pause, ms. Both are whole seconds.
pub const SECOND_MS: u32 = 1_000;
/// Longest time between two looks at the load: an hour, ms.
pub const CHECK_MS_MAX: u32 = 3_600_000;
/// Most looks in a row before a pause.
pub const CHECKS_MAX: u32 = 1_000;
/// Longest pause: a day, ms.
pub const PAUSE_MS_MAX: u32 = 86_400_000;

/// What becomes of a request that comes too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is refused, and costs the next one nothing.
    Refuse,
    /// It waits for the next free slot.
    Queue,
}

/// The limits that hold for a cell or a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pace {
    /// What becomes of a request that comes too early.
    pub mode: Mode,
    /// Least time between two placement requests, ms of live clock; 0 = no limit. Enforced.
    #[schemars(range(max = REQUEST_INTERVAL_MS_MAX))]
    pub min_request_interval_ms: u32,
    /// Most requests that a job should serve in one batch. Advice.
    #[schemars(range(min = 1, max = BATCH_SIZE_MAX))]
    pub max_batch_size: u32,
    /// Share of a GPU's memory that jobs should use at most, basis points. Advice.
    #[schemars(range(min = 1, max = BP_MAX))]
    pub max_vram_bp: u32,
    /// Share of a GPU's time that jobs should use at most, basis points. Advice.
    #[schemars(range(min = 1, max = BP_MAX))]
    pub max_compute_bp: u32,
    /// Scheduling priority that jobs should run at: -20 first, 19 last. Advice.
    #[schemars(range(min = -20, max = 19))]
    pub nice: i32,
    /// I/O priority class that jobs should run in: 1 real time, 2 best effort, 3 idle. Advice.
    #[schemars(range(max = 3))]
    pub io_class: u32,
    /// I/O priority within its class: 0 first, 7 last. Advice.
    #[schemars(range(max = 7))]
    pub io_level: u32,
    /// Whether load pauses placements. Enforced, by the thresholds and times below.
    pub adaptive: bool,
    /// Mean utilisation of the GPUs above which placements pause, basis points …
    #[schemars(range(min = 1, max = BP_MAX))]
    pub util_high_bp: u32,
    /// … and below which they go on; absent = 1000 basis points lower.
    #[serde(default)]
    #[schemars(range(min = 1, max = BP_MAX))]
    pub util_low_bp: Option<u32>,
    /// Mean share of the GPUs' memory in use above which placements pause, basis points …
    #[schemars(range(min = 1, max = BP_MAX))]
    pub memory_high_bp: u32,
    /// … and below which they go on; absent = 1000 basis points lower.
    #[serde(default)]
    #[schemars(range(min = 1, max = BP_MAX))]
    pub memory_low_bp: Option<u32>,
    /// Load per CPU core above which a host should take no more work, basis points. Advice: the cell does not measure it.
    #[schemars(range(min = 1, max = BP_MAX))]
    pub cpu_load_high_bp: u32,
    /// How often the load is looked at, ms of live clock, whole seconds.
    #[schemars(range(min = SECOND_MS, max = CHECK_MS_MAX), extend("multipleOf" = 1000))]
    pub check_ms: u32,
    /// How many looks in a row must find it too high before placements pause.
    #[schemars(range(min = 1, max = CHECKS_MAX))]
    pub checks: u32,
    /// How long a pause lasts at least, ms of live clock, whole seconds.
    #[schemars(range(min = SECOND_MS, max = PAUSE_MS_MAX), extend("multipleOf" = 1000))]
    pub pause_ms: u32,
}

/// A pace by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Leaves half of everything to others.
    Conservative,
    /// Between the two.
    Default,
    /// Takes nearly everything, at any rate.
    Aggressive,
}

impl Preset {
    /// Its limits.
    pub const fn pace(self) -> Pace {
        match self {
            Self::Conservative => Pace {
                mode: Mode::Refuse,
                min_request_interval_ms: 100,
                max_batch_size: 2,
                max_vram_bp: 5_000,
                max_compute_bp: 6_000,
                nice: 15,
                io_class: 3,
                io_level: 7,
                adaptive: true,
                util_high_bp: 6_000,
                util_low_bp: None,
                memory_high_bp: 8_000,
                memory_low_bp: None,
                cpu_load_high_bp: 5_000,
                check_ms: 3_000,
                checks: 3,
                pause_ms: 60_000,
            },
            Self::Default => Pace {
                mode: Mode::Refuse,
                min_request_interval_ms: 50,
                max_batch_size: 4,
                max_vram_bp: 7_000,
                max_compute_bp: 8_000,
                nice: 10,
                io_class: 3,
                io_level: 7,
                adaptive: true,
                util_high_bp: 8_000,
                util_low_bp: None,
                memory_high_bp: 9_000,
                memory_low_bp: None,
                cpu_load_high_bp: 7_000,
                check_ms: 5_000,
                checks: 3,
                pause_ms: 30_000,
            },
            Self::Aggressive => Pace {
                mode: Mode::Refuse,
                min_request_interval_ms: 0,
                max_batch_size: 16,
                max_vram_bp: 9_500,
                max_compute_bp: 9_500,
                nice: 0,
                io_class: 2,
                io_level: 4,
                adaptive: false,
                util_high_bp: 9_500,
                util_low_bp: None,
                memory_high_bp: 9_500,
                memory_low_bp: None,
                cpu_load_high_bp: 9_000,
                check_ms: 10_000,
                checks: 3,
                pause_ms: 15_000,
            },
        }
    }
}

impl Pace {
    /// Mean utilisation below which placements go on, basis points.
    pub fn util_low_bp(&self) -> u32 {
        self.util_low_bp.unwrap_or_else(|| low_of(self.util_high_bp))
    }

    /// Mean share of memory below which placements go on, basis points.
    pub fn memory_low_bp(&self) -> u32 {
        self.memory_low_bp.unwrap_or_else(|| low_of(self.memory_high_bp))
    }

    /// Whether the pace can be kept; if not, what is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        let (bp, second) = (i64::from(BP_MAX), i64::from(SECOND_MS));
        let ranges: [(&str, i64, i64, i64); 15] = [
            ("min_request_interval_ms", self.min_request_interval_ms.into(), 0, REQUEST_INTERVAL_MS_MAX.into()),
            ("max_batch_size", self.max_batch_size.into(), 1, BATCH_SIZE_MAX.into()),
            ("max_vram_bp", self.max_vram_bp.into(), 1, bp),
            ("max_compute_bp", self.max_compute_bp.into(), 1, bp),
            ("nice", self.nice.into(), -20, 19),
            ("io_class", self.io_class.into(), 0, 3),
            ("io_level", self.io_level.into(), 0, 7),
            ("util_high_bp", self.util_high_bp.into(), 1, bp),
            ("util_low_bp", self.util_low_bp().into(), 1, bp),
            ("memory_high_bp", self.memory_high_bp.into(), 1, bp),
            ("memory_low_bp", self.memory_low_bp().into(), 1, bp),
            ("cpu_load_high_bp", self.cpu_load_high_bp.into(), 1, bp),
            ("check_ms", self.check_ms.into(), second, CHECK_MS_MAX.into()),
            ("checks", self.checks.into(), 1, CHECKS_MAX.into()),
            ("pause_ms", self.pause_ms.into(), second, PAUSE_MS_MAX.into()),
        ];
        if let Some((name, value, min, max)) = ranges.into_iter().find(|&(_, value, min, max)| !(min..=max).contains(&value)) {
            return Err(format!("{name} is {value}, expected {min} to {max}"));
        }
        for (name, value) in [("check_ms", self.check_ms), ("pause_ms", self.pause_ms)] {
            if value % SECOND_MS != 0 {
                return Err(format!("{name} is {value}, expected whole seconds"));
            }
        }
        for (name, high, low) in [("util", self.util_high_bp, self.util_low_bp()), ("memory", self.memory_high_bp, self.memory_low_bp())] {
            if low >= high {
                return Err(format!("{name}_low_bp is {low}, expected less than {name}_high_bp, which is {high}"));
            }
        }
        Ok(())
    }
}

fn low_of(high_bp: u32) -> u32 {
    high_bp.saturating_sub(HYSTERESIS_BP).max(1)
}

/// Whom a pace holds for, as `policies` and events name it: `cell` or `tenant/<id>`.
pub fn scope_name(tenant: Option<&TenantId>) -> String {
    tenant.map_or_else(|| "cell".to_owned(), |tenant| format!("tenant/{tenant}"))
}

/// What [`scope_name`] stands for; absent if it is none.
pub fn parse_scope(name: &str) -> Option<Option<TenantId>> {
    match name.strip_prefix("tenant/") {
        Some(tenant) => tenant.parse().ok().map(Some),
        None => (name == "cell").then_some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_named_cell_is_not_the_cell() {
        for tenant in [None, Some("cell".parse().expect("valid"))] {
            assert_eq!(parse_scope(&scope_name(tenant.as_ref())), Some(tenant));
        }
        assert_eq!([parse_scope("tenant/a.b"), parse_scope("host/a")], [None, None]);
    }

    #[test]
    fn every_preset_can_be_kept_and_low_is_ten_points_below_high() {
        let presets = [Preset::Conservative, Preset::Default, Preset::Aggressive].map(Preset::pace);
        for pace in presets {
            assert_eq!(pace.check(), Ok(()));
        }
        assert_eq!(presets.map(|pace| (pace.util_low_bp(), pace.memory_low_bp())), [(5_000, 7_000), (7_000, 8_000), (8_500, 8_500)]);
        assert_eq!(presets.map(|pace| pace.min_request_interval_ms), [100, 50, 0]);
    }

    #[test]
    fn a_pace_that_cannot_be_kept_names_field_value_and_range() {
        let check = |change: &dyn Fn(&mut Pace), expected: &str| {
            let mut pace = Preset::Default.pace();
            change(&mut pace);
            assert_eq!(pace.check().err().unwrap_or_default(), expected);
        };
        check(&|p| p.min_request_interval_ms = 0, "");
        check(&|p| p.min_request_interval_ms = 3_600_001, "min_request_interval_ms is 3600001, expected 0 to 3600000");
        check(&|p| p.max_batch_size = 0, "max_batch_size is 0, expected 1 to 1000000");
        check(&|p| p.max_vram_bp = 0, "max_vram_bp is 0, expected 1 to 10000");
        check(&|p| p.max_compute_bp = 10_001, "max_compute_bp is 10001, expected 1 to 10000");
        check(&|p| p.nice = -21, "nice is -21, expected -20 to 19");
        check(&|p| p.io_class = 4, "io_class is 4, expected 0 to 3");
        check(&|p| p.io_level = 8, "io_level is 8, expected 0 to 7");
        check(&|p| p.util_high_bp = 10_001, "util_high_bp is 10001, expected 1 to 10000");
        check(&|p| p.memory_low_bp = Some(0), "memory_low_bp is 0, expected 1 to 10000");
        check(&|p| p.util_low_bp = Some(8_000), "util_low_bp is 8000, expected less than util_high_bp, which is 8000");
        check(&|p| p.memory_high_bp = 1, "memory_low_bp is 1, expected less than memory_high_bp, which is 1");
        check(&|p| p.cpu_load_high_bp = 0, "cpu_load_high_bp is 0, expected 1 to 10000");
        check(&|p| p.check_ms = 999, "check_ms is 999, expected 1000 to 3600000");
        check(&|p| p.check_ms = 1_500, "check_ms is 1500, expected whole seconds");
        check(&|p| p.checks = 0, "checks is 0, expected 1 to 1000");
        check(&|p| p.pause_ms = 0, "pause_ms is 0, expected 1000 to 86400000");
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused() {
        let mut json = serde_json::to_value(Preset::Default.pace()).expect("plain numbers");
        assert_eq!(serde_json::from_value::<Pace>(json.clone()).expect("its own JSON"), Preset::Default.pace());
        json["colour"] = 1.into();
        assert!(serde_json::from_value::<Pace>(json).expect_err("no such field").to_string().contains("colour"));
    }
}
