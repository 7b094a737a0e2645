//! Whether a run came right, judged from outside: by the log and OUT alone, with a model that shares no code with the fold.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use plimsoll_fold::{Effects, State};
use plimsoll_schemas::id::{LogEpoch, Position};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::record::{Record, decode};
use plimsoll_schemas::row::{Row, Table, WindowRow};
use plimsoll_schemas::time::LogTime;
use serde_json::Value;

use super::replica::{Cause, Replica};
use super::stream::Message;
use super::world::World;
use crate::oracle::Oracle;

const NS_PER_S: i64 = 1_000_000_000;
/// Windows and their late parts are closed this long after their end.
const SETTLED_S: i64 = 150;

/// Judges a run; returns how many windows were compared.
pub fn judge(world: &World) -> Result<usize> {
    out_is_right(world).context("OUT")?;
    nothing_timed_out_early(world).context("time-outs")?;
    let mut windows = 0;
    for replica in &world.replicas {
        let process = replica.process.as_ref().context("a processor that does not run")?;
        let straight = fold_straight(world, replica)?;
        ensure!(
            process.state.hash() == straight.hash(),
            "{}: hash {:016x}, a straight fold has {:016x}",
            replica.name,
            process.state.hash(),
            straight.hash()
        );
        let s = straight.summary();
        ensure!(process.state.summary() == s, "{}: {:?}, a straight fold has {s:?}", replica.name, process.state.summary());
        let accounted = s.samples_folded + s.samples_late + s.samples_rejected + s.samples_duplicate;
        ensure!(s.samples == accounted, "{} samples, {accounted} accounted for", s.samples);
        windows = windows_are_right(world, replica).with_context(|| format!("windows of {}", replica.name))?;
    }
    Ok(windows)
}

/// Dense, each id once, each request with one final decision, decisions dense.
fn out_is_right(world: &World) -> Result<()> {
    let (mut ids, mut decided, mut decisions) = (BTreeSet::new(), BTreeMap::<String, u64>::new(), 0);
    for (index, message) in world.out.all().enumerate() {
        let event: Value = serde_json::from_slice(&message.payload)?;
        ensure!(message.sequence == index as u64 + 1 && event["outseq"] == message.sequence, "{} holds {}", message.sequence, event["outseq"]);
        ensure!(ids.insert(event["id"].to_string()), "{} stands twice", event["id"]);
        if let Some(number) = event["data"]["decision_seq"].as_u64() {
            decisions += 1;
            ensure!(number == decisions, "decision {number} after {}", decisions - 1);
            let id = event["data"]["request_id"].as_str().unwrap_or_default();
            if world.requested.contains(id) && event["data"]["outcome"] != "deferred" {
                *decided.entry(id.to_owned()).or_default() += 1;
            }
        }
    }
    for id in &world.requested {
        ensure!(decided.get(id) == Some(&1), "request {id} has {:?} decisions", decided.get(id));
    }
    Ok(())
}

/// On the live clock (each step of log time counts for at most two seconds) no lease expires before its time.
fn nothing_timed_out_early(world: &World) -> Result<()> {
    let Some(replica) = world.replicas.first() else { return Ok(()) };
    let mut live = BTreeMap::new();
    let (mut clock, mut newest) = (0, i64::MAX);
    for cause in replica.causes() {
        let Cause::Record(position, message, _) = cause else { continue };
        if newest < message.stored_at_ns {
            clock += (message.stored_at_ns - newest).min(2 * NS_PER_S);
        }
        newest = if newest == i64::MAX { message.stored_at_ns } else { newest.max(message.stored_at_ns) };
        live.insert(*position, clock);
    }
    let mut granted: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for message in world.out.all() {
        let event: Value = serde_json::from_slice(&message.payload)?;
        let id = event["id"].as_str().context("id")?;
        let mut parts = id.split('/').skip(1);
        let mut number = || parts.next().context("a position")?.parse::<u64>().context("a number");
        let position = Position { epoch: LogEpoch(number()? as u32), sequence: number()? };
        // What was adopted was caused by a record that is gone.
        let Some(&at) = live.get(&position) else { continue };
        let data = &event["data"];
        if let (Some(lease), "plimsoll.place.decided.v1") = (data["lease"]["lease_id"].as_str(), event["type"].as_str().unwrap_or_default()) {
            granted.insert(lease.to_owned(), (at, data["lease"]["ttl_ms"].as_i64().context("ttl_ms")? * 1_000_000));
        }
        if event["type"] == "plimsoll.lease.changed.v1" && data["cause"] == "expired" {
            let lease = data["lease_id"].as_str().context("lease_id")?;
            let Some(&(since, ttl_ns)) = granted.get(lease) else { continue };
            let age = at - since;
            ensure!(age > ttl_ns, "{lease} expired after {} s of {} s", age / NS_PER_S, ttl_ns / NS_PER_S);
        }
    }
    Ok(())
}

/// One fold of everything that made a replica's state, without a single fault.
fn fold_straight(world: &World, replica: &Replica) -> Result<State> {
    let mut state = State::new(world.cell.clone());
    let mut effects = Effects::default();
    let mut logged_at = LogTime::default();
    for cause in replica.causes() {
        match cause {
            Cause::Record(position, message, hash) => {
                logged_at = LogTime(message.stored_at_ns).max(logged_at);
                let body = decode(&world.cell, &message.subject, &message.payload);
                state.step(&Record { position: *position, logged_at, body }, &mut effects);
                ensure!(state.hash() == *hash, "{} differs from a straight fold first at {position}, {}", replica.name, message.subject);
            }
            Cause::Epoch(new) => state.begin_epoch(new, &mut effects)?,
        }
        effects = Effects::default();
    }
    Ok(state)
}

/// Sums of a window over its parts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    received: i64,
    covered_ms: i64,
    util_percent_ms: i64,
    memory_used_mib_ms: i64,
    energy_mj: i64,
    util_max: Option<i64>,
    power_max: Option<i64>,
}

impl Sums {
    fn add(&mut self, row: &WindowRow) {
        let stats = &row.stats;
        self.received += i64::from(stats.received);
        self.covered_ms += stats.covered_ms;
        self.util_percent_ms += stats.util_percent_ms;
        self.memory_used_mib_ms += stats.memory_used_mib_ms;
        self.energy_mj += stats.energy_mj;
        self.util_max = self.util_max.max(stats.util_percent_max.map(i64::from));
        self.power_max = self.power_max.max(stats.power_mw_max);
    }
}

/// Every window in a store says what the raw frames say.
fn windows_are_right(world: &World, replica: &Replica) -> Result<usize> {
    let store = &replica.disk;
    // By the true time: what is younger may be open still, or have late samples that are.
    let committed_ns = store.last_commit()?.context("a commit")?.logged_at.0 - world.broker_offset_ns;
    let settled_s = committed_ns / NS_PER_S - SETTLED_S;
    let mut oracle = Oracle::default();
    let mut newest = i64::MIN;
    for cause in replica.causes() {
        let Cause::Record(_, Message { stored_at_ns, subject, payload, .. }, _) = cause else { continue };
        newest = newest.max(*stored_at_ns);
        oracle.take_logged(subject, payload, newest)?;
    }
    let end = Position { epoch: LogEpoch(u32::MAX), sequence: u64::MAX };
    let mut uuids = BTreeMap::new();
    for row in store.rows(Table::Devices, Position::default(), end) {
        if let Row::Device(device) = row?.row {
            uuids.insert(device.device_key, device.device_uuid.to_string());
        }
    }
    let mut compared = 0;
    for (table, seconds) in [(Table::GpuWindows10s, 10), (Table::GpuWindows1m, 60)] {
        let mut sums: BTreeMap<(String, i64), Sums> = BTreeMap::new();
        for row in store.rows(table, Position::default(), end) {
            let Row::Window(_, row) = row?.row else { continue };
            let uuid = uuids.get(&row.device_key).context("a window of no device")?;
            sums.entry((uuid.clone(), row.window_at.0 / NS_PER_S)).or_default().add(&row);
        }
        for ((uuid, start), found) in &sums {
            if oracle.is_ambiguous(uuid, seconds, *start) || start + seconds > settled_s {
                continue;
            }
            let expected = oracle.window(uuid, seconds, *start).map_or_else(Sums::default, |window| Sums {
                received: window.received,
                covered_ms: window.covered_ms,
                util_percent_ms: window.util_percent_ms,
                memory_used_mib_ms: window.memory_used_mib_ms,
                energy_mj: window.energy_mj,
                util_max: window.util_percent_max,
                power_max: window.power_mw_max,
            });
            ensure!(
                *found == expected,
                "{uuid} {seconds} s from {start}:\n stored   {found:?}\n raw log  {expected:?}\n refused  {:?}",
                refused(replica)?
            );
            compared += 1;
        }
        for uuid in oracle.gpus() {
            for start in oracle.starts(uuid, seconds) {
                // What is still open, or was not committed yet, stands nowhere.
                if start + seconds <= settled_s && !oracle.is_ambiguous(uuid, seconds, start) {
                    ensure!(sums.contains_key(&(uuid.to_owned(), start)), "{uuid} {seconds} s from {start} is missing");
                }
            }
        }
    }
    Ok(compared)
}

/// What a store says was refused: source and reason, and how often.
fn refused(replica: &Replica) -> Result<BTreeMap<(String, Reason), u64>> {
    let end = Position { epoch: LogEpoch(u32::MAX), sequence: u64::MAX };
    let mut reasons = BTreeMap::new();
    for row in replica.disk.rows(Table::Rejected, Position::default(), end) {
        if let Row::Rejected(row) = row?.row {
            *reasons.entry((format!("{:?}", row.host), row.reason)).or_default() += 1;
        }
    }
    Ok(reasons)
}
