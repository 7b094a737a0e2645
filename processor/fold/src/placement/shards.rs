//! Parts of different sizes, each on a GPU of its own: which part goes where, or why they do not fit.
//!
//! The greatest part goes to the GPU with the most room, the next to the next. If any way fits, this one does: exchanging two parts of
//! another way so that the greater one stands on the roomier GPU never makes it worse. So there is nothing to search.

use std::cmp::Reverse;

use plimsoll_schemas::reason::Reason;

/// The GPU of each part, by its place in `free_bytes`, in the order of `needs_bytes`. Of equals the first comes first. O(n log n).
/// Errors: `too_few_devices` for more parts than GPUs, `insufficient_memory` where a part finds no room.
pub fn spread(free_bytes: &[u64], needs_bytes: &[u64]) -> Result<Vec<usize>, Reason> {
    if needs_bytes.len() > free_bytes.len() {
        return Err(Reason::TooFewDevices);
    }
    let mut taken = vec![0; needs_bytes.len()];
    for (part, device) in greatest_first(needs_bytes).into_iter().zip(greatest_first(free_bytes)) {
        if needs_bytes[part] > free_bytes[device] {
            return Err(Reason::InsufficientMemory);
        }
        taken[part] = device;
    }
    Ok(taken)
}

fn greatest_first(bytes: &[u64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..bytes.len()).collect();
    order.sort_by_key(|&at| Reverse(bytes[at]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_greatest_part_goes_to_the_most_room_and_equals_keep_their_order() {
        let check = |free: &[u64], needs: &[u64], expected: Result<&[usize], Reason>| {
            assert_eq!(spread(free, needs).as_deref(), expected.as_ref().map(|taken| &**taken), "{free:?} {needs:?}");
        };
        check(&[40, 20, 10], &[8, 6, 4], Ok(&[0, 1, 2]));
        check(&[10, 6], &[5, 9], Ok(&[1, 0]));
        check(&[7, 7, 7], &[7, 7], Ok(&[0, 1]));
        check(&[1], &[], Ok(&[]));
        check(&[5, 5], &[8, 8], Err(Reason::InsufficientMemory));
        check(&[10; 9], &[9; 10], Err(Reason::TooFewDevices));
        check(&[], &[0], Err(Reason::TooFewDevices));
    }

    /// Whether any way at all fits, by trying all.
    fn fits(free: &mut Vec<u64>, needs: &[u64]) -> bool {
        let Some((&need, rest)) = needs.split_first() else { return true };
        (0..free.len()).any(|at| {
            let room = free.remove(at);
            let found = room >= need && fits(free, rest);
            free.insert(at, room);
            found
        })
    }

    proptest! {
        #[test]
        fn it_finds_a_way_wherever_there_is_one(free in prop::collection::vec(0u64..12, 0..6), needs in prop::collection::vec(0u64..12, 0..6)) {
            let taken = spread(&free, &needs);
            prop_assert_eq!(taken.is_ok(), fits(&mut free.clone(), &needs));
            if let Ok(taken) = taken {
                prop_assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), needs.len());
                prop_assert!(taken.iter().zip(&needs).all(|(&device, &need)| free[device] >= need));
            }
        }
    }
}
