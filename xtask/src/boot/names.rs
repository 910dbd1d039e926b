//! The names that Volvelle reads from a running kernel's memory are the kernel's own.
//!
//! A serial line is slow for some hundred thousand lines, so the guest says a checksum of its
//! `/proc/kallsyms`, and busybox makes the same of the file of `--save-symbols` on the host.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::child::{self, Output};

/// What the guest's shell is to run. Only symbols of modules, which this guest has none of, would
/// have a column more.
pub const GUEST: &str = "sort /proc/kallsyms | md5sum";
/// Fewer names are no kernel's.
const NAMES_MIN: usize = 50_000;
const LIMIT: Duration = Duration::from_secs(60);

/// Fails unless the names in `saved` are those of which the guest has said the checksum.
pub fn check(saved: &Path, said: &str, busybox: &Path) -> Result<()> {
    let shown = || format!("the names in {}", saved.display());
    let text = fs::read_to_string(saved).with_context(shown)?;
    let count = text.lines().count();
    ensure!(count >= NAMES_MIN, "{} are {count}", shown());
    let mut command = Command::new("sh");
    command.args(["-c", r#""$0" sort "$1" | "$0" md5sum"#]).arg(busybox).arg(saved);
    let finished = child::capture(&mut command, Output::Kept, LIMIT)?;
    let ours = finished.text.trim();
    let is_same = finished.status.success() && ours == said.trim();
    ensure!(is_same, "{} ({count}) are not /proc/kallsyms: {ours}, and {}", shown(), said.trim());
    Ok(())
}
