//! MIG in the living cell: which lease an instance belongs to, and when the slices of a lease that is over are free.
//!
//! A lease on a new instance holds slices of the board, not the instance: it is made later, by whoever runs the job, and announced later
//! still. An instance on slices that are promised belongs to the lease that holds them, and to nobody once that has ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use plimsoll_schemas::id::GpuUuid;
use plimsoll_schemas::mig::{Mig, Promise, Slices};
use plimsoll_schemas::out::LeaseState;
use plimsoll_schemas::request::WHOLE_MILLI;
use plimsoll_schemas::time::NS_PER_MS;

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::placement::mig::Board;
use crate::registry::{Device, Reservation, Use};
use crate::state_time::Cause;

/// A host has looked at its boards once more after this many of its ticks: slices on which it then names no instance are empty.
const LOOKED_TICKS: i64 = 120;

impl Device {
    /// Whether something could be placed on it now: all or a share of it, or on a board a new MIG instance. What is promised on a board is no
    /// matter here: then it counts as leased.
    pub fn is_placeable(&self) -> bool {
        let has_room = || self.facts.gpu.mig.as_ref().is_some_and(|mig| Board::new(Arc::new(mig.clone())).takes_any());
        self.facts.using == Use::Free || (self.facts.using == Use::Cut && has_room())
    }
}

impl State {
    /// What leases hold on the board under a MIG instance, and with it the instance; nothing of what is none.
    pub(crate) fn promised_of(&self, device: &Device) -> impl Iterator<Item = &Reservation> {
        let instance = &device.facts.gpu;
        let board = instance.mig_parent_uuid.as_ref().and_then(|board| self.registry.device_number(board));
        let board = board.map(|number| &self.registry.devices[number as usize].facts);
        board.into_iter().flat_map(move |board| {
            let mig = board.gpu.mig.as_ref();
            board.reservations.iter().filter(move |reservation| holds(reservation, mig, &instance.uuid))
        })
    }

    /// What leases hold of a GPU: on itself, or as a MIG instance by its board.
    pub(crate) fn holding<'a>(&'a self, device: &'a Device) -> impl Iterator<Item = &'a Reservation> {
        device.facts.reservations.iter().chain(self.promised_of(device))
    }

    /// Thousandths of a MIG instance that are reserved because its slices are, where some leases are taken to have ended.
    pub(crate) fn mig_milli(&self, device: &Device, ended: &BTreeSet<u64>) -> u32 {
        if self.promised_of(device).any(|r| !ended.contains(&r.fence)) { WHOLE_MILLI } else { 0 }
    }

    /// The leases, by fence, that hold a GPU, or of a board the slices named.
    pub(crate) fn fences_at(&self, number: u32, slices: Option<Slices>) -> impl Iterator<Item = u64> {
        let overlaps = move |promise: &Promise| slices.is_none_or(|slices| slices.mask() & promise.slices().mask() != 0);
        let holding = self.holding(&self.registry.devices[number as usize]);
        holding.filter(move |r| r.promised.is_empty() || r.promised.iter().any(overlaps)).map(|r| r.fence)
    }

    /// Works out anew where the instances of a board stand, after something of it was given back.
    pub(crate) fn restate_instances(&mut self, board: u32, cause: Cause<'_>, emit: &mut Emit<'_>) {
        let Some(mig) = &self.registry.devices[board as usize].facts.gpu.mig else { return };
        let instances = mig.instances.iter().filter_map(|instance| self.registry.device_number(instance.uuid.as_ref()?));
        for number in instances.collect::<Vec<_>>() {
            self.restate(number, cause, emit);
        }
    }

    /// Frees what leases that are over hold of a board that has just been heard, as far as it is shown to be empty: no instance stands there,
    /// or one whose own telemetry has shown long enough that nothing runs on it. Other leases on the board do not matter.
    pub(crate) fn free_empty_slices(&mut self, number: u32, emit: &mut Emit<'_>) {
        let facts = &self.registry.devices[number as usize].facts;
        let (Some(drain_ns), Some(mig)) = (facts.draining_ns, &facts.gpu.mig) else { return };
        let interval_ms = i64::from(self.registry.hosts[facts.host as usize].facts.interval_ms);
        let drained_ns = self.clock.live_ns - drain_ns;
        let looked = drained_ns >= LOOKED_TICKS.saturating_mul(interval_ms).saturating_mul(NS_PER_MS);
        let is_over = |fence: u64| self.leases.by_fence.get(&fence).is_none_or(|lease| lease.state == LeaseState::Draining);
        let is_empty = |promise: &Promise| {
            let mut there = mig.instances.iter().filter(|of| of.slices().mask() & promise.slices().mask() != 0).peekable();
            if there.peek().is_none() { looked } else { there.all(|of| self.is_calm(of.uuid.as_ref(), drain_ns)) }
        };
        let empty = |r: &&Reservation| !r.promised.is_empty() && is_over(r.fence) && r.promised.iter().all(is_empty);
        for fence in facts.reservations.iter().filter(empty).map(|r| r.fence).collect::<Vec<_>>() {
            self.give_back(fence, number, "observed_free", emit);
        }
    }

    /// Whether an instance has been shown to be empty for long enough since something on its board began to drain. One that nothing can run on
    /// shows nothing.
    fn is_calm(&self, uuid: Option<&GpuUuid>, drain_ns: i64) -> bool {
        let device = uuid.and_then(|uuid| self.registry.device_number(uuid)).map(|number| &self.registry.devices[number as usize]);
        let calm_ns = device.filter(|device| !device.facts.retired).and_then(|device| device.pulse.calm_ns);
        calm_ns.is_some_and(|calm_ns| self.clock.live_ns - calm_ns.max(drain_ns) >= ns(self.meta.settings.free_after_ms))
    }
}

/// Sees what is left of a board with MIG mode on, where some leases are taken to have ended and slices are kept.
pub(crate) fn see_board(seen: &mut Board, reservations: &[Reservation], ended: &BTreeSet<u64>, kept: &[Slices]) {
    seen.forget();
    kept.iter().for_each(|&slices| seen.keep(slices));
    for reservation in reservations.iter().filter(|r| !ended.contains(&r.fence)) {
        if reservation.promised.is_empty() {
            seen.close();
        }
        reservation.promised.iter().for_each(|promise| seen.promise(promise));
    }
}

/// Whether what a lease holds of a board is also a certain instance. Without knowing where that stands, what is promised may be where it is.
fn holds(reservation: &Reservation, board: Option<&Mig>, instance: &GpuUuid) -> bool {
    let overlaps = |of: Slices| reservation.promised.iter().any(|promise| promise.slices().mask() & of.mask() != 0);
    match board {
        Some(mig) => reservation.promised.is_empty() || mig.instance(instance).is_none_or(|of| overlaps(of.slices())),
        None => !reservation.promised.is_empty(),
    }
}
