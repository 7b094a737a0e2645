//! One GPU as placement sees it, and the gates it must pass before it is scored.

use std::sync::Arc;

use plimsoll_schemas::id::Slot;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, WHOLE_MILLI};

use super::ask::Ask;
use super::mig::Board;
use super::policy::power::wakes_mw;
use super::score::{self, Inputs, Score};
use super::{Settings, vram};

/// One percent in the unit of [`Inputs::util_micro`].
const MICRO_PER_PERCENT: u64 = score::MICRO / 100;

/// One GPU as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Whatever number its owner knows it by.
    pub number: u32,
    /// Its stable number there.
    pub slot: Slot,
    /// Product name as the driver gives it.
    pub model: Arc<str>,
    /// Driver version, if known.
    pub driver: Option<Arc<str>>,
    /// Compute capability, if known.
    pub compute_capability: Option<Arc<str>>,
    /// Profile, of a MIG instance.
    pub mig_profile: Option<Arc<str>>,
    /// What new instances it can have, of a board that says MIG mode is on: it is never placed on as a whole.
    pub mig: Option<Board>,
    /// Whether it is cut into MIG instances: they are placed on, not it.
    pub is_cut: bool,
    /// GPUs of a host with the same number reach each other by NVLink.
    pub nvlink_domain: Option<u32>,
    /// NUMA node.
    pub numa_node: Option<u16>,
    /// Memory on board, bytes; absent = not known: nothing can be promised on it.
    pub memory_total_bytes: Option<u64>,
    /// Memory in use, bytes; absent = not known: counts as all of it.
    pub memory_used_bytes: Option<u64>,
    /// Utilisation, percent; absent = not known: counts as 100.
    pub util_percent: Option<u64>,
    /// Temperature, millikelvin; absent = not known: costs nothing.
    pub temperature_mk: Option<u64>,
    /// Temperature at which the board slows down, millikelvin, if known.
    pub slowdown_temperature_mk: Option<u64>,
    /// Most that its board may draw, thousandths of a watt, if known; nobody knows what a MIG instance may.
    pub power_limit_mw: Option<u64>,
    /// What the fold already knows against it: stale, no sample, not enrolled, cordoned, draining, unhealthy.
    pub gate: Option<Reason>,
    /// Whether it is kept for another request that waits.
    pub kept: bool,
    /// Thousandths reserved by living leases.
    pub reserved_milli: u32,
    /// Memory reserved by living leases, bytes.
    pub reserved_vram_bytes: u64,
    /// The part of it that cannot be in use yet: it was reserved too short a while ago. It comes on top of what is in use.
    pub unseen_vram_bytes: u64,
}

/// A candidate that passed every gate, and what it would give.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// Memory it would reserve, bytes.
    pub vram_bytes: u64,
}

impl Candidate {
    /// Bytes a new lease may still reserve on it. Unknown is never free.
    pub fn free_vram_bytes(&self, settings: &Settings) -> u64 {
        let Some(total) = self.memory_total_bytes else { return 0 };
        let free = vram::free(total, self.memory_used_bytes.unwrap_or(total), self.seen_vram_bytes(), settings.vram_limit_bp);
        free.saturating_sub(self.unseen_vram_bytes)
    }

    /// Memory that leases have reserved long enough to use it, bytes.
    fn seen_vram_bytes(&self) -> u64 {
        self.reserved_vram_bytes.saturating_sub(self.unseen_vram_bytes)
    }

    /// Its score under `headroom@1`. What is promised but not yet in use counts as used, so that two requests in a row do not
    /// both see the same room.
    pub fn score(&self) -> Score {
        let total_bytes = self.memory_total_bytes.unwrap_or(0);
        score::headroom(&Inputs {
            used_bytes: self.memory_used_bytes.unwrap_or(total_bytes).max(self.seen_vram_bytes()).saturating_add(self.unseen_vram_bytes),
            total_bytes,
            max_bytes: total_bytes,
            util_micro: self.util_percent.unwrap_or(100).saturating_mul(MICRO_PER_PERCENT),
            temperature_uk: self.temperature_mk.map(|mk| mk.saturating_mul(1_000)),
        })
    }

    /// What waking it adds to what is drawn, thousandths of a watt, if known. A MIG instance is left out: what it draws is its board's.
    pub fn wakes_mw(&self) -> Option<u32> {
        if self.mig_profile.is_some() { Some(0) } else { self.power_limit_mw.and_then(wakes_mw) }
    }

    /// What it would give for a member of the bundle, or the first gate in the order of precedence that it does not pass.
    pub fn offer(&self, ask: &Ask<'_>, bundle: &Bundle, settings: &Settings) -> Result<Offer, Reason> {
        if let Some(reason) = self.gate {
            return Err(reason);
        }
        let free = self.free_vram_bytes(settings);
        let unless = |shut: bool, reason: Reason| if shut { Err(reason) } else { Ok(()) };
        unless(self.is_hot(), Reason::Thermal)?;
        unless(!ask.allows_model(&self.model), Reason::ModelMismatch)?;
        unless(!ask.allows_driver(self.driver.as_deref()), Reason::DriverTooOld)?;
        unless(!ask.allows_compute_capability(self.compute_capability.as_deref()), Reason::ComputeCapability)?;
        if let Some(board) = &self.mig {
            return self.offer_new(board, bundle);
        }
        unless(self.is_cut || bundle.mig_profile.as_deref() != self.mig_profile.as_deref(), Reason::MigProfile)?;
        unless(self.kept, Reason::Reserved)?;
        unless(self.reserved_milli.saturating_add(bundle.milli) > WHOLE_MILLI, self.reserved_by_whom(bundle))?;
        unless(bundle.vram_bytes > free, Reason::InsufficientMemory)?;
        unless(self.score().is_zero(), Reason::NoHeadroom)?;
        Ok(Offer { vram_bytes: reserved_by(bundle, free) })
    }

    /// What a board would give for a member that asks for an instance. Nobody has a share of what does not exist.
    fn offer_new(&self, board: &Board, bundle: &Bundle) -> Result<Offer, Reason> {
        let whole = bundle.mig_profile.as_deref().filter(|_| bundle.milli == WHOLE_MILLI);
        let profile = whole.and_then(|name| board.profile(name)).ok_or(Reason::MigProfile)?;
        let vram_bytes = board.profile_at(profile).memory_bytes;
        if self.kept {
            return Err(Reason::Reserved);
        }
        if bundle.vram_bytes > vram_bytes {
            return Err(Reason::InsufficientMemory);
        }
        board.has_room(profile)?;
        Ok(Offer { vram_bytes })
    }

    fn is_hot(&self) -> bool {
        self.temperature_mk.zip(self.slowdown_temperature_mk).is_some_and(|(now, slowdown)| now >= slowdown)
    }

    /// What it means that not enough of it is left: a share for which something, but too little, is left, or others have it.
    fn reserved_by_whom(&self, bundle: &Bundle) -> Reason {
        if bundle.milli < WHOLE_MILLI && self.reserved_milli < WHOLE_MILLI { Reason::ShareTooSmall } else { Reason::LeaseConflict }
    }
}

/// The bytes a bundle reserves on a GPU with `free` bytes: what it asks for. Where it asks for none ("whatever there is") an
/// exclusive lease takes all that is free, and a share takes none, so that others can still share.
fn reserved_by(bundle: &Bundle, free: u64) -> u64 {
    if bundle.vram_bytes == 0 && bundle.milli == WHOLE_MILLI { free } else { bundle.vram_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::request::{Constraints, Place};

    const GIB: u64 = 1 << 30;

    fn check(change: impl FnOnce(&mut Candidate, &mut Bundle), expected: Result<u64, Reason>) {
        let mut candidate = Candidate {
            number: 0,
            slot: Slot(0),
            model: "NVIDIA H100".into(),
            driver: Some("550.54.15".into()),
            compute_capability: Some("9.0".into()),
            mig_profile: None,
            mig: None,
            is_cut: false,
            nvlink_domain: None,
            numa_node: None,
            memory_total_bytes: Some(80 * GIB),
            memory_used_bytes: Some(0),
            util_percent: Some(0),
            temperature_mk: Some(313_150),
            slowdown_temperature_mk: Some(363_150),
            power_limit_mw: None,
            gate: None,
            kept: false,
            reserved_milli: 0,
            reserved_vram_bytes: 0,
            unseen_vram_bytes: 0,
        };
        let mut bundle = Bundle { count: 1, milli: 1_000, vram_bytes: 10 * GIB, ..Bundle::default() };
        change(&mut candidate, &mut bundle);
        let place = Place {
            request_id: "r".to_owned(),
            bundles: vec![bundle.clone()],
            models: vec!["NVIDIA H100".to_owned(), "NVIDIA A100".to_owned()],
            constraints: Constraints {
                driver_min: Some("550.54".to_owned()),
                compute_capability_min: Some("8.0".to_owned()),
                ..Constraints::default()
            },
            ..Place::default()
        };
        let ask = Ask::new(&place).expect("within bounds");
        let offer = candidate.offer(&ask, &bundle, &Settings { vram_limit_bp: 9_000 });
        assert_eq!(offer.map(|offer| offer.vram_bytes), expected, "{candidate:?} {bundle:?}");
    }

    #[test]
    fn gates_come_in_the_order_of_precedence() {
        let hopeless = |c: &mut Candidate, gate, mk, model: &str, milli, used| {
            c.gate = gate;
            c.temperature_mk = Some(mk);
            c.model = model.into();
            c.reserved_milli = milli;
            c.memory_used_bytes = Some(used);
            c.util_percent = Some(100);
        };
        let (hot, cool, full) = (363_150, 363_149, 80 * GIB);
        check(|c, _| hopeless(c, Some(Reason::Cordoned), hot, "T4", 1, full), Err(Reason::Cordoned));
        check(|c, _| hopeless(c, None, hot, "T4", 1, full), Err(Reason::Thermal));
        check(|c, _| hopeless(c, None, cool, "T4", 1, full), Err(Reason::ModelMismatch));
        check(|c, _| c.driver = Some("550.9".into()), Err(Reason::DriverTooOld));
        check(|c, _| (c.compute_capability, c.is_cut) = (None, true), Err(Reason::ComputeCapability));
        check(|c, _| (c.is_cut, c.kept) = (true, true), Err(Reason::MigProfile));
        check(|c, b| (c.mig_profile, b.mig_profile) = (Some("1g.10gb".into()), Some("2g.20gb".to_owned())), Err(Reason::MigProfile));
        check(|c, b| (c.mig_profile, b.mig_profile) = (Some("1g.10gb".into()), Some("1g.10gb".to_owned())), Ok(10 * GIB));
        check(|c, _| (c.kept, c.reserved_milli) = (true, 1), Err(Reason::Reserved));
        check(|c, _| hopeless(c, None, cool, "NVIDIA H100", 1, full), Err(Reason::LeaseConflict));
        check(|c, _| hopeless(c, None, cool, "NVIDIA H100", 0, full), Err(Reason::InsufficientMemory));
        check(|c, b| (hopeless(c, None, cool, "NVIDIA H100", 0, full), b.vram_bytes = 0).0, Err(Reason::NoHeadroom));
        check(|c, _| hopeless(c, None, cool, "NVIDIA H100", 0, 0), Ok(10 * GIB));
    }

    #[test]
    fn memory_is_given_up_to_the_limit_and_not_a_byte_beyond() {
        check(|_, b| b.vram_bytes = 72 * GIB, Ok(72 * GIB));
        check(|_, b| b.vram_bytes = 72 * GIB + 1, Err(Reason::InsufficientMemory));
        check(|c, b| (c.memory_used_bytes, b.vram_bytes) = (Some(70 * GIB), 10 * GIB + 1), Err(Reason::InsufficientMemory));
        let used = |c: &mut Candidate, unseen| (c.memory_used_bytes, c.reserved_vram_bytes, c.unseen_vram_bytes) = (Some(60 * GIB), 15 * GIB, unseen);
        check(|c, b| (used(c, 0), b.vram_bytes = 20 * GIB).0, Ok(20 * GIB));
        check(|c, b| (used(c, 15 * GIB), b.vram_bytes = 5 * GIB).0, Ok(5 * GIB));
        check(|c, b| (used(c, 15 * GIB), b.vram_bytes = 5 * GIB + 1).0, Err(Reason::InsufficientMemory));
    }

    #[test]
    fn a_request_without_a_size_takes_all_of_an_exclusive_gpu_and_nothing_of_a_shared_one() {
        check(|c, b| (c.memory_used_bytes, b.vram_bytes) = (Some(GIB), 0), Ok(72 * GIB));
        check(|_, b| (b.milli, b.vram_bytes) = (500, 0), Ok(0));
    }

    #[test]
    fn shares_add_up_to_one_gpu() {
        check(|c, b| (c.reserved_milli, b.milli) = (700, 300), Ok(10 * GIB));
        check(|c, b| (c.reserved_milli, b.milli) = (700, 301), Err(Reason::ShareTooSmall));
        check(|c, b| (c.reserved_milli, b.milli) = (1_000, 301), Err(Reason::LeaseConflict));
    }

    #[test]
    fn unknown_is_never_free() {
        check(|c, _| c.memory_total_bytes = None, Err(Reason::InsufficientMemory));
        check(|c, _| c.memory_used_bytes = None, Err(Reason::InsufficientMemory));
        check(|c, b| (c.memory_total_bytes, b.vram_bytes) = (None, 0), Err(Reason::NoHeadroom));
        check(|c, _| c.util_percent = None, Ok(10 * GIB));
        check(|c, _| c.temperature_mk = None, Ok(10 * GIB));
    }
}
