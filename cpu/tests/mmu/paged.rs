//! A CPU under page tables that a test builds entry by entry.

use cpu::exception::Exec;
use cpu::state::{cr0, cr4, efer, gpr};
use cpu::testing::{Bench, CODE};

pub const P: u64 = 1;
pub const RW: u64 = 1 << 1;
pub const US: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const XD: u64 = 1 << 63;
/// Present, writable, for everyone.
pub const OPEN: u64 = P | RW | US;

/// Bits of a page fault's error code.
pub mod code {
    pub const P: u16 = 1;
    pub const W: u16 = 1 << 1;
    pub const U: u16 = 1 << 2;
    pub const RSVD: u16 = 1 << 3;
    pub const I: u16 = 1 << 4;
    pub const PK: u16 = 1 << 5;
}

/// Supervisor code, and behind it a page of user code.
const KERNEL_CODE: u64 = CODE;
const USER_CODE: u64 = CODE + 0x1000;
/// Where the tables are.
const TABLES: u64 = 0x80_0000;

/// The four paging modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Legacy,
    Pae,
    Level4,
    Level5,
}

impl Format {
    pub const ALL: [Self; 4] = [Self::Legacy, Self::Pae, Self::Level4, Self::Level5];

    /// The lowest index bit of each level, from the top.
    pub fn shifts(self) -> &'static [u32] {
        match self {
            Self::Legacy => &[22, 12],
            Self::Pae => &[30, 21, 12],
            Self::Level4 => &[39, 30, 21, 12],
            Self::Level5 => &[48, 39, 30, 21, 12],
        }
    }

    /// The levels whose entries hold access rights and lie above `leaf`.
    pub fn uppers(self, leaf: u32) -> impl Iterator<Item = u32> {
        let is_pdpte = move |shift: u32| self == Self::Pae && shift == 30;
        self.shifts().iter().copied().filter(move |&shift| shift > leaf && !is_pdpte(shift))
    }

    /// A linear address that shares no entry but perhaps the topmost with the code.
    pub fn test_address(self) -> u64 {
        match self {
            Self::Legacy | Self::Pae => 0xc060_3000,
            Self::Level4 => 0x7f00_4060_3000,
            Self::Level5 => 0xff_7f00_4060_3000,
        }
    }

    pub fn is_long(self) -> bool {
        matches!(self, Self::Level4 | Self::Level5)
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Fetch,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Fetch];
}

pub struct Paged {
    pub bench: Bench,
    format: Format,
    next: u64,
}

impl Paged {
    /// Paging on in `format` with nothing mapped but the code that makes accesses.
    pub fn new(format: Format) -> Self {
        let bench = if format.is_long() { Bench::long64() } else { Bench::protected32() };
        let mut paged = Self { bench, format, next: TABLES + 0x1000 };
        paged.map(KERNEL_CODE, 12, KERNEL_CODE | P | RW);
        paged.map(USER_CODE, 12, USER_CODE | OPEN);
        // mov al, [rbx]; mov [rbx], al
        for page in [KERNEL_CODE, USER_CODE] {
            paged.bench.poke(page, &[0x8a, 0x03, 0x88, 0x03]);
        }
        let state = &mut paged.bench.cpu.state;
        state.cr3 = TABLES;
        state.cr0 |= cr0::PG;
        state.cr4 |= match format {
            Format::Legacy => cr4::PSE,
            Format::Pae | Format::Level4 => cr4::PAE,
            Format::Level5 => cr4::PAE | cr4::LA57,
        };
        state.msrs.efer |= efer::NXE;
        paged.changed();
        paged
    }

    /// Makes the CPU look at control registers and tables anew.
    pub fn changed(&mut self) {
        if self.format == Format::Pae {
            self.bench.cpu.state.pdpte =
                std::array::from_fn(|n| u64::from_le_bytes(self.bench.peek(TABLES + 8 * n as u64)));
        }
        self.bench.control_changed();
    }

    fn entry_bytes(&self) -> u64 {
        if self.format == Format::Legacy { 4 } else { 8 }
    }

    /// The physical address of the entry for `linear` at level `shift`; tables above are made.
    pub fn entry_address(&mut self, linear: u64, shift: u32) -> u64 {
        let bytes = self.entry_bytes();
        let mut table = TABLES;
        for &level in self.format.shifts() {
            let index = (linear >> level) & (0x1000 / bytes - 1);
            let at = table + index * bytes;
            if level == shift {
                return at;
            }
            if self.read_entry(at) & P == 0 {
                let is_pdpte = self.format == Format::Pae && level == 30;
                let flags = if is_pdpte { P } else { OPEN };
                self.write_entry(at, self.next | flags);
                self.next += 0x1000;
            }
            table = self.read_entry(at) & 0x000f_ffff_ffff_f000;
        }
        panic!("no level {shift} in {:?}", self.format);
    }

    fn read_entry(&self, at: u64) -> u64 {
        match self.entry_bytes() {
            4 => u64::from(u32::from_le_bytes(self.bench.peek(at))),
            _ => u64::from_le_bytes(self.bench.peek(at)),
        }
    }

    fn write_entry(&self, at: u64, value: u64) {
        self.bench.poke(at, &value.to_le_bytes()[..self.entry_bytes() as usize]);
    }

    /// Writes the entry that maps `linear` at level `shift`. Flushes nothing.
    pub fn map(&mut self, linear: u64, shift: u32, entry: u64) {
        let at = self.entry_address(linear, shift);
        self.write_entry(at, entry);
    }

    /// The entry for `linear` at level `shift`.
    pub fn entry(&mut self, linear: u64, shift: u32) -> u64 {
        let at = self.entry_address(linear, shift);
        self.read_entry(at)
    }

    /// Executes the instruction at `code`, which must be in the page of the CPL.
    pub fn execute(&mut self, code: &[u8]) -> Exec {
        let page = if self.bench.cpu.state.cpl == 3 { USER_CODE } else { KERNEL_CODE };
        self.bench.poke(page + 0x100, code);
        self.bench.cpu.state.rip = page + 0x100;
        self.bench.step()
    }

    /// Makes an access of one byte at the current CPL; a fetch executes what is there.
    pub fn access(&mut self, kind: Kind, linear: u64) -> Exec {
        let page = if self.bench.cpu.state.cpl == 3 { USER_CODE } else { KERNEL_CODE };
        let state = &mut self.bench.cpu.state;
        state.gpr[gpr::RBX] = linear;
        state.rip = match kind {
            Kind::Read => page,
            Kind::Write => page + 2,
            Kind::Fetch => linear,
        };
        self.bench.step()
    }

    /// The byte that a read at `linear` gives.
    pub fn read(&mut self, linear: u64) -> u8 {
        self.access(Kind::Read, linear).expect("readable");
        self.bench.cpu.state.gpr[gpr::RAX] as u8
    }
}
