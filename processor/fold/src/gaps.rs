//! Holes in a host's numberings: noticed when a later sequence comes, opened as a gap after a grace, asked for, and closed: repaired or lost.
//!
//! Of every (host, epoch, class): what was received, what was lost and what the gaps still miss are disjoint, and together 1..=the last one.
//! A sequence is never opened twice and never closed twice. What came before the first sequence of an epoch that was ever seen is missing
//! like anything else: the agent alone knows whether it has it.

use plimsoll_schemas::ctl::{Class, Repair};
use plimsoll_schemas::id::HostId;
use plimsoll_schemas::out::{Gap as GapOut, GapState, Payload};
use plimsoll_schemas::row::{GapRow, Row};
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::subject::OutSubject;
use plimsoll_schemas::time::{LogTime, NS_PER_S};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::ranges::{RANGES_MAX, Ranges, Seen};
use crate::timers::Timer;

/// The pause between two requests for a gap grows this often at most: then it is as long as it can be set, however short it began.
const DOUBLED_MAX: u32 = 12;
/// What cannot be asked for now, because too much is, waits this long, live clock.
const POSTPONE_NS: i64 = NS_PER_S;
/// Widest gap; of a wider hole only the newest part is asked for: what is older would come too late for any window.
const WIDTH_MAX: u64 = 16_384;
/// Most ranges asked of one host at once.
const ASKS_PER_HOST: usize = 8;
/// Most ranges asked for per record.
pub(crate) const ASKS_PER_RECORD: usize = 64;

/// Cause of a gap that is open or was repaired.
const MISSING: &str = "missing";
const TIMED_OUT: &str = "not repaired in time";
const TOO_WIDE: &str = "too many sequences missing at once";
const TOO_MANY: &str = "too many separate holes";
const FORGOTTEN: &str = "too many epochs";

/// A range in which some sequence is missing. The gaps of one numbering are sorted and disjoint, and hold every sequence that is missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gap {
    from: u64,
    to: u64,
    stage: Stage,
}

/// How far a gap has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Stage {
    /// A later sequence came at this live clock, ns.
    Noticed { since_ns: i64 },
    /// It was announced and asked for: how often, when last, and whether that was put off.
    Open { opened_at: LogTime, opened_ns: i64, asked: u32, tried_ns: i64, put_off: bool },
}

impl Gap {
    /// Live clock at which something is to be done about it, ns.
    fn due_ns(&self, settings: &Thresholds) -> i64 {
        match self.stage {
            Stage::Noticed { since_ns } => since_ns.saturating_add(ns(settings.gap_grace_ms)),
            Stage::Open { opened_ns, asked, tried_ns, put_off, .. } => {
                let pause_ns = if put_off { POSTPONE_NS } else { pause_ns(asked, settings) };
                tried_ns.saturating_add(pause_ns).min(opened_ns.saturating_add(ns(settings.gap_open_ms_max)))
            }
        }
    }

    fn opened_at(&self) -> Option<LogTime> {
        match self.stage {
            Stage::Noticed { .. } => None,
            Stage::Open { opened_at, .. } => Some(opened_at),
        }
    }
}

/// How long after it was asked for, for the `asked`th time, a gap is asked for again, ns.
fn pause_ns(asked: u32, settings: &Thresholds) -> i64 {
    (ns(settings.gap_ask_ms) << asked.saturating_sub(1).min(DOUBLED_MAX)).min(ns(settings.gap_ask_ms_max))
}

/// What happened to the sequences `from..=to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Turn {
    pub from: u64,
    pub to: u64,
    pub what: What,
}

/// What can happen to a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// A later sequence came first.
    Noticed,
    /// It is a gap now.
    Opened { at: LogTime },
    /// It is what is left of a wider gap.
    Remains { opened_at: LogTime },
    /// All of it came.
    Repaired { opened_at: LogTime },
    /// None of it will be folded any more.
    Lost { opened_at: Option<LogTime>, cause: String },
    /// It is to be asked for.
    Asked,
}

/// The instant at which gaps are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now<'a> {
    pub live_ns: i64,
    pub logged_at: LogTime,
    pub settings: &'a Thresholds,
}

impl Ranges {
    /// Marks one sequence as received; `true` if it is new. The usual case, the next one with nothing missing, says nothing.
    pub fn receive(&mut self, sequence: u64, live_ns: i64, turns: &mut Vec<Turn>) -> bool {
        self.next(sequence) || self.receive_apart(sequence, live_ns, turns)
    }

    fn receive_apart(&mut self, sequence: u64, live_ns: i64, turns: &mut Vec<Turn>) -> bool {
        if self.has(sequence) {
            return false;
        }
        self.notice_before(sequence, live_ns, turns);
        self.add(sequence, sequence);
        self.close_filled(sequence, turns);
        if self.beyond.len() > RANGES_MAX {
            self.lose(self.through + 1, self.beyond[0].0 - 1, live_ns, TOO_MANY, turns);
        }
        true
    }

    /// Gives up what is missing of `from..=to`; returns how many sequences that is. They count as dealt with from now on.
    pub fn lose(&mut self, from: u64, to: u64, live_ns: i64, cause: &str, turns: &mut Vec<Turn>) -> u64 {
        let lost = self.missing(from, to);
        let Some(&(first, _)) = lost.first() else { return 0 };
        self.notice_before(first, live_ns, turns);
        let count = self.add(from, to);
        let touched = self.gaps.partition_point(|gap| gap.to < from)..self.gaps.partition_point(|gap| gap.from <= to);
        let mut rest = lost.as_slice();
        let mut left = Vec::new();
        for gap in self.gaps.splice(touched.clone(), []).collect::<Vec<_>>() {
            let inside;
            (inside, rest) = rest.split_at(rest.partition_point(|&(_, end)| end <= gap.to));
            self.cut(&gap, inside, cause, &mut left, turns);
        }
        self.gaps.splice(touched.start..touched.start, left);
        // What nobody had noticed yet.
        turns.extend(rest.iter().map(|&(from, to)| Turn { from, to, what: What::Lost { opened_at: None, cause: cause.to_owned() } }));
        while self.beyond.len() > RANGES_MAX {
            self.lose(self.through + 1, self.beyond[0].0 - 1, live_ns, TOO_MANY, turns);
        }
        count
    }

    /// Cuts what was lost out of a gap. Of the ranges between, those that came are repaired, the others go on.
    fn cut(&self, gap: &Gap, lost: &[(u64, u64)], cause: &str, left: &mut Vec<Gap>, turns: &mut Vec<Turn>) {
        let mut at = gap.from;
        for &(from, to) in lost {
            self.settle(gap, at, from - 1, left, turns);
            turns.push(Turn { from, to, what: What::Lost { opened_at: gap.opened_at(), cause: cause.to_owned() } });
            at = to + 1;
        }
        self.settle(gap, at, gap.to, left, turns);
    }

    fn settle(&self, gap: &Gap, from: u64, to: u64, left: &mut Vec<Gap>, turns: &mut Vec<Turn>) {
        if from > to {
            return;
        }
        let whole = self.is_whole(from, to);
        let unchanged = (from, to) == (gap.from, gap.to);
        match gap.opened_at() {
            Some(opened_at) if whole => turns.push(Turn { from, to, what: What::Repaired { opened_at } }),
            Some(opened_at) if !unchanged => turns.push(Turn { from, to, what: What::Remains { opened_at } }),
            Some(_) | None => {}
        }
        if !whole {
            left.push(Gap { from, to, stage: gap.stage.clone() });
        }
    }

    /// Notes the hole that a sequence beyond the end leaves behind.
    fn notice_before(&mut self, sequence: u64, live_ns: i64, turns: &mut Vec<Turn>) {
        let from = self.top().saturating_add(1);
        if sequence > from {
            self.gaps.push(Gap { from, to: sequence - 1, stage: Stage::Noticed { since_ns: live_ns } });
            turns.push(Turn { from, to: sequence - 1, what: What::Noticed });
        }
    }

    /// Closes the gap around a sequence if that was the last one missing.
    fn close_filled(&mut self, sequence: u64, turns: &mut Vec<Turn>) {
        let at = self.gaps.partition_point(|gap| gap.to < sequence);
        let Some(&Gap { from, to, .. }) = self.gaps.get(at).filter(|gap| gap.from <= sequence) else { return };
        if self.is_whole(from, to)
            && let Some(opened_at) = self.gaps.remove(at).opened_at()
        {
            turns.push(Turn { from, to, what: What::Repaired { opened_at } });
        }
    }

    /// Live clock at which something is to be done about a gap, ns; absent without one.
    pub fn due_ns(&self, settings: &Thresholds) -> Option<i64> {
        self.gaps.iter().map(|gap| gap.due_ns(settings)).min()
    }

    /// Opens, asks for and gives up what is due; `asks` is how many ranges may be asked for.
    pub fn tend(&mut self, now: Now<'_>, asks: &mut usize, turns: &mut Vec<Turn>) {
        let due: Vec<Gap> = self.gaps.iter().filter(|gap| gap.due_ns(now.settings) <= now.live_ns).cloned().collect();
        for gap in due {
            match gap.stage {
                Stage::Noticed { .. } => self.open(gap.from, gap.to, now, asks, turns),
                Stage::Open { opened_ns, .. } if now.live_ns - opened_ns >= ns(now.settings.gap_open_ms_max) => {
                    self.lose(gap.from, gap.to, now.live_ns, TIMED_OUT, turns);
                }
                Stage::Open { .. } => self.ask(gap.from, now.live_ns, asks, turns),
            }
        }
    }

    /// Opens every missing range of a hole as a gap of its own, and asks for it.
    fn open(&mut self, from: u64, to: u64, now: Now<'_>, asks: &mut usize, turns: &mut Vec<Turn>) {
        let near = from.max(to.saturating_sub(WIDTH_MAX - 1));
        if near > from {
            self.lose(from, near - 1, now.live_ns, TOO_WIDE, turns);
        }
        let stage = Stage::Open { opened_at: now.logged_at, opened_ns: now.live_ns, asked: 0, tried_ns: now.live_ns, put_off: true };
        let missing = self.missing(near, to);
        let at = self.gaps.partition_point(|gap| gap.to < near);
        let end = self.gaps.partition_point(|gap| gap.from <= to);
        self.gaps.splice(at..end, missing.iter().map(|&(from, to)| Gap { from, to, stage: stage.clone() }));
        turns.extend(missing.iter().map(|&(from, to)| Turn { from, to, what: What::Opened { at: now.logged_at } }));
        for (from, _) in missing {
            self.ask(from, now.live_ns, asks, turns);
        }
    }

    /// Asks for what the gap that begins at `from` still misses, or puts that off.
    fn ask(&mut self, from: u64, live_ns: i64, asks: &mut usize, turns: &mut Vec<Turn>) {
        let Ok(at) = self.gaps.binary_search_by_key(&from, |gap| gap.from) else { return };
        let missing = self.missing(from, self.gaps[at].to);
        let Stage::Open { asked, tried_ns, put_off, .. } = &mut self.gaps[at].stage else { return };
        (*tried_ns, *put_off) = (live_ns, *asks == 0);
        if *put_off {
            return;
        }
        *asks -= 1;
        *asked = asked.saturating_add(1);
        if let (Some(&(from, _)), Some(&(_, to))) = (missing.first(), missing.last()) {
            turns.push(Turn { from, to, what: What::Asked });
        }
    }

    /// Gives up every gap there is.
    fn forget(&mut self, live_ns: i64, turns: &mut Vec<Turn>) {
        self.lose(1, self.top(), live_ns, FORGOTTEN, turns);
    }

    /// How many gaps are open.
    pub fn gaps_open(&self) -> u64 {
        self.gaps.iter().filter(|gap| gap.opened_at().is_some()).count() as u64
    }
}

impl State {
    /// Marks a sequence of a host as received.
    pub(crate) fn mark(&mut self, host: u32, epoch: u64, class: Class, sequence: u64, emit: &mut Emit<'_>) -> Seen {
        let live_ns = self.clock.live_ns;
        let mut turns = std::mem::take(&mut self.turns);
        let state = self.registry.host_mut(host);
        let seen = state.ranges.receive(epoch, class, sequence, live_ns, &mut turns);
        self.say_turns(host, epoch, class, turns, emit);
        self.forget_epochs(host, emit);
        seen
    }

    /// Gives up sequences of a host; returns how many of them were missing.
    pub(crate) fn lose(&mut self, host: u32, epoch: u64, class: Class, range: (u64, u64), cause: &str, emit: &mut Emit<'_>) -> u64 {
        let live_ns = self.clock.live_ns;
        let mut turns = std::mem::take(&mut self.turns);
        let lost = self.registry.host_mut(host).ranges.entry(epoch, class).map_or(0, |entry| {
            entry.dirty = true;
            entry.ranges.lose(range.0, range.1, live_ns, cause, &mut turns)
        });
        self.say_turns(host, epoch, class, turns, emit);
        self.forget_epochs(host, emit);
        lost
    }

    /// Forgets the lowest epochs of a host beyond the bound; what they miss is lost.
    fn forget_epochs(&mut self, host: u32, emit: &mut Emit<'_>) {
        for mut entry in self.registry.host_mut(host).ranges.shrink() {
            let mut turns = Vec::new();
            entry.ranges.forget(self.clock.live_ns, &mut turns);
            self.say_turns(host, entry.epoch, entry.class, turns, emit);
            self.dropped_ranges.push((host, entry.epoch, entry.class));
        }
    }

    /// When something is to be done about a gap of a host, live clock in ns; absent without one.
    pub(crate) fn gap_deadline(&self, host: u32) -> Option<i64> {
        self.registry.hosts[host as usize].ranges.entries.iter().filter_map(|entry| entry.ranges.due_ns(&self.meta.settings)).min()
    }

    /// Sets the timer of a host's gaps.
    pub(crate) fn wait_for_gaps(&mut self, host: u32) {
        if let Some(at_ns) = self.gap_deadline(host) {
            self.timers.set(at_ns, Timer::Gap(host));
        }
    }

    /// Opens, asks for and gives up what is due of a host.
    pub(crate) fn tend_gaps(&mut self, host: u32, emit: &mut Emit<'_>) {
        let settings = self.meta.settings;
        let now = Now { live_ns: self.clock.live_ns, logged_at: emit.logged_at(), settings: &settings };
        let granted = ASKS_PER_HOST.min(self.asks_left);
        let mut asks = granted;
        for at in 0..self.registry.hosts[host as usize].ranges.entries.len() {
            let entry = &mut self.registry.host_mut(host).ranges.entries[at];
            if entry.ranges.due_ns(now.settings).is_none_or(|due_ns| due_ns > now.live_ns) {
                continue;
            }
            let (epoch, class, mut turns) = (entry.epoch, entry.class, Vec::new());
            entry.dirty = true;
            entry.ranges.tend(now, &mut asks, &mut turns);
            self.say_turns(host, epoch, class, turns, emit);
        }
        self.asks_left -= granted - asks;
    }

    /// Rows, outputs, timers and requests about what happened to ranges of a host.
    fn say_turns(&mut self, host: u32, epoch: u64, class: Class, mut turns: Vec<Turn>, emit: &mut Emit<'_>) {
        if !turns.is_empty() {
            let now = emit.logged_at();
            let id = self.registry.hosts[host as usize].id.clone();
            for Turn { from, to, what } in turns.drain(..) {
                let spoken = Spoken { host: &id, epoch, class, from, to };
                match what {
                    What::Noticed => self.timers.set(self.clock.live_ns + ns(self.meta.settings.gap_grace_ms), Timer::Gap(host)),
                    What::Opened { at } => spoken.say(GapState::Opened, at, MISSING, emit),
                    What::Remains { opened_at } => spoken.row(GapState::Opened, opened_at, None, MISSING, emit),
                    What::Repaired { opened_at } => spoken.say(GapState::Repaired, opened_at, MISSING, emit),
                    What::Lost { opened_at, cause } => spoken.say(GapState::Loss, opened_at.unwrap_or(now), &cause, emit),
                    What::Asked => emit.repair(Repair { host: id.clone(), epoch, class, from_sequence: from, to_sequence: to }),
                }
            }
        }
        self.turns = turns;
    }
}

/// A range of a host's sequences that something is said of.
struct Spoken<'a> {
    host: &'a HostId,
    epoch: u64,
    class: Class,
    from: u64,
    to: u64,
}

impl Spoken<'_> {
    /// A row and an output.
    fn say(&self, state: GapState, opened_at: LogTime, cause: &str, emit: &mut Emit<'_>) {
        let closed_at = (state != GapState::Opened).then_some(emit.logged_at());
        self.row(state, opened_at, closed_at, cause, emit);
        let gap = GapOut {
            host: Some(self.host.clone()),
            epoch: Some(self.epoch),
            class: Some(self.class),
            from_sequence: self.from,
            to_sequence: self.to,
            state,
            cause: cause.to_owned(),
        };
        emit.out(&OutSubject::Gap, Payload::Gap(gap));
    }

    fn row(&self, state: GapState, opened_at: LogTime, closed_at: Option<LogTime>, cause: &str, emit: &mut Emit<'_>) {
        emit.row(Row::Gap(Box::new(GapRow {
            opened_at,
            host: Some(self.host.clone()),
            epoch: self.epoch,
            class: Some(self.class),
            from_seq: self.from,
            to_seq: self.to,
            state,
            cause: cause.to_owned(),
            closed_at,
        })));
    }
}
