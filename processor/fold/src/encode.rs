//! Plain data as postcard's bytes at the end of a buffer: what `postcard::to_extend` gives, without its iterator for every integer.

use postcard::ser_flavors::Flavor;
use serde::Serialize;

/// Where the bytes go.
struct Bytes(Vec<u8>);

impl Flavor for Bytes {
    type Output = Vec<u8>;

    #[inline(always)]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline(always)]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        // Most integers take one byte, and a call to copy it costs more than the byte.
        match bytes {
            [byte] => self.0.push(*byte),
            bytes => self.0.extend_from_slice(bytes),
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// The buffer with the bytes of a value behind what stood in it.
pub fn append<T: Serialize + ?Sized>(value: &T, to: Vec<u8>) -> Vec<u8> {
    postcard::serialize_with_flavor(value, Bytes(to)).expect("a vector grows, and plain data always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_bytes_are_those_of_postcard(
            value: (u8, i16, u32, i64, u64, bool, Option<String>, Vec<(u16, u32)>, [u8; 3], Vec<Option<i64>>), before: Vec<u8>,
        ) {
            let expected = [before.clone(), postcard::to_stdvec(&value).expect("plain data")].concat();
            prop_assert_eq!(append(&value, before), expected);
        }
    }
}
