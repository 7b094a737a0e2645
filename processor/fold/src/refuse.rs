//! Refusals: every one is counted; rows and outputs about them are bounded, and what is not shown is shown as a number.

use std::collections::BTreeMap;

use plimsoll_schemas::frame::{RAW_BYTES_MAX, cut};
use plimsoll_schemas::id::{DeviceKey, HostId};
use plimsoll_schemas::out::{Payload, RejectedOut};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::row::{RejectedRow, Row};
use plimsoll_schemas::sample::Field;
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{EventTime, LogTime};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::clock::floor;
use crate::control::ns;
use crate::emit::Emit;
use crate::window::PANE_NS;

/// Most (source, reason) pairs remembered; beyond it the one said longest ago is forgotten.
const PAIRS_MAX: usize = 4_096;

/// Bounds the rows of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Limiter {
    /// Start of the 10 s of log time counted, ns.
    window_ns: i64,
    rows: u32,
    more: u64,
    /// Why the last one beyond the limit was refused.
    last: Option<Reason>,
}

/// One refusal of a sample or frame.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub at: Option<EventTime>,
    pub device: Option<DeviceKey>,
    pub field: Option<Field>,
    pub reason: Reason,
    pub raw: String,
    pub by_agent: bool,
    pub epoch: Option<u64>,
    pub sequence: Option<u64>,
}

impl Refusal {
    /// A refusal by the processor that says only why.
    pub fn new(reason: Reason, raw: impl Into<String>) -> Self {
        Self { at: None, device: None, field: None, reason, raw: raw.into(), by_agent: false, epoch: None, sequence: None }
    }

    /// As a row.
    pub fn row(self, host: Option<HostId>, logged_at: LogTime) -> Row {
        Row::Rejected(Box::new(RejectedRow {
            rejected_at: self.at.unwrap_or(EventTime(logged_at.0)),
            logged_at,
            host,
            device_key: self.device,
            field: self.field,
            reason: self.reason,
            raw_value: self.raw,
            source: if self.by_agent { "agent" } else { "processor" }.to_owned(),
            epoch: self.epoch,
            seq: self.sequence,
        }))
    }
}

impl Limiter {
    /// Counts refusals that get no row of their own.
    pub fn hide(&mut self, reason: Reason, count: u64) {
        if count > 0 {
            self.more = self.more.saturating_add(count);
            self.last = Some(reason);
        }
    }

    /// Begins a new 10 s if log time has come to one; returns what the old one did not show: the last reason and the count.
    fn roll(&mut self, logged_at: LogTime) -> Option<(Reason, u64)> {
        let window_ns = floor(logged_at.0, PANE_NS);
        if window_ns == self.window_ns {
            return None;
        }
        let hidden = self.last.map(|reason| (reason, self.more));
        *self = Self { window_ns, ..Self::default() };
        hidden
    }

    /// Whether something waits to be shown.
    pub fn is_waiting(&self) -> bool {
        self.last.is_some()
    }

    /// Emits what the last 10 s did not show.
    pub fn flush(&mut self, host: Option<&HostId>, emit: &mut Emit<'_>) {
        if let Some((reason, more)) = self.roll(emit.logged_at()) {
            emit.row(Refusal::new(reason, format!("+{more} more")).row(host.cloned(), emit.logged_at()));
        }
    }

    /// Emits the row of a refusal, or counts it where ten seconds of log time have had `rows_max`.
    pub fn refuse(&mut self, refusal: Refusal, host: Option<&HostId>, rows_max: u32, emit: &mut Emit<'_>) {
        self.flush(host, emit);
        if self.rows < rows_max {
            self.rows += 1;
            emit.row(refusal.row(host.cloned(), emit.logged_at()));
        } else {
            self.hide(refusal.reason, 1);
        }
    }
}

/// What was last said about a (source, reason).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    at_ns: i64,
    unsaid: u64,
}

/// How often outputs may be made about the same.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spacing {
    /// The live clock, ns.
    pub live_ns: i64,
    /// They are at least this far apart, ns.
    pub every_ns: i64,
}

/// Bounds the outputs about refusals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Announcer {
    said: BTreeMap<String, BTreeMap<Reason, Said>>,
    pairs: usize,
}

impl Announcer {
    /// Says that `count` things of `source` were refused, unless the same was said too short ago: then they are counted.
    pub fn refused(&mut self, source: &str, reason: Reason, count: u64, raw: &str, spacing: Spacing, emit: &mut Emit<'_>) {
        if count == 0 {
            return;
        }
        let unsaid = match self.said.get_mut(source).and_then(|reasons| reasons.get_mut(&reason)) {
            Some(said) if spacing.live_ns - said.at_ns < spacing.every_ns => {
                said.unsaid = said.unsaid.saturating_add(count);
                return;
            }
            Some(said) => {
                said.at_ns = spacing.live_ns;
                std::mem::take(&mut said.unsaid)
            }
            None => {
                self.remember(source, reason, spacing.live_ns);
                0
            }
        };
        emit.out(
            &OutSubject::Rejected,
            Payload::Rejected(RejectedOut {
                source: cut(source, 192).to_owned(),
                reason,
                count: unsaid.saturating_add(count),
                raw: cut(raw, 4 * RAW_BYTES_MAX).to_owned(),
            }),
        );
    }

    fn remember(&mut self, source: &str, reason: Reason, live_ns: i64) {
        if self.pairs >= PAIRS_MAX {
            // Forgetting half at once keeps this rare; what they had not said is lost to OUT but counted in the state's numbers.
            let mut ages: Vec<i64> = self.said.values().flat_map(|reasons| reasons.values().map(|said| said.at_ns)).collect();
            ages.sort_unstable();
            let limit = ages[ages.len() / 2];
            for reasons in self.said.values_mut() {
                reasons.retain(|_, said| said.at_ns > limit);
            }
            self.said.retain(|_, reasons| !reasons.is_empty());
            self.pairs = self.said.values().map(BTreeMap::len).sum();
        }
        self.said.entry(cut(source, 192).to_owned()).or_default().insert(reason, Said { at_ns: live_ns, unsaid: 0 });
        self.pairs += 1;
    }
}

impl State {
    /// How often outputs about refusals may be made, as of now.
    pub(crate) fn spacing(&self) -> Spacing {
        Spacing { live_ns: self.clock.live_ns, every_ns: ns(self.meta.settings.rejected_out_every_ms) }
    }

    /// A row (bounded per host; what has no host shares one bound) and an output (bounded per source and reason) about one refusal.
    pub(crate) fn refuse(&mut self, number: Option<u32>, host: Option<&HostId>, source: &str, refusal: Refusal, emit: &mut Emit<'_>) {
        let (reason, raw, rows_max) = (refusal.reason, refusal.raw.clone(), self.meta.settings.rejected_rows_max);
        let limiter = match number {
            Some(number) => &mut self.registry.host_mut(number).limiter,
            None => &mut self.meta.limiter,
        };
        limiter.refuse(refusal, host, rows_max, emit);
        self.announcer.refused(source, reason, 1, &raw, self.spacing(), emit);
    }
}
