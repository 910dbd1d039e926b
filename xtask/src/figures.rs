//! `cargo xtask figures`: the figures of SPECIFICATION.md, measured on this machine.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use firmware::guests::{LoopWidth, TRIPLE_FAULT, integer_loop, integer_loop_outcome};

use crate::boot::console::{Console, PROMPT};
use crate::child;
use crate::guests::{Guests, Kernel, rom};
use crate::linux;
use crate::process::{host_memory_kib, processor_time};
use crate::workspace;

const LIMIT: Duration = Duration::from_secs(600);
/// Starts of which the median is taken.
const STARTS: usize = 21;
/// Iterations of the short and the long loop; the difference is free of start-up.
const SHORT_LOOP: u32 = 500_000;
const LONG_LOOP: u32 = 20_000_000;
/// The same for the translator, to which the others are no work.
const SHORT_LOOP_TRANSLATED: u32 = 10_000_000;
const LONG_LOOP_TRANSLATED: u32 = 400_000_000;
/// How long a quiet guest is watched.
const WATCH: Duration = Duration::from_secs(10);

/// What executes the guest.
#[derive(Clone, Copy)]
enum Engine {
    Interp,
    Jit,
}

impl Engine {
    const ALL: [Self; 2] = [Self::Interp, Self::Jit];

    /// Its name, and that of `--accel`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Interp => ("interpreter", "interp"),
            Self::Jit => ("translator", "jit"),
        }
    }

    /// The command that runs a guest on it.
    fn command(self) -> Command {
        let mut command = Command::new(workspace::release_binary());
        command.args(["run", "--accel", self.names().1]);
        command
    }

    fn loops(self) -> (u32, u32) {
        match self {
            Self::Interp => (SHORT_LOOP, LONG_LOOP),
            Self::Jit => (SHORT_LOOP_TRANSLATED, LONG_LOOP_TRANSLATED),
        }
    }
}

/// Measures and prints a row for each figure.
pub fn run() -> Result<()> {
    linux::build()?;
    println!("| figure | measured |\n|---|---|");
    for engine in Engine::ALL {
        let row = |figure: &str, measured: &str| {
            println!("| {}, {figure} | {measured} |", engine.names().0);
        };
        row("process start to the end of a guest of a few thousand instructions", &start(engine)?);
        row("integer loop", &integer_rate(engine)?);
        let remarks = whole_boot(engine)?;
        match engine {
            Engine::Interp => row("kernel boot", &kernel_rate(&remarks)?),
            Engine::Jit => {
                row("translation", &translation(&remarks)?);
                row("hot code", &hot_code(&remarks)?);
            }
        }
        booted(engine, &row)?;
    }
    Ok(())
}

/// The guest begins at the reset vector and ends by a triple fault: an upper bound for the time to
/// the first instruction.
fn start(engine: Engine) -> Result<String> {
    let image = rom("triple_fault", TRIPLE_FAULT)?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        times.push(timed(engine, &image)?);
    }
    times.sort();
    Ok(format!("{:.1} ms", times[STARTS / 2].as_secs_f64() * 1e3))
}

fn integer_rate(engine: Engine) -> Result<String> {
    let time = |iterations| {
        timed(engine, &rom("integer_loop", &integer_loop(LoopWidth::Bits64, iterations))?)
    };
    let instructions =
        |iterations| integer_loop_outcome(LoopWidth::Bits64, iterations).instructions as f64;
    let (short, long) = engine.loops();
    let seconds = time(long)?.as_secs_f64() - time(short)?.as_secs_f64();
    let millions = (instructions(long) - instructions(short)) / 1e6;
    Ok(format!("{:.0} million instructions a second", millions / seconds))
}

/// Debian's cloud kernel on one CPU, with words added to its command line.
fn boot(engine: Engine, words: &str) -> Result<Command> {
    let guests = Guests::new();
    let mut command = engine.command();
    command.args(["--memory", "512M", "--stats", "--kernel"]);
    command.arg(guests.bzimage(Kernel::Cloud)?).arg("--initrd").arg(guests.initramfs()?);
    command.arg("--append").arg(format!("console=ttyS0 quiet {words}"));
    Ok(command)
}

/// From the loader to the power-off; returns what `--stats` says.
fn whole_boot(engine: Engine) -> Result<String> {
    let mut console = Console::start(&mut boot(engine, "volvelle.leave")?, LIMIT)?;
    let status = console.end()?;
    ensure!(status.success(), "{status}: {}", console.remarks());
    Ok(console.remarks())
}

/// The kernel sleeps for little of its boot.
fn kernel_rate(remarks: &str) -> Result<String> {
    let rate = remarks.lines().find_map(|line| line.strip_suffix(" MIPS")?.rsplit(' ').next());
    let rate = rate.with_context(|| format!("no MIPS in {remarks:?}"))?;
    Ok(format!("{rate} million instructions a second"))
}

/// What an instruction costs to translate.
fn translation(remarks: &str) -> Result<String> {
    let nanoseconds = word_before(remarks, " ns an instruction")?;
    Ok(format!("{nanoseconds} ns a guest instruction"))
}

/// How much code is on the path that blocks take when nothing is out of the ordinary.
fn hot_code(remarks: &str) -> Result<String> {
    let bytes = word_before(remarks, " a guest byte on the path")?;
    Ok(format!("{bytes} bytes a guest byte"))
}

fn word_before<'a>(remarks: &'a str, text: &str) -> Result<&'a str> {
    let (before, _) = remarks.split_once(text).with_context(|| format!("no {text:?}"))?;
    let word = before.rsplit([' ', '(']).next();
    word.filter(|word| word.parse::<f64>().is_ok())
        .with_context(|| format!("no number before {text:?} in {remarks:?}"))
}

/// Figures of a booted kernel: time to the shell, memory, and what it costs when quiet.
fn booted(engine: Engine, row: &dyn Fn(&str, &str)) -> Result<()> {
    let mut command = boot(engine, "")?;
    let started = Instant::now();
    let mut console = Console::start(&mut command, LIMIT)?;
    console.expect(PROMPT)?;
    let (wall, used) = (started.elapsed(), processor_time(console.id())?);
    let seconds =
        format!("{:.1} s of processor time ({:.1} s)", used.as_secs_f64(), wall.as_secs_f64());
    row("Debian's cloud kernel to a shell", &seconds);
    // The kernel still does deferred work just after its first prompt.
    thread::sleep(WATCH);
    let memory = host_memory_kib(console.id())? as f64 / 1024.0;
    row("memory beyond guest RAM", &format!("{memory:.1} MiB"));
    let before = processor_time(console.id())?;
    thread::sleep(WATCH);
    let used = processor_time(console.id())?.saturating_sub(before);
    let share = used.as_secs_f64() / WATCH.as_secs_f64() * 100.0;
    row("a quiet guest", &format!("{share:.1} % of a core"));
    Ok(())
}

/// The time from starting a ROM to the process's end.
fn timed(engine: Engine, rom: &Path) -> Result<Duration> {
    let mut command = engine.command();
    command.args(["--no-reboot", "--serial", "none", "--bios"]).arg(rom);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| child::describe(&command))?;
    // Waits in the kernel: polling would cost more than what is measured.
    let status = child.wait()?;
    let time = started.elapsed();
    ensure!(status.code().is_some_and(|code| code != 1 && code != 2), "{status}");
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_translators_figures_are_found_in_what_stats_prints() {
        let remarks = "\
            cpu0: host bytes 99 (7.35 a guest byte on the path, 9.1 in all), in use 5\n\
            cpu0: translation 95.1 ms, 412 ns an instruction\n";
        assert_eq!(translation(remarks).unwrap(), "412 ns a guest instruction");
        assert_eq!(hot_code(remarks).unwrap(), "7.35 bytes a guest byte");
        assert!(translation("nothing").is_err());
        assert_eq!(
            kernel_rate("5 instructions in 1 s: 128.0 MIPS").unwrap(),
            "128.0 million instructions a second"
        );
    }
}
