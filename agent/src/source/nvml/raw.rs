//! MIG calls that nvml-wrapper lacks, or whose answer it loses: what they say, as plain numbers. The only file of the agent with `unsafe` in it.
#![expect(unsafe_code, reason = "raw NVML calls")]

use std::ffi::CStr;
use std::mem::zeroed;
use std::os::raw::c_uint;
use std::ptr::null_mut;

use nvml_wrapper::Device;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings::{nvmlGpuInstance_t, nvmlGpuInstanceInfo_t, nvmlGpuInstancePlacement_t, nvmlGpuInstanceProfileInfo_v2_t};

/// What NVML calls profiles: numbers below this one, of which a board has some (`NVML_GPU_INSTANCE_PROFILE_COUNT`, with room for later ones).
const KINDS: u32 = 32;
/// Most places or instances that are read of one profile: more than a board has slices.
const ANSWERS_MAX: u32 = 256;
/// Version 2 of a structure: its size and, from bit 24 on, the version.
const INFO_V2: u32 = size_of::<nvmlGpuInstanceProfileInfo_v2_t>() as u32 | 2 << 24;

/// A profile of a board.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// NVML's number for it on this board.
    pub id: u32,
    /// Such as `MIG 1g.10gb`.
    pub name: String,
    /// Memory of an instance, MiB.
    pub memory_mib: u64,
    /// Most instances at once.
    pub instances_max: u32,
    /// Legal places: start and size in memory slices.
    pub places: Vec<(u32, u32)>,
}

/// A GPU instance of a board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instance {
    /// Its number on the board.
    pub id: u32,
    /// Its profile's id.
    pub profile: u32,
    /// Its place: start and size in memory slices.
    pub place: (u32, u32),
}

/// The profiles that a board has, in NVML's order. Errors where the driver is too old to name them, or does not answer.
pub fn profiles(board: &Device<'_>) -> Result<Vec<Profile>, NvmlError> {
    let mut profiles = Vec::new();
    for kind in 0..KINDS {
        match info(board, kind) {
            Ok(info) => profiles.push(Profile { places: places(board, info.id)?, ..info }),
            // Not of this board, or not of this driver.
            Err(NvmlError::NotSupported | NvmlError::InvalidArg) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(profiles)
}

/// `nvmlDeviceGetGpuInstanceProfileInfoV`, which knows the name; without places.
fn info(board: &Device<'_>, kind: u32) -> Result<Profile, NvmlError> {
    let call = nvml_sym(board.nvml().lib().nvmlDeviceGetGpuInstanceProfileInfoV.as_ref())?;
    // SAFETY: plain numbers and characters, for which zero is a value; the call writes no more than the version announces.
    let info: nvmlGpuInstanceProfileInfo_v2_t = unsafe {
        let mut info: nvmlGpuInstanceProfileInfo_v2_t = zeroed();
        info.version = INFO_V2;
        nvml_try(call(board.handle(), kind, &mut info))?;
        info
    };
    let name: Vec<u8> = info.name.iter().map(|&byte| byte as u8).collect();
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Profile { id: info.id, name, memory_mib: info.memorySizeMB, instances_max: info.instanceCount, places: Vec::new() })
}

/// `nvmlDeviceGetGpuInstancePossiblePlacements_v2`: where the instances of a profile may stand, whatever stands there now.
fn places(board: &Device<'_>, profile: u32) -> Result<Vec<(u32, u32)>, NvmlError> {
    let call = nvml_sym(board.nvml().lib().nvmlDeviceGetGpuInstancePossiblePlacements_v2.as_ref())?;
    let mut count: c_uint = 0;
    // SAFETY: without a place to write to, only the count is written.
    unsafe { nvml_try(call(board.handle(), profile, null_mut(), &mut count)) }?;
    let mut places = vec![nvmlGpuInstancePlacement_t { start: 0, size: 0 }; count.min(ANSWERS_MAX) as usize];
    let mut written = places.len() as c_uint;
    // SAFETY: there is room for as many as are said to be.
    unsafe { nvml_try(call(board.handle(), profile, places.as_mut_ptr(), &mut written)) }?;
    places.truncate(written as usize);
    Ok(places.into_iter().map(|place| (place.start, place.size)).collect())
}

/// `nvmlDeviceGetGpuInstances` and `nvmlGpuInstanceGetInfo`: the instances of a profile that exist.
pub fn instances(board: &Device<'_>, profile: &Profile) -> Result<Vec<Instance>, NvmlError> {
    let lib = board.nvml().lib();
    let (list, info) = (nvml_sym(lib.nvmlDeviceGetGpuInstances.as_ref())?, nvml_sym(lib.nvmlGpuInstanceGetInfo.as_ref())?);
    let mut found: Vec<nvmlGpuInstance_t> = vec![null_mut(); ANSWERS_MAX as usize];
    let mut count: c_uint = ANSWERS_MAX;
    // SAFETY: at most as many are written as a board can have of the profile, which is far fewer than there is room for.
    unsafe { nvml_try(list(board.handle(), profile.id, found.as_mut_ptr(), &mut count)) }?;
    found.truncate(count as usize);
    let of = |handle: nvmlGpuInstance_t| {
        // SAFETY: numbers and a handle, for which zero is a value; the handle was given a moment ago, and one that has gone is an error.
        let info: nvmlGpuInstanceInfo_t = unsafe {
            let mut of: nvmlGpuInstanceInfo_t = zeroed();
            nvml_try(info(handle, &mut of))?;
            of
        };
        Ok(Instance { id: info.id, profile: info.profileId, place: (info.placement.start, info.placement.size) })
    };
    found.into_iter().map(of).collect()
}

/// `nvmlDeviceGetGpuInstanceId`: the GPU instance that a MIG device is on.
pub fn instance_of(mig_device: &Device<'_>) -> Result<u32, NvmlError> {
    let call = nvml_sym(mig_device.nvml().lib().nvmlDeviceGetGpuInstanceId.as_ref())?;
    let mut id: c_uint = 0;
    // SAFETY: one number is written.
    unsafe { nvml_try(call(mig_device.handle(), &mut id)) }?;
    Ok(id)
}
