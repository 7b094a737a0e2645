//! One processor: the production fold, store, reader, chain, role and checks, tied together without I/O. Every message to and from the broker
//! is a step of its own, so that the world can lose, repeat or hold it, or end the process in between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use plimsoll_fold::rows::Encoded;
use plimsoll_fold::{Effects, LOGIC, State};
use plimsoll_processor::chain::{Broken, Chain, Do, Heard};
use plimsoll_processor::checks::{Checks, written};
use plimsoll_processor::epoch::{Bisect, proposal, standing_output};
use plimsoll_processor::follow::{Admitted, Arrived, Follow, Mark, Replaced, Shape};
use plimsoll_processor::role::{Claim, Role, Seen};
use plimsoll_processor::surplus::{Made, Surplus};
use plimsoll_schemas::control::{Check, NewEpoch, Tick};
use plimsoll_schemas::id::{CellId, Position};
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::subject::LogSubject;
use plimsoll_store::Store;

use super::stream::{Conditions, Message, Stream};

/// Messages that a consumer delivers at once.
const PULL: usize = 40;

/// The moment of a start: on the process's own monotonic clock, and on the broker's.
#[derive(Debug, Clone, Copy)]
pub struct Instant {
    /// Own clock.
    pub own: Duration,
    /// Broker's clock, ns UTC.
    pub broker_ns: i64,
}

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
    /// What made the state on it.
    pub lineage: Vec<Cause>,
    /// What does not.
    pub process: Option<Process>,
    /// Frozen until then: nothing it would do happens.
    pub paused_until: Duration,
    /// OUT has shown another output than the one made of this number, when the newest tick stood there.
    differs: Option<(u64, u64)>,
    /// OUT has shown more than this last output that the log made.
    surplus_over: Option<u64>,
}

/// What is in memory.
#[derive(Debug)]
pub struct Process {
    /// The fold.
    pub state: State,
    follow: Follow,
    chain: Chain,
    role: Role,
    surplus: Surplus,
    checks: Checks,
    /// Next sequence its consumer delivers, and how many it has delivered; absent = none was created.
    consumer: Option<(u64, u64)>,
    /// Messages with their number among the deliveries.
    inbox: VecDeque<(u64, Message)>,
    asked: VecDeque<Do>,
    answers: VecDeque<Answer>,
    said: VecDeque<Check>,
    rows: Encoded,
    outputs: Vec<Arc<Output>>,
    causes: Vec<Cause>,
    out_seq: u64,
    behind: bool,
}

/// One thing that made a state: together they are all of it.
#[derive(Debug, Clone)]
pub enum Cause {
    /// A record was folded, and gave this hash.
    Record(Position, Message, u64),
    /// A log epoch began.
    Epoch(NewEpoch),
}

/// What stands in the archive: states by their position, with what made them.
pub type Checkpoints = BTreeMap<Position, (Store, Vec<Cause>)>;

/// How a start ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs.
    Running,
    /// The log was replaced and nobody has said yet where to go on.
    Waiting,
    /// The log was replaced and this replica has said where to go on.
    Spoke,
}

impl Replica {
    /// One that was never started.
    pub fn new(cell: CellId, name: String) -> Self {
        let disk = Store::in_memory();
        Self { cell, name, disk, lineage: Vec::new(), process: None, paused_until: Duration::ZERO, differs: None, surplus_over: None }
    }

    /// Starts from what stands on its disk, else from the newest checkpoint. `patient` = where the log was replaced, another may speak first.
    pub fn start(&mut self, log: &mut Stream, out: &mut Stream, archive: &mut Checkpoints, now: Instant, patient: bool) -> Result<Started> {
        if self.disk.last_commit()?.is_none()
            && let Some((store, lineage)) = archive.values().next_back()
        {
            (self.disk, self.lineage) = (store.copy_in_memory(), lineage.clone());
        }
        self.until_borne_out(out, archive)?;
        let (mut state, mut mark) = self.restore()?;
        let mut follow = Follow::new(self.cell.clone(), mark);
        let subject = LogSubject::Epoch.to_subject(&self.cell);
        let newest = log.last_on(&subject).cloned();
        let said = newest.as_ref().map(|message| serde_json::from_slice::<NewEpoch>(&message.payload)).transpose()?;
        let said = said.filter(|new| new.epoch > mark.position.epoch);
        let differs = self.differs.take();
        let surplus = self.surplus_over.take().is_some_and(|made| out.last() > made) && self.leads(log);
        let committed = self.disk.last_commit()?.map_or(0, |commit| commit.out_seq);
        if let Some(new) = said {
            self.begin(&new, log, out, archive)?;
            (state, mark) = self.restore()?;
            follow = Follow::new(self.cell.clone(), mark);
            ensure!(same_log(&mut follow, log).is_ok(), "{}: the log is another one although its epoch was begun", self.name);
        } else if same_log(&mut follow, log).is_err() || differs.is_some() || surplus {
            ensure!(differs.is_none_or(|(out_seq, _)| out_seq > committed), "{}: OUT differs at {differs:?}, {committed} are committed", self.name);
            let (tick, leads) = (self.newest_tick(log), self.leads(log));
            if patient && !leads {
                self.differs = differs;
                return Ok(Started::Waiting);
            }
            if !leads && differs.is_some_and(|(_, ticked)| tick.is_some_and(|tick| tick.sequence > ticked)) {
                // The active replica goes on: then this one is wrong, ends, and is started again from its commit.
                return Ok(Started::Waiting);
            }
            for output in self.disk.outputs_from(out.last() + 1) {
                ensure!(matches!(publish(out, &output?, now.broker_ns), Heard::Stored { .. }), "{}: OUT takes what it lacks", self.name);
            }
            archive.insert(mark.position, (self.disk.copy_in_memory(), self.lineage.clone()));
            let known = state.summary().out_seq;
            let standing = standing(out, mark.position, known + 1, u64::MAX);
            let new = proposal(&state, self.same_up_to(mark, log)?, out.last().max(known), &standing)?;
            let conditions = Conditions { last_on_subject: Some(newest.map_or(0, |message| message.sequence)), ..Conditions::default() };
            log.append(now.broker_ns, &subject, &serde_json::to_vec(&new)?, &conditions).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
            return Ok(Started::Spoke);
        }
        let out_seq = self.disk.last_commit()?.map_or(0, |commit| commit.out_seq);
        let kept: Vec<_> = self.disk.outputs_from(out.last().min(self.disk.standing()?).max(1)).collect::<Result<_, _>>()?;
        let first = kept.first().map_or(out_seq + 1, |output| output.out_seq);
        ensure!(out.last() >= out_seq || first <= out.last() + 1, "{}: OUT ends at {}, kept from {first}", self.name, out.last());
        let mut chain = Chain::new(first - 1);
        kept.into_iter().for_each(|output| chain.push(Arc::new(output)));
        let role = Role::new(self.name.clone(), self.newest_tick(log), now.own);
        chain.set_active(role.is_active());
        self.process = Some(Process {
            state,
            follow,
            chain,
            role,
            surplus: Surplus::default(),
            checks: Checks::default(),
            consumer: None,
            inbox: VecDeque::new(),
            asked: VecDeque::new(),
            answers: VecDeque::new(),
            said: VecDeque::new(),
            rows: Encoded::default(),
            outputs: Vec::new(),
            causes: Vec::new(),
            out_seq,
            behind: false,
        });
        Ok(Started::Running)
    }

    /// A state that has made something else than what stands in OUT gives way to the newest checkpoint that OUT bears out, or to none.
    fn until_borne_out(&mut self, out: &Stream, archive: &Checkpoints) -> Result<()> {
        let mut below = None;
        while self.is_refuted(out)? {
            let found = archive.iter().rev().find(|(position, _)| below.is_none_or(|below| **position < below));
            below = found.map(|(position, _)| *position);
            (self.disk, self.lineage) =
                found.map_or((Store::in_memory(), Vec::new()), |(_, (store, lineage))| (store.copy_in_memory(), lineage.clone()));
            self.differs = None;
        }
        Ok(())
    }

    fn is_refuted(&self, out: &Stream) -> Result<bool> {
        let Some(commit) = self.disk.last_commit()? else { return Ok(false) };
        for made in self.disk.outputs_from(out.last().min(self.disk.standing()?)) {
            let made = made?;
            if made.out_seq > out.last().min(commit.out_seq) {
                break;
            }
            if out.get(made.out_seq).is_some_and(|found| found.subject != made.subject || found.payload != made.bytes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn newest_tick(&self, log: &Stream) -> Option<Seen> {
        let message = log.last_on(&LogSubject::Tick.to_subject(&self.cell))?;
        Some(Seen { sequence: message.sequence, replica: read_tick(&message.payload)?.replica })
    }

    /// Whether it was the active one, as far as the log says.
    fn leads(&self, log: &Stream) -> bool {
        self.newest_tick(log).is_none_or(|tick| tick.replica == self.name)
    }

    fn restore(&self) -> Result<(State, Mark)> {
        let Some((commit, entries)) = self.disk.load()? else { return Ok((State::new(self.cell.clone()), Mark::start())) };
        let state = State::restore(self.cell.clone(), entries.into_iter())?;
        let (found, committed) = ((state.position(), state.hash()), (commit.position, commit.hash));
        ensure!(found == committed, "{}: restored {} {:016x}, committed {} {:016x}", self.name, found.0, found.1, committed.0, committed.1);
        Ok((state, Mark::of(&commit)))
    }

    fn same_up_to(&self, mark: Mark, log: &Stream) -> Result<u64> {
        if mark.created_at_ns != log.created_at_ns {
            return Ok(log.first() - 1);
        }
        let mut bisect = Bisect::new(self.disk.marks(mark.position.epoch).collect::<Result<_, _>>()?, log.last());
        while let Some(sequence) = bisect.ask() {
            bisect.tell(log.get(sequence).map(Message::stored));
        }
        Ok(bisect.same_up_to().unwrap_or(0).max(log.first() - 1))
    }

    /// Goes on where the log says, from the own state if it is the one, else from its checkpoint.
    fn begin(&mut self, new: &NewEpoch, log: &Stream, out: &Stream, archive: &Checkpoints) -> Result<()> {
        let (state, _) = self.restore()?;
        if (state.position(), written(state.hash())) != (new.base, new.base_hash.clone()) {
            let mut fits = archive.iter().rev().filter(|(position, _)| **position == new.base || position.epoch >= new.epoch);
            (self.disk, self.lineage) = match fits.next() {
                Some((_, (store, lineage))) => (store.copy_in_memory(), lineage.clone()),
                None if new.base == Position::default() => (Store::in_memory(), Vec::new()),
                None => bail!("no checkpoint of {}", new.base),
            };
        }
        let (mut state, mark) = self.restore()?;
        if mark.position.epoch >= new.epoch {
            return Ok(());
        }
        let mut effects = Effects::default();
        let known = state.summary().out_seq;
        state.begin_epoch(new, &mut effects)?;
        let at_mark = if new.after == 0 { 0 } else { log.get(new.after).map_or(0, |message| message.stored().hash()) };
        let position = Position { epoch: new.epoch, sequence: new.after };
        let mark = Mark { position, created_at_ns: log.created_at_ns, message_hash: at_mark, logged_at: mark.logged_at };
        let commit = mark.commit(&state, None);
        let adopted = standing(out, mark.position, known + 1, new.out_seq);
        self.disk.commit(&commit, &state.take_dirty(), effects.rows.encoded().iter(), &adopted)?;
        self.lineage.push(Cause::Epoch(new.clone()));
        Ok(())
    }

    /// Ends it without warning.
    pub fn crash(&mut self) {
        self.process = None;
    }

    /// Whether all its outputs stand in OUT.
    pub fn may_commit(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.chain.standing() >= process.out_seq)
    }

    /// Writes everything folded so far in one batch. The disk may fail it (and the process then ends), before or after it took the batch.
    pub fn commit(&mut self) {
        let Some(process) = &mut self.process else { return };
        let commit = process.follow.mark().commit(&process.state, None);
        let entries = process.state.take_dirty();
        let (rows, outputs) = (std::mem::take(&mut process.rows), std::mem::take(&mut process.outputs));
        let causes = std::mem::take(&mut process.causes);
        let standing = process.chain.standing();
        let written = self.disk.commit_in_a_hurry(&commit, standing, &entries, rows.iter(), outputs.iter().map(|output| &**output));
        if self.disk.last_commit().ok().flatten().is_some_and(|found| found.position == commit.position) {
            self.lineage.extend(causes);
        }
        if written.is_err() {
            self.crash();
        }
    }

    /// OUT has shown something else than this made: what was folded since the last commit is void.
    pub fn differs(&mut self, out_seq: u64, log: &Stream) {
        self.differs = Some((out_seq, self.newest_tick(log).map_or(0, |tick| tick.sequence)));
        self.crash();
    }

    /// OUT has shown more than the log makes: everything made stands and is committed, and it is decided anew where to go on.
    pub fn give_way(&mut self) {
        self.surplus_over = self.process.as_ref().map(Process::out_seq);
        self.commit();
        self.crash();
    }

    /// Everything that made the state, committed or not.
    pub fn causes(&self) -> impl Iterator<Item = &Cause> {
        self.lineage.iter().chain(self.process.iter().flat_map(|process| &process.causes))
    }
}

/// Whether the log still is the one that was read.
fn same_log(follow: &mut Follow, log: &Stream) -> Result<(), Replaced> {
    let shape = Shape { created_at_ns: log.created_at_ns, first_sequence: log.first(), last_sequence: log.last() };
    let message = if follow.compares(&shape) { log.get(follow.mark().position.sequence) } else { None };
    follow.same_log(&shape, message.map(Message::stored))
}

impl Process {
    /// Creates a consumer at the own position. `false` = the log is another one: everything has to be committed and opened again.
    pub fn subscribe(&mut self, log: &Stream) -> bool {
        if same_log(&mut self.follow, log).is_err() {
            return false;
        }
        self.follow.begin();
        self.inbox.clear();
        self.consumer = Some((self.follow.mark().position.sequence + 1, 0));
        true
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
            let arrived = Arrived { sequence: message.sequence, delivered, stored: message.stored() };
            match self.follow.admit(arrived) {
                Err(_) => return Ok(false),
                Ok(Admitted::Repeated) => {}
                Ok(Admitted::Next { record, .. }) => {
                    self.follow.remember(message.stored());
                    self.step(&record)?;
                    self.causes.push(Cause::Record(record.position, message, self.state.hash()));
                }
            }
        }
        Ok(true)
    }

    fn step(&mut self, record: &Record) -> Result<()> {
        let mut effects = Effects::default();
        self.state.step(record, &mut effects);
        effects.rows.drain_into(&mut self.rows);
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
        if let Body::Epoch(new) = &record.body {
            self.behind |= new.epoch > record.position.epoch;
        }
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
        let claim = self.role.due(now)?;
        self.surplus.ticks();
        Some(claim)
    }

    /// What became of the tick: `Ok(Some)` = it stands there, `Err(newest)` = refused, `Ok(None)` = nobody knows.
    pub fn tick_answered(&mut self, answer: Result<Option<u64>, Option<Seen>>, now: Duration) {
        match answer {
            Ok(Some(sequence)) => {
                self.role.stands(sequence, now);
                self.surplus.ticked(sequence);
            }
            Ok(None) => self.role.unanswered(),
            Err(newest) => self.role.refused(newest, now),
        }
        self.chain.set_active(self.role.is_active());
    }

    /// Sends what the chain wants to ask or publish.
    pub fn ask(&mut self) {
        while let Some(next) = self.chain.due() {
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

    /// The next answer arrives; an error says why this cannot go on.
    pub fn answer(&mut self) -> Result<(), Broken> {
        let Some((attempt, heard)) = self.answers.pop_front() else { return Ok(()) };
        if let Heard::End(last) = heard {
            self.surplus.out_ends_at(last);
        }
        self.chain.heard(attempt, heard)
    }

    /// Looks again where OUT ends.
    pub fn look(&mut self) {
        self.chain.look();
    }

    /// Whether OUT shows more than the log makes.
    pub fn shows_surplus(&self) -> bool {
        let made = Made { sequence: self.folded(), out_seq: self.out_seq, standing: self.chain.standing() };
        self.surplus.shown(made).is_some() && self.is_active()
    }

    /// Whether this replica publishes.
    pub fn is_active(&self) -> bool {
        self.role.is_active()
    }

    /// Whether everything produced is known to stand in OUT.
    pub fn all_stands(&self) -> bool {
        self.chain.is_empty()
    }

    /// Whether the log says to go on in a newer epoch.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// The last sequence folded.
    pub fn folded(&self) -> u64 {
        self.follow.mark().position.sequence
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

/// What stands in OUT under these numbers.
fn standing(out: &Stream, position: Position, from: u64, to: u64) -> Vec<Output> {
    let there = out.from(from, usize::MAX).take_while(|message| message.sequence <= to);
    there.map(|message| standing_output(message.sequence, position, &message.subject, &message.payload)).collect()
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
