//! RocksDB's settings: bounded memory, lz4, no merge operators.

use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, InfoLogger, LogLevel, Options};

use crate::ROWS;

const BLOCK_CACHE_BYTES: usize = 64 << 20;
const WRITE_BUFFERS_BYTES: usize = 64 << 20;
const WRITE_BUFFER_BYTES: usize = 16 << 20;
const WAL_BYTES: u64 = 128 << 20;
const OPEN_FILES: i32 = 256;
/// Files of rows that lie beside each other before they are merged.
const ROW_FILES: i32 = 12;

/// Settings of the whole database.
pub fn database() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(WAL_BYTES);
    options.set_max_open_files(OPEN_FILES);
    options.set_keep_log_file_num(3);
    options.set_max_log_file_size(4 << 20);
    options.set_log_level(LogLevel::Warn);
    // A torn tail of the write-ahead log is cut at the last whole batch: the state is then an older commit, which is a correct state.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options
}

/// Settings for a database that is only read: nothing is created, and its folder gets no log of ours.
pub fn reading() -> Options {
    let mut options = Options::default();
    options.set_max_open_files(OPEN_FILES);
    options.set_info_logger(InfoLogger::new_stderr_logger(LogLevel::Fatal, None::<&str>));
    options
}

/// The column families, sharing one block cache.
pub fn column_families<'a>(names: impl Iterator<Item = &'a str>) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    let options = |name| if name == ROWS { rows(&cache) } else { column_family(&cache) };
    names.map(|name| ColumnFamilyDescriptor::new(name, options(name))).collect()
}

/// Rows come once, compressed already, and are soon gone again, file by file: writing them anew in between would be for nothing.
fn rows(cache: &Cache) -> Options {
    let mut options = column_family(cache);
    options.set_compression_type(DBCompressionType::None);
    options.set_level_zero_file_num_compaction_trigger(ROW_FILES);
    options.set_level_zero_slowdown_writes_trigger(ROW_FILES * 3);
    options.set_level_zero_stop_writes_trigger(ROW_FILES * 4);
    options
}

fn column_family(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(3);
    options
}
