//! A cell's own past as policies see it: its hosts from their inventories, shapes from placement requests, and when each ended.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use plimsoll_schemas::id::TenantId;
use plimsoll_schemas::inventory::Inventory;
use plimsoll_schemas::request::Place;
use plimsoll_schemas::time::LogTime;

use super::super::ask::Ask;
use super::super::cell::{CPU_MILLI_UNKNOWN, MEMORY_MIB_UNKNOWN};
use super::fleet::{Error, Fleet, HostSpec};
use super::shape::Shape;
use super::workload::Workload;

/// Fewest requests from which anything is learned.
pub const REQUESTS_MIN: usize = 100;
/// Share of the requests, from the first on, that is rehearsed with; the rest is held out. Percent.
const REHEARSED_PERCENT: usize = 70;

/// A host as it announces itself, or nothing if no GPU of it can be placed on. The model is that of its first GPU. MIG instances, and
/// boards that are cut into them, are left out.
pub fn host(inventory: &Inventory) -> Option<HostSpec> {
    let cut: BTreeSet<_> = inventory.gpus.iter().filter_map(|gpu| gpu.mig_parent_uuid.as_ref()).collect();
    let mut whole = inventory.gpus.iter().filter(|gpu| gpu.mig_parent_uuid.is_none() && !cut.contains(&gpu.uuid));
    let first = whole.next()?;
    Some(HostSpec {
        name: inventory.host.as_str().to_owned(),
        rank: 0,
        cpu_milli: inventory.cpu_cores.map_or(CPU_MILLI_UNKNOWN, |cores| i64::from(cores) * 1_000),
        memory_mib: inventory.ram_bytes.map_or(MEMORY_MIB_UNKNOWN, |bytes| (bytes >> 20) as i64),
        gpus: 1 + whole.count(),
        model: first.model.clone(),
    })
}

/// What a request asks for: a shape for each of its members, all of them or none. Nothing where no host could ever give it.
pub fn shapes(place: &Place, fleet: &Fleet) -> Option<Vec<Shape>> {
    let ask = Ask::new(place).ok().filter(|ask| ask.bundles().iter().all(|bundle| bundle.mig_profile.is_none()))?;
    Some(ask.asked().map(|asked| asked.shape(fleet)).collect())
}

/// The constraint of a request, by which the typical ones are told apart.
pub fn constraint(place: &Place) -> String {
    place.models().collect::<Vec<_>>().join("|")
}

/// One recorded request.
#[derive(Debug, Clone)]
pub struct Request {
    /// When the log took it.
    pub at: LogTime,
    /// Who asked.
    pub tenant: TenantId,
    /// The request.
    pub request_id: String,
    /// What it asks for, together.
    pub shapes: Vec<Shape>,
    /// When what it got became free again; absent = never.
    pub leaves_at: Option<LogTime>,
    constraint: String,
}

/// The hosts of a cell and what was asked of them, in the order of the log.
#[derive(Debug, Clone)]
pub struct Past {
    hosts: Vec<HostSpec>,
    fleet: Fleet,
    asked: Vec<Request>,
    by_id: BTreeMap<(TenantId, String), usize>,
    /// Requests left out: no host could ever give what they ask for.
    pub impossible: usize,
}

impl Past {
    /// Of these hosts, with nothing asked yet. Errors: the hosts make no fleet.
    pub fn new(mut hosts: Vec<HostSpec>) -> Result<Self, Error> {
        // All ranks are equal, so this is the fleet's order.
        hosts.sort_by(|a, b| a.name.cmp(&b.name));
        let fleet = Fleet::new(hosts.clone())?;
        Ok(Self { hosts, fleet, asked: Vec::new(), by_id: BTreeMap::new(), impossible: 0 })
    }

    /// The next request of the log. One that was sent again is the same request.
    pub fn ask(&mut self, at: LogTime, tenant: &TenantId, place: &Place) {
        let id = (tenant.clone(), place.request_id.clone());
        if self.by_id.contains_key(&id) {
            return;
        }
        let Some(shapes) = shapes(place, &self.fleet) else {
            self.impossible += 1;
            return;
        };
        self.by_id.insert(id, self.asked.len());
        self.asked.push(Request {
            at,
            tenant: tenant.clone(),
            request_id: place.request_id.clone(),
            shapes,
            leaves_at: place.duration_ms.map(|ms| at.plus_ms(i64::try_from(ms).unwrap_or(i64::MAX))),
            constraint: constraint(place),
        });
    }

    /// The lease of a request ended: what it held is free.
    pub fn ended(&mut self, at: LogTime, tenant: &TenantId, request_id: &str) {
        if let Some(&number) = self.by_id.get(&(tenant.clone(), request_id.to_owned())) {
            self.asked[number].leaves_at = Some(at);
        }
    }

    /// What was asked, in order.
    pub fn asked(&self) -> &[Request] {
        &self.asked
    }

    /// The hosts, empty.
    pub fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// The name of a host of the fleet.
    pub fn host_name(&self, index: usize) -> &str {
        &self.hosts[index].name
    }

    /// Number of requests to rehearse with; those behind them are held out.
    pub fn rehearsed(&self) -> usize {
        self.asked.len() * REHEARSED_PERCENT / 100
    }

    /// The hosts with a part of the requests.
    pub fn workload(&self, part: Range<usize>) -> Workload {
        let shapes = self.asked[part].iter().flat_map(|asked| asked.shapes.iter().map(|&shape| (shape, asked.constraint.as_str())));
        Workload::new(self.hosts.clone(), shapes).expect("the same hosts made a fleet before")
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Models;
    use super::*;

    fn inventory(change: impl FnOnce(&mut serde_json::Value)) -> Inventory {
        let gpu = |slot: u32, model: &str| serde_json::json!({ "slot": slot, "uuid": format!("GPU-{slot}"), "index": slot, "model": model });
        let mut inventory = serde_json::json!({
            "schema_version": 1, "host": "gpu-1", "epoch": 1, "sequence": 1, "revision": 1, "sent_at": "2026-01-02T03:04:05Z", "hostname": "gpu-1",
            "agent_version": "1", "source": "sim", "interval_ms": 1000, "gpus": [gpu(0, "A"), gpu(1, "B"), gpu(2, "B")]
        });
        change(&mut inventory);
        serde_json::from_value(inventory).expect("an inventory")
    }

    fn place(id: &str, change: impl FnOnce(&mut serde_json::Value)) -> Place {
        let mut place = serde_json::json!({ "request_id": id, "bundles": [{ "count": 2 }] });
        change(&mut place);
        serde_json::from_value(place).expect("a request")
    }

    #[test]
    fn a_host_is_as_large_as_it_says_and_its_cpu_is_never_short_where_it_says_nothing() {
        let check = |change: &dyn Fn(&mut serde_json::Value), expected: Option<(i64, i64, usize, &str)>| {
            let spec = host(&inventory(change));
            assert_eq!(spec.as_ref().map(|spec| (spec.cpu_milli, spec.memory_mib, spec.gpus, spec.model.as_str())), expected);
        };
        check(&|_| {}, Some((CPU_MILLI_UNKNOWN, MEMORY_MIB_UNKNOWN, 3, "A")));
        check(&|i| (i["cpu_cores"], i["ram_bytes"]) = (96.into(), (1_u64 << 40).into()), Some((96_000, 1 << 20, 3, "A")));
        check(&|i| i["gpus"][2]["mig_parent_uuid"] = "GPU-0".into(), Some((CPU_MILLI_UNKNOWN, MEMORY_MIB_UNKNOWN, 1, "B")));
        check(&|i| i["gpus"] = serde_json::json!([]), None);
    }

    #[test]
    fn each_member_is_a_shape_and_what_no_host_can_give_is_none() {
        let fleet = Fleet::new(vec![host(&inventory(|_| {})).expect("a host")]).expect("a fleet");
        let check = |change: &dyn Fn(&mut serde_json::Value), expected: &[(u32, i32, Models)]| {
            let shapes = shapes(&place("r", change), &fleet).unwrap_or_default();
            assert_eq!(shapes.iter().map(|shape| (shape.gpus, shape.milli, shape.models)).collect::<Vec<_>>(), expected);
        };
        check(&|_| {}, &[(2, 1_000, Models::ANY)]);
        check(&|p| p["model"] = "A".into(), &[(2, 1_000, Models(1))]);
        check(&|p| p["model"] = "Z".into(), &[(2, 1_000, Models::NONE)]);
        let two = serde_json::json!([{ "count": 2 }, { "count": 1, "milli": 250 }]);
        check(&|p| p["bundles"] = two.clone(), &[(2, 1_000, Models::ANY), (1, 250, Models::ANY)]);
        check(&|p| p["bundles"][0]["members"] = 2.into(), &[(2, 1_000, Models::ANY), (2, 1_000, Models::ANY)]);
        check(&|p| p["bundles"][0]["count"] = 0.into(), &[]);
        check(&|p| p["bundles"][0]["milli"] = 1_001.into(), &[]);
        check(&|p| p["bundles"][0]["mig_profile"] = "1g.10gb".into(), &[]);
        check(&|p| p["bundles"] = serde_json::json!([]), &[]);
    }

    #[test]
    fn a_request_counts_once_and_ends_with_its_lease_or_when_it_said_it_would() {
        let mut past = Past::new(vec![host(&inventory(|_| {})).expect("a host")]).expect("a fleet");
        let (one, two): (TenantId, TenantId) = ("one".parse().expect("a token"), "two".parse().expect("a token"));
        past.ask(LogTime(1), &one, &place("a", |p| p["duration_ms"] = 2.into()));
        past.ask(LogTime(2), &one, &place("a", |p| p["duration_ms"] = 2.into()));
        past.ask(LogTime(3), &two, &place("a", |_| {}));
        past.ask(LogTime(4), &two, &place("b", |p| p["duration_ms"] = i64::MAX.into()));
        past.ask(LogTime(5), &two, &place("c", |p| p["bundles"] = serde_json::json!([])));
        past.ended(LogTime(9), &two, "a");
        past.ended(LogTime(9), &one, "z");
        let seen: Vec<_> = past.asked().iter().map(|asked| (asked.at.0, asked.leaves_at.map(|at| at.0))).collect();
        assert_eq!(seen, [(1, Some(2_000_001)), (3, Some(9)), (4, Some(i64::MAX))]);
        assert_eq!((past.impossible, past.rehearsed(), past.workload(1..3).shapes.len()), (1, 2, 2));
    }
}
