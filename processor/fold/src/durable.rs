//! What of the state survives a restart: entries of numbered tables, keys in big-endian order, values in postcard.

/// One durable entry; a value of `None` deletes the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The table.
    pub table: StateTable,
    /// The key's bytes.
    pub key: Vec<u8>,
    /// The value's bytes; absent = deleted.
    pub value: Option<Vec<u8>>,
}

/// A table of durable state: one column family of the store each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StateTable {
    /// Counters, clocks, settings.
    Meta = 1,
    /// Hosts.
    Hosts = 2,
    /// GPUs with their current sample.
    Devices = 3,
    /// Open panes.
    Panes = 4,
    /// Which sequences were folded.
    Ranges = 5,
    /// Requests, for idempotence.
    Requests = 6,
    /// Leases.
    Leases = 7,
}

impl StateTable {
    /// Every table.
    pub const ALL: &[StateTable] = &[Self::Meta, Self::Hosts, Self::Devices, Self::Panes, Self::Ranges, Self::Requests, Self::Leases];

    /// The name of its column family.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Hosts => "hosts",
            Self::Devices => "devices",
            Self::Panes => "panes",
            Self::Ranges => "ranges",
            Self::Requests => "requests",
            Self::Leases => "leases",
        }
    }
}

/// Stored state that cannot be read back: the store is set aside and rebuilt from the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stored state is unreadable: table {table}, key {key}: {detail}")]
pub struct RestoreError {
    /// Table.
    pub table: &'static str,
    /// Key, hexadecimal.
    pub key: String,
    /// What was wrong.
    pub detail: String,
}
