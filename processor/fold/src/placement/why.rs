//! Why a request found no place: every candidate's reason, the one that dominates as a sentence, and what lacked least.

use std::collections::BTreeMap;

use plimsoll_schemas::candidates::Candidates;
use plimsoll_schemas::out::NearestMiss;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::Bundle;

use super::ask::Ask;
use super::plan::Plan;
use super::{Refused, Settings};

/// Every candidate's reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusals {
    /// In the order of the cell; `None` = it could have been taken.
    reasons: Vec<Option<Reason>>,
    /// How many, by reason.
    pub counts: BTreeMap<Reason, u32>,
    /// Hosts with a GPU.
    pub hosts: u32,
}

impl Refusals {
    /// For a member of this bundle, as the plan stands. `beyond` is what stood in the way of those that would do by themselves.
    pub fn of(plan: &Plan<'_, '_>, bundle: &Bundle, beyond: Option<Reason>) -> Self {
        let reasons: Vec<Option<Reason>> = plan.reasons(bundle).into_iter().map(|reason| reason.or(beyond)).collect();
        let mut counts = BTreeMap::new();
        for &reason in reasons.iter().flatten() {
            *counts.entry(reason).or_insert(0) += 1;
        }
        Self { reasons, counts, hosts: plan.hosts.iter().filter(|host| !host.gpus.is_empty()).count() as u32 }
    }

    /// As decisions carry them.
    pub fn candidates(&self) -> Candidates {
        Candidates::of(self.reasons.iter().copied())
    }

    fn tally(&self) -> String {
        if self.counts.is_empty() {
            return String::new();
        }
        let counts: Vec<_> = self.counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        format!("(refused: {})", counts.join(", "))
    }
}

/// Why a member of this bundle found no place. GPUs fall through the gates in the order of precedence; the gate at which fewer than it needs
/// are left is what stood in the way.
pub fn why(plan: &Plan<'_, '_>, ask: &Ask<'_>, bundle: &Bundle, because: Option<Reason>, settings: &Settings, refusals: &Refusals) -> Refused {
    let alone = match because {
        Some(reason) => Refused::new(reason, format!("{} {}", beyond(ask, reason), refusals.tally()).trim_end().to_owned()),
        None => of_gpus(plan, ask, bundle, settings, refusals),
    };
    let (placed, all) = (plan.taken.len(), ask.members.len());
    if placed == 0 {
        return alone;
    }
    let name = bundle.name.as_deref().map_or(String::new(), |name| format!(" ({name})"));
    Refused::new(
        Reason::GangPartial,
        format!("{placed} of {all} members find a place; the next one{name} does not: {}: {}", alone.reason, alone.detail),
    )
}

/// What a reason beyond the GPUs' own means here.
fn beyond(ask: &Ask<'_>, reason: Reason) -> String {
    let constraints = ask.constraints();
    if reason == Reason::AntiAffinity {
        let over = constraints.spread.as_ref().map_or("host", |spread| spread.over.code());
        return format!("every {over} that could take it has a member of the gang already");
    }
    let scope = constraints.topology.as_ref().map_or("host", |near| near.scope.code());
    if reason == Reason::BudgetExhausted {
        return format!("the {} members fit none of the {scope}s that were tried, and there are more", ask.members.len());
    }
    format!("no {scope} can take all {} members", ask.members.len())
}

fn of_gpus(plan: &Plan<'_, '_>, ask: &Ask<'_>, bundle: &Bundle, settings: &Settings, refusals: &Refusals) -> Refused {
    let (need, all) = (bundle.count as usize, refusals.reasons.len());
    let mut left = all;
    if left < need {
        return Refused::new(Reason::TooFewDevices, format!("{need} GPUs on one host are needed, the cell has {left}"));
    }
    let mut gates: Vec<(Reason, u32)> = refusals.counts.iter().map(|(&reason, &count)| (reason, count)).collect();
    gates.sort_by_key(|(reason, _)| reason.precedence());
    for (reason, count) in gates {
        if reason == Reason::TooFewDevices {
            break;
        }
        left -= count as usize;
        if left < need {
            let what = sentence(reason, plan, ask, bundle, settings);
            return Refused::new(reason, format!("of {all} GPUs {left} are left for the {need} needed: {what} {}", refusals.tally()));
        }
    }
    let most = (0..plan.hosts.len()).map(|host| plan.look(host, bundle).open.count_ones()).max().unwrap_or(0);
    let detail = format!("{need} GPUs on one host are needed: {left} of {all} could take it, at most {most} on one host {}", refusals.tally());
    Refused::new(Reason::TooFewDevices, detail.trim_end().to_owned())
}

/// What a reason means here, with the numbers that help.
fn sentence(reason: Reason, plan: &Plan<'_, '_>, ask: &Ask<'_>, bundle: &Bundle, settings: &Settings) -> String {
    let open = || plan.hosts.iter().flat_map(|host| &host.gpus).filter(|gpu| gpu.gate.is_none());
    let models = || ask.place.models().collect::<Vec<_>>().join(" or ");
    if reason == Reason::InsufficientMemory {
        let most = open().map(|gpu| gpu.free_vram_bytes(settings)).max().unwrap_or(0);
        return format!("{} bytes free on each are asked for, the most on one GPU is {most}", bundle.vram_bytes);
    }
    if reason == Reason::LeaseConflict || reason == Reason::ShareTooSmall {
        let least = open().map(|gpu| gpu.reserved_milli).min().unwrap_or(0);
        return format!("{} thousandths of each are asked for, the least reserved GPU has {least} reserved", bundle.milli);
    }
    if reason == Reason::InsufficientCpu {
        let most = plan.hosts.iter().filter_map(|host| host.cpu_milli).max().unwrap_or(0);
        return format!("{} thousandths of a core are asked for, the most left on one host is {most}", bundle.cpu_milli);
    }
    if reason == Reason::InsufficientHostMemory {
        let most = plan.hosts.iter().filter_map(|host| host.memory_bytes).max().unwrap_or(0);
        return format!("{} bytes of the host's memory are asked for, the most left on one host is {most}", bundle.memory_bytes);
    }
    if reason == Reason::ModelMismatch {
        return format!("model {:?} is asked for", models());
    }
    if reason == Reason::MigProfile {
        return match &bundle.mig_profile {
            Some(profile) => format!("MIG profile {profile:?} is asked for"),
            None => "a GPU is asked for, and these are cut into MIG instances".to_owned(),
        };
    }
    format!("{reason} stands in the way")
}

/// The host that lacked least for a member of this bundle, the first of equals.
pub fn nearest_miss(plan: &Plan<'_, '_>, bundle: &Bundle, refusals: &Refusals) -> Option<NearestMiss> {
    let mut nearest: Option<NearestMiss> = None;
    let mut reasons = refusals.reasons.as_slice();
    for (number, host) in plan.hosts.iter().enumerate() {
        let (here, behind) = reasons.split_at(host.gpus.len());
        reasons = behind;
        let Some(misfit) = plan.look(number, bundle).misfit else { continue };
        let passing = host.gpus.iter().filter(|gpu| plan.would_do(gpu, bundle)).count() as u32;
        let reason = if misfit == Reason::TooFewDevices { most_common(here).unwrap_or(misfit) } else { misfit };
        match &mut nearest {
            Some(best) if passing.min(bundle.count) < best.gpus.min(bundle.count) => {}
            Some(best) if passing.min(bundle.count) == best.gpus.min(bundle.count) => best.hosts += 1,
            _ => nearest = Some(NearestMiss { host: host.id.clone(), gpus: passing, gpus_needed: bundle.count, reason, hosts: 1 }),
        }
    }
    nearest
}

/// The reason that most GPUs have besides being too few, of equally many the first in the order of precedence.
fn most_common(reasons: &[Option<Reason>]) -> Option<Reason> {
    let mut counts = BTreeMap::new();
    for &reason in reasons.iter().flatten().filter(|&&reason| reason != Reason::TooFewDevices) {
        *counts.entry((reason.precedence(), reason)).or_insert(0_u32) += 1;
    }
    counts.into_iter().max_by_key(|&((precedence, _), count)| (count, std::cmp::Reverse(precedence))).map(|((_, reason), _)| reason)
}
