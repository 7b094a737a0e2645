//! Against real RocksDB folders.

use std::fs;

use plimsoll_schemas::id::{HostId, LogEpoch};
use plimsoll_schemas::inventory::Placement;
use plimsoll_schemas::out::DeviceState;
use plimsoll_schemas::row::{DeviceEventRow, HostRow, Row, Tier, WindowRow};
use plimsoll_schemas::time::EventTime;

use super::*;
use plimsoll_fold::rows::Encoded;

fn at(sequence: u64) -> Position {
    Position { epoch: LogEpoch(0), sequence }
}

fn commit_at(sequence: u64) -> Commit {
    Commit {
        logic: 1,
        position: at(sequence),
        log_created_at_ns: 7,
        message_hash: sequence * 31,
        logged_at: LogTime(sequence as i64),
        hash: sequence,
        out_seq: sequence,
        decision_seq: 0,
        sealed: None,
    }
}

fn entry(value: u64) -> Entry {
    Entry { table: StateTable::Meta, key: b"counter".to_vec(), value: Some(value.to_be_bytes().to_vec()) }
}

fn event(sequence: u64, ordinal: u32) -> PlacedRow {
    let row = DeviceEventRow {
        happened_at: EventTime(sequence as i64),
        device_key: None,
        host: "gpu-1".parse().unwrap(),
        kind: "xid".to_owned(),
        code: Some(79),
        severity: "fatal".to_owned(),
        detail: None,
    };
    PlacedRow { position: at(sequence), ordinal, row: Row::DeviceEvent(Box::new(row)) }
}

fn output(out_seq: u64) -> Output {
    Output { out_seq, position: at(out_seq), subject: "plimsoll.c.out.device".to_owned(), id: format!("c/0/{out_seq}/0"), bytes: vec![b'x'; 64] }
}

/// Commits `sequences`, each with one entry, two rows and one output.
fn write(store: &Store, sequences: std::ops::RangeInclusive<u64>) {
    for sequence in sequences {
        let rows: Encoded = [event(sequence, 0), event(sequence, 1)].iter().collect();
        store.commit(&commit_at(sequence), &[entry(sequence)], rows.iter(), [&output(sequence)]).unwrap();
    }
}

fn places(store: &Store, after: u64, up_to: u64) -> Vec<(u64, u32)> {
    store.rows(Table::DeviceEvents, at(after), at(up_to)).map(|row| row.unwrap()).map(|row| (row.position.sequence, row.ordinal)).collect()
}

#[test]
fn what_was_committed_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.load().unwrap(), None);
    write(&store, 1..=3);
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.load().unwrap(), Some((commit_at(3), vec![entry(3)])));
    assert_eq!(places(&store, 1, 3), [(2, 0), (2, 1), (3, 0), (3, 1)]);
    assert_eq!(store.outputs_from(2).map(Result::unwrap).collect::<Vec<_>>(), [output(2), output(3)]);
    store.commit(&commit_at(4), &[Entry { value: None, ..entry(0) }], [], []).unwrap();
    assert_eq!(store.load().unwrap(), Some((commit_at(4), vec![])));
}

#[test]
fn a_commit_in_a_hurry_remembers_up_to_where_out_was_right_until_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    for store in [Store::open(folder.path()).unwrap(), Store::in_memory()] {
        assert_eq!(store.standing().unwrap(), 0);
        write(&store, 1..=3);
        assert_eq!(store.standing().unwrap(), 3);
        store.commit_in_a_hurry(&commit_at(9), 5, &[], [], []).unwrap();
        assert_eq!((store.standing().unwrap(), store.last_commit().unwrap().map(|commit| commit.out_seq)), (5, Some(9)));
        store.commit(&commit_at(11), &[], [], []).unwrap();
        assert_eq!(store.standing().unwrap(), 11);
    }
}

#[test]
fn every_kind_of_row_reads_back_as_it_was() {
    let host: HostId = "gpu-1".parse().unwrap();
    let host_row = HostRow {
        host: host.clone(),
        valid_from: LogTime(1),
        valid_to: None,
        hostname: "gpu-1.example.com".to_owned(),
        placement: Placement { rack: Some("r7".to_owned()), ..Placement::default() },
        agent_version: "0.1.0".to_owned(),
        gpu_count: 8,
        cpu_cores: None,
        ram_bytes: Some(1 << 40),
        state: DeviceState::Ok,
        clock_skew_ms: None,
    };
    let mut window = WindowRow {
        window_at: EventTime(10),
        device_key: plimsoll_schemas::id::DeviceKey(-5),
        host,
        gpu_index: 3,
        model: "NVIDIA H200".to_owned(),
        pool: None,
        part: 0,
        expected: 10,
        stats: Default::default(),
        state: Default::default(),
        tenant: None,
        lease_id: Some("l-1".to_owned()),
    };
    window.stats.util_sketch.add(55);
    let store = Store::in_memory();
    let rows = [Row::Host(Box::new(host_row)), Row::Window(Tier::Minute, Box::new(window))];
    let placed: Vec<_> = (4..).zip(rows).map(|(ordinal, row)| PlacedRow { position: at(9), ordinal, row }).collect();
    store.commit(&commit_at(9), &[], placed.iter().collect::<Encoded>().iter(), []).unwrap();
    for row in placed {
        let back: Vec<_> = store.rows(row.row.table(), at(0), at(9)).map(Result::unwrap).collect();
        assert_eq!(back, [row]);
    }
}

/// `count` events a record, the records `sequences` in one commit.
fn many(store: &Store, sequences: std::ops::RangeInclusive<u64>, count: u32) {
    let last = *sequences.end();
    let rows: Encoded = sequences.flat_map(|sequence| (0..count).map(move |ordinal| event(sequence, ordinal))).collect::<Vec<_>>().iter().collect();
    store.commit(&commit_at(last), &[], rows.iter(), []).unwrap();
}

#[test]
fn any_stretch_of_rows_is_found_whatever_blocks_they_lie_in() {
    let folder = tempfile::tempdir().unwrap();
    for store in [Store::open(folder.path()).unwrap(), Store::in_memory()] {
        many(&store, 1..=900, 3);
        many(&store, 901..=901, 1);
        many(&store, 902..=1_000, 40);
        let blocks = store.kv.scan(ROWS, &[], None).count();
        assert!((5..60).contains(&blocks), "{blocks} blocks of 6,661 rows");
        for (after, up_to) in [(0, 1_000), (0, 1), (1, 1), (899, 901), (900, 950), (930, 931), (950, 2_000), (1_000, 2_000), (5, 4)] {
            let of = |sequence| if sequence <= 900 { 3 } else { [40, 1][usize::from(sequence == 901)] };
            let expected: Vec<_> = (after + 1..=up_to.min(1_000)).flat_map(|s| (0..of(s)).map(move |ordinal| (s, ordinal))).collect();
            assert_eq!(places(&store, after, up_to), expected, "{after} {up_to}");
        }
        assert_eq!(store.rows(Table::Alerts, at(0), at(1_000)).count(), 0, "of other tables there are none");
    }
}

#[test]
fn a_block_is_forgotten_with_its_last_row_and_never_a_row_that_was_not_to_be() {
    let store = Store::in_memory();
    many(&store, 1..=10_000, 1);
    for up_to in [1, 77, 3_000, 7_777, 9_999] {
        store.prune_rows(at(up_to)).unwrap();
        assert_eq!(store.pruned().unwrap(), at(up_to));
        assert_eq!(places(&store, up_to, 20_000), (up_to + 1..=10_000).map(|s| (s, 0)).collect::<Vec<_>>(), "{up_to}");
        let kept = places(&store, 0, 20_000).len() as u64;
        assert!(kept < 10_000 - up_to + 2_000, "pruned up to {up_to}, there are {kept}: more than a block too many");
    }
    store.prune_rows(at(10_000)).unwrap();
    assert_eq!(places(&store, 0, 20_000), []);
}

#[test]
fn what_is_no_block_is_an_error_that_says_what_is_wrong() {
    let store = Store::in_memory();
    many(&store, 1..=5, 2);
    let (key, block) = store.kv.scan(ROWS, &[], None).next().unwrap().unwrap();
    let whole = Block::open(Table::DeviceEvents, &block).unwrap();
    assert_eq!((whole.rows().count(), whole.begins()), (10, Some(at(1))));
    let mut bytes = lz4_flex::decompress_size_prepended(&block).unwrap();
    bytes.truncate(bytes.len() - 3);
    let huge = [u32::MAX.to_le_bytes().as_slice(), &block[4..]].concat();
    for (value, says) in
        [(lz4_flex::compress_prepend_size(&bytes), "cut off"), (huge, "cannot hold"), (block[..block.len() / 2].to_vec(), ""), (vec![], "")]
    {
        let mut batch = store.kv.batch(0);
        batch.put(ROWS, &key, &value);
        batch.write().unwrap();
        let error = store.rows(Table::DeviceEvents, at(0), at(9)).find_map(Result::err).expect("it is no block");
        assert!(matches!(&error, Error::Damaged { detail, .. } if detail.contains(says)), "{error}");
    }
}

#[test]
fn pruning_forgets_exactly_what_it_was_told_and_remembers_how_far() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    write(&store, 1..=4);
    let view = store.rows(Table::DeviceEvents, at(0), at(4));
    store.prune_rows(at(2)).unwrap();
    store.prune_rows(at(1)).unwrap();
    store.prune_outputs(4).unwrap();
    assert_eq!(view.count(), 8, "a view that was open before the prune still shows everything");
    drop(store);
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.pruned().unwrap(), at(2));
    assert_eq!(places(&store, 0, 9), [(3, 0), (3, 1), (4, 0), (4, 1)]);
    assert_eq!(store.outputs_from(0).map(Result::unwrap).collect::<Vec<_>>(), [output(4)]);
}

#[test]
fn a_folder_in_use_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let _held = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).expect_err("the first one holds the lock");
    assert!(matches!(error, Error::Locked { .. }), "{error}");
}

#[test]
fn a_damaged_folder_is_an_error_and_can_be_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    for number in 1..=2 {
        let store = Store::open(&path).unwrap();
        write(&store, 1..=3);
        drop(store);
        for file in fs::read_dir(&path).unwrap().map(|file| file.unwrap().path()) {
            if file.file_name().unwrap().to_string_lossy().starts_with("MANIFEST") {
                fs::write(file, b"this is no manifest, and long enough to be read as one record").unwrap();
            }
        }
        let error = Store::open(&path).expect_err("the manifest is gone");
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        assert_eq!(set_aside(&path).unwrap(), folder.path().join(format!("state.damaged-{number}")));
    }
    assert_eq!(Store::open(&path).unwrap().load().unwrap(), None);
}

/// Flips one byte in the middle of every table file.
fn flip(path: &Path) {
    for file in fs::read_dir(path).unwrap().map(|file| file.unwrap().path()).filter(|file| file.extension().is_some_and(|e| e == "sst")) {
        let mut bytes = fs::read(&file).unwrap();
        bytes[20] ^= 0xff;
        fs::write(file, bytes).unwrap();
    }
}

fn rocks(store: &Store) -> &Rocks {
    match &*store.kv {
        Kv::Rocks(rocks) => rocks,
        Kv::Memory(_) => panic!("a store in memory has no files"),
    }
}

#[test]
fn a_store_in_memory_does_what_one_on_disk_does_and_fails_on_command() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, memory) = (Store::open(folder.path()).unwrap(), Store::in_memory());
    let all = |store: &Store| {
        let rows: Vec<_> = store.rows(Table::DeviceEvents, at(3), at(40)).map(Result::unwrap).collect();
        let outputs: Vec<_> = store.outputs_from(7).map(Result::unwrap).collect();
        (store.load().unwrap(), rows, outputs, store.pruned().unwrap())
    };
    for store in [&disk, &memory] {
        write(store, 1..=50);
        store.prune_rows(at(9)).unwrap();
        store.prune_outputs(12).unwrap();
    }
    assert_eq!(all(&disk), all(&memory));
    for (applied, position) in [(false, at(50)), (true, at(60))] {
        memory.fail_next_write(applied);
        assert!(memory.commit(&commit_at(60), &[], [], []).is_err());
        assert_eq!(memory.last_commit().unwrap().unwrap().position, position);
    }
}

#[test]
fn a_flipped_byte_is_an_error_and_never_a_wrong_value() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    write(&store, 1..=50);
    for name in [ROWS, StateTable::Meta.name()] {
        rocks(&store).db.flush_cf(rocks(&store).db.cf_handle(name).unwrap()).unwrap();
    }
    drop(store);
    flip(folder.path());
    match Store::open(folder.path()) {
        Err(error) => assert!(matches!(error, Error::Damaged { .. }), "{error}"),
        Ok(store) => {
            assert!(matches!(store.load(), Err(Error::Damaged { .. })));
            let rows: Result<Vec<_>, _> = store.rows(Table::DeviceEvents, at(0), at(99)).collect();
            assert!(matches!(rows, Err(Error::Damaged { .. })));
        }
    }
}

#[test]
fn another_format_is_refused_by_name_and_the_error_says_which_is_newer() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let check = |format: u32, newer: bool| {
        let mut bytes = codec::encode_commit(&commit_at(1));
        bytes[..4].copy_from_slice(&format.to_be_bytes());
        let mut batch = store.kv.batch(0);
        batch.put(COMMIT, COMMIT_KEY, &bytes);
        batch.write().unwrap();
        let error = store.load().expect_err("another format");
        assert_eq!((matches!(error, Error::OlderFormat { .. }), matches!(error, Error::NewerFormat { .. })), (!newer, newer), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("format {format}")) && text.contains(&format!("format {FORMAT}")), "{text}");
    };
    check(99, true);
    check(FORMAT - 1, false);
}

#[test]
fn a_checkpoint_is_a_commit_of_its_own_while_the_store_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (live, copy) = (folder.path().join("live"), folder.path().join("copy"));
    let store = Store::open(&live).unwrap();
    write(&store, 1..=3);
    store.checkpoint(&copy).unwrap();
    let files = |path: &Path| fs::read_dir(path).unwrap().map(|file| file.unwrap().file_name()).collect::<std::collections::BTreeSet<_>>();
    let before = files(&copy);
    write(&store, 4..=5);
    let read = Store::open_read_only(&copy).unwrap();
    assert_eq!(read.load().unwrap(), Some((commit_at(3), vec![entry(3)])));
    assert_eq!(places(&read, 2, 9), [(3, 0), (3, 1)]);
    assert_ne!(read.digest().unwrap(), store.digest().unwrap());
    drop(read);
    assert_eq!(files(&copy), before, "reading leaves nothing behind");
    let own = Store::open(&copy).unwrap();
    write(&own, 4..=5);
    assert_eq!((own.load().unwrap(), own.digest().unwrap()), (store.load().unwrap(), store.digest().unwrap()));
}

#[test]
fn a_store_in_use_can_be_read_and_what_is_none_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let store = Store::open(&live).unwrap();
    write(&store, 1..=2);
    assert_eq!(Store::open_read_only(&live).unwrap().last_commit().unwrap(), Some(commit_at(2)));
    assert!(matches!(Store::open_read_only(&folder.path().join("none")), Err(Error::Damaged { .. } | Error::Unavailable { .. })));
}

/// Cuts the write-ahead log at every length: what is found is always one of the commits, whole.
#[test]
fn a_torn_write_ahead_log_leaves_an_older_commit_whole() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let store = Store::open(&whole).unwrap();
    write(&store, 1..=5);
    drop(store);
    let wal = |path: &Path| fs::read_dir(path).unwrap().map(|f| f.unwrap().path()).find(|f| f.extension().is_some_and(|e| e == "log")).unwrap();
    let length = fs::metadata(wal(&whole)).unwrap().len();
    assert!(length > 0, "the commits stand in the write-ahead log");
    let mut seen = std::collections::BTreeSet::new();
    for cut in (0..length).step_by(97) {
        let torn = folder.path().join(format!("torn-{cut}"));
        fs::create_dir(&torn).unwrap();
        for file in fs::read_dir(&whole).unwrap().map(|file| file.unwrap().path()) {
            fs::copy(&file, torn.join(file.file_name().unwrap())).unwrap();
        }
        fs::OpenOptions::new().write(true).open(wal(&torn)).unwrap().set_len(length - cut).unwrap();
        let store = Store::open(&torn).unwrap();
        let found = store.load().unwrap().map_or(0, |(commit, entries)| {
            let sequence = commit.position.sequence;
            assert_eq!((commit, entries), (commit_at(sequence), vec![entry(sequence)]));
            sequence
        });
        assert_eq!(places(&store, 0, 99), (1..=found).flat_map(|s| [(s, 0), (s, 1)]).collect::<Vec<_>>(), "cut by {cut}");
        assert_eq!(store.outputs_from(0).map(Result::unwrap).collect::<Vec<_>>(), (1..=found).map(output).collect::<Vec<_>>());
        seen.insert(found);
        fs::remove_dir_all(&torn).unwrap();
    }
    assert!(seen.len() >= 5, "the cuts reached {seen:?}");
}
