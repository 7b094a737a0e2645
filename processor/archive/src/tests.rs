//! The archive on a real folder: what is sealed is read back, two sealers race, files go missing or bad.

use std::collections::BTreeSet;
use std::fs;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use plimsoll_schemas::id::{CellId, DeviceKey, LogEpoch, Position};
use plimsoll_schemas::retention::{self, Keep};
use plimsoll_schemas::row::{PlacedRow, RejectedRow, Row, StateTime, Stats, Table, Tier, WindowRow};
use plimsoll_schemas::time::{EventTime, LogTime, NS_PER_S};

use crate::checkpoints::About;
use crate::manifest::BASE_EVERY;
use crate::retention::expired;
use crate::{Archive, Checkpoints, Entry, Error, Manifest, column, encode, table};

const DAY_S: i64 = 86_400;

fn cell() -> CellId {
    "local".parse().expect("a token")
}

fn at(sequence: u64) -> Position {
    Position { epoch: LogEpoch(0), sequence }
}

fn window(sequence: u64, host: &str, window_s: i64, part: u32) -> PlacedRow {
    let row = WindowRow {
        window_at: EventTime(window_s * NS_PER_S),
        device_key: DeviceKey(host.len() as i64),
        host: host.parse().expect("a token"),
        gpu_index: 0,
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        pool: None,
        part,
        expected: 60,
        stats: Stats { received: 60, covered_ms: 60_000, util_percent_ms: 60_000 * 42, ..Stats::default() },
        state: StateTime::default(),
        tenant: None,
        lease_id: None,
    };
    PlacedRow { position: at(sequence), ordinal: 0, row: Row::Window(Tier::Minute, Box::new(row)) }
}

fn rejected(sequence: u64, logged_s: i64) -> PlacedRow {
    let row = RejectedRow {
        rejected_at: EventTime(0),
        logged_at: LogTime(logged_s * NS_PER_S),
        host: None,
        device_key: None,
        field: None,
        reason: plimsoll_schemas::reason::Reason::ALL[0],
        raw_value: "?".to_owned(),
        source: "processor".to_owned(),
        epoch: None,
        seq: None,
    };
    PlacedRow { position: at(sequence), ordinal: 0, row: Row::Rejected(Box::new(row)) }
}

fn minutes(rows: &[PlacedRow]) -> Vec<(Table, Vec<RecordBatch>)> {
    vec![(Table::GpuWindows1m, vec![table::batch(Table::GpuWindows1m, &cell(), rows).expect("windows")])]
}

fn folder() -> (tempfile::TempDir, Archive) {
    let folder = tempfile::tempdir().expect("a folder");
    let archive = Archive::open(folder.path().to_str().expect("utf-8"), &cell()).expect("opens");
    (folder, archive)
}

fn read(folder: &tempfile::TempDir, entry: &Entry) -> RecordBatch {
    let file = fs::File::open(folder.path().join(&entry.path)).expect("the file");
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(file).expect("parquet").build().expect("reader");
    batches.next().expect("one batch").expect("rows")
}

fn files_on_disk(folder: &tempfile::TempDir) -> BTreeSet<String> {
    fn walk(at: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            if entry.path().is_dir() { walk(&entry.path(), found) } else { assert!(found.insert(entry.path().display().to_string())) }
        }
    }
    let mut found = BTreeSet::new();
    walk(&folder.path().join("archive"), &mut found);
    found
}

#[test]
fn every_table_has_unique_commented_columns_signed_types_and_its_place_in_the_log_last() {
    for &table in Table::ALL {
        let schema = table::schema(table);
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
        assert_eq!(names[names.len() - 3..], ["_epoch", "_seq", "_ordinal"]);
        let shown = names.iter().take_while(|name| !column::is_hidden(name)).count();
        assert!(names[shown..].iter().all(|name| column::is_hidden(name)), "hidden columns come last: {names:?}");
        assert!(names.contains(&"cell") && names.contains(&table::time_column(table)));
        assert!(table::key_columns(table).iter().all(|key| names.contains(key)));
        for field in schema.fields() {
            assert!(field.metadata().get(column::COMMENT).is_some_and(|comment| comment.len() > 3), "{} has no comment", field.name());
            assert!(!matches!(field.data_type(), DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64));
        }
    }
}

#[tokio::test]
async fn sealed_rows_are_read_back_device_by_device_with_their_bounds_in_the_manifest() {
    let (folder, archive) = folder();
    assert_eq!(archive.newest().await.expect("readable"), None);
    let rows = [window(5, "b", 120, 0), window(6, "a", 120, 0), window(7, "a", 60, 1)];
    let sealed = archive.seal(None, at(9), minutes(&rows)).await.expect("seals");
    assert_eq!((sealed.version, sealed.position, sealed.files.len()), (1, at(9), 1));
    assert_eq!(archive.newest().await.expect("readable"), Some(sealed.clone()));

    let entry = &sealed.files[0];
    assert_eq!(entry.path, "archive/gpu_windows_1m/day=1970-01-01/0000000001-0.parquet");
    assert_eq!((entry.rows, entry.positions), (3, (at(5), at(7))));
    let bounds = |name: &str| (entry.columns[name].min.clone().expect("min"), entry.columns[name].max.clone().expect("max"));
    assert_eq!(bounds("window_at"), (encode::Bound::Int(60_000_000), encode::Bound::Int(120_000_000)));
    assert_eq!(bounds("host"), (encode::Bound::Text("a".to_owned()), encode::Bound::Text("b".to_owned())));
    assert_eq!(bounds("revision"), (encode::Bound::Int(0), encode::Bound::Int(1)));
    assert_eq!(entry.late, Some((60_000_000, 60_000_000)), "only the later part's window");
    archive.verify(entry).await.expect("as written");

    let batch = read(&folder, entry);
    let sequences: Vec<i64> = batch["_seq"].as_primitive::<Int64Type>().values().to_vec();
    assert_eq!(sequences, [7, 6, 5], "host, GPU, window");
    assert_eq!(batch["covered_ms"].as_primitive::<Int64Type>().value(0), 60_000);
    assert_eq!(batch["revision"].as_primitive::<Int32Type>().value(0), 1);
    assert_eq!(batch["pool"].null_count(), 3);
}

#[tokio::test]
async fn of_two_sealers_exactly_one_wins_and_the_other_leaves_no_file() {
    let (folder, archive) = folder();
    let one = archive.seal(None, at(1), minutes(&[window(1, "a", 60, 0)])).await.expect("seals");
    let rival = Archive::open(&format!("file://{}", folder.path().display()), &cell()).expect("opens");
    let (first, second) = tokio::join!(
        archive.seal(Some(&one), at(2), minutes(&[window(2, "a", 120, 0)])),
        rival.seal(Some(&one), at(3), minutes(&[window(2, "a", 120, 0), window(3, "a", 180, 0)])),
    );
    let (winner, loser) = match (first, second) {
        (Ok(winner), Err(loser)) | (Err(loser), Ok(winner)) => (winner, loser),
        (first, second) => panic!("not exactly one winner: {first:?} {second:?}"),
    };
    assert!(matches!(loser, Error::Taken { version: 2 }), "{loser}");
    assert_eq!(archive.newest().await.expect("readable"), Some(winner.clone()));
    let named: BTreeSet<_> = winner.files.iter().map(|entry| folder.path().join(&entry.path).display().to_string()).collect();
    assert_eq!(files_on_disk(&folder), named);
    for entry in &winner.files {
        archive.verify(entry).await.expect("the winner's files are untouched");
    }
}

#[tokio::test]
async fn a_sealer_that_slept_until_the_next_manifest_was_swept_seals_nothing() {
    let (folder, archive) = folder();
    let one = archive.seal(None, at(1), Vec::new()).await.expect("seals");
    let two = archive.seal(Some(&one), at(2), Vec::new()).await.expect("seals");
    let three = archive.seal(Some(&two), at(3), minutes(&[window(3, "a", 60, 0)])).await.expect("seals");
    fs::remove_file(folder.path().join("manifest/local/0000000002.json")).expect("swept");
    let error = archive.seal(Some(&one), at(4), minutes(&[window(2, "a", 0, 0)])).await.expect_err("others have gone on");
    assert!(matches!(error, Error::Taken { version: 2 }), "{error}");
    assert_eq!(files_on_disk(&folder).len(), three.files.len());
}

#[tokio::test]
async fn a_seal_never_goes_back_and_an_empty_one_moves_the_position_without_files() {
    let (folder, archive) = folder();
    let one = archive.seal(None, at(9), Vec::new()).await.expect("seals nothing");
    assert_eq!((one.position, one.files.len()), (at(9), 0));
    let error = archive.seal(Some(&one), at(8), minutes(&[window(8, "a", 0, 0)])).await.expect_err("goes back");
    assert_eq!(error.to_string(), "cannot seal up to 0:8: version 1 already holds everything up to 0:9");
    assert!(files_on_disk(&folder).is_empty());
}

#[tokio::test]
async fn a_long_chain_of_versions_reads_back_the_same_from_anywhere() {
    let (_folder, archive) = folder();
    let mut newest = None;
    let mut known = None;
    for n in 1..=BASE_EVERY + 3 {
        let rows = if n % 20 == 0 { minutes(&[window(n, "a", n as i64 * 60, 0)]) } else { Vec::new() };
        newest = Some(archive.seal(newest.as_ref(), at(n), rows).await.expect("seals"));
        if n == 10 {
            known = newest.clone();
        }
    }
    let newest = newest.expect("sealed");
    assert_eq!(newest.files.len(), 3);
    assert_eq!(archive.newest().await.expect("readable"), Some(newest.clone()));
    assert_eq!(archive.newer_than(known.as_ref()).await.expect("readable"), Some(newest.clone()));
    assert_eq!(archive.newer_than(Some(&newest)).await.expect("readable"), None);
}

#[tokio::test]
async fn rows_of_a_mad_clock_share_one_folder_without_a_day() {
    let (_folder, archive) = folder();
    let days = crate::archive::DAYS_MAX as i64 + 5;
    let rows: Vec<_> = (0..days).map(|day| rejected(day as u64, day * DAY_S)).collect();
    let batch = table::batch(Table::Rejected, &cell(), &rows).expect("rows");
    let sealed = archive.seal(None, at(100), vec![(Table::Rejected, vec![batch])]).await.expect("seals");
    assert_eq!(sealed.files.len(), crate::archive::DAYS_MAX + 1);
    let dayless: Vec<_> = sealed.files.iter().filter(|entry| entry.path.contains("__HIVE_DEFAULT_PARTITION__")).collect();
    assert_eq!(dayless.iter().map(|entry| entry.rows).collect::<Vec<_>>(), [5]);
    assert_eq!(sealed.files.iter().map(|entry| entry.rows).sum::<u64>(), days as u64);
}

#[tokio::test]
async fn absent_and_damaged_files_are_named() {
    let (folder, archive) = folder();
    let sealed = archive.seal(None, at(1), minutes(&[window(1, "a", 60, 0)])).await.expect("seals");
    let entry = &sealed.files[0];
    let path = folder.path().join(&entry.path);
    let mut bytes = fs::read(&path).expect("the file");

    bytes[20] ^= 1;
    fs::write(&path, &bytes).expect("damaged");
    let error = archive.verify(entry).await.expect_err("damaged").to_string();
    assert!(error.starts_with(&format!("{} is damaged: hash siphash128:", entry.path)), "{error}");
    fs::write(&path, &bytes[..100]).expect("cut");
    let error = archive.verify(entry).await.expect_err("cut").to_string();
    assert_eq!(error, format!("{} is damaged: 100 bytes, the manifest says {}", entry.path, entry.bytes));
    fs::remove_file(&path).expect("removed");
    assert_eq!(archive.verify(entry).await.expect_err("absent").to_string(), format!("{} is missing from the archive", entry.path));

    fs::write(folder.path().join("manifest/local/0000000001.json"), "{\"version\":").expect("damaged");
    let error = archive.newest().await.expect_err("damaged manifest").to_string();
    assert!(error.starts_with("manifest/local/0000000001.json is damaged: EOF"), "{error}");
    assert!(matches!(archive.manifest(7).await, Err(Error::Absent { .. })));
}

/// Seals a minute of each day and returns the archive's newest manifest.
async fn days(archive: &Archive, days: std::ops::RangeInclusive<i64>) -> Manifest {
    let mut newest = archive.newest().await.expect("readable");
    for day in days {
        let rows = minutes(&[window(day as u64, "a", day * DAY_S, 0)]);
        newest = Some(archive.seal(newest.as_ref(), at(day as u64), rows).await.expect("seals"));
    }
    newest.expect("sealed")
}

#[tokio::test]
async fn files_expire_by_their_newest_row_and_the_oldest_by_bytes() {
    let (_folder, archive) = folder();
    let manifest = days(&archive, 1..=5).await;
    let each = manifest.files[0].bytes;
    let check = |max_age_s: Option<u64>, max_bytes: Option<u64>, expected: usize, reason: &str| {
        let gone = expired(&manifest, |table| Keep { max_age_s, max_bytes, ..retention::of_table(table) }, 6 * DAY_S * NS_PER_S);
        let paths: Vec<_> = gone.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, manifest.files[..expected].iter().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), "{max_age_s:?} {max_bytes:?}");
        assert!(gone.iter().all(|file| file.why.contains(reason)), "{gone:?}");
    };
    check(None, None, 0, "");
    check(Some(5 * DAY_S as u64), None, 0, "");
    check(Some(3 * DAY_S as u64), None, 2, "its newest row is");
    check(None, Some(5 * each), 0, "");
    check(None, Some(3 * each + each / 2), 2, "bytes, at most");
    check(Some(0), Some(0), 5, "its newest row is");
}

#[tokio::test]
async fn what_left_the_archive_stays_for_an_hour_and_other_cells_files_for_ever() {
    let (folder, archive) = folder();
    let other = Archive::open(folder.path().to_str().expect("utf-8"), &"other".parse().expect("a token")).expect("opens");
    let theirs = days(&other, 1..=2).await;
    let before = days(&archive, 1..=3).await;
    let dropped = before.files[0].path.clone();
    let after = archive.seal_without(Some(&before), at(9), Vec::new(), BTreeSet::from([dropped.clone()])).await.expect("seals");
    assert_eq!(after.files, before.files[1..]);
    let orphan = "archive/gpu_windows_1m/day=1970-01-09/0000000009-0.parquet";
    fs::create_dir_all(folder.path().join(orphan).parent().expect("a folder")).expect("writable");
    fs::write(folder.path().join(orphan), "of a seal that crashed").expect("writable");

    let now_ns = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as i64;
    assert_eq!(archive.sweep(now_ns + 1_800 * NS_PER_S).await.expect("swept"), []);
    assert!(folder.path().join(&dropped).exists(), "somebody may still read an older manifest");
    let swept: BTreeSet<_> = archive.sweep(now_ns + 3_700 * NS_PER_S).await.expect("swept").into_iter().map(|file| file.path).collect();
    assert_eq!(swept, BTreeSet::from([dropped, orphan.to_owned()]));
    for entry in after.files.iter().chain(&theirs.files) {
        archive.verify(entry).await.expect("still there");
    }
    assert_eq!(archive.newest().await.expect("readable"), Some(after));
}

#[tokio::test]
async fn old_manifests_go_when_newer_ones_do_not_build_on_them() {
    let (_folder, archive) = folder();
    let mut newest = None;
    for n in 1..=2 * BASE_EVERY + 5 {
        newest = Some(archive.seal(newest.as_ref(), at(n), Vec::new()).await.expect("seals"));
    }
    let now_ns = std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as i64;
    assert_eq!(archive.sweep(now_ns + 6 * DAY_S * NS_PER_S).await.expect("swept"), []);
    let swept = archive.sweep(now_ns + 8 * DAY_S * NS_PER_S).await.expect("swept");
    assert_eq!(swept.len() as u64, 2 * BASE_EVERY);
    assert_eq!(archive.newest().await.expect("readable"), newest);
    assert!(matches!(archive.manifest(2 * BASE_EVERY).await, Err(Error::Absent { .. })));
}

fn about(sequence: u64) -> About {
    About {
        cell: cell(),
        position: at(sequence),
        hash: u64::MAX - sequence,
        digest: sequence,
        logic: 1,
        format: 1,
        log_created_at_ns: 7,
        message_hash: 1 << 60,
        logged_at: LogTime(sequence as i64),
        out_seq: 3,
        decision_seq: 2,
        created_at_ns: 5,
        replica: "processor-1".to_owned(),
    }
}

/// A folder with two files to make checkpoints of.
fn state() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("CURRENT"), "one").expect("writable");
    fs::write(folder.path().join("000009.sst"), [7; 1_000]).expect("writable");
    folder
}

#[tokio::test]
async fn a_checkpoint_comes_back_as_it_was_and_a_position_has_only_one() {
    let (folder, archive) = folder();
    let checkpoints = Checkpoints::of(&archive);
    assert_eq!(checkpoints.list().await.expect("nothing yet"), []);
    let state = state();
    let made = checkpoints.put(state.path(), about(9)).await.expect("new");
    assert_eq!((made.files.len(), made.bytes()), (2, 1_003));
    let again = checkpoints.put(state.path(), About { created_at_ns: 6, ..about(9) }).await;
    assert!(matches!(again, Err(Error::CheckpointTaken { position }) if position == at(9)), "{again:?}");
    let nothing = tempfile::tempdir().expect("a folder");
    let refused = checkpoints.put(nothing.path(), about(11)).await.expect_err("no files").to_string();
    assert!(refused.contains("no files"), "{refused}");
    checkpoints.put(state.path(), about(10)).await.expect("new");
    assert_eq!(checkpoints.list().await.expect("listed"), [at(10), at(9)]);
    let found = checkpoints.read(at(9)).await.expect("there");
    assert_eq!(found, made);
    let into = tempfile::tempdir().expect("a folder");
    checkpoints.load(&found, into.path()).await.expect("whole");
    assert_eq!(fs::read(into.path().join("000009.sst")).expect("copied"), [7; 1_000]);
    assert_eq!(fs::read(into.path().join("CURRENT")).expect("copied"), b"one");

    fs::write(folder.path().join(&found.folder).join("CURRENT"), "two").expect("damaged");
    let error = checkpoints.load(&found, into.path()).await.expect_err("damaged").to_string();
    assert!(error.contains("CURRENT is damaged"), "{error}");
}

#[tokio::test]
async fn of_two_replicas_that_make_the_same_checkpoint_one_has_made_it() {
    let (_folder, archive) = folder();
    let checkpoints = Checkpoints::of(&archive);
    // The same state in other files: the first of one is the second of the other.
    let (one, two) = (state(), state());
    fs::write(one.path().join("000005.sst"), [5; 1_000]).expect("writable");
    for sequence in 1..=20 {
        let (first, second) = tokio::join!(checkpoints.put(one.path(), about(sequence)), checkpoints.put(two.path(), about(sequence)));
        let (made, refused) = if first.is_ok() { (first, second) } else { (second, first) };
        assert!(matches!(refused, Err(Error::CheckpointTaken { .. })), "{refused:?}");
        let into = tempfile::tempdir().expect("a folder");
        checkpoints.load(&made.expect("one of them"), into.path()).await.expect("whole");
    }
}

#[tokio::test]
async fn only_the_newest_checkpoints_are_kept_and_unfinished_ones_go_after_an_hour() {
    let (folder, archive) = folder();
    let (checkpoints, state) = (Checkpoints::of(&archive), state());
    for sequence in 1..=5 {
        checkpoints.put(state.path(), about(sequence)).await.expect("new");
    }
    let cell_folder = folder.path().join("checkpoints/local");
    let orphan = cell_folder.join("0000000000-00000000000000000005-1");
    fs::create_dir(&orphan).expect("writable");
    fs::write(orphan.join("CURRENT"), "never finished").expect("writable");
    let written_ns = fs::metadata(orphan.join("CURRENT")).and_then(|found| found.modified()).expect("a time");
    let written_ns = written_ns.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as i64;

    assert_eq!(checkpoints.keep(3, written_ns + 3_599 * NS_PER_S).await.expect("kept"), [at(2), at(1)]);
    assert_eq!(checkpoints.list().await.expect("listed"), [at(5), at(4), at(3)]);
    assert!(orphan.exists(), "somebody may still be writing it");
    let folders = || fs::read_dir(&cell_folder).expect("there").filter(|entry| entry.as_ref().expect("an entry").path().is_dir()).count();
    assert_eq!(folders(), 4);
    assert_eq!(checkpoints.keep(3, written_ns + 3_601 * NS_PER_S).await.expect("kept"), []);
    assert_eq!(folders(), 3);
    for position in checkpoints.list().await.expect("listed") {
        let found = checkpoints.read(position).await.expect("there");
        checkpoints.load(&found, tempfile::tempdir().expect("a folder").path()).await.expect("whole");
    }
}

#[test]
fn addresses_that_cannot_be_used_say_why() {
    let refused = |url: &str| Archive::open(url, &cell()).expect_err("refused").to_string();
    assert_eq!(refused("s3://bucket/x"), "archive \"s3://bucket/x\": scheme \"s3\" is not supported yet: give a folder or a file:// URL");
    assert_eq!(refused("file://x"), "archive \"file://x\": a file URL needs an absolute path: file:///folder");
    assert!(refused("").contains("empty path"));
}

#[test]
fn a_row_of_another_table_is_refused() {
    let error = table::batch(Table::Rejected, &cell(), &[window(1, "a", 0, 0)]).expect_err("a window is no rejection");
    assert_eq!(error.to_string(), "a row of gpu_windows_1m was given for table rejected");
}
