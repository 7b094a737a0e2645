//! What is wrong with a GPU, each cause on its own: what it means for placement, and what makes it well again.
//!
//! | cause | from | gate | cleared by |
//! |---|---|---|---|
//! | lost | the agent: no answer | `gpu_lost` | the GPU's return, a new life of the agent, an operator |
//! | XID | the driver's code, by its class | `xid` | the GPU's return, a new life of the agent, an operator |
//! | ECC | uncorrected errors since the driver was loaded, in samples or events | `ecc` | the count going back (reset, driver reloaded), an operator |
//! | remapped rows | the agent: pending or failed | `row_remap` | the agent's word, a new life of the agent, an operator |
//! | heat | samples against the board's limit, with hysteresis | `thermal` | cooling down |

use plimsoll_schemas::inventory::Remap;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::sample::{Sample, ZERO_CELSIUS_MK};
use plimsoll_schemas::settings::Thresholds;
use serde::{Deserialize, Serialize};

use crate::State;
use crate::emit::Emit;
use crate::placement::reputation::Failure;
use crate::registry::{Glance, Health};
use crate::state_time::Cause;
use crate::thermal;
use crate::xid;

/// Everything that is wrong with a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// It does not answer.
    pub lost: bool,
    /// The XID that says the worst about the board.
    pub xid: Option<u32>,
    /// Uncorrected ECC errors since the driver was loaded.
    pub ecc: u64,
    /// How many of those an operator has seen and accepted.
    pub ecc_accepted: u64,
    /// Rows of memory that wait to be replaced, or cannot be.
    pub remap: Remap,
    /// Too near to its temperature limit.
    pub hot: bool,
    /// The life of the agent in which the newest of these was said; a newer one clears what an agent says once.
    pub noted_epoch: u64,
}

impl Faults {
    /// Each cause that is present, in the order of precedence, with how bad it is.
    fn present(&self) -> impl Iterator<Item = (Reason, Health)> {
        let remap = match self.remap {
            Remap::Clean => Health::Ok,
            Remap::Pending => Health::Degraded,
            Remap::Failed => Health::Failed,
        };
        let degraded = |fault: bool| if fault { Health::Degraded } else { Health::Ok };
        [
            (Reason::GpuLost, if self.lost { Health::Failed } else { Health::Ok }),
            (Reason::Xid, self.xid.map_or(Health::Ok, |code| xid::Class::of(code).health())),
            (Reason::Ecc, degraded(self.ecc > self.ecc_accepted)),
            (Reason::RowRemap, remap),
            (Reason::Thermal, degraded(self.hot)),
        ]
        .into_iter()
        .filter(|&(_, health)| health > Health::Ok)
    }

    /// How well the GPU is with all of it.
    pub fn health(&self) -> Health {
        self.present().map(|(_, health)| health).max().unwrap_or_default()
    }

    /// The reason that keeps placements away; absent = it is well.
    pub fn reason(&self) -> Option<Reason> {
        self.present().next().map(|(reason, _)| reason)
    }

    /// Notes an XID, if it says anything about the board and no graver one is known.
    pub fn note_xid(&mut self, code: u32) {
        let health = |code| xid::Class::of(code).health();
        if health(code) > self.xid.map_or(Health::Ok, health) {
            self.xid = Some(code);
        }
    }

    /// Notes how many uncorrected ECC errors there are; fewer than before means that the board began anew.
    pub fn note_ecc(&mut self, errors: u64) {
        self.ecc = errors;
        self.ecc_accepted = self.ecc_accepted.min(errors);
    }

    /// The GPU answers again: whoever brought it back has reset it.
    pub fn clear_on_return(&mut self) {
        (self.lost, self.xid) = (false, None);
    }

    /// A new life of the agent says anew what is still wrong.
    pub fn clear_on_restart(&mut self) {
        (self.lost, self.xid, self.remap) = (false, None, Remap::Clean);
    }

    /// An operator says that the GPU is well. Heat is no opinion.
    pub fn clear_by_operator(&mut self) {
        self.clear_on_restart();
        self.ecc_accepted = self.ecc;
    }
}

impl Glance {
    /// Whether the GPU is too near to its limit after a sample. Without a temperature nothing changes, without a limit nothing is hot.
    fn hot_after(&self, sample: &Sample, settings: &Thresholds) -> bool {
        match (sample.temperature_mk(), self.slowdown_temperature_mk) {
            (_, None) => false,
            (None, Some(_)) => self.hot,
            (Some(temperature_mk), Some(limit_mk)) => thermal::paused(self.hot, temperature_mk, limit_mk, settings),
        }
    }
}

impl State {
    /// Changes what is wrong with a GPU, under the present life of its agent.
    pub(crate) fn change_faults(&mut self, number: u32, change: impl FnOnce(&mut Faults)) {
        let epoch = self.registry.hosts[self.registry.devices[number as usize].facts.host as usize].epoch;
        let device = self.registry.device_mut(number);
        let before = device.facts.faults.health();
        change(&mut device.facts.faults);
        device.facts.faults.noted_epoch = epoch;
        device.facts_dirty = true;
        let (broke, host) = (before < Health::Failed && device.facts.faults.health() == Health::Failed, device.facts.host);
        if broke {
            self.registry.host_mut(host).reputation.fail(Failure::Crash);
        }
    }

    /// What the newest fresh sample says about the hardware: heat, and ECC errors.
    pub(crate) fn watch_hardware(&mut self, number: u32, sample: &Sample, emit: &mut Emit<'_>) {
        let before = *self.registry.devices[number as usize].glance();
        let (hot, ecc) = (before.hot_after(sample, &self.meta.settings), sample.ecc_uncorrected().unwrap_or(before.ecc));
        if (hot, ecc) == (before.hot, before.ecc) || before.retired {
            return;
        }
        let limit_mk = before.slowdown_temperature_mk;
        if hot != before.hot {
            self.change_faults(number, |faults| faults.hot = hot);
            let celsius = |mk: Option<u64>| mk.map_or(0, |mk| (i64::try_from(mk).unwrap_or(i64::MAX) - ZERO_CELSIUS_MK) / 1_000);
            let detail = format!("{} °C, the limit is {} °C", celsius(sample.temperature_mk()), celsius(limit_mk));
            let kind = if hot { "thermal_pause" } else { "thermal_resume" };
            self.say_fault(number, Cause { detail: Some(&detail), ..Cause::of(kind) }, if hot { Health::Degraded } else { Health::Ok }, emit);
        }
        if ecc != before.ecc {
            self.note_ecc(number, ecc, None, emit);
        }
    }

    /// Notes a count of uncorrected ECC errors, and says what is new about it.
    pub(crate) fn note_ecc(&mut self, number: u32, errors: u64, detail: Option<&str>, emit: &mut Emit<'_>) {
        let before = self.registry.devices[number as usize].facts.faults.ecc;
        if errors == before {
            return;
        }
        self.change_faults(number, |faults| faults.note_ecc(errors));
        let (kind, health) = if errors > before { ("ecc", Health::Degraded) } else { ("ecc_cleared", Health::Ok) };
        self.say_fault(number, Cause { code: Some(i32::try_from(errors).unwrap_or(i32::MAX)), detail, ..Cause::of(kind) }, health, emit);
    }
}
