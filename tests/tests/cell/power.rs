//! A cell whose broker loses its power, and whose processors find their stores damaged. The broker has a disk of its own: a cut leaves what had
//! reached it, and not what was acknowledged. With stock settings that is little of it, and everything that is gone must come back: from the
//! agents, from the processors' stores, from tenants who ask again. With `sync_interval: always` nothing may be gone.
//!
//! `CUTS=n` cuts under each setting (default 1), and as many damaged stores; `make power` makes ten. `SEED=n` chooses what happens when.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::RawMessageErrorKind;
use async_nats::jetstream::{ErrorCode, stream::Stream};
use nix::sys::signal::Signal;
use plimsoll_tests::cell::acks::Acks;
use plimsoll_tests::cell::damage::{Damage, set_aside};
use plimsoll_tests::cell::disk::Disk;
use plimsoll_tests::cell::judge::{decisions_in_sql, windows_in_sql_agree};
use plimsoll_tests::cell::ledger::Ledger;
use plimsoll_tests::cell::numbering::Numbering;
use plimsoll_tests::cell::tenant::{Sent, Tenant};
use plimsoll_tests::cell::witness::{Message, Witness, hash_of, hashes_agree};
use plimsoll_tests::cell::{Broker, Cell, Fleet, LOG, OUT, Part, REPLICAS, connect};
use plimsoll_tests::oracle::Oracle;
use plimsoll_tests::pipeline::{eventually, nats_server};
use plimsoll_tests::sim::rng::Rng;
use serde_json::json;
use tokio::time::Instant;

use crate::{LATE_PART_MS, ONE_AT_A_TIME, UNTIL_TOLD, now_ns, number, settle};

const FLEET: Fleet = Fleet { hosts: 8, gpus: 8, interval_ms: 1_000 };
/// Between two cuts, ms: the file system writes by itself what is older than 30 s.
const PAUSE_MS: (u64, u64) = (3_000, 45_000);
/// What a killed broker's connections still hold is heard after this long.
const HEARD_OUT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread")]
async fn with_stock_settings_everything_a_power_cut_takes_comes_back() -> Result<()> {
    let taken = cell_that_loses_power("2m").await?;
    ensure!(taken != Some(0), "no cut has taken anything");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_every_message_is_synced_a_power_cut_takes_nothing() -> Result<()> {
    let taken = cell_that_loses_power("always").await?.unwrap_or_default();
    ensure!(taken == 0, "{taken} acknowledged messages are gone");
    Ok(())
}

/// Returns how many acknowledged messages the cuts have taken; absent where the test cannot be made here.
async fn cell_that_loses_power(sync_interval: &str) -> Result<Option<u64>> {
    let _one_at_a_time = ONE_AT_A_TIME.lock().await;
    if nats_server().is_none() {
        eprintln!("skipped: no nats-server (NATS_SERVER, PATH or .tools); `make test` unpacks one");
        return Ok(None);
    }
    let (cuts, seed) = (number("CUTS", 1)?, number("SEED", 1)?);
    let folder = tempfile::tempdir()?;
    let Some(disk) = Disk::if_allowed(folder.path()) else { return Ok(None) };
    eprintln!("SEED={seed} CUTS={cuts}, sync_interval: {sync_interval}");
    let began = Instant::now();
    let result = run(folder.path(), disk, sync_interval, cuts, seed).await;
    if result.is_err() && std::env::var_os("KEEP").is_some() {
        eprintln!("kept: {}", folder.keep().display());
    }
    eprintln!("{:.0} s", began.elapsed().as_secs_f64());
    result.map(Some).with_context(|| format!("SEED={seed} CUTS={cuts} make power"))
}

/// Returns how many acknowledged messages the cuts have taken.
async fn run(folder: &Path, disk: Disk, sync_interval: &str, cuts: u64, seed: u64) -> Result<u64> {
    let broker = Broker { sync_interval: Some(sync_interval), store: &disk.path().join("nats"), servers: 1 };
    let cell = Cell::start(folder, FLEET, broker).await?;
    cell.control(&json!({ "type": "enrol", "hosts": [] })).await?;
    cell.control(&json!({ "type": "settings", "late_part_ms": LATE_PART_MS })).await?;
    let out = Arc::new(Witness::start(&cell.url, OUT, |subject| subject.contains(".out.decision.") || subject.contains(".out.lease.")));
    let tenant = Tenant::start(&cell.url, out.clone(), seed);
    let (log, acks) = (Witness::start(&cell.url, LOG, |_| true), Acks::start(&cell.url, |subject| subject.contains(".log.")));
    let mut stage = Stage { cell, disk, log, out, acks, rng: Rng::new(seed), taken: 0 };
    eventually(async || {
        ensure!(stage.out.newest_kept_on(|_| true).is_some(), "no request was decided");
        Ok(())
    })
    .await?;
    for (number, damage) in (1..=cuts).zip(Damage::ALL.into_iter().cycle()) {
        stage.pause().await;
        stage.cut().await.with_context(|| format!("cut {number}"))?;
        stage.damage(damage).await.with_context(|| format!("after cut {number}: {damage}"))?;
    }
    let (sent, until_s) = settle(&stage.cell, &stage.log, tenant).await?;
    stage.judge(&sent, until_s).await?;
    let Stage { cell, taken, .. } = stage;
    cell.stop().await?;
    Ok(taken)
}

/// The stage, and who looks at it.
struct Stage {
    cell: Cell,
    disk: Disk,
    log: Witness,
    out: Arc<Witness>,
    acks: Acks,
    rng: Rng,
    /// Acknowledged messages that the cuts have taken.
    taken: u64,
}

impl Stage {
    async fn pause(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.rng.between(PAUSE_MS.0, PAUSE_MS.1))).await;
    }

    /// Cuts the power of the broker and starts it again on what its disk holds.
    async fn cut(&mut self) -> Result<()> {
        let broker = self.cell.keeper(Part::Nats(0));
        broker.signal_alive(Signal::SIGSTOP).await?;
        let reached = self.disk.what_has_reached_it()?;
        let life = broker.kill(UNTIL_TOLD).await?;
        ensure!(broker.killed(life).await?, "the broker ended by itself");
        self.disk.go_on_with(&reached).await?;
        tokio::time::sleep(HEARD_OUT).await;
        let heard = self.acks.so_far();
        self.acks.went_back();
        self.log.went_back(false);
        self.out.went_back(true);
        let back = Instant::now();
        self.cell.keeper(Part::Nats(0)).go_on();
        let mut gone = BTreeMap::new();
        for stream in [LOG, OUT] {
            let acknowledged = heard.acknowledged_in(stream);
            let stand = eventually(async || stand(&self.cell.url, stream, &acknowledged).await).await?;
            let taken = acknowledged.len() - stand;
            gone.insert(stream, format!("{taken} of {} acknowledged messages are gone", acknowledged.len()));
            self.taken += taken as u64;
        }
        self.all_is_well().await?;
        eprintln!("power cut: {gone:?}; all is well again after {:.1} s", back.elapsed().as_secs_f64());
        Ok(())
    }

    /// Damages the store of one replica while it is down.
    async fn damage(&mut self, damage: Damage) -> Result<()> {
        let replica = self.rng.below(REPLICAS.len() as u64) as usize;
        let processor = self.cell.keeper(Part::Processor(replica));
        let life = processor.kill(UNTIL_TOLD).await?;
        ensure!(processor.killed(life).await?, "the processor ended by itself");
        let store = &self.cell.states[replica];
        let before = set_aside(store)?;
        let file = damage.harm(store, &mut self.rng)?;
        let back = Instant::now();
        processor.go_on();
        self.all_is_well().await?;
        let file = file.and_then(|file| Some(file.file_name()?.to_string_lossy().into_owned()));
        let aside = set_aside(store)? - before;
        eprintln!(
            "{}: {damage} ({file:?}); {aside} stores set aside, all is well again after {:.1} s",
            REPLICAS[replica],
            back.elapsed().as_secs_f64()
        );
        Ok(())
    }

    /// Both replicas are ready, and a request made from now on is decided.
    async fn all_is_well(&self) -> Result<()> {
        let since_ns = now_ns()?;
        self.cell.both_are_ready().await?;
        eventually(async || {
            let newest = self.out.newest_kept_on(|subject| subject.contains(".out.decision.")).context("no decision")?;
            ensure!(newest.logged_ns > since_ns, "nothing was decided since");
            Ok(())
        })
        .await?;
        self.cell.both_are_ready().await?;
        self.cell.nobody_gave_up()
    }

    async fn judge(&self, sent: &Sent, until_s: i64) -> Result<()> {
        let acks = self.acks.so_far();
        let (log, out) = (self.log.read_again().await?, self.out.read_again().await?);
        let overheard = (acks.stand_in(LOG, &log)?, acks.stand_in(OUT, &out)?);
        let ledger = Ledger::read(&out)?;
        ledger.answers(sent)?;
        eprintln!(
            "OUT {}; {} requests decided ({} placed), {} leases given back; since the last cut {} and {} acknowledgements, all stand",
            out.len(),
            ledger.decisions,
            ledger.placed,
            sent.releases.len(),
            overheard.0,
            overheard.1
        );
        eprintln!("the replicas said the same hash at {} positions", hashes_agree(&log)?);
        let sent = self.everything_sent(&log, &acks);
        let mut numbering = Numbering::read(&sent)?;
        numbering.holes_are_named(&ledger)?;
        eprintln!(
            "frames: {} of {} lives of hosts, {} lost and said to be; {} samples",
            numbering.frames, numbering.lives, numbering.lost, numbering.samples
        );
        ensure!(numbering.lost == 0, "the agent has kept all of it");
        decisions_in_sql(&self.cell, &ledger).await?;

        let mut oracle = Oracle::default();
        sent.iter().try_for_each(|message| oracle.take(&message.subject, &message.payload))?;
        ensure!(oracle.strangers == 0, "{} frames name an inventory that nobody sent", oracle.strangers);
        for (replica, name) in REPLICAS.iter().enumerate() {
            eventually(async || {
                let count = async |what: &str| self.cell.metric(replica, &format!("plimsoll_processor_samples_{what}")).await;
                let (believed, rejected) = (count("folded").await? + count("late").await?, count("rejected").await?);
                ensure!(
                    (believed, rejected) == (oracle.believed(), 0),
                    "{name} has {believed} samples, {} were sent; {rejected} rejected",
                    oracle.believed()
                );
                Ok(())
            })
            .await?;
        }
        windows_in_sql_agree(&self.cell, &oracle, until_s).await
    }

    /// Every message to the log that anybody has seen, in whichever life of the stream: once each, what describes a host before its samples.
    fn everything_sent(&self, log: &[Message], acks: &plimsoll_tests::cell::acks::Overheard) -> Vec<Message> {
        let mut all = BTreeMap::new();
        for message in self.log.kept_from(0).into_iter().chain(log.iter().cloned()) {
            all.insert((message.subject.contains(".sample."), message.hash()), message);
        }
        for (subject, payload) in acks.sent() {
            let message = || Message { sequence: 0, logged_ns: 0, subject: subject.to_owned(), payload: payload.to_vec() };
            all.entry((subject.contains(".sample."), hash_of(subject, payload))).or_insert_with(message);
        }
        all.into_values().collect()
    }
}

/// How many of the acknowledged messages (sequence, hash) stand in a stream: those up to some place.
async fn stand(url: &str, stream: &str, acknowledged: &[(u64, u64)]) -> Result<usize> {
    let jetstream = jetstream::new(connect(url).await?);
    let stream = match jetstream.get_stream(stream).await {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND) => {
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    };
    let (mut same, mut other) = (0, acknowledged.len());
    while same < other {
        let middle = (same + other) / 2;
        let (sequence, hash) = acknowledged[middle];
        if stands(&stream, sequence, hash).await? { same = middle + 1 } else { other = middle }
    }
    Ok(same)
}

async fn stands(stream: &Stream, sequence: u64, hash: u64) -> Result<bool> {
    match stream.get_raw_message(sequence).await {
        Ok(found) => Ok(hash_of(&found.subject, &found.payload) == hash),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}
