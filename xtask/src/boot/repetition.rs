//! Runs of a case that must be the same, instruction for instruction, on whatever engine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::cases::Run;
use crate::child::{self, Output};

/// What `--stats` says of a CPU: how many instructions, and a digest of where they were.
const COUNT: &str = "instructions, trace 0x";
/// Comparing traces, on a machine that is busy with other boots.
const COMPARE_LIMIT: Duration = Duration::from_secs(1200);

/// What one run of a case wrote.
pub struct Record {
    pub run: Run,
    pub console: String,
    /// What the program, not its guest, has said.
    pub remarks: String,
    /// The trace, if there is one.
    pub trace: Option<PathBuf>,
}

impl Record {
    /// How many instructions each CPU has executed, by the remarks, and with `has_digest` a
    /// digest of where they were too.
    fn counts(&self, has_digest: bool) -> Vec<&str> {
        let lines = self.remarks.lines().filter(|line| line.contains(COUNT));
        let counts = lines.map(|line| match line.split_once(COUNT) {
            Some((count, _)) if !has_digest => count,
            _ => line,
        });
        counts.collect()
    }

    /// Fails unless `other` has repeated this: the console and the counts. How long it took is the
    /// host's affair, and digests are of blocks, which are an engine's own and end where a trace
    /// does.
    fn compare(&self, other: &Self, cpus: u32) -> Result<()> {
        let has_digest = self.run == other.run;
        let [ours, theirs] = [self, other].map(|record| record.counts(has_digest));
        ensure!(ours.len() == cpus as usize, "{} counts of {cpus} CPUs: no --stats?", ours.len());
        let pairs = self.console.lines().zip(other.console.lines());
        let mut pairs = pairs.chain(ours.into_iter().zip(theirs));
        if let Some((a, b)) = pairs.find(|(a, b)| a != b) {
            bail!("another run differs: {a:?}, then {b:?}");
        }
        let lengths = [self, other].map(|record| record.console.lines().count());
        ensure!(lengths[0] == lengths[1], "one run wrote more than the other");
        Ok(())
    }
}

/// Fails unless all of the runs are the same.
pub fn check(binary: &Path, records: &[Record], cpus: u32) -> Result<()> {
    for (record, next) in records.iter().zip(records.iter().skip(1)) {
        record.compare(next, cpus)?;
    }
    let traces: Vec<&Path> = records.iter().filter_map(|record| record.trace.as_deref()).collect();
    traces.windows(2).try_for_each(|pair| compare_traces(binary, pair))?;
    // Who looks for why they differ needs them.
    traces.iter().for_each(|path| drop(fs::remove_file(path)));
    Ok(())
}

/// Has the program compare traces, which shows where they differ.
fn compare_traces(binary: &Path, traces: &[&Path]) -> Result<()> {
    let [first, second] = traces else { return Ok(()) };
    let mut command = Command::new(binary);
    command.arg("trace").arg(first).arg("--compare").arg(second);
    let finished = child::capture(&mut command, Output::Kept, COMPARE_LIMIT)?;
    ensure!(finished.status.success(), "the engines' traces differ:\n{}", finished.text);
    println!("  traces of the engines are {}", finished.text.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(accel: &'static str, console: &str, remarks: &str) -> Record {
        let run = Run { accel: Some(accel), trace: None };
        Record { run, console: console.into(), remarks: remarks.into(), trace: None }
    }

    #[test]
    fn a_repetition_repeats_console_and_counts_but_not_the_time() {
        let first =
            record("interp", "a\nb", "cpu0: 7 instructions, trace 0x1\n7 instructions in 1 s");
        let later =
            record("interp", "a\nb", "cpu0: 7 instructions, trace 0x1\n7 instructions in 2 s");
        let other = record("interp", "a\nb", "cpu0: 7 instructions, trace 0x2\n");
        let longer = record("interp", "a\nb\nc", "cpu0: 7 instructions, trace 0x1\n");
        first.compare(&later, 1).unwrap();
        assert!(first.compare(&later, 2).is_err());
        assert!(first.compare(&other, 1).is_err());
        assert!(first.compare(&longer, 1).is_err());
        // Another engine has a digest of its own, and so has a run that is traced.
        let mut traced = record("interp", "a\nb", "cpu0: 7 instructions, trace 0x2\n");
        traced.run.trace = Some("to=5");
        first.compare(&traced, 1).unwrap();
        let translated = record("jit", "a\nb", "cpu0: 7 instructions, trace 0x2\n");
        let more = record("jit", "a\nb", "cpu0: 8 instructions, trace 0x1\n");
        first.compare(&translated, 1).unwrap();
        assert!(first.compare(&more, 1).is_err());
    }
}
