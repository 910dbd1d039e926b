//! The project's chores: `cargo xtask --help` lists them.
#![forbid(unsafe_code)]

mod boot;
mod child;
mod guests;
mod linux;
mod suites;
mod tally;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The project's chores: build, boot, test, check.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build Volvelle and boot Debian's kernel to a shell on this terminal.
    Linux(linux::Options),
    /// Run every test: unit, integration, documentation, boots.
    Test,
    /// Boot the kernels of the test suite, or those whose case has a name with FILTER in it.
    Boot(boot::Options),
    /// Fetch the guests that `linux` and `test` boot, and print where they are.
    Guests,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: &Chore) -> Result<ExitCode> {
    match chore {
        Chore::Linux(options) => linux::run(options)?,
        Chore::Test => return Ok(suites::run()),
        Chore::Boot(options) if boot::chosen(options)?.failed > 0 => return Ok(ExitCode::FAILURE),
        Chore::Boot(_) => {}
        Chore::Guests => guests::fetch_all()?,
    }
    Ok(ExitCode::SUCCESS)
}
