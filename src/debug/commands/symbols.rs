//! Commands on the names of addresses.

use std::fmt;
use std::sync::Arc;

use symbols::Symbols;
use symbols::lines::SourceFrame;
use symbols::orc::Frame;

use super::{Answer, Call, Command, reply};
use crate::debug::parse;
use crate::names::{Named, function_of};

pub(super) const COMMANDS: &[Command] = &[
    Command::new("info symbol", &[], "ADDRESS", "the name of an address", info_symbol),
    Command::new("info address", &[], "SYMBOL", "the address of a name", info_address),
    Command::new("info line", &[], "ADDRESS", "the source line, by DWARF", info_line),
    Command::new("symbols", &["info symbols"], "[load]", "where names are from", list),
    Command::new("backtrace", &["bt"], "", "the functions on the CPU's stack", backtrace),
];

/// Frames of a stack that are shown at most.
const FRAMES_MAX: usize = 128;

fn settled(call: &Call<'_>) -> Result<Arc<Symbols>, String> {
    call.on_cpu(|cpu| call.machine.names().settle(cpu))
}

fn info_symbol(call: &mut Call<'_>) -> Answer {
    let address = call.address()?;
    let symbols = settled(call)?;
    let place =
        symbols.at(address).ok_or_else(|| format!("{address:#x}: no symbol has this address"))?;
    let (start, size, module) = (place.symbol.address, place.symbol.size, place.symbol.module);
    let size = if size == 0 { String::new() } else { format!(", {size} bytes") };
    reply(format!("{place} in {module}, which is at {start:#x}{size}\n"))
}

fn info_address(call: &mut Call<'_>) -> Answer {
    let name = call.arguments;
    let symbols = settled(call)?;
    let symbol = symbols.find(name).ok_or_else(|| parse::unknown_symbol(name, &symbols))?;
    let kind = if symbol.is_code() { "code" } else { "data" };
    reply(format!("{name} is {kind} at {:#x} in {}\n", symbol.address, symbol.module))
}

/// The source of an address.
struct Source {
    address: u64,
    frames: Vec<SourceFrame>,
}

fn info_line(call: &mut Call<'_>) -> Answer {
    let address = call.address()?;
    settled(call)?;
    let frames = call.machine.names().source(address);
    if frames.is_empty() {
        return Err(format!("{address:#x}: no file of --symbols has a line for it"));
    }
    reply(Source { address, frames })
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut link = "is in";
        for SourceFrame { function, line } in &self.frames {
            let function = function.as_deref().unwrap_or("(no function)");
            write!(out, "{:#x} {link} {function}", self.address)?;
            match line {
                Some(line) => writeln!(out, " at {}:{}", line.file, line.line)?,
                None => writeln!(out)?,
            }
            link = "is inlined into";
        }
        Ok(())
    }
}

/// The modules.
struct Modules(Arc<Symbols>);

fn list(call: &mut Call<'_>) -> Answer {
    match call.arguments {
        "" => reply(Modules(settled(call)?)),
        "load" => {
            let found = call.on_cpu(|cpu| call.machine.names().load(cpu))?;
            found.map_err(|error| format!("symbols load: {error}"))?;
            reply(Modules(call.machine.names().current()))
        }
        other => Err(format!("symbols {other}: take load, or nothing")),
    }
}

impl fmt::Display for Modules {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modules = self.0.modules();
        if modules.is_empty() {
            return writeln!(out, "no names: no --symbols, and no Linux kernel that was found");
        }
        modules.iter().try_for_each(|module| {
            let (name, count, (start, end)) = (module.name(), module.len(), module.range());
            let origin = if module.is_from_guest() { ", from the guest's memory" } else { "" };
            writeln!(out, "{name}: {count} symbols from {start:#x} to {end:#x}{origin}")
        })
    }
}

/// The functions on a stack.
struct Backtrace {
    names: Arc<Symbols>,
    frames: Vec<Frame>,
}

fn backtrace(call: &mut Call<'_>) -> Answer {
    let names = call.machine.names();
    let frames = call.on_cpu(|cpu| names.stack(cpu, FRAMES_MAX))?;
    reply(Backtrace { names: names.current(), frames })
}

impl fmt::Display for Backtrace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, frame) in self.frames.iter().enumerate() {
            let name = Named(function_of(&self.names, frame));
            let guess = if frame.is_guess { " (a guess)" } else { "" };
            writeln!(out, "#{number:<3} {:#x}{name}{guess}", frame.address)?;
        }
        Ok(())
    }
}
