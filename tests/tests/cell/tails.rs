//! Two replicas, and one query service that follows whichever lives: the one it follows is killed with SIGKILL and stays down, and whoever
//! asks in SQL sees new windows from the other one soon, all of them, each once, and never fewer than before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use plimsoll_tests::cell::{Broker, Cell, Fleet, LOG, Part, connect};
use plimsoll_tests::oracle::Oracle;
use plimsoll_tests::pipeline::{eventually, nats_server, read_stream};
use plimsoll_tests::windows::{agree, windows_in_sql};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use crate::{ONE_AT_A_TIME, UNTIL_TOLD};

const FLEET: Fleet = Fleet { hosts: 4, gpus: 4, interval_ms: 1_000 };
/// The query service that knows both tails; it begins with the one of the second replica.
const QUERY: usize = 1;
/// How often the replica that is followed is killed.
const KILLS: usize = 3;
/// Another tail is followed within this time: three beats of a second, and what a busy machine adds.
const CHANGE_MAX: Duration = Duration::from_secs(20);
/// A window of 10 s closes within this time of the kill: its length, its lateness, the change.
const NEW_WINDOW_MAX: Duration = Duration::from_secs(45);
const POLL: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn the_replica_that_is_followed_is_killed_and_sql_goes_on_with_the_other_one() -> Result<()> {
    let _one_at_a_time = ONE_AT_A_TIME.lock().await;
    if nats_server().is_none() {
        eprintln!("skipped: no nats-server (NATS_SERVER, PATH or .tools); `make test` unpacks one");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    run(folder.path()).await
}

async fn run(folder: &Path) -> Result<()> {
    let cell = Cell::start(folder, FLEET, Broker { sync_interval: None, store: &folder.join("nats"), servers: 1 }).await?;
    cell.control(&json!({ "type": "enrol", "hosts": [] })).await?;
    let client = eventually(async || cell.postgres(QUERY).await).await?;
    eventually(async || {
        ensure!(shown(&client).await?.windows >= 16, "no window has closed for every GPU");
        Ok(())
    })
    .await?;
    for kill in 0..KILLS {
        let followed = (kill + 1) % 2;
        let (change, window) = kill_the_followed(&cell, &client, followed, kill as i64 + 1).await.with_context(|| format!("kill {}", kill + 1))?;
        eprintln!("kill {}: another tail after {:.1} s, a new window after {:.1} s", kill + 1, change.as_secs_f64(), window.as_secs_f64());
        judge(&cell, &client).await?;
        cell.keeper(Part::Processor(followed)).go_on();
        cell.both_are_ready().await?;
    }
    cell.nobody_gave_up()?;
    cell.stop().await
}

/// What SQL shows at one moment.
struct Shown {
    windows: i64,
    newest_s: i64,
    changes: i64,
}

async fn shown(client: &Client) -> Result<Shown> {
    let sql =
        "SELECT count(*), coalesce(max(date_part('epoch', window_at)::bigint), 0), (SELECT max(tail_changes) FROM system.cells) FROM gpu_windows_10s";
    let row = client.query_one(sql, &[]).await?;
    Ok(Shown { windows: row.try_get(0)?, newest_s: row.try_get(1)?, changes: row.try_get(2)? })
}

/// Kills the replica that is followed, which stays down. Returns after which time another tail was followed, and SQL showed a newer window.
async fn kill_the_followed(cell: &Cell, client: &Client, replica: usize, changes: i64) -> Result<(Duration, Duration)> {
    let before = shown(client).await?;
    ensure!(before.changes == changes - 1, "{} changes of tail, not {}", before.changes, changes - 1);
    cell.kill(&[Part::Processor(replica)], UNTIL_TOLD).await?;
    let began = Instant::now();
    let (mut at_least, mut changed) = (before.windows, None);
    let watching = async {
        loop {
            let now = shown(client).await?;
            ensure!(now.windows >= at_least, "{} windows, and then only {}", at_least, now.windows);
            at_least = now.windows;
            if now.changes == changes {
                changed.get_or_insert_with(|| began.elapsed());
            }
            if now.newest_s > before.newest_s && changed.is_some() {
                return Ok(began.elapsed());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    let new_window = timeout(NEW_WINDOW_MAX, watching).await.with_context(|| format!("no new window after {NEW_WINDOW_MAX:?}"))??;
    let changed = changed.context("another tail is followed")?;
    ensure!(changed <= CHANGE_MAX, "another tail was followed only after {changed:?}");
    Ok((changed, new_window))
}

/// Every window that SQL shows is what the raw frames say, and none is missing before the newest.
async fn judge(cell: &Cell, client: &Client) -> Result<()> {
    // Seen first, so that the log holds at least what it was made from.
    let windows = windows_in_sql(client, "gpu_windows_10s").await?;
    let jetstream = async_nats::jetstream::new(connect(&cell.url).await?);
    let mut oracle = Oracle::default();
    for (sequence, subject, payload) in read_stream(&jetstream, LOG).await? {
        oracle.take(&subject, &payload).with_context(|| format!("message {sequence} on {subject}"))?;
    }
    let agreed = agree("gpu_windows_10s", 10, &windows, &oracle)?;
    eprintln!("{agreed} windows agree with the raw frames");
    Ok(())
}
