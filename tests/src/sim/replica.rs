//! One processor: the production fold, store, reader, chain, role and checks, tied together without I/O. Every message to and from the broker
//! is a step of its own, so that the world can lose, repeat or hold it, or end the process in between.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_fold::{Effects, LOGIC, State};
use plimsoll_processor::chain::{Chain, Do, Heard};
use plimsoll_processor::checks::{Checks, written};
use plimsoll_processor::follow::{Admitted, Arrived, Follow, Mark, Shape};
use plimsoll_processor::role::{Claim, Role, Seen};
use plimsoll_schemas::control::{Check, Tick};
use plimsoll_schemas::id::CellId;
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::row::PlacedRow;
use plimsoll_schemas::subject::LogSubject;
use plimsoll_store::{Commit, Store};

use super::stream::{Conditions, Message, Stream};

/// Messages that a consumer delivers at once.
const PULL: usize = 40;

/// What an answer on its way back says, and for which attempt.
type Answer = (u64, Heard);

/// A processor and its disk.
#[derive(Debug)]
pub struct Replica {
    cell: CellId,
    /// Its name.
    pub name: String,
    /// What survives its death.
    pub disk: Store,
    /// What does not.
    pub process: Option<Process>,
    /// Frozen until then: nothing it would do happens.
    pub paused_until: Duration,
}

/// What is in memory.
#[derive(Debug)]
pub struct Process {
    /// The fold.
    pub state: State,
    follow: Follow,
    chain: Chain,
    role: Role,
    checks: Checks,
    /// Next sequence its consumer delivers, and how many it has delivered; absent = none was created.
    consumer: Option<(u64, u64)>,
    /// Messages with their number among the deliveries.
    inbox: VecDeque<(u64, Message)>,
    asked: VecDeque<Do>,
    answers: VecDeque<Answer>,
    said: VecDeque<Check>,
    rows: Vec<PlacedRow>,
    outputs: Vec<Arc<Output>>,
    out_seq: u64,
}

impl Replica {
    /// One that was never started.
    pub fn new(cell: CellId, name: String) -> Self {
        Self { cell, name, disk: Store::in_memory(), process: None, paused_until: Duration::ZERO }
    }

    /// Starts from what stands on its disk.
    pub fn start(&mut self, log: &Stream, out: &Stream, now: Duration) -> Result<()> {
        let (state, mark, out_seq) = match self.disk.load()? {
            None => (State::new(self.cell.clone()), Mark::start(), 0),
            Some((commit, entries)) => {
                let state = State::restore(self.cell.clone(), entries.into_iter())?;
                ensure!(
                    (state.position(), state.hash()) == (commit.position, commit.hash),
                    "{}: restored {} {:016x}, committed {} {:016x}",
                    self.name,
                    state.position(),
                    state.hash(),
                    commit.position,
                    commit.hash
                );
                let Commit { position, log_created_at_ns: created_at_ns, message_hash, logged_at, out_seq, .. } = commit;
                (state, Mark { position, created_at_ns, message_hash, logged_at }, out_seq)
            }
        };
        let from = out.last().min(out_seq).max(1);
        let kept: Vec<_> = self.disk.outputs_from(from).collect::<Result<_, _>>()?;
        let first = kept.first().map_or(out_seq + 1, |output| output.out_seq);
        ensure!(out.last() >= out_seq || first <= out.last() + 1, "{}: OUT ends at {}, kept from {first}", self.name, out.last());
        let mut chain = Chain::new(first - 1);
        kept.into_iter().for_each(|output| chain.push(Arc::new(output)));
        let tick = log.last_on(&LogSubject::Tick.to_subject(&self.cell));
        let newest = tick.and_then(|message| Some(Seen { sequence: message.sequence, replica: read_tick(&message.payload)?.replica }));
        self.process = Some(Process {
            state,
            follow: Follow::new(self.cell.clone(), mark),
            chain,
            role: Role::new(self.name.clone(), newest, now),
            checks: Checks::default(),
            consumer: None,
            inbox: VecDeque::new(),
            asked: VecDeque::new(),
            answers: VecDeque::new(),
            said: VecDeque::new(),
            rows: Vec::new(),
            outputs: Vec::new(),
            out_seq,
        });
        Ok(())
    }

    /// Ends it without warning.
    pub fn crash(&mut self) {
        self.process = None;
    }

    /// Writes everything folded so far in one batch. The disk may fail it (and the process then ends), before or after it took the batch.
    pub fn commit(&mut self) {
        let Some(process) = &mut self.process else { return };
        let mark = process.follow.mark();
        let commit = Commit {
            logic: LOGIC,
            position: mark.position,
            log_created_at_ns: mark.created_at_ns,
            message_hash: mark.message_hash,
            logged_at: mark.logged_at,
            hash: process.state.hash(),
            out_seq: process.out_seq,
            decision_seq: process.state.summary().decision_seq,
            sealed: None,
        };
        let entries = process.state.take_dirty();
        let (rows, outputs) = (std::mem::take(&mut process.rows), std::mem::take(&mut process.outputs));
        if self.disk.commit(&commit, &entries, &rows, outputs.iter().map(|output| &**output)).is_err() {
            self.crash();
        }
    }
}

impl Process {
    /// Creates a consumer at the own position, after making sure that it is the same log.
    pub fn subscribe(&mut self, log: &Stream) -> Result<()> {
        let shape = Shape { created_at_ns: log.created_at_ns, first_sequence: log.first(), last_sequence: log.last() };
        let sequence = self.follow.mark().position.sequence;
        let message = if self.follow.compares(&shape) { log.get(sequence) } else { None };
        let message = message.map(|message| (&*message.subject, &*message.payload));
        self.follow.same_log(&shape, message).map_err(|replaced| anyhow::anyhow!("{replaced:?}"))?;
        self.follow.begin();
        self.inbox.clear();
        self.consumer = Some((sequence + 1, 0));
        Ok(())
    }

    /// The consumer is gone.
    pub fn unsubscribe(&mut self) {
        self.consumer = None;
        self.inbox.clear();
    }

    /// Whether it has a consumer.
    pub fn is_subscribed(&self) -> bool {
        self.consumer.is_some()
    }

    /// The consumer delivers; the first `skip` of it are lost on the way, the last `again` before it come a second time.
    pub fn deliver(&mut self, log: &Stream, skip: usize, again: usize) {
        let Some((next, delivered)) = self.consumer else { return };
        let repeated: Vec<_> = self.inbox.iter().rev().take(again).rev().cloned().collect();
        let fresh: Vec<_> = (delivered + 1..).zip(log.from(next, PULL).cloned()).collect();
        if let Some((number, last)) = fresh.last() {
            self.consumer = Some((last.sequence + 1, *number));
        }
        self.inbox.extend(repeated);
        self.inbox.extend(fresh.into_iter().skip(skip));
    }

    /// Folds at most `count` of the messages delivered. `false` = the consumer lost some, so another one is needed.
    pub fn fold(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            let Some((delivered, message)) = self.inbox.pop_front() else { break };
            let arrived = Arrived {
                sequence: message.sequence,
                delivered,
                stored_at_ns: message.stored_at_ns,
                subject: &message.subject,
                payload: &message.payload,
            };
            match self.follow.admit(arrived) {
                Err(_) => return Ok(false),
                Ok(Admitted::Repeated) => {}
                Ok(Admitted::Next { record, .. }) => {
                    self.follow.remember(&message.subject, &message.payload);
                    self.step(&record)?;
                }
            }
        }
        Ok(true)
    }

    fn step(&mut self, record: &Record) -> Result<()> {
        let mut effects = Effects::default();
        self.state.step(record, &mut effects);
        self.rows.append(&mut effects.rows);
        for output in effects.outputs {
            ensure!(output.out_seq == self.out_seq + 1, "output {} after {}", output.out_seq, self.out_seq);
            self.out_seq = output.out_seq;
            let output = Arc::new(output);
            self.outputs.push(output.clone());
            self.chain.push(output);
        }
        self.notice(record)
    }

    fn notice(&mut self, record: &Record) -> Result<()> {
        if let Body::Check(check) = &record.body {
            let divergence = self.checks.compare(check, self.role.replica(), LOGIC);
            ensure!(divergence.is_none(), "replicas differ: {divergence:?}");
        }
        if let Body::Tick(tick) = &record.body
            && let Some((position, hash)) = self.checks.at_tick(tick, record.position, self.state.hash())
        {
            self.said.push_back(Check { replica: self.role.replica().to_owned(), position, hash: written(hash), logic: LOGIC });
        }
        Ok(())
    }

    /// A tick was folded: who is active may have changed.
    pub fn saw_tick(&mut self, seen: Seen, now: Duration) {
        self.role.seen(seen, now);
        self.chain.set_active(self.role.is_active());
    }

    /// The hash to say in the log next.
    pub fn next_check(&mut self) -> Option<Check> {
        self.said.pop_front()
    }

    /// The tick to send now.
    pub fn tick_due(&mut self, now: Duration) -> Option<Claim> {
        self.role.due(now)
    }

    /// What became of the tick: `Ok(Some)` = it stands there, `Err(newest)` = refused, `Ok(None)` = nobody knows.
    pub fn tick_answered(&mut self, answer: Result<Option<u64>, Option<Seen>>, now: Duration) {
        match answer {
            Ok(Some(sequence)) => self.role.stands(sequence, now),
            Ok(None) => self.role.unanswered(),
            Err(newest) => self.role.refused(newest, now),
        }
        self.chain.set_active(self.role.is_active());
    }

    /// Sends what the chain wants to ask or publish.
    pub fn ask(&mut self) {
        while let Some(next) = self.chain.next() {
            self.asked.push_back(next);
        }
    }

    /// How much is on its way to OUT and back.
    pub fn owed(&self) -> usize {
        self.asked.len() + self.answers.len()
    }

    /// The broker takes the next question. `lost` = it never arrives; `unanswered` = it is done and the answer is lost.
    pub fn perform(&mut self, out: &mut Stream, now_ns: i64, lost: bool, unanswered: bool) {
        let Some(next) = self.asked.pop_front() else { return };
        let (attempt, heard) = match next {
            Do::AskEnd { attempt, .. } => (attempt, Heard::End(out.last())),
            Do::Read { attempt, output } => (attempt, read(out, output.out_seq)),
            Do::Publish { attempt, .. } if lost => (attempt, Heard::Failed),
            Do::Publish { attempt, output } => (attempt, publish(out, &output, now_ns)),
        };
        self.answers.push_back((attempt, if lost || unanswered { Heard::Failed } else { heard }));
    }

    /// The next answer arrives. An error is what must not happen; `false` = everything has to be opened again.
    pub fn answer(&mut self) -> Result<bool> {
        let Some((attempt, heard)) = self.answers.pop_front() else { return Ok(true) };
        match self.chain.heard(attempt, heard) {
            Ok(()) => Ok(true),
            Err(plimsoll_processor::chain::Broken::WentBack { .. }) => Ok(false),
            Err(broken) => Err(broken).context("OUT"),
        }
    }

    /// Looks again where OUT ends.
    pub fn look(&mut self) {
        self.chain.look();
    }

    /// Whether this replica publishes.
    pub fn is_active(&self) -> bool {
        self.role.is_active()
    }

    /// Whether everything produced is known to stand in OUT.
    pub fn all_stands(&self) -> bool {
        self.chain.is_empty()
    }

    /// The last sequence folded.
    pub fn folded(&self) -> u64 {
        self.follow.mark().position.sequence
    }

    /// The last sequence folded or waiting to be.
    pub fn given(&self) -> u64 {
        self.inbox.iter().map(|(_, message)| message.sequence).max().unwrap_or(0).max(self.folded())
    }

    /// Number of the last output made.
    pub fn out_seq(&self) -> u64 {
        self.out_seq
    }
}

/// What a tick says, if it can be read.
pub fn read_tick(payload: &[u8]) -> Option<Tick> {
    serde_json::from_slice(payload).ok()
}

fn read(out: &Stream, out_seq: u64) -> Heard {
    match out.get(out_seq) {
        Some(found) => Heard::Stands { out_seq, subject: found.subject.clone(), payload: found.payload.clone().into() },
        None => Heard::Trimmed { out_seq },
    }
}

fn publish(out: &mut Stream, output: &Output, now_ns: i64) -> Heard {
    let conditions = Conditions { id: Some(output.id.clone()), last: Some(output.out_seq - 1), ..Conditions::default() };
    match out.append(now_ns, &output.subject, &output.bytes, &conditions) {
        Ok(ack) if ack.duplicate => Heard::Failed,
        Ok(ack) => Heard::Stored { out_seq: output.out_seq, sequence: ack.sequence },
        Err(_) => Heard::Failed,
    }
}
