//! The native command line: arguments in, what to do out.
//!
//! Nothing here opens a file or asks the host.

mod bench;
mod jit;
mod run;
mod trace;
pub(crate) mod values;
mod views;

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

pub(crate) use self::trace::{resolve_trace, trace};
use crate::config::Config;
use crate::exit::{self, Dialect};
use crate::logging::LogConfig;

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Boot a guest.
    Run(Box<Launch>),
    /// Say what the host offers.
    Doctor,
    /// Measure the engines.
    Bench(crate::bench::Options),
    /// Show a trace.
    Trace(Box<crate::views::Options>),
    /// Print this on standard output.
    Print(String),
}

/// A machine to run, and how to report about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// The machine.
    pub(crate) config: Config,
    /// What is logged.
    pub(crate) log: LogConfig,
    /// Whose exit statuses are used.
    pub(crate) dialect: Dialect,
    /// What the user should know of how the command line was understood.
    pub(crate) notes: Vec<String>,
}

/// A command line that cannot be followed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// One line: the option, the value, the remedy.
    pub(crate) message: String,
    /// The exit status.
    pub(crate) status: u8,
}

/// An x86-64 PC in software.
#[derive(Parser)]
#[command(name = "volvelle", version, subcommand_required = true, disable_help_subcommand = true)]
#[command(after_help = "`volvelle COMMAND --help` has the options of a command.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a guest; with no guest named, the built-in one
    Run(Box<run::RunArguments>),
    /// Say what this host offers, and which engine would run
    Doctor,
    /// Measure the engines, and the host beside them
    Bench(bench::BenchArguments),
    /// Show a trace: as text, as coverage, as a flame graph
    Trace(Box<views::TraceArguments>),
    /// Take QEMU's command line (also when called qemu-system-x86_64)
    #[command(disable_help_flag = true)]
    Qemu {
        /// QEMU's options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTION")]
        arguments: Vec<OsString>,
    },
    /// Comes later: attach a debugger
    #[command(hide = true, disable_help_flag = true)]
    Debug(Later),
}

/// The arguments of a command that does not exist yet: whatever they are, they are not the mistake.
#[derive(clap::Args)]
struct Later {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<OsString>,
}

/// Understands a command line, its first word being the program's name.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Action, Refusal> {
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => act(arguments.command),
        Err(error) => from_clap(&error),
    }
}

fn act(command: Command) -> Result<Action, Refusal> {
    match command {
        Command::Run(arguments) => arguments.into_action().map_err(usage),
        Command::Doctor => Ok(Action::Doctor),
        Command::Bench(arguments) => Ok(Action::Bench(arguments.into_options())),
        Command::Trace(arguments) => Ok(Action::Trace(Box::new(arguments.into_options()))),
        Command::Qemu { arguments } => crate::qemu::parse(&arguments),
        Command::Debug(_) => Err(later("debug")),
    }
}

fn usage(message: String) -> Refusal {
    Refusal { message, status: exit::USAGE }
}

fn later(command: &str) -> Refusal {
    usage(format!("'{command}' comes in a later version; `volvelle --help` lists what there is"))
}

/// What `--cpu help` and QEMU's `-cpu help` print.
pub(crate) fn cpu_help() -> String {
    let rows = cpu::cpuid::CpuidPolicy::models();
    let rows = rows.map(|(name, about)| format!("  {name:<12} {about}\n")).collect::<String>();
    format!("Processor models; ,+FEATURE adds and ,-FEATURE takes away:\n{rows}")
}

/// clap's help is printed, its errors are made one line.
fn from_clap(error: &clap::Error) -> Result<Action, Refusal> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            Ok(Action::Print(error.render().to_string()))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            let names: Vec<_> = Arguments::command()
                .get_subcommands()
                .filter(|command| !command.is_hide_set())
                .map(|command| command.get_name().to_owned())
                .collect();
            let names = names.join(", ");
            Err(usage(format!("no command given; take one of {names}, or --help")))
        }
        _ => Err(usage(one_line(&error.render().to_string()))),
    }
}

/// The sentences of clap's report on one line, without its usage summary.
fn one_line(report: &str) -> String {
    let sentences: Vec<&str> = report
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .collect();
    let line = sentences.join("; ");
    let line = line.strip_prefix("error: ").unwrap_or(&line).replace(":; ", ": ");
    match line.split_once("; [possible values: ") {
        Some((mistake, values)) => format!("{mistake}; take one of {}", values.replace(']', "")),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn parse_words(words: &[&str]) -> Result<Action, Refusal> {
        let words = std::iter::once("volvelle").chain(words.iter().copied());
        parse(&words.map(OsString::from).collect::<Vec<_>>())
    }

    pub(super) fn launch(words: &[&str]) -> Launch {
        let words: Vec<&str> = std::iter::once("run").chain(words.iter().copied()).collect();
        match parse_words(&words) {
            Ok(Action::Run(launch)) => *launch,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn refusal(words: &[&str]) -> String {
        let refusal = parse_words(words).unwrap_err();
        assert_eq!(refusal.status, exit::USAGE, "{words:?}");
        refusal.message
    }

    #[test]
    fn the_options_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_refusal_is_one_line_that_names_what_is_wrong() {
        #[rustfmt::skip]
        let rows: &[(&[&str], &[&str])] = &[
            (&[],                                     &["no command", "bench, trace, qemu"]),
            (&["walk"],                               &["'walk'"]),
            (&["debug", "--gdb", ":1"],               &["'debug'", "later"]),
            (&["bench", "--seconds", "0"],            &["--seconds", "0", "3600"]),
            (&["bench", "--seconds", "soon"],         &["--seconds", "soon"]),
            (&["bench", "loop"],                      &["loop"]),
            (&["run", "--kernle", "x"],               &["--kernle", "--kernel"]),
            (&["run", "stray"],                       &["stray"]),
            (&["run", "--memory", "lots"],            &["--memory", "lots", "512M"]),
            (&["run", "--memory", "512"],             &["--memory", "512M"]),
            (&["run", "--memory", "1M"],              &["--memory", "1M", "2M"]),
            (&["run", "--memory", "900000T"],         &["--memory", "512G"]),
            (&["run", "--memory=-1M"],                &["--memory", "-1M"]),
            (&["run", "--memory", "4097K"],           &["--memory", "4097K", "4 KiB"]),
            (&["run", "--cpus", "0"],                 &["--cpus", "1"]),
            (&["run", "--cpus", "256"],               &["--cpus", "255"]),
            (&["run", "--cpu", ""],                   &["--cpu"]),
            (&["run", "--accel", "hvf"],              &["--accel", "hvf", "kvm"]),
            (&["run", "--accel", "kvm", "--sched", "serial"], &["--sched serial", "--accel jit"]),
            (&["run", "--accel", "kvm", "--clock", "icount"], &["--clock icount", "--accel jit"]),
            (&["run", "--accel", "kvm", "--perf-map"], &["--perf-map", "kvm", "--accel jit"]),
            (&["run", "--jit-cache", "64"],           &["--jit-cache", "64M"]),
            (&["run", "--jit-cache", "4095K"],        &["--jit-cache", "4095K", "4M"]),
            (&["run", "--jit-cache", "7M", "--cpus", "2"], &["--jit-cache", "7M", "2 CPUs", "8M"]),
            (&["run", "--jit-cache", "3G", "--cpus", "2"], &["--jit-cache", "2 CPUs", "2048M"]),
            (&["run", "--jit-block-size", "0"],       &["--jit-block-size", "0", "1..=64"]),
            (&["run", "--jit-block-size", "65"],      &["--jit-block-size", "65", "1..=64"]),
            (&["run", "--accel", "tcg"],              &["--accel", "tcg", "interp"]),
            (&["run", "--machine", "isapc"],          &["--machine", "isapc", "one of q35, pc"]),
            (&["run", "--serial", "pty"],             &["--serial", "pty", "file:PATH"]),
            (&["run", "--serial", "file:"],           &["--serial", "file:"]),
            (&["run", "--serial", "tcp:5555"],        &["--serial", "tcp:HOST:PORT"]),
            (&["run", "--debug-exit=0x10000"],        &["--debug-exit", "0x10000", "0xffff"]),
            (&["run", "--debugcon", "stdio"],         &["--debugcon", "--serial", "stdio"]),
            (&["run", "--clock", "icount=0"],         &["--clock", "icount=0"]),
            (&["run", "--clock", "icount", "--sched", "parallel"], &["--clock", "--sched serial"]),
            (&["run", "--initrd", "i"],               &["--initrd", "--kernel"]),
            (&["run", "--append", "quiet"],           &["--append", "--kernel"]),
            (&["run", "--bios", "b", "--kernel", "k"], &["--bios", "--kernel"]),
            (&["run", "--log", "everything"],         &["--log", "everything", "--log help"]),
            (&["run", "--kernel"],                    &["--kernel"]),
        ];
        for (words, named) in rows {
            let message = refusal(words);
            assert!(!message.contains('\n') && !message.contains("error:"), "{message}");
            for name in *named {
                assert!(message.contains(name), "{words:?}: '{message}' lacks '{name}'");
            }
        }
    }

    #[test]
    fn help_and_version_are_printed() {
        let printed = |words: &[&str]| match parse_words(words) {
            Ok(Action::Print(text)) => text,
            other => panic!("{words:?}: {other:?}"),
        };
        assert_eq!(printed(&["--version"]), format!("volvelle {}\n", env!("CARGO_PKG_VERSION")));
        assert!(printed(&["--help"]).contains("doctor"));
        assert!(printed(&["run", "--help"]).contains("Exit status:"));
        assert!(printed(&["run", "--log", "help"]).contains("guest_error"));
        assert!(printed(&["run", "--cpu", "help"]).contains("x86-64-v3"));
        assert!(printed(&["qemu", "--help"]).contains("-kernel"));
    }

    #[test]
    fn each_heading_of_the_help_fits_a_screen() {
        let Ok(Action::Print(help)) = parse_words(&["run", "--help"]) else { panic!() };
        for section in help.split("\n\n") {
            assert!(section.lines().count() <= 24, "{section}");
        }
    }
}
