//! The telemetry frame: one host's GPUs over one publish interval, as Protobuf with packed integer columns. See `proto/frame.proto`.
//!
//! Row `tick × gpus + gpu` of every column is one sample. 0 = absent, else value + 1. A new measured quantity is a new field
//! number, not a new version: readers skip numbers they do not know.

use prost::Message;

use crate::id::{HostId, Slot};
use crate::reason::Reason;
use crate::sample::{Field, Sample};
use crate::time::EventTime;

/// The schema version this build writes; others are refused by name.
pub const VERSION: u32 = 1;
/// Largest frame, bytes: the broker's default payload limit.
pub const BYTES_MAX: usize = 1 << 20;
/// Most GPUs in a frame.
pub const GPUS_MAX: usize = 256;
/// Most ticks in a frame.
pub const TICKS_MAX: usize = 600;
/// Most rows (ticks × GPUs) in a frame.
pub const ROWS_MAX: usize = 16_384;
/// Most columns, known and unknown.
pub const COLUMNS_MAX: usize = 64;
/// Most refusals carried in a frame; what is beyond travels as a count.
pub const REJECTED_MAX: usize = 1_024;
/// Longest raw value carried with a refusal, bytes.
pub const RAW_BYTES_MAX: usize = 64;

/// The wire form, field for field as in `proto/frame.proto`.
#[derive(Clone, PartialEq, Message)]
pub struct WireFrame {
    /// Schema version.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Host token.
    #[prost(string, tag = "2")]
    pub host: String,
    /// Agent epoch.
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    /// Sequence within (host, epoch, class sample), from 1.
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
    /// Kernel boot id, 16 bytes, or empty.
    #[prost(bytes = "vec", tag = "5")]
    pub boot_id: Vec<u8>,
    /// Inventory revision the slots refer to.
    #[prost(uint32, tag = "6")]
    pub inventory_revision: u32,
    /// Intended spacing of ticks, ms.
    #[prost(uint32, tag = "7")]
    pub interval_ms: u32,
    /// Sent from a backlog.
    #[prost(bool, tag = "8")]
    pub backfill: bool,
    /// Slots of the GPUs, one per column position.
    #[prost(uint32, repeated, tag = "9")]
    pub slots: Vec<u32>,
    /// Time of the first tick, ns UTC.
    #[prost(uint64, tag = "10")]
    pub first_at_ns: u64,
    /// Time of each tick after the first one, ns from `first_at_ns`; starts with the first tick's 0.
    #[prost(sint64, repeated, tag = "11")]
    pub tick_offset_ns: Vec<i64>,
    /// How long each tick holds, ms of CLOCK_BOOTTIME since the tick before.
    #[prost(uint32, repeated, tag = "12")]
    pub held_ms: Vec<u32>,
    /// The columns.
    #[prost(message, repeated, tag = "13")]
    pub columns: Vec<WireColumn>,
    /// What was refused on the host.
    #[prost(message, repeated, tag = "14")]
    pub rejected: Vec<WireRejected>,
    /// How many more were refused than are listed.
    #[prost(uint64, tag = "15")]
    pub rejected_more: u64,
}

/// One measured quantity over all rows.
#[derive(Clone, PartialEq, Message)]
pub struct WireColumn {
    /// Number of the field.
    #[prost(uint32, tag = "1")]
    pub field: u32,
    /// 0 = absent, else value + 1; one per row.
    #[prost(uint64, repeated, tag = "2")]
    pub values: Vec<u64>,
}

/// One refusal.
#[derive(Clone, PartialEq, Message)]
pub struct WireRejected {
    /// Number of the field; 0 = the whole sample.
    #[prost(uint32, tag = "1")]
    pub field: u32,
    /// Row it belongs to.
    #[prost(uint32, tag = "2")]
    pub row: u32,
    /// Number of the reason.
    #[prost(uint32, tag = "3")]
    pub reason: u32,
    /// What was given, cut to 64 bytes.
    #[prost(string, tag = "4")]
    pub raw: String,
}

/// One tick: when, and for how long its values hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tick {
    /// The host's wall clock.
    pub sampled_at: EventTime,
    /// CLOCK_BOOTTIME since the tick before, ms; at most 2.5 intervals, 0 for the first tick of an epoch.
    pub held_ms: u32,
}

/// One refusal made on the host, carried to SQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The field; absent = the whole sample.
    pub field: Option<Field>,
    /// Index of the tick.
    pub tick: usize,
    /// Index of the GPU in `slots`.
    pub gpu: usize,
    /// Why.
    pub reason: Reason,
    /// What was given, at most 64 bytes.
    pub raw: String,
}

/// One host's GPUs over one publish interval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Who sampled.
    pub host: HostId,
    /// The agent's life.
    pub epoch: u64,
    /// Contiguous from 1 within (host, epoch, class sample).
    pub sequence: u64,
    /// Kernel boot id; absent where there is none.
    pub boot_id: Option<[u8; 16]>,
    /// Inventory revision the slots refer to.
    pub inventory_revision: u32,
    /// Intended spacing of ticks, ms.
    pub interval_ms: u32,
    /// Sent from a backlog: does not count as a sign of life.
    pub backfill: bool,
    /// The GPUs, by slot.
    pub slots: Vec<Slot>,
    /// The ticks, oldest first.
    pub ticks: Vec<Tick>,
    /// The samples: `ticks.len() × slots.len()`, tick-major. An empty sample = the GPU gave nothing at that tick.
    pub samples: Vec<Sample>,
    /// What was refused on the host.
    pub rejected: Vec<Rejected>,
    /// How many more were refused than are listed.
    pub rejected_more: u64,
}

/// Why bytes are no frame: the closed reason for counting, and the sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("frame refused ({reason}): {detail}")]
pub struct FrameError {
    /// For counting.
    pub reason: Reason,
    /// What, where and what was allowed.
    pub detail: String,
}

impl FrameError {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

impl Frame {
    /// The sample of one GPU at one tick.
    pub fn sample(&self, tick: usize, gpu: usize) -> &Sample {
        &self.samples[tick * self.slots.len() + gpu]
    }

    /// The frame as bytes. Columns that no sample fills are left out.
    pub fn encode(&self) -> Vec<u8> {
        let first_at = self.ticks.first().map_or(0, |tick| tick.sampled_at.0);
        let columns = Field::ALL
            .iter()
            .filter(|&&field| self.samples.iter().any(|sample| sample.wire(field) != 0))
            .map(|&field| WireColumn { field: field as u32, values: self.samples.iter().map(|sample| sample.wire(field)).collect() })
            .collect();
        let listed = self.rejected.len().min(REJECTED_MAX);
        WireFrame {
            version: VERSION,
            host: self.host.to_string(),
            epoch: self.epoch,
            sequence: self.sequence,
            boot_id: self.boot_id.map(|id| id.to_vec()).unwrap_or_default(),
            inventory_revision: self.inventory_revision,
            interval_ms: self.interval_ms,
            backfill: self.backfill,
            slots: self.slots.iter().map(|slot| u32::from(slot.0)).collect(),
            first_at_ns: first_at.max(0) as u64,
            tick_offset_ns: self.ticks.iter().map(|tick| tick.sampled_at.0.saturating_sub(first_at)).collect(),
            held_ms: self.ticks.iter().map(|tick| tick.held_ms).collect(),
            columns,
            rejected: self.rejected[..listed]
                .iter()
                .map(|r| WireRejected {
                    field: r.field.map_or(0, |field| field as u32),
                    row: (r.tick * self.slots.len() + r.gpu) as u32,
                    reason: r.reason as u32,
                    raw: cut(&r.raw, RAW_BYTES_MAX).to_owned(),
                })
                .collect(),
            rejected_more: self.rejected_more.saturating_add((self.rejected.len() - listed) as u64),
        }
        .encode_to_vec()
    }

    /// Reads a frame. Refuses by name: too large, another version, any count beyond its limit (before anything is allocated for
    /// it), parts that contradict each other. Unknown fields are skipped; refusals of unknown fields or for unknown reasons are
    /// counted in `rejected_more`. Values are as sent: whether they are in range is validation's question.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > BYTES_MAX {
            return Err(FrameError::new(Reason::PayloadTooLarge, format!("{} bytes, at most {BYTES_MAX}", bytes.len())));
        }
        match read::version(bytes)? {
            Some(version) if version == u64::from(VERSION) => {}
            Some(other) => return Err(FrameError::new(Reason::UnsupportedVersion, format!("frame version {other}, this build reads {VERSION}"))),
            None => return Err(FrameError::new(Reason::UnsupportedVersion, format!("no frame version, this build reads {VERSION}"))),
        }
        let (wire, columns) = read::parts(bytes)?;
        Self::from_parts(wire, &columns)
    }

    /// Of the wire form, whose columns are still bytes.
    fn from_parts(wire: WireFrame, columns: &[&[u8]]) -> Result<Self, FrameError> {
        let inconsistent = |detail: String| FrameError::new(Reason::Inconsistent, detail);
        let host: HostId = wire.host.parse().map_err(|error: crate::id::IdError| FrameError::new(Reason::IdMalformed, error.to_string()))?;
        let boot_id = match wire.boot_id.len() {
            0 => None,
            16 => wire.boot_id.as_slice().try_into().ok(),
            other => return Err(inconsistent(format!("boot id of {other} bytes, expected 16 or none"))),
        };
        if wire.epoch == 0 || wire.sequence == 0 {
            return Err(inconsistent(format!("epoch {} and sequence {} count from 1", wire.epoch, wire.sequence)));
        }
        let gpus = wire.slots.len();
        let ticks = wire.tick_offset_ns.len();
        let rows = gpus * ticks;
        if gpus > GPUS_MAX || ticks > TICKS_MAX || rows > ROWS_MAX {
            return Err(FrameError::new(
                Reason::PayloadTooLarge,
                format!("{ticks} ticks x {gpus} GPUs, at most {TICKS_MAX} x {GPUS_MAX} and {ROWS_MAX} rows"),
            ));
        }
        if wire.held_ms.len() != ticks {
            return Err(inconsistent(format!("{} held_ms for {ticks} ticks", wire.held_ms.len())));
        }
        let mut slots = Vec::with_capacity(gpus);
        for slot in wire.slots {
            let slot = u8::try_from(slot).map(Slot).map_err(|_| inconsistent(format!("slot {slot}, at most 255")))?;
            if slots.contains(&slot) {
                return Err(inconsistent(format!("slot {} twice", slot.0)));
            }
            slots.push(slot);
        }
        let first_at = i64::try_from(wire.first_at_ns).map_err(|_| inconsistent(format!("first_at_ns {} beyond the year 2262", wire.first_at_ns)))?;
        let ticks = wire
            .tick_offset_ns
            .iter()
            .zip(&wire.held_ms)
            .map(|(&offset, &held_ms)| {
                let sampled_at =
                    first_at.checked_add(offset).map(EventTime).ok_or_else(|| inconsistent(format!("tick offset {offset} ns overflows")))?;
                Ok(Tick { sampled_at, held_ms })
            })
            .collect::<Result<Vec<_>, FrameError>>()?;
        let mut samples = vec![Sample::default(); rows];
        let mut seen = [false; Field::COUNT];
        for column in columns {
            let set = |row: usize, field, value| {
                if let Some(sample) = samples.get_mut(row) {
                    sample.set_wire(field, value);
                }
            };
            let Some((field, values)) = read::column(column, set)? else { continue };
            if values != rows {
                return Err(inconsistent(format!("{} has {values} values for {rows} rows", field.name())));
            }
            if std::mem::replace(&mut seen[field.index()], true) {
                return Err(inconsistent(format!("column {} twice", field.name())));
            }
        }
        let mut rejected = Vec::with_capacity(wire.rejected.len());
        let mut rejected_more = wire.rejected_more;
        for mut r in wire.rejected {
            let row = r.row as usize;
            if row >= rows {
                return Err(inconsistent(format!("refusal of row {row} among {rows}")));
            }
            let field = Field::from_number(r.field);
            match Reason::from_number(r.reason) {
                Some(reason) if r.field == 0 || field.is_some() => {
                    r.raw.truncate(r.raw.floor_char_boundary(RAW_BYTES_MAX));
                    rejected.push(Rejected { field, tick: row / gpus, gpu: row % gpus, reason, raw: r.raw });
                }
                // A newer agent's refusal: what it says is not known here, that it was said is.
                Some(_) | None => rejected_more = rejected_more.saturating_add(1),
            }
        }
        Ok(Self {
            host,
            epoch: wire.epoch,
            sequence: wire.sequence,
            boot_id,
            inventory_revision: wire.inventory_revision,
            interval_ms: wire.interval_ms,
            backfill: wire.backfill,
            slots,
            ticks,
            samples,
            rejected,
            rejected_more,
        })
    }
}

/// The longest prefix of at most `bytes` bytes that ends between characters.
pub fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Reads the parts of the wire form. Nothing is allocated beyond the limits, and columns are not copied: they stay bytes until it is known how many
/// rows there are.
mod read {
    use prost::Message;
    use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
    use smallvec::SmallVec;

    use super::{COLUMNS_MAX, Field, FrameError, GPUS_MAX, RAW_BYTES_MAX, REJECTED_MAX, ROWS_MAX, Reason, TICKS_MAX, WireColumn, WireFrame};
    use crate::id::TOKEN_BYTES_MAX;

    /// Longest varint, bytes.
    const VARINT_BYTES_MAX: usize = 10;

    /// The version, read before anything else is believed: under another one every other field may mean something else. Absent
    /// if the bytes name none.
    pub(super) fn version(mut bytes: &[u8]) -> Result<Option<u64>, FrameError> {
        while !bytes.is_empty() {
            let (tag, wire_type) = decode_key(&mut bytes).map_err(undecodable)?;
            if tag == 1 && wire_type == WireType::Varint {
                return decode_varint(&mut bytes).map(Some).map_err(undecodable);
            }
            skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(undecodable)?;
        }
        Ok(None)
    }

    fn undecodable(error: prost::DecodeError) -> FrameError {
        FrameError::new(Reason::Undecodable, error.to_string())
    }

    /// The bytes of each column.
    type Columns<'a> = SmallVec<[&'a [u8]; Field::COUNT]>;

    /// Everything but the columns, and those as bytes. Refuses counts and lengths beyond the limits.
    pub(super) fn parts(mut bytes: &[u8]) -> Result<(WireFrame, Columns<'_>), FrameError> {
        let (mut wire, mut columns) = (WireFrame::default(), Columns::new());
        // Packed arrays may legally come in pieces, so lengths add up per tag.
        let mut packed = [0usize; 16];
        while !bytes.is_empty() {
            let (tag, wire_type) = decode_key(&mut bytes).map_err(undecodable)?;
            if wire_type == WireType::LengthDelimited {
                let (body, rest) = split(tag, bytes)?;
                let length = body.len();
                match tag {
                    2 => limit("host", "bytes", length, TOKEN_BYTES_MAX)?,
                    5 => limit("boot_id", "bytes", length, 16)?,
                    9 | 11 | 12 => {
                        packed[tag as usize] += count_varints(body);
                        limit_packed(tag, packed[tag as usize])?;
                    }
                    13 => {
                        limit("columns", "columns", columns.len() + 1, COLUMNS_MAX)?;
                        limit("column", "bytes", length, ROWS_MAX * VARINT_BYTES_MAX + 32)?;
                        limit("column", "values", count_varints(body), ROWS_MAX + 32)?;
                        columns.push(body);
                        bytes = rest;
                        continue;
                    }
                    14 => {
                        limit("rejected", "entries", wire.rejected.len() + 1, REJECTED_MAX)?;
                        limit("rejected", "bytes", length, RAW_BYTES_MAX + 32)?;
                    }
                    _ => {}
                }
            } else if let Some(length) = packed.get_mut(tag as usize) {
                *length += 1;
                limit_packed(tag, *length)?;
            }
            wire.merge_field(tag, wire_type, &mut bytes, DecodeContext::default()).map_err(undecodable)?;
        }
        Ok((wire, columns))
    }

    /// Hands on the values of a column in order, each with its row; returns the field and how many there are, and nothing if this build does not
    /// know the field.
    pub(super) fn column(body: &[u8], mut set: impl FnMut(usize, Field, u64)) -> Result<Option<(Field, usize)>, FrameError> {
        let mut rows = 0;
        let mut hand_on = |field: Option<Field>, value| {
            field.into_iter().for_each(|field| set(rows, field, value));
            rows += 1;
        };
        let field = if let Some((number, mut values)) = as_written(body) {
            let field = Field::from_number(number);
            while !values.is_empty() {
                hand_on(field, decode_varint(&mut values).map_err(undecodable)?);
            }
            field
        } else {
            let column = WireColumn::decode(body).map_err(undecodable)?;
            let field = Field::from_number(column.field);
            column.values.into_iter().for_each(|value| hand_on(field, value));
            field
        };
        Ok(field.map(|field| (field, rows)))
    }

    /// The number of the field and the packed values of a column that is laid out as encoders write it: one of each, in this order.
    fn as_written(mut body: &[u8]) -> Option<(u32, &[u8])> {
        body = body.strip_prefix(&[1 << 3 | WireType::Varint as u8])?;
        let field = u32::try_from(decode_varint(&mut body).ok()?).ok()?;
        body = body.strip_prefix(&[2 << 3 | WireType::LengthDelimited as u8])?;
        let length = decode_varint(&mut body).ok()?;
        (body.len() as u64 == length).then_some((field, body))
    }

    /// The body of a length-delimited field, and what follows it.
    fn split(tag: u32, mut bytes: &[u8]) -> Result<(&[u8], &[u8]), FrameError> {
        let length = decode_varint(&mut bytes).map_err(undecodable)?;
        usize::try_from(length)
            .ok()
            .and_then(|length| bytes.split_at_checked(length))
            .ok_or_else(|| FrameError::new(Reason::Undecodable, format!("field {tag} says {length} bytes, {} are left", bytes.len())))
    }

    fn limit_packed(tag: u32, count: usize) -> Result<(), FrameError> {
        match tag {
            9 => limit("slots", "GPUs", count, GPUS_MAX),
            11 => limit("tick_offset_ns", "ticks", count, TICKS_MAX),
            12 => limit("held_ms", "ticks", count, TICKS_MAX),
            _ => Ok(()),
        }
    }

    fn count_varints(body: &[u8]) -> usize {
        body.iter().filter(|&&byte| byte & 0x80 == 0).count()
    }

    fn limit(what: &str, unit: &str, count: usize, max: usize) -> Result<(), FrameError> {
        if count <= max { Ok(()) } else { Err(FrameError::new(Reason::PayloadTooLarge, format!("{what}: {count} {unit}, at most {max}"))) }
    }
}
