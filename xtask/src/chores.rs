//! The chores that are one command each.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::child;
use crate::workspace;

/// A chore that a person started may run for days.
pub const UNLIMITED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Rewrites the golden files from what the code does now, for review as a diff.
pub fn bless() -> Result<()> {
    let mut command = workspace::cargo();
    child::check(command.args(["test", "--workspace"]).env("BLESS", "1"), UNLIMITED)
}

/// Runs what continuous integration runs.
pub fn ci() -> Result<()> {
    child::check(&mut Command::new(workspace::root().join(".ci/run")), UNLIMITED)
}
