//! SQL over archive and tail: real files, a real Flight stream, the real service, both doors. Values are checked exactly.

mod support;
mod tails;

use std::time::Duration;

use plimsoll_query::clock;
use plimsoll_query::service::Config;
use plimsoll_schemas::out::{DeviceState, LeaseState, Outcome};
use plimsoll_schemas::row::{EpisodeKind, Last, PlacedRow, Row, SampleRow, Table, Tier};
use plimsoll_schemas::sample::{Field, Sample};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};
use serde_json::{Value, json};
use support::rows::{self, GIB, MODEL, at, key, minute, placed, window};
use support::{Cell, PATIENCE, http, seal};

/// A minute that began a while ago, for questions about the last days.
fn recent_s() -> i64 {
    (clock::now_ns() / NS_PER_S - 7_200) / 3_600 * 3_600
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_and_unsealed_rows_are_seen_once_and_stay_so_while_they_are_sealed() {
    let rows: Vec<PlacedRow> = (1..=20).map(|n| minute(n, (n % 4) as u16, n as i64 / 4 * 60, 50)).collect();
    let cell = Cell::with(rows.clone(), 8, |_| ()).await;
    let count = "SELECT count(*), sum(covered_ms), count(DISTINCT window_at) FROM gpu_windows_1m";
    let expected = vec![vec![json!(20), json!(1_200_000), json!(6)]];
    assert_eq!(cell.rows(count).await, expected);

    let newest = cell.archive.newest().await.expect("readable").expect("sealed");
    let second = seal(&cell.archive, Some(&newest), &rows, 14).await;
    cell.server.sealed(second.version, 14);
    let third = seal(&cell.archive, Some(&second), &rows, 20).await;
    cell.server.sealed(third.version, 20);
    cell.server.prune(20);
    while cell.service.tail.manifest().is_none_or(|manifest| manifest.version < third.version) {
        assert_eq!(cell.rows(count).await, expected);
    }
    assert_eq!(cell.rows(count).await, expected);
    assert_eq!(cell.service.tail.health().rows, 0, "sealed rows leave the tail");

    cell.server.add(vec![minute(21, 0, 600, 50)]);
    cell.caught_up().await;
    assert_eq!(cell.rows(count).await, vec![vec![json!(21), json!(1_260_000), json!(7)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_go_on_without_the_processor_and_catch_up_when_it_is_back() {
    let cell = Cell::with((1..=6).map(|n| minute(n, 0, n as i64 * 60, 50)).collect(), 3, |_| ()).await;
    let Cell { folder, archive, server, service } = cell;
    let gone = server.leave().await;
    let disconnected = |tail: &plimsoll_query::tail::Tail| tail.health().connected == 0;
    tokio::time::timeout(PATIENCE, service.tail.until(disconnected)).await.expect("notices");

    let ask = |sql: &'static str| http::post(service.http, "text/plain", "application/json", sql.as_bytes());
    let body: Value = serde_json::from_slice(&ask("SELECT count(*) FROM gpu_windows_1m").await.1).expect("JSON");
    assert_eq!(body["rows"], json!([[6]]));
    assert!(body["freshness_ms"].as_i64().expect("known") > 0, "{body}");
    let (status, ready) = http::get(service.http, "/readyz").await;
    assert_eq!(status, 503, "{ready}");
    assert!(ready.contains(&format!("0 of {} tail streams are connected", Table::ALL.len())), "{ready}");
    let (status, samples) = ask("SELECT * FROM samples").await;
    assert_eq!(status, 503, "{}", String::from_utf8_lossy(&samples));

    let server = gone.back().await;
    server.add(vec![minute(7, 0, 420, 50)]);
    let cell = Cell { folder, archive, server, service };
    cell.caught_up().await;
    assert_eq!(cell.rows("SELECT count(*), count(DISTINCT window_at) FROM gpu_windows_1m").await, vec![vec![json!(7), json!(7)]]);
    assert_eq!(http::get(cell.service.http, "/readyz").await.0, 200);
    assert_eq!(
        cell.rows("SELECT ready, commit_seq, sealed_seq, manifest_version, lag FROM system.cells").await,
        [json!([true, 7, 3, 1, 0]).as_array().expect("row").clone()]
    );
    let (status, metrics) = http::get(cell.service.http, "/metrics").await;
    assert!(status == 200 && metrics.contains("plimsoll_query_statements_total{door=\"http\",outcome=\"ok\"}"), "{metrics}");
}

/// A late part: few samples, of which the last is the newest of the window or not.
fn part(number: u32, percent: i16, last_s: i64) -> Row {
    let mut late = window(Tier::Minute, 0, 60, percent, None);
    late.part = number;
    late.expected = 0;
    late.stats.received = 2;
    late.stats.late = 2;
    late.stats.covered_ms = 2_000;
    late.stats.util_percent_ms = i64::from(percent) * 2_000;
    late.stats.util_sketch = Default::default();
    late.stats.util_sketch.add(percent as u64);
    late.stats.util_sketch.add(percent as u64);
    late.stats.gap_ms_max = i64::from(number) * 100;
    late.stats.last = late.stats.last.map(|last| Last { at: EventTime(last_s * NS_PER_S), ..last });
    late.state = Default::default();
    Row::Window(Tier::Minute, Box::new(late))
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_window_are_added_wherever_they_are() {
    let rows =
        vec![minute(1, 0, 60, 50), minute(1, 1, 60, 70), minute(2, 0, 7_200, 10), placed(5, 0, part(1, 90, 61)), placed(9, 0, part(2, 20, 500))];
    let cell = Cell::with(rows, 5, |_| ()).await;
    let columns = "revision, expected, received, late, covered_ms, util_percent_ms, util_percent_min, util_percent_max, util_percent_last, gap_ms_max, \
                   sketch_quantile(util_sketch, 0.5), sketch_quantile(util_sketch, 1.0), free_ms, host, gpu_index, energy_mj, memory_total_bytes";
    let sql = |gpu: u16, from: &str| {
        format!("SELECT {columns} FROM gpu_windows_1m WHERE device_key = {} AND window_at {from} ORDER BY window_at", key(gpu))
    };
    let merged = json!([
        2,
        60,
        64,
        4,
        64_000,
        50 * 60_000 + 90 * 2_000 + 20 * 2_000,
        20,
        90,
        20,
        200,
        50.0,
        90.0,
        60_000,
        "host-0",
        0,
        300 * 60_000 * 3,
        80 * GIB
    ]);
    let plain = |percent: i64| json!([0, 60, 60, 0, 60_000, percent * 60_000, percent, percent, percent, 0, percent as f64, percent as f64, 60_000]);
    let first = cell.rows(&sql(0, "= '1970-01-01T00:01:00Z'")).await;
    assert_eq!(json!(first), json!([merged]));
    let other = cell.rows(&sql(1, "< '1970-01-02'")).await;
    assert_eq!(json!(other[0][..13]), plain(70));
    let later = cell.rows(&sql(0, "> '1970-01-01T01:00:00Z'")).await;
    assert_eq!((later.len(), json!(later[0][..13])), (1, plain(10)));
    assert_eq!(cell.rows("SELECT count(*), sum(received) FROM gpu_windows_1m").await, vec![vec![json!(3), json!(184)]]);
    assert_eq!(cell.rows("SELECT count(*) FILTER (WHERE final) FROM gpu_windows_1m").await, vec![vec![json!(3)]]);
    assert_eq!(
        cell.rows("SELECT percentile_merge(util_sketch, 0.5), percentile_merge(util_sketch, 0.99) FROM gpu_windows_1m").await,
        vec![vec![json!(50.0), json!(90.0)]]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_versions_the_newest_holds() {
    let rows = vec![
        rows::device(1, 0, 10, None, DeviceState::Ok),
        rows::device(1, 1, 10, None, DeviceState::Ok),
        rows::lease(2, "r1", 20, LeaseState::Active),
        rows::lease_device(2, "r1", 0, 20, None),
        rows::lease(3, "r1", 20, LeaseState::Draining),
        rows::device(6, 0, 10, Some(60), DeviceState::Ok),
        PlacedRow { ordinal: 1, ..rows::device(6, 0, 60, None, DeviceState::Cordoned) },
        rows::lease(7, "r1", 20, LeaseState::Ended),
        rows::lease_device(7, "r1", 0, 20, Some(80)),
    ];
    let cell = Cell::with(rows, 3, |_| ()).await;
    assert_eq!(
        json!(cell.rows("SELECT device_key, state, valid_from, valid_to FROM devices ORDER BY gpu_index, valid_from").await),
        json!([
            [key(0), "ok", "1970-01-01T00:00:10Z", "1970-01-01T00:01:00Z"],
            [key(0), "cordoned", "1970-01-01T00:01:00Z", null],
            [key(1), "ok", "1970-01-01T00:00:10Z", null],
        ])
    );
    assert_eq!(json!(cell.rows("SELECT lease_id, state, end_reason FROM leases").await), json!([["lease-r1", "ended", "released"]]));
    assert_eq!(json!(cell.rows("SELECT state FROM leases WHERE state = 'active'").await), json!([]), "an old version is no answer");
    assert_eq!(json!(cell.rows("SELECT device_key, to_at FROM lease_devices").await), json!([[key(0), "1970-01-01T00:01:20Z"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn masks_of_host_windows_and_versions_of_episodes_are_the_same_sealed_and_unsealed() {
    let rows = vec![
        rows::host_window(1, 60, &[0, 63, 65]),
        rows::episode(2, EpisodeKind::Busy, 10, None, "mean 90 %"),
        rows::episode(3, EpisodeKind::Throttled, 20, None, "sw_power_cap"),
        rows::host_window(5, 120, &[1]),
        rows::episode(6, EpisodeKind::Busy, 10, Some(70), "mean 80 %"),
    ];
    let cell = Cell::with(rows, 3, |_| ()).await;
    let sql =
        "SELECT window_at, gpus_free_min, gpus_alloc_max, free_mask, free_mask_20g, free_mask_40g, final FROM host_windows_1m ORDER BY window_at";
    assert_eq!(
        json!(cell.rows(sql).await),
        json!([
            ["1970-01-01T00:01:00Z", 3, null, [1 | i64::MIN, 2], [1, 0], [0, 0], true],
            ["1970-01-01T00:02:00Z", 1, null, [2, 0], [2, 0], [0, 0], true],
        ])
    );
    let pg = cell.pg().await;
    let masks: Vec<Vec<i64>> =
        pg.query("SELECT free_mask FROM host_windows_1m ORDER BY window_at", &[]).await.expect("answered").iter().map(|row| row.get(0)).collect();
    assert_eq!(masks, [[1 | i64::MIN, 2], [2, 0]]);
    assert_eq!(
        json!(cell.rows("SELECT kind, started_at, ended_at, evidence FROM episodes ORDER BY kind").await),
        json!([["busy", "1970-01-01T00:00:10Z", "1970-01-01T00:01:10Z", "mean 80 %"], ["throttled", "1970-01-01T00:00:20Z", null, "sw_power_cap"],])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_writes_is_run_at_either_door() {
    let cell = Cell::with(vec![minute(1, 0, 60, 50)], 0, |_| ()).await;
    let pg = cell.pg().await;
    let folder = cell.folder.path().display().to_string();
    let refused: &[(&str, &str)] = &[
        ("INSERT INTO hosts VALUES (1)", "25006"),
        ("UPDATE hosts SET host = 'x'", "25006"),
        ("DELETE FROM gpu_windows_1m", "25006"),
        ("DROP TABLE hosts", "25006"),
        ("CREATE TABLE t (a int)", "25006"),
        ("CREATE TABLE t AS SELECT 1", "25006"),
        ("CREATE VIEW v AS SELECT 1", "25006"),
        ("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'", "42601"),
        ("COPY (SELECT 1) TO '/tmp/plimsoll-test.csv'", "25006"),
        ("COPY hosts TO STDOUT", "25006"),
        ("TRUNCATE hosts", "25006"),
        ("EXPLAIN ANALYZE DELETE FROM hosts", "25006"),
        ("WITH x AS (INSERT INTO hosts VALUES (1) RETURNING *) SELECT * FROM x", "0A000"),
        ("SELECT * INTO t FROM hosts", "25006"),
        ("PREPARE p AS SELECT 1", "25006"),
        ("SELECT * FROM '/etc/passwd'", "42P01"),
        ("SELECT * FROM read_csv('/etc/passwd')", "42000"),
        ("SELECT nothing FROM hosts", "42703"),
        ("SELECT * FROM nothing", "42P01"),
        ("SELECT repeat('x', 1000000000)", "42883"),
        ("SELECT nope(1)", "42883"),
        ("SELEC 1", "42601"),
        ("SELECT 1; SELECT 2", "42601"),
    ];
    for (sql, state) in refused {
        let error = pg.simple_query(sql).await.expect_err(sql);
        let error = error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}"));
        assert_eq!(error.code().code(), *state, "{sql}: {}", error.message());
        assert!(!error.message().contains(&folder), "{sql}: {}", error.message());
        let (status, body) = cell.ask(sql).await;
        assert!((400..500).contains(&status), "{sql}: {status} {body}");
        assert!(body["error"]["message"].as_str().is_some_and(|message| message.len() > 5), "{body}");
    }
    for setting in ["SET datafusion.execution.batch_size = 1", "SET nothing = 1", "SET ROLE postgres"] {
        assert!(pg.simple_query(setting).await.is_err(), "{setting}");
        assert_eq!(cell.ask(setting).await.0, 403, "{setting}");
    }
    assert_eq!(cell.rows("SELECT count(*) FROM gpu_windows_1m").await, vec![vec![json!(1)]], "still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_stops_at_its_deadline_and_leaves_the_others_running() {
    let cell = Cell::with(vec![minute(1, 0, 60, 50)], 0, |config| config.deadline_s = 2).await;
    let endless = [
        "SELECT count(*) FROM generate_series(1, 40000) a(x) CROSS JOIN generate_series(1, 40000) b(y) WHERE x + y = -1",
        "SELECT count(*) FROM generate_series(1, 3000000) a(x) JOIN generate_series(1, 3000000) b(y) ON x * y < 0",
        "SELECT count(*) FROM generate_series(1, 100000000000)",
        "SELECT count(*) FROM generate_series(1, 300000) a(x) JOIN generate_series(1, 300000) b(y) ON x % 2 = y % 2 AND x + y < 0",
        "WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT count(*) FROM t",
        "SELECT sum(x + y) FROM generate_series(1, 1000000) a(x), generate_series(1, 1000000) b(y)",
    ];
    for sql in endless {
        let started = clock::instant();
        let long = cell.ask(sql);
        let short = async {
            for _ in 0..5 {
                let started = clock::instant();
                assert_eq!(cell.rows("SELECT count(*) FROM gpu_windows_1m").await, vec![vec![json!(1)]]);
                assert!(started.elapsed() < Duration::from_millis(1_500), "{:?} beside {sql}", started.elapsed());
            }
        };
        let ((status, body), ()) = tokio::join!(long, short);
        assert_eq!((status, &body["error"]["code"]), (408, &json!("deadline")), "{sql}\n{body}");
        assert!(started.elapsed() < Duration::from_millis(3_500), "{:?} {sql}", started.elapsed());
    }
    tokio::time::timeout(Duration::from_secs(3), async {
        while cell.metric("statements_running").await != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("what was stopped does not go on in the dark");

    let pg = cell.pg().await;
    pg.simple_query("SET statement_timeout = '300ms'").await.expect("may be lowered");
    let started = clock::instant();
    let error = pg.query(endless[0], &[]).await.expect_err("stops");
    assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error}");
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    pg.simple_query("SET statement_timeout = 600000").await.expect("taken as the service's own");
    assert_eq!(text(&pg.simple_query("SHOW statement_timeout").await.expect("shown")), ["2000ms"]);

    let cancel = pg.cancel_token();
    let running = pg.simple_query(endless[2]);
    let cancelled = async {
        while cell.metric("statements_running").await == 0 {
            tokio::task::yield_now().await;
        }
        cancel.cancel_query(tokio_postgres::NoTls).await.expect("asks to cancel");
    };
    let started = clock::instant();
    let (answer, ()) = tokio::join!(running, cancelled);
    assert!(answer.is_err() && started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    assert_eq!(text(&pg.simple_query("SELECT 1").await.expect("goes on")), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_memory_and_places_have_limits() {
    let cell = Cell::with(Vec::new(), 0, |config: &mut Config| {
        (config.max_rows, config.memory_mb, config.max_running, config.max_waiting, config.deadline_s) = (1_000, 64, 1, 0, 20);
    })
    .await;
    let many = "SELECT * FROM generate_series(1, 1000000)";
    let (status, body) = cell.ask(many).await;
    assert_eq!((status, &body["truncated"], &body["row_count"]), (200, &json!(true), &json!(1_000)), "{}", body["error"]);
    let pg = cell.pg().await;
    let error = pg.simple_query(many).await.expect_err("refused");
    assert_eq!(error.code().map(|code| code.code()), Some("53400"), "{error}");
    assert_eq!(text(&pg.simple_query("SELECT * FROM generate_series(1, 1000)").await.expect("just fits")).len(), 1_000);

    let hungry = "SELECT count(*) FROM (SELECT array_agg(x) AS a FROM generate_series(1, 30000000) t(x)) WHERE a IS NOT NULL";
    let (status, body) = cell.ask(hungry).await;
    assert_eq!((status, &body["error"]["code"]), (422, &json!("memory")), "{body}");

    let long =
        tokio::spawn(http::post(cell.service.http, "text/plain", "application/json", b"SELECT count(*) FROM generate_series(1, 100000000000)"));
    let runs = async { while cell.metric("statements_running").await != 1 {} };
    tokio::time::timeout(PATIENCE, runs).await.expect("it runs");
    let (status, body) = cell.ask("SELECT 1").await;
    assert_eq!(status, 429, "{body}");
    assert_eq!(body["error"]["message"], "busy: 1 statements are running and 0 are waiting");
    long.abort();
    let free = async { while cell.ask("SELECT 1").await.0 != 200 {} };
    tokio::time::timeout(Duration::from_secs(5), free).await.expect("a client that leaves gives its place back");
    let (status, body) = http::post(cell.service.http, "text/plain", "application/json", &vec![b' '; 400_000]).await;
    assert_eq!(status, 413, "{}", String::from_utf8_lossy(&body));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tail_loses_nothing_says_so_and_goes_on_after_a_seal() {
    let rows: Vec<PlacedRow> = (1..=200).map(|n| minute(n, 0, n as i64 * 60, 50)).collect();
    let cell = Cell::with(rows.clone(), 0, |config| config.tail_rows = 150).await;
    cell.server.add((201..=300).map(|n| minute(n, 0, n as i64 * 60, 50)).collect());
    let full = |tail: &plimsoll_query::tail::Tail| tail.health().reasons.iter().any(|reason| reason.starts_with("the tail is full"));
    tokio::time::timeout(PATIENCE, cell.service.tail.until(full)).await.expect("says that it is full");
    assert_eq!(cell.rows("SELECT count(*) FROM gpu_windows_1m").await, vec![vec![json!(200)]], "older, but whole");

    let all: Vec<PlacedRow> = (1..=300).map(|n| minute(n, 0, n as i64 * 60, 50)).collect();
    let manifest = seal(&cell.archive, None, &all, 200).await;
    cell.adopted(manifest.version).await;
    cell.caught_up().await;
    assert_eq!(cell.rows("SELECT count(*), count(DISTINCT window_at) FROM gpu_windows_1m").await, vec![vec![json!(300), json!(300)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_are_fetched_with_the_devices_that_are_named() {
    let cell = Cell::with(Vec::new(), 0, |_| ()).await;
    let sample = |gpu: u16, at: i64| SampleRow {
        sampled_at: EventTime(at * NS_PER_S),
        device_key: key(gpu),
        host: rows::host(gpu),
        gpu_index: gpu,
        seq: at as u64,
        received_at: LogTime(at * NS_PER_S + 5),
        sample: Sample::default().with(Field::UtilPercent, 42).with(Field::TemperatureMk, 338_650).with(Field::SmActiveBp, 2_500),
        lease_id: None,
    };
    cell.server.samples((0..4).flat_map(|gpu| (1..=10).map(move |at| sample(gpu, at))).collect());
    let columns = "SELECT gpu_index, count(*), max(util_percent), max(temperature_c), max(sm_active_ratio), max(memory_used_bytes) FROM samples";
    let one = cell.rows(&format!("{columns} WHERE device_key = {} GROUP BY 1", key(2))).await;
    assert_eq!(json!(one), json!([[2, 10, 42, 66, 0.25, null]]));
    let two = cell.rows(&format!("{columns} WHERE device_key IN ({}, {}) AND util_percent > 1 GROUP BY 1 ORDER BY 1", key(1), key(3))).await;
    assert_eq!(two.len(), 2);
    assert_eq!(cell.rows("SELECT count(*) FROM samples").await, vec![vec![json!(40)]]);
    let devices: Vec<Option<Vec<i64>>> = cell
        .server
        .asked()
        .into_iter()
        .map(|asked| {
            asked.devices.map(|mut keys| {
                keys.sort_unstable();
                keys
            })
        })
        .collect();
    let mut pair = vec![key(1).0, key(3).0];
    pair.sort_unstable();
    assert_eq!(devices, [Some(vec![key(2).0]), Some(pair), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_clients_get_types_parameters_and_their_usual_questions() {
    let rows = vec![minute(1, 0, 60, 50), minute(2, 1, 60, 70), rows::request(3, "r1", 100, 1), rows::decision(4, 1, "r1", 101, Outcome::Placed, 12)];
    let cell = Cell::with(rows, 2, |_| ()).await;
    let pg = cell.pg().await;
    let sql = "SELECT window_at, device_key, gpu_index, revision, host, util_sketch, pool, final, covered_ms::float8 / 1000 AS s \
               FROM gpu_windows_1m WHERE device_key = $1 AND window_at >= $2 AND util_percent_max > $3";
    let from = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let found = pg.query(sql, &[&key(1).0, &from, &60i16]).await.expect("answered");
    assert_eq!(found.len(), 1);
    let row = &found[0];
    assert_eq!(row.get::<_, std::time::SystemTime>(0), std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(60));
    assert_eq!((row.get::<_, i64>(1), row.get::<_, i16>(2), row.get::<_, i32>(3)), (key(1).0, 1, 0));
    assert_eq!((row.get::<_, &str>(4), row.get::<_, Option<&str>>(6), row.get::<_, f64>(8)), ("host-0", None, 60.0));
    assert_eq!(row.get::<_, &[u8]>(5), window(Tier::Minute, 1, 60, 70, None).stats.util_sketch.to_bytes());
    assert!(row.get::<_, Option<bool>>(7).is_some());
    let decided =
        pg.query_one("SELECT decision_seq, score, outcome, state_seq FROM placement_decisions WHERE request_id = $1", &[&"r1"]).await.expect("one");
    assert_eq!((decided.get::<_, i64>(0), decided.get::<_, f64>(1), decided.get::<_, &str>(2), decided.get::<_, i64>(3)), (1, 0.25, "placed", 4));

    let prepared = pg.prepare("SELECT count(*) FROM gpu_windows_1m").await.expect("prepared");
    assert_eq!(pg.query_one(&prepared, &[]).await.expect("runs").get::<_, i64>(0), 2);
    cell.server.add(vec![minute(5, 0, 120, 50)]);
    cell.caught_up().await;
    assert_eq!(pg.query_one(&prepared, &[]).await.expect("runs").get::<_, i64>(0), 3, "a prepared statement sees what is there when it runs");

    for statement in [
        "SET application_name = 'x'",
        "SET client_encoding TO 'UTF8'",
        "SET TIME ZONE 'UTC'",
        "SET extra_float_digits = 3",
        "SET search_path = public",
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "DISCARD ALL",
        "SET DateStyle = 'ISO'",
    ] {
        pg.simple_query(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    assert_eq!(text(&pg.simple_query("SHOW server_encoding").await.expect("shown")), ["UTF8"]);
    let psql_tables = "SELECT n.nspname, c.relname, CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END FROM pg_catalog.pg_class c \
                       LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r','p','v','m','S','f','') \
                       AND n.nspname <> 'pg_catalog' AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema' \
                       AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1,2";
    let tables = text(&pg.simple_query(psql_tables).await.expect("\\d"));
    assert!(tables.iter().any(|name| name == "public"), "{tables:?}");
    let described = text(
        &pg.simple_query("SELECT comment FROM system.columns WHERE table_name = 'gpu_windows_1h' AND column_name = 'energy_mj'")
            .await
            .expect("described"),
    );
    assert_eq!(described, ["Energy used, mJ; mean W = energy_mj / covered_ms."]);
    assert!(!pg.simple_query("EXPLAIN ANALYZE SELECT count(*) FROM gpu_windows_1m").await.expect("explained").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_gives_json_csv_and_arrow_and_takes_parameters() {
    let cell = Cell::with(vec![minute(1, 0, 60, 50)], 1, |_| ()).await;
    let sql = "SELECT window_at, device_key, host, pool, util_percent_ms::float8 / covered_ms AS mean, util_percent_max FROM gpu_windows_1m";
    let (status, body) = http::post(cell.service.http, "text/plain", "text/csv", sql.as_bytes()).await;
    let expected = format!("window_at,device_key,host,pool,mean,util_percent_max\n1970-01-01T00:01:00Z,{},host-0,,50.0,50\n", key(0));
    assert_eq!((status, String::from_utf8(body).expect("utf-8")), (200, expected));

    let request = json!({ "sql": format!("{sql} WHERE device_key = $1 AND host = $2"), "params": [key(0).0, "host-0"], "max_rows": 5 });
    let (status, body) = http::post(cell.service.http, "application/json", "application/json", request.to_string().as_bytes()).await;
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &body["rows"]), (200, &json!([["1970-01-01T00:01:00Z", key(0).0, "host-0", null, 50.0, 50]])), "{body}");
    assert_eq!(body["columns"][1], json!({ "name": "device_key", "type": "bigint" }));
    assert_eq!(body["truncated"], false);

    let (status, body) = http::post(cell.service.http, "text/plain", "application/vnd.apache.arrow.stream", sql.as_bytes()).await;
    let batches: Vec<_> = datafusion::arrow::ipc::reader::StreamReader::try_new(body.as_slice(), None).expect("arrow").collect();
    assert_eq!((status, batches.len()), (200, 1));
    let (status, body) = http::post(cell.service.http, "application/json", "application/json", b"{\"sq\":1}").await;
    assert_eq!(status, 400, "{}", String::from_utf8_lossy(&body));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_outside_the_range_are_not_read_and_damaged_ones_are_named_without_the_folder() {
    let day = 86_400;
    let rows: Vec<PlacedRow> = (0..5).map(|n| minute(n + 1, 0, n as i64 * day, 50)).collect();
    let cell = Cell::with(rows, 5, |_| ()).await;
    cell.rows("SELECT count(*) FROM gpu_windows_1m WHERE window_at >= '1970-01-04' AND window_at < '1970-01-05'").await;
    let pruned =
        cell.rows("SELECT files_pruned, outcome, rows FROM system.queries WHERE text LIKE '%1970-01-04%' AND text NOT LIKE '%system%'").await;
    assert_eq!(json!(pruned), json!([[4, "ok", 1]]));

    let manifest = cell.service.tail.manifest().expect("loaded");
    let damaged = &manifest.files[0].path;
    std::fs::write(cell.folder.path().join(damaged), vec![7u8; manifest.files[0].bytes as usize]).expect("damaged");
    std::fs::remove_file(cell.folder.path().join(&manifest.files[1].path)).expect("removed");
    for range in ["< '1970-01-02'", "BETWEEN '1970-01-02' AND '1970-01-02T12:00:00'"] {
        let (status, body) = cell.ask(&format!("SELECT sum(covered_ms) FROM gpu_windows_1m WHERE window_at {range}")).await;
        assert!(status >= 400, "{body}");
        assert!(!body.to_string().contains(cell.folder.path().to_str().expect("utf-8")), "{body}");
    }
    assert_eq!(cell.rows("SELECT sum(covered_ms) FROM gpu_windows_1m WHERE window_at > '1970-01-03'").await, vec![vec![json!(120_000)]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_one_table() {
    let cell = Cell::with(vec![], 1, |_| ()).await;
    let rows = cell
        .rows("SELECT what, max_age_s, max_count FROM system.retention WHERE what IN ('log', 'gpu_windows_10s', 'checkpoints') ORDER BY what")
        .await;
    assert_eq!(json!(rows), json!([["checkpoints", null, 3], ["gpu_windows_10s", 172_800, null], ["log", 259_200, null]]));
    let unlimited = cell.rows("SELECT what FROM system.retention WHERE coalesce(max_age_s, max_bytes, max_count) IS NULL").await;
    assert_eq!(json!(unlimited), json!([["all other tables"]]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_capacity_questions_of_this_version_are_answered() {
    let t = recent_s();
    let hour = |sequence: u64, gpu: u16, percent: i16, lease: Option<&str>| {
        placed(sequence, u32::from(gpu), Row::Window(Tier::Hour, Box::new(window(Tier::Hour, gpu, t, percent, lease))))
    };
    let mut rows = vec![rows::host_row(1, 0, t)];
    rows.extend((0..4).map(|gpu| rows::device(2, gpu, t, None, DeviceState::Ok)));
    rows.extend([hour(3, 0, 2, Some("lease-r1")), hour(3, 1, 95, Some("lease-r2")), hour(3, 2, 10, Some("lease-r3")), hour(3, 3, 0, None)]);
    rows.extend(
        (0..4)
            .flat_map(|gpu| (0..60).map(move |n| minute(4, gpu, t + n * 60, 40)))
            .enumerate()
            .map(|(n, row)| PlacedRow { ordinal: n as u32, ..row }),
    );
    for n in 1..=3u64 {
        let id = format!("r{n}");
        rows.push(rows::request(10 + n, &id, t, 1));
        rows.push(rows::decision(20 + n, n, &id, t + 1, Outcome::Placed, 1_000 * n as i64));
        rows.push(rows::lease(20 + n, &id, t + 1, LeaseState::Active));
    }
    rows.push(rows::request(30, "r9", t, 64));
    rows.push(rows::decision(31, 4, "r9", t + 2, Outcome::Rejected, 0));
    rows.push(rows::decision(32, 5, "r9", t + 3, Outcome::Deferred, 0));
    rows.push(rows::rejected(33, t));
    rows.push(rows::event(34, t));
    let cell = Cell::with(rows, 15, |_| ()).await;
    let ask = async |name: &str| {
        let path = format!("sql/{name}.sql");
        let sql = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        json!(cell.rows(&sql).await)
    };
    let day = format!("{}T00:00:00Z", &EventTime(t * NS_PER_S).rfc3339()[..10]);
    let start = EventTime(t * NS_PER_S).rfc3339().replace(".000000000", "");
    assert_eq!(ask("q01_allocation_per_day").await, json!([[day, MODEL, 2.0, 1.0, 1.0, 0.0, 75.0]]));
    assert_eq!(ask("q02_idle_tenants").await, json!([["acme", 3.0, 1.0, 33.333333333333336, null]]));
    assert_eq!(ask("q07_queue_wait").await, json!([[1, "acme", 3, 2.0, 3.0, 3.0]]));
    let reason = plimsoll_schemas::reason::Reason::ALL[0].code();
    assert_eq!(ask("q08_why_rejected").await, json!([[start, reason, 2, 1, 1.0]]));
    let used = (10 * GIB + 95 * (GIB >> 4)) as f64;
    let peak = ask("q17_memory_over_ask").await;
    assert_eq!((&peak[0][0], &peak[0][1], &peak[0][3]), (&json!("train"), &json!(3), &json!(40.0)), "{peak}");
    assert!((peak[0][2].as_f64().expect("a peak") - used / GIB as f64).abs() < 0.5, "{peak}");
    assert_eq!(ask("q18_utilisation_per_day").await, json!([[day, MODEL, 2.0, 95.0]]));
    assert_eq!(ask("q19_throttled").await, json!([["host-0", 1, MODEL, 60.0, 0.0, 60]]));
    assert_eq!(
        ask("q25_can_i_trust").await,
        json!([[start, 4, 100.0, 0, 0, EventTime((t + 59 * 60) * NS_PER_S).rfc3339().replace(".000000000", "")]])
    );
    assert_eq!(json!(cell.rows("SELECT field, reason, raw_value, source FROM rejected").await), json!([["util_percent", reason, "101", "agent"]]));
    assert_eq!(json!(cell.rows("SELECT kind, code, severity, stream_seq FROM device_events").await), json!([["xid", 79, "fatal", 34]]));
    assert_eq!(
        json!(cell.rows("SELECT time_bucket('300.000s', window_at) AS time, count(*) FROM gpu_windows_1m GROUP BY 1 ORDER BY 1 LIMIT 1").await),
        json!([[start, 20]])
    );
    assert_eq!(json!(cell.rows("SELECT time_bucket(interval '1 hour', window_at), percentile_merge(util_sketch, 0.95), sketch_quantile(sketch_merge(util_sketch), 0.5) FROM gpu_windows_1m GROUP BY 1").await), json!([[start, 40.0, 40.0]]));
    assert_eq!(cell.service.tail.snapshot().expect("ready").sealed(), at(15));
}

#[tokio::test]
async fn an_address_that_others_could_reach_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = support::config(folder.path().to_str().expect("utf-8"), "http://127.0.0.1:1");
    config.pg = "0.0.0.0:0".parse().expect("an address");
    let error = plimsoll_query::service::Service::start(&config).await.expect_err("refused").to_string();
    assert_eq!(error, "--pg 0.0.0.0:0: there is no authentication yet, so only loopback addresses such as 127.0.0.1 are served");
}

/// The cells of the rows of a simple query, row by row.
fn text(messages: &[tokio_postgres::SimpleQueryMessage]) -> Vec<String> {
    let mut cells = Vec::new();
    for message in messages {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            cells.extend((0..row.len()).map(|cell| row.get(cell).unwrap_or("").to_owned()));
        }
    }
    cells
}

impl Cell {
    /// The value of one gauge.
    async fn metric(&self, name: &str) -> i64 {
        let (_, text) = http::get(self.service.http, "/metrics").await;
        let line =
            text.lines().find_map(|line| line.strip_prefix(&format!("plimsoll_query_{name} "))).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        line.trim().parse().expect("a number")
    }
}
