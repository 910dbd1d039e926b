//! `cargo xtask figures`: the figures of SPECIFICATION.md, measured on this machine.

use std::fs;
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
use crate::workspace;

const LIMIT: Duration = Duration::from_secs(600);
/// Starts of which the median is taken.
const STARTS: usize = 21;
/// Iterations of the short and the long loop; the difference is free of start-up.
const SHORT_LOOP: u32 = 500_000;
const LONG_LOOP: u32 = 20_000_000;
/// How long a quiet guest is watched.
const WATCH: Duration = Duration::from_secs(10);
/// `/proc/PID/stat` counts in this unit on every Linux for x86, `getconf CLK_TCK`.
const TICKS_PER_SECOND: f64 = 100.0;

/// Measures and prints a row for each figure.
pub fn run() -> Result<()> {
    linux::build()?;
    println!("| figure | measured |\n|---|---|");
    println!(
        "| process start to the end of a guest of a few thousand instructions | {} |",
        start()?
    );
    println!("| interpreter, integer loop | {} |", integer_rate()?);
    println!("| interpreter, kernel boot | {} |", kernel_rate()?);
    kernel()
}

/// The guest begins at the reset vector and ends by a triple fault: an upper bound for the time to
/// the first instruction.
fn start() -> Result<String> {
    let image = rom("triple_fault", TRIPLE_FAULT)?;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        times.push(timed(&image)?);
    }
    times.sort();
    Ok(format!("{:.1} ms", times[STARTS / 2].as_secs_f64() * 1e3))
}

fn integer_rate() -> Result<String> {
    let time =
        |iterations| timed(&rom("integer_loop", &integer_loop(LoopWidth::Bits64, iterations))?);
    let instructions =
        |iterations| integer_loop_outcome(LoopWidth::Bits64, iterations).instructions as f64;
    let seconds = time(LONG_LOOP)?.as_secs_f64() - time(SHORT_LOOP)?.as_secs_f64();
    let millions = (instructions(LONG_LOOP) - instructions(SHORT_LOOP)) / 1e6;
    Ok(format!("{:.0} million instructions a second", millions / seconds))
}

/// Debian's cloud kernel on one CPU, with words added to its command line.
fn boot(words: &str) -> Result<Command> {
    let guests = Guests::new();
    let mut command = Command::new(workspace::release_binary());
    command.args(["run", "--memory", "512M", "--stats", "--kernel"]);
    command.arg(guests.bzimage(Kernel::Cloud)?).arg("--initrd").arg(guests.initramfs()?);
    command.arg("--append").arg(format!("console=ttyS0 quiet {words}"));
    Ok(command)
}

/// From the loader to the power-off, as `--stats` says it. The kernel sleeps for little of it.
fn kernel_rate() -> Result<String> {
    let mut console = Console::start(&mut boot("volvelle.leave")?, LIMIT)?;
    let status = console.end()?;
    ensure!(status.success(), "{status}: {}", console.remarks());
    let remarks = console.remarks();
    let rate = remarks.lines().find_map(|line| line.strip_suffix(" MIPS")?.rsplit(' ').next());
    let rate = rate.with_context(|| format!("no MIPS in {remarks:?}"))?;
    Ok(format!("{rate} million instructions a second"))
}

/// Figures of a booted kernel: time to the shell, memory, and what it costs when quiet.
fn kernel() -> Result<()> {
    let mut command = boot("")?;
    let started = Instant::now();
    let mut console = Console::start(&mut command, LIMIT)?;
    console.expect(PROMPT)?;
    println!("| Debian's cloud kernel to a shell | {:.1} s |", started.elapsed().as_secs_f64());
    // The kernel still does deferred work just after its first prompt.
    thread::sleep(WATCH);
    let memory = host_memory_kib(console.id())? as f64 / 1024.0;
    println!("| memory beyond guest RAM | {memory:.1} MiB |");
    let before = processor_ticks(console.id())?;
    thread::sleep(WATCH);
    let seconds = (processor_ticks(console.id())? - before) as f64 / TICKS_PER_SECOND;
    println!("| a quiet guest | {:.1} % of a core |", seconds / WATCH.as_secs_f64() * 100.0);
    Ok(())
}

/// The time from starting a ROM to the process's end.
fn timed(rom: &Path) -> Result<Duration> {
    let mut command = Command::new(workspace::release_binary());
    command.args(["run", "--no-reboot", "--serial", "none", "--bios"]).arg(rom);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let started = Instant::now();
    let mut child = command.spawn().with_context(|| child::describe(&command))?;
    // Waits in the kernel: polling would cost more than what is measured.
    let status = child.wait()?;
    let time = started.elapsed();
    ensure!(status.code().is_some_and(|code| code != 1 && code != 2), "{status}");
    Ok(time)
}

/// Resident memory that is not the guest's RAM, which is a memfd and so counted as shared.
fn host_memory_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let sizes = field("RssAnon:").zip(field("RssFile:"));
    sizes.map(|(anonymous, file)| anonymous + file).context("no RssAnon and RssFile")
}

/// Processor time of all threads, user and system, in ticks.
fn processor_ticks(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // proc_pid_stat(5): the name in parentheses may hold anything; utime is the 12th field after.
    let (_, fields) = stat.rsplit_once(')').context("no name in stat")?;
    let times = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    Ok(times.sum::<Result<u64, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_time_and_memory_can_be_read() {
        let process = std::process::id();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(100) {}
        assert!(processor_ticks(process).unwrap() > 0);
        assert!(host_memory_kib(process).unwrap() > 100);
    }
}
