//! Plain data as postcard's bytes at the end of a buffer. The same bytes as postcard's own serialiser gives, at a third of the instructions: a
//! vector grows and never refuses, so there is nothing to check after every field.

use postcard::Error;
use serde::ser::{self, Serialize};

/// The buffer with the bytes of a value behind what stood in it.
pub fn append<T: Serialize + ?Sized>(value: &T, mut to: Vec<u8>) -> Vec<u8> {
    value.serialize(&mut Bytes(&mut to)).expect("plain data knows how long it is");
    to
}

/// Where the bytes go.
struct Bytes<'a>(&'a mut Vec<u8>);

impl Bytes<'_> {
    /// Seven bits a byte, the lowest first; all but the last have the eighth set.
    #[inline(always)]
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// Small numbers of either sign in few bytes.
    #[inline(always)]
    fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    #[inline(always)]
    fn text(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

macro_rules! numbers {
    ($($method:ident, $number:ty, $as:ident, $wide:ty;)*) => {
        $(#[inline(always)]
        fn $method(self, value: $number) -> Result<(), Error> {
            self.$as(<$wide>::from(value));
            Ok(())
        })*
    };
}

impl ser::Serializer for &mut Bytes<'_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    numbers! {
        serialize_u16, u16, varint, u64;
        serialize_u32, u32, varint, u64;
        serialize_u64, u64, varint, u64;
        serialize_i16, i16, zigzag, i64;
        serialize_i32, i32, zigzag, i64;
        serialize_i64, i64, zigzag, i64;
    }

    #[inline(always)]
    fn serialize_bool(self, value: bool) -> Result<(), Error> {
        self.serialize_u8(u8::from(value))
    }

    #[inline(always)]
    fn serialize_u8(self, value: u8) -> Result<(), Error> {
        self.0.push(value);
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), Error> {
        self.0.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<(), Error> {
        self.0.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Result<(), Error> {
        self.0.extend_from_slice(&value.to_le_bytes());
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<(), Error> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    #[inline(always)]
    fn serialize_str(self, value: &str) -> Result<(), Error> {
        self.text(value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<(), Error> {
        self.text(value);
        Ok(())
    }

    #[inline(always)]
    fn serialize_none(self) -> Result<(), Error> {
        self.serialize_u8(0)
    }

    #[inline(always)]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Error> {
        self.0.push(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        Ok(())
    }

    #[inline(always)]
    fn serialize_unit_variant(self, _: &'static str, number: u32, _: &'static str) -> Result<(), Error> {
        self.serialize_u32(number)
    }

    #[inline(always)]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Error> {
        value.serialize(self)
    }

    #[inline(always)]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(self, _: &'static str, number: u32, _: &'static str, value: &T) -> Result<(), Error> {
        self.varint(u64::from(number));
        value.serialize(self)
    }

    #[inline(always)]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self, Error> {
        self.varint(len.ok_or(Error::SerializeSeqLengthUnknown)? as u64);
        Ok(self)
    }

    #[inline(always)]
    fn serialize_tuple(self, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    #[inline(always)]
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    #[inline(always)]
    fn serialize_tuple_variant(self, _: &'static str, number: u32, _: &'static str, _: usize) -> Result<Self, Error> {
        self.varint(u64::from(number));
        Ok(self)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self, Error> {
        self.serialize_seq(len)
    }

    #[inline(always)]
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Error> {
        Ok(self)
    }

    #[inline(always)]
    fn serialize_struct_variant(self, _: &'static str, number: u32, _: &'static str, _: usize) -> Result<Self, Error> {
        self.varint(u64::from(number));
        Ok(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! parts {
    ($($of:ident, $method:ident $(, $name:ty)?;)*) => {
        $(impl ser::$of for &mut Bytes<'_> {
            type Ok = ();
            type Error = Error;

            #[inline(always)]
            fn $method<T: Serialize + ?Sized>(&mut self, $(_: $name,)? value: &T) -> Result<(), Error> {
                value.serialize(&mut **self)
            }

            #[inline(always)]
            fn end(self) -> Result<(), Error> {
                Ok(())
            }
        })*
    };
}

parts! {
    SerializeSeq, serialize_element;
    SerializeTuple, serialize_element;
    SerializeTupleStruct, serialize_field;
    SerializeTupleVariant, serialize_field;
    SerializeStruct, serialize_field, &'static str;
    SerializeStructVariant, serialize_field, &'static str;
}

impl ser::SerializeMap for &mut Bytes<'_> {
    type Ok = ();
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;
    use serde::Serialize;

    fn check<T: Serialize>(value: &T, before: &[u8]) {
        let expected = [before, &postcard::to_stdvec(value).expect("plain data")].concat();
        assert_eq!(append(value, before.to_vec()), expected);
    }

    #[derive(Serialize)]
    struct Unit;

    #[derive(Serialize)]
    struct New(i32);

    #[derive(Serialize)]
    enum Kind {
        Unit,
        New(u64),
        Tuple(u8, i16),
        Struct { a: Option<u32>, b: bool },
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_postcard(
            numbers: (u8, i8, u16, i16, u32, i32, u64, i64, f32, f64), texts: (String, char, Option<String>, Vec<u8>), many: Vec<(u16, u32)>,
            parts: ([u8; 3], Vec<Option<i64>>, BTreeMap<String, u16>, bool, ()), before: Vec<u8>,
        ) {
            check(&(numbers, texts, many, parts), &before);
            check(&(Unit, New(numbers.5), Kind::Unit, Kind::New(numbers.6), Kind::Tuple(numbers.0, numbers.3)), &before);
            check(&Kind::Struct { a: Some(numbers.4), b: numbers.0 > 7 }, &before);
        }
    }
}
