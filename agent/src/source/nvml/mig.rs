//! MIG as the driver of a board says it: what the board can be cut into, where, and what it is cut into. No board's table is known here.

use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use plimsoll_schemas::id::GpuUuid;
use plimsoll_schemas::inventory::Gpu;
use plimsoll_schemas::mig::{Instance, Mig, Profile};

use super::raw;

/// What a profile's name begins with where the driver says it in full.
const PREFIX: &str = "MIG ";
/// MIG mode is on.
const ON: u32 = 1;

/// What a board with MIG mode on can be cut into and is cut into; absent where MIG mode is off or the board has none.
///
/// Where not all of that can be read (a container without the right to look at instances, a driver that is too old), it is a board of which
/// only that is known that it is no whole GPU: nothing can be placed where nobody knows what stands there.
pub fn of_board(board: &Device<'_>, uuid: &GpuUuid) -> Option<Mig> {
    if !board.mig_mode().is_ok_and(|mode| mode.current == ON) {
        return None;
    }
    let read = || {
        let profiles = raw::profiles(board)?;
        let instances = profiles.iter().map(|profile| raw::instances(board, profile)).collect::<Result<Vec<_>, _>>()?.concat();
        Ok::<_, NvmlError>(told(&profiles, &instances, &devices(board)?))
    };
    let said = read().map_err(|error| error.to_string()).and_then(|mig| sound(uuid, mig));
    Some(said.unwrap_or_else(|error| {
        tracing::warn!(%uuid, %error, "MIG mode is on, and what the board is cut into cannot be read");
        Mig::default()
    }))
}

/// What can run on a board's instances: the MIG device on each, by the instance's number.
fn devices(board: &Device<'_>) -> Result<Vec<(u32, GpuUuid)>, NvmlError> {
    let mut devices = Vec::new();
    for index in 0..board.mig_device_count()? {
        let device = match board.mig_device_by_index(index) {
            Ok(device) => device,
            Err(NvmlError::NotFound) => continue,
            Err(error) => return Err(error),
        };
        let uuid = device.uuid()?.parse().map_err(|_| NvmlError::InvalidArg)?;
        devices.push((raw::instance_of(&device)?, uuid));
    }
    Ok(devices)
}

/// The driver's numbers in our words. Where several MIG devices share an instance, the first stands for it.
fn told(profiles: &[raw::Profile], instances: &[raw::Instance], devices: &[(u32, GpuUuid)]) -> Mig {
    let name = |profile: &raw::Profile| profile.name.strip_prefix(PREFIX).unwrap_or(&profile.name).trim().to_owned();
    let small = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    let profile = |of: &raw::Profile| {
        let mut starts: Vec<u8> = of.places.iter().map(|&(start, _)| small(start)).collect();
        starts.sort_unstable();
        starts.dedup();
        let fewer = usize::try_from(of.instances_max).is_ok_and(|most| most > 0 && most < starts.len());
        Profile {
            name: name(of),
            memory_bytes: of.memory_mib << 20,
            size: of.places.first().map_or(0, |&(_, size)| small(size)),
            starts,
            instances_max: fewer.then(|| small(of.instances_max)),
        }
    };
    let instance = |of: &raw::Instance| Instance {
        profile: profiles.iter().find(|profile| profile.id == of.profile).map(name).unwrap_or_default(),
        start: small(of.place.0),
        size: small(of.place.1),
        uuid: devices.iter().find(|(id, _)| *id == of.id).map(|(_, uuid)| uuid.clone()),
    };
    // A profile without a place is one that the board as it is set up cannot have.
    let mut profiles: Vec<Profile> = profiles.iter().filter(|of| !of.places.is_empty()).map(profile).collect();
    profiles.sort_by(|a, b| a.name.cmp(&b.name));
    let mut instances: Vec<Instance> = instances.iter().map(instance).collect();
    instances.sort_by_key(|instance| instance.start);
    Mig { profiles, instances }
}

/// It, if a cell will take it. Errors with what contradicts itself: an instance that was made while we were looking, most likely.
fn sound(uuid: &GpuUuid, mig: Mig) -> Result<Mig, String> {
    mig.check().map(|()| mig).map_err(|detail| format!("{uuid}: {detail}"))
}

/// The instances of a board that something can run on, as GPUs of their own. One that cannot be described is left out, of its board as well:
/// both say the same.
pub fn as_gpus(nvml: &Nvml, board: &mut Gpu) -> Vec<Gpu> {
    let on = Gpu { mig: None, ..board.clone() };
    let instances = board.mig.iter_mut().flat_map(|mig| &mut mig.instances);
    let gpu = |instance: &mut Instance| {
        let uuid = instance.uuid.clone()?;
        let memory = nvml.device_by_uuid(uuid.as_str()).and_then(|device| device.memory_info());
        let Ok(memory) = memory else {
            instance.uuid = None;
            return None;
        };
        Some(Gpu {
            uuid,
            memory_total_bytes: Some(memory.total),
            mig_parent_uuid: Some(on.uuid.clone()),
            mig_profile: Some(instance.profile.clone()),
            nvlink_domain: None,
            power_limit_mw: None,
            power_limit_max_mw: None,
            slowdown_temperature_mk: None,
            ..on.clone()
        })
    };
    instances.filter_map(gpu).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(id: u32, name: &str, memory_mib: u64, instances_max: u32, places: &[(u32, u32)]) -> raw::Profile {
        raw::Profile { id, name: name.to_owned(), memory_mib, instances_max, places: places.to_vec() }
    }

    fn uuid(name: &str) -> GpuUuid {
        name.parse().expect("valid")
    }

    #[test]
    fn what_the_driver_says_is_told_as_it_is() {
        let ones: Vec<(u32, u32)> = (0..7).rev().map(|start| (start, 1)).collect();
        let profiles = [
            profile(19, "MIG 1g.10gb", 9_856, 7, &ones),
            profile(20, "MIG 1g.10gb+me", 9_856, 1, &ones),
            profile(9, "MIG 3g.40gb", 40_192, 2, &[(0, 4), (4, 4)]),
            profile(99, "MIG 8g.80gb", 80_000, 1, &[]),
        ];
        let instances = [raw::Instance { id: 2, profile: 9, place: (4, 4) }, raw::Instance { id: 7, profile: 19, place: (0, 1) }];
        let mig = told(&profiles, &instances, &[(2, uuid("MIG-a")), (2, uuid("MIG-b"))]);
        let said: Vec<_> =
            mig.profiles.iter().map(|of| (of.name.as_str(), of.memory_bytes >> 20, of.size, of.starts.len(), of.instances_max)).collect();
        assert_eq!(said, [("1g.10gb", 9_856, 1, 7, None), ("1g.10gb+me", 9_856, 1, 7, Some(1)), ("3g.40gb", 40_192, 4, 2, None)]);
        let there: Vec<_> = mig.instances.iter().map(|of| (of.profile.as_str(), of.start, of.size, of.uuid.clone())).collect();
        assert_eq!(there, [("1g.10gb", 0, 1, None), ("3g.40gb", 4, 4, Some(uuid("MIG-a")))]);
        assert!(sound(&uuid("GPU-a"), mig).is_ok());
    }

    #[test]
    fn what_contradicts_itself_is_not_told() {
        let three = profile(9, "MIG 3g.40gb", 40_192, 2, &[(0, 4), (4, 4)]);
        let at = |start| raw::Instance { id: start, profile: 9, place: (start, 4) };
        let error = sound(&uuid("GPU-a"), told(std::slice::from_ref(&three), &[at(0), at(2)], &[])).expect_err("they overlap");
        assert!(error.contains("overlaps another"), "{error}");
        assert!(sound(&uuid("GPU-a"), told(&[three], &[at(300)], &[])).is_err());
    }
}
