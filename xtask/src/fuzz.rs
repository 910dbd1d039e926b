//! `cargo xtask fuzz`: a fuzz target with libFuzzer, or by chance alone.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::child::{self, Output};
use crate::workspace;

/// What a target may take beyond its time: compilation, and the input under way.
const GRACE: Duration = Duration::from_secs(1800);

#[derive(Args)]
pub struct Options {
    /// What to fuzz.
    target: Target,
    /// How long to run, in seconds.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// By chance, even where cargo-fuzz and a nightly compiler are installed.
    #[arg(long)]
    random: bool,
}

/// The targets; each is a function of `fuzz/src/lib.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Target {
    /// Random bytes as guest code in every mode.
    GuestCode,
    /// Random bytes as guest code on the translator, in every mode.
    JitCode,
    /// Random accesses to every chip of a board.
    Chips,
    /// Random bytes as kernel and ROM images.
    Loaders,
    /// Random saved states for every chip.
    Restore,
    /// Random ELF files with DWARF, System.maps, and kernels with their tables damaged.
    Symbols,
    /// Random bytes from a client of gdb's.
    GdbPackets,
    /// Random bytes as the file of a trace.
    TraceFile,
}

impl Target {
    /// As the driver and the command line have it.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().into()).unwrap_or_default()
    }
}

/// Runs a target for its time, or until it fails.
pub fn run(options: &Options) -> Result<()> {
    let target = options.target;
    let mut command = if !options.random && has_cargo_fuzz() {
        by_coverage(target, options.seconds)
    } else {
        by_chance(target, options.seconds)
    };
    child::check(&mut command, GRACE + Duration::from_secs(options.seconds))
}

/// libFuzzer instruments and mutates; it keeps its corpus in `fuzz/corpus/TARGET`.
fn by_coverage(target: Target, seconds: u64) -> Command {
    let mut command = cargo_fuzz();
    command.args(["run", "--features", "libfuzzer", &target.name(), "--"]);
    command.arg(format!("-max_total_time={seconds}"));
    // An input of hundreds of instructions is worth more than one of thousands.
    command.args(["-max_len=4096", "-timeout=30", "-rss_limit_mb=1024"]);
    command
}

/// `fuzz/src/random.rs`: any compiler, inputs shaped by hand.
pub fn by_chance(target: Target, seconds: u64) -> Command {
    let mut command = workspace::cargo();
    command.args(["run", "--release", "--manifest-path", "fuzz/Cargo.toml", "--bin", "random"]);
    command.args(["--", &target.name()]).arg(seconds.to_string());
    command
}

fn has_cargo_fuzz() -> bool {
    let mut command = cargo_fuzz();
    command.arg("--version");
    let finished = child::capture(&mut command, Output::Kept, Duration::from_secs(60));
    finished.is_ok_and(|finished| finished.status.success())
}

/// cargo-fuzz on the nightly compiler: its flags are not stable, and the checkout pins a stable
/// one.
fn cargo_fuzz() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(workspace::root());
    command.args(["+nightly", "fuzz"]);
    // Left by the cargo that runs us, and about its own compiler.
    command.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
    command
}
