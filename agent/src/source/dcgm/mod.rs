//! Scrapes dcgm-exporter endpoints: one thread each, so that a slow one holds nobody up. Needed where DCGM already owns the profiling
//! counters, or where only its exporter is reachable. The text carries no times, so a sample is as old as the exporter's own interval.

pub mod prom;
pub mod names;
pub mod scrape;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use plimsoll_schemas::id::{GpuUuid, HostId};
use plimsoll_schemas::inventory::{EventKind, Gpu, Placement};
use plimsoll_schemas::validate::CAPACITY_TOLERANCE_BYTES;

use self::scrape::{Device, UtilUnit};
use super::rate::Beat;
use super::{Delivery, Held, HostEvent, HostFacts, HostTick, Outlet, Signal, Source};
use crate::clock::{Moment, Stop};
use crate::metrics::{Metrics, by};

/// Largest scrape, bytes.
const SCRAPE_BYTES_MAX: u64 = 16 << 20;
/// Scrapes in a row without it after which a MIG instance counts as taken apart. (A board stays: it is lost.)
const INSTANCE_GONE_AFTER: u32 = 5;
/// Scrapes in a row with another size of memory after which the size is believed.
const CAPACITY_CHANGED_AFTER: u32 = 30;

/// What to scrape.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Endpoints, each with or without a path.
    pub urls: Vec<String>,
    /// Name for every row; only with one endpoint.
    pub host: Option<String>,
    /// Unit of GPU_UTIL.
    pub unit: UtilUnit,
    /// Spacing of scrapes, ms.
    pub interval_ms: u32,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not a URL of an endpoint.
    #[error("--dcgm {url}: not an http:// or https:// URL with a host")]
    Url {
        /// What was given.
        url: String,
    },
    /// One name for several endpoints.
    #[error("--host names one host, but there are {count} --dcgm endpoints; leave it out and let their labels speak")]
    Host {
        /// How many.
        count: usize,
    },
}

/// The source.
#[derive(Debug)]
pub struct Dcgm {
    settings: Settings,
    endpoints: Vec<Endpoint>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, PartialEq)]
struct Endpoint {
    /// With path.
    url: String,
    /// Host of the URL, for rows without a label.
    host: String,
    /// `host:port`, for two endpoints that claim the same host.
    authority: String,
}

/// Which endpoint speaks for which host.
type Claims = Arc<Mutex<BTreeMap<String, String>>>;

impl Endpoint {
    fn parse(given: &str) -> Result<Self, SettingsError> {
        let refused = || SettingsError::Url { url: given.to_owned() };
        let with_scheme = if given.contains("://") { given.to_owned() } else { format!("http://{given}") };
        let (scheme, rest) = with_scheme.split_once("://").ok_or_else(refused)?;
        if !matches!(scheme, "http" | "https") {
            return Err(refused());
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = if path.is_empty() { "metrics" } else { path };
        let authority = authority.rsplit('@').next().unwrap_or(authority).to_owned();
        let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((v6, _)) => v6.to_owned(),
            None => authority.split(':').next().unwrap_or_default().to_owned(),
        };
        if host.is_empty() {
            Err(refused())
        } else {
            Ok(Self { url: format!("{scheme}://{}/{path}", rest.split('/').next().unwrap_or(rest)), host, authority })
        }
    }
}

impl Dcgm {
    /// A source of these endpoints.
    pub fn new(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, SettingsError> {
        if settings.host.is_some() && settings.urls.len() > 1 {
            return Err(SettingsError::Host { count: settings.urls.len() });
        }
        let endpoints = settings.urls.iter().map(|url| Endpoint::parse(url)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { settings, endpoints, metrics })
    }
}

impl Source for Dcgm {
    fn name(&self) -> &'static str {
        "dcgm"
    }

    fn run(self: Box<Self>, out: Outlet, stop: Stop) {
        let claims = Claims::default();
        std::thread::scope(|scope| {
            for endpoint in &self.endpoints {
                let mut scraper = Scraper::new(endpoint.clone(), self.settings.clone(), claims.clone(), self.metrics.clone());
                let (out, stop) = (out.clone(), stop.clone());
                scope.spawn(move || scraper.run(&out, &stop));
            }
        });
    }
}

struct Scraper {
    endpoint: Endpoint,
    settings: Settings,
    claims: Claims,
    metrics: Arc<Metrics>,
    client: ureq::Agent,
    hosts: BTreeMap<String, Known>,
    up: Option<bool>,
}

/// What is remembered of a host between scrapes.
struct Known {
    id: HostId,
    devices: BTreeMap<GpuUuid, Remembered>,
    /// UUIDs in the order in which they were first seen.
    order: Vec<GpuUuid>,
}

struct Remembered {
    gpu: Gpu,
    xid: u32,
    missing: u32,
    other_capacity: u32,
}

impl Scraper {
    fn new(endpoint: Endpoint, settings: Settings, claims: Claims, metrics: Arc<Metrics>) -> Self {
        let timeout = Duration::from_millis(u64::from(settings.interval_ms) * 8 / 10).clamp(Duration::from_millis(50), Duration::from_secs(10));
        let client = ureq::Agent::config_builder().timeout_global(Some(timeout)).user_agent("plimsoll-agent").build().new_agent();
        Self { endpoint, settings, claims, metrics, client, hosts: BTreeMap::new(), up: None }
    }

    fn run(&mut self, out: &Outlet, stop: &Stop) {
        let mut beat = Beat::new(self.settings.interval_ms);
        while beat.next(stop).is_some() {
            match self.fetch() {
                Ok(text) => {
                    let at = Moment::now();
                    self.say_up(true, "");
                    if !self.take(&text, at, out) {
                        return;
                    }
                }
                Err(error) => self.say_up(false, &error),
            }
        }
    }

    fn fetch(&self) -> Result<String, String> {
        let mut answer = self.client.get(&self.endpoint.url).call().map_err(|error| error.to_string())?;
        let body = answer.body_mut().with_config().limit(SCRAPE_BYTES_MAX).read_to_vec().map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Says when the endpoint comes or goes; counts every failure.
    fn say_up(&mut self, up: bool, error: &str) {
        let endpoint = &self.endpoint.url;
        if !up {
            self.metrics.source_errors.get_or_create(&by("cause", "scrape")).inc();
        }
        if self.up != Some(up) {
            self.metrics.source_up.get_or_create(&by("endpoint", endpoint.as_str())).set(i64::from(up));
            if up {
                tracing::info!(endpoint, "scraping");
            } else {
                tracing::warn!(endpoint, error, "cannot scrape; trying again at every interval");
            }
        }
        self.up = Some(up);
    }

    fn take(&mut self, text: &str, at: Moment, out: &Outlet) -> bool {
        let fallback = self.settings.host.as_deref().unwrap_or(&self.endpoint.host);
        let scrape = scrape::read(text, fallback, self.settings.host.is_some(), self.settings.unit);
        for (reason, count) in &scrape.skipped {
            self.metrics.source_lines_skipped.get_or_create(&by("reason", *reason)).inc_by(*count);
        }
        if scrape.hosts.is_empty() {
            // During a reload the exporter answers with nothing.
            self.metrics.source_errors.get_or_create(&by("cause", "empty_scrape")).inc();
        }
        scrape.hosts.into_iter().all(|(name, devices)| self.take_host(&name, devices, at, out))
    }

    fn take_host(&mut self, name: &str, devices: Vec<Device>, at: Moment, out: &Outlet) -> bool {
        let claimed = self.claim(name);
        let known = match self.hosts.get_mut(&claimed) {
            Some(known) => known,
            None => {
                let Ok(id) = HostId::escape(&claimed) else {
                    self.metrics.source_lines_skipped.get_or_create(&by("reason", "host_malformed")).inc();
                    return true;
                };
                self.hosts.entry(claimed.clone()).or_insert(Known { id, devices: BTreeMap::new(), order: Vec::new() })
            }
        };
        let mut changed = known.order.is_empty();
        let mut events = Vec::new();
        for remembered in known.devices.values_mut() {
            remembered.missing = remembered.missing.saturating_add(1);
        }
        for device in &devices {
            changed |= known.remember(device, &mut events);
        }
        changed |= known.forget_instances();
        if changed && !out.say(Signal::Host(known.facts(&claimed))) {
            return false;
        }
        for (uuid, code, first) in events {
            let detail = first.then(|| "standing when the agent first looked: it may have happened earlier".to_owned());
            let kind = EventKind::Xid { code };
            if !out.say(Signal::Event(HostEvent { host: known.id.clone(), happened_at: at.wall, uuid: Some(uuid), kind, detail })) {
                return false;
            }
        }
        let gpus = devices.into_iter().map(|device| device.reading).collect();
        let held = Held::SinceBoot(at.boot_ns);
        out.say(Signal::Tick(HostTick { host: known.id.clone(), sampled_at: at.wall, held, gpus, delivery: Delivery::Normal }))
    }

    /// The name under which this endpoint may speak: two endpoints that name the same host would overwrite each other.
    fn claim(&self, name: &str) -> String {
        let mut claims = self.claims.lock().expect("no holder panics");
        let owner = claims.entry(name.to_owned()).or_insert_with(|| self.endpoint.url.clone());
        if *owner == self.endpoint.url {
            return name.to_owned();
        }
        let other = format!("{name}@{}", self.endpoint.authority);
        if claims.insert(other.clone(), self.endpoint.url.clone()).is_none() {
            tracing::warn!(host = name, endpoint = self.endpoint.url, "another endpoint names the same host; this one speaks as {other}");
        }
        other
    }
}

impl Known {
    /// Takes what a scrape says of a device: true = the inventory changes.
    fn remember(&mut self, device: &Device, events: &mut Vec<(GpuUuid, u32, bool)>) -> bool {
        let uuid = &device.gpu.uuid;
        let Some(before) = self.devices.get_mut(uuid) else {
            let xid = device.xid.unwrap_or(0);
            if xid != 0 {
                events.push((uuid.clone(), xid, true));
            }
            self.order.push(uuid.clone());
            self.devices.insert(uuid.clone(), Remembered { gpu: device.gpu.clone(), xid, missing: 0, other_capacity: 0 });
            return true;
        };
        before.missing = 0;
        if let Some(xid) = device.xid.filter(|&xid| xid != before.xid) {
            before.xid = xid;
            if xid != 0 {
                events.push((uuid.clone(), xid, false));
            }
        }
        let mut now = device.gpu.clone();
        // What this scrape does not print is still true.
        now.power_limit_mw = now.power_limit_mw.or(before.gpu.power_limit_mw);
        now.power_limit_max_mw = now.power_limit_max_mw.or(before.gpu.power_limit_max_mw);
        now.slowdown_temperature_mk = now.slowdown_temperature_mk.or(before.gpu.slowdown_temperature_mk);
        now.memory_total_bytes = before.capacity(now.memory_total_bytes);
        let changed = before.gpu != now;
        before.gpu = now;
        changed
    }

    /// Drops MIG instances that are no longer there.
    fn forget_instances(&mut self) -> bool {
        let before = self.devices.len();
        self.devices.retain(|_, device| device.gpu.mig_parent_uuid.is_none() || device.missing < INSTANCE_GONE_AFTER);
        self.order.retain(|uuid| self.devices.contains_key(uuid));
        self.devices.len() != before
    }

    fn facts(&self, name: &str) -> HostFacts {
        HostFacts {
            host: self.id.clone(),
            hostname: name.to_owned(),
            placement: Placement::default(),
            cpu_cores: None,
            ram_bytes: None,
            gpus: self.order.iter().map(|uuid| self.devices[uuid].gpu.clone()).collect(),
        }
    }
}

impl Remembered {
    /// The registered size: the first one seen, until another one has stood long enough to be no mistake.
    fn capacity(&mut self, seen: Option<u64>) -> Option<u64> {
        let Some(registered) = self.gpu.memory_total_bytes else { return seen };
        match seen {
            Some(seen) if seen.abs_diff(registered) > CAPACITY_TOLERANCE_BYTES => {
                self.other_capacity += 1;
                if self.other_capacity >= CAPACITY_CHANGED_AFTER {
                    self.other_capacity = 0;
                    return Some(seen);
                }
            }
            Some(_) => self.other_capacity = 0,
            None => {}
        }
        Some(registered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_gets_the_usual_path_and_names_its_host() {
        let check = |given: &str, url: &str, host: &str| {
            let endpoint = Endpoint::parse(given).expect("a URL");
            assert_eq!((endpoint.url.as_str(), endpoint.host.as_str()), (url, host));
        };
        check("http://gpu-1:9400", "http://gpu-1:9400/metrics", "gpu-1");
        check("gpu-1.example.com:9400/", "http://gpu-1.example.com:9400/metrics", "gpu-1.example.com");
        check("https://gpu-1/dcgm/metrics", "https://gpu-1/dcgm/metrics", "gpu-1");
        check("http://[::1]:9400", "http://[::1]:9400/metrics", "::1");
        for wrong in ["ftp://x", "http://", "http:///metrics"] {
            assert!(Endpoint::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_xid_is_an_event_when_it_changes_and_not_while_it_stands() {
        let mut known = Known { id: "h".parse().expect("valid"), devices: BTreeMap::new(), order: Vec::new() };
        let mut seen = Vec::new();
        for xid in [0, 79, 79, 0, 79, 31] {
            let text = format!("DCGM_FI_DEV_XID_ERRORS{{gpu=\"0\",UUID=\"GPU-a\"}} {xid}\n");
            let scrape = scrape::read(&text, "h", false, UtilUnit::Percent);
            let mut events = Vec::new();
            known.remember(&scrape.hosts["h"][0], &mut events);
            seen.extend(events.into_iter().map(|(_, code, first)| (code, first)));
        }
        assert_eq!(seen, [(79, false), (79, false), (31, false)]);
    }

    #[test]
    fn a_board_stays_when_it_is_not_in_a_scrape_and_an_instance_goes() {
        let mut known = Known { id: "h".parse().expect("valid"), devices: BTreeMap::new(), order: Vec::new() };
        let text = "DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"7\"} 5\nDCGM_FI_DEV_FB_USED{gpu=\"1\",UUID=\"GPU-b\"} 5\n";
        let scrape = scrape::read(text, "h", false, UtilUnit::Percent);
        for device in &scrape.hosts["h"] {
            assert!(known.remember(device, &mut Vec::new()));
        }
        assert_eq!(known.order.len(), 3);
        let mut changes = 0;
        for _ in 0..10 {
            known.devices.values_mut().for_each(|device| device.missing += 1);
            changes += u32::from(known.forget_instances());
        }
        assert_eq!((changes, known.order.len()), (1, 2));
    }

    /// The real recordings, where they are.
    #[test]
    fn every_value_of_the_real_scrapes_arrives_or_is_absent_with_a_reason() {
        let root = std::path::Path::new("../../shared/data");
        let mut files = 0;
        for folder in ["dcgm_scrapes", "dcgm_scrapes_mig"] {
            let Ok(entries) = std::fs::read_dir(root.join(folder)) else { continue };
            for entry in entries {
                let path = entry.expect("readable").path();
                let text = std::fs::read_to_string(&path).expect("text");
                let scrape = scrape::read(&text, "h", false, UtilUnit::Percent);
                let unusable: u64 =
                    scrape.skipped.iter().filter(|(reason, _)| !matches!(**reason, "unknown_family" | "conflicting_value")).map(|(_, n)| n).sum();
                assert_eq!(unusable, 0, "{path:?}: {:?}", scrape.skipped);
                for device in scrape.hosts.values().flatten() {
                    check_device(&path, device);
                }
                files += 1;
            }
        }
        if files == 0 {
            eprintln!("skipped: no recorded scrapes under {}", root.display());
        }
    }

    fn check_device(path: &std::path::Path, device: &Device) {
        use plimsoll_schemas::sample::Field;
        use plimsoll_schemas::validate::{Context, FUTURE_MS_AGENT, Registered, validate};
        let now = plimsoll_schemas::time::EventTime(1_800_000_000_000_000_000);
        let registered = Some(Registered { memory_total_bytes: device.gpu.memory_total_bytes, power_limit_max_mw: None });
        let context = Context { accepting: true, registered, sampled_at_ns: i128::from(now.0), now, future_ms: FUTURE_MS_AGENT };
        let verdict = validate(&device.reading.reading, &context);
        let sample = verdict.sample.expect("the sample lives");
        let refused: Vec<_> = verdict.violations.iter().chain(&device.reading.refused).filter_map(|violation| violation.field).collect();
        for &field in Field::ALL {
            let given = device.reading.reading.get(field).is_some();
            let (arrived, refused) = (sample.get(field).is_some(), refused.contains(&field));
            assert!(!(arrived && refused), "{path:?} {field:?}: both arrived and refused");
            assert!(!given || arrived || refused, "{path:?} {field:?}: gone without a reason");
        }
        if device.gpu.mig_parent_uuid.is_some() {
            assert_eq!((sample.power_mw(), sample.temperature_mk()), (None, None), "{path:?}: board values on an instance");
        }
        assert!(sample.power_mw().is_none_or(|mw| mw < 1_000_000), "{path:?}: {sample:?}");
        assert!(sample.memory_used_bytes() <= sample.memory_total_bytes() || sample.memory_total_bytes().is_none(), "{path:?}");
    }
}
