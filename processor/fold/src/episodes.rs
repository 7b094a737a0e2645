//! Episodes: how long a GPU was busy, idle, leased and idle, throttled or unwell, as one row from start to end.
//!
//! The first four are session windows over samples, in event time and in the order of instants: a sample that is older than the newest one
//! changes its window, but no episode. A session is a run of samples for which the condition holds, with no hole longer than a pause; a
//! sample that does not fit ends some kinds at once and others only when it lasts. It becomes an episode when it has lasted as
//! long as a pause, so dips and peaks shorter than that make no rows, and busy and idle never overlap. How long a pause is, and what
//! is busy and idle, are settings; a change of them holds from the next sample on. The rows are versions: one when it becomes an episode, one when
//! it has ended, and one more if a host that was lost goes on with it.
//!
//! The fifth follows the state of the GPU, in log time.

use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::row::{DeviceEventRow, EpisodeKind, EpisodeRow, Row};
use plimsoll_schemas::sample::Sample;
use plimsoll_schemas::settings::Thresholds;
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_MS};
use serde::{Deserialize, Serialize};

use crate::State;
use crate::control::ns;
use crate::emit::Emit;
use crate::state_time::Cause;

/// Longest evidence, bytes.
const EVIDENCE_BYTES_MAX: usize = 256;
/// NVML's clocks-event reasons that take speed away, by bit. Idle, application clocks, sync boost and display clocks do not.
const REASONS: [(u64, &str); 5] =
    [(0x4, "sw_power_cap"), (0x8, "hw_slowdown"), (0x20, "sw_thermal_slowdown"), (0x40, "hw_thermal_slowdown"), (0x80, "hw_power_brake")];

/// What `episodes` says about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Said {
    /// Nothing: it is too short yet.
    Nothing,
    /// That it goes on.
    Open,
    /// That it has ended, since the GPU was lost.
    Ended,
    /// Less than there is: it went on, from a backlog, while the GPU was lost.
    Behind,
}

/// A run of samples for which a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    start_ns: i64,
    last_ns: i64,
    said: Said,
    /// Percent x held_ms of its samples; for throttling their reason bits together.
    evidence: u64,
    held_ms: u64,
}

/// How busy a GPU is, with hysteresis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Load {
    #[default]
    Unknown,
    Idle,
    Busy,
}

/// The sessions of one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Sessions {
    load: Load,
    /// When the newest sample was taken, ns.
    newest_ns: i64,
    busy: Option<Session>,
    idle: Option<Session>,
    allocated_idle: Option<Session>,
    throttled: Option<Session>,
}

/// Since when a GPU is unwell, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unwell {
    from: LogTime,
    evidence: String,
}

/// Longest holes in sessions, and least lengths of episodes, ns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pauses {
    load_ns: i64,
    throttle_ns: i64,
}

impl Pauses {
    /// As they are set, and three intervals at the least.
    pub fn of(settings: &Thresholds, interval_ms: u32) -> Self {
        let intervals_ns = i64::from(interval_ms) * 3 * NS_PER_MS;
        Self { load_ns: ns(settings.load_episode_ms).max(intervals_ns), throttle_ns: ns(settings.throttle_episode_ms).max(intervals_ns) }
    }
}

/// A sample as sessions see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observed<'a> {
    /// Whether the GPU is lost, so that only a backlog speaks for it: what happened is told when it has ended or the GPU is back.
    pub lost: bool,
    pub at: EventTime,
    pub held_ms: i64,
    pub pauses: Pauses,
    pub leased: bool,
    pub sample: &'a Sample,
}

/// What a sample says about one kind.
#[derive(Debug, Clone, Copy)]
struct Says {
    kind: EpisodeKind,
    /// Whether its condition holds; absent = nobody knows.
    holds: Option<bool>,
    /// Whether a session ends with it and not only with a hole: work has pauses, and throttling comes in bursts.
    ends: bool,
    evidence: u64,
    /// Longest hole, and least length of an episode.
    pause_ns: i64,
}

/// A version of an episode.
#[derive(Debug, Clone, Copy)]
struct Version {
    kind: EpisodeKind,
    session: Session,
    ended: bool,
}

/// The reasons in NVML's bits that take speed away.
const THROTTLING: u64 = {
    let (mut all, mut at) = (0, 0);
    while at < REASONS.len() {
        all |= REASONS[at].0;
        at += 1;
    }
    all
};

impl Sessions {
    /// Takes the next sample, which is newer than all before. A kind that changes leaves its versions, at most two.
    fn take(&mut self, seen: &Observed<'_>, settings: &Thresholds, versions: &mut Vec<Version>) {
        let util = seen.sample.util_percent();
        self.load = match util {
            Some(util) if util < u64::from(settings.idle_below_percent) => Load::Idle,
            Some(util) if util >= u64::from(settings.busy_from_percent) => Load::Busy,
            Some(_) | None => self.load,
        };
        let (load, percent) = (self.load, util.unwrap_or(0).saturating_mul(seen.held_ms.max(0) as u64));
        let bits = seen.sample.throttle_bits().map(|bits| bits & THROTTLING);
        let Pauses { load_ns, throttle_ns } = seen.pauses;
        let (busy, idle, idle_leased) =
            (util.map(|_| load == Load::Busy), util.map(|_| load == Load::Idle), util.map(|_| load == Load::Idle && seen.leased));
        // However long a pause may be by now, work does not go on across an episode of idling.
        let paused = self.idle.is_some_and(|session| session.said != Said::Nothing);
        let from_ns = self.newest_ns.max(seen.at.0.saturating_sub(seen.held_ms.saturating_mul(NS_PER_MS)));
        let mut advance = |session: &mut Option<Session>, says: Says| advance(session, says, seen, from_ns, versions);
        let of_load = |kind: EpisodeKind, holds: Option<bool>, ends: bool| Says { kind, holds, ends, evidence: percent, pause_ns: load_ns };
        advance(&mut self.busy, of_load(EpisodeKind::Busy, busy, paused));
        advance(&mut self.idle, of_load(EpisodeKind::Idle, idle, idle == Some(false)));
        advance(&mut self.allocated_idle, of_load(EpisodeKind::AllocatedIdle, idle_leased, idle_leased == Some(false)));
        let (kind, holds, evidence) = (EpisodeKind::Throttled, bits.map(|bits| bits != 0), bits.unwrap_or(0));
        advance(&mut self.throttled, Says { kind, holds, ends: false, evidence, pause_ns: throttle_ns });
        self.newest_ns = seen.at.0;
    }

    /// A little of everything that the next sample may change.
    pub fn spread(&self) -> impl Sized {
        let last = |session: &Option<Session>| session.map(|session| session.last_ns);
        (self.newest_ns, last(&self.idle), last(&self.throttled))
    }

    /// Ends what is open for now; a sample that comes soon after the last one in its time goes on with it.
    fn suspend(&mut self, versions: &mut Vec<Version>) {
        let kinds = [
            (&mut self.busy, EpisodeKind::Busy),
            (&mut self.idle, EpisodeKind::Idle),
            (&mut self.allocated_idle, EpisodeKind::AllocatedIdle),
            (&mut self.throttled, EpisodeKind::Throttled),
        ];
        for (session, kind) in kinds {
            if let Some(session) = session.as_mut().filter(|session| matches!(session.said, Said::Open | Said::Behind)) {
                session.said = Said::Ended;
                versions.push(Version { kind, session: *session, ended: true });
            }
        }
    }

    /// Nothing open, and still nothing to be said about what is older than the newest sample.
    fn over(&self) -> Self {
        Self { newest_ns: self.newest_ns, ..Self::default() }
    }
}

/// What one sample does to one session. `from_ns` is where the sample's time begins.
#[inline(always)]
fn advance(open: &mut Option<Session>, says: Says, seen: &Observed<'_>, from_ns: i64, versions: &mut Vec<Version>) {
    if open.is_none() && says.holds != Some(true) {
        return;
    }
    let (kind, at_ns) = (says.kind, seen.at.0);
    if let Some(session) = open
        && (says.ends || at_ns - session.last_ns > says.pause_ns)
    {
        if matches!(session.said, Said::Open | Said::Behind) {
            versions.push(Version { kind, session: *session, ended: true });
        }
        *open = None;
    }
    if says.holds != Some(true) {
        return;
    }
    let session = open.get_or_insert(Session { start_ns: from_ns, last_ns: at_ns, said: Said::Nothing, evidence: 0, held_ms: 0 });
    session.last_ns = at_ns;
    session.held_ms = session.held_ms.saturating_add(seen.held_ms.max(0) as u64);
    session.evidence = if kind == EpisodeKind::Throttled { session.evidence | says.evidence } else { session.evidence.saturating_add(says.evidence) };
    let lasts = at_ns - session.start_ns >= says.pause_ns;
    if session.said != Said::Open && (session.said != Said::Nothing || lasts) {
        session.said = if seen.lost { Said::Behind } else { Said::Open };
        if !seen.lost {
            versions.push(Version { kind, session: *session, ended: false });
        }
    }
}

impl Version {
    /// Why it is one, for people.
    fn evidence(&self) -> String {
        let Session { evidence, held_ms, .. } = self.session;
        match self.kind {
            EpisodeKind::Busy | EpisodeKind::Idle | EpisodeKind::AllocatedIdle => {
                evidence.checked_div(held_ms).map_or(String::new(), |mean| format!("mean {mean} %"))
            }
            EpisodeKind::Throttled => REASONS.iter().filter(|(bit, _)| evidence & bit != 0).map(|&(_, name)| name).collect::<Vec<_>>().join(","),
            EpisodeKind::Unhealthy => String::new(),
        }
    }
}

/// Whether a GPU in this state is unwell.
const fn is_unwell(state: DeviceState) -> bool {
    match state {
        DeviceState::Degraded | DeviceState::Failed | DeviceState::Stale | DeviceState::Lost => true,
        DeviceState::Ok | DeviceState::Cordoned | DeviceState::Draining | DeviceState::Drained => false,
    }
}

impl State {
    /// Takes a sample into the sessions of its GPU, which is in use, if it is newer than all before.
    pub(crate) fn follow(&mut self, number: u32, seen: &Observed<'_>, emit: &mut Emit<'_>) {
        let device = &mut self.registry.devices[number as usize];
        if seen.at.0 <= device.pulse.sessions.newest_ns {
            return;
        }
        let mut versions = Vec::new();
        device.pulse.sessions.take(seen, &self.meta.settings, &mut versions);
        device.pulse_dirty = true;
        versions.into_iter().for_each(|version| self.say_session(number, version, emit));
    }

    /// A GPU is lost: what went on is said to have ended with its last sample.
    pub(crate) fn suspend_sessions(&mut self, number: u32, emit: &mut Emit<'_>) {
        let device = self.registry.device_mut(number);
        let mut versions = Vec::new();
        device.pulse.sessions.suspend(&mut versions);
        device.pulse_dirty = true;
        versions.into_iter().for_each(|version| self.say_session(number, version, emit));
    }

    /// A GPU leaves its host: everything ends.
    pub(crate) fn end_episodes(&mut self, number: u32, emit: &mut Emit<'_>) {
        self.suspend_sessions(number, emit);
        let device = self.registry.device_mut(number);
        device.pulse.sessions = device.pulse.sessions.over();
        self.end_unwell(number, emit);
    }

    /// A GPU has moved to a state: being unwell begins, goes on or ends.
    pub(crate) fn note_unwell(&mut self, number: u32, state: DeviceState, cause: Cause<'_>, emit: &mut Emit<'_>) {
        if !is_unwell(state) {
            return self.end_unwell(number, emit);
        }
        let device = self.registry.device_mut(number);
        if device.facts.unwell.is_none() {
            let mut evidence = cause.detail.map_or_else(|| cause.kind.to_owned(), |detail| format!("{} {detail}", cause.kind));
            evidence.truncate(evidence.floor_char_boundary(EVIDENCE_BYTES_MAX));
            let unwell = Unwell { from: emit.logged_at(), evidence };
            device.facts.unwell = Some(unwell.clone());
            device.facts_dirty = true;
            self.say_unwell(number, unwell, None, emit);
        }
    }

    fn end_unwell(&mut self, number: u32, emit: &mut Emit<'_>) {
        let device = self.registry.device_mut(number);
        if let Some(unwell) = device.facts.unwell.take() {
            device.facts_dirty = true;
            self.say_unwell(number, unwell, Some(EventTime(emit.logged_at().0)), emit);
        }
    }

    fn say_unwell(&self, number: u32, unwell: Unwell, ended_at: Option<EventTime>, emit: &mut Emit<'_>) {
        self.episode_row(number, EpisodeKind::Unhealthy, EventTime(unwell.from.0), ended_at, unwell.evidence, emit);
    }

    fn say_session(&self, number: u32, version: Version, emit: &mut Emit<'_>) {
        let Session { start_ns, last_ns, .. } = version.session;
        let (evidence, ended_at) = (version.evidence(), version.ended.then_some(EventTime(last_ns)));
        if version.kind == EpisodeKind::Throttled {
            let facts = &self.registry.devices[number as usize].facts;
            emit.row(Row::DeviceEvent(Box::new(DeviceEventRow {
                happened_at: ended_at.unwrap_or(EventTime(start_ns)),
                device_key: Some(facts.key),
                host: self.registry.hosts[facts.host as usize].id.clone(),
                kind: if version.ended { "throttle_leave" } else { "throttle_enter" }.to_owned(),
                code: None,
                severity: if version.ended { "info" } else { "warn" }.to_owned(),
                detail: Some(evidence.clone()),
            })));
        }
        self.episode_row(number, version.kind, EventTime(start_ns), ended_at, evidence, emit);
    }

    fn episode_row(&self, number: u32, kind: EpisodeKind, started_at: EventTime, ended_at: Option<EventTime>, evidence: String, emit: &mut Emit<'_>) {
        let facts = &self.registry.devices[number as usize].facts;
        emit.row(Row::Episode(Box::new(EpisodeRow {
            device_key: facts.key,
            host: self.registry.hosts[facts.host as usize].id.clone(),
            kind,
            started_at,
            ended_at,
            evidence: Some(evidence).filter(|evidence| !evidence.is_empty()),
        })));
    }
}
