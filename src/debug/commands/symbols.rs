//! Commands on the names of addresses.

use std::fmt;
use std::sync::Arc;

use symbols::lines::SourceFrame;
use symbols::orc::Activation;
use symbols::{Symbol, Symbols};

use super::{Answer, Call, Command, reply};
use crate::debug::parse;
use crate::names::{Named, Walk, Way, function_of};

pub(super) const COMMANDS: &[Command] = &[
    Command::new("info symbol", &[], "ADDRESS", "the name of an address", info_symbol),
    Command::new("info address", &[], "SYMBOL", "the address of a name", info_address),
    Command::new("info line", &[], "ADDRESS", "the source line, by DWARF", info_line),
    Command::new(
        "symbols",
        &["info symbols"],
        "[load|list [FIRST]]",
        "where names are from; all names, a piece at a time",
        symbols,
    ),
    Command::new(
        "backtrace",
        &["bt"],
        "[full]",
        "the functions on the CPU's stack; with RSP and RBP",
        backtrace,
    ),
];

/// Frames of a stack that are shown at most.
const FRAMES_MAX: usize = 128;
/// Bytes of text from which on a list of names is ended.
const LIST_BYTES: usize = 1 << 20;

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

fn symbols(call: &mut Call<'_>) -> Answer {
    match super::word(call.arguments) {
        ("", _) => reply(Modules(settled(call)?)),
        ("load", "") => {
            let found = call.on_cpu(|cpu| call.machine.names().load(cpu))?;
            found.map_err(|error| format!("symbols load: {error}"))?;
            reply(Modules(call.machine.names().current()))
        }
        ("list", first) => {
            let number = if first.is_empty() { Some(0) } else { first.parse().ok() };
            let first = number.ok_or_else(|| format!("symbols list {first}: give a number"))?;
            let symbols = settled(call)?;
            reply(list(&symbols, first))
        }
        _ => Err(format!("symbols {}: take load, list, or nothing", call.arguments)),
    }
}

/// A piece of the list of all names, from the one of number `first` on: a line for each, and one
/// that says where the list goes on.
fn list(symbols: &Symbols, first: usize) -> String {
    let (mut text, mut number) = (String::new(), 0);
    for module in symbols.modules() {
        let skipped = first.saturating_sub(number).min(module.len());
        number += skipped;
        for (index, symbol) in module.symbols().skip(skipped).enumerate() {
            if text.len() >= LIST_BYTES {
                return text + &format!("and more from {number} on\n");
            }
            if index == 0 {
                text += &format!("module {}\n", module.name());
            }
            let Symbol { address, size, letter, name, .. } = symbol;
            text += &format!("{address:#x} {size:#x} {letter} {name}\n");
            number += 1;
        }
    }
    text
}

impl fmt::Display for Modules {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modules = self.0.modules();
        if modules.is_empty() {
            return writeln!(out, "no names: no --symbols, and no Linux kernel that was found");
        }
        modules.iter().try_for_each(|module| {
            let (name, count, (start, end)) = (module.name(), module.len(), module.range());
            write!(out, "{name}: {count} symbols from {start:#x} to {end:#x}")?;
            match module.slide() {
                _ if module.is_from_guest() => writeln!(out, ", from the guest's memory"),
                0 => writeln!(out),
                slide => writeln!(out, ", moved by {slide:#x}"),
            }
        })
    }
}

/// The functions on a stack.
struct Backtrace {
    names: Arc<Symbols>,
    walk: Walk,
    is_full: bool,
}

fn backtrace(call: &mut Call<'_>) -> Answer {
    let is_full = match call.arguments {
        "" => false,
        "full" => true,
        other => return Err(format!("backtrace {other}: take full, or nothing")),
    };
    let names = call.machine.names();
    let walk = call.on_cpu(|cpu| names.walk(cpu, FRAMES_MAX))?;
    reply(Backtrace { names: names.current(), walk, is_full })
}

impl fmt::Display for Backtrace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Walk { way, stack } = &self.walk;
        if self.is_full {
            writeln!(out, "{way}:")?;
        }
        for (number, Activation { frame, rsp, rbp }) in stack.iter().enumerate() {
            let name = Named(function_of(&self.names, frame));
            let guess = if frame.is_guess { " (a guess)" } else { "" };
            write!(out, "#{number:<3} {:#x}", frame.address)?;
            if self.is_full {
                write!(out, " rsp {rsp:#x} rbp {rbp:#x}")?;
            }
            writeln!(out, "{name}{guess}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Orc => "by the kernel's tables (ORC)",
            Self::FramePointers => "by frame pointers",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, base: u64, count: u64) -> symbols::Module {
        let mut builder = symbols::Builder::new(name);
        for number in 0..count {
            let at = base + 16 * number;
            builder.push(at, 8, 'T', &format!("name_{number}")).expect("there is room");
        }
        builder.finish()
    }

    #[test]
    fn the_pieces_of_the_list_have_each_name_once() {
        let mut all = Symbols::default();
        all.add(module("program", 0x40_0000, 3));
        all.add(module("vmlinux", 0xffff_ffff_8100_0000, 100_000));
        let (mut first, mut names, mut pieces) = (0, Vec::new(), 0);
        loop {
            let text = list(&all, first);
            assert!(text.len() < LIST_BYTES + 100 && text.ends_with('\n'));
            let rows = text.lines().filter(|line| line.starts_with("0x"));
            names.extend(rows.map(str::to_owned));
            pieces += 1;
            let Some((_, more)) = text.rsplit_once("and more from ") else { break };
            first = more.trim_end().trim_end_matches(" on").parse().expect("a number");
            assert_eq!(first, names.len());
        }
        assert!(pieces > 2, "{pieces}");
        assert_eq!(names.len(), 100_003);
        assert_eq!(names[0], "0x400000 0x8 T name_0");
        assert_eq!(names[100_002], "0xffffffff811869f0 0x8 T name_99999");
        assert_eq!(list(&all, usize::MAX), "");
        assert!(list(&all, 2).starts_with("module program\n0x400020 0x8 T name_2\nmodule vmlinux"));
    }
}
