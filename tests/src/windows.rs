//! Windows as SQL shows them, judged against the oracle.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tokio_postgres::Row;

use crate::oracle::{Oracle, Window};

const COLUMNS: &str = "received::bigint, covered_ms, util_percent_ms, util_percent_min::bigint, util_percent_max::bigint, util_percent_last::bigint, \
    sketch_quantile(util_sketch, 0.95), memory_used_mib_ms, memory_used_bytes_min, memory_used_bytes_max, memory_used_bytes_last, w.memory_total_bytes, \
    sketch_quantile(memory_sketch, 0.95), energy_mj, power_mw_max, temperature_c_max::bigint";

/// A window in SQL, with what SQL makes of it.
#[derive(Debug)]
pub struct SqlWindow {
    window: Window,
    util_p95: Option<f64>,
    memory_p95: Option<f64>,
    mean: Option<f64>,
}

/// (UUID, start in seconds) → the window that SQL shows.
pub async fn windows_in_sql(client: &tokio_postgres::Client, table: &str) -> Result<BTreeMap<(String, i64), SqlWindow>> {
    let sql = format!(
        "SELECT d.device_uuid, w.window_at, {COLUMNS}, util_percent_ms::double / nullif(covered_ms, 0) \
         FROM {table} w JOIN devices d ON d.device_key = w.device_key WHERE d.valid_to IS NULL ORDER BY 1, 2"
    );
    let mut windows = BTreeMap::new();
    for row in client.query(&sql, &[]).await.with_context(|| sql.clone())? {
        let start = row.try_get::<_, SystemTime>(1)?.duration_since(UNIX_EPOCH)?.as_secs() as i64;
        let twice = windows.insert((row.try_get(0)?, start), read_window(&row)?);
        ensure!(twice.is_none(), "window {start} of {} stands twice in {table}", row.get::<_, String>(0));
    }
    Ok(windows)
}

fn read_window(row: &Row) -> Result<SqlWindow> {
    let int = |at: usize| row.try_get::<_, Option<i64>>(at + 2);
    let sum = |at: usize| int(at).map(Option::unwrap_or_default);
    let (util_p95, memory_p95) = (row.try_get::<_, Option<f64>>(8)?, row.try_get::<_, Option<f64>>(14)?);
    let window = Window {
        received: sum(0)?,
        covered_ms: sum(1)?,
        util_percent_ms: sum(2)?,
        util_percent_min: int(3)?,
        util_percent_max: int(4)?,
        util_percent_last: int(5)?,
        util_p95: None,
        memory_used_mib_ms: sum(7)?,
        memory_used_bytes_min: int(8)?,
        memory_used_bytes_max: int(9)?,
        memory_used_bytes_last: int(10)?,
        memory_total_bytes: int(11)?,
        memory_mib_p95: None,
        energy_mj: sum(13)?,
        power_mw_max: int(14)?,
        temperature_c_max: int(15)?,
    };
    Ok(SqlWindow { window, util_p95, memory_p95, mean: row.try_get(18)? })
}

/// Judges a table against the oracle up to each GPU's newest window; returns how many windows agreed.
pub fn agree(table: &str, window_s: i64, sql: &BTreeMap<(String, i64), SqlWindow>, oracle: &Oracle) -> Result<usize> {
    for ((uuid, start), found) in sql {
        let expected = oracle.window(uuid, window_s, *start).with_context(|| format!("{table}: {uuid} {start} is in no raw frame"))?;
        same(table, uuid, *start, found, expected)?;
    }
    for uuid in oracle.gpus() {
        let Some(newest) = sql.keys().filter(|(of, _)| of == uuid).map(|(_, start)| *start).max() else { continue };
        for start in oracle.starts(uuid, window_s).into_iter().filter(|start| *start <= newest) {
            ensure!(sql.contains_key(&(uuid.to_owned(), start)), "{table}: {uuid} {start} is missing");
        }
    }
    Ok(sql.len())
}

/// Judges every window that ends by `until_s`: all that the log speaks of must stand, and where the log says nothing the window is empty.
pub fn agree_until(table: &str, window_s: i64, sql: &BTreeMap<(String, i64), SqlWindow>, oracle: &Oracle, until_s: i64) -> Result<usize> {
    let mut agreed = 0;
    for ((uuid, start), found) in sql.iter().filter(|((_, start), _)| start + window_s <= until_s) {
        same(table, uuid, *start, found, oracle.window(uuid, window_s, *start).unwrap_or_default())?;
        agreed += 1;
    }
    for uuid in oracle.gpus() {
        for start in oracle.starts(uuid, window_s).into_iter().filter(|start| start + window_s <= until_s) {
            ensure!(sql.contains_key(&(uuid.to_owned(), start)), "{table}: {uuid} {start} is missing");
        }
    }
    Ok(agreed)
}

fn same(table: &str, uuid: &str, start: i64, found: &SqlWindow, mut expected: Window) -> Result<()> {
    let (util_p95, memory_p95) = (expected.util_p95.take(), expected.memory_mib_p95.take());
    ensure!(found.window == expected, "{table} {uuid} {start}:\n sql    {:?}\n oracle {expected:?}", found.window);
    // Percent is exact; above 127 a bin's midpoint errs by at most 1/128.
    ensure!(found.util_p95 == util_p95.map(|v| v as f64), "{table} {uuid} {start}: p95 {:?}, raw {util_p95:?}", found.util_p95);
    let (Some(found_p95), Some(raw_p95)) = (found.memory_p95, memory_p95) else { return Ok(()) };
    ensure!((found_p95 - raw_p95 as f64).abs() <= raw_p95 as f64 / 128.0, "{table} {uuid} {start}: memory p95 {found_p95}, raw {raw_p95}");
    if expected.covered_ms > 0 {
        let mean = expected.util_percent_ms as f64 / expected.covered_ms as f64;
        ensure!(found.mean == Some(mean), "{table} {uuid} {start}: mean {:?}, raw {mean}", found.mean);
    }
    Ok(())
}
