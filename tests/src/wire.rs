//! A second reader of telemetry frames, written from `schemas/proto/frame.proto` alone.

use anyhow::{Context, Result, bail, ensure};

/// Field numbers of the columns the oracle needs.
pub mod field {
    /// Percent.
    pub const UTIL_PERCENT: u64 = 1;
    /// Bytes.
    pub const MEMORY_USED_BYTES: u64 = 3;
    /// Bytes.
    pub const MEMORY_TOTAL_BYTES: u64 = 4;
    /// Milliwatts.
    pub const POWER_MW: u64 = 5;
    /// Millijoules since the tick before.
    pub const ENERGY_MJ: u64 = 6;
    /// Millikelvin.
    pub const TEMPERATURE_MK: u64 = 7;
}

/// One frame as it stands on the wire.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// Host token.
    pub host: String,
    /// The agent's life.
    pub epoch: u64,
    /// Sequence within it.
    pub sequence: u64,
    /// Inventory revision.
    pub inventory_revision: u64,
    /// Spacing of ticks, ms.
    pub interval_ms: u64,
    /// From a backlog.
    pub backfill: bool,
    /// Slots of the GPUs.
    pub slots: Vec<u64>,
    /// Time of each tick, ns UTC.
    pub ticks_ns: Vec<i64>,
    /// How long each tick holds, ms.
    pub held_ms: Vec<u64>,
    /// (field number, one value per row; 0 = absent, else value + 1).
    pub columns: Vec<(u64, Vec<u64>)>,
    /// How many refusals it carries.
    pub rejected: usize,
}

impl Frame {
    /// The value of a field at a tick for the GPU at a place in `slots`.
    pub fn value(&self, field: u64, tick: usize, gpu: usize) -> Option<u64> {
        let (_, values) = self.columns.iter().find(|(number, _)| *number == field)?;
        values[tick * self.slots.len() + gpu].checked_sub(1)
    }

    /// Whether the GPU gave any value at the tick.
    pub fn gave_anything(&self, tick: usize, gpu: usize) -> bool {
        self.columns.iter().any(|(_, values)| values[tick * self.slots.len() + gpu] != 0)
    }

    /// Reads a frame.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut frame = Self::default();
        let (mut first_at_ns, mut offsets) = (0i64, Vec::new());
        for part in fields(bytes) {
            match part? {
                (2, Value::Bytes(text)) => frame.host = String::from_utf8(text.to_vec())?,
                (3, Value::Varint(v)) => frame.epoch = v,
                (4, Value::Varint(v)) => frame.sequence = v,
                (6, Value::Varint(v)) => frame.inventory_revision = v,
                (7, Value::Varint(v)) => frame.interval_ms = v,
                (8, Value::Varint(v)) => frame.backfill = v != 0,
                (9, Value::Bytes(packed)) => frame.slots = varints(packed)?,
                (10, Value::Varint(v)) => first_at_ns = i64::try_from(v)?,
                (11, Value::Bytes(packed)) => offsets = varints(packed)?.into_iter().map(zigzag).collect(),
                (12, Value::Bytes(packed)) => frame.held_ms = varints(packed)?,
                (13, Value::Bytes(column)) => frame.columns.push(read_column(column)?),
                (14, Value::Bytes(_)) => frame.rejected += 1,
                _ => {}
            }
        }
        frame.ticks_ns = offsets.into_iter().map(|offset| first_at_ns + offset).collect();
        ensure!(frame.held_ms.len() == frame.ticks_ns.len(), "held_ms and ticks differ");
        for (number, values) in &frame.columns {
            ensure!(values.len() == frame.ticks_ns.len() * frame.slots.len(), "column {number} has {} values", values.len());
        }
        Ok(frame)
    }
}

fn read_column(bytes: &[u8]) -> Result<(u64, Vec<u64>)> {
    let (mut number, mut values) = (0, Vec::new());
    for part in fields(bytes) {
        match part? {
            (1, Value::Varint(v)) => number = v,
            (2, Value::Bytes(packed)) => values = varints(packed)?,
            _ => {}
        }
    }
    Ok((number, values))
}

enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
}

fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<(u64, Value<'_>)>> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| next_field(&mut bytes)))
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<(u64, Value<'a>)> {
    let key = varint(bytes)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(bytes)?),
        2 => {
            let length = usize::try_from(varint(bytes)?)?;
            let (body, rest) = bytes.split_at_checked(length).context("cut field")?;
            *bytes = rest;
            Value::Bytes(body)
        }
        other => bail!("wire type {other} is not used in frames"),
    };
    Ok((key >> 3, value))
}

fn varints(mut packed: &[u8]) -> Result<Vec<u64>> {
    let mut values = Vec::new();
    while !packed.is_empty() {
        values.push(varint(&mut packed)?);
    }
    Ok(values)
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().context("cut varint")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("varint of more than ten bytes")
}

fn zigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
