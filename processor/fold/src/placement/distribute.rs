//! Splitting work items over GPUs. The sum of the counts and what is left over is always the number of items; a weight of zero
//! gets nothing; a cap is respected and what it cuts off is offered to GPUs below it before it is called unassigned.

use std::collections::BTreeMap;

use plimsoll_schemas::id::GpuUuid;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{DEVICES_MAX, Distribute, Strategy};

use super::{Refused, ask};

/// How items were split over keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split<K> {
    /// Items per key, every key once.
    pub counts: BTreeMap<K, u64>,
    /// Items that nobody may take under the cap.
    pub unassigned: u64,
}

/// Splits a request's items over the GPUs it names, or over every placeable one. `cell` holds, of every GPU of the cell, the
/// bytes still free on it or why it is not placeable. Errors by name: a bad field, an unknown or unplaceable GPU that was
/// named, no GPU at all, a cell too large to be split without naming GPUs.
pub fn distribute(request: &Distribute, cell: &BTreeMap<GpuUuid, Result<u64, Reason>>) -> Result<Split<GpuUuid>, Refused> {
    ask::text("request_id", &request.request_id)?;
    let free = free_bytes_of(request, cell)?;
    match (request.strategy, &request.weights) {
        (Strategy::Uniform, Some(_)) => Err(Refused::new(Reason::InvalidRequest, "weights belong to strategy capacity, this is uniform")),
        (Strategy::Uniform, None) => uniform(request.items, free.into_keys(), request.max_per_device),
        (Strategy::Capacity, None) => {
            let weights = free.into_iter().map(|(uuid, bytes)| (uuid, i64::try_from(bytes).unwrap_or(i64::MAX)));
            capacity(request.items, &weights.collect(), request.max_per_device)
        }
        (Strategy::Capacity, Some(weights)) => {
            let unweighted = free.keys().find(|uuid| !weights.contains_key(uuid));
            let unnamed = weights.keys().find(|uuid| !free.contains_key(uuid));
            match unweighted.or(unnamed) {
                Some(uuid) => {
                    Err(Refused::new(Reason::InvalidRequest, format!("devices and weights name different GPUs: {uuid} is in only one of them")))
                }
                None => capacity(request.items, weights, request.max_per_device),
            }
        }
    }
}

/// The GPUs to split over with their free bytes: those named (by list, else by weight), else every placeable one.
fn free_bytes_of(request: &Distribute, cell: &BTreeMap<GpuUuid, Result<u64, Reason>>) -> Result<BTreeMap<GpuUuid, u64>, Refused> {
    let named: Vec<&GpuUuid> = match (&request.devices, &request.weights) {
        (Some(devices), _) => devices.iter().collect(),
        (None, Some(weights)) => weights.keys().collect(),
        (None, None) => {
            let placeable = cell.iter().filter_map(|(uuid, free)| free.ok().map(|bytes| (uuid, bytes)));
            let free: BTreeMap<_, _> = placeable.take(DEVICES_MAX + 1).map(|(uuid, bytes)| (uuid.clone(), bytes)).collect();
            if free.len() > DEVICES_MAX {
                return Err(Refused::new(Reason::LimitReached, format!("the cell has more than {DEVICES_MAX} placeable GPUs: name the ones to use")));
            }
            return Ok(free);
        }
    };
    if named.len() > DEVICES_MAX {
        return Err(Refused::new(Reason::InvalidRequest, format!("{} GPUs named, at most {DEVICES_MAX}", named.len())));
    }
    let mut free = BTreeMap::new();
    for uuid in named {
        let bytes = match cell.get(uuid) {
            Some(Ok(bytes)) => *bytes,
            Some(Err(reason)) => return Err(Refused::new(*reason, format!("{uuid} is not placeable: {reason}"))),
            None => return Err(Refused::new(Reason::DeviceNotRegistered, format!("{uuid} is not registered in this cell"))),
        };
        if free.insert(uuid.clone(), bytes).is_some() {
            return Err(Refused::new(Reason::InvalidRequest, format!("{uuid} is named twice")));
        }
    }
    Ok(free)
}

/// The same number for each key, the remainder one each to the first keys in order; at most `cap` each. Errors: no keys, a cap
/// of zero or below.
pub fn uniform<K: Ord>(items: u64, keys: impl IntoIterator<Item = K>, cap: Option<i64>) -> Result<Split<K>, Refused> {
    let keys: std::collections::BTreeSet<K> = keys.into_iter().collect();
    if keys.is_empty() {
        return Err(no_devices());
    }
    let cap = limit(cap)?;
    let many = keys.len() as u64;
    let (each, remainder) = (items / many, items % many);
    let counts: BTreeMap<K, u64> = keys.into_iter().zip(0..).map(|(key, place)| (key, (each + u64::from(place < remainder)).min(cap))).collect();
    // Everyone is at the cap where it cuts at all, so there is nobody below it to offer the rest to.
    let unassigned = items - counts.values().sum::<u64>();
    Ok(Split { counts, unassigned })
}

/// In proportion to the weights by largest remainder, ties to the first keys in order; at most `cap` each, and what a cap cuts
/// off is split again over the others. Errors: no keys, a weight below zero, all weights zero, a cap of zero or below.
pub fn capacity<K: Ord + Clone>(items: u64, weights: &BTreeMap<K, i64>, cap: Option<i64>) -> Result<Split<K>, Refused> {
    if weights.is_empty() {
        return Err(no_devices());
    }
    let cap = limit(cap)?;
    let mut heaviest_first = Vec::with_capacity(weights.len());
    for (key, &weight) in weights {
        let weight = u64::try_from(weight).map_err(|_| Refused::new(Reason::NegativeWeight, format!("a weight of {weight}, expected 0 or more")))?;
        heaviest_first.push((key, weight));
    }
    // The sort is stable, so equal weights stay in the order of their keys.
    heaviest_first.sort_by_key(|&(_, weight)| std::cmp::Reverse(weight));
    let mut weight_left: u128 = heaviest_first.iter().map(|&(_, weight)| u128::from(weight)).sum();
    if weight_left == 0 {
        return Err(Refused::new(Reason::ZeroWeights, format!("all {} weights are zero", weights.len())));
    }
    let mut counts: BTreeMap<K, u64> = weights.keys().map(|key| (key.clone(), 0)).collect();
    let mut left = items;
    // A heavier key reaches the cap no later than a lighter one, so those at the cap are a prefix.
    let mut at_cap = 0;
    for &(key, weight) in &heaviest_first {
        if weight == 0 || !exceeds(share(left, weight, weight_left), cap) {
            break;
        }
        counts.insert(key.clone(), cap);
        left -= cap;
        weight_left -= u128::from(weight);
        at_cap += 1;
    }
    let mut remainders = Vec::new();
    let mut given = 0;
    for &(key, weight) in heaviest_first[at_cap..].iter().filter(|&&(_, weight)| weight > 0) {
        let (whole, remainder) = share(left, weight, weight_left);
        given += whole;
        counts.insert(key.clone(), whole);
        remainders.push((std::cmp::Reverse(remainder), key));
    }
    if remainders.is_empty() {
        return Ok(Split { counts, unassigned: left });
    }
    remainders.sort();
    // Fewer are left than there are remainders above zero, so nobody gets two, and nobody at the cap gets one.
    for (_, key) in remainders.into_iter().take(usize::try_from(left - given).unwrap_or(usize::MAX)) {
        *counts.get_mut(key).expect("every key has a count") += 1;
    }
    Ok(Split { counts, unassigned: 0 })
}

/// A weight's part of the items: whole items, and the remainder in parts of `weights`.
fn share(items: u64, weight: u64, weights: u128) -> (u64, u128) {
    let product = u128::from(items) * u128::from(weight);
    (u64::try_from(product / weights).expect("a part of a u64"), product % weights)
}

fn exceeds((whole, remainder): (u64, u128), cap: u64) -> bool {
    whole > cap || (whole == cap && remainder > 0)
}

fn limit(cap: Option<i64>) -> Result<u64, Refused> {
    match cap.map(u64::try_from) {
        None => Ok(u64::MAX),
        Some(Ok(cap @ 1..)) => Ok(cap),
        Some(Ok(0) | Err(_)) => Err(Refused::new(Reason::InvalidCap, format!("max_per_device {}, expected 1 or more", cap.unwrap_or_default()))),
    }
}

fn no_devices() -> Refused {
    Refused::new(Reason::NoDevices, "there is no GPU to split over")
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::request::Strategy;
    use proptest::prelude::*;

    fn check<const N: usize>(weights: [(&str, i64); N], items: u64, cap: Option<i64>, expected: Result<([u64; N], u64), Reason>) {
        let split = capacity(items, &weights.into(), cap).map_err(|refused| refused.reason);
        let expected = expected.map(|(counts, unassigned)| Split { counts: weights.iter().map(|&(key, _)| key).zip(counts).collect(), unassigned });
        assert_eq!(split, expected, "{weights:?} {items} {cap:?}");
    }

    #[test]
    fn items_follow_the_weights_by_largest_remainder() {
        check([("a", 1), ("b", 2), ("c", 1)], 16, None, Ok(([4, 8, 4], 0)));
        check([("a", 1), ("b", 3), ("c", 3)], 8, None, Ok(([1, 4, 3], 0)));
        check([("a", 0), ("b", 1)], 1, None, Ok(([0, 1], 0)));
        check([("a", 1), ("b", 1), ("c", 1_000_000)], 3, None, Ok(([0, 0, 3], 0)));
        check([("a", 3), ("b", 3), ("c", 3), ("d", 1)], 5, None, Ok(([2, 2, 1, 0], 0)));
        check([("a", 128), ("b", 114), ("c", 20)], 100, None, Ok(([49, 43, 8], 0)));
        check([("a", i64::MAX), ("b", i64::MAX)], u64::MAX, None, Ok(([1 << 63, (1 << 63) - 1], 0)));
    }

    #[test]
    fn what_a_cap_cuts_off_goes_to_those_below_it_and_only_then_to_nobody() {
        check([("a", 8), ("b", 1), ("c", 1)], 10, Some(4), Ok(([4, 3, 3], 0)));
        check([("a", 8), ("b", 1), ("c", 1)], 20, Some(4), Ok(([4, 4, 4], 8)));
        check([("a", 8), ("b", 0), ("c", 1)], 20, Some(4), Ok(([4, 0, 4], 12)));
        check([("a", 2), ("b", 2)], 4, Some(2), Ok(([2, 2], 0)));
    }

    #[test]
    fn what_cannot_be_split_has_a_reason() {
        check([("a", -1)], 3, None, Err(Reason::NegativeWeight));
        check([("a", 0), ("b", 0)], 3, None, Err(Reason::ZeroWeights));
        check([("a", 1)], 3, Some(0), Err(Reason::InvalidCap));
        check([("a", 1)], 3, Some(-1), Err(Reason::InvalidCap));
        check([], 3, None, Err(Reason::NoDevices));
    }

    fn gpu(name: &str) -> GpuUuid {
        name.parse().expect("valid")
    }

    fn request(strategy: Strategy) -> Distribute {
        Distribute { request_id: "r".to_owned(), items: 7, strategy, devices: None, weights: None, max_per_device: None }
    }

    fn check_request(request: Distribute, expected: Result<&[(&str, u64)], Reason>) {
        let cell = [(gpu("a"), Ok(10)), (gpu("b"), Ok(60)), (gpu("sick"), Err(Reason::Unhealthy))].into();
        let split = distribute(&request, &cell).map(|split| split.counts).map_err(|refused| refused.reason);
        assert_eq!(split, expected.map(|counts| counts.iter().map(|&(name, count)| (gpu(name), count)).collect()), "{request:?}");
    }

    #[test]
    fn a_request_that_names_no_gpu_means_every_placeable_one() {
        check_request(request(Strategy::Uniform), Ok(&[("a", 4), ("b", 3)]));
        check_request(request(Strategy::Capacity), Ok(&[("a", 1), ("b", 6)]));
    }

    #[test]
    fn named_gpus_must_be_placeable_and_weighted_alike() {
        let devices = |names: &[&str]| Some(names.iter().map(|name| gpu(name)).collect());
        let weights = |names: &[&str]| Some(names.iter().map(|name| (gpu(name), 1)).collect());
        check_request(Distribute { devices: devices(&["b"]), ..request(Strategy::Uniform) }, Ok(&[("b", 7)]));
        check_request(Distribute { devices: devices(&["b", "b"]), ..request(Strategy::Uniform) }, Err(Reason::InvalidRequest));
        check_request(Distribute { devices: devices(&["sick"]), ..request(Strategy::Uniform) }, Err(Reason::Unhealthy));
        check_request(Distribute { devices: devices(&["no"]), ..request(Strategy::Uniform) }, Err(Reason::DeviceNotRegistered));
        check_request(Distribute { devices: devices(&[]), ..request(Strategy::Uniform) }, Err(Reason::NoDevices));
        check_request(Distribute { weights: weights(&["a", "b"]), ..request(Strategy::Capacity) }, Ok(&[("a", 4), ("b", 3)]));
        check_request(Distribute { weights: weights(&["a", "b"]), ..request(Strategy::Uniform) }, Err(Reason::InvalidRequest));
        check_request(
            Distribute { devices: devices(&["a"]), weights: weights(&["a", "b"]), ..request(Strategy::Capacity) },
            Err(Reason::InvalidRequest),
        );
        check_request(
            Distribute { devices: devices(&["a", "b"]), weights: weights(&["a"]), ..request(Strategy::Capacity) },
            Err(Reason::InvalidRequest),
        );
        check_request(Distribute { request_id: String::new(), ..request(Strategy::Uniform) }, Err(Reason::InvalidRequest));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_nothing_is_invented_and_order_follows_weight(
            items in prop_oneof![0..1_000u64, any::<u64>()],
            weights in prop::collection::btree_map(0..1_000u32, prop_oneof![Just(0), 1..20i64, 0..=i64::MAX], 1..40),
            cap in prop::option::of(prop_oneof![1..50i64, 1..=i64::MAX]),
        ) {
            prop_assume!(weights.values().any(|&weight| weight > 0));
            let split = capacity(items, &weights, cap).expect("valid");
            prop_assert_eq!(split.counts.values().map(|&n| u128::from(n)).sum::<u128>() + u128::from(split.unassigned), u128::from(items));
            let limit = cap.map_or(u64::MAX, |cap| cap as u64);
            for (key, &count) in &split.counts {
                prop_assert!(count <= limit);
                prop_assert!(weights[key] > 0 || count == 0);
                prop_assert!(split.unassigned == 0 || weights[key] == 0 || count == limit, "{} below the cap and {} left", count, split.unassigned);
                for (other, &more) in &split.counts {
                    prop_assert!(weights[key] >= weights[other] || count <= more, "a greater weight got less");
                }
            }
        }

        #[test]
        fn uniform_counts_differ_by_at_most_one(items: u64, devices in 1..50usize, cap in prop::option::of(1..100i64)) {
            let split = uniform(items, 0..devices, cap).expect("valid");
            let (least, most) = (split.counts.values().min().expect("some"), split.counts.values().max().expect("some"));
            prop_assert!(most - least <= 1);
            prop_assert_eq!(split.counts.values().sum::<u64>() + split.unassigned, items);
            prop_assert!(split.unassigned == 0 || *least == cap.expect("only a cap leaves items") as u64);
        }
    }
}
