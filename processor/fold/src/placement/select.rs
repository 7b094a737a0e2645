//! The choice: which GPUs of which host take a request, or why none can.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use plimsoll_schemas::id::HostId;
use plimsoll_schemas::out::{Outcome, RunnerUp};
use plimsoll_schemas::reason::Reason;
use plimsoll_schemas::request::{Bundle, Place};

use super::candidate::Candidate;
use super::{Refused, Settings, shape};

/// Most hosts named as runners-up.
pub const RUNNERS_UP_MAX: usize = 3;

/// One GPU that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// Its place among the candidates.
    pub candidate: usize,
    /// Thousandths to reserve.
    pub milli: u32,
    /// Memory to reserve, bytes.
    pub vram_bytes: u64,
    /// Its score, millionths.
    pub score_micro: u32,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// `placed` or `rejected`.
    pub outcome: Outcome,
    /// The GPUs, all on one host, best first; empty if rejected.
    pub picks: Vec<Pick>,
    /// Mean score of the picks, millionths, if placed.
    pub score_micro: Option<u32>,
    /// The dominant reason, if rejected: the gate, in the order of precedence, that left too few GPUs; `too_few_devices` where
    /// enough are left but not on one host.
    pub reason: Option<Reason>,
    /// The same as a sentence with numbers.
    pub detail: Option<String>,
    /// Hosts looked at.
    pub hosts_considered: u32,
    /// Hosts that could have taken it.
    pub hosts_feasible: u32,
    /// GPUs refused, by reason.
    pub refused: BTreeMap<Reason, u32>,
    /// The best hosts that were not taken, best first.
    pub runners_up: Vec<RunnerUp>,
}

impl Choice {
    pub(crate) fn rejected(Refused { reason, detail }: Refused) -> Self {
        Self {
            outcome: Outcome::Rejected,
            picks: Vec::new(),
            score_micro: None,
            reason: Some(reason),
            detail: Some(detail),
            hosts_considered: 0,
            hosts_feasible: 0,
            refused: BTreeMap::new(),
            runners_up: Vec::new(),
        }
    }
}

/// Chooses the host whose best GPUs score most on average, and those GPUs. Ties go to the lesser device key, then the lesser
/// host. O(n log n); the order of the candidates does not matter.
pub fn choose(candidates: &[Candidate<'_>], request: &Place, settings: &Settings) -> Choice {
    let bundle = match shape::check(request) {
        Ok(bundle) => bundle,
        Err(refused) => return Choice::rejected(refused),
    };
    let mut refused = BTreeMap::new();
    let mut hosts = Hosts::default();
    for (index, candidate) in candidates.iter().enumerate() {
        let passing = hosts.passing(candidate.host);
        match candidate.offer(bundle, request.model.as_deref(), settings) {
            Ok(offer) => passing.push(Pick { candidate: index, milli: bundle.milli, vram_bytes: offer.vram_bytes, score_micro: offer.score.micro() }),
            Err(reason) => *refused.entry(reason).or_insert(0) += 1,
        }
    }
    let hosts = hosts.groups;
    let feasible = rank(candidates, &hosts, bundle.count as usize);
    let (hosts_considered, hosts_feasible) = (hosts.len() as u32, feasible.len() as u32);
    let mut ranked = feasible.into_iter();
    let Some(best) = ranked.next() else {
        let why = why_none(candidates, &hosts, request, bundle, settings, &refused);
        return Choice { hosts_considered, refused, ..Choice::rejected(why) };
    };
    Choice {
        outcome: Outcome::Placed,
        picks: best.picks,
        score_micro: Some(best.score_micro),
        reason: None,
        detail: None,
        hosts_considered,
        hosts_feasible,
        refused,
        runners_up: ranked.take(RUNNERS_UP_MAX).map(|host| RunnerUp { host: host.host.clone(), score_micro: host.score_micro }).collect(),
    }
}

/// The GPUs that pass every gate, by host.
#[derive(Default)]
struct Hosts<'a> {
    groups: Vec<(&'a HostId, Vec<Pick>)>,
    by_host: BTreeMap<&'a HostId, usize>,
    last: usize,
}

impl<'a> Hosts<'a> {
    /// The list of a host. GPUs of one host usually come one after the other, so the last one asked for is tried first.
    fn passing(&mut self, host: &'a HostId) -> &mut Vec<Pick> {
        if self.groups.get(self.last).is_none_or(|(last, _)| *last != host) {
            self.last = *self.by_host.entry(host).or_insert(self.groups.len());
            if self.last == self.groups.len() {
                self.groups.push((host, Vec::new()));
            }
        }
        &mut self.groups[self.last].1
    }
}

/// A host that can take the request.
struct Feasible<'a> {
    host: &'a HostId,
    picks: Vec<Pick>,
    score_micro: u32,
}

/// The hosts with at least `count` passing GPUs, each with its best ones, best host first.
fn rank<'a>(candidates: &[Candidate<'a>], hosts: &[(&'a HostId, Vec<Pick>)], count: usize) -> Vec<Feasible<'a>> {
    let mut feasible: Vec<_> = hosts
        .iter()
        .filter(|(_, passing)| passing.len() >= count)
        .map(|(host, passing)| {
            let mut picks = passing.clone();
            picks.sort_by_key(|pick| (Reverse(pick.score_micro), candidates[pick.candidate].device, candidates[pick.candidate].uuid));
            picks.truncate(count);
            let sum: u64 = picks.iter().map(|pick| u64::from(pick.score_micro)).sum();
            let mean = (sum + count as u64 / 2) / count as u64;
            Feasible { host, picks, score_micro: u32::try_from(mean).expect("a mean of u32") }
        })
        .collect();
    feasible.sort_by_key(|host| (Reverse(host.score_micro), candidates[host.picks[0].candidate].device, host.host));
    feasible
}

/// Why no host can take it. GPUs fall through the gates in the order of precedence; the gate at which fewer than `count` are
/// left is what stood in the way.
fn why_none(
    candidates: &[Candidate<'_>],
    hosts: &[(&HostId, Vec<Pick>)],
    request: &Place,
    bundle: &Bundle,
    settings: &Settings,
    refused: &BTreeMap<Reason, u32>,
) -> Refused {
    let need = bundle.count as usize;
    if candidates.is_empty() {
        return Refused::new(Reason::NoDevices, "the cell has no GPU");
    }
    let mut left = candidates.len();
    if left < need {
        return Refused::new(Reason::TooFewDevices, format!("{need} GPUs on one host are needed, the cell has {left}"));
    }
    let mut gates: Vec<(Reason, u32)> = refused.iter().map(|(&reason, &count)| (reason, count)).collect();
    gates.sort_by_key(|(reason, _)| reason.precedence());
    for (reason, count) in gates {
        left -= count as usize;
        if left < need {
            let what = sentence(reason, candidates, request, bundle, settings);
            return Refused::new(reason, format!("of {} GPUs {left} are left for the {need} needed: {what} {}", candidates.len(), tally(refused)));
        }
    }
    let most = hosts.iter().map(|(_, passing)| passing.len()).max().unwrap_or(0);
    let detail =
        format!("{need} GPUs on one host are needed: {left} of {} could take it, at most {most} on one host {}", candidates.len(), tally(refused));
    Refused::new(Reason::TooFewDevices, detail.trim_end().to_owned())
}

/// What a reason means here, with the numbers that help.
fn sentence(reason: Reason, candidates: &[Candidate<'_>], request: &Place, bundle: &Bundle, settings: &Settings) -> String {
    let open = || candidates.iter().filter(|c| c.gate.is_none());
    if reason == Reason::InsufficientMemory {
        let most = open().map(|c| c.free_vram_bytes(settings)).max().unwrap_or(0);
        return format!("{} bytes free on each are asked for, the most on one GPU is {most}", bundle.vram_bytes);
    }
    if reason == Reason::LeaseConflict {
        let least = open().map(|c| c.reserved_milli).min().unwrap_or(0);
        return format!("{} thousandths of each are asked for, the least reserved GPU has {least} reserved", bundle.milli);
    }
    if reason == Reason::ModelMismatch {
        return format!("model {:?} is asked for", request.model.as_deref().unwrap_or_default());
    }
    format!("{reason} stands in the way")
}

fn tally(refused: &BTreeMap<Reason, u32>) -> String {
    if refused.is_empty() {
        return String::new();
    }
    let counts: Vec<_> = refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    format!("(refused: {})", counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_schemas::id::{DeviceKey, GpuUuid, Slot};
    use plimsoll_schemas::request::WHOLE_MILLI;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    /// A GPU that owns what a candidate borrows.
    #[derive(Debug, Clone)]
    struct Gpu {
        host: HostId,
        uuid: GpuUuid,
        model: &'static str,
        used_gib: u64,
        util: u64,
        celsius: u64,
        gate: Option<Reason>,
        reserved_milli: u32,
        reserved_gib: u64,
    }

    impl Gpu {
        fn new(host: u8, number: u8) -> Self {
            Self {
                host: format!("h{host}").parse().expect("valid"),
                uuid: format!("GPU-{host}-{number}").parse().expect("valid"),
                model: "H100",
                used_gib: 0,
                util: 0,
                celsius: 40,
                gate: None,
                reserved_milli: 0,
                reserved_gib: 0,
            }
        }

        fn candidate(&self) -> Candidate<'_> {
            Candidate {
                device: DeviceKey(self.uuid.as_str().bytes().map(i64::from).sum()),
                uuid: &self.uuid,
                host: &self.host,
                slot: Slot(0),
                gpu_index: 0,
                model: self.model,
                memory_total_bytes: Some(80 * GIB),
                memory_used_bytes: Some(self.used_gib * GIB),
                util_percent: Some(self.util),
                temperature_mk: Some(self.celsius * 1_000 + 273_150),
                slowdown_temperature_mk: Some(363_150),
                gate: self.gate,
                reserved_milli: self.reserved_milli,
                reserved_vram_bytes: self.reserved_gib * GIB,
            }
        }
    }

    fn place(count: u32, milli: u32, vram_gib: u64, model: Option<&str>) -> Place {
        Place {
            request_id: "r".to_owned(),
            bundles: vec![Bundle { count, milli, vram_bytes: vram_gib * GIB, mig_profile: None }],
            model: model.map(str::to_owned),
            workload: None,
            duration_ms: None,
            priority: 0,
            lease_ttl_ms: None,
            labels: BTreeMap::new(),
        }
    }

    fn pick(gpus: &[Gpu], request: &Place) -> (Choice, Vec<String>) {
        let candidates: Vec<_> = gpus.iter().map(Gpu::candidate).collect();
        let choice = choose(&candidates, request, &Settings::default());
        let names = choice.picks.iter().map(|pick| gpus[pick.candidate].uuid.to_string()).collect();
        (choice, names)
    }

    fn fleet(hosts: u8, gpus: u8) -> Vec<Gpu> {
        (0..hosts).flat_map(|host| (0..gpus).map(move |number| Gpu::new(host, number))).collect()
    }

    fn rejected(gpus: &[Gpu], request: &Place, reason: Reason, detail: &str) {
        let (choice, names) = pick(gpus, request);
        assert_eq!((choice.outcome, choice.reason, choice.detail.as_deref()), (Outcome::Rejected, Some(reason), Some(detail)));
        assert!(names.is_empty() && choice.hosts_feasible == 0 && choice.runners_up.is_empty());
    }

    #[test]
    fn the_gpu_with_the_most_room_wins_and_ties_go_to_the_lesser_key() {
        let mut gpus = fleet(2, 2);
        gpus[0].util = 10;
        assert_eq!(pick(&gpus, &place(1, 1_000, 0, None)).1, ["GPU-0-1"]);
        gpus[1].used_gib = 20;
        let (choice, names) = pick(&gpus, &place(1, 1_000, 0, None));
        assert_eq!(names, ["GPU-1-0"]);
        assert_eq!((choice.hosts_considered, choice.hosts_feasible), (2, 2));
        assert_eq!(choice.runners_up, [RunnerUp { host: "h0".parse().expect("valid"), score_micro: 960_000 }]);
    }

    #[test]
    fn several_gpus_come_from_the_host_whose_best_ones_score_most_together() {
        let mut gpus = fleet(2, 3);
        // The best single GPU stands on h0, the best pair on h1.
        gpus[1].util = 90;
        gpus[2].util = 90;
        gpus[3..].iter_mut().for_each(|gpu| gpu.util = 20);
        gpus[4].util = 10;
        let (choice, names) = pick(&gpus, &place(2, 1_000, 40, None));
        assert_eq!(names, ["GPU-1-1", "GPU-1-0"]);
        assert_eq!(choice.score_micro, Some(940_000));
        assert_eq!(choice.picks[0].vram_bytes, 40 * GIB);
    }

    #[test]
    fn the_reason_is_the_gate_that_left_too_few() {
        let mut gpus = fleet(2, 4);
        rejected(&[], &place(1, 1_000, 0, None), Reason::NoDevices, "the cell has no GPU");
        rejected(&gpus, &place(9, 1_000, 0, None), Reason::TooFewDevices, "9 GPUs on one host are needed, the cell has 8");
        rejected(
            &gpus,
            &place(5, 1_000, 0, None),
            Reason::TooFewDevices,
            "5 GPUs on one host are needed: 8 of 8 could take it, at most 4 on one host",
        );
        gpus[0].gate = Some(Reason::Stale);
        gpus[1..5].iter_mut().for_each(|gpu| gpu.reserved_milli = 1_000);
        rejected(
            &gpus,
            &place(4, 1_000, 0, None),
            Reason::LeaseConflict,
            "of 8 GPUs 3 are left for the 4 needed: 1000 thousandths of each are asked for, the least reserved GPU has 0 reserved \
             (refused: stale 1, lease_conflict 4)",
        );
        rejected(
            &gpus,
            &place(1, 1_000, 81, None),
            Reason::InsufficientMemory,
            "of 8 GPUs 0 are left for the 1 needed: 86973087744 bytes free on each are asked for, the most on one GPU is 85899345920 \
             (refused: stale 1, lease_conflict 4, insufficient_memory 3)",
        );
        gpus[5].gate = Some(Reason::Stale);
        rejected(
            &gpus,
            &place(1, 1_000, 0, Some("T4")),
            Reason::ModelMismatch,
            "of 8 GPUs 0 are left for the 1 needed: model \"T4\" is asked for (refused: stale 2, model_mismatch 6)",
        );
    }

    #[test]
    fn a_request_out_of_bounds_is_refused_before_any_gpu_is_looked_at() {
        let (choice, _) = pick(&fleet(1, 1), &place(0, 1_000, 0, None));
        assert_eq!((choice.reason, choice.hosts_considered), (Some(Reason::InvalidRequest), 0));
        assert_eq!(choice.detail.as_deref(), Some("count 0, expected 1 to 1024"));
    }

    prop_compose! {
        fn any_gpu()(
            host in 0..5u8, number in 0..8u8, model in prop::sample::select(vec!["H100", "A100"]), used_gib in 0..=80u64, util in 0..=100u64,
            celsius in 20..95u64, gate in prop::option::weighted(0.2, prop::sample::select(vec![Reason::Stale, Reason::Cordoned, Reason::Draining])),
            reserved_milli in prop::sample::select(vec![0, 0, 300, 1_000]), reserved_gib in 0..=40u64,
        ) -> Gpu {
            Gpu { model, used_gib, util, celsius, gate, reserved_milli, reserved_gib, ..Gpu::new(host, number) }
        }
    }

    fn any_fleet() -> impl proptest::strategy::Strategy<Value = (Vec<Gpu>, Vec<Gpu>)> {
        let fleet = prop::collection::vec(any_gpu(), 0..40).prop_map(|mut gpus| {
            gpus.sort_by(|a, b| a.uuid.cmp(&b.uuid));
            gpus.dedup_by(|a, b| a.uuid == b.uuid);
            gpus
        });
        fleet.prop_flat_map(|gpus| (Just(gpus.clone()), Just(gpus).prop_shuffle()))
    }

    proptest! {
        #[test]
        fn the_order_of_candidates_changes_nothing_and_nothing_is_promised_twice(
            (gpus, shuffled) in any_fleet(),
            count in 1..5u32,
            milli in prop::sample::select(vec![250, 700, 1_000]),
            vram_gib in 0..=60u64,
            model in prop::option::of(Just("H100")),
        ) {
            let request = place(count, milli, vram_gib, model);
            let (choice, names) = pick(&gpus, &request);
            let (again, names_again) = pick(&shuffled, &request);
            prop_assert_eq!(&names, &names_again);
            let without_picks = |choice: Choice| Choice { picks: Vec::new(), ..choice };
            prop_assert_eq!(without_picks(choice.clone()), without_picks(again));

            prop_assert_eq!(choice.outcome == Outcome::Placed, choice.reason.is_none());
            prop_assert_eq!(choice.picks.len(), if choice.outcome == Outcome::Placed { count as usize } else { 0 });
            for pick in &choice.picks {
                let gpu = &gpus[pick.candidate];
                prop_assert_eq!(&gpu.host, &gpus[choice.picks[0].candidate].host);
                prop_assert!(gpu.gate.is_none() && gpu.celsius < 90 && model.is_none_or(|model| model == gpu.model));
                prop_assert!(gpu.reserved_milli + pick.milli <= WHOLE_MILLI);
                prop_assert!(pick.vram_bytes >= vram_gib * GIB && gpu.reserved_gib.max(gpu.used_gib) * GIB + pick.vram_bytes <= 80 * GIB);
            }
            let distinct: std::collections::BTreeSet<_> = names.iter().collect();
            prop_assert_eq!(distinct.len(), names.len());
            if choice.outcome == Outcome::Rejected {
                let passing = |host: &HostId| gpus.iter().filter(|gpu| gpu.host == *host
                    && gpu.candidate().offer(&request.bundles[0], model, &Settings::default()).is_ok()).count();
                prop_assert!(gpus.iter().all(|gpu| passing(&gpu.host) < count as usize), "a host could have taken it");
            }
        }
    }
}
