//! The fault script of a simulated fleet: what goes wrong, where, from which tick and for how long. TOML (`[[fault]]`) or a JSON list.

use serde::Deserialize;

use plimsoll_schemas::id::GpuUuid;
use plimsoll_schemas::reading::Number;
use plimsoll_schemas::sample::{Field, ZERO_CELSIUS_MK};

use crate::source::GpuReading;

/// Why a script cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("fault script {file}: {why}")]
pub struct ScriptError {
    file: String,
    why: String,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// Values that real drivers and exporters have given and that cannot be.
    BadValues,
    /// Numbers that stand for "no value".
    Sentinels,
    /// The GPUs (without `gpus`: the whole host) are not there.
    Vanish,
    /// An XID at the first tick.
    Xid {
        /// NVIDIA's number.
        code: u32,
    },
    /// Frames arrive that many ticks later.
    Late {
        /// Ticks.
        #[serde(default = "fifteen")]
        ticks: u32,
        /// Marked as backfill.
        #[serde(default)]
        backfill: bool,
    },
    /// Every frame is sent twice.
    Duplicate,
    /// The host's wall clock stands that much ahead.
    ClockStep {
        /// Milliseconds, may be negative.
        step_ms: i64,
    },
}

fn fifteen() -> u32 {
    15
}

/// One line of the script.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Fault {
    /// What goes wrong.
    #[serde(flatten)]
    pub kind: Kind,
    /// On which host; absent = on all. A trailing `*` stands for any rest.
    #[serde(default)]
    pub host: Option<String>,
    /// On which GPUs by number; none = all.
    #[serde(default)]
    pub gpus: Vec<usize>,
    /// First tick.
    pub from_tick: u64,
    /// For how many ticks.
    #[serde(default = "one")]
    pub for_ticks: u64,
}

fn one() -> u64 {
    1
}

/// The whole script.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Its lines.
    #[serde(default)]
    pub fault: Vec<Fault>,
}

impl Script {
    /// Reads a script: a JSON list if the file is named `*.json`, else TOML.
    pub fn parse(file: &str, text: &str) -> Result<Self, ScriptError> {
        let error = |why: String| ScriptError { file: file.to_owned(), why };
        if file.ends_with(".json") {
            let fault = serde_json::from_str::<Vec<Fault>>(text).map_err(|e| error(e.to_string()))?;
            return Ok(Self { fault });
        }
        toml::from_str(text).map_err(|e| error(e.to_string()))
    }

    /// What goes wrong on a host at a tick.
    pub fn active<'a>(&'a self, host: &'a str, tick: u64) -> impl Iterator<Item = &'a Fault> + 'a {
        self.fault.iter().filter(move |fault| {
            let here = match fault.host.as_deref() {
                None => true,
                Some(pattern) => pattern.strip_suffix('*').map_or(pattern == host, |start| host.starts_with(start)),
            };
            here && tick >= fault.from_tick && tick - fault.from_tick < fault.for_ticks
        })
    }
}

impl Fault {
    fn hits(&self, gpu: usize) -> bool {
        self.gpus.is_empty() || self.gpus.contains(&gpu)
    }

    /// The UUIDs of the GPUs it hits.
    pub fn uuids(&self, gpus: &[GpuReading]) -> Vec<GpuUuid> {
        gpus.iter().enumerate().filter(|(gpu, _)| self.hits(*gpu)).map(|(_, reading)| reading.uuid.clone()).collect()
    }
}

/// A field and what it shows.
type Wrong = (Field, Number);

const fn celsius(value: i128) -> Number {
    Number::Int(value * 1_000 + ZERO_CELSIUS_MK as i128)
}

/// Values published by users of real exporters (dcgm-exporter issues 418 and 312, DCGM issue 199), one after the other.
pub const BAD_VALUES: &[Wrong] = &[
    (Field::UtilPercent, Number::Int(808_334_905)),
    (Field::UtilPercent, Number::Int(686_103)),
    (Field::UtilPercent, Number::Int(2_619)),
    (Field::UtilPercent, Number::Int(101)),
    (Field::UtilPercent, Number::Int(-1)),
    (Field::TemperatureMk, celsius(345)),
    (Field::TemperatureMk, celsius(82_505)),
    (Field::TemperatureMk, celsius(4_278_190_080)),
    (Field::TemperatureMk, celsius(-300)),
    (Field::PowerMw, Number::Float(f64::NAN)),
    (Field::PowerMw, Number::Float(f64::INFINITY)),
    (Field::PowerMw, Number::Int(9_000_000)),
    (Field::PowerMw, Number::Int(-5_000)),
    (Field::SmClockMhz, Number::Int(65_535)),
    (Field::MemoryUsedBytes, Number::Int(-1)),
    (Field::MemoryUsedBytes, Number::Int(1 << 50)),
    (Field::MemoryTotalBytes, Number::Int(0)),
    (Field::MemoryTotalBytes, Number::Int(17 << 30)),
];

/// Numbers that DCGM and NVML give for "no value".
pub const SENTINELS: &[Wrong] = &[
    (Field::UtilPercent, Number::Int(0x7fff_ffff_ffff_fff2)),
    (Field::MemoryTemperatureMk, Number::Int(0x7fff_ffff_ffff_fff0)),
    (Field::PowerMw, Number::Float(140_737_488_355_328.0)),
    (Field::TemperatureMk, Number::Int(0x7fff_fff3)),
    (Field::SmClockMhz, Number::Int(u32::MAX as i128)),
    (Field::MemoryUsedBytes, Number::Int(u64::MAX as i128)),
    (Field::ThrottleBits, Number::Float(9.223_372_036_854_776e18)),
];

/// Puts one wrong value after the other into the readings the fault hits.
pub fn spoil(gpus: &mut [GpuReading], fault: &Fault, tick: u64, wrong: &[Wrong]) {
    for (gpu, reading) in gpus.iter_mut().enumerate().filter(|(gpu, _)| fault.hits(*gpu)) {
        let (field, value) = wrong[(tick as usize + gpu) % wrong.len()];
        reading.reading.set(field, value);
    }
}

/// Takes the GPUs the fault hits away.
pub fn vanish(gpus: &mut Vec<GpuReading>, fault: &Fault) {
    let mut gpu = 0;
    gpus.retain(|_| {
        gpu += 1;
        !fault.hits(gpu - 1)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_in_toml_and_in_json_means_the_same() {
        let toml = r#"
            [[fault]]
            kind = "xid"
            code = 79
            host = "sim-0002"
            gpus = [3]
            from_tick = 10

            [[fault]]
            kind = "late"
            host = "sim-*"
            from_tick = 20
            for_ticks = 5
        "#;
        let json = r#"[{"kind":"xid","code":79,"host":"sim-0002","gpus":[3],"from_tick":10},
                       {"kind":"late","host":"sim-*","from_tick":20,"for_ticks":5}]"#;
        let script = Script::parse("faults.toml", toml).expect("valid");
        assert_eq!(script, Script::parse("faults.json", json).expect("valid"));
        assert_eq!(script.active("sim-0002", 10).count(), 1);
        assert_eq!(script.active("sim-0001", 10).count(), 0);
        assert_eq!(script.active("sim-0001", 24).count(), 1);
        assert_eq!(script.active("sim-0001", 25).count(), 0);
    }

    #[test]
    fn a_wrong_script_is_refused_by_name() {
        let error = Script::parse("f.toml", "[[fault]]\nkind = \"explode\"\nfrom_tick = 1").expect_err("unknown kind").to_string();
        assert!(error.contains("f.toml") && error.contains("explode"), "{error}");
    }
}
