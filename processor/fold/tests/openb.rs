//! The published experiment, run again: five policies must give the published curves at every mark. Reads the traces beside the
//! workspace, or in `OPENB_DIR`, and is skipped where they are not. `OPENB_ALL=1` runs every trace, otherwise the default one.

use std::io::Read;
use std::path::{Path, PathBuf};

use plimsoll_fold::placement::openb::arrivals::{self, Sizes};
use plimsoll_fold::placement::openb::{self, trace};
use plimsoll_fold::placement::policy::catalogue::Name;
use plimsoll_fold::placement::policy::curve::{Curve, MARK_MAX};
use plimsoll_fold::placement::policy::lesson::{self, Judge, Plan};
use plimsoll_fold::placement::policy::placer::Placer;
use plimsoll_fold::placement::policy::tables::Tables;
use plimsoll_fold::placement::policy::workload::{Sequence, Workload, fill};

/// The published curves are rounded to 0.01 percent: as millionths, and a little more.
const TOLERANCE_PPM: i64 = 110;
/// Policies under their published names.
const PUBLISHED: [(&str, Name); 5] = [
    ("02-DotProd", Name::DotProduct),
    ("03-GpuClustering", Name::GpuClustering),
    ("04-GpuPacking", Name::GpuPacking),
    ("05-BestFit", Name::BestFit),
    ("06-FGD", Name::Fgd),
];

struct Experiment {
    workload: Workload,
    sequences: Vec<Sequence>,
}

impl Experiment {
    fn read(folder: &Path, trace: &str) -> Self {
        let text = |name: String| std::fs::read_to_string(folder.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let hosts = trace::nodes(&text("openb_node_list_gpu_node.csv".to_owned())).expect("a node list");
        let pods = trace::pods(&text(format!("openb_pod_list_{trace}.csv"))).expect("a pod list");
        let bytes = gunzip(&folder.join(format!("arrivals_{trace}.bin.gz")));
        let sequences = arrivals::recorded(&bytes, Sizes { pods: pods.len(), hosts: hosts.len() }).expect("sequences");
        Self { workload: openb::workload(hosts, &pods).expect("a fleet"), sequences }
    }

    fn run(&self, sequence: &Sequence, policy: Name, tables: &Tables) -> Curve {
        let policy = self.workload.policy(policy, tables, sequence.seed);
        let mut placer = Placer::new(self.workload.fleet(&sequence.ranks), policy);
        fill(&mut placer, self.workload.asked(sequence))
    }
}

/// For policies that learn nothing.
fn untaught() -> Tables {
    Tables::untaught(&[])
}

fn gunzip(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("gzip");
    bytes
}

/// The folder with the traces, if it is there.
fn traces() -> Option<PathBuf> {
    let beside = || PathBuf::from("../../../shared/data/openb");
    let folder = std::env::var_os("OPENB_DIR").map_or_else(beside, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    eprintln!("skipped: no traces in {}", folder.display());
    None
}

/// Published allocation, percent, of one run: one number per mark.
fn published(folder: &Path, trace: &str) -> Vec<(String, u64, Vec<f64>)> {
    let text = std::fs::read_to_string(folder.join("published_alloc_curves.csv")).expect("published curves");
    let workload = format!("openb_pod_list_{trace},");
    let runs = text.lines().filter(|line| line.starts_with(&workload)).map(|line| {
        let fields: Vec<&str> = line.split(',').collect();
        let curve = fields[5..].iter().map(|value| value.parse().expect("a percentage")).collect();
        (fields[1].to_owned(), fields[3].parse().expect("a seed"), curve)
    });
    runs.collect()
}

fn check_trace(folder: &Path, trace: &str) {
    let experiment = Experiment::read(folder, trace);
    let (mut runs, mut worst) = (0, 0);
    for (policy, seed, expected) in published(folder, trace) {
        let Some(&(_, name)) = PUBLISHED.iter().find(|(published, _)| *published == policy) else { continue };
        let sequence = experiment.sequences.iter().find(|sequence| sequence.seed == seed).expect("every seed has a sequence");
        let curve = experiment.run(sequence, name, &untaught());
        assert_eq!(expected.len(), MARK_MAX + 1, "{trace} {policy} {seed}");
        for (mark, percent) in expected.into_iter().enumerate() {
            let given = i64::from(curve.allocated_ppm(mark).unwrap_or_else(|| panic!("{trace} {policy} {seed}: nothing at {mark} %")));
            let off = given.abs_diff((percent * 10_000.0).round() as i64);
            assert!(off as i64 <= TOLERANCE_PPM, "{trace} {policy} seed {seed} at {mark} %: {given} millionths, published {percent} %");
            worst = worst.max(off);
        }
        runs += 1;
    }
    assert_eq!(runs, PUBLISHED.len() * 10, "{trace}");
    eprintln!("{trace}: {runs} published runs, at most {worst} millionths apart");
}

#[test]
fn five_policies_give_the_published_curves() {
    let Some(folder) = traces() else { return };
    check_trace(&folder, "default");
    if std::env::var_os("OPENB_ALL").is_some_and(|value| value == "1") {
        let others = ["cpu050", "cpu100", "cpu250", "gpushare40", "gpushare80", "gpushare100", "gpuspec10", "gpuspec25", "multigpu20", "multigpu40"];
        others.iter().for_each(|trace| check_trace(&folder, trace));
    }
}

#[test]
fn random_leaves_about_as_much_as_published() {
    let Some(folder) = traces() else { return };
    let experiment = Experiment::read(&folder, "default");
    let unallocated = |sequence| i64::from(experiment.run(sequence, Name::Random, &untaught()).unallocated_ppm(100).expect("a mark"));
    let mean = experiment.sequences.iter().take(4).map(unallocated).sum::<i64>() / 4;
    assert!((127_000..=147_000).contains(&mean), "{mean} millionths, published 137000");
}

#[test]
fn policies_that_learned_from_other_sequences_leave_less_than_fgd() {
    let Some(folder) = traces() else { return };
    let experiment = Experiment::read(&folder, "default");
    // Millionths at 100 and 130 percent of arrived load, at most.
    for (policy, at_100, at_130) in [(Name::Tw, 39_500, 38_500), (Name::Hybrid, 41_000, 40_000)] {
        let judge = Judge::new(&experiment.workload, 1_006..1_008);
        let plan = Plan { policy, rounds: 6, rehearsed: (1_000..1_006).collect(), load_percent: 100, judge: &judge };
        let lesson = lesson::learn(&experiment.workload, &plan, &|| {});
        let mut means = [0, 0];
        for sequence in experiment.sequences.iter().take(2) {
            let at = |curve: Curve| [100, 130].map(|mark| curve.unallocated_ppm(mark).expect("a mark"));
            let (ours, fgds) = (at(experiment.run(sequence, policy, &lesson.tables)), at(experiment.run(sequence, Name::Fgd, &untaught())));
            assert!(ours[0] < fgds[0] && ours[1] < fgds[1], "{policy:?} seed {}: {ours:?}, fgd {fgds:?}", sequence.seed);
            means = [means[0] + ours[0] / 2, means[1] + ours[1] / 2];
        }
        assert!(means[0] <= at_100 && means[1] <= at_130, "{policy:?}: {means:?}");
    }
}
