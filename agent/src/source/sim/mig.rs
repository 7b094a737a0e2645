//! MIG of simulated boards: the table of the A100 and H100 class, which the simulation has to know because no driver says it.

use plimsoll_schemas::mig::{Mig, Profile};

/// Memory slices of a board.
const SLICES: u64 = 8;
/// Compute slices, memory slices, suffix, starts and most at once, where that is fewer.
type Row = (u8, u8, &'static str, &'static [u8], Option<u8>);
/// What boards of this class can be cut into.
const TABLE: [Row; 7] = [
    (1, 1, "", &[0, 1, 2, 3, 4, 5, 6], None),
    (1, 1, "+me", &[0, 1, 2, 3, 4, 5, 6], Some(1)),
    (1, 2, "", &[0, 2, 4, 6], None),
    (2, 2, "", &[0, 2, 4], None),
    (3, 4, "", &[0, 4], None),
    (4, 4, "", &[0], None),
    (7, 8, "", &[0], None),
];

/// A board of this much memory with MIG mode on and no instance.
pub fn uncut(memory_mib: u64) -> Mig {
    let gib = memory_mib.div_ceil(1_024);
    let profile = |&(compute, size, suffix, starts, instances_max): &Row| Profile {
        name: format!("{compute}g.{}gb{suffix}", (gib * u64::from(size) + SLICES / 2) / SLICES),
        memory_bytes: (memory_mib << 20) / SLICES * u64::from(size),
        size,
        starts: starts.to_vec(),
        instances_max,
    };
    Mig { profiles: TABLE.iter().map(profile).collect(), instances: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_named_as_they_are_on_real_boards() {
        let check = |memory_mib, expected: [&str; 7]| {
            let mig = uncut(memory_mib);
            assert_eq!(mig.check(), Ok(()));
            assert_eq!(mig.profiles.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>(), expected);
        };
        check(81_559, ["1g.10gb", "1g.10gb+me", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"]);
        check(143_771, ["1g.18gb", "1g.18gb+me", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"]);
    }
}
