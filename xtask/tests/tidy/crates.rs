//! Who may know whom, and what is written about it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::assert_none;
use crate::sources::{self, has_word, root};

type Graph = BTreeMap<String, BTreeSet<String>>;

/// What each of our crates may depend on. The command and the chores may know everything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cpu", &["decoder", "memory", "trace"]),
    ("jit", &["cpu", "decoder", "memory", "trace"]),
    ("kvm", &["cpu", "memory"]),
    ("machine", &["memory"]),
    ("decoder", &[]),
    ("memory", &[]),
    ("symbols", &[]),
    ("trace", &[]),
    ("firmware", &[]),
];
const FREE: &[&str] = &["volvelle", "xtask"];

fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn name(value: &Value) -> String {
    value["name"].as_str().unwrap().to_owned()
}

fn dependencies(package: &Value) -> &[Value] {
    package["dependencies"].as_array().unwrap()
}

/// Our crates and which of ours each is built with. What only tests use is left out.
fn graph() -> Graph {
    let packages = packages();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let built_with = |package: &Value| {
        let built = dependencies(package).iter().filter(|one| one["kind"] != "dev");
        built.map(name).filter(|one| ours.contains(one)).collect()
    };
    packages.iter().map(|package| (name(package), built_with(package))).collect()
}

/// Reads the lines `a -> b, c` of the block in ARCHITECTURE.md.
fn documented() -> Graph {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, block) = text.split_once("```crates\n").expect("no ```crates block");
    let (block, _) = block.split_once("```").unwrap();
    let edges = block.lines().map(|line| {
        let (from, to) = line.split_once("->").expect("`crate -> crates` or `crate -> nothing`");
        let to = to.split(',').map(|name| name.trim().to_owned()).filter(|name| name != "nothing");
        (from.trim().to_owned(), to.collect())
    });
    edges.collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let mut complaints = Vec::new();
    for (from, to) in graph() {
        let row = ALLOWED.iter().find(|(name, _)| *name == from);
        if row.is_none() && !FREE.contains(&from.as_str()) {
            complaints.push(format!("{from}: a crate without a row in `ALLOWED`"));
        }
        for forbidden in row
            .into_iter()
            .flat_map(|(_, may)| to.iter().filter(|name| !may.contains(&name.as_str())))
        {
            complaints.push(format!("{from} must not depend on {forbidden}"));
        }
    }
    assert_none(&complaints);
}

#[test]
fn the_picture_in_architecture_md_is_cargos() {
    assert_eq!(documented(), graph(), "ARCHITECTURE.md (left) against cargo metadata (right)");
}

#[test]
fn each_dependency_has_its_reason() {
    let text = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let packages = packages();
    let ours: BTreeSet<String> = packages.iter().map(name).collect();
    let wanted: BTreeSet<String> = packages.iter().flat_map(dependencies).map(name).collect();
    let wanted: BTreeSet<String> = wanted.difference(&ours).cloned().collect();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let listed: BTreeSet<String> = rows.map(str::to_owned).collect();
    assert_eq!(listed, wanted, "docs/dependencies.md (left) against cargo metadata (right)");
}

#[test]
fn each_dependency_is_used() {
    let sources = sources::all();
    let mut complaints = Vec::new();
    for package in packages() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        let folder = manifest.parent().unwrap().strip_prefix(root()).unwrap().to_str().unwrap();
        // The root package has the folders that no other has.
        let folders = if folder.is_empty() { vec!["src/", "tests/"] } else { vec![folder] };
        let own = || sources.iter().filter(|one| folders.iter().any(|f| one.path.starts_with(f)));
        for dependency in dependencies(&package) {
            let crate_name = name(dependency).replace('-', "_");
            if !own().any(|source| source.text.lines().any(|line| has_word(line, &crate_name))) {
                complaints.push(format!("{}: does not use {crate_name}", name(&package)));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn the_code_map_names_files_that_are_there() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let paths = quoted.filter(|quote| {
        quote.contains('/') && quote.ends_with(".rs") && !quote.contains([' ', '*', '{', '<'])
    });
    let missing = paths.filter(|path| !root().join(path).exists());
    assert_none(&missing.map(|path| format!("ARCHITECTURE.md: no {path}")).collect::<Vec<_>>());
}

#[test]
fn every_crate_takes_the_workspaces_lints_and_licence() {
    let mut complaints = Vec::new();
    for package in packages() {
        let manifest = fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        for line in ["[lints]\nworkspace = true", "license.workspace = true"] {
            if !manifest.contains(line) {
                complaints.push(format!("{}: no `{}`", name(&package), line.replace('\n', " ")));
            }
        }
    }
    assert_none(&complaints);
}
