//! What is translated for the golden files: a few instructions, and the mode they run in.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// Assembles the instructions of an entry.
pub type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Entries of one kind, in a file of their own.
pub struct Family {
    pub name: &'static str,
    /// The first line of the file.
    pub about: &'static str,
    pub entries: Vec<Entry>,
}

/// Some instructions that become one block.
pub struct Entry {
    pub name: &'static str,
    pub code: Code,
    pub bits: u32,
    pub cpl: u8,
    pub is_counting: bool,
    /// Offset of the first byte from the code's page.
    pub offset: u64,
    /// The block whose accesses are checked one by one is meant.
    pub is_ungrouped: bool,
    /// Turns of a loop in the block; a superblock's if they are more than one.
    pub turns: usize,
    /// Entries and the check of the page are listed too.
    pub shows_entries: bool,
}

/// Where code is put on its page, unless an entry says otherwise.
const OFFSET: u64 = 0x100;

impl Family {
    pub fn new(
        name: &'static str,
        about: &'static str,
        entries: impl IntoIterator<Item = Entry>,
    ) -> Self {
        Self { name, about, entries: entries.into_iter().collect() }
    }
}

/// An entry of 64-bit supervisor code.
pub fn entry(name: &'static str, code: Code) -> Entry {
    Entry {
        name,
        code,
        bits: 64,
        cpl: 0,
        is_counting: false,
        offset: OFFSET,
        is_ungrouped: false,
        turns: 1,
        shows_entries: false,
    }
}

impl Entry {
    pub fn user(self) -> Self {
        Self { cpl: 3, ..self }
    }

    /// Of 32-bit code.
    pub fn narrow(self) -> Self {
        Self { bits: 32, ..self }
    }

    pub fn counting(self) -> Self {
        Self { is_counting: true, ..self }
    }

    pub fn at(self, offset: u64) -> Self {
        Self { offset, ..self }
    }

    pub fn ungrouped(self) -> Self {
        Self { is_ungrouped: true, ..self }
    }

    /// A loop that became hot, with so many of its turns.
    pub fn hot(self, turns: usize) -> Self {
        Self { turns, ..self }
    }

    pub fn with_entries(self) -> Self {
        Self { shows_entries: true, ..self }
    }
}
