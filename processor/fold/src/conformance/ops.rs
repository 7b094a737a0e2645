//! What each op means: the case's input in, the core's answer out.

use std::collections::BTreeMap;

use plimsoll_schemas::alert::{Limit, Rule, Severity, Signal};
use plimsoll_schemas::id::{GpuUuid, HostId, Slot};
use plimsoll_schemas::out::Outcome;
use plimsoll_schemas::reading::{Number, Reading};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Place};
use plimsoll_schemas::sample::{Field, ZERO_CELSIUS_MK};
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::time::{EventTime, NS_PER_S};
use plimsoll_schemas::validate::{self, Context, FUTURE_MS_AGENT, Registered};
use serde_json::{Value, json};

use super::input::{Input, number, whole};
use crate::alerts::signal::{Counted, per_minute, samples_per_minute};
use crate::alerts::watch::{Moved, Span, Watch};
use crate::cluster::{Cluster, Member, Sum};
use crate::pace::Slots;
use crate::placement::ask::Ask;
use crate::placement::balanced::{self, balanced};
use crate::placement::candidate::Candidate;
use crate::placement::cell::{Cell, Chooser, Hashed, Host};
use crate::placement::distribute::{Split, capacity, uniform};
use crate::placement::plan::Neighbours;
use crate::placement::policy::catalogue::{Bidder, Name};
use crate::placement::policy::host::CLASSES;
use crate::placement::policy::mix::Mix;
use crate::placement::reliability::{self, reliability};
use crate::placement::reputation::{DECAY_BP, Reputation};
use crate::placement::score::{self, Inputs};
use crate::placement::shards::spread;
use crate::placement::{Refused, Settings, lease, select, vram};
use crate::ring::{Pushed, RECENT, Ring};
use crate::thermal;

/// The clock that samples are judged by: 2027-01-15T08:00:00Z.
const NOW: EventTime = EventTime(1_800_000_000 * NS_PER_S);
/// Millionths, for what the core would hold in coarser units.
const MICRO: i32 = 1_000_000;
/// Billionths.
const NANO: i32 = 1_000_000_000;
/// Most successes counted one by one.
const SUCCESSES_MAX: u64 = 1_000_000;
/// Bytes in a GiB.
const GIB: i32 = 1 << 30;

/// The answer to one case, a sentence about what is wrong with the case, or nothing if there is no such op yet.
pub(super) fn answer(op: &str, input: &Value) -> Option<Result<Value, String>> {
    let input = Input(input);
    Some(match op {
        "sample.validate" => sample_validate(input),
        "score.headroom" => score_headroom(input),
        "score.live" => score_live(input),
        "score.live_monotone" => score_live_monotone(input),
        "score.reliability" => score_reliability(input),
        "reputation.after_successes" => reputation_after_successes(input),
        "placement.shards" => placement_shards(input),
        "select.best" => select_best(input),
        "distribute.uniform" => distribute_uniform(input),
        "distribute.capacity" => distribute_capacity(input),
        "vram.limit" => vram_limit(input),
        "aggregate.cluster" => aggregate_cluster(input),
        "history.ring" => history_ring(input),
        "lease.duration_ms" => lease_duration(input).map(|ms| json!(ms)),
        "lease.heartbeat" => lease_heartbeat(input),
        "thermal.pause" => thermal_pause(input),
        "throttle.schedule_ms" => throttle_schedule(input),
        "throttle.try" => throttle_try(input),
        "alert.cooldown" => alert_cooldown(input),
        "alert.cold_start" => alert_cold_start(input),
        "alert.rate_per_min" => alert_rate(input),
        _ => return None,
    })
}

/// From a case's unit to the field's.
type Convert<'a> = &'a dyn Fn(Number) -> Number;

/// Units of a case: bytes, percent, °C, W, MHz, seconds.
fn sample_validate(input: Input<'_>) -> Result<Value, String> {
    let mut reading = Reading::default();
    let as_is = |value: Number| value;
    let milli = |value: Number| match value {
        Number::Int(int) => Number::Int(int.saturating_mul(1_000)),
        Number::Float(float) => Number::Float(float * 1_000.0),
    };
    let millikelvin = |value: Number| Number::Float(value.as_f64() * 1_000.0 + ZERO_CELSIUS_MK as f64);
    let fields: [(&str, Field, Convert<'_>); 6] = [
        ("used", Field::MemoryUsedBytes, &as_is),
        ("total", Field::MemoryTotalBytes, &as_is),
        ("util", Field::UtilPercent, &as_is),
        ("temp", Field::TemperatureMk, &millikelvin),
        ("power", Field::PowerMw, &milli),
        ("clock", Field::SmClockMhz, &as_is),
    ];
    for (key, field, convert) in fields {
        if let Some(value) = input.number(key)? {
            reading.set(field, convert(value));
        }
    }
    let memory_total_bytes = input.has("registered_total").then(|| input.unsigned("registered_total")).transpose()?;
    let registered = Registered { memory_total_bytes, power_limit_max_mw: None };
    let sampled_at_ns = match input.number("timestamp_s")? {
        None => i128::from(NOW.0),
        Some(Number::Int(seconds)) => seconds.saturating_mul(i128::from(NS_PER_S)),
        Some(Number::Float(seconds)) if seconds.is_nan() => return Ok(json!([Reason::NotFinite.code()])),
        // A cast from float saturates: infinity is far in the future.
        Some(Number::Float(seconds)) => (seconds * NS_PER_S as f64) as i128,
    };
    let context = Context {
        accepting: input.get("state").is_none_or(|state| !matches!(state.as_str(), Some("shutting_down" | "stopping" | "stopped" | "starting"))),
        registered: (input.get("device").and_then(Value::as_str) != Some("unregistered")).then_some(registered),
        sampled_at_ns,
        now: NOW,
        future_ms: FUTURE_MS_AGENT,
    };
    let codes: Vec<_> = validate::validate(&reading, &context).violations.iter().map(|violation| violation.reason.code()).collect();
    Ok(if codes.is_empty() { json!("accept") } else { json!(codes) })
}

fn score_headroom(input: Input<'_>) -> Result<Value, String> {
    let fields = ["used_bytes", "total_bytes", "max_bytes", "util_pct", "temp_c"];
    for key in fields {
        if input.number(key)?.is_some_and(|value| !value.as_f64().is_finite()) {
            return Ok(json!(format!("rejected:{}", Reason::NotFinite)));
        }
    }
    for key in &fields[..3] {
        input.required(key)?;
    }
    let inputs = Inputs {
        used_bytes: input.scaled("used_bytes", 1, 0)?.unwrap_or(0),
        total_bytes: input.scaled("total_bytes", 1, 0)?.unwrap_or(0),
        max_bytes: input.scaled("max_bytes", 1, 0)?.unwrap_or(0),
        util_micro: input.scaled("util_pct", MICRO / 100, 0)?.unwrap_or(score::MICRO),
        temperature_uk: input.scaled("temp_c", MICRO, ZERO_CELSIUS_MK * 1_000)?,
    };
    let (numerator, denominator) = score::headroom(&inputs).fraction();
    Ok(json!(numerator as f64 / denominator as f64))
}

/// Under `balanced@1`, with network and memory bandwidth as good as they get: no case names them.
fn score_live(input: Input<'_>) -> Result<Value, String> {
    let celsius = |key| Ok::<_, String>(input.scaled(key, MICRO, 0)?.unwrap_or(0));
    live(input, celsius("threshold")?, celsius("temp")?)
}

fn live(input: Input<'_>, limit_uk: u64, now_uk: u64) -> Result<Value, String> {
    let score = balanced(&balanced::Inputs {
        free_bytes: input.scaled("avail_gib", GIB, 0)?.unwrap_or(0),
        need_bytes: input.scaled("shard_gib", GIB, 0)?.unwrap_or(0),
        util_micro: input.scaled("util", MICRO / 100, 0)?,
        margin_uk: Some(limit_uk.saturating_sub(now_uk)),
        network_micro: Some(score::MICRO),
        bandwidth_micro: Some(score::MICRO),
    });
    Ok(score.map_or_else(|| json!(format!("rejected:{}", Reason::InsufficientMemory)), |micro| json!(f64::from(micro) / f64::from(MICRO))))
}

fn score_live_monotone(input: Input<'_>) -> Result<Value, String> {
    let limit_uk = input.scaled("threshold", MICRO, 0)?.unwrap_or(0);
    let mut scores = Vec::new();
    for temperature in input.array("temps")? {
        let now = number(temperature).and_then(whole).and_then(|celsius| u64::try_from(celsius).ok()).ok_or("temps are whole degrees")?;
        scores.push(live(input, limit_uk, now.saturating_mul(score::MICRO))?.as_f64());
    }
    Ok(json!({ "non_increasing": scores.is_sorted_by(|before, after| after <= before), "scores": scores }))
}

fn score_reliability(input: Input<'_>) -> Result<Value, String> {
    let nano = |key| Ok::<_, String>(input.scaled(key, NANO, 0)?.unwrap_or(0));
    let score = reliability(&reliability::Inputs {
        reputation: Reputation::of(nano("alpha")?, nano("beta")?),
        free_bytes: input.scaled("avail_gib", GIB, 0)?.unwrap_or(0),
        need_bytes: input.scaled("min_gib", GIB, 0)?.unwrap_or(0),
        thermal_micro: input.scaled("thermal", MICRO, 0)?.unwrap_or(0),
        util_micro: input.scaled("util", MICRO, 0)?.unwrap_or(score::MICRO),
        assigned: input.flag("assigned"),
    });
    Ok(score.map_or_else(|| json!(format!("rejected:{}", Reason::InsufficientMemory)), |nano| json!(nano as f64 / f64::from(NANO))))
}

/// Rounded as the cases are: four decimals, five, and five significant digits.
fn reputation_after_successes(input: Input<'_>) -> Result<Value, String> {
    let mut reputation = Reputation::forgetting(input.scaled("decay", 10_000, 0)?.unwrap_or(DECAY_BP));
    let successes = input.unsigned("n")?;
    if successes > SUCCESSES_MAX {
        return Err(format!("n is {successes}, at most {SUCCESSES_MAX}"));
    }
    (0..successes).for_each(|_| reputation.succeed());
    let share = |nano: u64| nano as f64 / f64::from(NANO);
    let rounded = |value: f64, decimals: i32| (value * 10f64.powi(decimals)).round() / 10f64.powi(decimals);
    let bound = share(reputation.lower_bound_nano());
    Ok(json!({
        "alpha": rounded(share(reputation.alpha_nano()), 4),
        "score": rounded(share(reputation.mean_nano()), 5),
        "tier": reputation.tier().name(),
        "lower_bound": rounded(bound, if bound < 0.1 { 6 } else { 5 }),
    }))
}

/// A list of devices is `cuda:0` and so on. With a budget for the search the answer says that it needed none.
fn placement_shards(input: Input<'_>) -> Result<Value, String> {
    let gib = |value: &Value| Input(&json!({ "gib": value })).scaled("gib", GIB, 0)?.ok_or_else(|| format!("{value} is no size"));
    let (names, sizes): (Vec<String>, Vec<&Value>) = match input.get("devices_gib") {
        Some(Value::Array(list)) => list.iter().enumerate().map(|(n, size)| (format!("cuda:{n}"), size)).unzip(),
        Some(Value::Object(named)) => named.iter().map(|(name, size)| (name.clone(), size)).unzip(),
        Some(_) | None => return Err("devices_gib is neither an array nor an object".to_owned()),
    };
    let free = sizes.into_iter().map(gib).collect::<Result<Vec<u64>, String>>()?;
    let needs = input.array("shards_gib")?.iter().map(gib).collect::<Result<Vec<u64>, String>>()?;
    Ok(match spread(&free, &needs) {
        Ok(taken) => {
            taken.iter().enumerate().map(|(part, &device)| (part.to_string(), json!(names[device]))).collect::<serde_json::Map<_, _>>().into()
        }
        Err(reason) if input.has("node_budget") => json!({ "rejected": reason, "nodes": 0 }),
        Err(reason) => json!(format!("rejected:{reason}")),
    })
}

/// All devices stand on one host; their order by id is the order of their keys.
fn select_best(input: Input<'_>) -> Result<Value, String> {
    let min_free = input.number("min_free")?.unwrap_or(Number::Int(0));
    let Some(vram_bytes) = whole(min_free).and_then(|bytes| u64::try_from(bytes).ok()) else {
        return Ok(json!("error:min_free"));
    };
    let host: HostId = "host".parse().map_err(|error: plimsoll_schemas::id::IdError| error.to_string())?;
    let mut devices = BTreeMap::new();
    for device in input.array("devices")? {
        let uuid: GpuUuid = Input(device).text("id")?.parse().map_err(|error: plimsoll_schemas::id::IdError| error.to_string())?;
        devices.insert(uuid, Input(device));
    }
    let candidates = devices.values().zip(0..).map(|(&device, number)| candidate(number, device)).collect::<Result<Vec<_>, String>>()?;
    let request = Place { request_id: "case".to_owned(), bundles: vec![Bundle { vram_bytes, ..Bundle::default() }], ..Place::default() };
    let ask = Ask::new(&request).map_err(|refused| refused.to_string())?;
    let here = Host {
        id: host,
        stands: Default::default(),
        cpu_milli: None,
        memory_bytes: None,
        gpus: candidates,
        classes: [0; CLASSES],
        reputation: Reputation::default(),
    };
    let chooser = Chooser { bidder: Bidder::alone(Name::Headroom), mix: Hashed { of: &Mix::default(), hash: 0 }, tables: None, turn: 0 };
    let choice = select::choose(&mut Cell::new(vec![here], Settings::default()), &ask, chooser, &Neighbours::new());
    let uuid = |number: u32| devices.keys().nth(number as usize).map_or_else(String::new, GpuUuid::to_string);
    Ok(json!(match (choice.outcome, choice.picks.first(), choice.reason) {
        (Outcome::Placed, Some(pick), _) => uuid(pick.number),
        (_, _, Some(Reason::NoHeadroom)) => "rejected:zero_score".to_owned(),
        (_, _, reason) => format!("rejected:{}", reason.map_or("", Reason::code)),
    }))
}

fn candidate(number: u32, device: Input<'_>) -> Result<Candidate, String> {
    let said_nothing = !["used", "total", "util", "temp"].into_iter().any(|key| device.has(key));
    Ok(Candidate {
        number,
        slot: Slot(0),
        model: "".into(),
        driver: None,
        compute_capability: None,
        mig_profile: None,
        mig: None,
        is_cut: false,
        nvlink_domain: None,
        numa_node: None,
        memory_total_bytes: device.scaled("total", 1, 0)?,
        memory_used_bytes: device.scaled("used", 1, 0)?,
        util_percent: device.scaled("util", 1, 0)?,
        temperature_mk: device.scaled("temp", 1_000, ZERO_CELSIUS_MK)?,
        slowdown_temperature_mk: device.scaled("slowdown_temp", 1_000, ZERO_CELSIUS_MK)?,
        power_limit_mw: None,
        gate: if device.flag("stale") { Some(Reason::Stale) } else { said_nothing.then_some(Reason::NoSample) },
        kept: false,
        reserved_milli: 0,
        reserved_vram_bytes: device.scaled("reserved", 1, 0)?.unwrap_or(0),
        unseen_vram_bytes: 0,
    })
}

fn distribute_uniform(input: Input<'_>) -> Result<Value, String> {
    let devices = input.array("devices")?;
    let names: Vec<&str> = devices.iter().filter_map(Value::as_str).collect();
    if names.len() != devices.len() {
        return Err("devices are not all texts".to_owned());
    }
    Ok(match (items(input)?, cap(input)?) {
        (Some(items), Some(cap)) => split(uniform(items, names, cap)),
        (None, _) => json!("error:items"),
        (_, None) => json!("error:max_per_device"),
    })
}

fn distribute_capacity(input: Input<'_>) -> Result<Value, String> {
    let capacities = input.get("capacities").and_then(Value::as_object).ok_or("capacities is not an object")?;
    let numbers = capacities.iter().map(|(name, value)| Some((name.as_str(), number(value)?))).collect::<Option<BTreeMap<_, _>>>();
    let numbers = numbers.ok_or("capacities are not all numbers")?;
    // Fractions keep six digits; a capacity that is no number or beyond 64 bits is none.
    let scale = if numbers.values().all(|&value| whole(value).is_some()) { 1 } else { MICRO };
    let weights = numbers.iter().map(|(&name, &value)| Some((name, weight(value, scale)?))).collect::<Option<BTreeMap<_, _>>>();
    Ok(match (items(input)?, cap(input)?, weights) {
        (Some(items), Some(cap), Some(weights)) => split(capacity(items, &weights, cap)),
        (None, _, _) => json!("error:items"),
        (_, None, _) => json!("error:max_per_device"),
        (_, _, None) => json!("error:invalid_capacity"),
    })
}

fn weight(value: Number, scale: i32) -> Option<i64> {
    let scaled = match value {
        Number::Int(int) => int.checked_mul(i128::from(scale))?,
        Number::Float(float) if float.is_finite() => (float * f64::from(scale)).round() as i128,
        Number::Float(_) => return None,
    };
    i64::try_from(scaled).ok()
}

/// How many items, or nothing if that is no count.
fn items(input: Input<'_>) -> Result<Option<u64>, String> {
    Ok(whole(input.required("items")?).and_then(|items| u64::try_from(items).ok()))
}

/// The cap if there is one, or nothing if what is given cannot be one.
fn cap(input: Input<'_>) -> Result<Option<Option<i64>>, String> {
    Ok(match input.number("max_per_device")? {
        None => Some(None),
        Some(cap) => whole(cap).and_then(|cap| i64::try_from(cap).ok()).map(Some),
    })
}

fn split(split: Result<Split<&str>, Refused>) -> Value {
    match split {
        Ok(split) => json!({ "counts": split.counts, "unassigned": split.unassigned }),
        Err(Refused { reason: Reason::InvalidCap, .. }) => json!("error:max_per_device"),
        Err(Refused { reason: Reason::ZeroWeights, .. }) => json!("error:zero_total_capacity"),
        Err(Refused { reason: Reason::NegativeWeight, .. }) => json!("error:invalid_capacity"),
        Err(Refused { reason, .. }) => json!(format!("error:{reason}")),
    }
}

fn vram_limit(input: Input<'_>) -> Result<Value, String> {
    let (total, share) = (input.unsigned("total_bytes")?, input.unsigned("limit_bp")?);
    Ok(match u32::try_from(share) {
        Ok(bp) if bp <= vram::LIMIT_BP_MAX => json!(vram::limit(total, bp)),
        _ => json!("error:limit_bp"),
    })
}

/// Units of a case: bytes, percent, °C, W. Millionths of them go through the same sums as the fold's own integers.
fn aggregate_cluster(input: Input<'_>) -> Result<Value, String> {
    let samples = input.array("samples")?;
    let stale = samples.iter().filter(|&sample| Input(sample).flag("stale")).count() as u64;
    let fresh = samples.iter().map(Input).filter(|sample| !sample.flag("stale"));
    let members = fresh
        .map(|sample| {
            Ok(Member {
                memory_total_bytes: sample.scaled("total", 1, 0)?,
                memory_used_bytes: sample.scaled("used", 1, 0)?,
                util: sample.scaled("util", MICRO, 0)?,
                temperature: sample.scaled("temp", MICRO, ZERO_CELSIUS_MK * 1_000)?,
                power: sample.scaled("power", MICRO, 0)?,
            })
        })
        .collect::<Result<Vec<_>, String>>()?;
    let Some(cluster) = Cluster::of(members, stale) else { return Ok(json!({ "rows": 0 })) };
    let mean = |of: Sum| (of.count > 0).then(|| of.sum as f64 / of.count as f64 / f64::from(MICRO));
    Ok(json!({
        "rows": 1,
        "device_count": cluster.device_count,
        "stale_count": cluster.stale_count,
        "total": bytes(cluster.memory_total_bytes),
        "used": bytes(cluster.memory_used_bytes),
        "available": bytes(cluster.memory_available_bytes),
        "avg_util": mean(cluster.util),
        "avg_temp": mean(cluster.temperature).map(|kelvin| kelvin - ZERO_CELSIUS_MK as f64 / 1_000.0),
        "total_power": cluster.power.sum as f64 / f64::from(MICRO),
    }))
}

/// A sum of bytes; one beyond 2^64 stays as near as JSON's numbers come.
fn bytes(of: Sum) -> Value {
    u64::try_from(of.sum).map_or_else(|_| json!(of.sum as f64), |sum| json!(sum))
}

/// Timestamps have no unit: only their order counts. They come back as they were given.
fn history_ring(input: Input<'_>) -> Result<Value, String> {
    let capacity = if input.has("max") { usize::try_from(input.unsigned("max")?).unwrap_or(usize::MAX) } else { RECENT };
    if capacity == 0 {
        return Ok(json!("error:max"));
    }
    let timestamps = input.array("timestamps")?;
    let numbers = timestamps.iter().map(|value| number(value).filter(|number| number.as_f64().is_finite())).collect::<Option<Vec<_>>>();
    let numbers = numbers.ok_or("timestamps are not all finite numbers")?;
    let scale = if numbers.iter().all(|&value| whole(value).is_some()) { 1 } else { MICRO };
    let mut ring = Ring::new(capacity);
    let (mut dropped, mut duplicate) = (0, 0);
    for (sequence, (&value, given)) in (1..).zip(numbers.iter().zip(timestamps)) {
        let at = weight(value, scale).map(EventTime).ok_or_else(|| format!("timestamp {value} is beyond 64 bits"))?;
        match ring.push((at, 1, sequence), given) {
            Pushed::Newest | Pushed::Late => {}
            Pushed::TooOld => dropped += 1,
            Pushed::Duplicate => duplicate += 1,
        }
    }
    Ok(json!({
        "len": ring.len(),
        "first": ring.iter().next().map(|(_, given)| given),
        "last": ring.current().map(|(_, given)| given),
        "current": ring.current().map(|(_, given)| given),
        "late_counted": ring.late(),
        "late_dropped": dropped,
        "duplicate": duplicate,
    }))
}

fn lease_duration(input: Input<'_>) -> Result<u64, String> {
    Ok(lease::duration_ms(input.unsigned("period")?, input.unsigned("grace")?))
}

/// The lease is granted at 0 unless the case says when.
fn lease_heartbeat(input: Input<'_>) -> Result<Value, String> {
    let duration_ms = lease_duration(input)?;
    let granted_ms = if input.has("granted_at_ms") { input.unsigned("granted_at_ms")? } else { 0 };
    let expires_at_ms = lease::expires_at_ms(granted_ms, duration_ms);
    Ok(match lease::renew(input.unsigned("at_ms")?, expires_at_ms, duration_ms) {
        Ok(_) => json!("renewed"),
        Err(lease::TooLate { .. }) => json!("refused:expired"),
    })
}

/// Temperatures in °C, one after the other.
fn thermal_pause(input: Input<'_>) -> Result<Value, String> {
    let millikelvin = |value: Number| weight(value, 1_000).and_then(|milli| u64::try_from(milli.checked_add(ZERO_CELSIUS_MK)?).ok());
    let limit_mk = millikelvin(input.required("threshold")?).ok_or("threshold is no temperature")?;
    let mut paused = false;
    let answers = input
        .array("temps")?
        .iter()
        .map(|value| {
            let temperature_mk = number(value).and_then(millikelvin).ok_or_else(|| format!("{value} is no temperature"))?;
            paused = thermal::paused(paused, temperature_mk, limit_mk, &Thresholds::default());
            Ok(paused)
        })
        .collect::<Result<Vec<_>, String>>()?;
    Ok(json!({ "paused": answers }))
}

/// Most callers at once in a case.
const CALLERS_MAX: u64 = 1_000_000;

fn slots(input: Input<'_>) -> Result<Slots, String> {
    let last_ms = input.has("last").then(|| input.unsigned("last")).transpose()?;
    Ok(Slots::new(input.unsigned("min_interval")?, last_ms))
}

fn arrivals(input: Input<'_>) -> Result<Vec<u64>, String> {
    let whole_ms = |value: &Value| number(value).and_then(whole).and_then(|ms| u64::try_from(ms).ok()).ok_or_else(|| format!("{value} is no time"));
    input.array("arrivals")?.iter().map(whole_ms).collect()
}

fn throttle_schedule(input: Input<'_>) -> Result<Value, String> {
    let mut slots = slots(input)?;
    if !input.has("arrivals_at_0") {
        return Ok(json!(arrivals(input)?.into_iter().map(|now_ms| slots.reserve(now_ms)).collect::<Vec<_>>()));
    }
    let callers = input.unsigned("arrivals_at_0")?.min(CALLERS_MAX);
    let given: Vec<u64> = (0..callers).map(|_| slots.reserve(0)).collect();
    Ok(json!({
        "first": given.first(),
        "last": given.last(),
        "min_gap": given.windows(2).map(|pair| pair[1] - pair[0]).min(),
        "delayed": given.iter().filter(|&&slot| slot > 0).count(),
    }))
}

fn throttle_try(input: Input<'_>) -> Result<Value, String> {
    let mut slots = slots(input)?;
    Ok(json!(arrivals(input)?.into_iter().map(|now_ms| slots.take(now_ms)).collect::<Vec<_>>()))
}

fn alert_rule(signal: Signal, limit: Limit, cooldown_s: u32) -> Rule {
    Rule { name: "case".to_owned(), severity: Severity::Warning, signal, limit, clear: None, for_s: 0, cooldown_s, summary: None }
}

/// A count from 0 to 2^63 - 1.
fn count(input: Input<'_>, key: &str) -> Result<i64, String> {
    i64::try_from(input.unsigned(key)?).map_err(|_| format!("{key} is beyond 2^63"))
}

/// How often a rule with that limit and cool-down fires over those values.
fn alert_cooldown(input: Input<'_>) -> Result<Value, String> {
    let cooldown_s = u32::try_from(input.unsigned("cooldown_s")?).map_err(|_| "cooldown_s is beyond 2^32".to_owned())?;
    let rule = alert_rule(Signal::PlaceableGpus, Limit::Above(count(input, "above")?), cooldown_s);
    let spacing_ns = count(input, "spacing_s")?.saturating_mul(NS_PER_S);
    let mut watch = Watch::default();
    let mut alerts = 0;
    for (n, value) in (0i64..).zip(input.array("values")?) {
        let value = number(value).and_then(whole).and_then(|value| i64::try_from(value).ok());
        let live_ns = spacing_ns.saturating_mul(n);
        alerts += i64::from(watch.observe(&rule, Span::at(live_ns), value, live_ns) == Moved::Fires);
    }
    Ok(json!({ "alerts": alerts }))
}

/// Whether a rule about the rate of samples fires when a minute brought as many as it names, after so many ever.
fn alert_cold_start(input: Input<'_>) -> Result<Value, String> {
    let rule = alert_rule(Signal::SamplesPerMin, Limit::Below(count(input, "equals")?.saturating_add(1)), 0);
    let samples = input.unsigned("samples_seen")?;
    let minute = Counted { live_ns: 60 * NS_PER_S, samples, rejected: 0 };
    let value = samples_per_minute(Counted { live_ns: 0, ..minute }, minute);
    let moved = Watch::default().observe(&rule, Span::at(minute.live_ns), value, minute.live_ns);
    Ok(json!({ "alerts": i64::from(moved == Moved::Fires) }))
}

/// The first event starts the time that the others are counted over.
fn alert_rate(input: Input<'_>) -> Result<Value, String> {
    let after_the_first = input.unsigned("events")?.saturating_sub(1);
    let elapsed_ns = i64::try_from(after_the_first).unwrap_or(i64::MAX).saturating_mul(count(input, "spacing_s")?.saturating_mul(NS_PER_S));
    Ok(json!(per_minute(after_the_first, elapsed_ns).unwrap_or(0)))
}
