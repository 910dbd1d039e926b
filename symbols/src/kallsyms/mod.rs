//! A Linux kernel's own symbol table, found in the memory of a running guest.
//!
//! A kernel with CONFIG_KALLSYMS has all of its symbols in read-only data, compressed: each name is
//! a string of bytes, and each byte stands for a piece of text in a table of 256. Nothing says
//! where that table is, and address space randomization moves it, but it is unmistakable: digits
//! stand for themselves, so it has ten known strings in a row, and an index of 256 offsets follows
//! that only that table can have. What the kernel keeps beside it is then found by what it must
//! satisfy ([`layout`]); every name and address is checked against all of it before it is believed.
//!
//! The order of these tables was changed in Linux 6.5, a table for look-ups by name came in 6.2,
//! names of more than 127 bytes in 6.1, and the marks have had 32 bits since 4.20. All of these are
//! read, with addresses as they are or relative to a base, of which those of per-CPU symbols may be
//! excepted (CONFIG_KALLSYMS_ABSOLUTE_PERCPU).

mod layout;
#[cfg(any(test, feature = "testing"))]
pub mod sample;
mod tokens;

use crate::memory::{PAGE, Reader, read_down, read_up};
use crate::{Builder, Module, SymbolError};
use layout::Layout;
use tokens::Tokens;

/// Where x86-64 Linux maps its own image: 1 GiB, within which it is placed at random.
const IMAGE_START: u64 = 0xffff_ffff_8000_0000;
const IMAGE_END: u64 = 0xffff_ffff_c000_0000;
/// How far below and above some code of the kernel its tables are.
const BELOW: u64 = 128 << 20;
const ABOVE: u64 = 512 << 20;
/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;
/// Places that may be the table of tokens and are looked at.
const CANDIDATES_MAX: usize = 1024;
/// Tables of tokens beside which names are looked for.
const TABLES_MAX: usize = 4;
/// Bytes of names, marks and what else is before the table of tokens.
const BEFORE_MAX: u64 = 32 << 20;
/// Bytes of addresses and what else is behind it.
const BEHIND_MAX: usize = 16 << 20;

/// What a kernel says of itself.
#[derive(Debug)]
pub struct Kernel {
    /// Its symbols, named `vmlinux`.
    pub symbols: Module,
    /// Where the table of tokens is.
    pub at: u64,
}

/// Finds and reads the table of the kernel that `code` is an address in, such as that of the
/// handler of SYSCALL.
pub fn find(code: u64, read: &mut Reader<'_>) -> Result<Kernel, SymbolError> {
    let image = IMAGE_START..IMAGE_END;
    if !image.contains(&code) {
        return Err(SymbolError::NoKernel);
    }
    let start = code.saturating_sub(BELOW).max(IMAGE_START) & !(PAGE - 1);
    let end = code.saturating_add(ABOVE).min(IMAGE_END);
    let mut candidates = 0;
    let mut tables = 0;
    let mut refusal = SymbolError::NoKernel;
    let mut chunk = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let count = read(at, &mut chunk).min(CHUNK);
        let bytes = chunk.get(..count).unwrap_or_default();
        for offset in tokens::digits(bytes) {
            candidates += 1;
            if candidates > CANDIDATES_MAX {
                return Err(refusal);
            }
            let Some(table) = Table::examine(at + offset as u64, read) else { continue };
            tables += 1;
            match table.symbols(read) {
                Ok(symbols) => return Ok(Kernel { symbols, at: table.at }),
                Err(error) => refusal = error,
            }
            if tables == TABLES_MAX {
                return Err(refusal);
            }
        }
        at += step(count);
    }
    Err(refusal)
}

/// How far to go on behind a chunk of which `count` bytes could be read: what is found must be in
/// one piece, so chunks overlap, and a page that is not mapped is passed over.
fn step(count: usize) -> u64 {
    match count {
        CHUNK => (CHUNK - tokens::DIGITS.len()) as u64,
        count => (count as u64 & !(PAGE - 1)) + PAGE,
    }
}

/// The table of tokens, and what is behind its index.
struct Table {
    at: u64,
    tokens: Tokens,
    behind: Vec<u8>,
}

impl Table {
    /// The table whose digits are at `digits`, if it is one.
    fn examine(digits: u64, read: &mut Reader<'_>) -> Option<Self> {
        let (_, mut bytes) = read_down(read, digits, Tokens::BEFORE_DIGITS);
        let before = bytes.len();
        bytes.extend(read_up(read, digits, Tokens::BYTES_MAX));
        let (head, _) = bytes.split_at(before);
        let (at, tokens) = tokens::starts(head, digits).find_map(|up| {
            let start = before.checked_sub(up as usize)?;
            Some((digits - up, Tokens::read(bytes.get(start..)?)?))
        })?;
        let behind = read_up(read, at.checked_add(tokens.bytes as u64)?, BEHIND_MAX);
        Some(Self { at, tokens, behind })
    }

    /// The symbols that are beside it.
    fn symbols(&self, read: &mut Reader<'_>) -> Result<Module, SymbolError> {
        let form = |what| SymbolError::Form { at: self.at, what };
        let (_, before) = read_down(read, self.at, BEFORE_MAX);
        let layout = Layout::find(&before, &self.behind).map_err(form)?;
        let mut builder = Builder::new("vmlinux");
        let mut name = Vec::new();
        for (compressed, address) in layout.symbols() {
            self.tokens.expand(compressed, &mut name).ok_or_else(|| form("names"))?;
            let Some((&letter, name)) = name.split_first() else { return Err(form("names")) };
            let name = std::str::from_utf8(name).map_err(|_| form("names"))?;
            builder.push(address, 0, char::from(letter), name)?;
        }
        let mut module = builder.finish();
        module.set_from_guest();
        Ok(module)
    }
}

#[cfg(test)]
mod tests;
