//! The choice: which GPUs take a request, or why none can.

use std::collections::BTreeMap;

use plimsoll_schemas::candidates::Candidates;
use plimsoll_schemas::id::HostId;
use plimsoll_schemas::out::{NearestMiss, Outcome, RunnerUp, ScoreParts};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::Bundle;

use super::ask::Ask;
use super::candidate::Candidate;
use super::cell::Host;
use super::plan::{Plan, Stuck, Taken};
use super::policy::catalogue::{Name, Parts};
use super::policy::fleet::Fleet;
use super::policy::mix::Mix;
use super::{Settings, balanced, reliability, score, why};
use plimsoll_schemas::tables::Tables;

/// Most hosts named as runners-up.
pub const RUNNERS_UP_MAX: usize = 3;
/// Seed of `random`: its turn is what makes its choices differ.
const SEED: u64 = 0;
/// As far below its heat limit as this, or further, a GPU is cool: 20 K in millikelvin.
const COOL_MK: u64 = 20_000;

/// What to choose with.
#[derive(Debug, Clone, Copy)]
pub struct Chooser<'a> {
    /// The policy.
    pub policy: Name,
    /// What was asked for before.
    pub mix: &'a Mix,
    /// What was learned; absent = nothing.
    pub tables: Option<&'a Tables>,
    /// How many decisions were made before: the turn of `random`.
    pub turn: u64,
}

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
}

/// Chooses places for every member of a request, or for none. Of hosts and GPUs that are worth the same the lesser name and slot are taken; the
/// order in which they come does not matter.
pub fn choose(mut hosts: Vec<Host<'_>>, ask: &Ask<'_>, chooser: Chooser<'_>, settings: &Settings) -> Choice {
    hosts.sort_by(|a, b| a.id.cmp(b.id));
    hosts.iter_mut().for_each(|host| host.gpus.sort_by_key(|gpu| gpu.slot));
    if hosts.iter().all(|host| host.gpus.is_empty()) {
        return Choice::rejected(Reason::NoDevices, "the cell has no GPU".to_owned());
    }
    let mut plan = plan(hosts, ask, chooser, settings);
    let first = ask.members[0];
    let ranked = plan.ranked(first);
    // One more than are named: the best of them may be the one that is taken.
    let best: Vec<_> = ranked.iter().take(RUNNERS_UP_MAX + 1).map(|&(host, key)| (host, key, plan.parts(host, first))).collect();
    let before = why::Refusals::of(&plan, &ask.bundles()[first], None);
    let by_gpu_alone = |plan: &Plan<'_, '_>, taken: &Taken| plan.hosts[taken.host].is_by_gpu_alone(&ask.bundles()[ask.members[taken.member]]);
    match plan.place_all() {
        Ok(()) => {
            let mut taken = std::mem::take(&mut plan.taken);
            taken.sort_by_key(|taken| taken.member);
            let micro = plan.micro_per_key();
            let chosen = taken.first().map(|taken| taken.host);
            let others = best.iter().filter(|&&(host, ..)| Some(host) != chosen).take(RUNNERS_UP_MAX);
            Choice {
                outcome: Outcome::Placed,
                picks: picks(&plan, ask, &taken),
                hosts: taken.iter().map(|taken| (plan.hosts[taken.host].id.clone(), ask.members[taken.member])).collect(),
                score_micro: Some(taken.iter().fold(0, |sum: i64, taken| sum.saturating_add(taken.key.saturating_mul(micro)))),
                parts: sum(taken.iter().map(|taken| taken.parts)),
                reason: None,
                detail: None,
                hosts_considered: before.hosts,
                hosts_feasible: ranked.len() as u32,
                refused: before.counts.clone(),
                candidates: Some(before.candidates()),
                nearest_miss: None,
                runners_up: others
                    .map(|&(host, key, parts)| RunnerUp { host: plan.hosts[host].id.clone(), score_micro: key.saturating_mul(micro), parts })
                    .collect(),
                by_gpu_alone: taken.iter().any(|taken| by_gpu_alone(&plan, taken)),
            }
        }
        Err(Stuck { member, because }) => {
            let bundle = &ask.bundles()[ask.members[member]];
            let refusals = why::Refusals::of(&plan, bundle, because);
            let why = why::why(&plan, ask, bundle, because, settings, &refusals);
            Choice {
                hosts_considered: refusals.hosts,
                refused: refusals.counts.clone(),
                candidates: Some(refusals.candidates()),
                nearest_miss: why::nearest_miss(&plan, bundle, &refusals),
                ..Choice::rejected(why.reason, why.detail)
            }
        }
    }
}

/// A plan with nothing placed yet.
fn plan<'c, 'a>(hosts: Vec<Host<'c>>, ask: &'a Ask<'a>, chooser: Chooser<'_>, settings: &'a Settings) -> Plan<'c, 'a> {
    let need = &ask.bundles()[ask.members[0]];
    let fleet = Fleet::standing(hosts.iter().map(|host| host.standing(|gpu| telemetry_score(chooser.policy, host, gpu, need, settings))));
    let untaught = Tables::untaught(&[]);
    let (requests, typical) = chooser.mix.of_fleet(&fleet);
    let parts = Parts { typical: &typical, requests: &requests, tables: chooser.tables.unwrap_or(&untaught), seed: SEED, turn: chooser.turn };
    Plan::new(hosts, ask, settings, fleet, chooser.policy.policy(parts))
}

/// What telemetry says of a GPU to a policy that goes by it, millionths; 0 for the others.
fn telemetry_score(policy: Name, host: &Host<'_>, gpu: &Candidate<'_>, need: &Bundle, settings: &Settings) -> u32 {
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
                assigned: !host.labels.is_empty(),
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

fn picks(plan: &Plan<'_, '_>, ask: &Ask<'_>, taken: &[Taken]) -> Vec<Pick> {
    let of_member = |taken: &Taken| {
        let (member, milli) = (taken.member as u32, ask.bundles()[ask.members[taken.member]].milli);
        let gpus = &plan.hosts[taken.host].gpus;
        let pick = move |&(gpu, vram_bytes): &(usize, u64)| Pick {
            number: gpus[gpu].number,
            member,
            milli,
            vram_bytes,
            // As it was before the request took its part.
            score_micro: gpus[gpu].without(vram_bytes).score().micro(),
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
    })
}
