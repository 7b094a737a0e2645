//! Why a request found no place: every candidate's reason, the one that dominates as a sentence, and what lacked least.

use std::collections::BTreeMap;

use plimsoll_schemas::candidates::{Candidates, Sets};
use plimsoll_schemas::out::NearestMiss;
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::Bundle;

use super::Refused;
use super::answers::Answers;
use super::ask::Ask;
use super::cell::Cell;
use super::plan::Plan;

/// A member that found no place, and every candidate's reason.
pub struct Refusals<'p> {
    cell: &'p Cell,
    answers: &'p Answers,
    bundle: &'p Bundle,
    /// How many members had found one.
    placed: usize,
    /// What stood in the way of those GPUs that would do by themselves.
    beyond: Option<Reason>,
    sets: Sets,
    counts: BTreeMap<Reason, u32>,
}

impl<'p> Refusals<'p> {
    /// For a member of this bundle, as the plan stands; its hosts have been asked.
    pub fn of(plan: &'p Plan<'_, '_>, bundle: usize, beyond: Option<Reason>) -> Self {
        let answers = plan.answered(bundle);
        let sets = match beyond {
            Some(beyond) => Sets::of(answers.reasons().iter().map(|reason| reason.or(Some(beyond)))),
            None => answers.refused().clone(),
        };
        let counts = sets.counts();
        Self { cell: plan.cell(), answers, bundle: plan.bundle(bundle), placed: plan.taken().len(), beyond, sets, counts }
    }

    /// How many GPUs, by reason.
    pub fn counts(&self) -> &BTreeMap<Reason, u32> {
        &self.counts
    }

    /// As decisions carry them.
    pub fn candidates(&self) -> Candidates {
        self.sets.candidates()
    }

    /// Why the member found no place. GPUs fall through the gates in the order of precedence; the gate at which fewer than it needs are left
    /// is what stood in the way.
    pub fn why(&self, ask: &Ask<'_>) -> Refused {
        let alone = match self.beyond {
            Some(reason) => Refused::new(reason, format!("{} {}", beyond(ask, reason), self.tally()).trim_end().to_owned()),
            None => self.of_gpus(ask),
        };
        let (placed, all) = (self.placed, ask.members.len());
        if placed == 0 {
            return alone;
        }
        let name = self.bundle.name.as_deref().map_or(String::new(), |name| format!(" ({name})"));
        Refused::new(
            Reason::GangPartial,
            format!("{placed} of {all} members find a place; the next one{name} does not: {}: {}", alone.reason, alone.detail),
        )
    }

    /// The host that lacked least, the first of equals.
    pub fn nearest_miss(&self) -> Option<NearestMiss> {
        let mut nearest: Option<NearestMiss> = None;
        let need = self.bundle.count;
        for (number, host) in self.cell.hosts().iter().enumerate() {
            let look = self.answers.look(number);
            let Some(misfit) = look.misfit else { continue };
            match &mut nearest {
                Some(best) if look.passing.min(need) < best.gpus.min(need) => {}
                Some(best) if look.passing.min(need) == best.gpus.min(need) => best.hosts += 1,
                _ => {
                    let reason = if misfit == Reason::TooFewDevices { self.most_common(number).unwrap_or(misfit) } else { misfit };
                    nearest = Some(NearestMiss { host: host.id.clone(), gpus: look.passing, gpus_needed: need, reason, hosts: 1 });
                }
            }
        }
        nearest
    }

    /// The reason that most GPUs of a host have besides being too few, of equally many the first in the order of precedence.
    fn most_common(&self, host: usize) -> Option<Reason> {
        let first = self.cell.first_gpu(host) as usize;
        let here = &self.answers.reasons()[first..first + self.cell.hosts()[host].gpus.len()];
        let mut counts = BTreeMap::new();
        for reason in here.iter().filter_map(|reason| reason.or(self.beyond)).filter(|&reason| reason != Reason::TooFewDevices) {
            *counts.entry((reason.precedence(), reason)).or_insert(0_u32) += 1;
        }
        counts.into_iter().max_by_key(|&((precedence, _), count)| (count, std::cmp::Reverse(precedence))).map(|((_, reason), _)| reason)
    }

    fn of_gpus(&self, ask: &Ask<'_>) -> Refused {
        let (need, all) = (self.bundle.count as usize, self.answers.reasons().len());
        let mut left = all;
        if left < need {
            return Refused::new(Reason::TooFewDevices, format!("{need} GPUs on one host are needed, the cell has {left}"));
        }
        let mut gates: Vec<(Reason, u32)> = self.counts.iter().map(|(&reason, &count)| (reason, count)).collect();
        gates.sort_by_key(|(reason, _)| reason.precedence());
        for (reason, count) in gates {
            if reason == Reason::TooFewDevices {
                break;
            }
            left -= count as usize;
            if left < need {
                let what = self.sentence(reason, ask);
                return Refused::new(reason, format!("of {all} GPUs {left} are left for the {need} needed: {what} {}", self.tally()));
            }
        }
        let most = (0..self.cell.hosts().len()).map(|host| self.answers.look(host).open.count_ones()).max().unwrap_or(0);
        let detail = format!("{need} GPUs on one host are needed: {left} of {all} could take it, at most {most} on one host {}", self.tally());
        Refused::new(Reason::TooFewDevices, detail.trim_end().to_owned())
    }

    fn tally(&self) -> String {
        if self.counts.is_empty() {
            return String::new();
        }
        let counts: Vec<_> = self.counts.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        format!("(refused: {})", counts.join(", "))
    }

    /// What a reason means here, with the numbers that help.
    fn sentence(&self, reason: Reason, ask: &Ask<'_>) -> String {
        let (hosts, bundle) = (self.cell.hosts(), self.bundle);
        let open = || hosts.iter().flat_map(|host| &host.gpus).filter(|gpu| gpu.gate.is_none());
        if reason == Reason::InsufficientMemory {
            let most = open().map(|gpu| gpu.free_vram_bytes(self.cell.settings())).max().unwrap_or(0);
            return format!("{} bytes free on each are asked for, the most on one GPU is {most}", bundle.vram_bytes);
        }
        if reason == Reason::LeaseConflict || reason == Reason::ShareTooSmall {
            let least = open().map(|gpu| gpu.reserved_milli).min().unwrap_or(0);
            return format!("{} thousandths of each are asked for, the least reserved GPU has {least} reserved", bundle.milli);
        }
        if reason == Reason::InsufficientCpu {
            let most = hosts.iter().filter_map(|host| host.cpu_milli).max().unwrap_or(0);
            return format!("{} thousandths of a core are asked for, the most left on one host is {most}", bundle.cpu_milli);
        }
        if reason == Reason::InsufficientHostMemory {
            let most = hosts.iter().filter_map(|host| host.memory_bytes).max().unwrap_or(0);
            return format!("{} bytes of the host's memory are asked for, the most left on one host is {most}", bundle.memory_bytes);
        }
        if reason == Reason::ModelMismatch {
            return format!("model {:?} is asked for", ask.place.models().collect::<Vec<_>>().join(" or "));
        }
        if reason == Reason::MigProfile {
            return match &bundle.mig_profile {
                Some(profile) => format!("MIG profile {profile:?} is asked for"),
                None => "a GPU is asked for, and these are cut into MIG instances, or can be".to_owned(),
            };
        }
        if reason == Reason::MigNoSlice || reason == Reason::MigStart {
            let name = bundle.mig_profile.as_deref().unwrap_or_default();
            let boards = open().filter_map(|gpu| {
                let board = gpu.mig.as_ref()?;
                let at = board.profile(name)?;
                Some((board.free_slices(at), board.profile_at(at).size))
            });
            let (most, size) = boards.max().unwrap_or_default();
            let but = if reason == Reason::MigStart { ", but not where one may start, or there are as many as there can be" } else { "" };
            return format!("a new {name} takes {size} memory slices, the most free on one board are {most}{but}");
        }
        format!("{reason} stands in the way")
    }
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
