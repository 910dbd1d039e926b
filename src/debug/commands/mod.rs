//! The monitor's commands: a table of functions that give data, and the text of it.
//!
//! Each family is a file with a table of its own; [`FAMILIES`] lists them, and `help` is made of
//! them. A command is found by its words ([`run()`]) and answers with an [`Effect`]: data that
//! shows itself as text, so that a protocol for programs can call the same functions.

mod catch;
mod chips;
mod help;
mod machine;
mod memory;
mod points;
mod ports;
mod registers;
mod run;
mod save;
mod symbols;

use std::fmt;

use cpu::Cpu;

use super::machine::Machine;
use super::parse;

pub(crate) use registers::cpu_summary;

/// What the commands of one debugger keep from one to the next.
#[derive(Default)]
pub(crate) struct Context {
    /// The CPU that commands are about.
    pub(crate) cpu: usize,
    /// The machine goes on when the debugger vanishes.
    pub(crate) goes_on_alone: bool,
}

/// What a command leads to.
pub(crate) enum Effect {
    /// It answers.
    Reply(Box<dyn fmt::Display>),
    /// The run is to end.
    Quit,
    /// The machine is to stop or to go on. Who serves the debugger knows whether it may.
    Run(Run),
}

/// How the machine is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// Not at all, or not on this CPU.
    Stop(Option<usize>),
    /// Until something stops it; or this CPU alone goes on, beside those that run.
    Continue(Option<usize>),
    /// So many instructions of the CPU that commands are about.
    Step(u64),
}

/// What a command comes back with; an error is one line for the user.
pub(crate) type Answer = Result<Effect, String>;

/// What a command needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: it looks at no CPU and no chip, whether they run or not.
    Nothing,
    /// All CPUs at instruction boundaries, for as long as it takes.
    Pause,
}

/// A row of the table.
pub(crate) struct Command {
    /// The word, or two: `x`, `info cpus`.
    name: &'static str,
    /// Other words for it.
    aliases: &'static [&'static str],
    /// What stands behind it, as help shows it; empty for nothing. With `[/` at its beginning the
    /// word takes a format.
    arguments: &'static str,
    /// What it does, in a line.
    help: &'static str,
    needs: Needs,
    run: fn(&mut Call<'_>) -> Answer,
}

impl Command {
    /// A command that looks at CPUs or chips.
    const fn new(
        name: &'static str,
        aliases: &'static [&'static str],
        arguments: &'static str,
        help: &'static str,
        run: fn(&mut Call<'_>) -> Answer,
    ) -> Self {
        Self { name, aliases, arguments, help, needs: Needs::Pause, run }
    }

    /// The same command, which looks at neither.
    const fn anytime(self) -> Self {
        Self { needs: Needs::Nothing, ..self }
    }

    fn is_called(&self, word: &str) -> bool {
        self.name == word || self.aliases.contains(&word)
    }

    fn takes_format(&self) -> bool {
        self.arguments.starts_with("[/")
    }
}

/// The families, in the order of `help`.
#[rustfmt::skip]
const FAMILIES: &[&[Command]] = &[
    help::COMMANDS,
    run::COMMANDS,
    machine::COMMANDS,
    registers::COMMANDS,
    memory::COMMANDS,
    save::COMMANDS,
    ports::COMMANDS,
    points::COMMANDS,
    catch::COMMANDS,
    chips::COMMANDS,
    symbols::COMMANDS,
];

/// Commands of QEMU's that ask for what Volvelle has not.
#[rustfmt::skip]
const REFUSED: &[(&str, &[&str])] = &[
    ("there is no keyboard to type at from here", &["sendkey", "mouse_move", "mouse_button"]),
    ("machines cannot be saved", &["savevm", "loadvm", "delvm", "migrate", "migrate_incoming"]),
    ("devices are there from the start", &[
        "device_add", "device_del", "netdev_add", "netdev_del", "chardev-add", "chardev-remove",
        "object_add", "object_del",
    ]),
    ("there are no disks", &[
        "drive_add", "drive_del", "block_resize", "commit", "eject", "change", "snapshot_blkdev",
        "qemu-io", "boot_set",
    ]),
    ("there is no display", &["screendump", "set_password", "expire_password"]),
    ("gdb is served by --gdb", &["gdbserver"]),
    ("take pmemsave", &["dump-guest-memory"]),
    ("nothing is written to the host's files from here", &["logfile", "wavcapture"]),
];

fn all() -> impl Iterator<Item = &'static Command> {
    FAMILIES.iter().copied().flatten()
}

/// One use of a command.
pub(crate) struct Call<'a> {
    machine: &'a Machine,
    context: &'a mut Context,
    /// What stands behind the slash.
    format: &'a str,
    /// What stands behind the name.
    arguments: &'a str,
}

impl Call<'_> {
    /// Does something with the CPU that commands are about.
    fn on_cpu<T>(&self, act: impl FnOnce(&mut Cpu) -> T) -> Result<T, String> {
        self.machine.with(self.context.cpu, act).ok_or_else(|| no_cpu(self.machine))
    }

    /// The address that is the command's only argument.
    fn address(&self) -> Result<u64, String> {
        self.address_of(self.arguments)
    }

    /// The address that `text` is.
    fn address_of(&self, text: &str) -> Result<u64, String> {
        self.on_cpu(|cpu| parse::address(text, cpu, self.machine.names()))?
    }
}

/// The command that `line` calls, its format and its arguments.
fn find(line: &str) -> Result<(&'static Command, &str, &str), String> {
    let (first, rest) = word(line);
    let (name, format) = first.split_once('/').unwrap_or((first, ""));
    if name == "info" && !rest.is_empty() {
        let (second, rest) = word(rest);
        let name = format!("info {second}");
        return match all().find(|command| command.is_called(&name)) {
            Some(command) => Ok((command, format, rest)),
            None => Err(format!("{name}: no such thing; `help info` lists what there is")),
        };
    }
    match all().find(|command| command.is_called(name)) {
        Some(command) => Ok((command, format, rest)),
        None => Err(match REFUSED.iter().find(|(_, names)| names.contains(&name)) {
            Some((reason, _)) => format!("{name}: not supported yet ({reason})"),
            None => format!("{name}: no such command; `help` lists what there is"),
        }),
    }
}

fn word(line: &str) -> (&str, &str) {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    (word, rest.trim())
}

/// What the command that `line` calls needs of the machine.
pub(crate) fn needs(line: &str) -> Needs {
    find(line).map_or(Needs::Nothing, |(command, _, _)| command.needs)
}

/// Runs one command line. Unless the command needs nothing, all CPUs are stopped.
pub(crate) fn run(machine: &Machine, context: &mut Context, line: &str) -> Answer {
    let (command, format, arguments) = find(line)?;
    if !format.is_empty() && !command.takes_format() {
        return Err(format!("{}: it takes no format", command.name));
    }
    if !arguments.is_empty() && command.arguments.is_empty() {
        return Err(format!("{}: nothing may stand behind it", command.name));
    }
    (command.run)(&mut Call { machine, context, format, arguments })
}

fn reply(view: impl fmt::Display + 'static) -> Answer {
    Ok(Effect::Reply(Box::new(view)))
}

/// The CPU that `text` numbers.
fn cpu_number(machine: &Machine, text: &str) -> Result<usize, String> {
    let index = text.parse().ok().filter(|&index: &usize| index < machine.cpu_count());
    index.ok_or_else(|| format!("cpu {text}: {}", no_cpu(machine)))
}

fn no_cpu(machine: &Machine) -> String {
    format!("no such CPU; there are 0 to {}", machine.cpu_count().saturating_sub(1))
}

#[cfg(test)]
mod tests;
