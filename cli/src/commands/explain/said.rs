//! A decision in sentences. Says what stands in the event and asks nobody.

use std::cmp::Reverse;
use std::fmt::Write;

use plimsoll_schemas::mig::Promise;
use plimsoll_schemas::out::{Assignment, Decided, Distributed, HostShare, LeaseGrant, NearestMiss, Outcome, ScoreParts};
use plimsoll_schemas::request::WHOLE_MILLI;

/// The answer to a placement request.
pub fn placed(decided: &Decided) -> String {
    let mut lines = vec![format!("Request {} of {} was {}.", decided.request_id, decided.tenant, decided.outcome.code())];
    lines.extend(tries(decided));
    match decided.outcome {
        Outcome::Placed => {
            lines.extend(granted(decided));
            lines.extend(looked_at(decided));
        }
        Outcome::Cancelled => lines.extend(Some(sentence(decided.detail.as_deref())).filter(|why| !why.is_empty())),
        Outcome::Deferred | Outcome::Rejected | Outcome::Preempted => {
            lines.extend(in_the_way(decided));
            lines.extend(looked_at(decided));
        }
    }
    lines.push(made_with(decided));
    lines.join("\n  ") + "\n"
}

/// The answer to a request to split work.
pub fn distributed(split: &Distributed) -> String {
    let Distributed { request_id, tenant, outcome, decision_id, decision_seq, position, .. } = split;
    let mut text = format!("Request {request_id} of {tenant} to split work was {}.\n", outcome.code());
    for (uuid, items) in &split.counts {
        let _ = writeln!(text, "  {items} items for {uuid}.");
    }
    if split.unassigned > 0 {
        let _ = writeln!(text, "  {} items for nobody: the cap per GPU leaves no room.", split.unassigned);
    }
    if let Some(reason) = split.reason {
        let _ = writeln!(text, "{}", format!("  What stood in the way: {}. {}", reason.code(), sentence(split.detail.as_deref())).trim_end());
    }
    let _ = writeln!(text, "  Decision {decision_seq} ({decision_id}), on what the log said up to {position}.");
    text
}

fn tries(decided: &Decided) -> Option<String> {
    if decided.attempt == 1 && decided.queue_ms == 0 {
        return None;
    }
    let times = if decided.attempt == 1 { "once".to_owned() } else { format!("{} times", decided.attempt) };
    Some(format!("It was tried {times} and waited {} s.", thousandths(decided.queue_ms)))
}

/// Where it stands, what it holds and how good that was.
fn granted(decided: &Decided) -> Vec<String> {
    let mut lines = gpus(&decided.assignments);
    let shares = decided.lease.iter().flat_map(|lease| &lease.hosts);
    lines.extend(shares.map(|HostShare { host, cpu_milli, memory_bytes }| {
        let cores = Some(format!("{} CPU cores", thousandths(*cpu_milli))).filter(|_| *cpu_milli > 0);
        let memory = Some(format!("{} of memory", gib(*memory_bytes))).filter(|_| *memory_bytes > 0);
        format!("It holds {} of {host}.", and(&cores.into_iter().chain(memory).collect::<Vec<_>>()))
    }));
    if decided.by_gpu_alone {
        lines.push("It was placed by GPU alone: no chosen host has said how much CPU and memory it has.".to_owned());
    }
    lines.extend(decided.lease.as_ref().map(lease));
    if let Some(micro) = decided.score_micro {
        let parts = decided.parts.as_ref().map_or_else(String::new, |of| format!(": {}", parts(of)));
        let makes = decided.assignments.iter().any(|gpu| gpu.mig.is_some());
        lines.push(if makes {
            format!("It scored {}: the share of places for new MIG instances that is lost on its boards.", score(micro))
        } else {
            format!("It scored {} in the policy's own unit{parts}.", score(micro))
        });
    }
    lines
}

/// One line for all GPUs that a member has in the same way.
fn gpus(assignments: &[Assignment]) -> Vec<String> {
    let members = assignments.iter().map(|gpu| gpu.member + 1).max().unwrap_or(0);
    let mut lines = Vec::new();
    if members > 1 {
        lines.push(format!("It is a gang of {members} members, placed together."));
    }
    let alike = |a: &Assignment, b: &Assignment| (a.member, &a.host, a.milli, a.vram_bytes) == (b.member, &b.host, b.milli, b.vram_bytes);
    for gpus in assignments.chunk_by(|a, b| alike(a, b) && a.mig.is_none() && b.mig.is_none()) {
        let first = &gpus[0];
        let who = match &first.bundle {
            Some(bundle) => format!("Member {} ({bundle})", first.member),
            None if members > 1 => format!("Member {}", first.member),
            None => "It".to_owned(),
        };
        if let Some(Promise { profile, start, .. }) = &first.mig {
            let (slot, host, uuid) = (first.slot.0, &first.host, &first.device_uuid);
            let with = gib(first.vram_bytes);
            lines.push(format!(
                "{who} is to stand as {profile} at slice {start} of {uuid} (GPU {slot} of {host}), which its holder makes, with {with}."
            ));
            continue;
        }
        let share = if first.milli == WHOLE_MILLI { "all of".to_owned() } else { format!("{} thousandths of", first.milli) };
        let slots: Vec<String> = gpus.iter().map(|gpu| gpu.slot.0.to_string()).collect();
        let (many, each) = if gpus.len() > 1 { ("s", " each") } else { ("", "") };
        lines.push(format!("{who} has {share} GPU{many} {} of {} with {}{each}.", and(&slots), first.host, gib(first.vram_bytes)));
    }
    lines
}

fn lease(lease: &LeaseGrant) -> String {
    let held = format!("Its lease {} with fence {} holds until {} unless it is renewed", lease.lease_id, lease.fence, lease.expires_at);
    if lease.preemptible {
        return format!("{held}; a request of priority above {} may be told that ending it makes room.", lease.priority);
    }
    held + "."
}

/// Why it was not placed, how near it was, and when it could be.
fn in_the_way(decided: &Decided) -> Vec<String> {
    let reason = decided.reason.map_or("no reason given", |reason| reason.code());
    let mut lines = vec![format!("What stood in the way: {reason}. {}", sentence(decided.detail.as_deref())).trim_end().to_owned()];
    lines.extend(decided.nearest_miss.as_ref().map(nearest));
    lines.extend(decided.earliest_at.as_ref().map(|at| format!("Room could be had at {at} at the earliest, if no lease is renewed.")));
    lines
}

fn nearest(miss: &NearestMiss) -> String {
    let NearestMiss { host, gpus, gpus_needed, reason, hosts } = miss;
    let others = match hosts.saturating_sub(1) {
        0 => String::new(),
        1 => "; 1 other host is as near".to_owned(),
        others => format!("; {others} other hosts are as near"),
    };
    let plural = if *gpus_needed == 1 { "" } else { "s" };
    format!("Nearest: {host} with {} of the {gpus_needed} GPU{plural} needed, {}{others}.", gpus.min(gpus_needed), reason.code())
}

/// How many hosts and GPUs could have taken it, and why the others could not.
fn looked_at(decided: &Decided) -> Vec<String> {
    let considered = match decided.hosts_considered {
        0 => "No host was looked at.".to_owned(),
        1 => format!("1 host was looked at, {} could have taken it.", decided.hosts_feasible),
        hosts => format!("{hosts} hosts were looked at, {} could have taken it.", decided.hosts_feasible),
    };
    let mut lines = vec![considered];
    if !decided.runners_up.is_empty() {
        let next: Vec<_> = decided.runners_up.iter().map(|next| format!("{} ({})", next.host, score(next.score_micro))).collect();
        lines.push(format!("Next best: {}.", next.join(", ")));
    }
    if !decided.refused.is_empty() {
        let mut refused: Vec<_> = decided.refused.iter().collect();
        refused.sort_by_key(|(reason, count)| (Reverse(**count), reason.code()));
        let refused: Vec<_> = refused.into_iter().map(|(reason, count)| format!("{count} {}", reason.code())).collect();
        lines.push(format!("GPUs that could not: {}.", refused.join(", ")));
    }
    lines
}

/// Which decision it is, and all that it was made with.
fn made_with(decided: &Decided) -> String {
    let Decided { decision_id, decision_seq, policy, power_weight, position, .. } = decided;
    let power = Some(format!("power at {power_weight} of 100 parts")).filter(|_| *power_weight > 0);
    let tables = decided.tables_hash.as_ref().map(|hash| format!("tables {hash}"));
    let mix = decided.mix_hash.as_ref().map(|hash| format!("mix of requests {hash}"));
    let with: Vec<String> = power.into_iter().chain(tables).chain(mix).collect();
    let with = if with.is_empty() { String::new() } else { format!(" with {}", and(&with)) };
    let state = if decided.state_hash.is_empty() { String::new() } else { format!(" (state {})", decided.state_hash) };
    format!("Decision {decision_seq} ({decision_id}), by {policy}{with}, on what the log said up to {position}{state}.")
}

/// What a score is made of.
fn parts(parts: &ScoreParts) -> String {
    let said = |milli: i64, more: &str, less: &str| match milli {
        0 => None,
        1.. => Some(more.replace('#', &gpu(milli))),
        ..0 => Some(less.replace('#', &gpu(milli))),
    };
    let said: Vec<String> = [
        said(parts.fragmentation_milli, "fragmentation falls by #", "fragmentation rises by #"),
        said(parts.waste_milli, "# less will stay idle when the fleet is full", "# more will stay idle when the fleet is full"),
        said(parts.scarcity_milli, "it takes # from rare requests", "it leaves # more to rare requests"),
        parts
            .power_mw
            .map(|mw| if mw == 0 { "it wakes no GPU".to_owned() } else { format!("it wakes GPUs that draw about {} W more", (mw + 500) / 1_000) }),
    ]
    .into_iter()
    .flatten()
    .collect();
    if said.is_empty() { "it makes no difference to what else fits".to_owned() } else { said.join(", ") }
}

fn gpu(milli: i64) -> String {
    let milli = milli.unsigned_abs();
    format!("{} GPU{}", thousandths(milli), if milli > u64::from(WHOLE_MILLI) { "s" } else { "" })
}

/// A number with as many of its three decimals as it needs.
fn thousandths(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1_000, milli % 1_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn score(micro: i64) -> String {
    format!("{:.3}", micro as f64 / 1e6)
}

/// `a`, `a and b`, `a, b and c`.
fn and(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [all @ .., last] => format!("{} and {last}", all.join(", ")),
    }
}

/// A detail as a sentence of its own.
fn sentence(detail: Option<&str>) -> String {
    let Some(detail) = detail.filter(|detail| !detail.is_empty()) else { return String::new() };
    let mut letters = detail.chars();
    let first = letters.next().into_iter().flat_map(char::to_uppercase).collect::<String>();
    first + letters.as_str() + if detail.ends_with(['.', ')']) { "" } else { "." }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What is said of a decision that has these fields besides what every one has.
    fn said(fields: Value) -> String {
        let mut decided = json!({
            "decision_id": "local-0-41-1", "decision_seq": 7, "request_id": "r-1", "tenant": "research", "outcome": "rejected",
            "position": {"epoch": 0, "sequence": 41}, "policy": "hybrid@1", "hosts_considered": 0, "hosts_feasible": 0, "refused": {},
            "assignments": [], "runners_up": [],
        });
        let known = decided.as_object_mut().expect("an object");
        known.extend(fields.as_object().expect("an object").clone());
        placed(&serde_json::from_value(decided).expect("a decision"))
    }

    fn gpu(host: &str, slot: u16, member: u32, milli: u32) -> Value {
        json!({"device_uuid": "GPU-1", "device_key": 5, "host": host, "slot": slot, "gpu_index": slot, "milli": milli, "vram_bytes": 3u64 << 29,
               "score_micro": 874_000, "member": member})
    }

    #[test]
    fn a_placement_is_said_with_where_for_how_long_and_who_else() {
        let fields = json!({
            "outcome": "placed", "policy": "headroom@1", "hosts_considered": 3, "hosts_feasible": 2,
            "refused": {"cordoned": 8, "insufficient_memory": 9}, "assignments": [gpu("gpu-1", 3, 0, 500)],
            "lease": {"lease_id": "local-0-41-0", "fence": 4, "ttl_ms": 600000, "expires_at": "2026-11-20T14:05:00Z"},
            "score_micro": 874_000, "runners_up": [{"host": "gpu-2", "score_micro": 811_000}],
        });
        assert_eq!(
            said(fields),
            "Request r-1 of research was placed.\n\
             \x20 It has 500 thousandths of GPU 3 of gpu-1 with 1.5 GiB.\n\
             \x20 Its lease local-0-41-0 with fence 4 holds until 2026-11-20T14:05:00Z unless it is renewed.\n\
             \x20 It scored 0.874 in the policy's own unit.\n\
             \x20 3 hosts were looked at, 2 could have taken it.\n\
             \x20 Next best: gpu-2 (0.811).\n\
             \x20 GPUs that could not: 9 insufficient_memory, 8 cordoned.\n\
             \x20 Decision 7 (local-0-41-1), by headroom@1, on what the log said up to 0:41.\n"
        );
    }

    #[test]
    fn a_gang_is_said_by_member_with_what_it_waited_holds_and_was_decided_with() {
        let named = |mut gpu: Value| {
            gpu["bundle"] = json!("worker");
            gpu
        };
        let fields = json!({
            "outcome": "placed", "attempt": 5, "queue_ms": 12_300, "hosts_considered": 1, "hosts_feasible": 1,
            "assignments": [named(gpu("a", 0, 0, 1000)), named(gpu("a", 1, 0, 1000)), named(gpu("a", 4, 0, 1000)), gpu("b", 0, 1, 1000)],
            "lease": {"lease_id": "lease-4", "fence": 4, "ttl_ms": 600000, "expires_at": "2026-11-20T14:05:00Z", "priority": -2, "preemptible": true,
                      "hosts": [{"host": "a", "cpu_milli": 8_500, "memory_bytes": 64u64 << 30}, {"host": "b", "cpu_milli": 500, "memory_bytes": 0}]},
            "score_micro": -170_000, "power_weight": 5, "parts": {"fragmentation_milli": 120, "waste_milli": -40, "scarcity_milli": 250},
            "tables_hash": "00ff", "mix_hash": "00aa", "state_hash": "0011",
        });
        assert_eq!(
            said(fields),
            "Request r-1 of research was placed.\n\
             \x20 It was tried 5 times and waited 12.3 s.\n\
             \x20 It is a gang of 2 members, placed together.\n\
             \x20 Member 0 (worker) has all of GPUs 0, 1 and 4 of a with 1.5 GiB each.\n\
             \x20 Member 1 has all of GPU 0 of b with 1.5 GiB.\n\
             \x20 It holds 8.5 CPU cores and 64.0 GiB of memory of a.\n\
             \x20 It holds 0.5 CPU cores of b.\n\
             \x20 Its lease lease-4 with fence 4 holds until 2026-11-20T14:05:00Z unless it is renewed; a request of priority above -2 may be told that ending it makes room.\n\
             \x20 It scored -0.170 in the policy's own unit: fragmentation falls by 0.12 GPU, 0.04 GPU more will stay idle when the fleet is full, it takes 0.25 GPU from rare requests.\n\
             \x20 1 host was looked at, 1 could have taken it.\n\
             \x20 Decision 7 (local-0-41-1), by hybrid@1 with power at 5 of 100 parts, tables 00ff and mix of requests 00aa, on what the log said up to 0:41 (state 0011).\n"
        );
    }

    #[test]
    fn a_mig_instance_that_is_to_be_made_is_said_with_where_it_goes() {
        let made = |mut gpu: Value, start: u8| {
            gpu["mig"] = json!({"profile": "2g.20gb", "start": start, "size": 2});
            gpu
        };
        let text = said(json!({
            "outcome": "placed", "hosts_considered": 1, "hosts_feasible": 1, "score_micro": -320_000,
            "assignments": [made(gpu("a", 0, 0, 1000), 4), made(gpu("a", 0, 1, 1000), 2)],
        }));
        assert!(
            text.contains("  Member 0 is to stand as 2g.20gb at slice 4 of GPU-1 (GPU 0 of a), which its holder makes, with 1.5 GiB.\n"),
            "{text}"
        );
        assert!(text.contains("  Member 1 is to stand as 2g.20gb at slice 2 of GPU-1 "), "{text}");
        assert!(text.contains("  It scored -0.320: the share of places for new MIG instances that is lost on its boards.\n"), "{text}");
    }

    #[test]
    fn parts_of_a_score_are_said_in_the_direction_in_which_they_go() {
        let check = |fragmentation_milli, waste_milli, scarcity_milli, power_mw, expected: &str| {
            assert_eq!(parts(&ScoreParts { fragmentation_milli, waste_milli, scarcity_milli, power_mw }), expected);
        };
        check(0, 0, 0, None, "it makes no difference to what else fits");
        check(-1_000, 0, 0, None, "fragmentation rises by 1 GPU");
        check(0, 0, 8_000, Some(0), "it takes 8 GPUs from rare requests, it wakes no GPU");
        check(0, 5, 0, None, "0.005 GPU less will stay idle when the fleet is full");
        check(0, 0, 0, Some(612_500), "it wakes GPUs that draw about 613 W more");
    }

    #[test]
    fn a_rejection_is_said_with_what_stood_in_the_way_and_how_near_it_was() {
        let text = said(json!({
            "reason": "lease_conflict", "detail": "all are leased", "hosts_considered": 16,
            "nearest_miss": {"host": "gpu-7", "gpus": 7, "gpus_needed": 8, "reason": "lease_conflict", "hosts": 15},
        }));
        assert!(text.contains("  What stood in the way: lease_conflict. All are leased.\n  Nearest: gpu-7 with 7 of the 8 GPUs needed, lease_conflict; 14 other hosts are as near.\n  16 hosts were looked at, 0 could"), "{text}");
        let text = said(json!({"reason": "invalid_request"}));
        assert!(text.contains("  What stood in the way: invalid_request.\n  No host was looked at.\n"), "{text}");
    }

    #[test]
    fn what_lacks_cpu_does_not_have_more_gpus_than_are_needed() {
        let miss = |gpus, hosts| NearestMiss {
            host: "a".parse().expect("a token"),
            gpus,
            gpus_needed: 2,
            reason: plimsoll_schemas::reason::Reason::InsufficientCpu,
            hosts,
        };
        assert_eq!(nearest(&miss(8, 1)), "Nearest: a with 2 of the 2 GPUs needed, insufficient_cpu.");
        assert_eq!(nearest(&miss(1, 2)), "Nearest: a with 1 of the 2 GPUs needed, insufficient_cpu; 1 other host is as near.");
    }

    #[test]
    fn what_waits_is_said_with_when_it_could_go_and_what_was_withdrawn_with_by_whom() {
        let text = said(json!({"outcome": "deferred", "reason": "lease_conflict", "earliest_at": "2026-11-20T14:05:00Z"}));
        assert!(text.contains("was deferred.\n") && text.contains("  Room could be had at 2026-11-20T14:05:00Z at the earliest, if no"), "{text}");
        let text = said(json!({"outcome": "cancelled", "reason": "cancelled", "detail": "withdrawn by cli-1", "queue_ms": 4000}));
        let expected = "was cancelled.\n  It was tried once and waited 4 s.\n  Withdrawn by cli-1.\n  Decision 7";
        assert!(text.contains(expected), "{text}");
    }
}
