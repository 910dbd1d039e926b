//! `cargo xtask test`: every test there is, and one line at the end that says how it went.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::boot;
use crate::child::{self, Output};
use crate::gdb;
use crate::nested;
use crate::tally::Tally;
use crate::workspace;

/// One suite, the compilation of its tests included.
const SUITE_LIMIT: Duration = Duration::from_secs(3600);

/// A suite that has run.
struct Report {
    name: &'static str,
    tally: Tally,
    time: Duration,
    /// What was left out, with the reason.
    skips: Vec<String>,
}

type Suite = fn() -> Result<(Tally, Vec<String>)>;

const SUITES: &[(&str, Suite)] = &[
    ("unit and integration tests", workspace_tests),
    ("documentation examples", documentation_examples),
    ("boots", boot::suite),
    (GDB, gdb::suite),
    (NESTED, nested::suite),
];
const GDB: &str = "gdb on Debian";
const NESTED: &str = "guests on nested KVM";

/// Runs every suite, whatever became of those before it.
pub fn run() -> ExitCode {
    let reports: Vec<Report> = SUITES.iter().map(|&(name, suite)| report(name, suite)).collect();
    summarize(&reports)
}

/// Runs the guests on nested KVM alone.
pub fn run_nested(options: &nested::Options) -> ExitCode {
    summarize(&[report(NESTED, || nested::chosen(options))])
}

/// Drives gdb against Debian alone.
pub fn run_gdb(options: &gdb::Options) -> ExitCode {
    summarize(&[report(GDB, || gdb::chosen(options))])
}

fn report(name: &'static str, suite: impl FnOnce() -> Result<(Tally, Vec<String>)>) -> Report {
    println!("\n=== {name}");
    let started = Instant::now();
    let (tally, skips) = suite().unwrap_or_else(|error| {
        println!("{name}: {error:#}");
        (Tally { failed: 1, ..Tally::default() }, Vec::new())
    });
    Report { name, tally, time: started.elapsed(), skips }
}

fn summarize(reports: &[Report]) -> ExitCode {
    let mut sum = Tally::default();
    println!("\n{:<28}{:>8}{:>8}{:>8}{:>9}", "suite", "passed", "failed", "skipped", "time");
    for Report { name, tally, time, .. } in reports {
        let Tally { passed, failed, skipped } = *tally;
        println!("{name:<28}{passed:>8}{failed:>8}{skipped:>8}{:>7} s", time.as_secs());
        sum += *tally;
    }
    for Report { name, skips, .. } in reports {
        for skip in skips {
            println!("skipped in {name}: {skip}");
        }
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 && sum.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn workspace_tests() -> Result<(Tally, Vec<String>)> {
    let mut command = workspace::cargo();
    if has_nextest() {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]);
    }
    cargo_suite(&mut command)
}

fn documentation_examples() -> Result<(Tally, Vec<String>)> {
    cargo_suite(workspace::cargo().args(["test", "--workspace", "--doc", "--no-fail-fast"]))
}

/// Runs a test command of cargo's and counts. A failure that no summary mentions, such as a test
/// that does not compile, counts as one.
fn cargo_suite(command: &mut Command) -> Result<(Tally, Vec<String>)> {
    command.env("CARGO_TERM_COLOR", "never").env("RUST_BACKTRACE", "1");
    let finished = child::capture(command, Output::Shown, SUITE_LIMIT)?;
    let mut tally = Tally::parse(&finished.text);
    if !finished.status.success() && tally.failed == 0 {
        tally.failed = 1;
    }
    Ok((tally, Vec::new()))
}

fn has_nextest() -> bool {
    let mut command = workspace::cargo();
    command.args(["nextest", "--version"]);
    let finished = child::capture(&mut command, Output::Kept, Duration::from_secs(60));
    finished.is_ok_and(|finished| finished.status.success())
}
