//! The chores that are one command each.

use std::env;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::linux;
use crate::workspace;

/// A chore that a person started may run for days.
const UNLIMITED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Rewrites the golden files from what the code does now, for review as a diff.
pub fn bless() -> Result<()> {
    let mut command = workspace::cargo();
    child::check(command.args(["test", "--workspace"]).env("BLESS", "1"), UNLIMITED)
}

/// Measures: criterion's benches.
pub fn bench(filter: Option<&str>) -> Result<()> {
    let mut command = workspace::cargo();
    // Whole crates would also run their unit tests as benches of no iterations.
    command.args(["bench", "--package", "cpu", "--package", "memory", "--bench", "*"]);
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    child::check(&mut command, UNLIMITED)
}

/// Runs what continuous integration runs.
pub fn ci() -> Result<()> {
    child::check(&mut Command::new(workspace::root().join(".ci/run")), UNLIMITED)
}

/// Boots over and over until a boot fails or the time is up.
pub fn soak(minutes: u64) -> Result<()> {
    linux::build()?;
    let program = env::current_exe()?;
    let deadline = std::time::Instant::now() + Duration::from_secs(minutes.saturating_mul(60));
    while std::time::Instant::now() < deadline {
        child::check(Command::new(&program).arg("boot"), UNLIMITED)?;
    }
    Ok(())
}
