//! The pipeline from outside: real processes, real broker, real clients.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use plimsoll_tests::oracle::Oracle;
use plimsoll_tests::pipeline::{Up, eventually, nats_server};
use plimsoll_tests::windows::{agree, windows_in_sql};
use plimsoll_tests::wire::Frame;
use tokio_postgres::Row;

const LOG: &str = "PLIMSOLL_local_LOG";
const OUT: &str = "PLIMSOLL_local_OUT";

/// Without a broker none of this can run: say so and pass.
macro_rules! need_broker {
    () => {
        if nats_server().is_none() {
            eprintln!("skipped: no nats-server (NATS_SERVER, PATH or .tools); `make test` unpacks one");
            return Ok(());
        }
    };
}

/// Every host window has exactly the slots free whose GPUs were free for its whole minute; returns how many agreed.
async fn host_windows_agree(client: &tokio_postgres::Client) -> Result<usize> {
    let hosts = client.query("SELECT host, date_part('epoch', window_at)::bigint, gpus_total, free_mask FROM host_windows_1m", &[]).await?;
    // Asked for later, so that no window of a GPU is missing.
    let sql = "SELECT w.host, date_part('epoch', w.window_at)::bigint, d.slot FROM gpu_windows_1m w JOIN devices d ON d.device_key = w.device_key \
               WHERE d.valid_to IS NULL AND w.free_ms >= 60000";
    let mut free: BTreeMap<(String, i64), i64> = BTreeMap::new();
    for row in client.query(sql, &[]).await? {
        *free.entry((row.try_get(0)?, row.try_get(1)?)).or_default() |= 1i64 << row.try_get::<_, i16>(2)?;
    }
    for row in &hosts {
        let (key, total, mask): ((String, i64), i16, Vec<i64>) = ((row.try_get(0)?, row.try_get(1)?), row.try_get(2)?, row.try_get(3)?);
        let expected = free.get(&key).copied().unwrap_or(0);
        ensure!((total, mask.as_slice()) == (4, &[expected][..]), "{key:?}: {total} GPUs, free {mask:?}, by their windows {expected}");
    }
    Ok(hosts.len())
}

async fn oracle_of(up: &Up) -> Result<Oracle> {
    let mut oracle = Oracle::default();
    for (sequence, subject, payload) in up.stream(LOG).await? {
        oracle.take(&subject, &payload).with_context(|| format!("message {sequence} on {subject}"))?;
    }
    Ok(oracle)
}

async fn count(client: &tokio_postgres::Client, table: &str) -> Result<i64> {
    Ok(client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.with_context(|| table.to_owned())?.try_get(0)?)
}

/// OUT must be dense and free of repetitions, and so must the decisions in it.
async fn out_is_dense(up: &Up) -> Result<usize> {
    let messages = up.stream(OUT).await?;
    let (mut ids, mut decisions) = (std::collections::BTreeSet::new(), Vec::new());
    for (index, (sequence, subject, payload)) in messages.iter().enumerate() {
        let event: serde_json::Value = serde_json::from_slice(payload).with_context(|| format!("{sequence} on {subject}"))?;
        ensure!(*sequence == index as u64 + 1 && event["outseq"] == *sequence, "OUT {sequence} holds outseq {}", event["outseq"]);
        ensure!(ids.insert(event["id"].to_string()), "{} stands twice in OUT", event["id"]);
        decisions.extend(event["data"]["decision_seq"].as_u64());
    }
    ensure!(decisions.iter().copied().eq(1..=decisions.len() as u64), "decisions are not dense: {decisions:?}");
    Ok(messages.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_in_sql_equal_those_recomputed_from_the_raw_frames_before_and_after_sealing() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "3", "--gpus", "4"]).await?;
    let client = up.postgres().await?;
    eventually(async || {
        ensure!(count(&client, "gpu_windows_1m").await? >= 12, "no minute has closed for every GPU");
        Ok(())
    })
    .await?;
    let tables = [("gpu_windows_10s", 10), ("gpu_windows_1m", 60)];
    let mut before = BTreeMap::new();
    for (table, seconds) in tables {
        let sql = windows_in_sql(&client, table).await?;
        let agreed = agree(table, seconds, &sql, &oracle_of(&up).await?)?;
        eprintln!("{table}: {agreed} windows agree with the raw frames");
        before.insert(table, agreed);
    }
    let minutes = host_windows_agree(&client).await?;
    ensure!(minutes >= 3, "{minutes} host windows for three hosts");
    eventually(async || {
        let skewed = count(&client, "hosts WHERE valid_to IS NULL AND clock_skew_ms <= 100").await?;
        let episodes = count(&client, "episodes").await?;
        ensure!(skewed == 3 && episodes > 0, "the clocks of {skewed} hosts are known, {episodes} episodes");
        Ok(())
    })
    .await?;
    out_is_dense(&up).await?;
    up.stop().await?;

    let up = Up::start(folder.path(), &["--hosts", "3", "--gpus", "4"]).await?;
    let client = up.postgres().await?;
    let oracle = oracle_of(&up).await?;
    for (table, seconds) in tables {
        let agreed = agree(table, seconds, &windows_in_sql(&client, table).await?, &oracle)?;
        eprintln!("{table}: {agreed} windows agree after sealing and a restart");
        ensure!(agreed >= before[table], "{table} fell from {} to {agreed}", before[table]);
    }
    let agreed = host_windows_agree(&client).await?;
    ensure!(agreed >= minutes, "host windows fell from {minutes} to {agreed}");
    out_is_dense(&up).await?;
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_any_part_loses_no_window_and_repeats_no_output() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "2", "--gpus", "2"]).await?;
    for part in ["processor", "query", "agent", "nats", "processor"] {
        let windows = count(&up.postgres().await?, "gpu_windows_10s").await?;
        let pid = up.kill_part(part).await?;
        eprintln!("killed {part}, it runs again as {pid}");
        eventually(async || {
            let now = count(&up.postgres().await?, "gpu_windows_10s").await?;
            ensure!(now > windows, "{windows} windows before {part} was killed, {now} after");
            Ok(())
        })
        .await?;
    }
    let client = up.postgres().await?;
    let oracle = oracle_of(&up).await?;
    let agreed = agree("gpu_windows_10s", 10, &windows_in_sql(&client, "gpu_windows_10s").await?, &oracle)?;
    eprintln!("{agreed} windows agree with the log after five kills; {} frames stood twice in the log", oracle.duplicates);
    ensure!(oracle.strangers == 0, "{} frames name an inventory nobody sent", oracle.strangers);
    eprintln!("OUT holds {} outputs, dense", out_is_dense(&up).await?);
    up.stop().await
}

/// (UUID, start in seconds) → (expected, received), as SQL shows it.
async fn coverage(client: &tokio_postgres::Client) -> Result<BTreeMap<(String, i64), (i64, i64)>> {
    let sql = "SELECT d.device_uuid, w.window_at, w.expected::bigint, w.received::bigint \
               FROM gpu_windows_10s w JOIN devices d ON d.device_key = w.device_key WHERE d.valid_to IS NULL";
    let read = |row: &Row| {
        let start = row.try_get::<_, SystemTime>(1)?.duration_since(UNIX_EPOCH)?.as_secs() as i64;
        anyhow::Ok(((row.try_get(0)?, start), (row.try_get(2)?, row.try_get(3)?)))
    };
    client.query(sql, &[]).await?.iter().map(read).collect()
}

/// How many frames of each agent's life stand in the log.
async fn frames_by_epoch(up: &Up) -> Result<BTreeMap<u64, u64>> {
    let mut epochs = BTreeMap::new();
    for (_, subject, payload) in up.stream(LOG).await? {
        if subject.split('.').nth(3) == Some("sample") {
            *epochs.entry(Frame::read(&payload)?.epoch).or_default() += 1;
        }
    }
    Ok(epochs)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_had_not_published_is_expected_and_not_received() -> Result<()> {
    need_broker!();
    const HOSTS: i64 = 2;
    const GPUS: i64 = 2;
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "2", "--gpus", "2"]).await?;
    let before_s = eventually(async || {
        let sql = coverage(&up.postgres().await?).await?;
        ensure!(sql.len() >= 8, "no whole window has closed for every GPU");
        sql.into_keys().map(|(_, start)| start).max().context("a window")
    })
    .await?;
    // Nothing is started again while the broker is gone, so what the agent reads stays in its memory, and dies with it.
    up.signal(Signal::SIGSTOP)?;
    up.signal_part("nats", Signal::SIGKILL)?;
    eventually(async || {
        let waiting = up.metric("agent", "plimsoll_agent_buffer_records").await?;
        ensure!(waiting >= 12.0, "only {waiting} records wait in the agent");
        Ok(())
    })
    .await?;
    let ticks = up.metric("agent", "plimsoll_agent_ticks_total").await? as u64;
    up.signal_part("agent", Signal::SIGKILL)?;
    up.signal(Signal::SIGCONT)?;

    let client = eventually(async || up.postgres().await).await?;
    let sql = eventually(async || {
        let sql = coverage(&client).await?;
        let epochs = frames_by_epoch(&up).await?;
        ensure!(epochs.len() == 2, "no frame of the agent's second life: {epochs:?}");
        let after = || sql.iter().filter(|((_, start), _)| *start > before_s);
        let short_s =
            after().filter(|(_, (expected, received))| received < expected).map(|((_, start), _)| *start).min().context("no short window")?;
        let whole = after().filter(|((_, start), (expected, received))| *start > short_s && received >= expected).count();
        ensure!(whole >= 4, "no whole window since the kill for every GPU");
        Ok(sql)
    })
    .await?;
    let published = frames_by_epoch(&up).await?.into_values().next().context("frames of the first life")?;
    let lost = i64::try_from(ticks.checked_sub(published).context("more frames in the log than ticks were read")?)?;
    ensure!(lost >= 10, "{ticks} ticks were read and {published} published: nothing was lost with the agent");

    let oracle = oracle_of(&up).await?;
    let (mut missing, mut short) = (0, 0);
    for ((uuid, start), (expected, received)) in &sql {
        let raw = oracle.window(uuid, 10, *start).map_or(0, |window| window.received);
        ensure!(*received == raw, "{uuid} {start}: SQL counts {received} samples, the log holds {raw}");
        if *start > before_s && received < expected {
            missing += expected - received;
            short += 1;
        }
    }
    eprintln!("{lost} frames died with the agent: {short} windows lack {missing} samples, as many as the log");
    // The second life samples in a rhythm of its own, which may win one tick on the old one.
    let least = (lost - HOSTS) * GPUS;
    ensure!(missing >= least, "the windows lack {missing} samples, at least {least} died with the agent");
    for uuid in oracle.gpus() {
        let starts: Vec<i64> = sql.keys().filter(|(of, _)| of == uuid).map(|(_, start)| *start).collect();
        ensure!(starts.windows(2).all(|pair| pair[1] - pair[0] == 10), "a window of {uuid} is missing: {starts:?}");
    }
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_loses_is_asked_for_comes_again_and_every_window_is_whole() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "2", "--gpus", "2"]).await?;
    eventually(async || {
        ensure!(count(&up.postgres().await?, "gpu_windows_10s").await? >= 4, "no window has closed for every GPU");
        Ok(())
    })
    .await?;
    // A processor that is dead, and stays dead for a while, has not read what the broker then loses.
    up.signal(Signal::SIGSTOP)?;
    up.signal_part("processor", Signal::SIGKILL)?;
    let unread = up.stream(LOG).await?.last().context("a log")?.0;
    let log = async_nats::jetstream::new(up.nats().await?).get_stream(LOG).await?;
    let is_frame = |subject: &str| subject.split('.').nth(3) == Some("sample");
    let lost: Vec<(u64, String, Vec<u8>)> = eventually(async || {
        let fresh = up.stream(LOG).await?.into_iter().filter(|(sequence, subject, _)| *sequence > unread && is_frame(subject)).collect::<Vec<_>>();
        ensure!(fresh.len() >= 16, "only {} frames since the processor died", fresh.len());
        Ok(fresh[4..12].to_vec())
    })
    .await?;
    for (sequence, ..) in &lost {
        ensure!(log.delete_message(*sequence).await?, "{sequence} was not deleted");
    }
    up.signal(Signal::SIGCONT)?;

    let client = eventually(async || up.postgres().await).await?;
    let sql = "SELECT class, state, CAST(sum(to_seq - from_seq + 1) AS BIGINT) FROM gaps GROUP BY 1, 2 ORDER BY 1, 2";
    let all = |class: &str, state: &str| (class.to_owned(), state.to_owned(), lost.len() as i64);
    eventually(async || {
        let rows = client.query(sql, &[]).await?;
        let gaps: Vec<(String, String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        ensure!(gaps == [all("log", "loss"), all("sample", "repaired")], "{} frames were lost, SQL says {gaps:?}", lost.len());
        Ok(())
    })
    .await?;
    // Late parts of windows close after a minute.
    let agreed = eventually(async || {
        let mut oracle = oracle_of(&up).await?;
        let again = oracle.duplicates;
        for (_, subject, payload) in &lost {
            oracle.take(subject, payload)?;
        }
        ensure!(oracle.duplicates == again + lost.len(), "some of what was lost does not stand in the log again");
        agree("gpu_windows_10s", 10, &windows_in_sql(&client, "gpu_windows_10s").await?, &oracle)
    })
    .await?;
    let late: i64 = client.query_one("SELECT CAST(sum(late) AS BIGINT) FROM gpu_windows_10s", &[]).await?.try_get(0)?;
    eprintln!("{} frames were lost and came again: {agreed} windows agree with what the agent sent, {late} samples of them came late", lost.len());
    out_is_dense(&up).await?;
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_or_hangs_while_the_processor_starts_uses_up_none_of_its_restarts() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "1", "--gpus", "2", "--no-demo"]).await?;
    let (mut killed, log) = (0, folder.path().join("logs/processor.log"));
    for _ in 0..2 {
        let broker = up.pid("nats")?;
        up.signal_part("nats", Signal::SIGKILL)?;
        up.kill_part("processor").await?;
        killed += 1;
        eventually(async || {
            ensure!(up.pid("nats")? != broker, "the broker was not started again");
            up.metric("processor", "plimsoll_processor_active").await.map(|_| ())
        })
        .await?;
    }
    // One that hangs takes connections and says nothing.
    up.signal_part("nats", Signal::SIGSTOP)?;
    let said = std::fs::read_to_string(&log)?.matches("waits for the broker").count();
    up.kill_part("processor").await?;
    killed += 1;
    eventually(async || {
        ensure!(std::fs::read_to_string(&log)?.matches("waits for the broker").count() > said, "it does not wait for the broker");
        Ok(())
    })
    .await?;
    up.signal_part("nats", Signal::SIGCONT)?;
    let windows = count(&eventually(async || up.postgres().await).await?, "gpu_windows_10s").await?;
    eventually(async || {
        ensure!(count(&up.postgres().await?, "gpu_windows_10s").await? > windows, "no window has closed since");
        Ok(())
    })
    .await?;
    let ends = up.events().iter().filter(|event| event["event"] == "exited" && event["part"] == "processor").count();
    ensure!(ends == killed, "the processor was killed {killed} times and ended {ends} times");
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_subject_is_named_and_harms_nobody() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "1", "--gpus", "2"]).await?;
    let nats = up.nats().await?;
    let jetstream = async_nats::jetstream::new(nats.clone());
    let before = count(&up.postgres().await?, "rejected").await?;
    let subjects = ["sample.evil", "inventory.evil", "event.evil", "request.evil", "control", "tick", "check", "nonsense", "sample.evil.twice"];
    for subject in subjects {
        for payload in [&b""[..], b"{", b"\xff\xff\xff\xff", b"[1,2,3]", &[0x08; 70_000], br#"{"type":"place","request_id":"x"}"#] {
            jetstream.publish(format!("plimsoll.local.log.{subject}"), payload.to_vec().into()).await?.await?;
        }
    }
    let client = up.postgres().await?;
    let expected = before + subjects.len() as i64;
    eventually(async || {
        let now = count(&client, "rejected").await?;
        ensure!(now >= expected, "{now} rows in rejected, {expected} expected");
        Ok(())
    })
    .await?;
    let reasons = client.query("SELECT DISTINCT reason FROM rejected ORDER BY 1", &[]).await?;
    eprintln!("reasons: {:?}", reasons.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>());

    let mut out = nats.subscribe("plimsoll.local.out.>").await?;
    for body in [
        r#"{"type":"place","request_id":"","bundles":[]}"#,
        r#"{"type":"place","request_id":"a","bundles":[{"count":0}]}"#,
        r#"{"type":"place","request_id":"b","bundles":[{"count":4000000000,"vram_bytes":18446744073709551615}]}"#,
        r#"{"type":"release","request_id":"c","lease_id":"nobody's"}"#,
        r#"{"type":"distribute","request_id":"d","items":18446744073709551615,"strategy":"capacity","weights":{"GPU-x":-1}}"#,
    ] {
        jetstream.publish("plimsoll.local.log.request.tester", body.into()).await?.await?;
        let answer = tokio::time::timeout(Duration::from_secs(20), futures::StreamExt::next(&mut out)).await.with_context(|| body.to_owned())?;
        let answer = answer.context("the subscription ended")?;
        let event: serde_json::Value = serde_json::from_slice(&answer.payload)?;
        ensure!(!event["data"]["reason"].is_null() || event["data"]["cause"].is_string(), "{body} was answered {event}");
    }
    let windows = count(&client, "gpu_windows_10s").await?;
    eventually(async || {
        ensure!(count(&client, "gpu_windows_10s").await? > windows, "no window closed after the garbage");
        Ok(())
    })
    .await?;
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_cannot_write_and_a_query_without_end_is_stopped() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "1", "--gpus", "2"]).await?;
    let client = up.postgres().await?;
    for sql in [
        "CREATE TABLE t (a int)",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "INSERT INTO devices SELECT * FROM devices",
        "DELETE FROM devices",
        "UPDATE devices SET host = 'x'",
        "DROP TABLE devices",
        "COPY devices TO '/tmp/devices.csv'",
        "SET datafusion.execution.batch_size = 1",
        "SELECT * FROM '/etc/passwd'",
    ] {
        let error = client.simple_query(sql).await.err().with_context(|| format!("{sql} was not refused"))?;
        ensure!(error.as_db_error().is_some(), "{sql}: {error}");
    }
    client.simple_query("SET statement_timeout = '2s'").await?;
    let endless = "SELECT count(*) FROM generate_series(1, 100000) a(x) CROSS JOIN generate_series(1, 100000) b(y) WHERE (a.x * b.y) % 7 = 3";
    let error = client.simple_query(endless).await.err().context("a cross join of 10^10 rows came to an end")?;
    let state = error.as_db_error().context("an error of the server")?.code().code().to_owned();
    ensure!(state == "57014", "stopped with {state}: {error}");
    let other = up.postgres().await?;
    ensure!(count(&other, "devices").await? >= 2, "the service does not answer any more");
    up.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_is_a_cloud_event_that_passes_its_schema() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "2", "--gpus", "4"]).await?;
    let nats = up.nats().await?;
    let mut decisions = nats.subscribe("plimsoll.local.out.decision.tester").await?;
    // The GPUs may still warm up.
    let request = r#"{"type":"place","request_id":"first","bundles":[{"count":1,"vram_bytes":1073741824}],"max_wait_ms":30000}"#;
    async_nats::jetstream::new(nats.clone()).publish("plimsoll.local.log.request.tester", request.into()).await?.await?;
    let event = loop {
        let message = tokio::time::timeout(Duration::from_secs(30), futures::StreamExt::next(&mut decisions)).await?.context("a decision")?;
        let event: serde_json::Value = serde_json::from_slice(&message.payload)?;
        ensure!(event["specversion"] == "1.0" && event["type"] == "plimsoll.place.decided.v1", "{event}");
        if event["data"]["outcome"] != "deferred" {
            break event;
        }
    };
    ensure!(event["data"]["outcome"] == "placed", "{event}");
    explained(&up, &event["data"]).await?;
    let schemas = std::path::Path::new("../schemas/json");
    let mut checked = 0;
    for (_, _, payload) in up.stream(OUT).await? {
        let event: serde_json::Value = serde_json::from_slice(&payload)?;
        let kind = event["type"].as_str().context("type")?.trim_start_matches("plimsoll.");
        let path = schemas.join(format!("{kind}.schema.json"));
        let schema = serde_json::from_slice(&std::fs::read(&path).with_context(|| path.display().to_string())?)?;
        jsonschema::validate(&schema, &event).map_err(|error| anyhow::anyhow!("{kind}: {error}\n{event:#}"))?;
        checked += 1;
    }
    eprintln!("{checked} events of OUT pass their schemas");
    up.stop().await
}

/// `plimsoll` beside a running `up`.
fn command(up: &Up, arguments: &[&str]) -> std::process::Command {
    let mut command = std::process::Command::new(plimsoll_tests::pipeline::binaries().join("plimsoll"));
    command.args(arguments).arg("--data-dir").arg(&up.data_dir);
    command
}

/// Runs it; its exit code, and what it said on stdout and stderr.
fn plimsoll(up: &Up, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = command(up, arguments).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_waits_for_it_and_a_dry_run_leaves_no_trace() -> Result<()> {
    need_broker!();
    let folder = tempfile::tempdir()?;
    let up = Up::start(folder.path(), &["--hosts", "1", "--gpus", "3"]).await?;
    let json = |arguments: &[&str]| {
        let (code, stdout, stderr) = plimsoll(&up, &[arguments, &["-o", "json"]].concat())?;
        let said: serde_json::Value = serde_json::from_str(&stdout).with_context(|| format!("{arguments:?}: {stdout}{stderr}"))?;
        Ok::<_, anyhow::Error>((code, said))
    };
    let decisions = async || up.stream(OUT).await.map(|all| all.iter().filter(|(_, subject, _)| subject.contains("out.decision")).count());
    let release =
        |said: &serde_json::Value| plimsoll(&up, &["release", said["lease"]["lease_id"].as_str().context("a lease")?, "--tenant", "default"]);
    // The demonstration holds one of the three.
    let none = eventually(async || {
        let (code, said) = json(&["place", "--dry-run", "--gpus", "3"])?;
        ensure!(code == Some(3) && said["refused"]["lease_conflict"] == 1, "{said}");
        Ok(said)
    })
    .await?;
    ensure!(none["decision_id"] == "dry-run" && none["candidates"]["gpus"] == 3 && none["nearest_miss"]["gpus"] == 2, "{none}");
    let before = decisions().await?;
    let (code, two) = json(&["place", "--dry-run", "--gpus", "2"])?;
    ensure!(code == Some(0) && two["assignments"].as_array().is_some_and(|gpus| gpus.len() == 2), "{two}");
    ensure!(decisions().await? == before, "a dry run stands in OUT");

    let (code, first) = json(&["place", "--gpus", "2", "--request-id", "first"])?;
    ensure!(code == Some(0), "{first}");
    let second = ["place", "--gpus", "1", "--request-id", "second", "--max-wait", "2m", "-o", "json"];
    let asking = command(&up, &second).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn()?;
    eventually(async || {
        let (_, queue, _) = plimsoll(&up, &["queue"])?;
        ensure!(queue.contains("second") && queue.contains("lease_conflict"), "{queue}");
        Ok(())
    })
    .await?;
    // Another tenant's request of the same id ends nobody's waiting, and neither is taken for the other.
    let (code, other) = json(&["place", "--gpus", "1", "--request-id", "second", "--tenant", "another"])?;
    ensure!(code == Some(3) && other["outcome"] == "rejected", "{other}");
    eventually(async || {
        let (code, said, _) = plimsoll(&up, &["explain", "second", "--tenant", "another"])?;
        ensure!(code == Some(0) && said.starts_with("Request second of another was rejected"), "{said}");
        Ok(())
    })
    .await?;
    let (_, queue, _) = plimsoll(&up, &["queue"])?;
    ensure!(queue.contains("second") && queue.contains("default"), "{queue}");
    let (code, _, stderr) = plimsoll(&up, &["explain", "second"])?;
    ensure!(code != Some(0) && stderr.contains("another, default have each used the id"), "{stderr}");
    release(&first)?;
    let output = asking.wait_with_output()?;
    let placed: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.success() && placed["outcome"] == "placed" && placed["attempt"].as_u64() > Some(1), "{placed}");
    let (code, said, _) = plimsoll(&up, &["explain", "second", "--tenant", "default"])?;
    ensure!(code == Some(0) && said.contains("Request second of default was placed"), "{said}");
    up.stop().await
}

/// By the id of its request, its own or its lease's, a decision is said as it stands in OUT; what nobody decided is named.
async fn explained(up: &Up, decided: &serde_json::Value) -> Result<()> {
    let explain = |id: &str, format: &str| {
        let program = plimsoll_tests::pipeline::binaries().join("plimsoll");
        Ok::<_, anyhow::Error>(std::process::Command::new(program).args(["explain", id, "-o", format, "--data-dir"]).arg(&up.data_dir).output()?)
    };
    let id = |of: &serde_json::Value| of.as_str().context("an id").map(str::to_owned);
    let (decision, lease) = (id(&decided["decision_id"])?, id(&decided["lease"]["lease_id"])?);
    // At once, although SQL may not show it yet.
    for id in ["first", &decision, &lease] {
        let output = explain(id, "table")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && said.starts_with("Request first of tester was placed.\n"), "{id}: {output:?}");
        ensure!(said.contains(&lease) && said.contains(&decision) && said.contains("by hybrid@1"), "{said}");
    }
    let json: serde_json::Value = serde_json::from_slice(&explain("first", "json")?.stdout)?;
    ensure!(json["data"] == *decided, "{json}");
    for unknown in ["second", "local-0-999999-0"] {
        let output = explain(unknown, "table")?;
        ensure!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains(unknown), "{output:?}");
    }
    Ok(())
}

/// Serves one text at `/metrics` for as long as the test runs; returns the URL.
async fn serve(text: String) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/metrics", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            if socket.read(&mut request).await.is_ok() {
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    text.len()
                );
                // A scraper that has gone away is its own affair.
                socket.write_all(head.as_bytes()).await.ok();
                socket.write_all(text.as_bytes()).await.ok();
            }
        }
    });
    Ok(url)
}

/// A value of a scrape: (UUID, SQL column) → the numbers printed for it, in SQL's unit. Rows of MIG instances are left out.
fn board_values(text: &str) -> BTreeMap<(String, &'static str), Vec<f64>> {
    let columns = [
        ("DCGM_FI_DEV_GPU_UTIL", "util_percent", 1.0),
        ("DCGM_FI_DEV_MEM_COPY_UTIL", "memory_util_percent", 1.0),
        ("DCGM_FI_DEV_FB_USED", "memory_used_bytes", 1_048_576.0),
        ("DCGM_FI_DEV_GPU_TEMP", "temperature_c", 1.0),
        ("DCGM_FI_DEV_POWER_USAGE", "power_mw", 1_000.0),
        ("DCGM_FI_DEV_SM_CLOCK", "sm_clock_mhz", 1.0),
    ];
    let mut values: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.contains("GPU_I_ID=\"")) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once('}') else { continue };
        let Some((_, column, scale)) = columns.iter().find(|(metric, ..)| *metric == name.trim()) else { continue };
        let Some(uuid) = labels.split("UUID=\"").nth(1).and_then(|tail| tail.split('"').next()) else { continue };
        let Some(value) = value.split_whitespace().next().and_then(|value| value.parse::<f64>().ok()) else { continue };
        values.entry((uuid.to_owned(), *column)).or_default().push(value * scale);
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn every_value_of_a_recorded_scrape_arrives_or_is_absent_with_a_reason() -> Result<()> {
    need_broker!();
    let data = std::path::Path::new("../../shared/data");
    let mut texts = vec![("own fixture".to_owned(), include_str!("fixtures/scrape.prom").to_owned())];
    for folder in ["dcgm_scrapes", "dcgm_scrapes_mig"] {
        match std::fs::read_dir(data.join(folder)) {
            Ok(entries) => {
                for entry in entries {
                    let path = entry?.path();
                    texts.push((path.display().to_string(), std::fs::read_to_string(&path)?));
                }
            }
            Err(error) => eprintln!("recorded scrapes skipped: {folder}: {error}"),
        }
    }
    for (name, text) in texts {
        let folder = tempfile::tempdir()?;
        let up = Up::start(folder.path(), &["--dcgm", &serve(text.clone()).await?, "--no-demo"]).await?;
        let client = up.postgres().await?;
        let expected = board_values(&text);
        eventually(async || {
            ensure!(count(&client, "samples").await? > 0, "no sample of {name}");
            Ok(())
        })
        .await?;
        let (mut arrived, mut absent) = (0, 0);
        for ((uuid, column), values) in &expected {
            let sql = format!(
                "SELECT s.{column}::double FROM samples s JOIN devices d ON d.device_key = s.device_key \
                 WHERE d.device_uuid = $1 AND d.valid_to IS NULL ORDER BY s.sampled_at DESC LIMIT 1"
            );
            let row = client.query_opt(&sql, &[uuid]).await?.with_context(|| format!("{name}: no sample of {uuid}"))?;
            match row.try_get::<_, Option<f64>>(0)? {
                Some(found) => {
                    ensure!(values.iter().any(|value| (value - found).abs() <= 0.5), "{name}: {uuid} {column} is {found}, printed {values:?}");
                    arrived += 1;
                }
                None => {
                    let sql = "SELECT count(*) FROM rejected r JOIN devices d ON d.device_key = r.device_key WHERE d.device_uuid = $1 AND r.reason IS NOT NULL";
                    let reasons: i64 = client.query_one(sql, &[uuid]).await?.try_get(0)?;
                    ensure!(reasons > 0, "{name}: {uuid} {column} ({values:?}) is absent without a reason");
                    absent += 1;
                }
            }
        }
        let sentinel = "SELECT count(*) FROM samples WHERE util_percent > 100 OR temperature_c > 150 OR power_mw > 5000000 OR memory_used_bytes > memory_total_bytes";
        ensure!(client.query_one(sentinel, &[]).await?.try_get::<_, i64>(0)? == 0, "{name}: a sentinel passed");
        eprintln!("{name}: {arrived} values arrived, {absent} absent with a reason");
        up.stop().await?;
    }
    Ok(())
}
