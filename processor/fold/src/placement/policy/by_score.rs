//! `headroom`, `balanced` and `reliability` as policies: the host whose best GPUs score most on average. What a GPU scores is worked out from
//! telemetry before anything is bid, in millionths.

use super::host::Host;
use super::shape::Shape;
use super::{Bid, Policy};
use crate::placement::score;

/// By the scores that hosts carry.
#[derive(Debug, Clone, Copy)]
pub struct ByScore {
    /// What the scores are called.
    pub name: &'static str,
}

impl Policy for ByScore {
    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> u32 {
        1
    }

    fn bid(&self, host: &Host<'_>, shape: &Shape) -> Bid {
        let score = |gpu: usize| host.scores.get(gpu).copied().unwrap_or_default();
        let mut best: Vec<(u32, usize)> = host.with_room(shape.milli).map(|(gpu, _)| (score(gpu), gpu)).collect();
        best.sort_unstable_by_key(|&(score, gpu)| (std::cmp::Reverse(score), gpu));
        best.truncate(shape.gpus as usize);
        let sum: u64 = best.iter().map(|&(score, _)| u64::from(score)).sum();
        let count = best.len().max(1) as u64;
        Bid { key: ((sum + count / 2) / count) as i64, gpus: best.iter().fold(0, |set, &(_, gpu)| set | 1 << gpu) }
    }

    fn worth_micro(&self, key: i64) -> i64 {
        key
    }

    fn key_per_percent(&self) -> i64 {
        score::MICRO as i64 / 100
    }
}
