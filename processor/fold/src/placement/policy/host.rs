//! One host as a policy sees it: what is left on it, what fits, and why something does not.

use super::shape::Shape;

/// What is left on one host.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Its place in the tie order: of equals the lesser wins.
    pub index: usize,
    /// Its GPUs' model, a number of the fleet's.
    pub model: u8,
    /// Nothing may be placed on it.
    pub excluded: bool,
    /// CPU left, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory left, MiB.
    pub memory_mib: i64,
    /// Thousandths left on each GPU.
    pub gpus: &'a [i32],
    /// Their sum.
    pub idle_milli: i64,
    /// How many requests of each class live here.
    pub classes: &'a Classes,
    /// The GPUs that may be taken: bit i = GPU i.
    pub open: u64,
    /// What telemetry says of each GPU, millionths; empty where nobody measures.
    pub scores: &'a [u32],
    /// What each GPU adds to what is drawn when it is woken, thousandths of a watt; absent = not known, empty where nobody has said.
    pub wakes_mw: &'a [Option<u32>],
    /// What the host adds with the first of them.
    pub host_mw: u32,
}

/// How many requests of each class live on a host. Classes: shares, then by number of GPUs; the last takes all larger ones.
pub type Classes = [u16; CLASSES];
/// Number of classes.
pub const CLASSES: usize = 17;

/// The class of a request that asks for GPUs.
pub fn class(shape: &Shape) -> usize {
    if shape.is_share() { 0 } else { (shape.gpus as usize).min(CLASSES - 1) }
}

/// Why a shape does not fit a host, in the order of precedence: the first one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misfit {
    /// Nothing may be placed on the host.
    Excluded,
    /// Another model than those allowed.
    ModelMismatch,
    /// Not enough CPU left.
    InsufficientCpu,
    /// Not enough memory of the host left.
    InsufficientHostMemory,
    /// Enough thousandths in sum, but not on one GPU.
    ShareTooSmall,
    /// Not enough GPUs with enough left.
    TooFewDevices,
}

impl Misfit {
    /// All of them, in the order of precedence.
    pub const ALL: [Self; 6] =
        [Self::Excluded, Self::ModelMismatch, Self::InsufficientCpu, Self::InsufficientHostMemory, Self::ShareTooSmall, Self::TooFewDevices];

    /// The snake_case code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Excluded => "excluded",
            Self::ModelMismatch => "model_mismatch",
            Self::InsufficientCpu => "insufficient_cpu",
            Self::InsufficientHostMemory => "insufficient_host_memory",
            Self::ShareTooSmall => "share_too_small",
            Self::TooFewDevices => "too_few_devices",
        }
    }
}

impl Host<'_> {
    /// Whether the shape fits, or the first reason why not.
    pub fn fits(&self, shape: &Shape) -> Result<(), Misfit> {
        if self.excluded {
            return Err(Misfit::Excluded);
        }
        if shape.gpus > 0 && !shape.models.allow(self.model) {
            return Err(Misfit::ModelMismatch);
        }
        if shape.cpu_milli > self.cpu_milli {
            return Err(Misfit::InsufficientCpu);
        }
        if shape.memory_mib > self.memory_mib {
            return Err(Misfit::InsufficientHostMemory);
        }
        let with_room = self.with_room(shape.milli).count();
        if with_room >= shape.gpus as usize {
            return Ok(());
        }
        Err(if shape.is_share() && self.idle_milli >= i64::from(shape.milli) { Misfit::ShareTooSmall } else { Misfit::TooFewDevices })
    }

    /// The GPUs that may be taken and have so much left, and how much.
    pub fn with_room(&self, milli: i32) -> impl DoubleEndedIterator<Item = (usize, i32)> + '_ {
        self.gpus.iter().copied().enumerate().filter(move |&(gpu, left)| left >= milli && self.open >> gpu & 1 == 1)
    }

    /// The GPUs with room that have the least left, the first of equals: bit i = GPU i. For whole GPUs these are the first free
    /// ones. The shape fits.
    pub fn tightest(&self, shape: &Shape) -> u64 {
        let mut taken = 0;
        for _ in 0..shape.gpus {
            let others = self.with_room(shape.milli).filter(|&(gpu, _)| taken >> gpu & 1 == 0);
            let Some((gpu, _)) = others.min_by_key(|&(_, left)| left) else { break };
            taken |= 1 << gpu;
        }
        taken
    }

    /// The first GPU of each amount left, among those with room: GPUs with the same left are worth the same.
    pub fn distinct(&self, milli: i32) -> impl Iterator<Item = (usize, i32)> + '_ {
        let before = move |gpu: usize| self.with_room(milli).take_while(move |&(other, _)| other < gpu);
        self.with_room(milli).filter(move |&(gpu, left)| before(gpu).all(|(_, other)| other != left))
    }

    /// Whether nothing tells two hosts apart but their place: they are worth the same to every policy that looks at no place.
    pub fn is_like(&self, other: &Host<'_>) -> bool {
        (self.model, self.excluded, self.cpu_milli, self.memory_mib, self.gpus, self.classes, self.open, self.scores)
            == (other.model, other.excluded, other.cpu_milli, other.memory_mib, other.gpus, other.classes, other.open, other.scores)
            && (self.wakes_mw, self.host_mw) == (other.wakes_mw, other.host_mw)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Models;
    use super::*;

    fn check(change: impl FnOnce(&mut Shape), gpus: &[i32], expected: Result<u64, Misfit>) {
        let host = Host {
            index: 0,
            model: 3,
            excluded: false,
            cpu_milli: 8_000,
            memory_mib: 1_024,
            gpus,
            idle_milli: gpus.iter().map(|&left| i64::from(left)).sum(),
            classes: &[0; CLASSES],
            open: u64::MAX,
            scores: &[],
            wakes_mw: &[],
            host_mw: 0,
        };
        let mut shape = Shape { cpu_milli: 8_000, memory_mib: 1_024, gpus: 1, milli: 500, models: Models(1 << 3) };
        change(&mut shape);
        assert_eq!(host.fits(&shape).map(|()| host.tightest(&shape)), expected, "{shape:?} {gpus:?}");
    }

    #[test]
    fn the_first_reason_in_the_order_of_precedence_counts() {
        check(|_| {}, &[500], Ok(1));
        check(|s| (s.models, s.cpu_milli) = (Models(1), 9_000), &[500], Err(Misfit::ModelMismatch));
        check(|s| (s.cpu_milli, s.memory_mib) = (8_001, 2_000), &[500], Err(Misfit::InsufficientCpu));
        check(|s| (s.memory_mib, s.milli) = (1_025, 501), &[500], Err(Misfit::InsufficientHostMemory));
        check(|s| s.milli = 501, &[500, 100], Err(Misfit::ShareTooSmall));
        check(|s| s.milli = 601, &[500, 100], Err(Misfit::TooFewDevices));
        check(|s| (s.gpus, s.milli) = (2, 1_000), &[1_000, 999], Err(Misfit::TooFewDevices));
        check(|s| (s.gpus, s.milli, s.models) = (0, 0, Models(1)), &[], Ok(0));
    }

    #[test]
    fn the_tightest_gpus_are_taken_and_of_equals_the_first() {
        check(|_| {}, &[1_000, 600, 400, 600], Ok(0b0010));
        check(|s| (s.gpus, s.milli) = (2, 1_000), &[1_000, 600, 1_000, 1_000], Ok(0b0101));
        check(|s| (s.gpus, s.milli) = (2, 500), &[1_000, 600, 1_000, 1_000], Ok(0b0011));
    }

    #[test]
    fn a_gpu_that_may_not_be_taken_is_passed_over() {
        let gpus = [600, 600, 1_000, 600];
        let host = Host {
            index: 0,
            model: 0,
            excluded: false,
            cpu_milli: 0,
            memory_mib: 0,
            gpus: &gpus,
            idle_milli: 2_800,
            classes: &[0; CLASSES],
            open: 0b1110,
            scores: &[],
            wakes_mw: &[],
            host_mw: 0,
        };
        let share = Shape { cpu_milli: 0, memory_mib: 0, gpus: 1, milli: 500, models: Models::ANY };
        assert_eq!(host.tightest(&share), 0b0010);
        assert_eq!(host.distinct(500).collect::<Vec<_>>(), [(1, 600), (2, 1_000)]);
        assert_eq!(host.fits(&Shape { gpus: 4, ..share }), Err(Misfit::TooFewDevices));
    }
}
