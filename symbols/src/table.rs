//! The symbol table: from an address to a name, and back.
//!
//! A module's rows are sorted by address, with the best name first among those of one address; a
//! second order is that of the names. Absolute symbols, those of a kernel's per-CPU variables among
//! them, have names that can be looked up, but no address is ever explained by them.

use std::cmp::Reverse;
use std::fmt;
use std::io::{self, Write};

use crate::SymbolError;

/// Symbols of one module at most.
const SYMBOLS_MAX: usize = 8 << 20;
/// Bytes of all names of one module at most.
const NAMES_MAX: usize = 512 << 20;
/// Bytes of a name at most; longer ones are left out.
pub(crate) const NAME_MAX: usize = 2048;
/// How far behind a symbol without a size and without one behind it addresses are still its own.
const TAIL: u64 = 4096;
/// Symbols before an address that are asked whether it is inside of them.
const NESTED_MAX: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Row {
    address: u64,
    /// 0 if it is not known.
    size: u64,
    name: u32,
    name_bytes: u16,
    letter: u8,
}

/// A symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// The module that it is of.
    pub module: &'a str,
    /// Its address in the guest.
    pub address: u64,
    /// Its bytes; 0 if that is not known.
    pub size: u64,
    /// Its kind as `nm` writes it: `T` is global code, `d` is local data.
    pub letter: char,
}

impl Symbol<'_> {
    /// True if code is there.
    pub fn is_code(&self) -> bool {
        is_code(self.letter as u8)
    }
}

fn is_code(letter: u8) -> bool {
    matches!(letter.to_ascii_lowercase(), b't' | b'w' | b'i')
}

/// An address as a symbol and what is added to it; written as `name+0x1f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The symbol that the address is in.
    pub symbol: Symbol<'a>,
    /// How far from its start.
    pub offset: u64,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.offset {
            0 => out.write_str(self.symbol.name),
            offset => write!(out, "{}+{offset:#x}", self.symbol.name),
        }
    }
}

/// Collects the symbols of a [`Module`].
#[derive(Debug)]
pub struct Builder {
    name: String,
    names: String,
    rows: Vec<Row>,
}

impl Builder {
    /// An empty one for the module `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), names: String::new(), rows: Vec::new() }
    }

    /// Adds a symbol. `size` is 0 if it is not known. A name that is too long is left out, and one
    /// that would mean something else to a terminal or be more than one line of a file.
    pub fn push(
        &mut self,
        address: u64,
        size: u64,
        letter: char,
        name: &str,
    ) -> Result<(), SymbolError> {
        let is_text = letter.is_ascii_graphic() && !name.contains(char::is_control);
        if name.is_empty() || name.len() > NAME_MAX || !is_text {
            return Ok(());
        }
        if self.rows.len() >= SYMBOLS_MAX || self.names.len() + name.len() > NAMES_MAX {
            return Err(SymbolError::TooLarge);
        }
        let row = Row {
            address,
            size,
            name: self.names.len() as u32,
            name_bytes: name.len() as u16,
            letter: letter as u8,
        };
        self.names.push_str(name);
        self.rows.push(row);
        Ok(())
    }

    /// True if nothing was added.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The module.
    pub fn finish(self) -> Module {
        let Self { name, names, mut rows } = self;
        let high = rows.iter().filter(|row| is_high(row.address)).count();
        // A kernel's symbols in the lower half are offsets of per-CPU variables.
        let is_kernel = high > rows.len() / 2;
        let is_placed = |row: &Row| row.letter != b'A' && (is_high(row.address) || !is_kernel);
        rows.sort_by_cached_key(|row| {
            (is_placed(row), row.address, rank(row, text(&names, row)), Reverse(row.size))
        });
        let placed = rows.partition_point(|row| !is_placed(row));
        let mut by_name: Vec<u32> = (0..rows.len() as u32).collect();
        by_name.sort_by_key(|&index| {
            let row = rows.get(index as usize);
            row.map(|row| (text(&names, row), rank(row, ""), row.address))
        });
        Module { name, names, rows, placed, by_name, slide: 0, first: None, is_from_guest: false }
    }
}

fn is_high(address: u64) -> bool {
    address >> 47 != 0
}

fn text<'a>(names: &'a str, row: &Row) -> &'a str {
    let start = row.name as usize;
    names.get(start..start + usize::from(row.name_bytes)).unwrap_or("")
}

/// What orders symbols of one address: the lowest explains it.
fn rank(row: &Row, name: &str) -> (bool, bool, bool) {
    (!is_code(row.letter), name.starts_with(['_', '.', '$']), row.letter.is_ascii_lowercase())
}

/// One image's symbols.
#[derive(Clone, Debug)]
pub struct Module {
    name: String,
    names: String,
    rows: Vec<Row>,
    /// Rows from here on have a place in memory.
    placed: usize,
    by_name: Vec<u32>,
    /// What is added to the addresses of rows.
    slide: u64,
    /// The first byte that is loaded, where the image says so.
    first: Option<u64>,
    is_from_guest: bool,
}

impl Module {
    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many symbols it has.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What is added to the addresses that the image has by itself.
    pub fn slide(&self) -> u64 {
        self.slide
    }

    /// Moves the module: `slide` is added to the addresses that the image has by itself.
    pub fn set_slide(&mut self, slide: u64) {
        self.slide = slide;
    }

    /// True if it was found in a guest's memory.
    pub fn is_from_guest(&self) -> bool {
        self.is_from_guest
    }

    /// Says that it was.
    pub(crate) fn set_from_guest(&mut self) {
        self.is_from_guest = true;
    }

    /// Says where the first byte is that the image itself asks to be loaded.
    pub(crate) fn set_first(&mut self, first: Option<u64>) {
        self.first = first;
    }

    /// Moves the module so that its first byte is at `base`: the first one that is loaded, or its
    /// first symbol.
    pub fn set_base(&mut self, base: u64) {
        let symbol = || self.rows.get(self.placed).map(|row| row.address);
        self.slide = base.wrapping_sub(self.first.or_else(symbol).unwrap_or(0));
    }

    /// From the first symbol to behind the last one.
    pub fn range(&self) -> (u64, u64) {
        let rows = self.rows.get(self.placed..).unwrap_or_default();
        let start = rows.first().map_or(0, |row| row.address);
        let end = rows.last().map_or(0, |row| row.address.saturating_add(row.size.max(1)));
        (start.wrapping_add(self.slide), end.wrapping_add(self.slide))
    }

    fn symbol(&self, row: &Row) -> Symbol<'_> {
        let is_moved = row.letter != b'A';
        Symbol {
            name: text(&self.names, row),
            module: &self.name,
            address: if is_moved { row.address.wrapping_add(self.slide) } else { row.address },
            size: row.size,
            letter: char::from(row.letter),
        }
    }

    /// All symbols: absolute ones, then by address.
    pub fn symbols(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.rows.iter().map(|row| self.symbol(row))
    }

    /// The symbol that `address` is in.
    pub fn at(&self, address: u64) -> Option<Place<'_>> {
        let address = address.wrapping_sub(self.slide);
        let rows = self.rows.get(self.placed..)?;
        let behind = rows.partition_point(|row| row.address <= address);
        let next = rows.get(behind).map(|row| row.address);
        let mut nearest = behind;
        // The last address of a symbol at or before it; then those before, which may be larger.
        for _ in 0..NESTED_MAX {
            let last = rows.get(nearest.checked_sub(1)?)?;
            let first = rows.partition_point(|row| row.address < last.address);
            let same = rows.get(first..nearest)?;
            if let Some(row) = same.iter().find(|row| holds(row, address, next)) {
                return Some(Place { symbol: self.symbol(row), offset: address - row.address });
            }
            nearest = first;
        }
        None
    }

    /// The symbol of that name.
    pub fn find(&self, name: &str) -> Option<Symbol<'_>> {
        let row = |index: u32| self.rows.get(index as usize);
        let name_of = |index: u32| row(index).map_or("", |row| text(&self.names, row));
        let first = self.by_name.partition_point(|&index| name_of(index) < name);
        let index = self.by_name.get(first).copied().filter(|&index| name_of(index) == name)?;
        row(index).map(|row| self.symbol(row))
    }

    /// The names that begin with `start`, in order.
    fn names_from(&self, start: &str) -> impl Iterator<Item = &str> {
        let row = |index: u32| self.rows.get(index as usize);
        let name_of = move |index: u32| row(index).map_or("", |row| text(&self.names, row));
        let first = self.by_name.partition_point(|&index| name_of(index) < start);
        let behind = self.by_name.get(first..).unwrap_or_default();
        let names = behind.iter().map(move |&index| name_of(index));
        names.take_while(move |name| name.starts_with(start))
    }

    /// Writes the symbols as `System.map` has them, where they are in the guest.
    pub fn write_system_map(&self, out: &mut dyn Write) -> io::Result<()> {
        self.symbols().try_for_each(|symbol| {
            writeln!(out, "{:016x} {} {}", symbol.address, symbol.letter, symbol.name)
        })
    }
}

/// True if `address`, which is not before the row's, belongs to it. `next` is where the first
/// symbol behind the address is.
fn holds(row: &Row, address: u64, next: Option<u64>) -> bool {
    match row.size {
        0 => next.is_some_and(|next| address < next) || address - row.address < TAIL,
        size => address - row.address < size,
    }
}

/// The symbols of a guest: all modules, of which the last one added is asked first.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    modules: Vec<Module>,
}

impl Symbols {
    /// Adds `module`; one of the same name goes.
    pub fn add(&mut self, module: Module) {
        self.modules.retain(|old| old.name != module.name);
        self.modules.push(module);
    }

    /// The modules.
    pub fn modules(&self) -> &[Module] {
        &self.modules
    }

    /// The modules, to be moved.
    pub fn modules_mut(&mut self) -> &mut [Module] {
        &mut self.modules
    }

    /// True if there is no symbol.
    pub fn is_empty(&self) -> bool {
        self.modules.iter().all(Module::is_empty)
    }

    /// The symbol that `address` is in.
    pub fn at(&self, address: u64) -> Option<Place<'_>> {
        self.modules.iter().rev().find_map(|module| module.at(address))
    }

    /// The symbol of that name; `MODULE:NAME` asks one module alone.
    pub fn find(&self, name: &str) -> Option<Symbol<'_>> {
        let anywhere = self.modules.iter().rev().find_map(|module| module.find(name));
        anywhere.or_else(|| {
            let (module, name) = name.split_once(':')?;
            self.modules.iter().find(|candidate| candidate.name == module)?.find(name)
        })
    }

    /// Names that begin with `start`, `most` at most: what may be meant by a name that there is
    /// not, for compilers put functions into others and add to names.
    pub fn names_from(&self, start: &str, most: usize) -> Vec<&str> {
        self.modules.iter().rev().flat_map(|module| module.names_from(start)).take(most).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, rows: &[(u64, u64, char, &str)]) -> Module {
        let mut builder = Builder::new(name);
        for &(address, size, letter, name) in rows {
            builder.push(address, size, letter, name).expect("there is room");
        }
        builder.finish()
    }

    const KERNEL: &[(u64, u64, char, &str)] = &[
        (0xffff_ffff_8100_0000, 0, 'T', "_text"),
        (0xffff_ffff_8100_0000, 0, 'T', "startup_64"),
        (0xffff_ffff_8100_0100, 0, 't', "local"),
        (0xffff_ffff_8100_0200, 0x40, 'T', "sized"),
        (0xffff_ffff_8100_0210, 0x08, 't', "inside"),
        (0xffff_ffff_8200_0000, 0, 'D', "data"),
        (0x1000, 0, 'D', "per_cpu"),
        (0x10, 0, 'A', "absolute"),
    ];

    #[test]
    fn addresses_get_the_name_that_says_most() {
        let module = module("vmlinux", KERNEL);
        #[rustfmt::skip]
        let rows = [
            (0xffff_ffff_80ff_ffff, None),
            (0xffff_ffff_8100_0000, Some("startup_64")),
            (0xffff_ffff_8100_0004, Some("startup_64+0x4")),
            (0xffff_ffff_8100_0100, Some("local")),
            (0xffff_ffff_8100_020f, Some("sized+0xf")),
            (0xffff_ffff_8100_0210, Some("inside")),
            (0xffff_ffff_8100_0218, Some("sized+0x18")),
            // The symbol without a size goes on behind those that have ended.
            (0xffff_ffff_8100_0240, Some("local+0x140")),
            (0xffff_ffff_8200_0fff, Some("data+0xfff")),
            (0xffff_ffff_8200_1000, None),
            (0x1000, None),
            (0x10, None),
        ];
        for (address, expected) in rows {
            let found = module.at(address).map(|place| place.to_string());
            assert_eq!(found.as_deref(), expected, "{address:#x}");
        }
    }

    #[test]
    fn names_give_addresses_and_move_with_the_module() {
        let mut module = module("vmlinux", KERNEL);
        module.set_slide(0x1000_0000);
        let address = |name| module.find(name).map(|symbol| symbol.address);
        assert_eq!(address("local"), Some(0xffff_ffff_9100_0100));
        assert_eq!(address("absolute"), Some(0x10));
        assert_eq!(address("loca"), None);
        assert_eq!(address("locals"), None);
        let place = module.at(0xffff_ffff_9100_0101).expect("it is in local");
        assert_eq!((place.symbol.name, place.offset), ("local", 1));
    }

    #[test]
    fn the_last_module_is_asked_first_and_a_prefix_chooses() {
        let mut symbols = Symbols::default();
        symbols.add(module("a", &[(0x1000, 0x10, 'T', "main")]));
        symbols.add(module("b", &[(0x2000, 0x10, 'T', "main")]));
        let address = |name| symbols.find(name).map(|symbol| symbol.address);
        assert_eq!(address("main"), Some(0x2000));
        assert_eq!(address("a:main"), Some(0x1000));
        assert_eq!(address("c:main"), None);
        assert_eq!(symbols.at(0x1008).map(|place| place.symbol.module), Some("a"));
    }

    #[test]
    fn names_are_found_by_how_they_begin() {
        let mut symbols = Symbols::default();
        symbols.add(module("a", &[(0x1000, 0, 'T', "send"), (0x2000, 0, 't', "send.part.0")]));
        symbols.add(module("b", &[(0x3000, 0, 'T', "sender"), (0x4000, 0, 'T', "seem")]));
        for (start, most, expected) in [
            ("send", 9, &["sender", "send", "send.part.0"][..]),
            ("send", 2, &["sender", "send"]),
            ("send.", 9, &["send.part.0"]),
            ("sendx", 9, &[]),
        ] {
            assert_eq!(symbols.names_from(start, most), expected, "{start}");
        }
    }

    #[test]
    fn a_module_is_written_as_it_is_read() {
        let mut text = Vec::new();
        module("vmlinux", KERNEL).write_system_map(&mut text).expect("a Vec takes all");
        let again = crate::system_map::read("vmlinux", &mut &text[..]).expect("it is one");
        let names = |module: &Module| -> Vec<_> {
            module.symbols().map(|symbol| (symbol.address, symbol.name.to_owned())).collect()
        };
        assert_eq!(names(&again).len(), KERNEL.len());
        assert_eq!(again.find("local").map(|symbol| symbol.address), Some(0xffff_ffff_8100_0100));
    }

    #[test]
    fn names_are_text_of_one_line() {
        let rows =
            [(0x1000, 0, 'T', "<T as U>::f"), (0x2000, 0, 'T', "x\n0 T y"), (1, 0, '\n', "a")];
        let module = module("a", &[rows[0], rows[1], rows[2], (0x3000, 0, 'T', "\x1b[2J")]);
        let mut text = Vec::new();
        module.write_system_map(&mut text).expect("a Vec takes all");
        assert_eq!(String::from_utf8_lossy(&text), "0000000000001000 T <T as U>::f\n");
        let again = crate::system_map::read("a", &mut &text[..]).expect("it is one");
        assert_eq!(again.find("<T as U>::f").map(|symbol| symbol.address), Some(0x1000));
    }
}
