//! The one loop: select an input, apply it, act on what follows, and now and then commit.
//!
//! `Input` lists everything that can ever happen here. The fold itself is pure; this loop is its only owner. One commit is under way at a
//! time, on a thread that may block; rows and outputs stay in memory until it has succeeded, so the tail misses nothing.
#![expect(clippy::disallowed_methods, reason = "how long a commit took is a metric")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use plimsoll_fold::rows::Encoded;
use plimsoll_fold::{Effects, LOGIC, State};
use plimsoll_schemas::control::{Check, Control};
use plimsoll_schemas::ctl::Repair;
use plimsoll_schemas::id::Position;
use plimsoll_schemas::out::Output;
use plimsoll_schemas::record::{Body, Record};
use plimsoll_schemas::retention;
use plimsoll_store::{Sealed, Store};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::checks::{Checks, Divergence, written};
use crate::error::Error;
use crate::follow::Mark;
use crate::health::{Health, LAG_MAX};
use crate::log::Batch;
use crate::metrics::{Metrics, signed};
use crate::repair;
use crate::role::Seen;
use crate::seal::Order;
use crate::surplus::{Made, Surplus};
use crate::tail::{Applied, Ask, Chunk, StatusReport, Subscribers};
use crate::tick::Said;

/// A commit is due after this many records …
const COMMIT_RECORDS: u64 = 200_000;
/// … or this many rows, about 64 MiB.
const COMMIT_ROWS: usize = 200_000;
/// With this many rows not yet stored the log waits.
const UNSTORED_ROWS_MAX: usize = 400_000;
/// With this many outputs not yet given to the publisher the log waits: about 32 MiB, and what some 3,500 hosts say when they register.
const OUTBOX_MAX: usize = 32_768;
/// A seal is due after this many rows, so that it fits in memory.
const SEAL_ROWS: u64 = 500_000;
/// Outputs kept in the store behind the last one that stands in OUT.
const OUTPUTS_KEPT: u64 = retention::STORE_OUTPUTS;
/// Rows go to the tail after this many …
const CHUNK_ROWS: usize = 4_096;
/// … or this long.
const CHUNK_PERIOD: Duration = Duration::from_millis(100);
/// A quiet tail says that it lives after this many periods.
const BEAT_PERIODS: u32 = 5;
/// How long OUT may take to confirm the last outputs when this is told to stop.
const STOP_OUT_MAX: Duration = Duration::from_secs(3);
/// How long the last seal may take.
const STOP_SEAL_MAX: Duration = Duration::from_secs(6);

/// Everything that can happen.
enum Input {
    /// Records of the log, in order.
    Log(Batch),
    /// The reader has ended: there is no more of this log.
    LogEnded,
    /// OUT took more, so the publisher has room.
    Acked,
    /// The tail asks.
    Asked(Ask),
    /// A commit has ended.
    Committed(Result<(), Error>),
    /// A seal has ended.
    SealEnded,
    /// Rows are due at the tail.
    ChunkDue,
    /// A commit is due.
    CommitDue,
    /// A seal is due.
    SealDue,
    /// Stop intake, drain, commit, close.
    Stop,
}

/// What the loop starts from.
pub struct Start {
    /// The state.
    pub state: State,
    /// Where the reader goes on.
    pub mark: Mark,
    /// Number of the last output folded.
    pub out_seq: u64,
    /// Outputs in the store that OUT may lack.
    pub outbox: VecDeque<Arc<Output>>,
    /// The newest manifest the log has told of.
    pub sealed: Option<Sealed>,
}

/// What the loop is connected to.
pub struct Wires {
    /// Records come from here.
    pub log: mpsc::Receiver<Batch>,
    /// Outputs go here.
    pub out: mpsc::Sender<Arc<Output>>,
    /// Up to which output OUT is right.
    pub acked: watch::Receiver<u64>,
    /// Whether this replica is the active one: it alone seals.
    pub active: watch::Receiver<bool>,
    /// Whether OUT shows more than the log makes.
    pub surplus: Surplus,
    /// Ticks seen and hashes to say go here.
    pub said: mpsc::Sender<Said>,
    /// Questions come from here.
    pub asks: mpsc::Receiver<Ask>,
    /// Seals are ordered here.
    pub seals: mpsc::Sender<Order>,
    /// Agents are asked for what is missing here.
    pub repairs: mpsc::Sender<Repair>,
    /// The store.
    pub store: Store,
    /// Readiness.
    pub health: Health,
    /// Metrics.
    pub metrics: Metrics,
    /// Name of this replica.
    pub replica: String,
    /// Cancelled when OUT holds something else than was folded since the last commit: that must not be committed.
    pub void: CancellationToken,
}

/// The loop.
pub struct Engine {
    state: State,
    mark: Mark,
    out_seq: u64,
    outbox: VecDeque<Arc<Output>>,
    sealed: Option<Sealed>,
    wires: Wires,
    effects: Effects,
    checks: Checks,
    /// Who sent the newest tick folded.
    ticked_by: String,
    /// Rows of chunks not yet in the store, oldest first.
    unstored: VecDeque<Arc<Chunk>>,
    unstored_rows: usize,
    unstored_outputs: Vec<Arc<Output>>,
    fresh: Encoded,
    quiet_periods: u32,
    committed: Position,
    /// Cancelled when a commit must not wait for OUT any more.
    hurry: CancellationToken,
    committing: Option<Committing>,
    records_since_commit: u64,
    prune: Option<Position>,
    rows_since_seal: u64,
    seal_wanted: bool,
    sealing: Option<oneshot::Receiver<()>>,
    subscribers: Subscribers,
}

struct Committing {
    task: JoinHandle<Result<(), Error>>,
    position: Position,
    chunks: usize,
    began: Instant,
}

impl Engine {
    /// A loop that goes on from `start`.
    pub fn new(start: Start, wires: Wires) -> Self {
        let Start { state, mark, out_seq, outbox, sealed } = start;
        wires.metrics.out_seq.set(signed(out_seq));
        Self {
            state,
            mark,
            out_seq,
            outbox,
            sealed,
            wires,
            effects: Effects::default(),
            checks: Checks::default(),
            ticked_by: String::new(),
            unstored: VecDeque::new(),
            unstored_rows: 0,
            unstored_outputs: Vec::new(),
            fresh: Encoded::default(),
            quiet_periods: 0,
            committed: mark.position,
            hurry: CancellationToken::new(),
            committing: None,
            records_since_commit: 0,
            prune: None,
            rows_since_seal: 0,
            seal_wanted: false,
            sealing: None,
            subscribers: Subscribers::default(),
        }
    }

    /// Runs until `stop` or until something is wrong that must not be repaired silently.
    pub async fn run(mut self, commit_every: Duration, seal_every: Duration, stop: CancellationToken) -> Result<(), Error> {
        let mut beats = Beats::new(commit_every, seal_every);
        self.offer();
        loop {
            match self.select(&mut beats, &stop).await {
                Input::Log(batch) => self.fold(batch)?,
                Input::Acked => {}
                Input::Asked(ask) => self.answer(ask),
                Input::Committed(result) => self.committed(result)?,
                Input::SealEnded => self.sealing = None,
                Input::ChunkDue => self.chunk_due(),
                Input::CommitDue => self.start_commit(),
                Input::SealDue => self.seal_wanted = true,
                Input::Stop => {
                    self.fold_the_rest()?;
                    self.wait_for_out().await;
                    return self.stop().await;
                }
                Input::LogEnded => {
                    // What was folded of a log that is gone cannot be folded again.
                    self.hurry.cancel();
                    return self.stop().await;
                }
            }
            if let Some(last) = self.surplus() {
                return self.give_way(last).await;
            }
            self.offer();
            self.commit_or_seal_if_due();
        }
    }

    async fn select(&mut self, beats: &mut Beats, stop: &CancellationToken) -> Input {
        let reads = self.outbox.len() < OUTBOX_MAX && self.unstored_rows < UNSTORED_ROWS_MAX;
        tokio::select! {
            biased;
            () = stop.cancelled() => Input::Stop,
            result = ended(&mut self.committing), if self.committing.is_some() => Input::Committed(result),
            () = heard(&mut self.sealing), if self.sealing.is_some() => Input::SealEnded,
            Some(ask) = self.wires.asks.recv() => Input::Asked(ask),
            _ = beats.chunk.tick() => Input::ChunkDue,
            _ = beats.commit.tick() => Input::CommitDue,
            _ = beats.seal.tick() => Input::SealDue,
            Ok(()) = self.wires.acked.changed() => Input::Acked,
            batch = self.wires.log.recv(), if reads => batch.map_or(Input::LogEnded, Input::Log),
        }
    }

    fn fold(&mut self, batch: Batch) -> Result<(), Error> {
        self.records_since_commit += batch.records.len() as u64;
        self.wires.metrics.records.inc_by(batch.records.len() as u64);
        for record in &batch.records {
            self.state.step(record, &mut self.effects);
            self.notice(record)?;
        }
        self.mark = batch.mark;
        self.take_effects()?;
        self.wires.metrics.position.set(signed(self.mark.position.sequence));
        self.wires.health.folded(self.mark.position.sequence);
        self.wires.metrics.lag.set(signed(self.wires.health.lag()));
        let live = *self.wires.active.borrow() && self.wires.health.lag() < LAG_MAX;
        repair::hand_on(&mut self.effects.repairs, live, &self.wires.repairs, &self.wires.metrics);
        if self.fresh.len() >= CHUNK_ROWS {
            self.cut_chunk();
        }
        Ok(())
    }

    fn take_effects(&mut self) -> Result<(), Error> {
        for output in self.effects.outputs.drain(..) {
            if output.out_seq != self.out_seq + 1 {
                let detail = format!("output {} came after output {}", output.out_seq, self.out_seq);
                return Err(Error::PartEnded { part: "the fold", detail });
            }
            self.out_seq = output.out_seq;
            let output = Arc::new(output);
            self.unstored_outputs.push(output.clone());
            self.outbox.push_back(output);
        }
        let rows = self.effects.rows.len();
        self.rows_since_seal += rows as u64;
        self.unstored_rows += rows;
        self.wires.metrics.rows.inc_by(rows as u64);
        self.effects.rows.drain_into(&mut self.fresh);
        self.wires.metrics.out_seq.set(signed(self.out_seq));
        Ok(())
    }

    /// What replicas say to each other by way of the log.
    fn notice(&mut self, record: &Record) -> Result<(), Error> {
        match &record.body {
            Body::Tick(tick) => {
                self.ticked_by.clone_from(&tick.replica);
                // A full queue means that newer ticks wait in it.
                let _ = self.wires.said.try_send(Said::Tick(Seen { sequence: record.position.sequence, replica: tick.replica.clone() }));
                if let Some((position, hash)) = self.checks.at_tick(tick, record.position, self.state.hash())
                    && self.wires.health.lag() < LAG_MAX
                {
                    let check = Check { replica: self.wires.replica.clone(), position, hash: written(hash), logic: LOGIC };
                    let _ = self.wires.said.try_send(Said::Hash(check));
                }
            }
            Body::Check(check) => {
                if let Some(divergence) = self.checks.compare(check, &self.wires.replica, LOGIC) {
                    return self.diverged(divergence);
                }
            }
            Body::Control(control) => {
                if let Control::Sealed { version, position } = **control {
                    self.notice_sealed(Sealed { version, position }, record.position);
                }
            }
            Body::Epoch(new) if new.epoch > record.position.epoch => {
                return Err(Error::BehindEpoch { epoch: new.epoch.0, position: record.position });
            }
            Body::Frame(_) | Body::Inventory(_) | Body::Event(_) | Body::Request(..) | Body::Epoch(_) | Body::Refused(_) => {}
        }
        Ok(())
    }

    /// Whoever differs from the active replica bars itself; the active one only says so.
    fn diverged(&self, divergence: Divergence) -> Result<(), Error> {
        self.wires.metrics.divergences.inc();
        let Divergence { position, own, replica, theirs } = divergence;
        if replica == self.ticked_by {
            return Err(Error::Diverged { position, own, replica, theirs });
        }
        tracing::error!(%position, own, replica, theirs, "a standby has another state than this replica, or both differ from the active one");
        Ok(())
    }

    /// The sealer has said in the log what the archive holds: what the manifest *before* holds may be forgotten,
    /// because a reader that has not yet seen the newest one still asks from there.
    fn notice_sealed(&mut self, Sealed { version, position }: Sealed, at: Position) {
        if self.sealed.is_some_and(|sealed| sealed.version >= version || sealed.position > position) || position > at {
            return;
        }
        self.prune = self.sealed.map(|sealed| sealed.position).or(self.prune);
        self.sealed = Some(Sealed { version, position });
        self.wires.metrics.sealed_version.set(signed(version));
        self.wires.metrics.sealed_position.set(signed(position.sequence));
    }

    /// Gives the publisher as many outputs as it has room for.
    fn offer(&mut self) {
        while let Some(output) = self.outbox.front() {
            if self.wires.out.try_send(output.clone()).is_err() {
                break;
            }
            self.outbox.pop_front();
        }
        self.wires.metrics.out_queue.set(self.outbox.len() as i64);
    }

    /// Where OUT ends, if that is more than the log makes: the active replica's to find out, so that one speaks of it.
    fn surplus(&self) -> Option<u64> {
        let made = Made { sequence: self.mark.position.sequence, out_seq: self.out_seq, standing: *self.wires.acked.borrow() };
        self.wires.surplus.shown(made).filter(|_| *self.wires.active.borrow())
    }

    /// Commits what was folded, all of which stands, and ends: where to go on is decided on opening.
    async fn give_way(self, last: u64) -> Result<(), Error> {
        let (made, position) = (self.out_seq, self.mark.position);
        self.hurry.cancel();
        self.stop().await?;
        Err(Error::OutSurplus { last, made, position })
    }

    fn applied(&self) -> Applied {
        Applied { applied: self.mark.position, logged_at_ns: self.mark.logged_at.0, sealed: self.sealed }
    }

    fn chunk_due(&mut self) {
        let last = self.unstored.back().map_or(self.committed, |chunk| chunk.applied);
        self.quiet_periods += 1;
        if !self.fresh.is_empty() || last < self.mark.position {
            self.cut_chunk();
        } else if self.quiet_periods >= BEAT_PERIODS {
            self.quiet_periods = 0;
            let Applied { applied, sealed, .. } = self.applied();
            let beat = Arc::new(Chunk { rows: Encoded::default(), applied, logged_at: self.mark.logged_at, sealed });
            self.subscribers.send(&beat, &self.wires.metrics);
            self.wires.metrics.show(&self.state.summary());
        }
    }

    /// Closes the rows made so far into a chunk, keeps it until it is stored and gives it to the tail.
    fn cut_chunk(&mut self) {
        let Applied { applied, sealed, .. } = self.applied();
        let next = self.fresh.of_same_size();
        let chunk = Arc::new(Chunk { rows: std::mem::replace(&mut self.fresh, next), applied, logged_at: self.mark.logged_at, sealed });
        self.subscribers.send(&chunk, &self.wires.metrics);
        self.unstored.push_back(chunk);
        self.wires.metrics.rows_unstored.set(self.unstored_rows as i64);
    }

    fn answer(&mut self, ask: Ask) {
        // An asker that no longer waits is no matter.
        match ask {
            Ask::Subscribe(reply) => {
                self.cut_chunk();
                let subscription = self.subscribers.add(self.committed, self.unstored.iter().cloned().collect(), self.applied());
                let _ = reply.send(subscription);
            }
            Ask::Recent { devices, limit, reply } => {
                let _ = reply.send((self.state.recent(devices.as_deref(), limit), self.applied()));
            }
            Ask::Status(reply) => {
                let _ = reply.send(self.report());
            }
            Ask::DryRun { tenant, place, reply } => {
                let _ = reply.send(Box::new(self.state.dry_run(&tenant, &place)));
            }
        }
    }

    fn report(&self) -> StatusReport {
        let summary = self.state.summary();
        StatusReport {
            cell: self.state.cell().clone(),
            replica: self.wires.replica.clone(),
            position: self.mark.position,
            logged_at_ns: self.mark.logged_at.0,
            out_seq: self.out_seq,
            decision_seq: summary.decision_seq,
            sealed: self.sealed,
            hash: written(self.state.hash()),
            active: *self.wires.active.borrow(),
            summary,
        }
    }

    fn commit_or_seal_if_due(&mut self) {
        if self.records_since_commit >= COMMIT_RECORDS || self.unstored_rows >= COMMIT_ROWS {
            self.start_commit();
        }
        self.seal_wanted |= self.rows_since_seal >= SEAL_ROWS;
        if self.seal_wanted && self.sealing.is_none() && *self.wires.active.borrow() {
            self.seal_wanted = false;
            self.rows_since_seal = 0;
            self.order_seal();
        }
    }

    /// Seals what the last commit holds; what came since is for the next seal.
    fn order_seal(&mut self) {
        let (ended, heard) = oneshot::channel();
        if self.wires.seals.try_send(Order { up_to: self.committed, ended }).is_ok() {
            self.sealing = Some(heard);
        }
    }

    /// Starts one commit of everything folded so far, unless one is under way or nothing is new.
    ///
    /// It is written once all its outputs stand in OUT. So a state that is committed never speaks of anything else than OUT does, and where the
    /// log has lost records that OUT tells of, everybody can go on from the last commit.
    fn start_commit(&mut self) {
        if self.committing.is_some() || self.mark.position == self.committed {
            return;
        }
        self.cut_chunk();
        let commit = self.mark.commit(&self.state, self.sealed);
        let chunks: Vec<_> = self.unstored.iter().cloned().collect();
        let outputs = std::mem::take(&mut self.unstored_outputs);
        let entries = self.state.take_dirty();
        let (position, counted) = (commit.position, chunks.len());
        let forget = (self.prune.take(), self.wires.acked.borrow().saturating_sub(OUTPUTS_KEPT));
        let store = self.wires.store.clone();
        let stands = stands(self.wires.acked.clone(), commit.out_seq, self.hurry.clone(), self.wires.void.clone());
        let write = move |standing| {
            let rows = chunks.iter().flat_map(|chunk| chunk.rows.iter());
            store.commit_in_a_hurry(&commit, standing, &entries, rows, outputs.iter().map(|output| &**output))?;
            if let (Some(up_to), _) = forget {
                store.prune_rows(up_to)?;
            }
            if forget.1 > 0 {
                store.prune_outputs(forget.1)?;
            }
            Ok(())
        };
        let task = tokio::spawn(async move {
            let standing = stands.await?;
            let writing = tokio::task::spawn_blocking(move || write(standing));
            writing.await.unwrap_or_else(|error| Err(Error::PartEnded { part: "the commit", detail: error.to_string() }))
        });
        self.records_since_commit = 0;
        self.committing = Some(Committing { task, position, chunks: counted, began: Instant::now() });
    }

    fn committed(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        let Some(Committing { position, chunks, began, .. }) = self.committing.take() else { return Ok(()) };
        result?;
        self.committed = position;
        let stored: usize = self.unstored.drain(..chunks).map(|chunk| chunk.rows.len()).sum();
        self.unstored_rows -= stored;
        self.wires.metrics.rows_unstored.set(self.unstored_rows as i64);
        self.wires.metrics.commits.inc();
        self.wires.metrics.commit_seconds.0.observe(began.elapsed().as_secs_f64());
        self.wires.metrics.show(&self.state.summary());
        tracing::debug!(%position, rows = stored, took_ms = began.elapsed().as_millis() as u64, "committed");
        Ok(())
    }

    /// Folds what was already read, and nothing more.
    fn fold_the_rest(&mut self) -> Result<(), Error> {
        self.wires.log.close();
        while let Ok(batch) = self.wires.log.try_recv() {
            self.fold(batch)?;
        }
        Ok(())
    }

    /// Gives every output to the publisher and waits until it stands; where OUT does not confirm in time, the rest is not committed.
    async fn wait_for_out(&mut self) {
        let confirmed = async {
            for output in std::mem::take(&mut self.outbox) {
                self.wires.out.send(output).await.ok()?;
            }
            let out_seq = self.out_seq;
            self.wires.acked.wait_for(|&acked| acked >= out_seq).await.ok().map(|_| ())
        };
        if tokio::time::timeout(STOP_OUT_MAX, confirmed).await.ok().flatten().is_none() {
            tracing::warn!("OUT did not confirm everything in time: the next start goes on from an older commit and folds the rest again");
            self.wires.void.cancel();
        }
    }

    /// Commits and seals what was folded, and lets the publisher finish by closing its queue.
    async fn stop(mut self) -> Result<(), Error> {
        if self.wires.void.is_cancelled() {
            if let Some(committing) = self.committing.take() {
                // It is being written, or is not written at all.
                let _ = committing.task.await;
            }
            return Ok(());
        }
        while self.committing.is_some() || self.committed < self.mark.position {
            self.start_commit();
            let result = ended(&mut self.committing).await;
            self.committed(result)?;
        }
        tracing::info!(position = %self.committed, "committed before stopping");
        if let Some(mut sealing) = self.sealing.take() {
            let _ = tokio::time::timeout(STOP_SEAL_MAX, &mut sealing).await;
        }
        // What was committed in a hurry may not be what OUT bears out.
        if *self.wires.active.borrow() && !self.hurry.is_cancelled() {
            self.order_seal();
        }
        if let Some(sealing) = self.sealing.take()
            && tokio::time::timeout(STOP_SEAL_MAX, sealing).await.is_err()
        {
            tracing::warn!("the last seal did not end in time; the next start seals the rows");
        }
        for output in std::mem::take(&mut self.outbox) {
            // A publisher that is gone leaves the rest to the next start: they are in the store.
            if self.wires.out.send(output).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The loop's own clock beats.
struct Beats {
    chunk: Interval,
    commit: Interval,
    seal: Interval,
}

impl Beats {
    fn new(commit_every: Duration, seal_every: Duration) -> Self {
        let beat = |period| {
            let mut beat = interval(period);
            beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // The first beat comes at once; the first commit and seal come after a period.
            beat.reset();
            beat
        };
        Self { chunk: beat(CHUNK_PERIOD), commit: beat(commit_every), seal: beat(seal_every) }
    }
}

/// Waits until OUT is right up to an output, or until it need not be; returns up to where it is. Errors where it never will be.
async fn stands(acked: watch::Receiver<u64>, out_seq: u64, hurry: CancellationToken, void: CancellationToken) -> Result<u64, Error> {
    let mut heard = acked.clone();
    let confirmed = async {
        if heard.wait_for(|&acked| acked >= out_seq).await.is_err() {
            // The publisher has ended: whoever ended it says what is to become of this.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = void.cancelled() => Err(Error::PartEnded { part: "the commit", detail: "OUT holds something else".to_owned() }),
        () = confirmed => Ok(out_seq),
        () = hurry.cancelled() => Ok(*acked.borrow()),
    }
}

async fn ended(committing: &mut Option<Committing>) -> Result<(), Error> {
    match committing {
        Some(committing) => {
            (&mut committing.task).await.unwrap_or_else(|error| Err(Error::PartEnded { part: "the commit", detail: error.to_string() }))
        }
        None => Ok(()),
    }
}

async fn heard(sealing: &mut Option<oneshot::Receiver<()>>) {
    if let Some(sealing) = sealing {
        // Whether it succeeded is the sealer's to say; here only its end counts.
        let _ = sealing.await;
    }
}
