//! `frame.proto` and the codec are one format: a reader made from the file alone sees the values that were written, and what it
//! writes is read here.

use plimsoll_schemas::frame::{Frame, WireFrame};
use proptest::prelude::*;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};

use crate::bless::path;
use crate::examples;
use crate::frames::any_frame;

fn descriptor() -> MessageDescriptor {
    let files = protox::compile(["frame.proto"], [path("proto")]).expect("frame.proto compiles");
    let pool = DescriptorPool::from_file_descriptor_set(files).expect("descriptors agree");
    pool.get_message_by_name("plimsoll.v1.Frame").expect("the frame's name")
}

fn list<T: Copy>(values: &[T], value: impl Fn(T) -> Value) -> Value {
    Value::List(values.iter().map(|&item| value(item)).collect())
}

/// The fields of the wire form by the names of the file.
fn fields(wire: &WireFrame) -> Vec<(&'static str, Value)> {
    vec![
        ("version", Value::U32(wire.version)),
        ("host", Value::String(wire.host.clone())),
        ("epoch", Value::U64(wire.epoch)),
        ("sequence", Value::U64(wire.sequence)),
        ("boot_id", Value::Bytes(wire.boot_id.clone().into())),
        ("inventory_revision", Value::U32(wire.inventory_revision)),
        ("interval_ms", Value::U32(wire.interval_ms)),
        ("backfill", Value::Bool(wire.backfill)),
        ("slots", list(&wire.slots, Value::U32)),
        ("first_at_ns", Value::U64(wire.first_at_ns)),
        ("tick_offset_ns", list(&wire.tick_offset_ns, Value::I64)),
        ("held_ms", list(&wire.held_ms, Value::U32)),
        ("rejected_more", Value::U64(wire.rejected_more)),
    ]
}

fn assert_same(message: &DynamicMessage, fields: Vec<(&'static str, Value)>) {
    assert_eq!(message.unknown_fields().count(), 0, "{message:?}");
    for (name, value) in fields {
        assert_eq!(message.get_field_by_name(name).expect("the file has the field").as_ref(), &value, "{name}");
    }
}

fn inner(message: &DynamicMessage, field: &str) -> Vec<DynamicMessage> {
    let list = message.get_field_by_name(field).expect("the file has the field");
    list.as_list().expect("repeated").iter().map(|item| item.as_message().expect("a message").clone()).collect()
}

fn check(descriptor: &MessageDescriptor, frame: &Frame) {
    let bytes = frame.encode();
    let wire = WireFrame::decode(bytes.as_slice()).expect("own bytes");
    let message = DynamicMessage::decode(descriptor.clone(), bytes.as_slice()).expect("the file's reader reads it");
    assert_same(&message, fields(&wire));
    let (columns, rejected) = (inner(&message, "columns"), inner(&message, "rejected"));
    assert_eq!((columns.len(), rejected.len()), (wire.columns.len(), wire.rejected.len()));
    for (message, column) in columns.iter().zip(&wire.columns) {
        assert_same(message, vec![("field", Value::U32(column.field)), ("values", list(&column.values, Value::U64))]);
    }
    for (message, r) in rejected.iter().zip(&wire.rejected) {
        let numbers = [("field", r.field), ("row", r.row), ("reason", r.reason)].map(|(name, number)| (name, Value::U32(number)));
        assert_same(message, [numbers.to_vec(), vec![("raw", Value::String(r.raw.clone()))]].concat());
    }
    assert_eq!(message.encode_to_vec(), bytes, "the file's writer packs as the codec does");
    assert_eq!(Frame::decode(&message.encode_to_vec()).as_ref(), Ok(frame));
}

#[test]
fn a_reader_made_from_the_file_sees_every_field_of_the_example() {
    let frame = examples::frame();
    let wire = WireFrame::decode(frame.encode().as_slice()).expect("own bytes");
    let absent: Vec<_> = fields(&wire).into_iter().filter(|(_, value)| value.is_default_for_test()).map(|(name, _)| name).collect();
    assert!(absent.is_empty(), "the example leaves {absent:?} at their defaults, so they prove nothing");
    check(&descriptor(), &frame);
}

#[test]
fn the_file_and_the_codec_have_the_same_fields_and_no_more() {
    let names: Vec<_> = descriptor().fields().map(|field| (field.number(), field.name().to_owned())).collect();
    let expected = [
        "version",
        "host",
        "epoch",
        "sequence",
        "boot_id",
        "inventory_revision",
        "interval_ms",
        "backfill",
        "slots",
        "first_at_ns",
        "tick_offset_ns",
        "held_ms",
        "columns",
        "rejected",
        "rejected_more",
    ];
    assert_eq!(names, (1..).zip(expected.map(str::to_owned)).collect::<Vec<_>>());
}

trait IsDefault {
    fn is_default_for_test(&self) -> bool;
}

impl IsDefault for Value {
    fn is_default_for_test(&self) -> bool {
        match self {
            Value::Bool(value) => !value,
            Value::U32(value) => *value == 0,
            Value::U64(value) => *value == 0,
            Value::String(value) => value.is_empty(),
            Value::Bytes(value) => value.is_empty(),
            Value::List(value) => value.is_empty(),
            Value::I32(_) | Value::I64(_) | Value::F32(_) | Value::F64(_) | Value::EnumNumber(_) | Value::Message(_) | Value::Map(_) => {
                panic!("no field of this kind")
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_frame_reads_the_same_through_the_file(frame in any_frame()) {
        check(&descriptor(), &frame);
    }
}
