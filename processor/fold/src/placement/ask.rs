//! Whether a placement request can be placed at all: its bounds, and what it comes to.

use std::collections::BTreeSet;

use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{
    BUNDLE_GPUS_MAX, BUNDLES_MAX, Bundle, CPU_MILLI_MAX, Constraints, HOST_MEMORY_BYTES_MAX, LABELS_MAX, LEASE_TTL_MS_DEFAULT, LEASE_TTL_MS_MAX,
    LEASE_TTL_MS_MIN, MEMBERS_MAX, MODELS_MAX, Place, TEXT_BYTES_MAX, WAIT_MS_MAX, WHOLE_MILLI,
};

use super::Refused;
use super::policy::fleet::MILLI;
use super::policy::mix::Asked;

/// One MiB, bytes.
const MIB: u64 = 1 << 20;

/// A request within its bounds.
#[derive(Debug, Clone)]
pub struct Ask<'a> {
    /// The request.
    pub place: &'a Place,
    /// The bundle of each member, by number; members are numbered in the order of the bundles.
    pub members: Vec<usize>,
    models: BTreeSet<&'a str>,
    driver_min: Option<Vec<u64>>,
    compute_capability_min: Option<Vec<u64>>,
}

impl<'a> Ask<'a> {
    /// Checks a request. Errors: `invalid_request` with what is missing or out of bounds.
    pub fn new(place: &'a Place) -> Result<Self, Refused> {
        check(place)?;
        let Constraints { driver_min, compute_capability_min, .. } = &place.constraints;
        let version_of = |name: &str, text: &Option<String>| match text.as_deref() {
            Some(text) => match version(text) {
                Some(version) => Ok(Some(version)),
                None => Err(invalid(format!("{name} is {text:?}, expected numbers with dots such as 550.54"))),
            },
            None => Ok(None),
        };
        let members = place.bundles.iter().enumerate().flat_map(|(bundle, of)| std::iter::repeat_n(bundle, of.members as usize));
        Ok(Self {
            place,
            members: members.collect(),
            models: place.models().collect(),
            driver_min: version_of("driver_min", driver_min)?,
            compute_capability_min: version_of("compute_capability_min", compute_capability_min)?,
        })
    }

    /// The bundles.
    pub fn bundles(&self) -> &'a [Bundle] {
        &self.place.bundles
    }

    /// Where it may stand.
    pub fn constraints(&self) -> &'a Constraints {
        &self.place.constraints
    }

    /// The models of which any will do, sorted; none = any.
    pub fn models(&self) -> impl Iterator<Item = &'a str> {
        self.models.iter().copied()
    }

    /// Whether a model will do.
    pub fn allows_model(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.contains(model)
    }

    /// Whether a driver is new enough; an unknown one is not, where it matters.
    pub fn allows_driver(&self, driver: Option<&str>) -> bool {
        reaches(driver, self.driver_min.as_deref())
    }

    /// Whether a compute capability is high enough; an unknown one is not, where it matters.
    pub fn allows_compute_capability(&self, capability: Option<&str>) -> bool {
        reaches(capability, self.compute_capability_min.as_deref())
    }

    /// What each member comes to in the mix of requests.
    pub fn asked(&self) -> impl Iterator<Item = Asked> {
        self.members.iter().map(|&bundle| self.asked_of(&self.place.bundles[bundle]))
    }

    /// What a member of a bundle comes to.
    pub fn asked_of(&self, bundle: &Bundle) -> Asked {
        Asked {
            cpu_milli: i64::try_from(bundle.cpu_milli).unwrap_or(i64::MAX),
            memory_mib: i64::try_from(bundle.memory_bytes.div_ceil(MIB)).unwrap_or(i64::MAX),
            gpus: bundle.count,
            milli: i32::try_from(bundle.milli).unwrap_or(MILLI),
            models: self.models.iter().map(|&model| model.to_owned()).collect(),
        }
    }

    /// Thousandths of GPUs over all members.
    pub fn total_milli(&self) -> u64 {
        self.place.bundles.iter().map(|bundle| u64::from(bundle.members) * u64::from(bundle.count) * u64::from(bundle.milli)).sum()
    }
}

/// Numbers with dots.
fn version(text: &str) -> Option<Vec<u64>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}

fn reaches(known: Option<&str>, least: Option<&[u64]>) -> bool {
    least.is_none_or(|least| known.and_then(version).is_some_and(|known| known.as_slice() >= least))
}

fn invalid(detail: String) -> Refused {
    Refused::new(Reason::InvalidRequest, detail)
}

/// Refuses a request with a field that is missing or out of bounds.
fn check(request: &Place) -> Result<(), Refused> {
    let invalid = |detail: String| Err(invalid(detail));
    text("request_id", &request.request_id)?;
    for (name, value) in [("model", &request.model), ("workload", &request.workload), ("policy", &request.policy)] {
        value.as_deref().map_or(Ok(()), |value| text(name, value))?;
    }
    if request.models.len() > MODELS_MAX {
        return invalid(format!("{} models, at most {MODELS_MAX}", request.models.len()));
    }
    request.models.iter().try_for_each(|model| text("a model", model))?;
    let constraints = &request.constraints;
    constraints.within.values().try_for_each(|value| text("a value of within", value))?;
    let avoided = constraints.anti_affinity.as_ref().map(|anti| &anti.labels);
    if avoided.is_some_and(|labels| labels.is_empty()) {
        return invalid("anti_affinity without labels: say which leases to stay away from".to_owned());
    }
    for labels in std::iter::once(&request.labels).chain(avoided) {
        if labels.len() > LABELS_MAX {
            return invalid(format!("{} labels, at most {LABELS_MAX}", labels.len()));
        }
        for (name, value) in labels {
            if name.is_empty() || name.len() > TEXT_BYTES_MAX || value.len() > TEXT_BYTES_MAX {
                let (name, value) = (name.len(), value.len());
                return invalid(format!("a label of {name} and {value} bytes, a name needs 1 to {TEXT_BYTES_MAX} and a value at most that"));
            }
        }
    }
    if let Some(ttl) = request.lease_ttl_ms
        && !(LEASE_TTL_MS_MIN..=LEASE_TTL_MS_MAX).contains(&ttl)
    {
        return invalid(format!("lease_ttl_ms {ttl}, expected {LEASE_TTL_MS_MIN} to {LEASE_TTL_MS_MAX}"));
    }
    if let Some(wait) = request.max_wait_ms.filter(|&wait| wait > WAIT_MS_MAX) {
        return invalid(format!("max_wait_ms {wait}, at most {WAIT_MS_MAX}"));
    }
    if request.duration_ms.is_some_and(|ms| i64::try_from(ms).is_err()) {
        return invalid("duration_ms is beyond what a signed 64-bit number holds".to_owned());
    }
    bundles(&request.bundles)
}

fn bundles(bundles: &[Bundle]) -> Result<(), Refused> {
    let invalid = |detail: String| Err(invalid(detail));
    if bundles.is_empty() {
        return invalid("no bundle: say what is needed".to_owned());
    }
    if bundles.len() > BUNDLES_MAX {
        return invalid(format!("{} bundles, at most {BUNDLES_MAX}", bundles.len()));
    }
    for bundle in bundles {
        for (name, value) in [("a bundle's name", &bundle.name), ("mig_profile", &bundle.mig_profile)] {
            value.as_deref().map_or(Ok(()), |value| text(name, value))?;
        }
        for (name, value, max) in
            [("count", bundle.count, BUNDLE_GPUS_MAX), ("milli", bundle.milli, WHOLE_MILLI), ("members", bundle.members, MEMBERS_MAX)]
        {
            if !(1..=max).contains(&value) {
                return invalid(format!("{name} {value}, expected 1 to {max}"));
            }
        }
        let amounts = [
            ("vram_bytes", bundle.vram_bytes, i64::MAX.unsigned_abs()),
            ("cpu_milli", bundle.cpu_milli, CPU_MILLI_MAX),
            ("memory_bytes", bundle.memory_bytes, HOST_MEMORY_BYTES_MAX),
        ];
        if let Some((name, value, max)) = amounts.into_iter().find(|&(_, value, max)| value > max) {
            return invalid(format!("{name} {value}, at most {max}"));
        }
    }
    let members: u64 = bundles.iter().map(|bundle| u64::from(bundle.members)).sum();
    if members > u64::from(MEMBERS_MAX) {
        return invalid(format!("{members} members, at most {MEMBERS_MAX}"));
    }
    Ok(())
}

/// How long the lease of a request lives without a renewal, ms.
pub fn lease_ttl_ms(request: &Place) -> u64 {
    request.lease_ttl_ms.unwrap_or(LEASE_TTL_MS_DEFAULT)
}

/// Refuses an id or name that is empty or longer than 128 bytes.
pub fn text(name: &str, value: &str) -> Result<(), Refused> {
    if (1..=TEXT_BYTES_MAX).contains(&value.len()) {
        Ok(())
    } else {
        Err(invalid(format!("{name} of {} bytes, expected 1 to {TEXT_BYTES_MAX}", value.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::request::{AntiAffinity, Domain};

    fn check_change(change: impl FnOnce(&mut Place), expected: Option<Reason>) {
        let mut request = Place { request_id: "r".to_owned(), bundles: vec![Bundle::default()], ..Place::default() };
        change(&mut request);
        let refused = Ask::new(&request).err();
        assert_eq!(refused.as_ref().map(|r| r.reason), expected, "{request:?}: {refused:?}");
    }

    #[test]
    fn every_bound_is_refused_by_name_and_its_edge_is_taken() {
        let invalid = Some(Reason::InvalidRequest);
        check_change(|_| {}, None);
        check_change(|r| r.request_id = String::new(), invalid);
        check_change(|r| r.request_id = "x".repeat(128), None);
        check_change(|r| r.request_id = "x".repeat(129), invalid);
        check_change(|r| r.model = Some(String::new()), invalid);
        check_change(|r| r.models = vec!["T4".to_owned(); 33], invalid);
        check_change(|r| r.models = vec![String::new()], invalid);
        check_change(|r| r.workload = Some("x".repeat(129)), invalid);
        check_change(|r| r.labels = (0..65).map(|n| (n.to_string(), String::new())).collect(), invalid);
        check_change(|r| r.labels = [(String::new(), String::new())].into(), invalid);
        check_change(|r| r.lease_ttl_ms = Some(9_999), invalid);
        check_change(|r| r.lease_ttl_ms = Some(10_000), None);
        check_change(|r| r.lease_ttl_ms = Some(LEASE_TTL_MS_MAX + 1), invalid);
        check_change(|r| r.max_wait_ms = Some(WAIT_MS_MAX + 1), invalid);
        check_change(|r| r.duration_ms = Some(u64::MAX), invalid);
        check_change(|r| r.bundles.clear(), invalid);
        check_change(|r| r.bundles = vec![Bundle::default(); 65], invalid);
        check_change(|r| r.bundles[0].count = 0, invalid);
        check_change(|r| r.bundles[0].count = 1_025, invalid);
        check_change(|r| r.bundles[0].milli = 0, invalid);
        check_change(|r| r.bundles[0].milli = 1_001, invalid);
        check_change(|r| r.bundles[0].members = 0, invalid);
        check_change(|r| r.bundles = vec![Bundle { members: 200, ..Bundle::default() }; 2], invalid);
        check_change(|r| r.bundles[0].vram_bytes = u64::MAX, invalid);
        check_change(|r| r.bundles[0].cpu_milli = u64::MAX, invalid);
        check_change(|r| r.constraints.driver_min = Some("new".to_owned()), invalid);
        check_change(|r| r.constraints.driver_min = Some("550.54".to_owned()), None);
        check_change(|r| r.constraints.within = [(Domain::Rack, String::new())].into(), invalid);
        check_change(|r| r.constraints.anti_affinity = Some(AntiAffinity { labels: Default::default(), over: Domain::Host }), invalid);
    }

    #[test]
    fn versions_are_compared_number_by_number_and_an_unknown_one_reaches_nothing() {
        let check = |known: Option<&str>, least: &str, expected: bool| assert_eq!(reaches(known, version(least).as_deref()), expected);
        check(Some("550.54.15"), "550.54", true);
        check(Some("550.9"), "550.54", false);
        check(Some("1000"), "550", true);
        check(Some("N/A"), "550", false);
        check(None, "550", false);
        assert!(reaches(None, None));
    }

    #[test]
    fn members_are_numbered_in_the_order_of_the_bundles() {
        let bundle = |members, count| Bundle { members, count, ..Bundle::default() };
        let place = Place { request_id: "r".to_owned(), bundles: vec![bundle(1, 2), bundle(2, 4)], ..Place::default() };
        let ask = Ask::new(&place).expect("within bounds");
        assert_eq!((ask.members.as_slice(), ask.total_milli()), ([0, 1, 1].as_slice(), 10_000));
        assert_eq!(ask.asked().map(|asked| asked.gpus).collect::<Vec<_>>(), [2, 4, 4]);
    }
}
