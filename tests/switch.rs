//! Changes of engine under a guest that computes and looks at its clocks.
#![expect(clippy::unwrap_used, reason = "a test that cannot start is a failed test")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use firmware::guests::{ClocksReport, RelayReport, clocks, relay};

/// What clocks may be apart.
const TOLERANCE_NS: u64 = 2_000_000;
/// Changes that a run must have seen.
const CHANGES: u64 = 100;
/// The guest's time: on a busy host a change waits for its turn.
const MILLISECONDS: u32 = 6000;

fn run(name: &str, milliseconds: u32, words: &[&str]) -> Output {
    run_image(&format!("clocks-{name}"), &clocks(milliseconds), words)
}

fn run_image(name: &str, image: &[u8], words: &[&str]) -> Output {
    let rom = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.rom"));
    fs::write(&rom, image).unwrap();
    Command::new(env!("CARGO_BIN_EXE_volvelle"))
        .args(["run", "--no-reboot", "--debug-exit", "--stats", "--bios"])
        .arg(&rom)
        .args(words)
        .output()
        .unwrap()
}

/// The number of changes that the figures at the end tell.
fn changes(output: &Output) -> u64 {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.contains("changes of engine"));
    line.and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
}

fn check(name: &str, cpus: usize, milliseconds: u32, words: &[&str]) -> Output {
    let start = Instant::now();
    let cpu_count = cpus.to_string();
    let output = run(name, milliseconds, &[&["--cpus", &cpu_count], words].concat());
    let passed = start.elapsed();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let reports = ClocksReport::read(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(reports.len(), cpus, "{output:?}");
    for report in reports {
        assert_eq!(report.check(TOLERANCE_NS), Ok(()), "{report:?}");
        assert!(Duration::from_nanos(report.hpet * 10) <= passed, "{report:?} in {passed:?}");
    }
    output
}

#[test]
fn a_guest_does_not_notice_a_hundred_changes_of_engine() {
    for (name, cpus) in [("1", 1), ("2", 2)] {
        let words = ["--accel", "jit", "--switch-engines", "interp", "--switch-every", "20ms"];
        let output = check(name, cpus, MILLISECONDS, &words);
        assert!(changes(&output) >= CHANGES, "{output:?}");
    }
}

/// Each interrupt of another CPU and of a timer comes once.
#[test]
fn no_interrupt_is_lost_when_the_engine_is_changed() {
    for (name, cpus) in [("relay-1", 1), ("relay-2", 2)] {
        let words = ["--accel", "jit", "--switch-engines", "interp", "--switch-every", "10ms"];
        let count = cpus.to_string();
        let output = run_image(name, &relay(3000), &[&words[..], &["--cpus", &count]].concat());
        let report = RelayReport::read(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(report.map(|report| report.check(cpus)), Some(Ok(())), "{output:?}");
        assert!(changes(&output) >= CHANGES, "{output:?}");
    }
}

#[test]
fn the_engine_is_changed_at_the_times_that_were_asked_for() {
    let words = ["--accel", "interp", "--switch-to", "interp@1s", "--switch-to", "jit@500ms"];
    assert_eq!(changes(&check("times", 1, 2000, &words)), 2);
}

#[test]
fn counted_time_goes_on_over_a_change() {
    let words = ["--accel", "interp", "--clock", "icount", "--switch-engines", "jit"];
    let words = [&words[..], &["--switch-every", "5ms"]].concat();
    let first = run("counted", 100, &words);
    let again = run("counted", 100, &words);
    assert_eq!(first.status.code(), Some(1), "{first:?}");
    assert!(changes(&first) >= 10, "{first:?}");
    assert_eq!(first.stdout, again.stdout);
}
