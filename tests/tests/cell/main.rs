//! A cell as an operator runs one, under load, to which the worst is done. Whoever reads the log, OUT and SQL from outside judges it.
#![expect(clippy::disallowed_methods, reason = "harm comes at random moments, and what it costs is measured")]

mod kills;
mod power;
mod tails;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use plimsoll_tests::cell::tenant::{Sent, Tenant};
use plimsoll_tests::cell::witness::{Witness, is_tick, ticks};
use plimsoll_tests::cell::{Cell, Part, REPLICAS};
use plimsoll_tests::pipeline::eventually;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// A cell needs the machine for itself.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
/// A part is kept down until it is told to go on.
const UNTIL_TOLD: Duration = Duration::from_secs(3_600);
/// A late part of a window stays open for this long, ms.
const LATE_PART_MS: u64 = 10_000;
/// After so much calm every window that ends before it has closed, late parts included.
const CALM: Duration = Duration::from_secs(20);

/// A number from the environment.
fn number(name: &str, otherwise: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{name} is a number, not {text:?}")))
}

fn now_ns() -> Result<i64> {
    Ok(i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// The replica that sent the newest tick, and when the broker took it.
fn active(log: &Witness) -> Result<(usize, i64)> {
    let tick = log.newest_kept_on(is_tick).context("no tick was read")?;
    let (_, replica, logged_ns) = ticks(&[tick])?.pop().context("it is a tick")?;
    Ok((REPLICAS.iter().position(|name| *name == replica).context("a stranger ticks")?, logged_ns))
}

/// Lets everything come right and ends the load. Returns what the tenant has sent, and the second before which every window must be whole.
async fn settle(cell: &Cell, log: &Witness, tenant: Tenant) -> Result<(Sent, i64)> {
    cell.both_are_ready().await?;
    let calm_ns = now_ns()?;
    let settled_ns = calm_ns + i64::try_from(CALM.as_nanos())?;
    eventually(async || {
        ensure!(active(log)?.1 > settled_ns, "the log does not tick");
        Ok(())
    })
    .await?;
    let sent = timeout(Duration::from_secs(120), tenant.finish()).await.context("requests remain without an answer")??;
    for replica in 0..REPLICAS.len() {
        // What is missing from a dead life of the agent is asked for, and said to be gone.
        eventually(async || {
            let open = cell.metric(replica, "plimsoll_processor_gaps_open").await?;
            ensure!(open == 0, "{open} gaps are open");
            Ok(())
        })
        .await?;
    }
    cell.keeper(Part::Agent).stop().await?;
    Ok((sent, calm_ns / 1_000_000_000))
}
