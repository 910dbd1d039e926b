//! Volvelle: an x86-64 PC in software. This is the command.
//!
//! A command line becomes an [`cli::Action`] (`cli`, `qemu`), an action a machine (`vm`), a
//! machine's end an exit status (`exit`).
#![forbid(unsafe_code)]

mod bench;
mod chardev;
mod cli;
mod config;
mod debug;
mod doctor;
mod exit;
mod gdb;
mod logging;
mod monitor;
mod names;
mod profile;
mod qemu;
mod sockets;
mod views;
mod vm;

use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use cli::{Action, Launch, Refusal};
use signal_hook::consts::SIGXFSZ;

fn main() -> ExitCode {
    // A file that may not grow (RLIMIT_FSIZE) is as a full disk to who writes it: an error, and not
    // the end of the process. Without the handler that is what it would be, as ever.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::default());
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let status = match understand(&arguments) {
        Ok(action) => act(action).unwrap_or_else(|error| {
            complain(&format!("{error:#}"));
            exit::FAILED
        }),
        Err(refusal) => {
            complain(&refusal.message);
            refusal.status
        }
    };
    ExitCode::from(status)
}

/// The name the program was called by decides whose command line it is.
fn understand(arguments: &[OsString]) -> Result<Action, Refusal> {
    match arguments.split_first() {
        Some((program, rest)) if qemu::is_called_by(program) => qemu::parse(rest),
        _ => cli::parse(arguments),
    }
}

fn act(action: Action) -> Result<u8> {
    match action {
        Action::Run(launch) => run(&launch),
        Action::Doctor => print(&doctor::report(&doctor::Host::examine())),
        Action::Bench(options) => {
            bench::run(&options, &mut |text| print(text).map(drop)).map(|()| 0)
        }
        Action::Trace(options) => views::run(&options),
        Action::Print(text) => print(&text),
    }
}

fn run(launch: &Launch) -> Result<u8> {
    logging::start(&launch.log)?;
    for note in &launch.notes {
        complain(note);
    }
    let outcome = vm::Vm::new(&launch.config)?.run()?;
    Ok(exit::status(outcome, launch.dialect))
}

/// Prints `text`. A reader that has seen enough is no error.
fn print(text: &str) -> Result<u8> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(0),
    }
}

/// Says what is wrong. Where even standard error is closed, the exit status has to do.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "volvelle: {message}");
}
