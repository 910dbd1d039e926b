//! `cargo xtask soak`: what finds more the longer it runs, in turn on every core, for an hour or a
//! night: the translator against the interpreter, the fuzz targets, and boots if they are wanted.
//!
//! Every round begins where no round of this run has been. A job that failed is not run again, and
//! all others go on; the end says what failed and shows the end of its output.

use std::env;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::child::{self, Output};
use crate::fuzz::{self, Target};
use crate::linux;
use crate::workspace;

/// The longest that a job runs before it is another's turn.
const SLICE_MAX: Duration = Duration::from_secs(600);
/// What a job may take beyond its slice: compilation, the case under way, a loaded host.
const GRACE: Duration = Duration::from_secs(3600);
/// Cases and inputs from one round to the next: more than any slice gets through.
const STRIDE: u64 = 100_000_000;
/// Lines of a failed job's output that are shown.
const TAIL: usize = 60;

/// The tests of `jit/tests/differential` that go on for as long as they are told.
const DIFFERENTIAL: [&str; 6] = [
    "programs_of_64_bit_supervisors",
    "programs_of_64_bit_users",
    "programs_of_32_bit_supervisors",
    "programs_of_32_bit_users",
    "programs_without_paging",
    "programs_of_users_without_paging",
];

#[derive(Args)]
pub struct Options {
    /// How long, in minutes.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Boot the kernels of `cargo xtask boot` too, once a round.
    #[arg(long)]
    boots: bool,
}

/// Something that runs for a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Differential(&'static str),
    Fuzz(Target),
    Boots,
}

/// A job that failed, and in which round.
struct Failed {
    job: Job,
    round: u64,
    output: String,
}

/// What the workers share.
struct Plan {
    jobs: Vec<Job>,
    slice: Duration,
    deadline: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Turns that were given out.
    next: u64,
    /// Turns that ended well.
    passed: u64,
    failed: Vec<Failed>,
}

/// Runs all jobs in turn until the time is up.
pub fn run(options: &Options) -> Result<()> {
    build(options)?;
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let jobs = jobs(options);
    let time = Duration::from_secs(options.minutes.saturating_mul(60));
    let plan = Plan {
        slice: slice(time, workers, jobs.len()),
        jobs,
        deadline: Instant::now() + time,
        state: Mutex::default(),
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| plan.work());
        }
    });
    plan.report()
}

fn jobs(options: &Options) -> Vec<Job> {
    // Turn about, so that a short soak has some of both.
    let mut jobs = Vec::new();
    let targets = Target::value_variants();
    for number in 0..DIFFERENTIAL.len().max(targets.len()) {
        jobs.extend(DIFFERENTIAL.get(number).map(|name| Job::Differential(name)));
        jobs.extend(targets.get(number).map(|&target| Job::Fuzz(target)));
    }
    jobs.extend(options.boots.then_some(Job::Boots));
    jobs
}

/// Every job's turn comes once at least.
fn slice(time: Duration, workers: usize, jobs: usize) -> Duration {
    let rounds = jobs.div_ceil(workers.max(1)).max(1) as u32;
    (time / rounds).min(SLICE_MAX).max(Duration::from_secs(1))
}

/// Compiles beforehand: it would be taken off the first slices.
fn build(options: &Options) -> Result<()> {
    let mut tests = workspace::cargo();
    tests.args(["test", "--package", "jit", "--test", "differential", "--no-run"]);
    child::check(&mut tests, GRACE)?;
    let mut targets = workspace::cargo();
    targets.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--bin", "random"]);
    child::check(&mut targets, GRACE)?;
    if options.boots { linux::build() } else { Ok(()) }
}

impl Job {
    fn name(self) -> String {
        match self {
            Self::Differential(test) => format!("differential {test}"),
            Self::Fuzz(target) => format!("fuzz {}", target.name()),
            Self::Boots => "boots".into(),
        }
    }

    /// The command of the job for `slice`, with cases that no other round has.
    fn command(self, slice: Duration, round: u64) -> Result<Command> {
        let (seconds, first) = (slice.as_secs().to_string(), (round * STRIDE).to_string());
        let mut command = workspace::cargo();
        match self {
            Self::Differential(test) => {
                command.args(["test", "--package", "jit", "--test", "differential"]);
                command.args(["--", "--exact", "--nocapture", test]);
                command.env("JIT_SOAK_SECONDS", seconds).env("JIT_FIRST", first);
            }
            Self::Fuzz(target) => {
                command = fuzz::by_chance(target, slice.as_secs());
                command.arg(first);
            }
            Self::Boots => {
                command = Command::new(env::current_exe()?);
                command.arg("boot");
            }
        }
        Ok(command)
    }
}

impl Plan {
    /// Takes turns until the time is up or nothing is left to run.
    fn work(&self) {
        while Instant::now() < self.deadline {
            let Some((job, round)) = self.turn() else { return };
            let started = Instant::now();
            let outcome = self.run(job, round);
            let word = if outcome.is_ok() { "passed" } else { "FAILED" };
            println!("{word} after {:>4} s: {}", started.elapsed().as_secs(), job.name());
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match outcome {
                Ok(()) => state.passed += 1,
                Err(output) => state.failed.push(Failed { job, round, output }),
            }
        }
    }

    /// The next job that has not failed, and its round.
    fn turn(&self) -> Option<(Job, u64)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let count = self.jobs.len() as u64;
        for _ in 0..count {
            let turn = state.next;
            state.next += 1;
            let job = *self.jobs.get((turn % count) as usize)?;
            if !state.failed.iter().any(|failed| failed.job == job) {
                return Some((job, turn / count));
            }
        }
        None
    }

    /// Runs a job for its slice. The error is its output, or why there is none.
    fn run(&self, job: Job, round: u64) -> Result<(), String> {
        let mut command = job.command(self.slice, round).map_err(|error| format!("{error:#}"))?;
        let finished = child::capture(&mut command, Output::Kept, self.slice + GRACE)
            .map_err(|error| format!("{error:#}"))?;
        if finished.status.success() { Ok(()) } else { Err(finished.text) }
    }

    fn report(self) -> Result<()> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        for Failed { job, round, output } in &state.failed {
            let lines: Vec<&str> = output.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default();
            println!("\n=== {}, round {round}\n{}", job.name(), tail.join("\n"));
        }
        let names: Vec<String> = state.failed.iter().map(|failed| failed.job.name()).collect();
        println!("\n{} turns passed, {} jobs failed", state.passed, names.len());
        if !names.is_empty() {
            bail!("failed: {}", names.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(jobs: Vec<Job>) -> Plan {
        let now = Instant::now();
        Plan { jobs, slice: SLICE_MAX, deadline: now, state: Mutex::default() }
    }

    #[test]
    fn every_job_has_a_turn_in_the_time() {
        let jobs = jobs(&Options { minutes: 60, boots: true });
        assert_eq!(jobs.len(), DIFFERENTIAL.len() + Target::value_variants().len() + 1);
        assert_eq!(slice(Duration::from_secs(3600), 2, 12), SLICE_MAX);
        assert_eq!(slice(Duration::from_secs(60), 2, 12), Duration::from_secs(10));
        assert_eq!(slice(Duration::ZERO, 1, 1), Duration::from_secs(1));
    }

    #[test]
    fn a_job_that_failed_has_no_other_turn() {
        let plan = plan(vec![Job::Fuzz(Target::Chips), Job::Boots]);
        assert_eq!(plan.turn(), Some((Job::Fuzz(Target::Chips), 0)));
        let failed = Failed { job: Job::Boots, round: 0, output: String::new() };
        plan.state.lock().unwrap().failed.push(failed);
        assert_eq!(plan.turn(), Some((Job::Fuzz(Target::Chips), 1)));
        let failed = Failed { job: Job::Fuzz(Target::Chips), round: 1, output: String::new() };
        plan.state.lock().unwrap().failed.push(failed);
        assert_eq!(plan.turn(), None);
        assert!(plan.report().is_err());
    }

    #[test]
    fn the_differential_tests_are_those_there_are() {
        let path = workspace::root().join("jit/tests/differential/main.rs");
        let text = std::fs::read_to_string(path).unwrap();
        for name in DIFFERENTIAL {
            assert!(text.contains(&format!("fn {name}()")), "{name}");
        }
        assert_eq!(text.matches("campaign(Mode::").count(), DIFFERENTIAL.len());
        let driver = workspace::root().join("fuzz/src/random.rs");
        let driver = std::fs::read_to_string(driver).unwrap();
        for target in Target::value_variants() {
            assert!(driver.contains(&format!(" name: \"{}\"", target.name())), "{target:?}");
        }
        assert_eq!(driver.matches(" name: \"").count(), Target::value_variants().len());
    }
}
