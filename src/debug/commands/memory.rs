//! Commands on memory and the way to it.

use std::fmt;

use cpu::Cpu;
use cpu::mmu::{MappedRange, PageWalk};
use cpu::state::cr0;
use memory::GuestPhysical;

use super::{Command, reply};
use crate::debug::disassembly::Disassembly;
use crate::debug::parse::{self, Layout, Style};
use crate::names::Names;

/// What stands behind x and xp.
const LAYOUT: &str = "[/COUNT FORMAT SIZE] [ADDRESS]";

pub(super) const COMMANDS: &[Command] = &[
    Command::new("x", &[], LAYOUT, "memory at a linear address; x/i: from here on", |call| {
        let names = call.machine.names();
        reply(call.on_cpu(|cpu| examine(cpu, names, call.format, call.arguments))??)
    }),
    Command::new(
        "xp",
        &[],
        "[/COUNT FORMAT SIZE] ADDRESS",
        "memory at a physical address",
        |call| {
            let names = call.machine.names();
            reply(call.on_cpu(|cpu| examine_physical(cpu, names, call.format, call.arguments))??)
        },
    ),
    Command::new("translate", &["gva2gpa"], "ADDRESS", "the page walk, level by level", |call| {
        let linear = call.address()?;
        reply(call.on_cpu(|cpu| translate(cpu, linear))?)
    }),
    Command::new("print", &["p"], "[/FORMAT] ADDRESS", "the value of an ADDRESS", |call| {
        let value = call.address()?;
        reply(print(call.format, value)?)
    }),
    Command::new("sum", &[], "ADDRESS BYTES", "the 16-bit checksum of physical memory", |call| {
        let (address, bytes) = super::word(call.arguments);
        let start = call.address_of(address)?;
        reply(call.on_cpu(|cpu| sum(cpu, start, bytes))??)
    }),
    Command::new("info tlb", &[], "[ADDRESS]", "which page is where, from an address on", |call| {
        let from = if call.arguments.is_empty() { 0 } else { call.address()? };
        reply(call.on_cpu(|cpu| pages(cpu, from))?)
    }),
    Command::new("info mem", &[], "", "what is mapped, with its rights", |call| {
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

/// Pages of [`Pages`] at most.
const PAGES_MAX: usize = 1024;

/// Which page is where.
struct Pages {
    /// The linear address, the physical one, log2 of the bytes, and the entry.
    pages: Vec<(u64, u64, u32, u64)>,
    /// Where it goes on, if that is not all.
    rest: Option<u64>,
}

fn pages(cpu: &Cpu, from: u64) -> Pages {
    let (ranges, mut rest) = cpu.mapped_ranges(from & !0xfff, RANGES_MAX);
    let mut pages = Vec::new();
    'ranges: for range in ranges {
        let mut linear = range.start;
        while linear <= range.last {
            let walk = cpu.inspect(linear);
            let (Some((GuestPhysical(at), shift)), Some(level)) = (walk.found, walk.levels.last())
            else {
                break;
            };
            if pages.len() == PAGES_MAX {
                rest = Some(linear);
                break 'ranges;
            }
            pages.push((linear, at, shift, level.entry));
            let Some(next) =
                (linear >> shift).checked_add(1).and_then(|page| page.checked_mul(1 << shift))
            else {
                break;
            };
            linear = next;
        }
    }
    Pages { pages, rest }
}

impl fmt::Display for Pages {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pages.is_empty() {
            return writeln!(out, "no page is mapped");
        }
        for (linear, at, shift, entry) in &self.pages {
            writeln!(
                out,
                "{linear:016x}: {at:016x} {:>7} KiB {}",
                1u64 << (shift - 10),
                bits(*entry)
            )?;
        }
        match self.rest {
            Some(rest) => writeln!(out, "and more from {rest:#x} on"),
            None => Ok(()),
        }
    }
}

fn bits(entry: u64) -> String {
    let is_set = |(bit, _): &&(u32, &'static str)| entry >> bit & 1 != 0;
    let names: Vec<_> = ENTRY_BITS.iter().filter(is_set).map(|(_, name)| *name).collect();
    names.join(" ")
}

fn print(format: &str, value: u64) -> Result<String, String> {
    let layout = parse::layout(format)?;
    if layout.style == Style::Instruction || layout.count != 1 {
        return Err(format!("print/{format}: a value has no instructions, and is one"));
    }
    let size = if format.is_empty() || layout.size == 4 { 8 } else { layout.size };
    let bytes = value.to_le_bytes();
    let text = shown(bytes.get(..size).unwrap_or(&bytes), layout.style);
    let digits = text.strip_prefix("0x").map(|digits| digits.trim_start_matches('0'));
    Ok(match digits {
        Some("") => "0x0\n".into(),
        Some(digits) => format!("0x{digits}\n"),
        None => text + "\n",
    })
}

/// Bytes of `sum` at most: CPUs stand meanwhile.
const SUM_BYTES_MAX: u64 = 64 << 20;

/// The checksum of `bytes` bytes of physical memory, as BSD's and QEMU's `sum` have it.
fn sum(cpu: &mut Cpu, start: u64, bytes: &str) -> Result<String, String> {
    let count = parse::number(bytes).filter(|count| (1..=SUM_BYTES_MAX).contains(count));
    let count = count.ok_or_else(|| format!("sum: take 1 to {SUM_BYTES_MAX} bytes"))?;
    let mut sum = 0u16;
    let summed = each_piece(cpu, start, count, &read_physical, &mut |piece| {
        sum =
            piece.iter().fold(sum, |sum, &byte| sum.rotate_right(1).wrapping_add(u16::from(byte)));
        Ok(())
    });
    summed.map_err(|error| format!("sum: {error}"))?;
    Ok(format!("{sum:05}\n"))
}

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

/// Reads memory as far as it is there; how many bytes that are.
pub(super) type Read = dyn Fn(&Cpu, u64, &mut [u8]) -> usize;

/// Gives `take` the memory from `start` on, piece by piece. Where there is none, it ends.
pub(super) fn each_piece(
    cpu: &Cpu,
    start: u64,
    bytes: u64,
    read: &Read,
    take: &mut dyn FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut buffer = vec![0; PIECE.min(bytes) as usize];
    let mut done = 0;
    while done < bytes {
        let length = PIECE.min(bytes - done) as usize;
        let piece = buffer.get_mut(..length).unwrap_or_default();
        let count = read(cpu, start.wrapping_add(done), piece);
        if count < length {
            let end = start.wrapping_add(done).wrapping_add(count as u64);
            return Err(format!("{end:#x}: nothing is there, or a device"));
        }
        take(piece)?;
        done += length as u64;
    }
    Ok(())
}

/// Reads physical memory, page by page, as far as it is there; how many bytes that are.
pub(super) fn read_physical(cpu: &Cpu, start: u64, bytes: &mut [u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        let at = start.wrapping_add(done as u64);
        let length = (4096 - (at & 0xfff) as usize).min(bytes.len() - done);
        let part = bytes.get_mut(done..done + length).unwrap_or_default();
        if !cpu.inspect_physical(GuestPhysical(at), part) {
            break;
        }
        done += length;
    }
    done
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
            let (shift, at, entry) = (level.shift, level.at.0, level.entry);
            writeln!(out, "bit {shift:>2} up: entry at {at:#x} is {entry:#018x} {}", bits(entry))?;
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

fn examine(
    cpu: &mut Cpu,
    names: &Names,
    format: &str,
    address: &str,
) -> Result<Box<dyn fmt::Display>, String> {
    let layout = parse::layout(format)?;
    let linear = match address {
        "" => cpu.linear_ip(),
        address => parse::address(address, cpu, names)?,
    };
    if layout.style == Style::Instruction {
        let symbols = names.settle(cpu);
        return Ok(Box::new(Disassembly::of(cpu, symbols, linear, layout.count)));
    }
    let mut bytes = vec![0; layout.count * layout.size];
    let count = cpu.inspect_bytes(linear, &mut bytes);
    bytes.truncate(count);
    Ok(Box::new(Dump { start: linear, layout, bytes }))
}

fn examine_physical(
    cpu: &mut Cpu,
    names: &Names,
    format: &str,
    address: &str,
) -> Result<Dump, String> {
    let layout = parse::layout(format)?;
    if layout.style == Style::Instruction {
        return Err("xp/i: code is at linear addresses; take x/i".into());
    }
    let start = parse::address(address, cpu, names)?;
    let mut bytes = vec![0; layout.count * layout.size];
    let count = read_physical(cpu, start, &mut bytes);
    // An item that is not all there ends it.
    bytes.truncate(count - count % layout.size);
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
