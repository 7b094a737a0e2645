//! How long everything is kept, and within how many bytes: the one table. Whatever sets up or prunes something takes its numbers from here, and
//! SQL shows it as `system.retention`.

use crate::row::Table;

/// Seconds in a day.
const DAY_S: u64 = 86_400;
const GIB: u64 = 1 << 30;

/// Age of the oldest record in LOG, seconds.
pub const LOG_AGE_S: u64 = 3 * DAY_S;
/// Most bytes of LOG, unless told otherwise.
pub const LOG_BYTES: u64 = 8 * GIB;
/// Age of the oldest output in OUT, seconds.
pub const OUT_AGE_S: u64 = 400 * DAY_S;
/// Most bytes of OUT, unless told otherwise.
pub const OUT_BYTES: u64 = GIB;
/// A store with more bytes warns.
pub const STORE_BYTES: u64 = 16 * GIB;
/// Outputs kept in a store behind the last one that stands in OUT.
pub const STORE_OUTPUTS: u64 = 100_000;
/// Checkpoints kept.
pub const CHECKPOINTS_KEPT: u64 = 3;
/// How long a file stays that the newest manifest does not name, seconds.
pub const UNNAMED_AGE_S: u64 = 3_600;
/// How long a manifest stays that newer ones do not build on, seconds.
pub const MANIFEST_AGE_S: u64 = 7 * DAY_S;

/// What is kept of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// What.
    pub what: &'static str,
    /// Where it is.
    pub place: &'static str,
    /// Oldest kept, seconds; absent = no limit of age.
    pub max_age_s: Option<u64>,
    /// Most bytes kept; absent = no limit of its own.
    pub max_bytes: Option<u64>,
    /// Most of them kept; absent = no limit of number.
    pub max_count: Option<u64>,
    /// What enforces it, and what happens then.
    pub enforced: &'static str,
}

const LOG: Keep = Keep {
    what: "log",
    place: "nats-server, stream LOG",
    max_age_s: Some(LOG_AGE_S),
    max_bytes: Some(LOG_BYTES),
    max_count: None,
    enforced: "nats-server drops the oldest; bytes by --log-bytes-max when the stream is created",
};
const OUT: Keep = Keep {
    what: "out",
    place: "nats-server, stream OUT",
    max_age_s: Some(OUT_AGE_S),
    max_bytes: Some(OUT_BYTES),
    max_count: None,
    enforced: "nats-server drops the oldest; bytes by --out-bytes-max when the stream is created",
};
const STORE: Keep = Keep {
    what: "store",
    place: "processor, <data-dir>/state",
    max_age_s: None,
    max_bytes: Some(STORE_BYTES),
    max_count: None,
    enforced: "rows go one manifest after the sealed record that holds them; over the limit is a warning, never a loss",
};
const OUTPUTS: Keep = Keep {
    what: "outputs",
    place: "processor, <data-dir>/state",
    max_age_s: None,
    max_bytes: None,
    max_count: Some(STORE_OUTPUTS),
    enforced: "the oldest that stand in OUT go with a commit",
};
const CHECKPOINTS: Keep = Keep {
    what: "checkpoints",
    place: "archive, checkpoints/<cell>",
    max_age_s: None,
    max_bytes: None,
    max_count: Some(CHECKPOINTS_KEPT),
    enforced: "the oldest go when a new one stands",
};
const UNNAMED_FILES: Keep = Keep {
    what: "unnamed files",
    place: "archive, archive/<table>",
    max_age_s: Some(UNNAMED_AGE_S),
    max_bytes: None,
    max_count: None,
    enforced: "swept with a seal, so that whoever still reads an older manifest can finish",
};
const MANIFESTS: Keep = Keep {
    what: "manifests",
    place: "archive, manifest/<cell>",
    max_age_s: Some(MANIFEST_AGE_S),
    max_bytes: None,
    max_count: None,
    enforced: "swept with a seal; those that the newest one builds on stay",
};
const WINDOWS_10S: Keep = tier("gpu_windows_10s", Some(2 * DAY_S), Some(64 * GIB));
const WINDOWS_1M: Keep = tier("gpu_windows_1m", Some(90 * DAY_S), Some(256 * GIB));
const WINDOWS_1H: Keep = tier("gpu_windows_1h", Some(3 * 365 * DAY_S), Some(64 * GIB));
const HOST_WINDOWS_1M: Keep = tier("host_windows_1m", Some(3 * 365 * DAY_S), Some(64 * GIB));
const EVENTS: Keep = tier("all other tables", None, None);

const fn tier(what: &'static str, max_age_s: Option<u64>, max_bytes: Option<u64>) -> Keep {
    let enforced = match max_age_s {
        Some(_) => "whole files leave the manifest with a seal, the oldest first, and are logged",
        None => "kept for ever",
    };
    Keep { what, place: "archive, archive/<table>", max_age_s, max_bytes, max_count: None, enforced }
}

/// The whole table.
pub const ALL: &[Keep] =
    &[LOG, OUT, STORE, OUTPUTS, CHECKPOINTS, WINDOWS_10S, WINDOWS_1M, WINDOWS_1H, HOST_WINDOWS_1M, EVENTS, UNNAMED_FILES, MANIFESTS];

/// What is kept of a table in the archive.
pub const fn of_table(table: Table) -> Keep {
    match table {
        Table::GpuWindows10s => WINDOWS_10S,
        Table::GpuWindows1m => WINDOWS_1M,
        Table::GpuWindows1h => WINDOWS_1H,
        Table::HostWindows1m => HOST_WINDOWS_1M,
        Table::Devices
        | Table::Hosts
        | Table::PlacementRequests
        | Table::PlacementDecisions
        | Table::Leases
        | Table::LeaseDevices
        | Table::Rejected
        | Table::DeviceEvents
        | Table::Gaps
        | Table::Episodes
        | Table::Policies
        | Table::Alerts => EVENTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_with_a_limit_stands_in_the_one_table_under_its_name() {
        for &table in Table::ALL {
            let keep = of_table(table);
            assert!(ALL.contains(&keep));
            assert!(keep.max_age_s.is_none() || keep.what == table.name(), "{}", keep.what);
        }
    }

    #[test]
    fn coarser_windows_are_kept_longer() {
        let ages = [Table::GpuWindows10s, Table::GpuWindows1m, Table::GpuWindows1h].map(|table| of_table(table).max_age_s);
        assert!(ages.is_sorted() && ages[0].is_some());
    }
}
