//! `cargo xtask check`: everything about the sources that can be said without running a guest.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::child::{self, Output};
use crate::workspace;

/// One check, with whatever it has to compile.
const LIMIT: Duration = Duration::from_secs(3600);

/// Name and arguments for cargo.
const CHECKS: &[(&str, &[&str])] = &[
    ("format", &["fmt", "--all", "--check"]),
    ("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    ("tidy", &["test", "--quiet", "--package", "xtask", "--test", "tidy"]),
    ("docs", &["doc", "--workspace", "--no-deps", "--document-private-items"]),
];

/// Runs the checks in order and stops at the first that fails.
pub fn run() -> Result<()> {
    for (name, arguments) in CHECKS {
        println!("=== {name}");
        let started = Instant::now();
        child::check(cargo().args(*arguments), LIMIT)?;
        println!("{name}: {} s", started.elapsed().as_secs());
    }
    println!("=== licences and advisories");
    if has_deny() {
        child::check(cargo().args(["deny", "check"]), LIMIT)
    } else {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny)");
        Ok(())
    }
}

fn cargo() -> Command {
    let mut command = workspace::cargo();
    command.env("RUSTDOCFLAGS", "-D warnings");
    command
}

fn has_deny() -> bool {
    let finished = child::capture(
        workspace::cargo().args(["deny", "--version"]),
        Output::Kept,
        Duration::from_secs(60),
    );
    finished.is_ok_and(|finished| finished.status.success())
}
