//! The frame's codec: writing and reading is identity, nothing makes it panic, and what is refused is refused by name.

use plimsoll_schemas::frame::{
    BYTES_MAX, COLUMNS_MAX, Frame, GPUS_MAX, RAW_BYTES_MAX, REJECTED_MAX, ROWS_MAX, Rejected, TICKS_MAX, Tick, WireColumn, WireFrame, WireRejected,
};
use plimsoll_schemas::id::{HostId, Slot};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::EventTime;
use proptest::prelude::*;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::examples;

prop_compose! {
    fn any_sample()(columns in prop::collection::vec(prop::option::of(prop_oneof![0..200u64, any::<u64>()]), Field::COUNT)) -> Sample {
        let mut sample = Sample::default();
        for (&field, value) in Field::ALL.iter().zip(columns) {
            value.into_iter().for_each(|value| sample.set(field, value));
        }
        sample
    }
}

prop_compose! {
    fn any_rejected(ticks: usize, gpus: usize)(
        field in prop::option::of(prop::sample::select(Field::ALL)), tick in 0..ticks, gpu in 0..gpus,
        reason in prop::sample::select(Reason::ALL), raw in "\\PC{0,16}",
    ) -> Rejected {
        Rejected { field, tick, gpu, reason, raw }
    }
}

/// Any frame that an agent can make, also without GPUs or ticks.
pub fn any_frame() -> impl Strategy<Value = Frame> {
    (0..9usize, 0..6usize).prop_flat_map(|(gpus, ticks)| {
        let rows = gpus * ticks;
        let numbers = (1..=u64::MAX, 1..=u64::MAX, any::<u32>(), any::<u32>(), any::<bool>(), any::<u64>());
        let tick = (0..i64::MAX / 2, any::<u32>()).prop_map(|(at, held_ms)| Tick { sampled_at: EventTime(at), held_ms });
        let rejected = if rows == 0 { Just(Vec::new()).boxed() } else { prop::collection::vec(any_rejected(ticks, gpus), 0..5).boxed() };
        (
            ("[A-Za-z0-9_-]{1,128}", prop::option::of(any::<[u8; 16]>()), numbers),
            Just((0..=255u8).map(Slot).collect::<Vec<_>>()).prop_shuffle().prop_map(move |slots| slots[..gpus].to_vec()),
            prop::collection::vec(tick, ticks),
            prop::collection::vec(any_sample(), rows),
            rejected,
        )
            .prop_map(|((host, boot_id, numbers), slots, ticks, samples, rejected)| {
                let (epoch, sequence, inventory_revision, interval_ms, backfill, rejected_more) = numbers;
                let host: HostId = host.parse().expect("a token");
                Frame { host, epoch, sequence, boot_id, inventory_revision, interval_ms, backfill, slots, ticks, samples, rejected, rejected_more }
            })
    })
}

proptest! {
    #[test]
    fn reading_what_was_written_gives_the_frame(frame in any_frame()) {
        let bytes = frame.encode();
        let read = Frame::decode(&bytes).expect("own bytes");
        prop_assert_eq!(&read, &frame);
        prop_assert_eq!(read.encode(), bytes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn a_damaged_frame_is_read_or_refused_and_what_is_read_can_be_written(
        frame in any_frame(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        end in any::<prop::sample::Index>(),
        is_cut: bool,
    ) {
        let mut bytes = frame.encode();
        for (place, value) in damage {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        if is_cut {
            bytes.truncate(end.index(bytes.len()));
        }
        if let Ok(read) = Frame::decode(&bytes) {
            prop_assert!(read.samples.len() == read.slots.len() * read.ticks.len() && read.samples.len() <= ROWS_MAX);
            let _ = read.encode();
        }
    }
}

fn wire() -> WireFrame {
    WireFrame::decode(examples::frame().encode().as_slice()).expect("own bytes")
}

fn refused(bytes: &[u8], reason: Reason, detail: &str) {
    let error = Frame::decode(bytes).expect_err(detail);
    assert_eq!((error.reason, error.detail.as_str()), (reason, detail));
}

fn check(change: impl FnOnce(&mut WireFrame), reason: Reason, detail: &str) {
    let mut wire = wire();
    change(&mut wire);
    refused(&wire.encode_to_vec(), reason, detail);
}

#[test]
fn parts_that_contradict_each_other_are_refused_by_name() {
    let inconsistent = |change: fn(&mut WireFrame), detail: &str| check(change, Reason::Inconsistent, detail);
    inconsistent(|w| w.epoch = 0, "epoch 0 and sequence 1000000 count from 1");
    inconsistent(|w| w.sequence = 0, "epoch 3 and sequence 0 count from 1");
    inconsistent(|w| w.boot_id.truncate(15), "boot id of 15 bytes, expected 16 or none");
    inconsistent(|w| w.slots[0] = 256, "slot 256, at most 255");
    inconsistent(|w| w.slots[0] = 255, "slot 255 twice");
    inconsistent(|w| w.held_ms.truncate(1), "1 held_ms for 3 ticks");
    inconsistent(|w| w.first_at_ns = u64::MAX, "first_at_ns 18446744073709551615 beyond the year 2262");
    inconsistent(|w| w.tick_offset_ns[2] = i64::MAX, "tick offset 9223372036854775807 ns overflows");
    inconsistent(|w| w.columns[0].values.truncate(5), "util_percent has 5 values for 6 rows");
    inconsistent(|w| w.columns[1].field = 1, "column util_percent twice");
    inconsistent(|w| w.rejected[0].row = 6, "refusal of row 6 among 6");
    check(|w| w.host = "a.b".to_owned(), Reason::IdMalformed, "malformed host \"a.b\": 1 to 128 characters of A-Z a-z 0-9 _ - (escape others)");
}

#[test]
fn what_is_beyond_a_limit_is_refused_by_name() {
    let too_large = |change: fn(&mut WireFrame), detail: &str| check(change, Reason::PayloadTooLarge, detail);
    too_large(|w| w.host = "x".repeat(129), "host: 129 bytes, at most 128");
    too_large(|w| w.boot_id = vec![0; 17], "boot_id: 17 bytes, at most 16");
    too_large(|w| w.slots = vec![0; GPUS_MAX + 1], "slots: 257 GPUs, at most 256");
    too_large(|w| w.tick_offset_ns = vec![0; TICKS_MAX + 1], "tick_offset_ns: 601 ticks, at most 600");
    too_large(|w| w.held_ms = vec![0; TICKS_MAX + 1], "held_ms: 601 ticks, at most 600");
    too_large(|w| w.columns = vec![WireColumn::default(); COLUMNS_MAX + 1], "columns: 65 columns, at most 64");
    too_large(|w| w.columns[0].values = vec![0; ROWS_MAX + 33], "column: 16421 values, at most 16416");
    too_large(|w| w.columns[0].values = vec![u64::MAX; ROWS_MAX + 4], "column: 163886 bytes, at most 163872");
    too_large(|w| w.rejected = vec![WireRejected::default(); REJECTED_MAX + 1], "rejected: 1025 entries, at most 1024");
    too_large(|w| w.rejected[0].raw = "x".repeat(200), "rejected: 209 bytes, at most 96");
    too_large(
        |w| (w.slots, w.tick_offset_ns, w.held_ms) = ((0..256).collect(), vec![0; 65], vec![0; 65]),
        "65 ticks x 256 GPUs, at most 600 x 256 and 16384 rows",
    );
    refused(&vec![0; BYTES_MAX + 1], Reason::PayloadTooLarge, "1048577 bytes, at most 1048576");
}

#[test]
fn the_largest_frame_of_every_kind_passes_the_limits() {
    let frame = Frame {
        slots: (0..=255).map(Slot).collect(),
        ticks: vec![Tick { sampled_at: EventTime(1), held_ms: 1 }; 64],
        samples: vec![Sample::default().with(Field::UtilPercent, 100); ROWS_MAX],
        rejected: vec![Rejected { field: None, tick: 63, gpu: 255, reason: Reason::MaxWait, raw: "x".repeat(RAW_BYTES_MAX) }; REJECTED_MAX],
        host: "h".repeat(128).parse().expect("valid"),
        ..examples::frame()
    };
    assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
}

#[test]
fn more_refusals_than_a_frame_lists_travel_as_a_count() {
    let mut frame = examples::frame();
    frame.rejected = vec![frame.rejected[0].clone(); REJECTED_MAX + 5];
    let read = Frame::decode(&frame.encode()).expect("own bytes");
    assert_eq!((read.rejected.len(), read.rejected_more), (REJECTED_MAX, frame.rejected_more + 5));
}

fn length_delimited(tag: u32, body: &[u8], says: u64, into: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(says, into);
    into.extend_from_slice(body);
}

fn header() -> Vec<u8> {
    WireFrame { version: 1, host: "h".to_owned(), epoch: 1, sequence: 1, ..WireFrame::default() }.encode_to_vec()
}

#[test]
fn a_length_that_lies_allocates_nothing() {
    for tag in 1..20 {
        for says in [1, 1 << 20, 1 << 31, u64::MAX] {
            let mut bytes = header();
            length_delimited(tag, &[], says, &mut bytes);
            assert_eq!(Frame::decode(&bytes).map_err(|error| error.reason), Err(Reason::Undecodable), "{tag} {says}");
        }
    }
}

#[test]
fn arrays_in_pieces_add_up_to_the_same_limits() {
    let mut packed = header();
    (0..=GPUS_MAX).for_each(|_| length_delimited(9, &[1], 1, &mut packed));
    refused(&packed, Reason::PayloadTooLarge, "slots: 257 GPUs, at most 256");
    let mut unpacked = header();
    for _ in 0..=TICKS_MAX {
        encode_key(11, WireType::Varint, &mut unpacked);
        encode_varint(0, &mut unpacked);
    }
    refused(&unpacked, Reason::PayloadTooLarge, "tick_offset_ns: 601 ticks, at most 600");
}

#[test]
fn arrays_that_are_not_packed_are_read_all_the_same() {
    let mut bytes = WireFrame { version: 1, host: "h".to_owned(), epoch: 1, sequence: 1, first_at_ns: 100, ..WireFrame::default() }.encode_to_vec();
    for (tag, value) in [(9, 7), (9, 8), (11, 1), (12, 500)] {
        encode_key(tag, WireType::Varint, &mut bytes);
        encode_varint(value, &mut bytes);
    }
    let mut column = vec![8, 1];
    for value in [0, 43] {
        encode_key(2, WireType::Varint, &mut column);
        encode_varint(value, &mut column);
    }
    length_delimited(13, &column, column.len() as u64, &mut bytes);
    let frame = Frame::decode(&bytes).expect("legal Protobuf");
    assert_eq!(frame.slots, [Slot(7), Slot(8)]);
    // Zigzag: 1 on the wire is -1.
    assert_eq!(frame.ticks, [Tick { sampled_at: EventTime(99), held_ms: 500 }]);
    assert_eq!((frame.sample(0, 0).util_percent(), frame.sample(0, 1).util_percent()), (None, Some(42)));
}

#[test]
fn a_column_reads_the_same_however_its_parts_are_laid_out() {
    let (header, slots) = (header(), [7, 8]);
    let laid_out = |parts: &[&[u8]]| {
        let mut bytes = header.clone();
        length_delimited(9, &slots, 2, &mut bytes);
        length_delimited(11, &[0], 1, &mut bytes);
        length_delimited(12, &[1], 1, &mut bytes);
        let column = parts.concat();
        length_delimited(13, &column, column.len() as u64, &mut bytes);
        let frame = Frame::decode(&bytes).map_err(|error| error.detail)?;
        Ok::<_, String>((frame.sample(0, 0).util_percent(), frame.sample(0, 1).util_percent()))
    };
    let (field, unknown): (&[u8], &[u8]) = (&[8, 1], &[0x1a, 1, 9]);
    for parts in [
        [field, &[0x12, 2, 43, 0]].as_slice(),
        &[&[0x12, 2, 43, 0], field],
        &[field, &[0x12, 1, 43, 0x12, 1, 0]],
        &[field, unknown, &[0x10, 43, 0x12, 1, 0]],
    ] {
        assert_eq!(laid_out(parts), Ok((Some(42), None)), "{parts:?}");
    }
    assert_eq!(laid_out(&[field, &[0x12, 2, 43]]).expect_err("cut"), "failed to decode Protobuf message: WireColumn.values: buffer underflow");
    assert_eq!(
        laid_out(&[field, &[0x12, 2, 43, 0xff]]).expect_err("a varint that does not end"),
        "failed to decode Protobuf message: invalid varint"
    );
    // What this build does not know is looked at all the same.
    assert_eq!(
        laid_out(&[&[8, 99], &[0x12, 2, 43, 0xff]]).expect_err("a varint that does not end"),
        "failed to decode Protobuf message: invalid varint"
    );
}

#[test]
fn another_version_is_refused_with_both_numbers_whatever_else_it_holds() {
    check(|w| w.version = 2, Reason::UnsupportedVersion, "frame version 2, this build reads 1");
    check(|w| w.version = 0, Reason::UnsupportedVersion, "no frame version, this build reads 1");
    refused(&[], Reason::UnsupportedVersion, "no frame version, this build reads 1");
    // Version 2 may give every other number another type and another limit.
    let mut bytes = vec![8, 2, 0x10, 5];
    length_delimited(13, &[0; 40_000], 40_000, &mut bytes);
    refused(&bytes, Reason::UnsupportedVersion, "frame version 2, this build reads 1");
    let mut huge = vec![8];
    encode_varint(u64::MAX, &mut huge);
    refused(&huge, Reason::UnsupportedVersion, "frame version 18446744073709551615, this build reads 1");
}

#[test]
fn numbers_of_a_newer_agent_are_skipped() {
    let mut newer = wire();
    newer.columns.push(WireColumn { field: 999, values: vec![1, 2, 3] });
    newer.rejected.push(WireRejected { field: 999, row: 0, reason: 1, raw: String::new() });
    newer.rejected.push(WireRejected { field: 1, row: 0, reason: 9_999, raw: String::new() });
    let mut bytes = newer.encode_to_vec();
    length_delimited(1_000, b"text", 4, &mut bytes);
    encode_key(99, WireType::SixtyFourBit, &mut bytes);
    bytes.extend_from_slice(&[0; 8]);
    let known = examples::frame();
    assert_eq!(Frame::decode(&bytes), Ok(Frame { rejected_more: known.rejected_more + 2, ..known }));
}

#[test]
fn a_raw_value_longer_than_it_may_be_is_cut_between_characters() {
    let mut wire = wire();
    wire.rejected[0].raw = "ä".repeat(40);
    let frame = Frame::decode(&wire.encode_to_vec()).expect("within the entry's bytes");
    assert_eq!(frame.rejected[0].raw, "ä".repeat(32));
}
