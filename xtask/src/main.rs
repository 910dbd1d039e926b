//! The project's chores: `cargo xtask --help` lists them.
#![forbid(unsafe_code)]

mod bench;
mod boot;
mod check;
mod child;
mod chores;
mod figures;
mod fuzz;
mod gdb;
mod guests;
mod linux;
mod nested;
mod process;
mod soak;
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
    /// Run guests on KVM inside of QEMU's TCG, where the host has no KVM to give.
    TestKvm(nested::Options),
    /// Drive gdb against a Debian that boots and runs, on the interpreter and the translator.
    TestGdb(gdb::Options),
    /// Check format, lints, rules, documentation, and licences.
    Check,
    /// Do what continuous integration does: `.ci/run`.
    Ci,
    /// Rewrite golden files from what the code does now.
    Bless,
    /// Run a fuzz target of `fuzz/`, by coverage where there is cargo-fuzz, else by chance.
    Fuzz(fuzz::Options),
    /// Measure with the benches, or with --guests beside QEMU and the host.
    Bench(bench::Options),
    /// Measure the figures of SPECIFICATION.md on this machine.
    Figures,
    /// Compare the translator with the interpreter and run the fuzz targets, over and over.
    Soak(soak::Options),
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
        Chore::TestKvm(options) => return Ok(suites::run_nested(options)),
        Chore::TestGdb(options) => return Ok(suites::run_gdb(options)),
        Chore::Check => check::run()?,
        Chore::Ci => chores::ci()?,
        Chore::Bless => chores::bless()?,
        Chore::Fuzz(options) => fuzz::run(options)?,
        Chore::Bench(options) => bench::run(options)?,
        Chore::Figures => figures::run()?,
        Chore::Soak(options) => soak::run(options)?,
        Chore::Guests => guests::fetch_all()?,
    }
    Ok(ExitCode::SUCCESS)
}
