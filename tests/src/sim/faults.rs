//! Everything that can go wrong in a run, and how often it did.

use std::collections::BTreeMap;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message of a host or client never reached the broker.
    SendLost,
    /// The broker stored a message and its acknowledgement was lost, so it is sent again.
    AckLost,
    /// A message arrived long after those sent behind it.
    SendDelayed,
    /// An agent died with what it had in memory.
    HostRestarted,
    /// A host's clock stepped.
    HostClockStepped,
    /// A host was silent for minutes.
    HostSilent,
    /// A processor died without warning.
    ProcessorKilled,
    /// A commit failed before anything of it was written.
    CommitFailedBefore,
    /// A commit was written and the processor died before it knew.
    CommitFailedAfter,
    /// A processor lost its disk.
    DiskLost,
    /// A processor was frozen for a while.
    Paused,
    /// A consumer skipped messages.
    ConsumerSkipped,
    /// A consumer delivered messages twice.
    ConsumerRepeated,
    /// A consumer was dropped by the broker.
    ConsumerDropped,
    /// A publish to OUT, or a question about it, never arrived.
    OutLost,
    /// A publish to OUT was done and the answer lost.
    OutAnswerLost,
    /// OUT lost acknowledged messages.
    OutWentBack,
    /// LOG lost acknowledged messages, read or not, and gave their sequences to others.
    LogWentBack,
    /// LOG was deleted and made anew.
    LogRecreated,
    /// The broker's clock jumped forward.
    BrokerClockForward,
    /// The broker's clock jumped back.
    BrokerClockBack,
    /// Both processors believed to be active at once.
    TwoActive,
    /// A strange message stood in OUT.
    OutForeign,
    /// OUT told of records that the log had lost and nobody had committed: it showed something else than the log made.
    OutDiffered,
    /// The same, and OUT showed more than the log made while nothing else was to be published.
    OutSurplus,
}

impl Fault {
    /// Every kind.
    pub const ALL: &[Fault] = &[
        Self::SendLost,
        Self::AckLost,
        Self::SendDelayed,
        Self::HostRestarted,
        Self::HostClockStepped,
        Self::HostSilent,
        Self::ProcessorKilled,
        Self::CommitFailedBefore,
        Self::CommitFailedAfter,
        Self::DiskLost,
        Self::Paused,
        Self::ConsumerSkipped,
        Self::ConsumerRepeated,
        Self::ConsumerDropped,
        Self::OutLost,
        Self::OutAnswerLost,
        Self::OutWentBack,
        Self::LogWentBack,
        Self::LogRecreated,
        Self::BrokerClockForward,
        Self::BrokerClockBack,
        Self::TwoActive,
        Self::OutForeign,
        Self::OutDiffered,
        Self::OutSurplus,
    ];
}

/// How often each fault happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fired(pub BTreeMap<Fault, u64>);

impl Fired {
    /// Counts one.
    pub fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Fired) {
        for (&fault, count) in &other.0 {
            *self.0.entry(fault).or_default() += count;
        }
    }
}
