//! A cell under load whose processors, broker and agent are killed at random moments, and whose active processor is paused until the other one
//! takes over. Whoever reads the log and OUT from outside must not be able to tell.
//!
//! The same on three servers of the broker, and on a machine that loses its power: then everything goes on with what had reached the disk.
//!
//! `KILLS=n` kills of each part (default 3) and `SWAPS=n` pauses (default 3); `make kills` takes 200 and 100. `SEED=n` chooses what happens when.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use plimsoll_tests::cell::acks::{Acks, Overheard};
use plimsoll_tests::cell::disk::Disk;
use plimsoll_tests::cell::judge::{decisions_in_sql, windows_in_sql_agree};
use plimsoll_tests::cell::keeper::BACK_OFF;
use plimsoll_tests::cell::ledger::Ledger;
use plimsoll_tests::cell::moments::{Act, Stalls, acts};
use plimsoll_tests::cell::numbering::Numbering;
use plimsoll_tests::cell::tenant::{Sent, Tenant};
use plimsoll_tests::cell::witness::{Message, Witness, hashes_agree, is_tick, ticks};
use plimsoll_tests::cell::{Broker, Cell, Fleet, LOG, OUT, Part, REPLICAS};
use plimsoll_tests::oracle::Oracle;
use plimsoll_tests::pipeline::{eventually, nats_server};
use plimsoll_tests::sim::rng::Rng;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{LATE_PART_MS, ONE_AT_A_TIME, UNTIL_TOLD, active, now_ns, number, settle};

const FLEET: Fleet = Fleet { hosts: 32, gpus: 8, interval_ms: 1_000 };
/// Longest pause between two acts, ms: long enough for a killed part to do real work again, short enough to be killed while it starts.
const PAUSE_MS_MAX: u64 = 4_500;
/// So many of 100 kills keep the part down …
const DOWN_PERCENT: u64 = 30;
/// … for at most this long, ms: longer than it takes the standby to take over, and other parts are killed meanwhile.
const DOWN_MS_MAX: u64 = 6_000;
/// A paused processor stays paused for at most this long after the other one has taken over, ms.
const PAUSED_MS_MAX: u64 = 2_500;
/// The other processor takes over within this time …
const TAKE_OVER_MAX: Duration = Duration::from_secs(5);
/// … unless the machine itself stood still for as long as this.
const STALL: Duration = Duration::from_secs(1);
/// Nobody takes the role from one that ticks: a standby waits for two seconds of silence. A little less, for the broker's stamp.
const SILENCE_NS_MIN: i64 = 1_900_000_000;
/// Longest time for one act, the pause before it included.
const ACT_MAX: Duration = Duration::from_secs(20);
/// Shortest load: a window of 10 s lies in it, wherever it begins.
const LOAD_MIN: Duration = Duration::from_secs(25);
/// Shown now and then.
const PROGRESS_EVERY: usize = 50;

/// The stage, and who looks at it.
struct Stage {
    cell: Cell,
    servers: usize,
    disk: Option<Disk>,
    log: Witness,
    out: Arc<Witness>,
    acks: Acks,
    stalls: Stalls,
    rng: Rng,
    take_overs: Vec<Duration>,
    killed: BTreeMap<String, u64>,
}

/// What came of it.
struct Outcome {
    acks: Overheard,
    log: Vec<Message>,
    out: Vec<Message>,
    sent: Sent,
    /// Windows that end before this must be whole, s.
    until_s: i64,
}

/// What the cell runs on.
enum Machine {
    /// One that keeps its power, with so many servers of the broker.
    Steady { servers: usize },
    /// One that loses it: everything stands on one disk, and the broker syncs each message.
    LosesPower(Disk),
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_paused_at_random_moments_a_cell_loses_doubles_and_forgets_nothing() -> Result<()> {
    killed_and_paused(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_paused_on_a_cluster_of_three_servers_a_cell_loses_doubles_and_forgets_nothing() -> Result<()> {
    killed_and_paused(3).await
}

async fn killed_and_paused(servers: usize) -> Result<()> {
    let (kills, swaps, seed) = (number("KILLS", 3)?, number("SWAPS", 3)?, number("SEED", 1)?);
    eprintln!("{kills} kills each of processor, broker ({servers} servers) and agent, {swaps} pauses of the active processor");
    let folder = tempfile::tempdir()?;
    let acts = acts(kills, swaps, &mut Rng::new(seed));
    let result = cell_to_which_the_worst_is_done(folder, Machine::Steady { servers }, &acts, seed).await;
    result.with_context(|| format!("SEED={seed} KILLS={kills} SWAPS={swaps} make kills"))
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_machine_that_loses_its_power_a_cell_loses_doubles_and_forgets_nothing() -> Result<()> {
    let (cuts, seed) = (number("CUTS", 1)?, number("SEED", 1)?);
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::if_allowed(folder.path()) else { return Ok(()) };
    eprintln!("{cuts} power cuts of the machine");
    let acts = vec![Act::CutPower; usize::try_from(cuts)?];
    let result = cell_to_which_the_worst_is_done(folder, Machine::LosesPower(disk), &acts, seed).await;
    result.with_context(|| format!("SEED={seed} CUTS={cuts} make power"))
}

async fn cell_to_which_the_worst_is_done(folder: tempfile::TempDir, machine: Machine, acts: &[Act], seed: u64) -> Result<()> {
    let _one_at_a_time = ONE_AT_A_TIME.lock().await;
    if nats_server().is_none() {
        eprintln!("skipped: no nats-server (NATS_SERVER, PATH or .tools); `make test` unpacks one");
        return Ok(());
    }
    let began = Instant::now();
    let result = run(folder.path(), machine, acts, seed).await;
    if result.is_err() && std::env::var_os("KEEP").is_some() {
        eprintln!("kept: {}", folder.keep().display());
    }
    eprintln!("SEED={seed}: {:.0} s", began.elapsed().as_secs_f64());
    result
}

async fn run(folder: &Path, machine: Machine, acts: &[Act], seed: u64) -> Result<()> {
    let (servers, disk, sync_interval) = match machine {
        Machine::Steady { servers } => (servers, None, None),
        Machine::LosesPower(disk) => (1, Some(disk), Some("always")),
    };
    let folder = disk.as_ref().map_or(folder, Disk::path);
    let cell = Cell::start(folder, FLEET, Broker { sync_interval, store: &folder.join("nats"), servers }).await?;
    if let Some(disk) = &disk {
        disk.sync()?;
    }
    cell.control(&json!({ "type": "enrol", "hosts": [] })).await?;
    cell.control(&json!({ "type": "settings", "late_part_ms": LATE_PART_MS })).await?;
    let out = Arc::new(Witness::start(&cell.url, OUT, |subject| subject.contains(".out.decision.") || subject.contains(".out.lease.")));
    let tenant = Tenant::start(&cell.url, out.clone(), seed);
    let (log, acks) = (Witness::start(&cell.url, LOG, is_tick), Acks::start(&cell.url, |_| false));
    let (rng, take_overs, killed) = (Rng::new(seed), Vec::new(), BTreeMap::new());
    let mut stage = Stage { cell, servers, disk, log, out, acks, stalls: Stalls::watch(), rng, take_overs, killed };

    let patience = Duration::from_secs(60) + ACT_MAX * u32::try_from(acts.len())?;
    timeout(patience, stage.play(acts)).await.with_context(|| format!("not through after {patience:?}"))??;
    let outcome = stage.calm_down(tenant).await?;
    stage.judge(&outcome).await?;
    let Stage { cell, disk, .. } = stage;
    cell.stop().await?;
    drop(disk);
    Ok(())
}

impl Stage {
    async fn play(&mut self, acts: &[Act]) -> Result<()> {
        let began = Instant::now();
        eventually(async || {
            ensure!(self.out.newest_kept_on(|_| true).is_some(), "no request was decided");
            Ok(())
        })
        .await?;
        for (act, done) in acts.iter().zip(1..) {
            tokio::time::sleep(Duration::from_millis(self.rng.between(200, PAUSE_MS_MAX))).await;
            match act {
                Act::Swap => self.swap().await,
                Act::CutPower => self.cut_power().await,
                Act::KillActive | Act::KillStandby | Act::KillBoth | Act::KillNats | Act::KillAgent => {
                    let server = self.rng.below(self.servers as u64) as usize;
                    self.kill(act.kills(active(&self.log)?.0, server)).await
                }
            }
            .with_context(|| format!("act {done}: {act}"))?;
            self.cell.nobody_gave_up().with_context(|| format!("after act {done}: {act}"))?;
            if done % PROGRESS_EVERY == 0 {
                let seconds = began.elapsed().as_secs();
                eprintln!("{seconds} s: {done} of {} acts, the log holds {}, OUT {}", acts.len(), self.log.len(), self.out.len());
            }
        }
        // However few the acts, whole windows lie in the load.
        tokio::time::sleep_until(began + LOAD_MIN).await;
        Ok(())
    }

    async fn kill(&mut self, parts: Vec<Part>) -> Result<()> {
        for &part in &parts {
            *self.killed.entry(self.cell.keeper(part).name().to_owned()).or_default() += 1;
        }
        let down = if self.rng.chance(DOWN_PERCENT) { Duration::from_millis(self.rng.below(DOWN_MS_MAX)) } else { BACK_OFF };
        self.cell.kill(&parts, down).await
    }

    /// Everything stops at one moment, and goes on with what had reached the disk by then.
    async fn cut_power(&mut self) -> Result<()> {
        let disk = self.disk.as_ref().context("a machine that loses its power")?;
        self.cell.both_are_ready().await?;
        let parts = Act::CutPower.kills(0, 0);
        for &part in &parts {
            *self.killed.entry(self.cell.keeper(part).name().to_owned()).or_default() += 1;
            self.cell.keeper(part).signal_alive(Signal::SIGSTOP).await?;
        }
        let reached = disk.what_has_reached_it()?;
        self.cell.kill(&parts, UNTIL_TOLD).await?;
        disk.go_on_with(&reached).await?;
        let back = Instant::now();
        parts.iter().for_each(|&part| self.cell.keeper(part).go_on());
        self.cell.both_are_ready().await?;
        eprintln!("power cut; both replicas are ready again after {:.1} s", back.elapsed().as_secs_f64());
        Ok(())
    }

    /// Pauses the active replica until the other one has taken over, and a while longer.
    async fn swap(&mut self) -> Result<()> {
        self.cell.both_are_ready().await?;
        eventually(async || {
            let age_ns = now_ns()? - active(&self.log)?.1;
            ensure!(age_ns < 1_100_000_000, "the newest tick is {age_ns} ns old");
            Ok(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(self.rng.below(1_000))).await;
        let (paused, _) = active(&self.log)?;
        let (began, paused_ns) = (Instant::now(), now_ns()?);
        self.cell.keeper(Part::Processor(paused)).signal_alive(Signal::SIGSTOP).await?;
        let taken_ns = eventually(async || {
            let (now, logged_ns) = active(&self.log)?;
            ensure!(now != paused && logged_ns > paused_ns, "{} has not taken over", REPLICAS[1 - paused]);
            Ok(logged_ns)
        })
        .await?;
        let took = Duration::from_nanos(u64::try_from(taken_ns - paused_ns)?);
        let stall = self.stalls.longest_since(began);
        if took >= TAKE_OVER_MAX {
            eprintln!("a take-over needed {took:?}; the longest standstill of this machine meanwhile was {stall:?}");
        }
        ensure!(took < TAKE_OVER_MAX || stall >= STALL, "a take-over needed {took:?}, and this machine did not stand still");
        self.take_overs.push(took);
        tokio::time::sleep(Duration::from_millis(self.rng.below(PAUSED_MS_MAX))).await;
        self.cell.keeper(Part::Processor(paused)).signal_alive(Signal::SIGCONT).await?;
        Ok(())
    }

    /// Lets everything settle, ends the load, and reads everything again.
    async fn calm_down(&self, tenant: Tenant) -> Result<Outcome> {
        let (sent, until_s) = settle(&self.cell, &self.log, tenant).await?;
        let acks = self.acks.so_far();
        Ok(Outcome { acks, log: self.log.read_again().await?, out: self.out.read_again().await?, sent, until_s })
    }

    async fn judge(&self, outcome: &Outcome) -> Result<()> {
        let Outcome { acks, log, out, sent, until_s } = outcome;
        let overheard = (acks.stand_in(LOG, log)?, acks.stand_in(OUT, out)?);
        let ledger = Ledger::read(out)?;
        ledger.answers(sent)?;
        let mut numbering = Numbering::read(log)?;
        numbering.holes_are_named(&ledger)?;
        ensure!(ledger.log_lost == 0, "{} messages are gone from the log", ledger.log_lost);
        eprintln!("LOG {} messages, OUT {}; acknowledgements overheard: {} and {}, all stand", log.len(), out.len(), overheard.0, overheard.1);
        eprintln!(
            "requests: {} asked, {} decided ({} placed), {} leases given back, {} renewals, {} messages sent; {} leases expired",
            sent.decisions.len(),
            ledger.decisions,
            ledger.placed,
            sent.releases.len(),
            sent.renewals,
            sent.messages,
            ledger.expired
        );
        eprintln!(
            "frames: {} of {} lives of hosts, {} stand again, {} lost and said to be; {} samples, {} of them again",
            numbering.frames, numbering.lives, numbering.frames_again, numbering.lost, numbering.samples, numbering.samples_again
        );
        self.roles(log)?;
        eprintln!("the replicas said the same hash at {} positions", hashes_agree(log)?);
        self.killed()?;
        decisions_in_sql(&self.cell, &ledger).await?;
        self.windows(log, &numbering, *until_s).await
    }

    /// Nobody took the role from a replica that ticked.
    fn roles(&self, log: &[Message]) -> Result<()> {
        let ticks = ticks(log)?;
        let changes: Vec<_> = ticks.windows(2).filter(|pair| pair[0].1 != pair[1].1).collect();
        for pair in &changes {
            let silence_ns = pair[1].2 - pair[0].2;
            ensure!(silence_ns >= SILENCE_NS_MIN, "{:?} took over {silence_ns} ns after {:?}", pair[1], pair[0]);
        }
        let mut took = self.take_overs.clone();
        took.sort_unstable();
        let (half, last) = (took.get(took.len() / 2).copied().unwrap_or_default(), took.last().copied().unwrap_or_default());
        eprintln!(
            "{} ticks, {} changes of the active replica; {} pauses, taken over after {half:?} (p50), {last:?} (max)",
            ticks.len(),
            changes.len(),
            took.len()
        );
        ensure!(changes.len() >= took.len(), "{} changes in the log for {} take-overs", changes.len(), took.len());
        Ok(())
    }

    /// The kills really happened.
    fn killed(&self) -> Result<()> {
        for keeper in self.cell.keepers() {
            let killed = keeper.ends().iter().filter(|end| end.killed).count() as u64;
            let expected = self.killed.get(keeper.name()).copied().unwrap_or(0);
            ensure!(killed == expected, "{} was killed {expected} times and died of it {killed} times", keeper.name());
        }
        self.cell.nobody_gave_up()?;
        eprintln!("killed: {:?}; nobody ended by itself", self.killed);
        Ok(())
    }

    /// Every sample of the log was counted once, and every window is what the log says.
    async fn windows(&self, log: &[Message], numbering: &Numbering, until_s: i64) -> Result<()> {
        let mut oracle = Oracle::default();
        let mut logged_ns = 0;
        for message in log {
            logged_ns = logged_ns.max(message.logged_ns);
            oracle.take_logged(&message.subject, &message.payload, logged_ns).with_context(|| format!("LOG {}", message.sequence))?;
        }
        ensure!(oracle.strangers == 0, "{} frames name an inventory that nobody sent", oracle.strangers);
        for (replica, name) in REPLICAS.iter().enumerate() {
            eventually(async || {
                let count = async |what: &str| self.cell.metric(replica, &format!("plimsoll_processor_samples_{what}")).await;
                let (folded, late) = (count("folded").await?, count("late").await?);
                let (rejected, again) = (count("rejected").await?, count("duplicate").await?);
                let found = (folded + late, rejected, again, folded + late + rejected + again);
                let expected = (oracle.believed(), 0, numbering.samples_again, numbering.samples);
                ensure!(found == expected, "{name} counts (believed, rejected, duplicate, all) = {found:?}, the log holds {expected:?}");
                eprintln!("{name}: {folded} samples folded, {late} late, {rejected} rejected, {again} duplicates");
                Ok(())
            })
            .await?;
        }
        windows_in_sql_agree(&self.cell, &oracle, until_s).await
    }
}
