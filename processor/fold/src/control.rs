//! Control records: who is placeable, what is out of service, which thresholds hold. Everything that changes behaviour is in the log.

use plimsoll_schemas::control::{Control, Cordon, Settings};
use plimsoll_schemas::id::{GpuUuid, HostId, Position};
use plimsoll_schemas::reason::Reason;
use serde::{Deserialize, Serialize};

use crate::State;
use crate::emit::Emit;
use crate::faults::Faults;
use crate::refuse::Refusal;
use crate::registry::HOSTS_MAX;
use crate::state_time::Cause;

/// Longest time that a drained GPU may have to look free, ms: a day.
const FREE_AFTER_MS_MAX: u64 = 86_400_000;

/// The thresholds in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Thresholds {
    /// Share of a GPU's memory that may be reserved, basis points.
    pub vram_limit_bp: u32,
    /// Memory in use below which a drained GPU counts as free, bytes.
    pub free_memory_bytes_max: u64,
    /// How long it must look so, ms.
    pub free_after_ms: i64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { vram_limit_bp: 10_000, free_memory_bytes_max: 1 << 30, free_after_ms: 30_000 }
    }
}

/// What is sealed in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sealed {
    /// Manifest version.
    pub version: u64,
    /// Last position whose rows it holds.
    pub position: Position,
}

impl State {
    /// Folds a control record.
    pub(crate) fn control(&mut self, control: &Control, emit: &mut Emit<'_>) {
        match control {
            Control::Enrol { hosts } => self.enrol(hosts, emit),
            Control::Expel { host } => self.expel(host, emit),
            Control::Cordon(what) => self.cordon(what, true, emit),
            Control::Uncordon(what) => self.cordon(what, false, emit),
            Control::Free { uuid } => self.operator_free(uuid, emit),
            Control::Sealed { version, position } => {
                if *version > self.meta.sealed.version {
                    self.meta.sealed = Sealed { version: *version, position: *position };
                }
            }
            Control::Settings(settings) => self.settings(settings, emit),
        }
    }

    fn enrol(&mut self, hosts: &[HostId], emit: &mut Emit<'_>) {
        if hosts.is_empty() {
            self.meta.enrol_all = true;
            for host in 0..self.registry.hosts.len() as u32 {
                self.restate_host(host, "enrolled", emit);
            }
        }
        for id in hosts {
            match self.registry.host_number(id) {
                Some(host) => {
                    self.registry.host_mut(host).enrolled = true;
                    self.restate_host(host, "enrolled", emit);
                }
                None if self.meta.enrolled_early.len() < HOSTS_MAX => {
                    self.meta.enrolled_early.insert(id.clone());
                }
                None => self.refuse_control(Reason::LimitReached, format!("{HOSTS_MAX} hosts are enrolled that never registered"), emit),
            }
        }
    }

    fn expel(&mut self, id: &HostId, emit: &mut Emit<'_>) {
        let early = self.meta.enrolled_early.remove(id);
        match self.registry.host_number(id) {
            Some(host) => {
                self.registry.host_mut(host).enrolled = false;
                self.restate_host(host, "expelled", emit);
            }
            None if early => {}
            None => self.refuse_control(Reason::DeviceNotRegistered, format!("no host {id}"), emit),
        }
    }

    fn cordon(&mut self, what: &Cordon, cordoned: bool, emit: &mut Emit<'_>) {
        let cause = if cordoned { "cordon" } else { "uncordon" };
        match what {
            Cordon::Host(id) => match self.registry.host_number(id) {
                Some(host) if self.registry.hosts[host as usize].cordoned != cordoned => {
                    self.close_host_version(host, emit);
                    self.registry.host_mut(host).cordoned = cordoned;
                    self.publish_host(host, cause, emit);
                    self.restate_host(host, cause, emit);
                }
                Some(_) => {}
                None => self.refuse_control(Reason::DeviceNotRegistered, format!("no host {id}"), emit),
            },
            Cordon::Gpu(uuid) => match self.registry.device_number(uuid) {
                Some(number) => {
                    let device = self.registry.device_mut(number);
                    device.facts.cordoned = cordoned;
                    device.facts_dirty = true;
                    self.restate(number, Cause::of(cause), emit);
                }
                None => self.refuse_control(Reason::DeviceNotRegistered, format!("no GPU {uuid}"), emit),
            },
        }
    }

    /// An operator's word: the GPU is well, and what ended leases still hold of it is free.
    fn operator_free(&mut self, uuid: &GpuUuid, emit: &mut Emit<'_>) {
        match self.registry.device_number(uuid) {
            Some(number) => {
                self.change_faults(number, Faults::clear_by_operator);
                self.free_by_operator(number, emit);
                self.restate(number, Cause::of("operator"), emit);
            }
            None => self.refuse_control(Reason::DeviceNotRegistered, format!("no GPU {uuid}"), emit),
        }
    }

    fn settings(&mut self, settings: &Settings, emit: &mut Emit<'_>) {
        let wrong = match settings {
            Settings { vram_limit_bp: Some(bp), .. } if !(1..=10_000).contains(bp) => Some(format!("vram_limit_bp {bp}, expected 1 to 10000")),
            Settings { free_after_ms: Some(ms), .. } if *ms > FREE_AFTER_MS_MAX => Some(format!("free_after_ms {ms}, at most {FREE_AFTER_MS_MAX}")),
            Settings { .. } => None,
        };
        if let Some(detail) = wrong {
            return self.refuse_control(Reason::OutOfRange, detail, emit);
        }
        let now = &mut self.meta.settings;
        now.vram_limit_bp = settings.vram_limit_bp.unwrap_or(now.vram_limit_bp);
        now.free_memory_bytes_max = settings.free_memory_bytes_max.unwrap_or(now.free_memory_bytes_max);
        now.free_after_ms = settings.free_after_ms.map_or(now.free_after_ms, |ms| ms as i64);
        // What was calm under the old threshold need not be under the new one.
        for number in 0..self.registry.devices.len() as u32 {
            if self.registry.devices[number as usize].pulse.calm_ns.is_some() {
                let device = self.registry.device_mut(number);
                device.pulse.calm_ns = None;
                device.pulse_dirty = true;
            }
        }
    }

    fn restate_host(&mut self, host: u32, cause: &str, emit: &mut Emit<'_>) {
        for number in self.registry.hosts[host as usize].devices.clone() {
            self.restate(number, Cause::of(cause), emit);
        }
    }

    fn refuse_control(&mut self, reason: Reason, detail: String, emit: &mut Emit<'_>) {
        self.refuse(None, None, "control", Refusal::new(reason, detail), emit);
    }
}
