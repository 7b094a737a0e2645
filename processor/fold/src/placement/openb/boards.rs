//! What the GPUs of the openb traces draw: idle, and as much as the board is rated for, in watts. A table, not a measurement.
//!
//! Sources: NVIDIA's data sheets of T4 (70 W), A10 (150 W), P100 PCIe (250 W), V100 SXM2 (300 W) and A100 SXM4 (400 W); idle as in Lettich
//! et al., arXiv 2412.17484, and their published program. The traces hide what G2 and G3 are: G2 is taken for an A10, G3 for an A100.

use crate::placement::policy::power::{Draws, Powers};

/// Model, idle and rated, watts.
const BOARDS: [(&str, i64, i64); 7] =
    [("A10", 30, 150), ("G2", 30, 150), ("G3", 50, 400), ("P100", 25, 250), ("T4", 10, 70), ("V100M16", 30, 300), ("V100M32", 30, 300)];
/// Thousandths in a watt.
const MW_PER_W: i64 = 1_000;

/// What each model draws; of hosts nothing is known.
pub fn powers() -> Powers {
    let draws = |idle: i64, active: i64| Draws { idle_mw: idle * MW_PER_W, active_mw: active * MW_PER_W, host_mw: 0 };
    BOARDS.into_iter().map(|(model, idle, active)| (model.to_owned(), draws(idle, active))).collect()
}
