//! When load pauses placements, and when they go on: a fold over looks at the load.
//!
//! Above a high threshold for some looks in a row: paused, for some time at least. When that is over: on, as soon as a look finds everything
//! below its low threshold. What is not known is neither too high nor low enough, so it changes nothing.

use plimsoll_schemas::pace::Pace;
use plimsoll_schemas::time::NS_PER_S;
use serde::{Deserialize, Serialize};

use crate::clock::floor;
use crate::control::ns;
use crate::paces::load::Load;

/// Whether load pauses placements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pause {
    pub paused: bool,
    /// Looks in a row that found the load too high.
    over: u32,
    /// Live clock at which the load is next looked at, ns: on a whole second, so that many paces share one look. While paused, the earliest
    /// end of the pause.
    pub next_ns: i64,
}

/// What a look has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    Not,
    Paused,
    Resumed,
}

/// What a look at the load says.
enum Verdict {
    /// Something is above its high threshold.
    High,
    /// Everything is known and below its low threshold.
    Low,
    /// Everything is known, nothing too high and not everything low.
    Between,
    /// Something is not known, and what is known is not too high.
    Unknown,
}

fn verdict(pace: &Pace, load: &Load) -> Verdict {
    let high = |value: Option<u32>, limit: u32| value.is_some_and(|value| value > limit);
    if high(load.util_bp, pace.util_high_bp) || high(load.memory_bp, pace.memory_high_bp) {
        return Verdict::High;
    }
    match (load.util_bp, load.memory_bp) {
        (Some(util), Some(memory)) if util < pace.util_low_bp() && memory < pace.memory_low_bp() => Verdict::Low,
        (Some(_), Some(_)) => Verdict::Between,
        (None, _) | (_, None) => Verdict::Unknown,
    }
}

/// The whole second that is `ms` after this one began.
fn after(live_ns: i64, ms: u32) -> i64 {
    floor(live_ns, NS_PER_S).saturating_add(ns(u64::from(ms)))
}

impl Pause {
    /// Not paused.
    pub fn new(pace: &Pace, live_ns: i64) -> Self {
        Self { paused: false, over: 0, next_ns: after(live_ns, pace.check_ms) }
    }

    /// Looks at the load.
    pub fn look(&mut self, pace: &Pace, load: &Load, live_ns: i64) -> Moved {
        self.next_ns = after(live_ns, pace.check_ms);
        match (self.paused, verdict(pace, load)) {
            (true, Verdict::Low) => {
                self.paused = false;
                Moved::Resumed
            }
            (false, Verdict::High) if self.over + 1 >= pace.checks => {
                *self = Self { paused: true, over: 0, next_ns: after(live_ns, pace.pause_ms) };
                Moved::Paused
            }
            (false, Verdict::High) => {
                self.over += 1;
                Moved::Not
            }
            (false, Verdict::Low | Verdict::Between) => {
                self.over = 0;
                Moved::Not
            }
            (true, Verdict::High | Verdict::Between | Verdict::Unknown) | (false, Verdict::Unknown) => Moved::Not,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::pace::Preset;

    /// `h` too high, `l` low, `b` between, `?` not known, each a look when it is due; what follows is `P`, `R` or nothing.
    fn check(looks: &str, expected: &str) {
        let pace = Pace { checks: 2, ..Preset::Default.pace() };
        let mut pause = Pause::new(&pace, 0);
        let moves: String = looks
            .chars()
            .map(|look| {
                let (util_bp, memory_bp) = match look {
                    'h' => (Some(8_001), None),
                    'l' => (Some(6_999), Some(7_999)),
                    'b' => (Some(8_000), Some(7_999)),
                    _ => (Some(0), None),
                };
                match pause.look(&pace, &Load { util_bp, memory_bp, gpus: 1 }, pause.next_ns) {
                    Moved::Not => '.',
                    Moved::Paused => 'P',
                    Moved::Resumed => 'R',
                }
            })
            .collect();
        assert_eq!(moves, expected, "{looks}");
    }

    #[test]
    fn high_for_some_looks_in_a_row_pauses_and_only_what_is_known_to_be_low_resumes() {
        check("hh", ".P");
        check("hbhlh", ".....");
        check("h?h", "..P");
        check("hhhb?l", ".P...R");
        check("hhlhh", ".PR.P");
        check("????", "....");
    }

    #[test]
    fn a_pause_lasts_its_time_and_is_then_looked_at_as_often_as_before() {
        let (pace, second) = (Preset::Default.pace(), NS_PER_S);
        let load = Load { util_bp: Some(9_000), memory_bp: Some(0), gpus: 1 };
        let mut pause = Pause::new(&pace, second / 2);
        let mut looks = vec![pause.next_ns / second];
        for _ in 0..5 {
            pause.look(&pace, &load, pause.next_ns + second / 3);
            looks.push(pause.next_ns / second);
        }
        assert_eq!((pause.paused, looks), (true, vec![5, 10, 15, 45, 50, 55]));
    }
}
