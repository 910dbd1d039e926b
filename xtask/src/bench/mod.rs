//! `cargo xtask bench`: criterion's benches, or workloads in a guest beside QEMU and the host.

mod chart;
mod comparison;
pub mod emulator;
mod workloads;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::child;
use crate::chores::UNLIMITED;
use crate::workspace;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Only benches, or with --guests workloads, with this in their name.
    filter: Option<String>,
    /// Compare workloads in a Linux guest on Volvelle and on QEMU with the same on this host.
    #[arg(long)]
    guests: bool,
    /// Runs of each workload; the shortest counts.
    #[arg(long, value_name = "N", default_value_t = 3, requires = "guests")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Where the chart goes [default: docs/bench.svg].
    #[arg(long, value_name = "FILE", requires = "guests")]
    chart: Option<PathBuf>,
    /// Program to measure instead of the release build.
    #[arg(long, value_name = "FILE", requires = "guests")]
    binary: Option<PathBuf>,
}

/// Measures.
pub fn run(options: &Options) -> Result<()> {
    if !options.guests {
        return criterion(options.filter.as_deref());
    }
    let comparison = comparison::measure(
        options.filter.as_deref(),
        options.runs,
        options.binary.as_deref(),
        &|note: &str| eprintln!("xtask: {note}"),
    )?;
    print!("{}", comparison.table());
    let default = || workspace::root().join("docs/bench.svg");
    let path = options.chart.clone().unwrap_or_else(default);
    fs::write(&path, chart::draw(&comparison))
        .with_context(|| format!("writing {}", path.display()))?;
    println!("\nchart: {}", path.display());
    Ok(())
}

fn criterion(filter: Option<&str>) -> Result<()> {
    let mut command = workspace::cargo();
    // Whole crates would also run their unit tests as benches of no iterations.
    command.arg("bench");
    for package in ["cpu", "jit", "memory"] {
        command.args(["--package", package]);
    }
    command.args(["--bench", "*"]);
    if let Some(filter) = filter {
        command.args(["--", filter]);
    }
    child::check(&mut command, UNLIMITED)
}
