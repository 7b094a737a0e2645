//! The metrics of the query service.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::snapshot::Snapshot;
use crate::tail::Health;

/// By which door a statement came and how it ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// `http` or `pg`.
    pub door: &'static str,
    /// `ok`, `truncated` or the code of its error.
    pub outcome: &'static str,
}

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Statements by door and outcome.
    pub statements: Family<Ended, Counter>,
    /// How long statements took, seconds.
    pub seconds: Histogram,
    /// Rows given out.
    pub rows: Counter,
    /// Connections refused because there were too many.
    pub connections_refused: Counter,
    running: Gauge,
    waiting: Gauge,
    memory_bytes: Gauge,
    tail_rows: Gauge,
    tail_bytes: Gauge,
    tail_streams: Gauge,
    tail_full: Gauge,
    tail_followed: Gauge,
    tail_changes: Gauge,
    freshness_ms: Gauge,
    manifest_version: Gauge,
    ready: Gauge,
}

/// What gauges are set from.
pub struct Now<'a> {
    /// Statements running.
    pub running: usize,
    /// Statements waiting.
    pub waiting: usize,
    /// Memory of statements, bytes.
    pub memory_bytes: usize,
    /// The tail.
    pub health: &'a Health,
    /// What a statement would see, if anything.
    pub snapshot: Option<&'a Snapshot>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("plimsoll_query");
        let mut gauge = |name: &str, help: &str| {
            let gauge = Gauge::<i64, AtomicI64>::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let running = gauge("statements_running", "Statements running now");
        let waiting = gauge("statements_waiting", "Statements waiting for their turn");
        let memory_bytes = gauge("memory_bytes", "Memory that running statements hold, bytes");
        let tail_rows = gauge("tail_rows", "Unsealed rows held in memory");
        let tail_bytes = gauge("tail_bytes", "Bytes of unsealed rows held in memory");
        let tail_streams = gauge("tail_streams_connected", "Tail streams connected to the processor");
        let tail_full = gauge("tail_full_waits", "How often a tail stream had to wait for room since the start");
        let tail_followed = gauge("tail_followed", "Which address of --tail is followed, counted from 1");
        let tail_changes = gauge("tail_changes", "How often another tail was taken since the start");
        let freshness_ms = gauge("freshness_ms", "Age of the newest log time that answers include, ms; -1 if not known");
        let manifest_version = gauge("manifest_version", "Version of the manifest in use; 0 if nothing is sealed");
        let ready = gauge("ready", "1 if answers are whole and fresh");
        let statements = Family::<Ended, Counter>::default();
        let seconds = Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let (rows, connections_refused) = (Counter::<u64, AtomicU64>::default(), Counter::<u64, AtomicU64>::default());
        registry.register("statements", "Statements by door and outcome", statements.clone());
        registry.register("statement_seconds", "Time from a statement's arrival to its end, seconds", seconds.clone());
        registry.register("rows", "Rows given out", rows.clone());
        registry.register("connections_refused", "Connections refused because there were too many", connections_refused.clone());
        Self {
            registry,
            statements,
            seconds,
            rows,
            connections_refused,
            running,
            waiting,
            memory_bytes,
            tail_rows,
            tail_bytes,
            tail_streams,
            tail_full,
            tail_followed,
            tail_changes,
            freshness_ms,
            manifest_version,
            ready,
        }
    }
}

impl Metrics {
    /// The OpenMetrics text.
    pub fn text(&self, now: &Now<'_>) -> String {
        let signed = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.running.set(signed(now.running));
        self.waiting.set(signed(now.waiting));
        self.memory_bytes.set(signed(now.memory_bytes));
        self.tail_rows.set(signed(now.health.rows));
        self.tail_bytes.set(signed(now.health.bytes));
        self.tail_streams.set(signed(now.health.connected));
        self.tail_full.set(i64::try_from(now.health.full_total).unwrap_or(i64::MAX));
        self.tail_followed.set(signed(now.health.followed.index + 1));
        self.tail_changes.set(i64::try_from(now.health.followed.changes_total).unwrap_or(i64::MAX));
        self.freshness_ms.set(now.snapshot.and_then(Snapshot::freshness_ms).unwrap_or(-1));
        self.manifest_version.set(now.snapshot.and_then(Snapshot::manifest).map_or(0, |manifest| manifest.version as i64));
        self.ready.set(i64::from(now.health.reasons.is_empty()));
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}
