//! The one validator: used by the agent before publishing and by the processor after reading. Pure: `now` is an argument.
//!
//! A bad field becomes absent with a reason and the rest of the sample lives; bad identity or time rejects the whole sample.

use crate::reading::{Number, Reading};
use crate::reason::Reason;
use crate::sample::{Field, Sample, ZERO_CELSIUS_MK};
use crate::time::{EventTime, NS_PER_S};

/// How far a reported total may differ from the registered one, bytes: DCGM floors each of its parts to MiB.
pub const CAPACITY_TOLERANCE_BYTES: u64 = 3 << 20;
/// Bound on board power where the board's own limit is unknown, milliwatts.
pub const POWER_MAX_MW: u64 = 5_000_000;
/// 2020-01-01T00:00:00Z: no sample is older.
pub const OLDEST_NS: i128 = 1_577_836_800 * NS_PER_S as i128;
/// How far a host's clock may be ahead of the agent's own when it validates, milliseconds.
pub const FUTURE_MS_AGENT: i64 = 300_000;
/// How far a sample may be ahead of the log's append time, milliseconds.
pub const FUTURE_MS_PROCESSOR: i64 = 5_000;

/// What is registered about the GPU a reading speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Registered {
    /// Total memory from the inventory, bytes; absent = not known.
    pub memory_total_bytes: Option<u64>,
    /// The board's maximum power limit, milliwatts; absent = not known.
    pub power_limit_max_mw: Option<u64>,
}

/// What a reading is judged against.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Whether the service takes samples at all.
    pub accepting: bool,
    /// The GPU's registration; absent = not registered.
    pub registered: Option<Registered>,
    /// When the reading was taken, nanoseconds UTC; wide, so that nonsense can be named.
    pub sampled_at_ns: i128,
    /// The clock it is compared with.
    pub now: EventTime,
    /// How far ahead of `now` it may be, milliseconds.
    pub future_ms: i64,
}

/// One refusal: which field (none = the whole sample), why, and the raw value.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// The field that was refused; absent = the whole sample.
    pub field: Option<Field>,
    /// Why.
    pub reason: Reason,
    /// What was given.
    pub raw: String,
}

/// The validator's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What is believed; absent = the whole sample is refused.
    pub sample: Option<Sample>,
    /// Every refusal in the order of the checks; the first is the primary one.
    pub violations: Vec<Violation>,
}

/// Judges one reading. Boundaries are valid: 0 %, 100 %, used = total, -273.15 °C.
pub fn validate(reading: &Reading, context: &Context) -> Verdict {
    let mut check = Check { reading: reading.clone(), violations: Vec::new() };
    let mut whole = false;
    if !context.accepting {
        check.refuse(None, Reason::NotAccepting, String::new());
        whole = true;
    }
    if context.registered.is_none() {
        check.refuse(None, Reason::DeviceNotRegistered, String::new());
        whole = true;
    }
    check.drop_sentinels();
    let not_finite = check.take_not_finite();

    for field in [Field::UtilPercent, Field::MemoryUtilPercent] {
        check.bound(field, |v| !(0.0..=100.0).contains(&v), Reason::UtilizationOutOfRange);
    }
    check.bound(Field::MemoryUsedBytes, |v| v < 0.0, Reason::MemoryUsedNegative);
    check.bound(Field::MemoryTotalBytes, |v| v <= 0.0, Reason::MemoryTotalNotPositive);
    if let (Some(used), Some(total)) = (check.reading.get(Field::MemoryUsedBytes), check.reading.get(Field::MemoryTotalBytes))
        && exceeds(used, total)
    {
        check.refuse(Some(Field::MemoryUsedBytes), Reason::MemoryUsedExceedsTotal, used.to_string());
    }
    for field in [Field::TemperatureMk, Field::MemoryTemperatureMk] {
        // A hair below zero kelvin is what -273.15 °C becomes on its way through a float.
        check.bound(field, |mk| mk < -0.001, Reason::TemperatureBelowAbsoluteZero);
    }
    check.violations.extend(not_finite);

    check.bound(Field::PowerMw, |v| v < 0.0, Reason::PowerNegative);
    for field in [Field::SmClockMhz, Field::MemoryClockMhz] {
        check.bound(field, |v| v < 0.0, Reason::ClockNegative);
    }
    for field in [Field::TemperatureMk, Field::MemoryTemperatureMk] {
        check.bound(field, |mk| mk > (ZERO_CELSIUS_MK + 150_000) as f64, Reason::TemperatureTooHigh);
    }
    for field in [Field::SmClockMhz, Field::MemoryClockMhz] {
        check.bound(field, |v| v > 20_000.0, Reason::ClockTooHigh);
    }
    let power_max = context.registered.and_then(|r| r.power_limit_max_mw).map_or(POWER_MAX_MW, |limit| limit.saturating_mul(2));
    check.bound(Field::PowerMw, |v| v > power_max as f64, Reason::PowerTooHigh);
    if let Some(registered) = context.registered.and_then(|r| r.memory_total_bytes) {
        check.bound(Field::MemoryTotalBytes, |v| (v - registered as f64).abs() > CAPACITY_TOLERANCE_BYTES as f64, Reason::CapacityMismatch);
    }
    if context.sampled_at_ns < OLDEST_NS {
        check.refuse(None, Reason::TimestampTooOld, context.sampled_at_ns.to_string());
        whole = true;
    }
    if context.sampled_at_ns > i128::from(context.now.plus_ms(context.future_ms).0) {
        check.refuse(None, Reason::TimestampInFuture, context.sampled_at_ns.to_string());
        whole = true;
    }
    for &field in Field::ALL {
        check.bound(
            field,
            |v| v < 0.0 && field != Field::TemperatureMk && field != Field::MemoryTemperatureMk || v > field.max() as f64,
            Reason::OutOfRange,
        );
    }
    Verdict { sample: (!whole).then(|| check.sample()), violations: check.violations }
}

fn exceeds(used: Number, total: Number) -> bool {
    match (used, total) {
        (Number::Int(used), Number::Int(total)) => used > total,
        (used, total) => used.as_f64() > total.as_f64(),
    }
}

struct Check {
    reading: Reading,
    violations: Vec<Violation>,
}

impl Check {
    fn refuse(&mut self, field: Option<Field>, reason: Reason, raw: String) {
        if let Some(field) = field {
            self.reading.clear(field);
        }
        self.violations.push(Violation { field, reason, raw });
    }

    /// A sentinel is not a bad value: it is no value, and the reason says which kind.
    fn drop_sentinels(&mut self) {
        for &field in Field::ALL {
            if let Some(value) = self.reading.get(field)
                && let Some(reason) = value.sentinel()
            {
                self.refuse(Some(field), reason, value.to_string());
            }
        }
    }

    /// Takes NaN and infinities out at once, so that no comparison meets one; they are reported after the range checks.
    fn take_not_finite(&mut self) -> Vec<Violation> {
        let mut refused = Vec::new();
        for &field in Field::ALL {
            if let Some(value) = self.reading.get(field)
                && !value.as_f64().is_finite()
            {
                self.reading.clear(field);
                refused.push(Violation { field: Some(field), reason: Reason::NotFinite, raw: value.to_string() });
            }
        }
        refused
    }

    fn bound(&mut self, field: Field, is_bad: impl Fn(f64) -> bool, reason: Reason) {
        if let Some(value) = self.reading.get(field)
            && is_bad(value.as_f64())
        {
            self.refuse(Some(field), reason, value.to_string());
        }
    }

    fn sample(&self) -> Sample {
        let mut sample = Sample::default();
        for &field in Field::ALL {
            if let Some(value) = self.reading.get(field) {
                let integer = match value {
                    Number::Int(int) => u64::try_from(int.max(0)).unwrap_or(u64::MAX),
                    Number::Float(float) => float.round().max(0.0) as u64,
                };
                sample.set(field, integer);
            }
        }
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Field::*;

    const NOW: EventTime = EventTime(1_800_000_000 * NS_PER_S);

    fn context() -> Context {
        Context { accepting: true, registered: Some(Registered::default()), sampled_at_ns: i128::from(NOW.0), now: NOW, future_ms: FUTURE_MS_AGENT }
    }

    fn check(reading: Reading, context: Context, expected: &[Reason]) -> Verdict {
        let verdict = validate(&reading, &context);
        let reasons: Vec<_> = verdict.violations.iter().map(|v| v.reason).collect();
        assert_eq!(reasons, expected, "{reading:?}");
        verdict
    }

    #[test]
    fn boundaries_are_valid() {
        let reading = Reading::default()
            .with(UtilPercent, 100u64)
            .with(MemoryUsedBytes, 24u64 << 30)
            .with(MemoryTotalBytes, 24u64 << 30)
            .with(TemperatureMk, 0u64);
        let sample = check(reading, context(), &[]).sample.expect("believed");
        assert_eq!(sample.util_percent(), Some(100));
        assert_eq!(sample.temperature_mk(), Some(0));
    }

    #[test]
    fn a_bad_field_becomes_absent_and_the_rest_lives() {
        let reading = Reading::default().with(UtilPercent, 101.0).with(PowerMw, 250_000u64);
        let verdict = check(reading, context(), &[Reason::UtilizationOutOfRange]);
        assert_eq!(verdict.violations[0].raw, "101");
        let sample = verdict.sample.expect("the rest lives");
        assert_eq!((sample.util_percent(), sample.power_mw()), (None, Some(250_000)));
    }

    #[test]
    fn bad_time_rejects_the_whole_sample() {
        let future = Context { sampled_at_ns: i128::from(NOW.0) + 301 * i128::from(NS_PER_S), ..context() };
        assert_eq!(check(Reading::default(), future, &[Reason::TimestampInFuture]).sample, None);
        let old = Context { sampled_at_ns: 0, ..context() };
        assert_eq!(check(Reading::default(), old, &[Reason::TimestampTooOld]).sample, None);
    }

    #[test]
    fn power_above_the_limit_is_normal_and_above_twice_the_limit_is_not() {
        let registered = Some(Registered { power_limit_max_mw: Some(400_000), ..Registered::default() });
        check(Reading::default().with(PowerMw, 599_700u64), Context { registered, ..context() }, &[]);
        check(Reading::default().with(PowerMw, 800_001u64), Context { registered, ..context() }, &[Reason::PowerTooHigh]);
    }

    #[test]
    fn capacity_may_differ_by_three_mebibytes() {
        let registered = Some(Registered { memory_total_bytes: Some(80 << 30), ..Registered::default() });
        check(Reading::default().with(MemoryTotalBytes, (80u64 << 30) - (3 << 20)), Context { registered, ..context() }, &[]);
        check(
            Reading::default().with(MemoryTotalBytes, (80u64 << 30) - (3 << 20) - 1),
            Context { registered, ..context() },
            &[Reason::CapacityMismatch],
        );
    }

    #[test]
    fn values_recorded_from_broken_drivers_never_pass() {
        for value in [808_334_905u64, 686_103, 2_619, 1_980] {
            check(Reading::default().with(UtilPercent, value), context(), &[Reason::UtilizationOutOfRange]);
        }
        for celsius in [345u64, 82_505, 200_000, 644_245_923, 4_278_190_080] {
            check(Reading::default().with(TemperatureMk, celsius * 1_000 + 273_150), context(), &[Reason::TemperatureTooHigh]);
        }
    }
}
