//! Tidying with each seal: what of the archive is over its limits ([`plimsoll_schemas::retention`]), which files nobody needs, how big the store is.
#![expect(clippy::disallowed_methods, reason = "ages of files are counted by the clock that stamped them")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use plimsoll_archive::retention::{Expired, expired};
use plimsoll_archive::{Archive, Manifest};
use plimsoll_schemas::retention;
use plimsoll_schemas::time::LogTime;
use plimsoll_store::Store;

use crate::metrics::{Metrics, signed};

/// How often the archive is searched for files that nothing names.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// What tidying needs.
pub struct Tidy {
    archive: Archive,
    store: Store,
    metrics: Metrics,
    swept: Option<Instant>,
    over: bool,
}

impl Tidy {
    /// Nothing was swept yet.
    pub fn new(archive: Archive, store: Store, metrics: Metrics) -> Self {
        Self { archive, store, metrics, swept: None, over: false }
    }

    /// The files that must leave a manifest. Both clocks have to agree that a row is old: a wrong one alone forgets nothing.
    pub fn expired(&self, manifest: &Manifest, log_time: LogTime) -> Vec<Expired> {
        expired(manifest, retention::of_table, now_ns().min(log_time.0))
    }

    /// Says what has left the archive, each file with its reason.
    pub fn note(&self, version: u64, gone: &[Expired]) {
        for Expired { path, bytes, why } in gone {
            tracing::info!(version, path, bytes, why, "left the archive");
        }
        self.metrics.archive_expired.inc_by(gone.len() as u64);
    }

    /// Deletes what nobody needs, now and then, and looks at the store's size. What fails is tried again the next time.
    pub async fn sweep(&mut self) {
        self.weigh();
        if self.swept.is_some_and(|swept| swept.elapsed() < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(Instant::now());
        match self.archive.sweep(now_ns()).await {
            Ok(swept) => {
                for file in &swept {
                    tracing::info!(path = file.path, why = file.why, "deleted from the archive");
                }
                self.metrics.archive_swept.inc_by(swept.len() as u64);
            }
            Err(error) => tracing::warn!(%error, "the archive was not swept"),
        }
    }

    fn weigh(&mut self) {
        let Some(bytes) = self.store.bytes() else { return };
        let over = bytes > retention::STORE_BYTES;
        self.metrics.store_bytes.set(signed(bytes));
        self.metrics.store_over.set(i64::from(over));
        if over && !self.over {
            tracing::error!(bytes, budget = retention::STORE_BYTES, "the store is over its budget: is sealing behind?");
        }
        self.over = over;
    }
}

fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}
