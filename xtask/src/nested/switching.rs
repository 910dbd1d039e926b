//! Guests that are moved between KVM and the translator while they run, and must not notice.

use anyhow::{Context, Error, Result, ensure};
use firmware::guests::{ClocksReport, RelayReport};

use crate::boot::console::Console;

/// Guest time of the small guests, and how often the engine is changed: on TCG a change takes its
/// time.
pub const MILLISECONDS: u32 = 25_000;
const EVERY: &str = "100ms";
/// Changes that there must have been.
const CHANGES_MIN: u64 = 100;
/// What clocks may be apart behind them.
const TOLERANCE_NS: u64 = 2_000_000;

/// The line that moves a guest between the engines.
fn line(cpus: usize, words: &str) -> String {
    format!(
        "/kvm/volvelle run --accel kvm --switch-engines jit --switch-every {EVERY} --stats \
         --no-reboot --cpus {cpus} {words}"
    )
}

/// The number of changes in what the command has said; fails if they were too few.
fn check_changes(text: &str) -> Result<()> {
    let told = text.lines().find(|line| line.contains(" changes of engine")).unwrap_or_default();
    let count = told.trim_start().split(' ').next().and_then(|count| count.parse::<u64>().ok());
    ensure!(count >= Some(CHANGES_MIN), "{text}");
    println!("  {told}");
    Ok(())
}

/// Runs the small guest `name` and returns what it and the command have said.
fn small(console: &mut Console, name: &str, cpus: usize) -> Result<String> {
    let words = format!("--debug-exit --bios /kvm/{name}.rom 2>&1; test $? = 1");
    let text = console.shell(&line(cpus, &words))?;
    check_changes(&text)?;
    Ok(text)
}

/// One that computes and looks at its clocks.
pub fn clocks(console: &mut Console, cpus: usize) -> Result<()> {
    let text = small(console, "clocks", cpus)?;
    let reports = ClocksReport::read(&text);
    ensure!(reports.len() == cpus, "{text}");
    for report in reports {
        report.check(TOLERANCE_NS).map_err(Error::msg)?;
    }
    Ok(())
}

/// One that sleeps until interrupts of the other CPU and of its timer.
pub fn relay(console: &mut Console, cpus: usize) -> Result<()> {
    let text = small(console, "relay", cpus)?;
    let report = RelayReport::read(&text).with_context(|| text.clone())?;
    report.check(cpus).map_err(Error::msg)
}
