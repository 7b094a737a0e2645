//! Every metric of the agent, with unit and help. Nothing here calls a driver: what is served is what was last seen.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use plimsoll_schemas::id::{GpuUuid, HostId};
use plimsoll_schemas::sample::{Sample, ZERO_CELSIUS_MK};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label sets of one label.
type By = [(&'static str, String); 1];
/// Label sets of a GPU.
type ByGpu = [(&'static str, String); 2];
type F64 = Gauge<f64, AtomicU64>;

/// More GPUs than this in one process get no series of their own (a simulated fleet would drown a scraper).
pub const GPU_SERIES_MAX: usize = 256;

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Ticks read.
    pub ticks: Counter,
    /// Ticks that came too late to be read.
    pub ticks_missed: Counter,
    /// GPU samples believed.
    pub samples: Counter,
    /// Values refused, by reason.
    pub refused: Family<By, Counter>,
    /// Ticks that spoke of an unknown host or GPU.
    pub unknown_devices: Counter,
    /// Host events, by kind.
    pub events: Family<By, Counter>,
    /// Records acknowledged by the broker, by class.
    pub published: Family<By, Counter>,
    /// Bytes acknowledged by the broker.
    pub published_bytes: Counter,
    /// Publishes that were not acknowledged, by cause.
    pub publish_failures: Family<By, Counter>,
    /// Records given up, by cause.
    pub dropped: Family<By, Counter>,
    /// Records waiting for their acknowledgement.
    pub buffer_records: Gauge,
    /// Their bytes.
    pub buffer_bytes: Gauge,
    /// Of them, sent and not yet acknowledged.
    pub in_flight: Gauge,
    /// Acknowledged records kept for repairs.
    pub kept_records: Gauge,
    /// Their bytes.
    pub kept_bytes: Gauge,
    /// Of them, let go because there was no room.
    pub kept_dropped: Counter,
    /// Requests for what the log lacks.
    pub repair_requests: Counter,
    /// Requests that could not be read or queued.
    pub repair_requests_refused: Counter,
    /// Records asked for that are gone.
    pub repair_gone: Counter,
    /// Connections to the broker.
    pub connects: Counter,
    /// 1 = connected to the broker.
    pub connected: Gauge,
    /// Hosts this process speaks for.
    pub hosts: Gauge,
    /// GPUs and MIG instances this process speaks for.
    pub gpus: Gauge,
    /// 1 = the endpoint, library or file can be read.
    pub source_up: Family<By, Gauge>,
    /// Failed reads of the source, by cause.
    pub source_errors: Family<By, Counter>,
    /// Lines of a scrape or trace that could not be used, by reason.
    pub source_lines_skipped: Family<By, Counter>,
    gpu: GpuSeries,
}

#[derive(Debug, Default)]
struct GpuSeries {
    memory_used: Family<ByGpu, F64>,
    memory_total: Family<ByGpu, F64>,
    utilization: Family<ByGpu, F64>,
    temperature: Family<ByGpu, F64>,
    power: Family<ByGpu, F64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("plimsoll_agent");
        macro_rules! metric {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                register(own, $name, $help, &metric);
                metric
            }};
        }
        let metrics = Self {
            ticks: metric!("ticks", "Ticks read, one per host and interval"),
            ticks_missed: metric!("ticks_missed", "Ticks skipped because the process was late"),
            samples: metric!("samples", "GPU samples believed"),
            refused: metric!("refused", "Values refused by the validator or known by the source to be no value, by reason"),
            unknown_devices: metric!("unknown_devices", "Readings of a host or GPU that the source never named"),
            events: metric!("events", "Host events, by kind"),
            published: metric!("published", "Records acknowledged by the broker, by class"),
            published_bytes: metric!("published_bytes", "Payload bytes acknowledged by the broker"),
            publish_failures: metric!("publish_failures", "Publishes without acknowledgement, by cause; they are retried"),
            dropped: metric!("dropped", "Records given up, by cause; samples are reported as gaps"),
            buffer_records: metric!("buffer_records", "Records waiting for their acknowledgement"),
            buffer_bytes: metric!("buffer_bytes", "Payload bytes waiting for their acknowledgement"),
            in_flight: metric!("in_flight", "Records sent and not yet acknowledged"),
            kept_records: metric!("kept_records", "Acknowledged records kept to answer repair requests"),
            kept_bytes: metric!("kept_bytes", "Bytes of acknowledged records kept, with an estimate of what each costs beside its payload"),
            kept_dropped: metric!("kept_dropped", "Acknowledged records let go because there was no room; the oldest go first"),
            repair_requests: metric!("repair_requests", "Requests of the processor for records that the log lacks"),
            repair_requests_refused: metric!("repair_requests_refused", "Requests that could not be read, or not be queued; they are repeated"),
            repair_gone: metric!("repair_gone", "Records asked for and no longer kept; each is in a gap event"),
            connects: metric!("connects", "Connections made to the broker"),
            connected: metric!("connected", "1 = connected to the broker"),
            hosts: metric!("hosts", "Hosts this process speaks for"),
            gpus: metric!("gpus", "GPUs and MIG instances this process speaks for"),
            source_up: metric!("source_up", "1 = the endpoint, library or file can be read"),
            source_errors: metric!("source_errors", "Failed reads of the source, by cause"),
            source_lines_skipped: metric!("source_lines_skipped", "Lines of a scrape or trace that carry nothing usable, by reason"),
            gpu: GpuSeries::default(),
            registry: Mutex::default(),
        };
        let gpu = &metrics.gpu;
        for (name, help, family) in [
            ("gpu_memory_used_bytes", "GPU memory in use, bytes", &gpu.memory_used),
            ("gpu_memory_total_bytes", "GPU memory on board, bytes", &gpu.memory_total),
            ("gpu_utilization_percent", "GPU utilisation, percent", &gpu.utilization),
            ("gpu_temperature_celsius", "Core temperature, degrees Celsius", &gpu.temperature),
            ("gpu_power_watts", "Board power, watts", &gpu.power),
        ] {
            registry.register(name, help, family.clone());
        }
        *metrics.registry.lock().expect("no holder panics") = registry;
        metrics
    }
}

fn register<M: prometheus_client::registry::Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: &M) {
    registry.register(name, help, metric.clone());
}

/// A label set of one label.
pub fn by(name: &'static str, value: impl Into<String>) -> By {
    [(name, value.into())]
}

impl Metrics {
    /// The OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry.lock().expect("no holder panics")).expect("a String takes any text");
        text
    }

    /// Shows what is known of one GPU; what is absent has no series.
    pub fn show_gpu(&self, host: &HostId, uuid: &GpuUuid, memory_total_bytes: Option<u64>, sample: &Sample) {
        let labels = [("host", host.to_string()), ("uuid", uuid.to_string())];
        let celsius = sample.temperature_mk().map(|mk| (mk as f64 - ZERO_CELSIUS_MK as f64) / 1_000.0);
        for (family, value) in [
            (&self.gpu.memory_used, sample.memory_used_bytes().map(|bytes| bytes as f64)),
            (&self.gpu.memory_total, sample.memory_total_bytes().or(memory_total_bytes).map(|bytes| bytes as f64)),
            (&self.gpu.utilization, sample.util_percent().map(|percent| percent as f64)),
            (&self.gpu.temperature, celsius),
            (&self.gpu.power, sample.power_mw().map(|mw| mw as f64 / 1_000.0)),
        ] {
            match value {
                Some(value) => {
                    family.get_or_create(&labels).set(value);
                }
                None => {
                    family.remove(&labels);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::sample::Field;

    #[test]
    fn what_is_unknown_has_no_series() {
        let metrics = Metrics::default();
        let (host, uuid) = ("h".parse().expect("valid"), "GPU-1".parse().expect("valid"));
        metrics.show_gpu(&host, &uuid, Some(80), &Sample::default().with(Field::PowerMw, 250_500).with(Field::TemperatureMk, 323_150));
        metrics.refused.get_or_create(&by("reason", "not_finite")).inc();
        let text = metrics.text();
        assert!(text.contains("gpu_power_watts{host=\"h\",uuid=\"GPU-1\"} 250.5"), "{text}");
        assert!(text.contains("gpu_temperature_celsius{host=\"h\",uuid=\"GPU-1\"} 50.0"), "{text}");
        assert!(text.contains("plimsoll_agent_refused_total{reason=\"not_finite\"} 1"), "{text}");
        assert!(!text.contains("gpu_utilization_percent{"), "{text}");
    }
}
