//! The choice: which GPUs take a request, or why none can.

use std::collections::BTreeMap;

use plimsoll_schemas::candidates::Candidates;
use plimsoll_schemas::id::HostId;
use plimsoll_schemas::mig::{Promise, Slices};
use plimsoll_schemas::out::{NearestMiss, Outcome, RunnerUp, ScoreParts};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Place};

use super::ask::Ask;
use super::candidate::Candidate;
use super::cell::{Cell, Chooser, Host};
use super::plan::{Neighbours, Part, Plan, Stuck, Taken};
use super::policy::catalogue::Name;
use super::why::Refusals;
use super::{Settings, balanced, reliability, score};

/// Most hosts named as runners-up.
pub const RUNNERS_UP_MAX: usize = 3;
/// As far below its heat limit as this, or further, a GPU is cool: 20 K in millikelvin.
const COOL_MK: u64 = 20_000;

/// One GPU that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Its number, as the candidate said it.
    pub number: u32,
    /// The member that stands on it, from 0.
    pub member: u32,
    /// Thousandths to reserve.
    pub milli: u32,
    /// Memory to reserve, bytes.
    pub vram_bytes: u64,
    /// How much room it had, by `headroom@1`, millionths.
    pub score_micro: u32,
    /// Where on it a MIG instance is to be made; absent = it exists.
    pub slices: Option<Slices>,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `placed` or `rejected`.
    pub outcome: Outcome,
    /// The GPUs by member; empty if rejected.
    pub picks: Vec<Pick>,
    /// The host of each member in the order of the members, with the member's bundle; empty if rejected.
    pub hosts: Vec<(HostId, usize)>,
    /// Sum of the members' scores, millionths of the policy's unit, if placed.
    pub score_micro: Option<i64>,
    /// What that is made of.
    pub parts: Option<ScoreParts>,
    /// The dominant reason, if rejected: the gate, in the order of precedence, that left too few GPUs; `too_few_devices` where enough are
    /// left but not on one host; `gang_partial` where some members found a place.
    pub reason: Option<Reason>,
    /// The same as a sentence with numbers.
    pub detail: Option<String>,
    /// Hosts looked at.
    pub hosts_considered: u32,
    /// Hosts that could have taken the first member, or the one that found no place.
    pub hosts_feasible: u32,
    /// GPUs refused, by reason.
    pub refused: BTreeMap<Reason, u32>,
    /// Which GPUs were refused for the first member, or the one that found no place.
    pub candidates: Option<Candidates>,
    /// The host that lacked least, if rejected.
    pub nearest_miss: Option<NearestMiss>,
    /// The best hosts that the first member could have had instead, best first.
    pub runners_up: Vec<RunnerUp>,
    /// CPU or memory was asked for of a host that has not said how much it has.
    pub by_gpu_alone: bool,
}

impl Choice {
    /// Nothing was placed, and no candidate was looked at.
    pub fn rejected(reason: Reason, detail: String) -> Self {
        Self {
            outcome: Outcome::Rejected,
            picks: Vec::new(),
            hosts: Vec::new(),
            score_micro: None,
            parts: None,
            reason: Some(reason),
            detail: Some(detail),
            hosts_considered: 0,
            hosts_feasible: 0,
            refused: BTreeMap::new(),
            candidates: None,
            nearest_miss: None,
            runners_up: Vec::new(),
            by_gpu_alone: false,
        }
    }

    /// The bundle of a member of a request that was placed.
    pub fn bundle_of<'p>(&self, place: &'p Place, member: u32) -> Option<&'p Bundle> {
        self.hosts.get(member as usize).and_then(|&(_, bundle)| place.bundles.get(bundle))
    }

    /// The MIG instance that a pick is to become, if it does not exist yet.
    pub fn promise(&self, place: &Place, pick: &Pick) -> Option<Promise> {
        let (Slices { start, size }, profile) = (pick.slices?, self.bundle_of(place, pick.member)?.mig_profile.clone()?);
        Some(Promise { profile, start, size })
    }
}

/// Chooses places for every member of a request, or for none. Of hosts and GPUs that are worth the same the lesser name and slot are taken.
/// The cell is afterwards as it was before.
pub fn choose(cell: &mut Cell, ask: &Ask<'_>, chooser: Chooser<'_>, neighbours: &Neighbours<'_>) -> Choice {
    let hosts_considered = cell.with_gpus();
    if hosts_considered == 0 {
        return Choice::rejected(Reason::NoDevices, "the cell has no GPU".to_owned());
    }
    let (need, settings) = (&ask.bundles()[ask.members[0]], *cell.settings());
    cell.seat(chooser, |host, gpu| telemetry_score(chooser.bidder.policy, host, gpu, need, &settings, neighbours));
    let mut plan = Plan::new(cell, ask, chooser.bidder, neighbours);
    let choice = Choice { hosts_considered, ..carry_out(&mut plan, ask) };
    plan.end();
    choice
}

fn carry_out(plan: &mut Plan<'_, '_>, ask: &Ask<'_>) -> Choice {
    let first = ask.members[0];
    let answers = plan.answers(first);
    let (hosts_feasible, best) = (answers.fitting().count() as u32, best_of(answers.fitting()));
    let before = (hosts_feasible > 0).then(|| (answers.refused().counts(), answers.refused().candidates()));
    let best: Vec<_> = best.into_iter().map(|(host, key)| (host, key, plan.parts(host, first))).collect();
    match plan.place_all() {
        Ok(()) => {
            let (refused, candidates) = before.map_or_else(Default::default, |(refused, candidates)| (refused, Some(candidates)));
            let mut taken = plan.taken().to_vec();
            taken.sort_by_key(|taken| taken.member);
            let hosts = plan.cell().hosts();
            let chosen = taken.first().map(|taken| taken.host);
            let others = best.iter().filter(|&&(host, ..)| Some(host) != chosen).take(RUNNERS_UP_MAX);
            let by_gpu_alone = |taken: &Taken| hosts[taken.host].is_by_gpu_alone(&ask.bundles()[ask.members[taken.member]]);
            Choice {
                outcome: Outcome::Placed,
                picks: picks(hosts, ask, &taken),
                hosts: taken.iter().map(|taken| (hosts[taken.host].id.clone(), ask.members[taken.member])).collect(),
                score_micro: Some(taken.iter().fold(0, |sum: i64, taken| sum.saturating_add(plan.worth_micro(taken.key)))),
                parts: sum(taken.iter().map(|taken| taken.parts)),
                reason: None,
                detail: None,
                hosts_considered: 0,
                hosts_feasible,
                refused,
                candidates,
                nearest_miss: None,
                runners_up: others
                    .map(|&(host, key, parts)| RunnerUp { host: hosts[host].id.clone(), score_micro: plan.worth_micro(key), parts })
                    .collect(),
                by_gpu_alone: taken.iter().any(by_gpu_alone),
            }
        }
        Err(Stuck { member, because }) => {
            let number = ask.members[member];
            plan.answers(number);
            let refusals = Refusals::of(plan, number, because);
            let why = refusals.why(ask);
            Choice {
                refused: refusals.counts().clone(),
                candidates: Some(refusals.candidates()),
                nearest_miss: refusals.nearest_miss(),
                ..Choice::rejected(why.reason, why.detail)
            }
        }
    }
}

/// The greatest keys, of equals the first host: one more than are named, since the best of them may be the one that is taken.
fn best_of(fitting: impl Iterator<Item = (usize, i64)>) -> Vec<(usize, i64)> {
    let mut best = Vec::<(usize, i64)>::with_capacity(RUNNERS_UP_MAX + 2);
    for (host, key) in fitting {
        if best.len() <= RUNNERS_UP_MAX || best.last().is_some_and(|&(_, least)| key > least) {
            let at = best.partition_point(|&(_, other)| other >= key);
            best.insert(at, (host, key));
            best.truncate(RUNNERS_UP_MAX + 1);
        }
    }
    best
}

/// What telemetry says of a GPU to a policy that goes by it, millionths; 0 for the others.
fn telemetry_score(policy: Name, host: &Host, gpu: &Candidate, need: &Bundle, settings: &Settings, neighbours: &Neighbours<'_>) -> u32 {
    const MICRO_PER_PERCENT: u64 = score::MICRO / 100;
    let free_bytes = || gpu.free_vram_bytes(settings);
    let margin_mk = || gpu.temperature_mk.zip(gpu.slowdown_temperature_mk).map(|(now, limit)| limit.saturating_sub(now));
    match policy {
        Name::Headroom => gpu.score().micro(),
        Name::Balanced => balanced::balanced(&balanced::Inputs {
            free_bytes: free_bytes(),
            need_bytes: need.vram_bytes,
            util_micro: gpu.util_percent.map(|percent| percent.saturating_mul(MICRO_PER_PERCENT)),
            margin_uk: margin_mk().map(|mk| mk.saturating_mul(1_000)),
            network_micro: None,
            bandwidth_micro: None,
        })
        .unwrap_or_default(),
        Name::Reliability => {
            let nano = reliability::reliability(&reliability::Inputs {
                reputation: host.reputation,
                free_bytes: free_bytes(),
                need_bytes: need.vram_bytes,
                thermal_micro: margin_mk().map_or(0, |mk| mk.min(COOL_MK) * score::MICRO / COOL_MK),
                util_micro: gpu.util_percent.unwrap_or(100).saturating_mul(MICRO_PER_PERCENT),
                assigned: neighbours.contains_key(&host.id),
            });
            (nano.unwrap_or_default() / 1_000) as u32
        }
        Name::Random
        | Name::FirstFit
        | Name::BestFit
        | Name::WorstFit
        | Name::DotProduct
        | Name::GpuPacking
        | Name::GpuClustering
        | Name::Fgd
        | Name::Tw
        | Name::Hybrid => 0,
    }
}

fn picks(hosts: &[Host], ask: &Ask<'_>, taken: &[Taken]) -> Vec<Pick> {
    let of_member = |taken: &Taken| {
        let (member, milli) = (taken.member as u32, ask.bundles()[ask.members[taken.member]].milli);
        let gpus = &hosts[taken.host].gpus;
        let pick = |part: &Part| Pick {
            number: gpus[part.gpu].number,
            member,
            milli,
            vram_bytes: part.vram_bytes,
            score_micro: part.score_micro,
            slices: part.made.map(|made| made.slices),
        };
        taken.gpus.iter().map(pick).collect::<Vec<_>>()
    };
    taken.iter().flat_map(of_member).collect()
}

fn sum(parts: impl Iterator<Item = Option<ScoreParts>>) -> Option<ScoreParts> {
    parts.flatten().reduce(|sum, parts| ScoreParts {
        fragmentation_milli: sum.fragmentation_milli + parts.fragmentation_milli,
        waste_milli: sum.waste_milli + parts.waste_milli,
        scarcity_milli: sum.scarcity_milli + parts.scarcity_milli,
        power_mw: sum.power_mw.zip(parts.power_mw).map(|(sum, mw)| sum + mw),
    })
}
