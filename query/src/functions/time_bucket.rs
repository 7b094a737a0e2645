//! `time_bucket(step, ts [, origin or zone])`: the start of the bucket of `step` that holds `ts`.
//!
//! The step is an interval or text (`'5m'`, `'1 hour'`, Grafana's `'300.000s'`). Without an origin buckets start on Monday
//! 2000-01-03 (months on 2000-01-01), so that days start at midnight and weeks on Monday; with a zone, at midnight there.
#![allow(clippy::wildcard_enum_match_arm, reason = "the engine's enums have dozens of variants, of which few matter here")]

use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, Datelike, Months, NaiveDateTime, Offset, TimeZone, Utc};
use datafusion::arrow::array::timezone::Tz;
use datafusion::arrow::array::{AsArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, IntervalUnit, TimeUnit, TimestampMicrosecondType};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

const US_PER_S: i64 = 1_000_000;
const US_PER_DAY: i64 = 86_400 * US_PER_S;
/// Monday 2000-01-03T00:00:00.
const MONDAY_US: i64 = 946_857_600 * US_PER_S;
/// 2000-01-01T00:00:00.
const MONTH_US: i64 = 946_684_800 * US_PER_S;

/// The function.
pub fn udf() -> ScalarUDF {
    ScalarUDF::new_from_impl(TimeBucket { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TimeBucket {
    signature: Signature,
}

impl ScalarUDFImpl for TimeBucket {
    fn name(&self) -> &str {
        "time_bucket"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[1].clone())
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        if !(2..=3).contains(&types.len()) {
            return plan_err!("time_bucket takes a step, a time and perhaps an origin or a zone; {} arguments were given", types.len());
        }
        let step = match &types[0] {
            text if is_text(text) => DataType::Utf8,
            DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
            other => return plan_err!("time_bucket: the step is an interval or text such as '5m', not {other}"),
        };
        let utc = || Some(Arc::from("UTC"));
        let time = match &types[1] {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.clone()),
            DataType::Date32 | DataType::Date64 | DataType::Null => DataType::Timestamp(TimeUnit::Microsecond, utc()),
            text if is_text(text) => DataType::Timestamp(TimeUnit::Microsecond, utc()),
            other => return plan_err!("time_bucket: the second argument is a time, not {other}"),
        };
        let third = types.get(2).map(|third| if is_text(third) { DataType::Utf8 } else { DataType::Timestamp(TimeUnit::Microsecond, utc()) });
        Ok([Some(step), Some(time), third].into_iter().flatten().collect())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ColumnarValue::Scalar(step) = &args.args[0] else { return exec_err!("time_bucket: the step must be a constant") };
        let Some(step) = Step::of(step)? else { return Ok(ColumnarValue::Scalar(ScalarValue::try_from(args.return_type())?)) };
        let third = match args.args.get(2) {
            Some(ColumnarValue::Scalar(third)) => Some(third),
            Some(ColumnarValue::Array(_)) => return exec_err!("time_bucket: the origin or zone must be a constant"),
            None => None,
        };
        let grid = Grid::of(step, third)?;
        let times = args.args[1].to_array(args.number_rows)?;
        let times: &TimestampMicrosecondArray = times.as_primitive::<TimestampMicrosecondType>();
        let starts = times.try_unary::<_, TimestampMicrosecondType, datafusion::common::DataFusionError>(|at| grid.start(at))?;
        let zone = match args.return_type() {
            DataType::Timestamp(_, zone) => zone.clone(),
            _ => None,
        };
        Ok(ColumnarValue::Array(Arc::new(starts.with_timezone_opt(zone))))
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// The width of a bucket: months, or microseconds; never both, never nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Months(i64),
    Micros(i64),
}

impl Step {
    fn of(value: &ScalarValue) -> Result<Option<Self>> {
        match value {
            ScalarValue::Utf8(Some(text)) => Self::parse(text).map(Some),
            ScalarValue::IntervalMonthDayNano(Some(interval)) => {
                let micros = i64::from(interval.days).saturating_mul(US_PER_DAY).saturating_add(interval.nanoseconds / 1_000);
                Self::new(i64::from(interval.months), micros, &value.to_string()).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn new(months: i64, micros: i64, given: &str) -> Result<Self> {
        match (months, micros) {
            (months, 0) if months > 0 => Ok(Self::Months(months)),
            (0, micros) if micros > 0 => Ok(Self::Micros(micros)),
            _ => {
                exec_err!("time_bucket: {given:?} is no step: a positive time, or a number of months, such as '5m', '1 hour', '300.000s', '1 month'")
            }
        }
    }

    /// Numbers with units, one after the other.
    fn parse(text: &str) -> Result<Self> {
        let (mut months, mut micros) = (0i64, 0i64);
        let mut rest = text.trim();
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, after) = rest.split_at(digits);
            let after = after.trim_start();
            let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            rest = after.trim_start_matches([' ', ',']);
            match (number.parse::<f64>().ok(), unit_of(unit)) {
                (Some(number), Some(Step::Months(unit))) if number.fract() == 0.0 => {
                    months = months.saturating_add((number as i64).saturating_mul(unit))
                }
                (Some(number), Some(Step::Micros(unit))) => micros = micros.saturating_add((number * unit as f64).round() as i64),
                _ => return Self::new(0, 0, text),
            }
        }
        Self::new(months, micros, text)
    }
}

fn unit_of(unit: &str) -> Option<Step> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "us" | "microsecond" | "microseconds" => Step::Micros(1),
        "ms" | "millisecond" | "milliseconds" => Step::Micros(1_000),
        "s" | "sec" | "secs" | "second" | "seconds" => Step::Micros(US_PER_S),
        "m" | "min" | "mins" | "minute" | "minutes" => Step::Micros(60 * US_PER_S),
        "h" | "hour" | "hours" => Step::Micros(3_600 * US_PER_S),
        "d" | "day" | "days" => Step::Micros(US_PER_DAY),
        "w" | "week" | "weeks" => Step::Micros(7 * US_PER_DAY),
        "mon" | "month" | "months" => Step::Months(1),
        "y" | "year" | "years" => Step::Months(12),
        _ => return None,
    })
}

/// Where buckets start.
struct Grid {
    step: Step,
    origin_us: i64,
    zone: Option<Tz>,
}

impl Grid {
    fn of(step: Step, third: Option<&ScalarValue>) -> Result<Self> {
        let natural = match step {
            Step::Months(_) => MONTH_US,
            Step::Micros(_) => MONDAY_US,
        };
        let (origin_us, zone) = match third {
            None | Some(ScalarValue::TimestampMicrosecond(None, _)) | Some(ScalarValue::Utf8(None)) => (natural, None),
            Some(ScalarValue::TimestampMicrosecond(Some(origin), _)) => (*origin, None),
            Some(ScalarValue::Utf8(Some(text))) => match DateTime::parse_from_rfc3339(text) {
                Ok(origin) => (origin.timestamp_micros(), None),
                Err(_) => match Tz::from_str(text) {
                    Ok(zone) => (natural, Some(zone)),
                    Err(_) => return exec_err!("time_bucket: {text:?} is neither an RFC 3339 time nor a time zone"),
                },
            },
            Some(other) => return exec_err!("time_bucket: {other} is neither an origin nor a zone"),
        };
        Ok(Self { step, origin_us, zone })
    }

    /// The start of the bucket that holds `at`, both microseconds UTC.
    fn start(&self, at: i64) -> Result<i64> {
        let outside = || exec_err!("time_bucket: {at} µs is outside the times that can be counted");
        match &self.zone {
            None => self.local_start(at).map_or_else(outside, Ok),
            Some(zone) => {
                let Some(utc) = DateTime::<Utc>::from_timestamp_micros(at) else { return outside() };
                let shift = i64::from(zone.offset_from_utc_datetime(&utc.naive_utc()).fix().local_minus_utc()) * US_PER_S;
                self.local_start(at + shift).and_then(|start| to_utc(zone, start)).map_or_else(outside, Ok)
            }
        }
    }

    fn local_start(&self, at: i64) -> Option<i64> {
        match self.step {
            Step::Micros(step) => {
                let since = at.checked_sub(self.origin_us)?;
                self.origin_us.checked_add(since.div_euclid(step).checked_mul(step)?)
            }
            Step::Months(step) => {
                let (origin, time) = (naive(self.origin_us)?, naive(at)?);
                let count = |t: &NaiveDateTime| i64::from(t.year()) * 12 + i64::from(t.month0());
                let mut whole = (count(&time) - count(&origin)).div_euclid(step);
                let mut start = add_months(origin, whole * step)?;
                if start > time {
                    whole -= 1;
                    start = add_months(origin, whole * step)?;
                }
                Some(start.and_utc().timestamp_micros())
            }
        }
    }
}

fn naive(us: i64) -> Option<NaiveDateTime> {
    DateTime::<Utc>::from_timestamp_micros(us).map(|at| at.naive_utc())
}

fn add_months(at: NaiveDateTime, months: i64) -> Option<NaiveDateTime> {
    let count = Months::new(u32::try_from(months.unsigned_abs()).ok()?);
    if months >= 0 { at.checked_add_months(count) } else { at.checked_sub_months(count) }
}

/// The instant at which clocks of the zone first show this local time; where they skip it, the instant of the skip.
fn to_utc(zone: &Tz, local_us: i64) -> Option<i64> {
    let skipped = |hours: i64| zone.from_local_datetime(&naive(local_us + hours * 3_600 * US_PER_S)?).earliest();
    let found = zone.from_local_datetime(&naive(local_us)?).earliest().or_else(|| skipped(1))?;
    Some(found.timestamp_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(text).expect("a time").timestamp_micros()
    }

    #[test]
    fn buckets_start_where_people_expect_them() {
        let check = |step: &str, third: Option<&str>, at: &str, expected: &str| {
            let third = third.map(|text| ScalarValue::Utf8(Some(text.to_owned())));
            let grid = Grid::of(Step::parse(step).expect(step), third.as_ref()).expect("a grid");
            let start = DateTime::<Utc>::from_timestamp_micros(grid.start(us(at)).expect("inside")).expect("inside").to_rfc3339();
            assert_eq!(start, DateTime::parse_from_rfc3339(expected).expect("a time").to_utc().to_rfc3339(), "{step} {at}");
        };
        check("300.000s", None, "2026-11-19T14:07:31Z", "2026-11-19T14:05:00Z");
        check("5m", None, "2026-11-19T14:07:31Z", "2026-11-19T14:05:00Z");
        check("1 hour", None, "1969-12-31T23:30:00Z", "1969-12-31T23:00:00Z");
        check("1 day", None, "2026-11-19T23:59:59Z", "2026-11-19T00:00:00Z");
        check("1 week", None, "2026-11-19T14:00:00Z", "2026-11-16T00:00:00Z");
        check("1 month", None, "2026-11-19T14:00:00Z", "2026-11-01T00:00:00Z");
        check("3 months", None, "1999-12-31T00:00:00Z", "1999-10-01T00:00:00Z");
        check("1 hour 30 minutes", Some("2026-11-19T00:00:00Z"), "2026-11-19T02:00:00Z", "2026-11-19T01:30:00Z");
        check("1 day", Some("Europe/Berlin"), "2026-06-19T22:30:00Z", "2026-06-19T22:00:00Z");
        check("1 day", Some("Europe/Berlin"), "2026-11-19T22:30:00Z", "2026-11-18T23:00:00Z");
    }

    #[test]
    fn what_is_no_step_is_refused() {
        for text in ["", "5", "0s", "-5m", "5 parsecs", "1 month 1 day", "1.5 months", "m"] {
            assert!(Step::parse(text).is_err(), "{text:?}");
        }
    }
}
