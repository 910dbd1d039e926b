//! `volvelle bench`: micro-benchmarks of the engines, side by side.
//!
//! Each row of [`programs::PROGRAMS`] is a loop of guest code. A machine of its own ([`machine`])
//! runs it on each engine; [`mod@native`] has the same work in Rust for the host, where there is
//! any.

mod machine;
mod native;
mod programs;

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::time::{ClockId, clock_gettime};

use crate::config::Accel;
use machine::Machine;
use programs::{PROGRAMS, Program, Unit};

/// What to measure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Only benches with this in their name.
    pub(crate) filter: Option<String>,
    /// About how long all of it may take.
    pub(crate) duration: Duration,
}

/// Runs of which the shortest counts.
const RUNS: u32 = 3;
/// Of a cell's time, the part in which the number of iterations is found.
const CALIBRATION: f64 = 0.125;
/// Iterations that nothing needs more than.
const ITERATIONS_MAX: u64 = 1 << 40;

const NOTE: &str = "\
Processor time, the shortest of three runs. More MIPS (million guest instructions a second) are
better, and fewer ns (nanoseconds for each time). Native is compiled Rust that does the same work,
not the guest's code; `-` is where there is none.
";

/// Measures what `options` asks for and shows each row as it comes.
pub(crate) fn run(options: &Options, show: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let chosen = chosen(options.filter.as_deref())?;
    let translator = jit::supported();
    let natives = chosen.iter().filter(|program| program.native.is_some()).count();
    let cells = chosen.len() * (1 + usize::from(translator.is_ok())) + natives;
    let share = options.duration.as_secs_f64() / cells.max(1) as f64;
    show(&format!("{:<14} unit {:>10} {:>10} {:>10}\n", "bench", "interp", "jit", "native"))?;
    for program in chosen {
        let interp = engine(program, Accel::Interp, share)?;
        let jit = match translator {
            Ok(()) => Some(engine(program, Accel::Jit, share)?),
            Err(_) => None,
        };
        let native = program.native.map(|work| native(work, share)).transpose()?;
        show(&row(program, [Some(interp), jit, native]))?;
    }
    show(&format!("\n{NOTE}"))?;
    if let Err(reason) = translator {
        show(&format!("There is no translator on this host: {reason}.\n"))?;
    }
    Ok(())
}

fn chosen(filter: Option<&str>) -> Result<Vec<&'static Program>> {
    let is_wanted = |program: &&Program| filter.is_none_or(|part| program.name.contains(part));
    let chosen: Vec<_> = PROGRAMS.iter().filter(is_wanted).collect();
    if chosen.is_empty() {
        let names = PROGRAMS.iter().map(|program| program.name).collect::<Vec<_>>().join(", ");
        bail!("--filter: no bench has such a name; there are {names}");
    }
    Ok(chosen)
}

/// A row of the table, out of seconds an iteration.
fn row(program: &Program, columns: [Option<f64>; 3]) -> String {
    let unit = match program.unit {
        Unit::Mips => "MIPS",
        Unit::Nanoseconds => "ns",
    };
    let mut text = format!("{:<14} {unit:<4}", program.name);
    for column in columns {
        let figure = column.map_or("-".into(), |seconds| figure(program, seconds));
        // Writing into a String cannot fail.
        let _ = write!(text, " {figure:>10}");
    }
    text.push('\n');
    text
}

fn figure(program: &Program, seconds: f64) -> String {
    let events = f64::from(program.events);
    match program.unit {
        Unit::Mips => format!("{:.1}", events / seconds / 1e6),
        Unit::Nanoseconds => format!("{:.2}", seconds * 1e9 / events),
    }
}

/// Seconds an iteration takes on an engine.
fn engine(program: &Program, accel: Accel, share: f64) -> Result<f64> {
    let mut machine = Machine::new(program, accel)?;
    shortest(share, |iterations| timed(|| machine.run(iterations)))
}

/// Seconds an iteration takes on the host.
fn native(work: fn(u64), share: f64) -> Result<f64> {
    shortest(share, |iterations| {
        timed(|| {
            work(iterations);
            Ok(())
        })
    })
}

/// Finds how many iterations fill a part of `share` seconds, and runs as many a few times.
fn shortest(share: f64, mut seconds: impl FnMut(u64) -> Result<f64>) -> Result<f64> {
    let enough = share * CALIBRATION;
    let mut iterations = 1;
    let mut taken = seconds(iterations)?;
    while taken < enough && iterations < ITERATIONS_MAX {
        // No step beyond what is wanted: each further one costs at most as much as all before.
        let factor = (enough / taken.max(1e-9)).clamp(2.0, 64.0);
        iterations = (iterations as f64 * factor) as u64;
        taken = seconds(iterations)?;
    }
    let part = share * (1.0 - CALIBRATION) / f64::from(RUNS);
    let iterations = (iterations as f64 * part / taken.max(1e-9)) as u64;
    let iterations = iterations.clamp(1, ITERATIONS_MAX);
    let mut least = f64::INFINITY;
    for _ in 0..RUNS {
        least = least.min(seconds(iterations)?);
    }
    // A clock that has not moved is no reason to divide by nothing.
    Ok(least.max(1e-9) / iterations as f64)
}

/// Processor time that `work` takes on this thread, in seconds.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let started = now();
    work()?;
    Ok(now() - started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterations_fill_the_time_and_the_shortest_run_counts() {
        let mut total = 0.0;
        let mut runs = 0;
        let seconds = shortest(1.0, |iterations| {
            runs += 1;
            // 20 microseconds each, and noise that only adds.
            let taken = iterations as f64 * (20e-6 + f64::from(runs % 3) * 1e-6);
            total += taken;
            Ok(taken)
        });
        let seconds = seconds.unwrap();
        assert!((20e-6..20.1e-6).contains(&seconds), "{seconds}");
        assert!((0.5..1.5).contains(&total), "{total}");
    }

    #[test]
    fn a_clock_that_stands_still_ends_too() {
        assert!(shortest(1.0, |_| Ok(0.0)).unwrap().is_finite());
    }

    #[test]
    fn a_filter_chooses_by_part_of_the_name_and_says_what_there_is() {
        assert_eq!(chosen(None).unwrap().len(), PROGRAMS.len());
        let names =
            |filter| chosen(Some(filter)).unwrap().iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(names("port"), ["port-read", "port-write"]);
        let error = chosen(Some("teapot")).err().unwrap().to_string();
        assert!(error.contains("--filter") && error.contains("syscall"), "{error}");
    }
}
