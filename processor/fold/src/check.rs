//! Validation of samples in the fold: integers are compared with bounds; only what looks wrong goes to the one validator, which names it.

use plimsoll_schemas::inventory::Gpu;
use plimsoll_schemas::reading::Reading;
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime};
use plimsoll_schemas::validate::{CAPACITY_TOLERANCE_BYTES, Context, FUTURE_MS_PROCESSOR, POWER_MAX_MW, Registered, Violation, validate};

/// The smallest number that any source uses as a sentinel (DCGM's int32 blank); below it there is none.
const SENTINEL_MIN: u64 = 0x7fff_fff0;

/// Bounds of one GPU's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    total_min: u64,
    total_max: u64,
    power_max_mw: u64,
}

impl Limits {
    /// From what is registered.
    pub fn of(gpu: &Gpu) -> Self {
        let (total_min, total_max) = match gpu.memory_total_bytes {
            Some(total) => (total.saturating_sub(CAPACITY_TOLERANCE_BYTES).max(1), total.saturating_add(CAPACITY_TOLERANCE_BYTES)),
            None => (1, Field::MemoryTotalBytes.max()),
        };
        Self { total_min, total_max, power_max_mw: gpu.power_limit_max_mw.map_or(POWER_MAX_MW, |limit| limit.saturating_mul(2)) }
    }

    /// Whether every value is certainly one the validator would let pass. May say no where it would.
    fn pass(&self, sample: &Sample) -> bool {
        // A wire value is the value + 1, 0 where it is absent: "at most max" and "absent" are one comparison.
        let within = |field: Field, max: u64| sample.wire(field) <= max + 1;
        let plain = |field: Field| sample.wire(field) <= SENTINEL_MIN;
        let total = sample.wire(Field::MemoryTotalBytes);
        within(Field::UtilPercent, 100)
            && within(Field::MemoryUtilPercent, 100)
            && (total == 0 || (self.total_min < total && total - 1 <= self.total_max && !is_sentinel(total - 1)))
            && sample.memory_used_bytes().is_none_or(|used| used < total.max(1) && !is_sentinel(used) || total == 0 && used < SENTINEL_MIN)
            && within(Field::PowerMw, self.power_max_mw.min(SENTINEL_MIN - 1))
            && plain(Field::EnergyMj)
            && within(Field::TemperatureMk, Field::TemperatureMk.max())
            && within(Field::MemoryTemperatureMk, Field::MemoryTemperatureMk.max())
            && within(Field::SmClockMhz, Field::SmClockMhz.max())
            && within(Field::MemoryClockMhz, Field::MemoryClockMhz.max())
            && plain(Field::ThrottleBits)
            && within(Field::SmActiveBp, Field::SmActiveBp.max())
            && plain(Field::PcieTxBytesS)
            && plain(Field::PcieRxBytesS)
            && plain(Field::EccUncorrected)
            && within(Field::Procs, Field::Procs.max())
    }

    /// The sample with what is not believed taken out, and why; `None` if all of it is believed.
    #[inline]
    pub fn refused(&self, sample: &Sample, gpu: &Gpu, at: EventTime, logged_at: LogTime) -> Option<(Sample, Vec<Violation>)> {
        if self.pass(sample) { None } else { refused(sample, gpu, at, logged_at) }
    }
}

/// The registered bounds of a GPU.
fn registered(gpu: &Gpu) -> Registered {
    Registered { memory_total_bytes: gpu.memory_total_bytes, power_limit_max_mw: gpu.power_limit_max_mw }
}

/// What the validator says of a sample.
#[cold]
fn refused(sample: &Sample, gpu: &Gpu, at: EventTime, logged_at: LogTime) -> Option<(Sample, Vec<Violation>)> {
    let mut reading = Reading::default();
    for &field in Field::ALL {
        if let Some(value) = sample.get(field) {
            reading.set(field, value);
        }
    }
    let context = Context {
        accepting: true,
        registered: Some(registered(gpu)),
        sampled_at_ns: i128::from(at.0),
        now: EventTime(logged_at.0),
        future_ms: FUTURE_MS_PROCESSOR,
    };
    let verdict = validate(&reading, &context);
    (!verdict.violations.is_empty()).then(|| (verdict.sample.unwrap_or_default(), verdict.violations))
}

/// Whether a value may stand for "no value". Sentinels come in fours that differ in the low two bits, so a few that are none are named too.
fn is_sentinel(value: u64) -> bool {
    const FOURS: [u64; 5] = [0x7fff_fff3, 0xffff_ffff, (1 << 47) + 3, 0x7fff_ffff_ffff_fff3, u64::MAX];
    FOURS.contains(&(value | 3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::id::Slot;
    use proptest::prelude::*;

    fn gpu(total: Option<u64>, power: Option<u64>) -> Gpu {
        Gpu {
            slot: Slot(0),
            uuid: "GPU-1".parse().expect("valid"),
            index: 0,
            model: "m".to_owned(),
            memory_total_bytes: total,
            mig_parent_uuid: None,
            mig_profile: None,
            mig: None,
            arch: None,
            nvlink_domain: None,
            numa_node: None,
            pci_bus_id: None,
            driver_version: None,
            compute_capability: None,
            power_limit_mw: None,
            power_limit_max_mw: power,
            slowdown_temperature_mk: None,
        }
    }

    fn value() -> impl Strategy<Value = u64> {
        prop_oneof![
            0u64..=101,
            300_000u64..430_000,
            Just(80 << 30),
            (80u64 << 30) - 4_000_000..(80 << 30) + 4_000_000,
            0x7fff_ffe0u64..0x8000_0000,
            Just(u64::from(u32::MAX)),
            (1u64 << 47)..(1 << 47) + 5,
            any::<u64>()
        ]
    }

    proptest! {
        #[test]
        fn what_passes_quickly_passes_the_validator(
            fields in proptest::collection::vec((0usize..Field::COUNT, value()), 0..6),
            total in proptest::option::of(Just(80u64 << 30)), power in proptest::option::of(300_000u64..700_000),
        ) {
            let sample = fields.iter().fold(Sample::default(), |s, &(f, v)| s.with(Field::ALL[f], v));
            let gpu = gpu(total, power);
            let limits = Limits::of(&gpu);
            if limits.pass(&sample) {
                let mut reading = Reading::default();
                for &field in Field::ALL {
                    if let Some(v) = sample.get(field) { reading.set(field, v); }
                }
                let now = EventTime(1_800_000_000_000_000_000);
                let context = Context { accepting: true, registered: Some(registered(&gpu)), sampled_at_ns: i128::from(now.0), now, future_ms: 0 };
                prop_assert_eq!(validate(&reading, &context).violations, vec![]);
            }
        }
    }

    #[test]
    fn an_ordinary_sample_takes_the_quick_path() {
        let sample = Sample::default()
            .with(Field::UtilPercent, 100)
            .with(Field::MemoryUsedBytes, 80 << 30)
            .with(Field::MemoryTotalBytes, 80 << 30)
            .with(Field::PowerMw, 700_000)
            .with(Field::TemperatureMk, 340_000)
            .with(Field::ThrottleBits, 0x64);
        assert!(Limits::of(&gpu(Some(80 << 30), Some(700_000))).pass(&sample));
        assert!(!Limits::of(&gpu(Some(40 << 30), Some(700_000))).pass(&sample));
        assert!(!Limits::of(&gpu(Some(80 << 30), Some(340_000))).pass(&sample));
    }
}
