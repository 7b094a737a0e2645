//! One run: a broker, a few hosts and clients and two processors, one step of chance after the other, then a quiet time in which everything
//! must come right, then the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plimsoll_processor::chain::Broken;
use plimsoll_processor::epoch::NoEvent;
use plimsoll_processor::role::Seen;
use plimsoll_schemas::control::{Control, Tick};
use plimsoll_schemas::id::{CellId, TenantId};
use plimsoll_schemas::request::{Bundle, Place, Release, Request};
use plimsoll_schemas::subject::LogSubject;
use serde_json::Value;

use super::faults::{Fault, Fired};
use super::host::{Host, Letter};
use super::judge;
use super::replica::{Checkpoints, Instant, Process, Replica, read_tick};
use super::rng::Rng;
use super::stream::{Conditions, Stream};

/// True time of the first step, ns UTC; aligned to an hour.
pub const BEGIN_NS: i64 = 1_799_999_200 * 1_000_000_000 / 3_600_000_000_000 * 3_600_000_000_000;
const STEP: Duration = Duration::from_millis(250);
/// Steps with faults.
const WILD_STEPS: u64 = 800;
/// Steps without faults: enough for every window and late part to close by the live clock.
const QUIET_STEPS: u64 = 1_400;

/// What a run came to.
#[derive(Debug)]
pub struct Report {
    /// Faults that happened.
    pub fired: Fired,
    /// Records in the log at the end.
    pub records: u64,
    /// Outputs at the end.
    pub outputs: u64,
    /// Windows the judge compared.
    pub windows: usize,
    /// Hash of the state in the end: equal for equal seeds.
    pub hash: u64,
}

/// A letter that the network still holds.
struct Delayed {
    at: Duration,
    letter: Letter,
}

/// Everything there is.
pub struct World {
    pub(super) cell: CellId,
    rng: Rng,
    now: Duration,
    /// What the broker's clock shows more than the true time, ns.
    pub(super) broker_offset_ns: i64,
    /// The latest that it has ever shown, ns UTC.
    newest_ns: i64,
    pub(super) log: Stream,
    pub(super) out: Stream,
    hosts: Vec<Host>,
    silent_until: Vec<Duration>,
    delayed: Vec<Delayed>,
    pub(super) replicas: Vec<Replica>,
    archive: Checkpoints,
    /// Requests by id, until a decision on them was read from OUT.
    waiting: BTreeMap<String, Request>,
    /// Every request ever sent.
    pub(super) requested: BTreeSet<String>,
    leases: Vec<String>,
    /// Everything ever seen in OUT.
    pub(super) seen_out: BTreeMap<u64, Vec<u8>>,
    out_read: u64,
    requests: u64,
    wild: bool,
    /// When the log was last harmed.
    harmed_at: Option<Duration>,
    /// When a strange message gets into OUT, in the few runs in which one does.
    foreign_at: Option<Duration>,
    /// Where it stands, until OUT loses it again.
    foreign: Option<u64>,
    fired: Fired,
}

/// Runs one seed. An error says what must not happen.
pub fn run(seed: u64) -> Result<Report> {
    let mut world = World::new(seed);
    match world.live() {
        Ok(windows) => Ok(world.report(windows)),
        // A strange message that stands in OUT must be found out by whoever would go on behind it. That ends the run; nothing else may.
        Err(error) if error.downcast_ref::<NoEvent>().is_some_and(|strange| Some(strange.out_seq) == world.foreign) => Ok(world.report(0)),
        Err(error) => Err(error.context(format!("seed {seed}"))),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let cell: CellId = "sim".parse().expect("a token");
        let hosts: Vec<_> = (0..rng.between(1, 3)).map(|number| Host::new(cell.clone(), number, 1 + (number as u8 % 3))).collect();
        let replicas = (0..rng.between(1, 2)).map(|number| Replica::new(cell.clone(), format!("p-{number}"))).collect();
        let foreign_at = rng.chance(2).then(|| STEP * rng.between(1, WILD_STEPS) as u32);
        Self {
            silent_until: vec![Duration::ZERO; hosts.len()],
            cell,
            rng,
            now: Duration::ZERO,
            broker_offset_ns: 0,
            newest_ns: BEGIN_NS,
            log: Stream::new(BEGIN_NS),
            out: Stream::new(BEGIN_NS),
            hosts,
            delayed: Vec::new(),
            replicas,
            archive: Checkpoints::new(),
            waiting: BTreeMap::new(),
            requested: BTreeSet::new(),
            leases: Vec::new(),
            seen_out: BTreeMap::new(),
            out_read: 0,
            requests: 0,
            wild: true,
            harmed_at: None,
            foreign_at,
            foreign: None,
            fired: Fired::default(),
        }
    }

    fn report(&self, windows: usize) -> Report {
        let hash = self.replicas.iter().find_map(|replica| replica.process.as_ref()).map_or(0, |process| process.state.hash());
        Report { fired: self.fired.clone(), records: self.log.last(), outputs: self.out.last(), windows, hash }
    }

    fn live(&mut self) -> Result<usize> {
        self.publish_control(&Control::Enrol { hosts: Vec::new() });
        let now_ns = self.true_ns();
        self.hosts.iter_mut().for_each(|host| host.start(now_ns));
        for _ in 0..WILD_STEPS {
            self.step()?;
        }
        self.calm_down();
        for _ in 0..QUIET_STEPS {
            self.step()?;
        }
        self.settled()?;
        judge::judge(self)
    }

    /// A fault of this kind, in `per_mille` of 1000 cases, and only while the run is wild.
    fn fault(&mut self, fault: Fault, per_mille: u64) -> bool {
        let happens = self.wild && self.rng.below(1_000) < per_mille;
        if happens {
            self.fired.count(fault);
        }
        happens
    }

    fn true_ns(&self) -> i64 {
        BEGIN_NS + self.now.as_nanos() as i64
    }

    fn broker_ns(&self) -> i64 {
        self.true_ns() + self.broker_offset_ns
    }

    fn step(&mut self) -> Result<()> {
        let before = self.now.as_secs();
        self.now += STEP;
        let second = self.now.as_secs() > before;
        self.broker_faults()?;
        self.newest_ns = self.newest_ns.max(self.broker_ns());
        for number in 0..self.hosts.len() {
            self.host(number, second);
        }
        self.deliver_delayed();
        if second {
            self.clients()?;
        }
        for number in 0..self.replicas.len() {
            self.replica(number)?;
        }
        let active = self.replicas.iter().filter(|replica| replica.process.as_ref().is_some_and(Process::is_active)).count();
        if active > 1 {
            self.fired.count(Fault::TwoActive);
        }
        self.watch_out()
    }

    fn broker_faults(&mut self) -> Result<()> {
        if self.fault(Fault::BrokerClockForward, 1) {
            let seconds = if self.rng.chance(10) { 31_536_000 } else { self.rng.between(5, 600) };
            self.broker_offset_ns += 1_000_000_000 * seconds as i64;
        }
        if self.fault(Fault::BrokerClockBack, 1) {
            self.broker_offset_ns -= 1_000_000_000 * self.rng.between(5, 3_600) as i64;
        }
        if self.is_settled() && self.out.last() > 0 && self.fault(Fault::OutWentBack, 2) {
            // The store of every replica keeps what it folded since its first output, so any length can be lost.
            let kept = self.out.last() - self.rng.between(1, self.out.last().min(20));
            self.out.lose_behind(kept);
            self.foreign.take_if(|foreign| *foreign > kept);
        }
        // If OUT and the log lose what nobody has committed, nobody can say it again: what was read from OUT is then another one. So the log is
        // harmed only while OUT has back what it ever showed.
        let ever = self.seen_out.last_key_value().map_or(0, |(&sequence, _)| sequence);
        let safe = self.is_settled() && self.out.last() >= ever;
        if safe && self.log.last() > 0 && self.fault(Fault::LogWentBack, 2) {
            let kept = self.log.last() - self.rng.between(1, self.log.last().min(200));
            self.log.lose_behind(kept);
            self.everybody_reconnects();
        }
        if safe && self.fault(Fault::LogRecreated, 1) {
            self.log = Stream::new(self.broker_ns());
            self.everybody_reconnects();
        }
        if self.foreign_at == Some(self.now) {
            self.fired.count(Fault::OutForeign);
            let now_ns = self.broker_ns();
            let subject = format!("plimsoll.{}.out.device", self.cell);
            let stored = self.out.append(now_ns, &subject, b"foreign", &Conditions::default()).map_err(|wrong| anyhow::anyhow!("{wrong:?}"))?;
            self.foreign = Some(stored.sequence);
        }
        Ok(())
    }

    /// Whether the last harm to the log is over: no second thing is lost while everybody finds a new place to go on from.
    fn is_settled(&self) -> bool {
        self.harmed_at.is_none_or(|harmed| self.now - harmed > Duration::from_secs(90))
    }

    /// A log goes back or is another one only when its broker was away: every consumer is gone.
    fn everybody_reconnects(&mut self) {
        self.harmed_at = Some(self.now);
        self.replicas.iter_mut().filter_map(|replica| replica.process.as_mut()).for_each(Process::unsubscribe);
        // Hosts announce themselves each time they connect.
        let now_ns = self.true_ns();
        self.hosts.iter_mut().for_each(|host| host.announce(now_ns));
    }

    fn host(&mut self, number: usize, second: bool) {
        let now_ns = self.true_ns();
        if self.fault(Fault::HostRestarted, 2) {
            self.hosts[number].start(now_ns);
        }
        if self.fault(Fault::HostClockStepped, 1) {
            self.hosts[number].skew_ns = [0, 400_000_000, -3_000_000_000, 3_600_000_000_000, -1_800_000_000_000][self.rng.below(5) as usize];
        }
        if self.fault(Fault::HostSilent, 1) {
            self.silent_until[number] = self.now + Duration::from_secs(self.rng.between(5, 150));
        }
        if second {
            self.hosts[number].sample(now_ns, &mut self.rng);
        }
        if self.silent_until[number] > self.now {
            return;
        }
        // Live data is sent again each step until it is acknowledged; the order is not kept.
        for _ in 0..self.hosts[number].unacknowledged.len().min(8) {
            let at = self.rng.below(self.hosts[number].unacknowledged.len().min(3) as u64) as usize;
            let letter = self.hosts[number].unacknowledged[at].clone();
            if self.fault(Fault::SendLost, 30) {
                continue;
            }
            if self.fault(Fault::SendDelayed, 10) {
                let at = self.now + Duration::from_secs(self.rng.between(1, 200));
                self.delayed.push(Delayed { at, letter: letter.clone() });
            }
            self.append_letter(&letter);
            if !self.fault(Fault::AckLost, 30) {
                self.hosts[number].unacknowledged.remove(at);
            }
        }
    }

    fn append_letter(&mut self, letter: &Letter) {
        let now_ns = self.broker_ns();
        // Unconditional, so it cannot be refused.
        let _ = self.log.append(now_ns, &letter.subject, &letter.payload, &Conditions::default());
    }

    fn deliver_delayed(&mut self) {
        let now = self.now;
        for delayed in self.delayed.extract_if(.., |delayed| delayed.at <= now).collect::<Vec<_>>() {
            self.append_letter(&delayed.letter);
        }
    }

    fn clients(&mut self) -> Result<()> {
        if self.wild && self.rng.chance(25) {
            self.requests += 1;
            let request_id = format!("r{}", self.requests);
            let request = if self.rng.chance(40) && !self.leases.is_empty() {
                let lease_id = self.leases.swap_remove(self.rng.below(self.leases.len() as u64) as usize);
                Request::Release(Release { request_id: request_id.clone(), lease_id })
            } else {
                let milli = [1_000, 500, 250][self.rng.below(3) as usize];
                let vram_bytes = self.rng.between(1, 40) << 30;
                Request::Place(Place {
                    request_id: request_id.clone(),
                    bundles: vec![Bundle {
                        count: self.rng.between(1, 2) as u32,
                        members: self.rng.between(1, 2) as u32,
                        milli,
                        vram_bytes,
                        ..Bundle::default()
                    }],
                    max_wait_ms: self.rng.chance(50).then(|| self.rng.between(0, 30) * 1_000),
                    priority: self.rng.below(2) as i16,
                    preemptible: self.rng.chance(50),
                    lease_ttl_ms: Some([30_000, 120_000, 600_000][self.rng.below(3) as usize]),
                    ..Place::default()
                })
            };
            if matches!(request, Request::Place(_)) {
                self.requested.insert(request_id.clone());
            }
            self.waiting.insert(request_id, request);
        }
        let tenant: TenantId = "team".parse().expect("a token");
        let subject = LogSubject::Request(tenant).to_subject(&self.cell);
        for request in self.waiting.values().cloned().collect::<Vec<_>>() {
            // A client sends again until OUT shows the answer.
            if !self.fault(Fault::SendLost, 100) {
                let payload = serde_json::to_vec(&request)?;
                self.append_letter(&Letter { subject: subject.clone(), payload });
            }
        }
        self.waiting.retain(|_, request| matches!(request, Request::Place(_)));
        Ok(())
    }

    fn publish_control(&mut self, control: &Control) {
        let payload = serde_json::to_vec(control).expect("a control record is plain data");
        self.append_letter(&Letter { subject: LogSubject::Control.to_subject(&self.cell), payload });
    }

    fn replica(&mut self, number: usize) -> Result<()> {
        if self.replicas[number].paused_until > self.now {
            return Ok(());
        }
        if self.fault(Fault::Paused, 2) {
            self.replicas[number].paused_until = self.now + Duration::from_millis(self.rng.between(500, 40_000));
            return Ok(());
        }
        if self.replicas[number].process.is_some() && self.fault(Fault::ProcessorKilled, 8) {
            self.replicas[number].crash();
        }
        if self.is_settled() && self.fault(Fault::DiskLost, 1) {
            self.replicas[number] = Replica::new(self.cell.clone(), self.replicas[number].name.clone());
        }
        if self.replicas[number].process.is_none() {
            if !self.wild || self.rng.chance(30) {
                let now = Instant { own: self.now, broker_ns: self.broker_ns() };
                let patient = self.rng.chance(80);
                self.replicas[number].start(&mut self.log, &mut self.out, &mut self.archive, now, patient)?;
            }
            return Ok(());
        }
        self.read_log(number)?;
        self.commit_now_and_then(number);
        self.talk_to_out(number)?;
        if self.replicas[number].process.as_ref().is_some_and(Process::shows_surplus) {
            self.fired.count(Fault::OutSurplus);
            self.replicas[number].give_way();
        }
        self.tick(number);
        Ok(())
    }

    fn read_log(&mut self, number: usize) -> Result<()> {
        let dropped = self.fault(Fault::ConsumerDropped, 10);
        let skip = if self.fault(Fault::ConsumerSkipped, 10) { self.rng.between(1, 3) as usize } else { 0 };
        let again = if self.fault(Fault::ConsumerRepeated, 10) { self.rng.between(1, 30) as usize } else { 0 };
        let count = if self.wild { self.rng.below(60) as usize } else { usize::MAX };
        let (now, log) = (self.now, &self.log);
        let Some(process) = &mut self.replicas[number].process else { return Ok(()) };
        if dropped {
            process.unsubscribe();
        }
        if !process.is_subscribed() && !process.subscribe(log) {
            // What was folded of a log that is gone cannot be folded again.
            self.replicas[number].commit();
            self.replicas[number].crash();
            return Ok(());
        }
        let before = process.folded();
        process.deliver(log, skip, again);
        if !process.fold(count)? {
            process.unsubscribe();
        }
        if process.is_behind() {
            self.replicas[number].crash();
            return Ok(());
        }
        // The newest tick folded says who is active.
        let ticks = LogSubject::Tick.to_subject(&self.cell);
        let folded = process.folded();
        let newest = log.from(before + 1, (folded - before) as usize).filter(|message| message.sequence <= folded && message.subject == ticks).last();
        if let Some((message, tick)) = newest.and_then(|message| Some((message, read_tick(&message.payload)?))) {
            process.saw_tick(Seen { sequence: message.sequence, replica: tick.replica }, now);
        }
        while let Some(check) = process.next_check() {
            let payload = serde_json::to_vec(&check)?;
            let conditions = Conditions { id: Some(format!("check-{}-{}", check.replica, check.position)), ..Conditions::default() };
            let now_ns = BEGIN_NS + now.as_nanos() as i64 + self.broker_offset_ns;
            // Unconditional but for its id, so it cannot be refused.
            let _ = self.log.append(now_ns, &LogSubject::Check.to_subject(&self.cell), &payload, &conditions);
        }
        Ok(())
    }

    fn commit_now_and_then(&mut self, number: usize) {
        if !self.rng.chance(10) || !self.replicas[number].may_commit() {
            return;
        }
        let before = self.fault(Fault::CommitFailedBefore, 50);
        let after = !before && self.fault(Fault::CommitFailedAfter, 50);
        if before || after {
            self.replicas[number].disk.fail_next_write(after);
        }
        self.replicas[number].commit();
    }

    fn talk_to_out(&mut self, number: usize) -> Result<()> {
        let Some(process) = &mut self.replicas[number].process else { return Ok(()) };
        process.ask();
        if self.rng.chance(30) || !self.wild {
            process.look();
            process.ask();
        }
        for _ in 0..process.owed() {
            let lost = self.fault(Fault::OutLost, 20);
            let unanswered = !lost && self.fault(Fault::OutAnswerLost, 20);
            let now_ns = self.broker_ns();
            let Some(process) = &mut self.replicas[number].process else { return Ok(()) };
            process.perform(&mut self.out, now_ns, lost, unanswered);
            if !self.wild || self.rng.chance(80) {
                match process.answer() {
                    Ok(()) => {}
                    Err(Broken::WentBack { .. }) => {
                        self.replicas[number].commit();
                        self.replicas[number].crash();
                        return Ok(());
                    }
                    Err(Broken::Differs { out_seq, .. }) => {
                        self.fired.count(Fault::OutDiffered);
                        self.replicas[number].differs(out_seq, &self.log);
                        return Ok(());
                    }
                    Err(broken @ Broken::Misplaced { .. }) => return Err(broken).context("OUT"),
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, number: usize) {
        let lost = self.fault(Fault::SendLost, 20);
        let unanswered = self.fault(Fault::AckLost, 20);
        let (now, now_ns) = (self.now, self.broker_ns());
        let name = self.replicas[number].name.clone();
        let Some(process) = &mut self.replicas[number].process else { return };
        let Some(claim) = process.tick_due(now) else { return };
        if lost {
            return process.tick_answered(Ok(None), now);
        }
        let tick = Tick { replica: name, second: now.as_secs() as i64 };
        let payload = serde_json::to_vec(&tick).expect("a tick is plain data");
        let subject = LogSubject::Tick.to_subject(&self.cell);
        let conditions = Conditions { last_on_subject: Some(claim.after), ..Conditions::default() };
        let answer = match self.log.append(now_ns, &subject, &payload, &conditions) {
            Ok(ack) => Ok(Some(ack.sequence)),
            Err(_) => {
                let newest = self.log.last_on(&subject);
                Err(newest.and_then(|message| Some(Seen { sequence: message.sequence, replica: read_tick(&message.payload)?.replica })))
            }
        };
        process.tick_answered(if unanswered { Ok(None) } else { answer }, now);
    }

    /// A consumer of OUT outside the system: what it has once read never changes.
    fn watch_out(&mut self) -> Result<()> {
        self.out_read = self.out_read.min(self.out.last());
        for message in self.out.from(self.out_read + 1, usize::MAX) {
            self.out_read = message.sequence;
            if Some(message.sequence) == self.foreign {
                // Nobody of the cell said it.
                continue;
            }
            if let Some(before) = self.seen_out.get(&message.sequence) {
                let shown = (String::from_utf8_lossy(before), String::from_utf8_lossy(&message.payload));
                ensure!(*before == message.payload, "OUT {} was {} and is now {}", message.sequence, shown.0, shown.1);
                continue;
            }
            self.seen_out.insert(message.sequence, message.payload.clone());
            let Ok(event) = serde_json::from_slice::<Value>(&message.payload) else { continue };
            let data = &event["data"];
            if event["type"] == "plimsoll.place.decided.v1" {
                // One that waits is not answered yet: it is sent again, for the log that holds it may be lost.
                if let Some(id) = data["request_id"].as_str().filter(|_| data["outcome"] != "deferred") {
                    self.waiting.remove(id);
                }
                if let Some(lease) = data["lease"]["lease_id"].as_str() {
                    self.leases.push(lease.to_owned());
                }
            }
        }
        Ok(())
    }

    fn calm_down(&mut self) {
        self.wild = false;
        self.silent_until.fill(Duration::ZERO);
        self.hosts.iter_mut().for_each(|host| host.skew_ns = 0);
        self.replicas.iter_mut().for_each(|replica| replica.paused_until = Duration::ZERO);
        for delayed in std::mem::take(&mut self.delayed) {
            self.append_letter(&delayed.letter);
        }
        // A broker's clock that runs behind the log's own time holds everything up until it has caught up.
        self.broker_offset_ns += (self.newest_ns - self.broker_ns()).max(0);
    }

    /// After a quiet time nothing may be left over.
    fn settled(&mut self) -> Result<()> {
        ensure!(self.waiting.is_empty(), "requests without a decision: {:?}", self.waiting.keys());
        let active = self.replicas.iter().filter(|replica| replica.process.as_ref().is_some_and(Process::is_active)).count();
        ensure!(active == 1, "{active} active replicas after a quiet time");
        for number in 0..self.replicas.len() {
            for _ in 0..8 {
                self.read_log(number)?;
                self.talk_to_out(number)?;
            }
            let replica = &self.replicas[number];
            let process = replica.process.as_ref().context("a processor that does not run")?;
            if process.folded() < self.log.last().saturating_sub(40) || !process.all_stands() && process.is_active() {
                bail!(
                    "{} has folded {} of {}, OUT holds {} of {}",
                    replica.name,
                    process.folded(),
                    self.log.last(),
                    self.out.last(),
                    process.out_seq()
                );
            }
            // Whatever OUT shows was made, or adopted.
            ensure!(process.out_seq() == self.out.last(), "OUT ends at {}, {} has made {}", self.out.last(), replica.name, process.out_seq());
        }
        Ok(())
    }
}
