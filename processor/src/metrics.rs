//! Every metric of the processor, with unit and help.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use plimsoll_schemas::out::PaceCounts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Whose pace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct OfPace {
    /// `cell`, `tenant/<id>` or `others`.
    pub scope: String,
}

/// Whose pace, and what became of requests under it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UnderPace {
    /// `cell`, `tenant/<id>` or `others`.
    pub scope: String,
    /// `admitted`, `refused`, `cancelled` or `waiting`.
    pub outcome: &'static str,
}

/// Handles to all metrics; a clone is the same metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Records folded.
    pub records: Counter,
    /// Payload bytes read from the log.
    pub log_bytes: Counter,
    /// Sequence of the last record folded.
    pub position: Gauge,
    /// Records between the last folded and the log's end.
    pub lag: Gauge,
    /// Batches waiting between the reader and the fold.
    pub log_queue: Gauge,
    /// Memory that they and the one being folded take, about.
    pub log_queue_bytes: Gauge,
    /// Times the consumer was created anew.
    pub consumer_restarts: Counter,
    /// Sequences of the log that were gone before they could be read.
    pub log_missing: Counter,
    /// Records delivered twice and skipped.
    pub log_repeated: Counter,
    /// Number of the last output made.
    pub out_seq: Gauge,
    /// Number of the last output known to stand in OUT.
    pub out_acked: Gauge,
    /// Outputs waiting to be published.
    pub out_queue: Gauge,
    /// Outputs that stood in OUT already and were equal.
    pub out_compared: Counter,
    /// Outputs that could not be compared because OUT no longer keeps them.
    pub out_unverifiable: Counter,
    /// Times OUT was read back after a refusal or time-out.
    pub out_read_backs: Counter,
    /// Commits written.
    pub commits: Counter,
    /// How long a commit took.
    pub commit_seconds: Seconds,
    /// Rows made and not yet in the store.
    pub rows_unstored: Gauge,
    /// Rows made.
    pub rows: Counter,
    /// Version of the newest manifest folded.
    pub sealed_version: Gauge,
    /// Sequence of its position.
    pub sealed_position: Gauge,
    /// Seals that failed and will be tried again.
    pub seal_failures: Counter,
    /// How long a seal took.
    pub seal_seconds: Seconds,
    /// Bytes of the store's files.
    pub store_bytes: Gauge,
    /// 1 if that is more than its budget.
    pub store_over: Gauge,
    /// Files that left the archive's newest manifest by its retention.
    pub archive_expired: Counter,
    /// Files deleted from the archive because nothing names them.
    pub archive_swept: Counter,
    /// Checkpoints made.
    pub checkpoints: Counter,
    /// Checkpoints that failed and will be tried again.
    pub checkpoint_failures: Counter,
    /// How long a checkpoint took.
    pub checkpoint_seconds: Seconds,
    /// Bytes of the newest checkpoint made here.
    pub checkpoint_bytes: Gauge,
    /// Age of the newest checkpoint, or without one of this process.
    pub checkpoint_age_seconds: Gauge,
    /// Sequence of its position.
    pub checkpoint_position: Gauge,
    /// 1 if it is older than a third of what the log keeps.
    pub checkpoint_overdue: Gauge,
    /// Subscribers of the tail.
    pub tail_subscribers: Gauge,
    /// Subscribers dropped because they were too slow.
    pub tail_dropped: Counter,
    /// Questions refused because the queue to the fold was full.
    pub asks_refused: Counter,
    /// Ticks that could not be published.
    pub tick_failures: Counter,
    /// Ticks refused because another replica had sent a newer one.
    pub ticks_refused: Counter,
    /// 1 = this replica is the active one.
    pub active: Gauge,
    /// Times another replica said another hash than this one's.
    pub divergences: Counter,
    /// Requests to agents for what is missing.
    pub repairs_sent: Counter,
    /// Such requests not sent: the queue was full, or the broker away. The fold asks again.
    pub repairs_dropped: Counter,
    /// Gaps open.
    pub gaps_open: Gauge,
    /// Hosts known.
    pub hosts: Gauge,
    /// Hosts not heard from.
    pub hosts_silent: Gauge,
    /// GPUs known.
    pub devices: Gauge,
    /// GPUs that could take a placement.
    pub devices_placeable: Gauge,
    /// Leases not ended.
    pub leases: Gauge,
    /// Requests that wait for room.
    pub requests_waiting: Gauge,
    /// Requests that came under each pace in force.
    pub pace_offered: Family<OfPace, Gauge>,
    /// The same by what became of them.
    pub pace_requests: Family<UnderPace, Gauge>,
    /// The paces that are shown now.
    paces: Arc<Mutex<BTreeSet<String>>>,
    /// Panes open.
    pub panes_open: Gauge,
    /// Alerts firing.
    pub alerts_firing: Gauge,
    /// Samples by what became of them.
    pub samples_folded: Gauge,
    /// Refused.
    pub samples_rejected: Gauge,
    /// Too late.
    pub samples_late: Gauge,
    /// Seen before.
    pub samples_duplicate: Gauge,
}

/// A histogram of durations.
#[derive(Debug, Clone)]
pub struct Seconds(pub Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new([0.001, 0.004, 0.016, 0.064, 0.25, 1.0, 4.0, 16.0, 64.0]))
    }
}

impl Metrics {
    /// All metrics as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry()).expect("a string can always be written to");
        text
    }

    fn registry(&self) -> Registry {
        let mut all = Registry::with_prefix("plimsoll_processor");
        self.register_log(&mut all);
        self.register_out(&mut all);
        self.register_rows(&mut all);
        self.register_fleet(&mut all);
        all
    }

    fn register_log(&self, all: &mut Registry) {
        all.register("records", "Records folded", self.records.clone());
        all.register_with_unit("log", "Payload read from the log", Unit::Bytes, self.log_bytes.clone());
        all.register("position", "Sequence of the last record folded", self.position.clone());
        all.register("lag_records", "Records between the last one folded and the end of the log", self.lag.clone());
        all.register("log_queue_batches", "Batches read and not yet folded", self.log_queue.clone());
        all.register_with_unit("log_queue", "Memory of these batches and of the one being folded", Unit::Bytes, self.log_queue_bytes.clone());
        all.register("consumer_restarts", "Times the log's consumer was created anew", self.consumer_restarts.clone());
        all.register("log_missing_records", "Sequences that were gone from the log before they could be read", self.log_missing.clone());
        all.register("log_repeated_records", "Records delivered twice and skipped", self.log_repeated.clone());
        all.register("tick_failures", "Ticks that could not be published", self.tick_failures.clone());
        all.register("ticks_refused", "Ticks refused because another replica had sent a newer one", self.ticks_refused.clone());
        all.register("active", "1 = this replica publishes, ticks and seals; 0 = it stands by", self.active.clone());
        all.register("divergences", "Times another replica said another state hash than this one's", self.divergences.clone());
    }

    fn register_out(&self, all: &mut Registry) {
        all.register("out_seq", "Number of the last output made", self.out_seq.clone());
        all.register("out_acked", "Number of the last output known to stand in OUT", self.out_acked.clone());
        all.register("out_queue_outputs", "Outputs waiting to be published", self.out_queue.clone());
        all.register("out_compared", "Outputs that stood in OUT already and were equal", self.out_compared.clone());
        all.register("out_unverifiable", "Outputs older than what OUT keeps, so not compared", self.out_unverifiable.clone());
        all.register("out_read_backs", "Times OUT was read back after a refusal or time-out", self.out_read_backs.clone());
    }

    fn register_rows(&self, all: &mut Registry) {
        all.register("commits", "Commits written", self.commits.clone());
        all.register_with_unit("commit", "How long a commit took", Unit::Seconds, self.commit_seconds.0.clone());
        all.register("rows", "Rows made", self.rows.clone());
        all.register("rows_unstored", "Rows made and not yet in the store", self.rows_unstored.clone());
        all.register("sealed_version", "Version of the newest manifest folded", self.sealed_version.clone());
        all.register("sealed_position", "Sequence up to which the archive holds all rows", self.sealed_position.clone());
        all.register("seal_failures", "Seals that failed and are tried again", self.seal_failures.clone());
        all.register_with_unit("seal", "How long a seal took", Unit::Seconds, self.seal_seconds.0.clone());
        all.register_with_unit("store", "Length of the store's files", Unit::Bytes, self.store_bytes.clone());
        all.register("store_over_budget", "1 if the store's files are longer than its budget", self.store_over.clone());
        all.register("archive_expired_files", "Files that left the newest manifest by its retention", self.archive_expired.clone());
        all.register("archive_swept_files", "Files deleted from the archive because nothing names them", self.archive_swept.clone());
        all.register("checkpoints", "Checkpoints of the state copied to the archive", self.checkpoints.clone());
        all.register("checkpoint_failures", "Checkpoints that failed and are tried again", self.checkpoint_failures.clone());
        all.register_with_unit("checkpoint", "How long a checkpoint took", Unit::Seconds, self.checkpoint_seconds.0.clone());
        all.register_with_unit("checkpoint_size", "Length of the newest checkpoint made here", Unit::Bytes, self.checkpoint_bytes.clone());
        let age = "Age of the newest checkpoint in the archive; without one, of this process";
        all.register_with_unit("checkpoint_age", age, Unit::Seconds, self.checkpoint_age_seconds.clone());
        all.register("checkpoint_position", "Sequence up to which the newest checkpoint holds the state", self.checkpoint_position.clone());
        let overdue = "1 if the newest checkpoint is older than a third of what the log keeps";
        all.register("checkpoint_overdue", overdue, self.checkpoint_overdue.clone());
        all.register("tail_subscribers", "Subscribers of the tail", self.tail_subscribers.clone());
        all.register("tail_dropped", "Subscribers dropped because their queue was full", self.tail_dropped.clone());
        all.register("asks_refused", "Questions to the fold refused because their queue was full", self.asks_refused.clone());
    }

    fn register_fleet(&self, all: &mut Registry) {
        all.register("repairs_sent", "Requests to agents for records that are missing", self.repairs_sent.clone());
        all.register(
            "repairs_dropped",
            "Such requests not sent, because of a full queue or no connection; they are repeated",
            self.repairs_dropped.clone(),
        );
        all.register("gaps_open", "Ranges of hosts' records that are missing and asked for", self.gaps_open.clone());
        all.register("hosts", "Hosts registered", self.hosts.clone());
        all.register("hosts_silent", "Hosts not heard from", self.hosts_silent.clone());
        all.register("devices", "GPUs registered", self.devices.clone());
        all.register("devices_placeable", "GPUs that could take a placement now", self.devices_placeable.clone());
        all.register("leases", "Leases not ended", self.leases.clone());
        all.register("requests_waiting", "Placement requests that wait for room", self.requests_waiting.clone());
        let offered = "Placement requests that came under a pace since it came into force: admitted, refused, cancelled and waiting ones";
        all.register("pace_offered_requests", offered, self.pace_offered.clone());
        let outcomes = "The same by what became of them; whoever is ahead of the pace is refused or waits";
        all.register("pace_requests", outcomes, self.pace_requests.clone());
        all.register("panes_open", "Windows open", self.panes_open.clone());
        all.register("alerts_firing", "Alerts firing", self.alerts_firing.clone());
        all.register("samples_folded", "Samples folded since the log began", self.samples_folded.clone());
        all.register("samples_rejected", "Samples refused since the log began", self.samples_rejected.clone());
        all.register("samples_late", "Samples too late for their window since the log began", self.samples_late.clone());
        all.register("samples_duplicate", "Samples seen before since the log began", self.samples_duplicate.clone());
    }

    /// Shows the fold's own numbers.
    pub fn show(&self, summary: &plimsoll_fold::Summary) {
        self.gaps_open.set(signed(summary.gaps_open));
        self.hosts.set(signed(summary.hosts));
        self.hosts_silent.set(signed(summary.hosts_silent));
        self.devices.set(signed(summary.devices));
        self.devices_placeable.set(signed(summary.devices_placeable));
        self.leases.set(signed(summary.leases));
        self.requests_waiting.set(signed(summary.requests_waiting));
        self.show_paces(&summary.paces);
        self.panes_open.set(signed(summary.panes_open));
        self.alerts_firing.set(signed(summary.alerts_firing));
        self.samples_folded.set(signed(summary.samples_folded));
        self.samples_rejected.set(signed(summary.samples_rejected));
        self.samples_late.set(signed(summary.samples_late));
        self.samples_duplicate.set(signed(summary.samples_duplicate));
    }
}

impl Metrics {
    /// Shows what became of requests under each pace, and no longer those of paces that have ended.
    fn show_paces(&self, paces: &BTreeMap<String, PaceCounts>) {
        let mut shown = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        let outcomes = |of: &PaceCounts| [("admitted", of.admitted), ("refused", of.refused), ("cancelled", of.cancelled), ("waiting", of.waiting)];
        for scope in shown.iter().filter(|&scope| !paces.contains_key(scope)) {
            self.pace_offered.remove(&OfPace { scope: scope.clone() });
            for (outcome, _) in outcomes(&PaceCounts::default()) {
                self.pace_requests.remove(&UnderPace { scope: scope.clone(), outcome });
            }
        }
        for (scope, counts) in paces {
            self.pace_offered.get_or_create(&OfPace { scope: scope.clone() }).set(signed(counts.offered()));
            for (outcome, count) in outcomes(counts) {
                self.pace_requests.get_or_create(&UnderPace { scope: scope.clone(), outcome }).set(signed(count));
            }
        }
        *shown = paces.keys().cloned().collect();
    }
}

/// A number as gauges want it.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_requests_is_shown_by_pace_as_long_as_that_is_in_force() {
        let metrics = Metrics::default();
        let show = |paces: &[(&str, PaceCounts)]| {
            let paces = paces.iter().map(|&(scope, counts)| (scope.to_owned(), counts)).collect();
            metrics.show(&plimsoll_fold::Summary { paces, ..plimsoll_fold::Summary::default() });
            let text = metrics.text();
            text.lines().filter(|line| line.starts_with("plimsoll_processor_pace")).map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let counts = PaceCounts { admitted: 9, refused: 5, cancelled: 1, waiting: 2 };
        let shown = show(&[("cell", counts), ("tenant/research", PaceCounts::default())]);
        assert_eq!(shown.len(), 10, "{shown:?}");
        for line in ["offered_requests{scope=\"cell\"} 17", "requests{scope=\"cell\",outcome=\"refused\"} 5"] {
            assert!(shown.contains(&format!("plimsoll_processor_pace_{line}")), "{line}: {shown:?}");
        }
        let shown = show(&[("tenant/research", counts)]);
        assert!(shown.len() == 5 && shown.iter().all(|line| line.contains("tenant/research")), "{shown:?}");
    }
}
