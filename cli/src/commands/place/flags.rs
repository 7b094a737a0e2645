//! A placement request as flags, of one bundle, or as a file, of any number of them. What no fold would take is refused before it is sent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use plimsoll_fold::placement::ask::Ask;
use plimsoll_schemas::request::{
    AntiAffinity, BUNDLE_GPUS_MAX, Bundle, Constraints, Domain, LEASE_TTL_MS_MAX, LEASE_TTL_MS_MIN, Locality, MEMBERS_MAX, Place, Spread, Topology,
    WAIT_MS_MAX, WHOLE_MILLI,
};
use plimsoll_schemas::time::{EventTime, parse_rfc3339_ns};
use serde_json::Value;

use crate::amount::{bytes, cores_milli, duration_ms};
use crate::error::Error;

const LOCALITIES: [Locality; 4] = [Locality::Nvlink, Locality::Numa, Locality::Host, Locality::Rack];
const DOMAINS: [Domain; 5] = [Domain::Host, Domain::Rack, Domain::Pool, Domain::Zone, Domain::Cluster];

/// What is needed.
#[derive(Debug, Args)]
pub struct Asked {
    /// A whole request as JSON, with as many bundles as it needs, instead of the flags below; - = standard input
    #[arg(long, value_name = "FILE", conflicts_with = "Shape")]
    file: Option<PathBuf>,
    /// Asking twice under one id is asking once [default: a new one]
    #[arg(long)]
    request_id: Option<String>,
    #[command(flatten)]
    shape: Shape,
}

/// One bundle of equal members, and where and when it may stand.
#[derive(Debug, Args)]
#[command(next_help_heading = "What is needed")]
struct Shape {
    /// How many GPUs for each member, all on one host
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(BUNDLE_GPUS_MAX)))]
    gpus: u32,
    /// Thousandths of each GPU; 1000 = exclusive use
    #[arg(long, default_value_t = WHOLE_MILLI, value_parser = clap::value_parser!(u32).range(1..=i64::from(WHOLE_MILLI)))]
    milli: u32,
    /// GPU memory needed on each, such as 40GiB or 80GB; none = whatever there is
    #[arg(long, value_parser = bytes)]
    memory: Option<u64>,
    /// MIG instances of this profile instead of GPUs, such as 1g.10gb: those that exist, else places where the holder may make them
    #[arg(long, value_name = "PROFILE")]
    mig: Option<String>,
    /// How many equal members; all are placed, each on one host, or none is
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MEMBERS_MAX)))]
    members: u32,
    /// CPU cores of the host for each member, such as 8 or 0.5
    #[arg(long, value_name = "CORES", value_parser = cores_milli)]
    cpu: Option<u64>,
    /// Memory of the host for each member, such as 64GiB
    #[arg(long, value_parser = bytes)]
    ram: Option<u64>,
    /// Product name as the driver gives it; given several times, any of them will do
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Least driver version, such as 550.54
    #[arg(long, value_name = "VERSION")]
    driver_min: Option<String>,
    /// Least compute capability, such as 8.0
    #[arg(long, value_name = "VERSION")]
    compute_capability_min: Option<String>,
    /// Only hosts that stand there, such as rack=r1 or zone=east
    #[arg(long, value_name = "DOMAIN=NAME", value_parser = within)]
    within: Vec<(Domain, String)>,
    /// How near it must be: the GPUs of a member for nvlink and numa, all members for host and rack
    #[arg(long, value_parser = locality())]
    near: Option<Locality>,
    /// How near it should be, if it can
    #[arg(long, value_parser = locality(), conflicts_with = "near")]
    prefer_near: Option<Locality>,
    /// No two members in one of these
    #[arg(long, value_parser = domain())]
    spread: Option<Domain>,
    /// No two members in one of these, if it can be
    #[arg(long, value_parser = domain(), conflicts_with = "spread")]
    prefer_spread: Option<Domain>,
    /// Not where a lease of the same tenant has this label; given several times, all of them
    #[arg(long, value_name = "LABEL=VALUE", value_parser = label)]
    avoid: Vec<(String, String)>,
    /// How far away from it [default: host]
    #[arg(long, value_parser = domain(), requires = "avoid")]
    avoid_over: Option<Domain>,
    /// A label to keep and show, as often as there are labels
    #[arg(long, value_name = "LABEL=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// What it is for
    #[arg(long)]
    workload: Option<String>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i16,
    /// Ending it may be proposed to make room for a request of higher priority
    #[arg(long)]
    preemptible: bool,
    /// How long it is expected to run, such as 2h: lets it use meanwhile what is kept for a larger request
    #[arg(long, value_name = "TIME", value_parser = duration_ms)]
    duration: Option<u64>,
    /// How long the lease lives without a renewal, such as 90s, 10m or 4h [default: 10m]
    #[arg(long, value_name = "TIME", value_parser = ttl_ms)]
    ttl: Option<u64>,
    /// Not to be placed before then, RFC 3339, such as 2026-11-20T14:05:00Z; until then it waits
    #[arg(long, value_name = "INSTANT", value_parser = instant)]
    not_before: Option<EventTime>,
    /// How long it waits for room at most, such as 10m [default: it does not wait]
    #[arg(long, value_name = "TIME", value_parser = wait_ms)]
    max_wait: Option<u64>,
    /// The policy to choose with, such as best_fit@1 [default: the cell's]
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
}

/// The request, and whether it may have been asked before.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The request.
    pub place: Place,
    /// Whether the asker chose its id: a decision on it may stand already.
    pub is_named: bool,
}

impl Asked {
    /// The request; where nobody has chosen an id it gets `new_id`. Errors on what no fold would take.
    pub fn request(self, new_id: impl FnOnce() -> String) -> Result<Wanted, Error> {
        let place = match &self.file {
            Some(file) => from_json(&read(file)?).map_err(|error| Error::Usage(format!("{}: {error}", file.display())))?,
            None => self.shape.place()?,
        };
        let request_id = self.request_id.or_else(|| Some(place.request_id.clone()).filter(|id| !id.is_empty()));
        let is_named = request_id.is_some();
        let place = Place { request_id: request_id.unwrap_or_else(new_id), ..place };
        Ask::new(&place).map_err(|refused| Error::Usage(format!("the request cannot be asked: {}", refused.detail)))?;
        Ok(Wanted { place, is_named })
    }
}

impl Shape {
    fn place(self) -> Result<Place, Error> {
        let (near, apart) = ((self.near, self.prefer_near), (self.spread, self.prefer_spread));
        let constraints = Constraints {
            driver_min: self.driver_min,
            compute_capability_min: self.compute_capability_min,
            within: map("--within", self.within, |domain| domain.code())?,
            anti_affinity: match map("--avoid", self.avoid, String::as_str)? {
                labels if labels.is_empty() => None,
                labels => Some(AntiAffinity { labels, over: self.avoid_over.unwrap_or(Domain::Host) }),
            },
            topology: near.0.or(near.1).map(|scope| Topology { scope, required: near.0.is_some() }),
            spread: apart.0.or(apart.1).map(|over| Spread { over, required: apart.0.is_some() }),
        };
        let bundle = Bundle {
            name: None,
            count: self.gpus,
            milli: self.milli,
            vram_bytes: self.memory.unwrap_or(0),
            mig_profile: self.mig,
            members: self.members,
            cpu_milli: self.cpu.unwrap_or(0),
            memory_bytes: self.ram.unwrap_or(0),
        };
        Ok(Place {
            request_id: String::new(),
            bundles: vec![bundle],
            model: None,
            models: self.model,
            constraints,
            workload: self.workload,
            duration_ms: self.duration,
            priority: self.priority,
            preemptible: self.preemptible,
            lease_ttl_ms: self.ttl,
            not_before: self.not_before,
            max_wait_ms: self.max_wait,
            policy: self.policy,
            labels: map("--label", self.label, String::as_str)?,
        })
    }
}

fn read(file: &Path) -> Result<String, Error> {
    if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).map_err(Error::io("cannot read standard input"))
    } else {
        std::fs::read_to_string(file).map_err(Error::io(format!("cannot read {}", file.display())))
    }
}

/// A request as it stands in the log, or without its type and id: then the id is empty.
fn from_json(text: &str) -> Result<Place, String> {
    let no_request = |why: String| format!("this is no placement request: {why}");
    let mut json: Value = serde_json::from_str(text).map_err(|error| no_request(error.to_string()))?;
    if let Some(fields) = json.as_object_mut() {
        if let Some(kind) = fields.remove("type").filter(|kind| kind != "place") {
            return Err(no_request(format!("its type is {kind}, not \"place\"")));
        }
        fields.entry("request_id").or_insert_with(|| Value::from(""));
    }
    serde_json::from_value(json).map_err(|error| no_request(error.to_string()))
}

/// Pairs as a map. Errors on a name that is given twice.
fn map<K: Ord>(flag: &str, pairs: Vec<(K, String)>, name: impl Fn(&K) -> &str) -> Result<BTreeMap<K, String>, Error> {
    let mut map = BTreeMap::new();
    for (key, value) in pairs {
        if map.contains_key(&key) {
            return Err(Error::Usage(format!("{flag} names {} twice: give it one value", name(&key))));
        }
        map.insert(key, value);
    }
    Ok(map)
}

fn locality() -> impl TypedValueParser<Value = Locality> {
    PossibleValuesParser::new(LOCALITIES.map(Locality::code)).map(|code| {
        let found = LOCALITIES.into_iter().find(|locality| locality.code() == code);
        found.expect("only the codes of these are possible values")
    })
}

fn domain() -> impl TypedValueParser<Value = Domain> {
    PossibleValuesParser::new(DOMAINS.map(Domain::code))
        .map(|code| DOMAINS.into_iter().find(|domain| domain.code() == code).expect("only the codes of these are possible values"))
}

fn within(text: &str) -> Result<(Domain, String), String> {
    let wrong = || format!("{text:?} is no place: give host=, rack=, pool=, zone= or cluster= and a name, such as rack=r1");
    let (domain, name) = text.split_once('=').ok_or_else(wrong)?;
    let domain = DOMAINS.into_iter().find(|known| known.code() == domain).ok_or_else(wrong)?;
    Ok((domain, name.to_owned()))
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is no label: give a name, = and a value, such as app=db"))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn instant(text: &str) -> Result<EventTime, String> {
    parse_rfc3339_ns(text).map(EventTime).ok_or_else(|| format!("{text:?} is not an RFC 3339 instant, such as 2026-11-20T14:05:00Z"))
}

fn ttl_ms(text: &str) -> Result<u64, String> {
    let ms = duration_ms(text)?;
    if (LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&ms) {
        Ok(ms)
    } else {
        Err(format!("a lease lives from {} s to {} d", LEASE_TTL_MS_MIN / 1_000, LEASE_TTL_MS_MAX / 86_400_000))
    }
}

fn wait_ms(text: &str) -> Result<u64, String> {
    let ms = duration_ms(text)?;
    if ms <= WAIT_MS_MAX { Ok(ms) } else { Err(format!("a request waits for {} d at most", WAIT_MS_MAX / 86_400_000)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use plimsoll_schemas::request::Request;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        asked: Asked,
    }

    fn wanted(line: &[&str]) -> Result<Wanted, String> {
        let line = Line::try_parse_from(std::iter::once(&"place").chain(line)).map_err(|error| error.to_string())?;
        line.asked.request(|| "new".to_owned()).map_err(|error| error.to_string())
    }

    fn place(line: &[&str]) -> Place {
        wanted(line).expect("it can be asked").place
    }

    fn check_refused(line: &[&str], expected: &str) {
        let error = wanted(line).expect_err(expected);
        assert!(error.contains(expected), "{line:?}: {error}");
    }

    #[test]
    fn without_flags_it_is_one_whole_gpu_under_a_new_id() {
        let bundles = vec![Bundle::default()];
        assert_eq!(wanted(&[]), Ok(Wanted { place: Place { request_id: "new".to_owned(), bundles, ..Place::default() }, is_named: false }));
    }

    #[test]
    fn every_part_of_a_request_has_a_flag() {
        let line = "--request-id r-1 --gpus 4 --milli 500 --memory 40GiB --mig 1g.10gb --members 3 --cpu 0.5 --ram 64GiB --model T4 --model A10 \
                    --driver-min 550.54 --compute-capability-min 8.0 --within rack=r1 --within zone=east --near rack --prefer-spread host \
                    --avoid app=db --avoid-over rack --label app=db --label team= --workload training --priority -5 --preemptible --duration 2h \
                    --ttl 4h --not-before 2026-11-20T14:05:00Z --max-wait 10m --policy best_fit";
        let text = |text: &str| text.to_owned();
        let expected = Place {
            request_id: text("r-1"),
            bundles: vec![Bundle {
                name: None,
                count: 4,
                milli: 500,
                vram_bytes: 40 << 30,
                mig_profile: Some(text("1g.10gb")),
                members: 3,
                cpu_milli: 500,
                memory_bytes: 64 << 30,
            }],
            model: None,
            models: vec![text("T4"), text("A10")],
            constraints: Constraints {
                driver_min: Some(text("550.54")),
                compute_capability_min: Some(text("8.0")),
                within: [(Domain::Rack, text("r1")), (Domain::Zone, text("east"))].into(),
                anti_affinity: Some(AntiAffinity { labels: [(text("app"), text("db"))].into(), over: Domain::Rack }),
                topology: Some(Topology { scope: Locality::Rack, required: true }),
                spread: Some(Spread { over: Domain::Host, required: false }),
            },
            workload: Some(text("training")),
            duration_ms: Some(7_200_000),
            priority: -5,
            preemptible: true,
            lease_ttl_ms: Some(14_400_000),
            not_before: parse_rfc3339_ns("2026-11-20T14:05:00Z").map(EventTime),
            max_wait_ms: Some(600_000),
            policy: Some(text("best_fit")),
            labels: [(text("app"), text("db")), (text("team"), String::new())].into(),
        };
        let line: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(wanted(&line), Ok(Wanted { place: expected, is_named: true }));
    }

    #[test]
    fn what_must_be_and_what_should_be_are_told_apart() {
        let near = |line: &[&str]| place(line).constraints.topology.map(|near| (near.scope, near.required));
        assert_eq!(near(&["--near", "nvlink"]), Some((Locality::Nvlink, true)));
        assert_eq!(near(&["--prefer-near", "numa"]), Some((Locality::Numa, false)));
        let spread = |line: &[&str]| place(line).constraints.spread.map(|apart| (apart.over, apart.required));
        assert_eq!(spread(&["--spread", "zone"]), Some((Domain::Zone, true)));
        let over = place(&["--avoid", "app=db"]).constraints.anti_affinity.map(|anti| anti.over);
        assert_eq!(over, Some(Domain::Host));
        check_refused(&["--near", "host", "--prefer-near", "rack"], "cannot be used with");
        check_refused(&["--spread", "host", "--prefer-spread", "rack"], "cannot be used with");
        check_refused(&["--avoid-over", "rack"], "--avoid");
    }

    #[test]
    fn what_no_fold_would_take_is_refused_before_it_is_sent() {
        check_refused(&["--gpus", "0"], "0 is not in 1..=1024");
        check_refused(&["--near", "moon"], "nvlink, numa, host, rack");
        check_refused(&["--within", "r1"], "such as rack=r1");
        check_refused(&["--within", "shelf=r1"], "such as rack=r1");
        check_refused(&["--within", "rack=r1", "--within", "rack=r2"], "--within names rack twice");
        check_refused(&["--label", "a=1", "--label", "a=2"], "--label names a twice");
        check_refused(&["--avoid", "app"], "such as app=db");
        check_refused(&["--ttl", "1s"], "a lease lives from 10 s to 30 d");
        check_refused(&["--max-wait", "8d"], "waits for 7 d at most");
        check_refused(&["--not-before", "tomorrow"], "RFC 3339");
        check_refused(&["--driver-min", "new"], "driver_min is \"new\"");
        check_refused(&["--request-id", ""], "request_id of 0 bytes");
    }

    #[test]
    fn a_file_is_a_whole_request_and_takes_no_flags_of_the_shape() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("request.json");
        let file = path.to_str().expect("text");
        let write = |text: &str| std::fs::write(&path, text).expect("writable");
        write(r#"{"bundles": [{"name": "ps", "count": 1}, {"name": "worker", "count": 8, "members": 4}], "priority": 3}"#);
        let place = place(&["--file", file]);
        let bundles: Vec<_> = place.bundles.iter().map(|bundle| (bundle.name.as_deref(), bundle.count, bundle.members)).collect();
        assert_eq!((place.request_id.as_str(), bundles), ("new", vec![(Some("ps"), 1, 1), (Some("worker"), 8, 4)]));
        check_refused(&["--file", file, "--gpus", "2"], "cannot be used with");
        check_refused(&["--file", file, "--label", "a=b"], "cannot be used with");

        // As it stands in the log.
        let logged = Request::Place(Place { request_id: "r-7".to_owned(), ..place });
        write(&serde_json::to_string(&logged).expect("plain data"));
        let id = |line: &[&str]| wanted(line).map(|wanted| (wanted.place.request_id, wanted.is_named));
        assert_eq!(id(&["--file", file]), Ok(("r-7".to_owned(), true)));
        assert_eq!(id(&["--file", file, "--request-id", "r-8"]), Ok(("r-8".to_owned(), true)));

        write(r#"{"bundles": [{"count": 1, "colour": "red"}]}"#);
        check_refused(&["--file", file], "request.json: this is no placement request: unknown field `colour`");
        write(r#"{"bundles": []}"#);
        check_refused(&["--file", file], "no bundle");
        write(r#"{"type": "release", "bundles": []}"#);
        check_refused(&["--file", file], "its type is \"release\"");
        write("{");
        check_refused(&["--file", file], "this is no placement request: EOF");
    }
}
