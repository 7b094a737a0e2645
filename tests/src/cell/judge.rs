//! What SQL must show at the end, beside each replica.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::ledger::Ledger;
use super::{Cell, REPLICAS};
use crate::oracle::Oracle;
use crate::pipeline::eventually;
use crate::windows::{agree_until, windows_in_sql};

/// SQL shows the decisions and leases that stand in OUT, each once.
pub async fn decisions_in_sql(cell: &Cell, ledger: &Ledger) -> Result<()> {
    for (replica, name) in REPLICAS.iter().enumerate() {
        eventually(async || {
            let client = cell.postgres(replica).await?;
            let rows = client.query("SELECT decision_seq::bigint, request_id FROM placement_decisions ORDER BY 1", &[]).await?;
            let decisions: Vec<(u64, String)> = rows.iter().map(|row| (row.get::<_, i64>(0) as u64, row.get(1))).collect();
            let expected = ledger.placements.iter().map(|(number, request)| (*number, request.clone()));
            ensure!(decisions.iter().cloned().eq(expected), "{name}: SQL shows {} decisions, OUT {}", decisions.len(), ledger.placements.len());
            let rows = client.query("SELECT lease_id, state FROM leases", &[]).await?;
            let ended: Vec<String> = rows.iter().filter(|row| row.get::<_, &str>(1) == "ended").map(|row| row.get(0)).collect();
            let once = ended.len() == rows.len() && ended.iter().cloned().collect::<BTreeSet<_>>() == ledger.ended;
            ensure!(
                once && ended.len() == ledger.ended.len(),
                "{name}: SQL shows {} leases, {} ended, OUT {}",
                rows.len(),
                ended.len(),
                ledger.ended.len()
            );
            eprintln!("{name}: {} decisions and {} leases in SQL, as in OUT", decisions.len(), ended.len());
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Every window that ends by `until_s` is what the raw frames say.
pub async fn windows_in_sql_agree(cell: &Cell, oracle: &Oracle, until_s: i64) -> Result<()> {
    for (replica, name) in REPLICAS.iter().enumerate() {
        for (table, seconds) in [("gpu_windows_10s", 10), ("gpu_windows_1m", 60)] {
            let agreed = eventually(async || {
                let client = cell.postgres(replica).await?;
                agree_until(table, seconds, &windows_in_sql(&client, table).await?, oracle, until_s)
            })
            .await?;
            ensure!(agreed > 0 || seconds > 10, "no window of {table} was compared");
            eprintln!("{name}: {agreed} windows of {table} agree with the raw frames");
        }
    }
    Ok(())
}
