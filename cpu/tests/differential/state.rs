//! What goes into one instruction and what comes out: the same for the host and the interpreter.

use std::fmt::Write as _;

use cpu::testing::{CODE, DATA};

use cpu::testing::random::Random;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// The base of GS in 64-bit mode, so that a segment's base is seen to count.
pub const GS_BASE: u64 = 0x18_0000;
/// Code is put here, with room for branches on both sides; every other byte is INT3.
pub const CODE_START: u64 = CODE - 0x1_0000;
pub const CODE_BYTES: u64 = 0x2_0000;
/// A writable page that 16-bit addresses reach.
pub const LOW: u64 = 0xd000;
/// A page that cannot be written.
pub const READ_ONLY: u64 = DATA + 3 * PAGE;

/// The pages that exist for data, with whether they can be written. All others are absent.
pub const PAGES: [(u64, bool); 4] =
    [(DATA, true), (DATA + PAGE, true), (READ_ONLY, false), (LOW, true)];
pub const MEMORY_BYTES: usize = PAGES.len() * PAGE as usize;

/// RFLAGS bits that are compared.
pub const COMPARED_FLAGS: u64 = 0x24_4cd5;

/// A code segment's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Bits64,
    /// Compatibility mode.
    Bits32,
}

impl Mode {
    pub fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
}

/// The contents of [`PAGES`], one behind the other.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory(pub Box<[u8; MEMORY_BYTES]>);

/// True for an address in a page that cannot be written. Such a page's contents are the same in
/// every state: the host writes it once.
pub fn is_read_only(linear: u64) -> bool {
    PAGES.contains(&(linear & !(PAGE - 1), false))
}

impl Memory {
    /// Random bytes, but for what cannot be written.
    pub fn random(random: &mut Random) -> Self {
        let mut memory = Self::zeroed();
        let mut constant = Random::new(0);
        for (page, (linear, _)) in PAGES.iter().enumerate() {
            let random = if is_read_only(*linear) { &mut constant } else { &mut *random };
            for word in memory.page_mut(page).chunks_exact_mut(8) {
                word.copy_from_slice(&random.bits().to_le_bytes());
            }
        }
        memory
    }

    pub fn zeroed() -> Self {
        Self(Box::new([0; MEMORY_BYTES]))
    }

    /// Where `linear` is, if it exists.
    fn index(linear: u64) -> Option<usize> {
        let page = PAGES.iter().position(|(page, _)| linear & !(PAGE - 1) == *page)?;
        Some(page * PAGE as usize + (linear & (PAGE - 1)) as usize)
    }

    /// Writes what of `bytes` falls into pages that can be written.
    pub fn put(&mut self, linear: u64, bytes: &[u8]) {
        for (offset, byte) in (0..).zip(bytes) {
            let address = linear.wrapping_add(offset);
            if let Some(index) = Self::index(address).filter(|_| !is_read_only(address)) {
                self.0[index] = *byte;
            }
        }
    }

    /// Eight bytes; those that do not exist are zero.
    pub fn get(&self, linear: u64) -> u64 {
        let byte = |offset| Self::index(linear.wrapping_add(offset)).map_or(0, |at| self.0[at]);
        u64::from_le_bytes(std::array::from_fn(|offset| byte(offset as u64)))
    }

    /// The bytes of the page number `page` of [`PAGES`].
    pub fn page(&self, page: usize) -> &[u8] {
        &self.0[page * PAGE as usize..][..PAGE as usize]
    }

    pub fn page_mut(&mut self, page: usize) -> &mut [u8] {
        &mut self.0[page * PAGE as usize..][..PAGE as usize]
    }
}

/// Everything before the instruction; `registers.rip` is its address.
#[derive(Clone)]
pub struct Input {
    pub mode: Mode,
    pub code: Vec<u8>,
    pub registers: Registers,
    pub memory: Memory,
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error_code: u16,
    /// CR2, of page faults.
    pub address: u64,
}

/// Everything after it.
#[derive(Clone)]
pub struct Output {
    pub registers: Registers,
    pub fault: Option<Fault>,
    pub memory: Memory,
}

pub const REGISTER_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// What differs between the host's result and the interpreter's, one line a field. Compatibility
/// mode sees eight registers of 32 bits.
pub fn differences(mode: Mode, host: &Output, ours: &Output) -> String {
    let mut text = String::new();
    if host.fault != ours.fault {
        let _ = writeln!(text, "  fault   host {:x?}, ours {:x?}", host.fault, ours.fault);
    }
    let (count, mask) = if mode == Mode::Bits64 { (16, u64::MAX) } else { (8, 0xffff_ffff) };
    let mut field = |name: &str, host: u64, ours: u64, mask: u64| {
        if (host ^ ours) & mask != 0 {
            let (host, ours) = (host & mask, ours & mask);
            let _ = writeln!(text, "  {name:<7} host {host:#x}, ours {ours:#x}");
        }
    };
    for (register, name) in REGISTER_NAMES.iter().enumerate().take(count) {
        field(name, host.registers.gpr[register], ours.registers.gpr[register], mask);
    }
    field("rip", host.registers.rip, ours.registers.rip, mask);
    field("rflags", host.registers.rflags, ours.registers.rflags, COMPARED_FLAGS);
    if host.memory != ours.memory {
        memory_differences(&mut text, &host.memory, &ours.memory);
    }
    text
}

fn memory_differences(text: &mut String, host: &Memory, ours: &Memory) {
    for (page, (linear, _)) in PAGES.iter().enumerate() {
        let bytes = host.page(page).iter().zip(ours.page(page));
        for (offset, (host, ours)) in (0..).zip(bytes).filter(|(_, (a, b))| a != b).take(16) {
            let address: u64 = linear + offset;
            let _ = writeln!(text, "  [{address:#x}] host {host:02x}, ours {ours:02x}");
        }
    }
}
