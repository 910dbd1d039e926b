//! Commands on memory and the way to it.

use std::fmt;

use cpu::Cpu;
use cpu::mmu::{MappedRange, PageWalk};
use cpu::state::cr0;
use memory::GuestPhysical;

use super::{Command, reply};
use crate::debug::disassembly::Disassembly;
use crate::debug::parse::{self, Layout, Style};

/// What stands behind x and xp.
const LAYOUT: &str = "[/COUNT FORMAT SIZE] [ADDRESS]";

pub(super) const COMMANDS: &[Command] = &[
    Command::paused("x", &[], LAYOUT, "memory at a linear address; x/i: from here on", |call| {
        reply(call.on_cpu(|cpu| examine(cpu, call.format, call.arguments))??)
    }),
    Command::paused(
        "xp",
        &[],
        "[/COUNT FORMAT SIZE] ADDRESS",
        "memory at a physical address",
        |call| reply(call.on_cpu(|cpu| examine_physical(cpu, call.format, call.arguments))??),
    ),
    Command::paused(
        "translate",
        &["gva2gpa"],
        "ADDRESS",
        "the page walk, level by level",
        |call| {
            let linear = call.address()?;
            reply(call.on_cpu(|cpu| translate(cpu, linear))?)
        },
    ),
    Command::paused("info mem", &[], "", "what is mapped, with its rights", |call| {
        reply(call.on_cpu(|cpu| mapped(cpu))?)
    }),
];

/// Ranges of [`Mapped`] at most.
const RANGES_MAX: usize = 1024;

/// What is mapped.
pub(crate) struct Mapped {
    ranges: Vec<MappedRange>,
    /// Where it goes on, if that is not all.
    rest: Option<u64>,
    has_paging: bool,
}

/// What is mapped for the CPU.
pub(crate) fn mapped(cpu: &Cpu) -> Mapped {
    let (ranges, rest) = cpu.mapped_ranges(0, RANGES_MAX);
    Mapped { ranges, rest, has_paging: cpu.state.cr0 & cr0::PG != 0 }
}

impl fmt::Display for Mapped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.has_paging {
            return writeln!(out, "there is no paging");
        }
        for range in &self.ranges {
            let right = |is_given: bool, letter: char| if is_given { letter } else { '-' };
            let (user, write) = (right(range.is_user, 'u'), right(range.is_writable, 'w'));
            let execute = right(range.is_executable, 'x');
            let (start, last) = (range.start, range.last);
            writeln!(out, "{start:#018x}-{last:#018x} {user}r{write}{execute}")?;
        }
        match self.rest {
            Some(rest) => writeln!(out, "and more from {rest:#x} on"),
            None => Ok(()),
        }
    }
}

/// A page walk.
pub(crate) struct Translation {
    linear: u64,
    walk: PageWalk,
}

/// Where linear address `linear` is.
pub(crate) fn translate(cpu: &Cpu, linear: u64) -> Translation {
    Translation { linear, walk: cpu.inspect(linear) }
}

/// Bits of a paging-structure entry, from the highest.
#[rustfmt::skip]
const ENTRY_BITS: &[(u32, &str)] = &[
    (63, "XD"), (8, "G"), (7, "PS/PAT"), (6, "D"), (5, "A"), (4, "PCD"), (3, "PWT"), (2, "U"),
    (1, "W"), (0, "P"),
];

impl fmt::Display for Translation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for level in &self.walk.levels {
            let bits: Vec<&str> = ENTRY_BITS
                .iter()
                .filter(|(bit, _)| level.entry >> bit & 1 != 0)
                .map(|(_, name)| *name)
                .collect();
            let (shift, at, entry) = (level.shift, level.at.0, level.entry);
            writeln!(
                out,
                "bit {shift:>2} up: entry at {at:#x} is {entry:#018x} {}",
                bits.join(" ")
            )?;
        }
        match self.walk.found {
            Some((GuestPhysical(at), shift)) if !self.walk.levels.is_empty() => {
                writeln!(
                    out,
                    "{:#x} is at {at:#x}, in a page of {} KiB",
                    self.linear,
                    1 << (shift - 10)
                )
            }
            Some((GuestPhysical(at), _)) => {
                writeln!(out, "{:#x} is at {at:#x}, without paging", self.linear)
            }
            None => writeln!(out, "{:#x} is not mapped", self.linear),
        }
    }
}

/// Memory as items.
pub(crate) struct Dump {
    start: u64,
    layout: Layout,
    bytes: Vec<u8>,
}

fn examine(cpu: &mut Cpu, format: &str, address: &str) -> Result<Box<dyn fmt::Display>, String> {
    let layout = parse::layout(format)?;
    let linear = match address {
        "" => cpu.linear_ip(),
        address => parse::address(address, cpu)?,
    };
    if layout.style == Style::Instruction {
        return Ok(Box::new(Disassembly::of(cpu, linear, layout.count)));
    }
    let mut bytes = vec![0; layout.count * layout.size];
    let count = cpu.inspect_bytes(linear, &mut bytes);
    bytes.truncate(count);
    Ok(Box::new(Dump { start: linear, layout, bytes }))
}

fn examine_physical(cpu: &mut Cpu, format: &str, address: &str) -> Result<Dump, String> {
    let layout = parse::layout(format)?;
    if layout.style == Style::Instruction {
        return Err("xp/i: code is at linear addresses; take x/i".into());
    }
    let start = parse::address(address, cpu)?;
    let mut bytes = Vec::new();
    // Item by item: an item that is not there ends it.
    for index in 0..layout.count as u64 {
        let mut item = [0; 8];
        let item = item.get_mut(..layout.size).unwrap_or_default();
        let at = start.wrapping_add(index * layout.size as u64);
        let is_read = (0..).zip(item.iter_mut()).all(|(offset, byte)| {
            cpu.inspect_physical(GuestPhysical(at.wrapping_add(offset)), std::slice::from_mut(byte))
        });
        if !is_read {
            break;
        }
        bytes.extend_from_slice(item);
    }
    Ok(Dump { start, layout, bytes })
}

impl fmt::Display for Dump {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LINE_BYTES: usize = 16;
        let Self { start, layout, bytes } = self;
        let mut at = *start;
        for line in bytes.chunks(LINE_BYTES) {
            write!(out, "{at:#x}:")?;
            for item in line.chunks_exact(layout.size) {
                write!(out, " {}", shown(item, layout.style))?;
            }
            writeln!(out)?;
            at = at.wrapping_add(line.len() as u64);
        }
        if bytes.len() < layout.count * layout.size {
            writeln!(out, "{at:#x}: nothing is mapped there, or a device")?;
        }
        Ok(())
    }
}

fn shown(item: &[u8], style: Style) -> String {
    let value = item.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte));
    let bits = 8 * item.len() as u32;
    match style {
        Style::Hexadecimal | Style::Instruction => {
            format!("{value:#0width$x}", width = 2 + 2 * item.len())
        }
        Style::Signed => ((value << (64 - bits)) as i64 >> (64 - bits)).to_string(),
        Style::Unsigned => value.to_string(),
        Style::Octal => format!("{value:#o}"),
        Style::Binary => format!("{value:0width$b}", width = bits as usize),
        Style::Character => format!("{:?}", char::from(item.first().copied().unwrap_or(0))),
    }
}
