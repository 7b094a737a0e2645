//! Control records: who is placeable, what is out of service, which settings and rules hold. Everything that changes behaviour is in the log.
//!
//! A record that cannot be carried out is refused with a reason and changes nothing. What is in force is kept by `policies`.

use plimsoll_schemas::control::{Control, Cordon, POWER_WEIGHT_MAX};
use plimsoll_schemas::frame::cut;
use plimsoll_schemas::id::{GpuUuid, HostId, Position, TenantId};
use plimsoll_schemas::out::LeaseState;
use plimsoll_schemas::policy::{Cordoned, Placing, Policy, Quota, SetBy};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::TEXT_BYTES_MAX;
use plimsoll_schemas::settings::{Settings, Thresholds};
use plimsoll_schemas::tables::Learned;
use plimsoll_schemas::time::NS_PER_MS;
use serde::{Deserialize, Serialize};

use crate::emit::Emit;
use crate::faults::Faults;
use crate::placement::policy::catalogue::Name;
use crate::placing::{VERSION, unknown_policy};
use crate::policies::{FOLD, PLACEMENT};
use crate::refuse::Refusal;
use crate::registry::HOSTS_MAX;
use crate::state_time::Cause;
use crate::{LOGIC, State};

/// Longest grace of a drain, ms: thirty days.
const GRACE_MS_MAX: u64 = 30 * 86_400_000;
/// The kind and name of the enrolment of every host.
const EVERY_HOST: &str = "*";

/// What is sealed in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sealed {
    /// Manifest version.
    pub version: u64,
    /// Last position whose rows it holds.
    pub position: Position,
}

/// Milliseconds of a setting in ns; settings are bounded far below what would not fit.
pub(crate) fn ns(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(NS_PER_MS)
}

/// What a cordon is about, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Host(u32),
    Gpu(u32),
}

impl State {
    /// Folds a control record.
    pub(crate) fn control(&mut self, control: &Control, emit: &mut Emit<'_>) {
        match control {
            Control::Enrol { hosts } if hosts.is_empty() => self.enrol_every_host(emit),
            Control::Enrol { hosts } => hosts.iter().for_each(|host| self.enrol(host, emit)),
            Control::Expel { host } => self.expel(host, emit),
            Control::Cordon(what) => self.cordon(what, Cordoned::default(), emit),
            Control::Drain { what, grace_ms } => self.cordon(what, Cordoned { drain: true, grace_ms: *grace_ms }, emit),
            Control::Uncordon(what) => self.uncordon(what, emit),
            Control::Free { uuid } => self.operator_free(uuid, emit),
            Control::Sealed { version, position } => {
                if *version > self.meta.sealed.version {
                    self.meta.sealed = Sealed { version: *version, position: *position };
                }
            }
            Control::Settings(settings) => self.settings(settings, emit),
            Control::Placement { policy, version, power_weight } => self.placement(policy, *version, *power_weight, emit),
            Control::AlertRule(rule) => self.alert_rule(rule, emit),
            Control::RemoveAlertRule { name } => self.remove_alert_rule(name, emit),
            Control::Logic { version } => self.logic(*version, emit),
            Control::Revoke { lease_id } => self.revoke(lease_id, emit),
            Control::Quota { tenant, gpu_milli_max } => self.quota(tenant, *gpu_milli_max, emit),
            Control::Pace { tenant, pace } => self.set_pace(tenant.as_ref(), pace, emit),
            Control::EndPace { tenant } => self.end_pace(tenant.as_ref(), emit),
            Control::Tables(learned) => self.learned(learned, emit),
        }
    }

    fn enrol_every_host(&mut self, emit: &mut Emit<'_>) {
        self.meta.enrol_all = true;
        self.policies.set(Policy::Enrolment, EVERY_HOST, None, SetBy::Operator, emit);
        for number in 0..self.registry.hosts.len() as u32 {
            if self.registry.hosts[number as usize].expelled {
                self.registry.host_mut(number).expelled = false;
            }
            self.restate_host(number, "enrolled", emit);
        }
    }

    fn enrol(&mut self, id: &HostId, emit: &mut Emit<'_>) {
        match self.registry.host_number(id) {
            Some(number) => {
                let host = self.registry.host_mut(number);
                (host.enrolled, host.expelled) = (true, false);
                self.policies.set(Policy::Enrolment, id.as_str(), None, SetBy::Operator, emit);
                self.restate_host(number, "enrolled", emit);
            }
            None if self.meta.enrolled_early.len() < HOSTS_MAX => {
                self.meta.enrolled_early.insert(id.clone());
                self.policies.set(Policy::Enrolment, id.as_str(), None, SetBy::Operator, emit);
            }
            None => self.refuse_control(Reason::LimitReached, format!("{HOSTS_MAX} hosts are enrolled that never registered"), emit),
        }
    }

    /// Takes a host's enrolment back, also where every host of the cell is enrolled.
    fn expel(&mut self, id: &HostId, emit: &mut Emit<'_>) {
        let early = self.meta.enrolled_early.remove(id);
        match self.registry.host_number(id) {
            Some(number) => {
                let host = self.registry.host_mut(number);
                (host.enrolled, host.expelled) = (false, true);
                self.policies.end(Policy::Enrolment.kind(), id.as_str(), emit);
                self.restate_host(number, "expelled", emit);
            }
            None if early => self.policies.end(Policy::Enrolment.kind(), id.as_str(), emit),
            None => self.refuse_control(Reason::DeviceNotRegistered, format!("no host {id}"), emit),
        }
    }

    /// The number of what a cordon is about and its name in `policies`; refused if there is none.
    fn target(&mut self, what: &Cordon, emit: &mut Emit<'_>) -> Option<(Target, String)> {
        let (found, name) = match what {
            Cordon::Host(id) => (self.registry.host_number(id).map(Target::Host), format!("host/{id}")),
            Cordon::Gpu(uuid) => (self.registry.device_number(uuid).map(Target::Gpu), format!("gpu/{uuid}")),
        };
        if found.is_none() {
            self.refuse_control(Reason::DeviceNotRegistered, format!("no {}", name.replacen('/', " ", 1)), emit);
        }
        found.map(|target| (target, name))
    }

    fn cordon(&mut self, what: &Cordon, asked: Cordoned, emit: &mut Emit<'_>) {
        if let Some(grace_ms) = asked.grace_ms.filter(|&ms| ms > GRACE_MS_MAX) {
            return self.refuse_control(Reason::OutOfRange, format!("grace_ms {grace_ms}, at most {GRACE_MS_MAX}"), emit);
        }
        let Some((target, name)) = self.target(what, emit) else { return };
        let (cordoned, drains) = self.out_of_service(target);
        if cordoned && drains && !asked.drain {
            // It is drained already, which is more.
            return;
        }
        if !self.policies.set(Policy::Cordon(asked), &name, None, SetBy::Operator, emit) {
            return;
        }
        self.set_out_of_service(target, true, asked.drain, if asked.drain { "drain" } else { "cordon" }, emit);
        if asked.drain {
            self.drain_leases(&self.numbers_of(target), asked.grace_ms, emit);
        }
    }

    fn uncordon(&mut self, what: &Cordon, emit: &mut Emit<'_>) {
        let Some((target, name)) = self.target(what, emit) else { return };
        self.policies.end(Policy::Cordon(Cordoned::default()).kind(), &name, emit);
        self.set_out_of_service(target, false, false, "uncordon", emit);
    }

    fn numbers_of(&self, target: Target) -> Vec<u32> {
        match target {
            Target::Host(number) => self.registry.hosts[number as usize].devices.clone(),
            Target::Gpu(number) => vec![number],
        }
    }

    /// Whether it is cordoned, and whether it drains.
    fn out_of_service(&self, target: Target) -> (bool, bool) {
        match target {
            Target::Host(number) => {
                let host = &self.registry.hosts[number as usize];
                (host.cordoned, host.drains)
            }
            Target::Gpu(number) => {
                let facts = &self.registry.devices[number as usize].facts;
                (facts.cordoned, facts.drains)
            }
        }
    }

    fn set_out_of_service(&mut self, target: Target, cordoned: bool, drains: bool, cause: &str, emit: &mut Emit<'_>) {
        if self.out_of_service(target) == (cordoned, drains) {
            return;
        }
        match target {
            Target::Host(number) => {
                self.close_host_version(number, emit);
                let host = self.registry.host_mut(number);
                (host.cordoned, host.drains) = (cordoned, drains);
                self.publish_host(number, cause, emit);
                self.restate_host(number, cause, emit);
            }
            Target::Gpu(number) => {
                let device = self.registry.device_mut(number);
                (device.facts.cordoned, device.facts.drains) = (cordoned, drains);
                device.facts_dirty = true;
                self.restate(number, Cause::of(cause), emit);
            }
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

    fn settings(&mut self, change: &Settings, emit: &mut Emit<'_>) {
        match self.meta.settings.with(change) {
            Err(detail) => self.refuse_control(Reason::OutOfRange, detail, emit),
            Ok(new) => {
                let old = std::mem::replace(&mut self.meta.settings, new);
                self.policies.set(Policy::Settings(new), FOLD, None, SetBy::Operator, emit);
                self.settle_settings(&old);
            }
        }
    }

    /// What follows from a change of settings: deadlines move, and what looked empty under the old threshold need not under the new one.
    fn settle_settings(&mut self, old: &Thresholds) {
        let new = self.meta.settings;
        if new == *old {
            return;
        }
        for number in 0..self.registry.hosts.len() as u32 {
            self.wait_for_silence(number);
            self.wait_for_gaps(number);
        }
        for number in 0..self.registry.devices.len() as u32 {
            self.wait_for_late(number);
            if new.free_memory_bytes_max != old.free_memory_bytes_max && self.registry.devices[number as usize].pulse.calm_ns.is_some() {
                let device = self.registry.device_mut(number);
                device.pulse.calm_ns = None;
                device.pulse_dirty = true;
            }
        }
    }

    fn placement(&mut self, policy: &str, version: u32, power_weight: u32, emit: &mut Emit<'_>) {
        let Some(name) = Name::from_code(policy).filter(|_| version == VERSION) else {
            return self.refuse_control(Reason::UnknownPolicy, unknown_policy(&format!("{policy}@{version}")), emit);
        };
        if power_weight > POWER_WEIGHT_MAX {
            let detail = format!("power_weight {power_weight}, at most {POWER_WEIGHT_MAX}");
            return self.refuse_control(Reason::OutOfRange, detail, emit);
        }
        if power_weight > 0 && !name.weighs() {
            let detail = format!("power_weight {power_weight} of {}, which draws lots: there is nothing to weigh", name.code());
            return self.refuse_control(Reason::InvalidPolicy, detail, emit);
        }
        let (old, new) = (self.meta.policy(), Policy::Placement(Placing { power_weight }));
        if name != old {
            self.policies.end(new.kind(), old.code(), emit);
        }
        self.policies.set(new, name.code(), Some(VERSION), SetBy::Operator, emit);
        (self.meta.policy, self.meta.power_weight) = (name.code().to_owned(), power_weight);
    }

    /// Takes a lease back, whoever holds it.
    fn revoke(&mut self, lease_id: &str, emit: &mut Emit<'_>) {
        match self.leases.find(lease_id).filter(|lease| lease.state != LeaseState::Draining).map(|lease| lease.fence) {
            Some(fence) => self.end_lease(fence, "revoked", emit),
            None => self.refuse_control(Reason::UnknownLease, format!("no lease {} that lives", cut(lease_id, TEXT_BYTES_MAX)), emit),
        }
    }

    fn quota(&mut self, tenant: &TenantId, gpu_milli_max: Option<u64>, emit: &mut Emit<'_>) {
        match gpu_milli_max {
            Some(gpu_milli_max) => {
                self.policies.set(Policy::Quota(Quota { gpu_milli_max }), tenant.as_str(), None, SetBy::Operator, emit);
            }
            None => self.policies.end(Policy::QUOTA, tenant.as_str(), emit),
        }
        self.queue.woken = true;
    }

    fn logic(&mut self, version: u32, emit: &mut Emit<'_>) {
        if version == LOGIC {
            self.policies.set(Policy::Logic, FOLD, Some(LOGIC), SetBy::Operator, emit);
        } else {
            self.refuse_control(Reason::UnknownPolicy, format!("logic {version}, this build knows {LOGIC}"), emit);
        }
    }

    fn learned(&mut self, learned: &Learned, emit: &mut Emit<'_>) {
        match learned.check() {
            Ok(()) => {
                self.policies.set(Policy::Tables(Box::new(learned.clone())), PLACEMENT, None, SetBy::Operator, emit);
            }
            Err(detail) => self.refuse_control(Reason::InvalidPolicy, detail, emit),
        }
    }

    fn restate_host(&mut self, host: u32, cause: &str, emit: &mut Emit<'_>) {
        for number in self.registry.hosts[host as usize].devices.clone() {
            self.restate(number, Cause::of(cause), emit);
        }
    }

    /// A row of `rejected` that carries the record's own sequence, so that whoever sent it finds the answer.
    pub(crate) fn refuse_control(&mut self, reason: Reason, detail: String, emit: &mut Emit<'_>) {
        let refusal = Refusal { sequence: Some(emit.position().sequence), ..Refusal::new(reason, detail) };
        self.refuse(None, None, "control", refusal, emit);
    }
}
