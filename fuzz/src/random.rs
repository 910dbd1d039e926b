//! Drives a fuzz target by chance alone, for hosts without cargo-fuzz: `random TARGET SECONDS`.
//!
//! Input number N of a target is always the same: `random TARGET 0 N` runs it alone. An input that
//! panics is kept in `artifacts/TARGET/`, and so is the one under way when the process is killed or
//! an input overstays.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cpu::testing::fuzz::generate;
use cpu::testing::random::Random;
use volvelle_fuzz::{gdb_packets, jit_code, symbol_sources};

/// An input that takes more processor time is a hang, or more time than even a host that is busy
/// with other things gives so little of it.
const HANG: Duration = Duration::from_secs(30);
const STANDSTILL: Duration = Duration::from_secs(1800);
/// How much the process may grow after its first inputs.
const GROWTH_MAX_KIB: u64 = 64 << 10;
/// Inputs after which everything that is allocated once has been.
const WARM_UP: u64 = 2000;
/// How often the figures are shown.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

struct Target {
    name: &'static str,
    run: fn(&[u8]),
    generate: fn(&mut Random) -> Vec<u8>,
}

const TARGETS: [Target; 8] = [
    Target { name: "guest_code", run: volvelle_fuzz::guest_code, generate: generate::guest },
    Target { name: "jit_code", run: volvelle_fuzz::jit_code, generate: jit_code::generate },
    Target { name: "chips", run: volvelle_fuzz::chips, generate: script },
    Target { name: "loaders", run: volvelle_fuzz::loaders, generate: image },
    Target { name: "symbols", run: symbol_sources::run, generate: image },
    Target { name: "restore", run: volvelle_fuzz::restore, generate: script },
    Target {
        name: "gdb_packets",
        run: volvelle_fuzz::gdb_packets,
        generate: gdb_packets::generate,
    },
    Target { name: "trace_file", run: volvelle_fuzz::trace_file, generate: records },
];

/// Steps of a script for a board.
fn script(random: &mut Random) -> Vec<u8> {
    let count = random.below(6000);
    (0..count).map(|_| random.byte()).collect()
}

/// The records of a trace: mostly bytes that begin one, and small numbers.
fn records(random: &mut Random) -> Vec<u8> {
    let count = random.below(3000);
    let byte = |_| match random.below(4) {
        0 => random.byte(),
        1 => 0xbe + random.byte() % 22,
        2 => random.byte() & 0xf,
        _ => random.byte() & 1,
    };
    (0..count).map(byte).collect()
}

/// A file whose fields are small numbers as often as not, or none of them would fit.
fn image(random: &mut Random) -> Vec<u8> {
    let count = random.below(9000);
    let is_sparse = random.below(4) != 0;
    let byte = |_| match random.below(4) {
        0 => random.byte(),
        1 if is_sparse => random.byte() & 0x13,
        _ if is_sparse => 0,
        _ => random.byte(),
    };
    (0..count).map(byte).collect()
}

/// Shows the errors of the crates under test: which blocks differ, and in what.
struct Errors;

impl log::Log for Errors {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() == log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}: {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

fn main() -> ExitCode {
    // Nobody else sets one.
    if log::set_logger(&Errors).is_ok() {
        log::set_max_level(log::LevelFilter::Error);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("random: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (name, seconds) = match arguments.as_slice() {
        [name, seconds, ..] => (name, seconds.parse::<u64>()?),
        _ => return Err("usage: random TARGET SECONDS [FIRST INPUT]".into()),
    };
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.ok_or_else(|| {
        format!("no target {name}; there are {}", TARGETS.map(|target| target.name).join(", "))
    })?;
    let first = arguments.get(2).map_or(Ok(0), |number| number.parse())?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts").join(name);
    fs::create_dir_all(&folder)?;
    drive(target, first, Duration::from_secs(seconds), &folder)
}

fn drive(target: &Target, first: u64, time: Duration, folder: &Path) -> Result<(), Box<dyn Error>> {
    let under_way = folder.join("under-way");
    let current = File::create(&under_way)?;
    let progress = Arc::new(AtomicU64::new(first));
    watch(Arc::clone(&progress), under_way.clone());
    let (started, mut reported, mut early_kib) = (Instant::now(), Instant::now(), None);
    for number in first.. {
        let input = (target.generate)(&mut Random::new(number));
        current.write_all_at(&input, 0)?;
        current.set_len(input.len() as u64)?;
        if std::panic::catch_unwind(|| (target.run)(&input)).is_err() {
            let kept = folder.join(format!("crash-{number}"));
            fs::write(&kept, &input)?;
            return Err(format!("input {number} panics, kept as {}", kept.display()).into());
        }
        progress.store(number + 1, Ordering::Relaxed);
        let done = number + 1 - first;
        if done == WARM_UP {
            early_kib = Some(resident_kib()?);
        }
        let is_over = started.elapsed() >= time;
        if is_over || reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            let (seconds, kib) = (started.elapsed().as_secs(), resident_kib()?);
            println!("{}: {done} inputs in {seconds} s, {} MiB", target.name, kib >> 10);
            if early_kib.is_some_and(|early| kib > early + GROWTH_MAX_KIB) {
                return Err(format!("memory has grown from {early_kib:?} to {kib} KiB").into());
            }
        }
        if is_over {
            break;
        }
    }
    Ok(fs::remove_file(under_way)?)
}

/// Ends the process when an input overstays; nothing else can.
fn watch(progress: Arc<AtomicU64>, under_way: PathBuf) {
    std::thread::spawn(move || {
        let (mut seen, mut since) = (progress.load(Ordering::Relaxed), Instant::now());
        let mut used = processor_time();
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = progress.load(Ordering::Relaxed);
            if now != seen {
                (seen, since, used) = (now, Instant::now(), processor_time());
            } else if processor_time().saturating_sub(used) > HANG || since.elapsed() > STANDSTILL {
                eprintln!("random: input {seen} hangs, kept as {}", under_way.display());
                std::process::exit(1);
            }
        }
    });
}

/// What the first thread, which runs the inputs, has used: the first number of its schedstat.
fn processor_time() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let ns = text.split_whitespace().next().and_then(|number| number.parse().ok());
    Duration::from_nanos(ns.unwrap_or(0))
}

/// Memory in use, without file pages.
fn resident_kib() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let size = line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?;
    Ok(size.parse()?)
}
