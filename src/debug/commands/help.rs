//! `help`: the table of commands as text.

use std::fmt;

use super::{Answer, Call, Command, Needs, all, reply};

pub(super) const COMMANDS: &[Command] = &[
    Command::new("help", &["h", "?", ""], "[COMMAND]", "what there is", help).anytime(),
    Command::new("info", &[], "", "what there is to ask for", info).anytime(),
];

/// Columns of a command with its arguments, in front of what it does.
const NAME_COLUMNS: usize = 30;

/// Rows of the table.
struct Help(Vec<&'static Command>);

fn help(call: &mut Call<'_>) -> Answer {
    match call.arguments {
        "" => reply(Help(all().collect())),
        "info" => info(call),
        name => {
            let found: Vec<_> = all().filter(|command| command.is_called(name)).collect();
            if found.is_empty() {
                return Err(format!("{name}: no such command; `help` lists what there is"));
            }
            reply(Help(found))
        }
    }
}

fn info(_: &mut Call<'_>) -> Answer {
    reply(Help(all().filter(|command| command.name.starts_with("info ")).collect()))
}

impl fmt::Display for Help {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for command in &self.0 {
            let gap = if command.arguments.is_empty() || command.takes_format() { "" } else { " " };
            let usage = format!("{}{gap}{}", command.name, command.arguments);
            let others: Vec<&str> =
                command.aliases.iter().copied().filter(|alias| !alias.is_empty()).collect();
            write!(out, "{usage:<NAME_COLUMNS$} {}", command.help)?;
            if others.is_empty() {
                writeln!(out)?;
            } else {
                writeln!(out, " (also {})", others.join(", "))?;
            }
        }
        if let [command] = self.0.as_slice()
            && command.needs == Needs::Nothing
        {
            writeln!(out, "The guest runs on meanwhile.")?;
        }
        if self.0.iter().any(|command| command.arguments.contains("ADDRESS")) {
            writeln!(out, "An ADDRESS is numbers, $registers and symbols: x/4i $cs_base+$rip-2")?;
        }
        Ok(())
    }
}
