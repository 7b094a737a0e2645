//! The import rule: which of our crates each crate may name, and which heavy ones it never reaches, not even through others.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What one crate may do.
struct Rule {
    name: &'static str,
    /// The only crates of ours that it may depend on.
    ours: &'static [&'static str],
    /// What it must never reach, through anything. `x` also stands for `x-…`.
    never: &'static [&'static str],
}

const RULES: [Rule; 10] = [
    Rule { name: "schemas", ours: &[], never: &["tokio", "async-nats", "arrow", "parquet", "rocksdb", "datafusion"] },
    Rule { name: "fold", ours: &["schemas"], never: &["tokio", "async-nats", "arrow", "parquet", "rocksdb", "datafusion", "rand"] },
    Rule { name: "store", ours: &["schemas", "fold"], never: &["tokio", "async-nats", "arrow", "parquet", "datafusion"] },
    Rule { name: "archive", ours: &["schemas"], never: &["async-nats", "rocksdb", "datafusion"] },
    Rule { name: "agent", ours: &["schemas"], never: &["arrow", "parquet", "rocksdb", "datafusion"] },
    Rule { name: "processor", ours: &["schemas", "fold", "store", "archive"], never: &["datafusion"] },
    Rule { name: "query", ours: &["schemas", "fold", "archive"], never: &["async-nats", "rocksdb"] },
    Rule { name: "cli", ours: &["schemas", "fold"], never: &["arrow", "parquet", "rocksdb", "datafusion"] },
    Rule { name: "tests", ours: EVERYTHING, never: &[] },
    Rule { name: "bench", ours: EVERYTHING, never: &[] },
];
const EVERYTHING: &[&str] = &["schemas", "fold", "store", "archive", "agent", "processor", "query", "cli"];

/// Crates whose types cross our borders: two versions in the tree would be two families of types that do not fit together.
const ONE_VERSION: [&str; 9] = ["arrow", "arrow-schema", "arrow-flight", "parquet", "object_store", "datafusion", "prost", "tonic", "tokio"];

/// Dependencies for building and running, by package; dev-dependencies are left out.
#[derive(Default)]
struct Graph {
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn link(&mut self, from: &str, to: &str) {
        self.edges.entry(from.to_owned()).or_default().insert(to.to_owned());
    }

    fn direct(&self, from: &str) -> impl Iterator<Item = &str> {
        self.edges.get(from).into_iter().flatten().map(String::as_str)
    }

    /// Everything that is reached from a package, with the package through which it was reached first.
    fn reached(&self, from: &str) -> BTreeMap<String, String> {
        let mut through = BTreeMap::new();
        let mut open = vec![from.to_owned()];
        while let Some(package) = open.pop() {
            for to in self.direct(&package) {
                if !through.contains_key(to) {
                    through.insert(to.to_owned(), package.clone());
                    open.push(to.to_owned());
                }
            }
        }
        through
    }
}

/// Every breach of the rules, as sentences.
fn breaches(graph: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for rule in &RULES {
        let package = format!("plimsoll-{}", rule.name);
        for to in graph.direct(&package).filter_map(|to| to.strip_prefix("plimsoll-")) {
            if !rule.ours.contains(&to) {
                found.push(format!("{} imports {to}", rule.name));
            }
        }
        for (reached, through) in graph.reached(&package) {
            if rule.never.iter().any(|never| reached == *never || reached.strip_prefix(never).is_some_and(|rest| rest.starts_with('-'))) {
                found.push(format!("{} reaches {reached} (through {through})", rule.name));
            }
        }
    }
    found
}

fn metadata() -> Value {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(crate::root())
        .output()
        .expect("cargo runs where its tests run");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
}

fn graph(metadata: &Value) -> Graph {
    let names: BTreeMap<&str, &str> = list(metadata, "packages").iter().map(|package| (text(package, "id"), text(package, "name"))).collect();
    let mut graph = Graph::default();
    for node in list(&metadata["resolve"], "nodes") {
        for dependency in list(node, "deps") {
            if list(dependency, "dep_kinds").iter().any(|kind| kind["kind"].as_str() != Some("dev")) {
                graph.link(names[text(node, "id")], names[text(dependency, "pkg")]);
            }
        }
    }
    graph
}

#[test]
fn every_crate_imports_only_what_the_rule_allows() {
    let metadata = metadata();
    assert_eq!(breaches(&graph(&metadata)), Vec::<String>::new());
    let members: BTreeSet<&str> =
        list(&metadata, "packages").iter().map(|package| text(package, "name")).filter_map(|name| name.strip_prefix("plimsoll-")).collect();
    assert_eq!(members, RULES.iter().map(|rule| rule.name).collect(), "every crate of ours has a rule");
}

#[test]
fn a_breach_is_found_however_long_the_way() {
    let mut graph = Graph::default();
    graph.link("plimsoll-agent", "plimsoll-fold");
    graph.link("plimsoll-agent", "innocent");
    graph.link("innocent", "arrow-schema");
    graph.link("plimsoll-agent", "arrows-of-time");
    assert_eq!(breaches(&graph), ["agent imports fold", "agent reaches arrow-schema (through innocent)"]);
}

#[test]
fn there_is_one_version_of_each_crate_whose_types_cross_our_borders() {
    let metadata = metadata();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in list(&metadata, "packages") {
        versions.entry(text(package, "name")).or_default().insert(text(package, "version"));
    }
    for name in ONE_VERSION {
        let found = versions.get(name).unwrap_or_else(|| panic!("{name} is not in the tree"));
        assert_eq!(found.len(), 1, "{name}: {found:?}");
    }
}
