//! What a request asks for, and nothing about who asks: requests of one shape are placed alike.

use std::collections::BTreeMap;

use super::fleet::MILLI;

/// The models that are allowed, one bit per model of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Models(pub u64);

impl Models {
    /// Every model.
    pub const ANY: Self = Self(u64::MAX);

    /// No model.
    pub const NONE: Self = Self(0);

    /// Whether the fleet's model of this number is one of them.
    pub fn allow(self, model: u8) -> bool {
        self.0 >> model & 1 == 1
    }

    /// Whether some model is left out.
    pub fn is_constraint(self) -> bool {
        self != Self::ANY
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// CPU, thousandths of a core.
    pub cpu_milli: i64,
    /// Memory of the host, MiB: a condition, never scored.
    pub memory_mib: i64,
    /// GPUs, all on one host; 0 = CPU only.
    pub gpus: u32,
    /// Thousandths of each GPU, 1..=1000; 0 where no GPU is asked for.
    pub milli: i32,
    /// The models that will do; without GPUs it does not matter.
    pub models: Models,
}

impl Shape {
    /// Thousandths over all its GPUs.
    pub fn total_milli(&self) -> i64 {
        i64::from(self.gpus) * i64::from(self.milli)
    }

    /// Whether it takes a part of one GPU: the one case in which the choice of the GPU is open.
    pub fn is_share(&self) -> bool {
        self.gpus == 1 && self.milli < MILLI
    }
}

/// How often each shape comes among these.
pub fn counted(shapes: &[Shape]) -> Vec<(Shape, i64)> {
    let mut counts = BTreeMap::new();
    for shape in shapes {
        *counts.entry(*shape).or_insert(0) += 1;
    }
    counts.into_iter().collect()
}
