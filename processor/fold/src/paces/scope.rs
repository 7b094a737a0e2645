//! A pace in force, of the cell or of a tenant, and where it stands: its slots, its pause, what became of the requests.

use plimsoll_schemas::out::PaceCounts;
use plimsoll_schemas::pace::{Mode, Pace};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::time::NS_PER_MS;
use serde::{Deserialize, Serialize};

use crate::pace::Slots;
use crate::paces::pause::Pause;

/// A pace in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    pub pace: Pace,
    /// On the live clock, ns.
    pub slots: Slots,
    pub pause: Pause,
    pub counts: PaceCounts,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Slot {
    /// It may go now.
    Now,
    /// It waits until then.
    At {
        /// Live clock, ns.
        live_ns: i64,
    },
    /// It is refused; nobody's clock has moved.
    Refused {
        /// Why.
        why: Why,
        /// Whose pace refuses it: `cell` or `tenant/<id>`.
        scope: String,
        /// After how long it may come again, ms of live clock, if nobody comes before it and the pause ends as early as it can.
        retry_after_ms: u64,
    },
}

/// Why a pace refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// Its slot is not free yet.
    Paced,
    /// Load has paused placements.
    Paused,
}

impl Why {
    pub const fn reason(self) -> Reason {
        match self {
            Self::Paced => Reason::Paced,
            Self::Paused => Reason::Paused,
        }
    }

    /// For people.
    pub fn sentence(self, scope: &str, retry_after_ms: u64) -> String {
        match self {
            Self::Paced => format!("the pace of {scope} has its next slot in {retry_after_ms} ms"),
            Self::Paused => format!("load has paused the placements of {scope}, for {retry_after_ms} ms at least"),
        }
    }
}

/// How a request that waited for its slot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Admitted,
    Cancelled,
}

fn interval_ns(pace: &Pace) -> u64 {
    u64::from(pace.min_request_interval_ms) * NS_PER_MS.unsigned_abs()
}

impl Scope {
    /// Nothing has come yet.
    pub fn new(pace: Pace, live_ns: i64) -> Self {
        Self { pace, slots: Slots::new(interval_ns(&pace), None), pause: Pause::new(&pace, live_ns), counts: PaceCounts::default() }
    }

    /// Another pace from here on; the slots taken under the old one stay taken.
    pub fn change(&mut self, pace: Pace, live_ns: i64) {
        self.pace = pace;
        self.slots.set_interval(interval_ns(&pace));
        self.pause = Pause::new(&pace, live_ns);
    }

    /// When the load is next looked at, live clock in ns; absent if it does not matter.
    pub fn deadline(&self) -> Option<i64> {
        self.pace.adaptive.then_some(self.pause.next_ns)
    }

    /// The earliest end of the pause, live clock in ns; absent if there is none.
    pub fn paused_until(&self) -> Option<i64> {
        self.pause.paused.then_some(self.pause.next_ns)
    }

    /// Why a request is refused now, if it is.
    pub fn refuses(&self, now: u64) -> Option<Why> {
        match self.pace.mode {
            Mode::Queue => None,
            Mode::Refuse if self.pause.paused => Some(Why::Paused),
            Mode::Refuse => (self.slots.next(now) > now).then_some(Why::Paced),
        }
    }
}
