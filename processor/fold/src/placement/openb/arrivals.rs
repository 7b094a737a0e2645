//! The recorded orders: those in which pods arrived, and those of hosts that were worth the same.

use crate::placement::policy::workload::Sequence;

/// What is wrong with a file of recorded sequences.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {what}")]
pub struct Error {
    /// Where.
    pub offset: usize,
    /// What is there and what was expected.
    pub what: String,
}

/// How large the lists are that a sequence speaks of.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Pods.
    pub pods: usize,
    /// Hosts.
    pub hosts: usize,
}

/// Recorded sequences. Layout, little endian, once per seed: `seed 2 | pods 4 | pod 2 each | hosts 2 | rank 2 each`.
pub fn recorded(bytes: &[u8], sizes: Sizes) -> Result<Vec<Sequence>, Error> {
    let mut reader = Reader { bytes, offset: 0 };
    let mut sequences = Vec::new();
    while reader.offset < bytes.len() {
        let seed = u64::from(reader.u16("a seed")?);
        let pods = (0..reader.u32("the number of arrivals")?).map(|_| reader.below(sizes.pods, "a pod")).collect::<Result<_, _>>()?;
        let (offset, hosts) = (reader.offset, usize::from(reader.u16("the number of hosts")?));
        if hosts != sizes.hosts {
            return Err(Error { offset, what: format!("seed {seed} ranks {hosts} hosts, the node list has {}", sizes.hosts) });
        }
        let ranks: Vec<u32> = (0..hosts).map(|_| reader.below(hosts, "a rank").map(|rank| rank as u32)).collect::<Result<_, _>>()?;
        let mut sorted = ranks.clone();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error { offset, what: format!("seed {seed} gives rank {} to two hosts", twice[0]) });
        }
        sequences.push(Sequence { seed, requests: pods, ranks });
    }
    Ok(sequences)
}

struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let bytes = self.bytes.get(self.offset..self.offset + N).and_then(|bytes| bytes.try_into().ok());
        let ends = || Error { offset: self.offset, what: format!("the file ends where {what} of {N} bytes should be") };
        let bytes = bytes.ok_or_else(ends)?;
        self.offset += N;
        Ok(bytes)
    }

    fn u16(&mut self, what: &str) -> Result<u16, Error> {
        Ok(u16::from_le_bytes(self.take(what)?))
    }

    fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.take(what)?))
    }

    fn below(&mut self, bound: usize, what: &str) -> Result<usize, Error> {
        let offset = self.offset;
        let number = usize::from(self.u16(what)?);
        if number < bound {
            return Ok(number);
        }
        Err(Error { offset, what: format!("{what} is {number}, there are {bound}") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { pods: 3, hosts: 2 };

    fn bytes(numbers: &[u16]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn a_recorded_sequence_is_read_and_a_damaged_one_is_refused_with_its_place() {
        let good = [42, 2, 0, 2, 0, 2, 1, 0];
        assert_eq!(recorded(&bytes(&good), SIZES), Ok(vec![Sequence { seed: 42, requests: vec![2, 0], ranks: vec![1, 0] }]));
        let check = |numbers: &[u16], expected: &str| assert_eq!(recorded(&bytes(numbers), SIZES).expect_err("damaged").to_string(), expected);
        check(&good[..7], "byte 14: the file ends where a rank of 2 bytes should be");
        check(&[42, 1, 0, 3], "byte 6: a pod is 3, there are 3");
        check(&[42, 0, 0, 3], "byte 6: seed 42 ranks 3 hosts, the node list has 2");
        check(&[42, 0, 0, 2, 1, 1], "byte 6: seed 42 gives rank 1 to two hosts");
    }
}
