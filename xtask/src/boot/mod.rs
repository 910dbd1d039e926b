//! Boots of real kernels with the release binary, as a user would do them.

mod cases;
pub mod console;
pub mod kernel_log;
mod names;
mod repetition;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::guests::{Guests, Kernel, rom};
use crate::linux;
use crate::tally::Tally;
use crate::workspace;
use cases::{CASES, Case, Image, Step};
use console::Console;
use repetition::Record;

/// Lines of the console to show of a boot that failed.
const SHOWN_LINES: usize = 25;

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
    busybox: PathBuf,
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
        Ok(Self { busybox: guests.busybox()?, initramfs: guests.initramfs()?, kernels })
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
            if let Some(Record { console, remarks, .. }) = records.last() {
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
    for (number, &run) in case.runs.iter().enumerate() {
        let trace = match run.trace {
            Some(_) => Some(beside_log(case, &format!("{number}.trace"))?),
            None => None,
        };
        let mut command = command(binary, case, files)?;
        command.args(run.accel.iter().flat_map(|accel| ["--accel", accel]));
        if let (Some(path), Some(keys)) = (&trace, run.trace) {
            command.arg("--trace").arg(format!("{},{keys}", path.display()));
        }
        let mut console = Console::start(&mut command, cases::limit(case.image))?;
        let result = play(&mut console, case, files);
        let (console, remarks) = (console.transcript(), console.remarks());
        records.push(Record { run, console, remarks, trace });
        result?;
    }
    repetition::check(binary, records, case.cpus)
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
        if case.steps.iter().any(|step| matches!(step, Step::SameNames)) {
            command.arg("--save-symbols").arg(beside_log(case, "symbols")?);
        }
    }
    Ok(command)
}

fn play(console: &mut Console, case: &Case, files: Option<&Files>) -> Result<()> {
    let mut names = None;
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
            Step::SameNames => names = Some(console.shell(names::GUEST)?),
            Step::Passed => {
                let deviations = firmware::deviations(&console.transcript(), case.cpus);
                ensure!(deviations.is_empty(), "{}", deviations.join("\n  "));
            }
        }
    }
    let status = console.end()?;
    ensure!(status.code() == Some(case.status), "{status} instead of {}", case.status);
    if let (Some(said), Some(files)) = (names, files) {
        let saved = beside_log(case, "symbols")?;
        names::check(&saved, &said, &files.busybox)?;
        fs::remove_file(saved).ok();
    }
    Ok(())
}

/// Prints the last of some lines.
pub fn show_end<'a>(lines: impl Iterator<Item = &'a str>) {
    let lines: Vec<&str> = lines.collect();
    println!("  | {}", lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n  | "));
}

/// Where a file of a case's goes: beside its console's log.
fn beside_log(case: &Case, extension: &str) -> Result<PathBuf> {
    let folder = workspace::target().join("boots");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder.join(format!("{}.{extension}", file_name(case))))
}

fn file_name(case: &Case) -> String {
    case.name.replace([' ', ','], "-")
}

fn keep(case: &Case, records: &[Record]) -> PathBuf {
    let text: String =
        records.iter().map(|run| format!("{}\n{}\n", run.console, run.remarks)).collect();
    keep_log(&file_name(case), &text)
}

/// Keeps the console of a case for a person to read. Losing it fails no test.
pub fn keep_log(name: &str, text: &str) -> PathBuf {
    let folder = workspace::target().join("boots");
    let path = folder.join(format!("{name}.log"));
    fs::create_dir_all(&folder).and_then(|()| fs::write(&path, text)).ok();
    path
}
