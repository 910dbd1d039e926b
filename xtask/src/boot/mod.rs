//! Boots of real kernels with the release binary, as a user would do them.

mod cases;
pub mod console;
pub mod kernel_log;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::guests::{Guests, Kernel, rom};
use crate::linux;
use crate::tally::Tally;
use crate::workspace;
use cases::{CASES, Case, Image, Step};
use console::Console;

/// Lines of the console to show of a boot that failed.
const SHOWN_LINES: usize = 25;
/// What `--stats` says of a CPU: how many instructions, and a digest of where they were.
const TRACE: &str = "instructions, trace 0x";

/// What to boot.
#[derive(clap::Args)]
pub struct Options {
    /// Boot only cases whose name contains this.
    filter: Option<String>,
    /// Program to test instead of the release build.
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
}

/// Runs all cases with a fresh release build. Returns the counts and what was skipped.
pub fn suite() -> Result<(Tally, Vec<String>)> {
    linux::build()?;
    run(&workspace::release_binary(), CASES.iter().collect())
}

/// Runs the cases that a person asked for.
pub fn chosen(options: &Options) -> Result<Tally> {
    let wanted = |case: &&Case| options.filter.as_ref().is_none_or(|part| case.name.contains(part));
    let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
    ensure!(!cases.is_empty(), "no boot has such a name");
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => {
            linux::build()?;
            workspace::release_binary()
        }
    };
    let (tally, skips) = run(&binary, cases)?;
    skips.iter().for_each(|skip| println!("skipped: {skip}"));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(tally)
}

fn run(binary: &Path, cases: Vec<&Case>) -> Result<(Tally, Vec<String>)> {
    let (ours, linux): (Vec<_>, Vec<_>) =
        cases.into_iter().partition(|case| matches!(case.image, Image::BuiltIn | Image::Echo));
    let mut tally = run_cases(binary, &ours, None);
    let mut skips = Vec::new();
    if !linux.is_empty() {
        let guests = Guests::new();
        match guests.download() {
            Ok(()) => tally += run_cases(binary, &linux, Some(&Files::unpack(&guests)?)),
            Err(error) => {
                tally.skipped += 1;
                skips.push(format!("boots of Linux kernels, which cannot be had: {error:#}"));
            }
        }
    }
    Ok((tally, skips))
}

/// Where the guests' files are.
struct Files {
    initramfs: PathBuf,
    kernels: Vec<(Image, PathBuf)>,
}

impl Files {
    /// Unpacks what has been downloaded; this must work.
    fn unpack(guests: &Guests) -> Result<Self> {
        let mut kernels = Vec::new();
        for kernel in [Kernel::Cloud, Kernel::General] {
            kernels.push((Image::Bz(kernel), guests.bzimage(kernel)?));
            kernels.push((Image::Pvh(kernel), guests.vmlinux(kernel)?));
        }
        Ok(Self { initramfs: guests.initramfs()?, kernels })
    }

    fn kernel(&self, image: Image) -> Option<&Path> {
        let entry = self.kernels.iter().find(|(candidate, _)| *candidate == image);
        entry.map(|(_, path)| path.as_path())
    }
}

/// Runs cases side by side, as many as the host has processors.
fn run_cases(binary: &Path, cases: &[&Case], files: Option<&Files>) -> Tally {
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    let worker = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let one = run_case(binary, case, files);
            *tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += one;
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What one run of a case wrote.
struct Record {
    console: String,
    remarks: String,
}

impl Record {
    /// What another run must repeat: the console, and of the remarks the CPUs' traces. How long it
    /// took is the host's affair.
    fn repeated(&self) -> Vec<&str> {
        let traces = self.remarks.lines().filter(|line| line.contains(TRACE));
        self.console.lines().chain(traces).collect()
    }
}

fn run_case(binary: &Path, case: &Case, files: Option<&Files>) -> Tally {
    let started = Instant::now();
    let mut records = Vec::new();
    let result = attempt(binary, case, files, &mut records);
    let seconds = started.elapsed().as_secs_f64();
    let log = keep(case, &records);
    match result {
        Ok(()) => {
            println!("boot {} ... ok ({seconds:.1} s)", case.name);
            Tally { passed: 1, ..Tally::default() }
        }
        Err(error) => {
            println!("boot {} ... FAILED ({seconds:.1} s)\n  {error:#}", case.name);
            if let Some(Record { console, remarks }) = records.last() {
                show_end(console.lines().chain(remarks.lines()));
            }
            println!("  the whole console: {}", log.display());
            Tally { failed: 1, ..Tally::default() }
        }
    }
}

fn attempt(
    binary: &Path,
    case: &Case,
    files: Option<&Files>,
    records: &mut Vec<Record>,
) -> Result<()> {
    let runs = if case.is_repeated { 2 } else { 1 };
    for _ in 0..runs {
        let mut console =
            Console::start(&mut command(binary, case, files)?, cases::limit(case.image))?;
        let result = play(&mut console, case);
        records.push(Record { console: console.transcript(), remarks: console.remarks() });
        result?;
    }
    match records.as_slice() {
        [first, second] => compare(&first.repeated(), &second.repeated(), case.cpus),
        _ => Ok(()),
    }
}

fn compare(first: &[&str], second: &[&str], cpus: u32) -> Result<()> {
    if let Some((a, b)) = first.iter().zip(second).find(|(a, b)| a != b) {
        bail!("the second run differs: {a:?}, then {b:?}");
    }
    ensure!(first.len() == second.len(), "one run wrote more than the other");
    let traces = first.iter().filter(|line| line.contains(TRACE)).count();
    ensure!(traces == cpus as usize, "{traces} traces of {cpus} CPUs: no --stats?");
    Ok(())
}

fn command(binary: &Path, case: &Case, files: Option<&Files>) -> Result<Command> {
    let mut command = Command::new(binary);
    command.args(["run", "--memory", "512M", "--cpus", &case.cpus.to_string()]).args(case.options);
    if case.image == Image::Echo {
        command.arg("--bios").arg(rom("echo", firmware::guests::ECHO)?);
    }
    if let Some(files) = files {
        let kernel = files.kernel(case.image).context("the case's kernel was not fetched")?;
        let words = format!("console=ttyS0 {}", case.words);
        command.arg("--kernel").arg(kernel).arg("--initrd").arg(&files.initramfs);
        command.arg("--append").arg(words.trim_end());
    }
    Ok(command)
}

fn play(console: &mut Console, case: &Case) -> Result<()> {
    for step in case.steps {
        match *step {
            Step::Expect(text) => drop(console.expect(text)?),
            Step::Type(line) => console.type_line(line)?,
            Step::Shell(line, answer) => {
                let output = console.shell(line)?;
                ensure!(output.trim() == answer, "`{line}` gave {output:?}");
            }
            Step::QuietLog => {
                let log = console.shell("dmesg -r")?;
                let complaints = kernel_log::complaints(&log);
                ensure!(complaints.is_empty(), "in dmesg:\n  {}", complaints.join("\n  "));
            }
            Step::Passed => {
                let deviations = firmware::deviations(&console.transcript(), case.cpus);
                ensure!(deviations.is_empty(), "{}", deviations.join("\n  "));
            }
        }
    }
    let status = console.end()?;
    ensure!(status.code() == Some(case.status), "{status} instead of {}", case.status);
    Ok(())
}

/// Prints the last of some lines.
pub fn show_end<'a>(lines: impl Iterator<Item = &'a str>) {
    let lines: Vec<&str> = lines.collect();
    println!("  | {}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n  | "));
}

fn keep(case: &Case, records: &[Record]) -> PathBuf {
    let text: String =
        records.iter().map(|run| format!("{}\n{}\n", run.console, run.remarks)).collect();
    keep_log(&case.name.replace([' ', ','], "-"), &text)
}

/// Keeps the console of a case for a person to read. Losing it fails no test.
pub fn keep_log(name: &str, text: &str) -> PathBuf {
    let folder = workspace::target().join("boots");
    let path = folder.join(format!("{name}.log"));
    fs::create_dir_all(&folder).and_then(|()| fs::write(&path, text)).ok();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(console: &str, remarks: &str) -> Record {
        Record { console: console.into(), remarks: remarks.into() }
    }

    #[test]
    fn a_repetition_repeats_console_and_trace_but_not_the_time() {
        let first = record("a\nb", "cpu0: 7 instructions, trace 0x1\n7 instructions in 1 s");
        let later = record("a\nb", "cpu0: 7 instructions, trace 0x1\n7 instructions in 2 s");
        let other = record("a\nb", "cpu0: 7 instructions, trace 0x2\n");
        let longer = record("a\nb\nc", "cpu0: 7 instructions, trace 0x1\n");
        compare(&first.repeated(), &later.repeated(), 1).unwrap();
        assert!(compare(&first.repeated(), &later.repeated(), 2).is_err());
        assert!(compare(&first.repeated(), &other.repeated(), 1).is_err());
        assert!(compare(&first.repeated(), &longer.repeated(), 1).is_err());
    }
}
