//! Where programs run: memory, page tables, handlers of exceptions, the same for both engines.
//!
//! Every handler is a HLT of its own, so that where a program ends says what became of it. In the
//! paged 64-bit modes all of memory is seen three times: from 0, from [`HIGH`] and from [`TOP`].

use cpu::state::{Segment, State, attr, cr0, cr4, seg};
use cpu::testing::{Bench, CODE, DATA, GDT, IDT, PD, PDPT, PML4, PT, STACK, page, selector};

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Memory again, at addresses that no 32-bit displacement reaches.
pub const HIGH: u64 = 0xffff_8000_0000_0000;
/// Memory again, where kernels are.
pub const TOP: u64 = 0xffff_ffff_8000_0000;
/// The pages of data: writable A and B, absent, read-only, writable but of the other privilege, a
/// hole in physical memory, A again, code again, writable E, the table, the loops' counter.
pub const A: u64 = DATA;
pub const ABSENT: u64 = DATA + 2 * PAGE;
pub const READ_ONLY: u64 = DATA + 3 * PAGE;
pub const FOREIGN: u64 = DATA + 4 * PAGE;
pub const HOLE: u64 = DATA + 5 * PAGE;
pub const A_AGAIN: u64 = DATA + 6 * PAGE;
pub const CODE_AGAIN: u64 = DATA + 7 * PAGE;
pub const E: u64 = DATA + 8 * PAGE;
pub const TABLE: u64 = DATA + 9 * PAGE;
pub const COUNTER: u64 = DATA + 10 * PAGE;
/// A page that 16-bit addresses reach.
pub const LOW: u64 = 0xd000;
/// The pages below [`STACK`] that exist.
pub const STACK_PAGES: u64 = 3;
/// The handlers of exceptions, 16 bytes each.
pub const HANDLERS: u64 = 0x11_0000;
/// Two pages of stacks for handlers.
const HANDLER_STACKS: u64 = 0x12_0000;
const TSS: u64 = 0x1_2000;
const TOP_PDPT: u64 = 0xc000;
const OPEN: u64 = page::PRESENT | page::WRITABLE | page::USER;
/// A physical address with nothing behind it.
const NOWHERE: u64 = 0xd000_0000;
/// The accessed bit, which the translator may set before it is sure of an access, as processors do.
pub const MAY_BE_EARLY: u8 = 1 << 5;

/// The physical pages that a case sets up, and that are compared behind it.
pub const PAGES: [u64; 19] = [
    CODE,
    CODE + PAGE,
    A,
    A + PAGE,
    READ_ONLY,
    FOREIGN,
    E,
    TABLE,
    COUNTER,
    STACK - PAGE,
    STACK - 2 * PAGE,
    STACK - 3 * PAGE,
    LOW,
    HANDLER_STACKS,
    HANDLER_STACKS + PAGE,
    TSS,
    GDT,
    IDT,
    HANDLERS,
];
/// Those of them whose contents are no case's.
pub const SYSTEM_PAGES: [u64; 4] = [TSS, GDT, IDT, HANDLERS];
/// The page tables of [`PAGES`].
const TABLES: [u64; 2] = [PT + 0x1000 * (CODE >> 21), PT + 0x1000 * (DATA >> 21)];

/// How code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode at CPL 0.
    Kernel64,
    /// 64-bit mode at CPL 3.
    User64,
    /// Compatibility mode at CPL 0.
    Kernel32,
    /// Compatibility mode at CPL 3.
    User32,
    /// Protected mode without paging at CPL 0.
    Flat32,
    /// Protected mode without paging at CPL 3.
    FlatUser32,
}

impl Mode {
    /// The width of code.
    pub fn bits(self) -> u32 {
        if matches!(self, Self::Kernel64 | Self::User64) { 64 } else { 32 }
    }

    /// Code is executed at CPL 3.
    pub fn is_user(self) -> bool {
        matches!(self, Self::User64 | Self::User32 | Self::FlatUser32)
    }

    /// There are page tables.
    pub fn is_paged(self) -> bool {
        !matches!(self, Self::Flat32 | Self::FlatUser32)
    }
}

/// Whose pages are whose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// CR0.WP.
    pub has_wp: bool,
    /// CR4.SMAP; the foreign page is the user's where the program is a supervisor.
    pub has_smap: bool,
    /// Code cannot be written.
    pub is_code_read_only: bool,
    /// Handlers have stacks of their own in 64-bit mode.
    pub has_handler_stacks: bool,
}

/// Memory with a bench around it.
pub struct World {
    /// The bench, whose CPU is the interpreter.
    pub bench: Bench,
    mode: Mode,
    rights: Option<Rights>,
    /// The first page tables as they are before anything is accessed.
    tables: Vec<u8>,
    /// The contents of [`SYSTEM_PAGES`].
    system: [Vec<u8>; 4],
    /// The state that programs' starts are made of.
    pub template: State,
}

impl World {
    /// A world for `mode`.
    pub fn new(mode: Mode) -> Self {
        let bench = match mode {
            Mode::Kernel64 | Mode::User64 => Bench::long64(),
            Mode::Kernel32 | Mode::User32 => Bench::compatibility32(),
            Mode::Flat32 | Mode::FlatUser32 => Bench::protected32(),
        };
        let template = bench.cpu.state.clone();
        let mut world = Self {
            bench,
            template,
            mode,
            rights: None,
            tables: Vec::new(),
            system: std::array::from_fn(|_| Vec::new()),
        };
        world.build();
        world.template = world.bench.cpu.state.clone();
        world
    }

    fn build(&mut self) {
        let open = |address: u64| (address | OPEN).to_le_bytes();
        if self.mode.is_paged() {
            self.bench.poke(PML4 + 8 * 256, &open(PDPT));
            self.bench.poke(PML4 + 8 * 511, &open(TOP_PDPT));
            self.bench.poke(TOP_PDPT + 8 * 510, &open(PD));
            self.bench.poke(TOP_PDPT + 8 * 511, &open(PD));
        } else {
            self.bench.poke(PML4, &vec![0; (LOW - PML4) as usize]);
        }
        self.undo_wild_stores();
        self.system[1] = self.bench.peek::<{ PAGE as usize }>(GDT).to_vec();
        if self.mode.is_user() {
            self.bench.set_cpl(3);
            let code = match self.mode.bits() {
                64 => selector::USER_CODE64,
                _ => selector::USER_CODE32,
            };
            let segments = &mut self.bench.cpu.state.segments;
            for segment in segments.iter_mut() {
                segment.selector = selector::USER_DATA;
            }
            segments[seg::CS].selector = code;
        }
        self.bench.cpu.state.tr =
            Segment { selector: 0x38, attributes: attr::P | 0xb, limit: 0x67, base: TSS };
        if !std::arch::is_x86_feature_detected!("avx512f") {
            self.bench.cpu.state.xcr0 = 7;
        }
        self.bench.control_changed();
    }

    fn gate(&self, vector: u64, rights: Rights) -> [u8; 16] {
        let handler = HANDLERS + 16 * vector;
        let is_open = matches!(vector, 3 | 4 | 0x80);
        let kind = if is_open { 0xee } else { 0x8e };
        let is_long = self.mode.is_paged();
        let code = if is_long { selector::CODE64 } else { selector::CODE32 };
        let stack = u64::from(is_long && rights.has_handler_stacks);
        let low = handler & 0xffff
            | u64::from(code) << 16
            | stack << 32
            | kind << 40
            | (handler >> 16 & 0xffff) << 48;
        (u128::from(handler >> 32) << 64 | u128::from(low)).to_le_bytes()
    }

    fn task_state(&self) -> [u8; 0x68] {
        let mut image = [0; 0x68];
        let mut put = |at: usize, value: u64, bytes: usize| {
            image[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        };
        if self.mode.is_paged() {
            put(4, HANDLER_STACKS + PAGE, 8);
            put(0x24, HANDLER_STACKS + 2 * PAGE, 8);
        } else {
            put(4, HANDLER_STACKS + PAGE, 4);
            put(8, u64::from(selector::DATA), 4);
        }
        image
    }

    /// The entry bits of the page at `linear`.
    fn entry(&self, linear: u64, rights: Rights) -> u64 {
        let is_user = self.mode.is_user();
        let own = if is_user { OPEN } else { OPEN & !page::USER };
        let foreign = OPEN & !own & page::USER | OPEN & !page::USER;
        let is_code = (CODE..CODE + 2 * PAGE).contains(&linear);
        match linear {
            ABSENT | STACK => 0,
            READ_ONLY | TABLE => linear | own & !page::WRITABLE,
            FOREIGN => linear | foreign,
            HOLE => NOWHERE | own,
            A_AGAIN => A | own,
            CODE_AGAIN => CODE | own,
            _ if is_code && rights.is_code_read_only => linear | own & !page::WRITABLE,
            _ if is_code || (DATA..DATA + 11 * PAGE).contains(&linear) || linear == LOW => {
                linear | own
            }
            _ if (STACK - STACK_PAGES * PAGE..STACK).contains(&linear) => linear | own,
            _ if SYSTEM_PAGES.contains(&linear) => linear | page::PRESENT,
            // Handlers' stacks.
            _ if (HANDLER_STACKS..HANDLER_STACKS + 2 * PAGE).contains(&linear) => {
                linear | OPEN & !page::USER
            }
            _ => 0,
        }
    }

    /// Makes gates, task state and page tables for `rights`.
    fn set_rights(&mut self, rights: Rights) {
        if self.rights == Some(rights) {
            return;
        }
        self.rights = Some(rights);
        let slot = if self.mode.is_paged() { 16 } else { 8 };
        let mut gates = vec![0; PAGE as usize];
        for (vector, gate) in (0..256).zip(gates.chunks_exact_mut(slot)) {
            gate.copy_from_slice(&self.gate(vector, rights)[..slot]);
        }
        let mut task_state = vec![0; PAGE as usize];
        task_state[..0x68].copy_from_slice(&self.task_state());
        let handlers = vec![0xf4; PAGE as usize];
        let [_, descriptors, ..] = &mut self.system;
        let descriptors = std::mem::take(descriptors);
        self.system = [task_state, descriptors, gates, handlers];
        self.write_tables(rights);
    }

    /// Writes all entries of the page tables anew: none is accessed or dirty.
    fn write_tables(&mut self, rights: Rights) {
        if !self.mode.is_paged() {
            return;
        }
        let entries: Vec<u8> = (0..cpu::testing::RAM_BYTES >> 12)
            .flat_map(|number| self.entry(number << 12, rights).to_le_bytes())
            .collect();
        self.bench.poke(PT, &entries);
        self.tables = entries[..0x2000].to_vec();
    }

    /// CR0 for `rights`.
    pub fn cr0(&self, rights: Rights) -> u64 {
        let plain = self.template.cr0 & !cr0::WP;
        plain | if rights.has_wp { cr0::WP } else { 0 }
    }

    /// CR4 for `rights`.
    pub fn cr4(&self, rights: Rights) -> u64 {
        let plain = self.template.cr4 & !(cr4::SMAP | cr4::FSGSBASE);
        plain | cr4::FSGSBASE | if rights.has_smap { cr4::SMAP } else { 0 }
    }

    /// Puts `pages`, the contents of [`PAGES`] one behind the other, into memory, and makes no page
    /// accessed or dirty.
    pub fn restore(&mut self, pages: &[u8], rights: Rights) {
        self.set_rights(rights);
        let mut old = [0; PAGE as usize];
        for (page, bytes) in PAGES.iter().zip(pages.chunks_exact(PAGE as usize)) {
            let system = SYSTEM_PAGES.iter().position(|system| system == page);
            let bytes = system.map_or(bytes, |number| &self.system[number]);
            self.bench.cpu.ram().read_bytes(*page, &mut old);
            if old != bytes {
                self.bench.poke(*page, bytes);
            }
        }
        if self.mode.is_paged() {
            self.bench.poke(PT, &self.tables);
        }
    }

    /// Lets the program's loop go round `turns` times again.
    pub fn reset_counter(&self, turns: u8) {
        self.bench.poke(COUNTER, &u32::from(turns).to_le_bytes());
    }

    /// The contents of [`PAGES`] and of their page tables.
    pub fn contents(&self) -> Vec<u8> {
        let count = PAGES.len() + if self.mode.is_paged() { TABLES.len() } else { 0 };
        let mut bytes = vec![0; count * PAGE as usize];
        let pages = PAGES.iter().chain(&TABLES);
        for (page, chunk) in pages.zip(bytes.chunks_exact_mut(PAGE as usize)) {
            self.bench.cpu.ram().read_bytes(*page, chunk);
        }
        bytes
    }

    /// Undoes stores to pages that are no case's. True if there were any.
    pub fn undo_wild_stores(&self) -> bool {
        let ram = self.bench.cpu.ram();
        let dirty = ram.flags().take_dirty(0..ram.size() >> 12);
        let tables = if self.mode.is_paged() { PML4..LOW } else { 0..0 };
        let wild: Vec<u64> = dirty
            .into_iter()
            .map(|number| number << 12)
            .filter(|page| !PAGES.contains(page) && !tables.contains(page))
            .collect();
        for page in &wild {
            self.bench.poke(*page, &[0; PAGE as usize]);
        }
        if !wild.is_empty() {
            ram.flags().take_dirty(0..ram.size() >> 12);
        }
        !wild.is_empty()
    }

    /// The first byte that differs in all of memory, but for page tables.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        let (mut here, mut there) = (vec![0; BLOCK], vec![0; BLOCK]);
        (0xd000..cpu::testing::RAM_BYTES).step_by(BLOCK).find(|&at| {
            self.bench.cpu.ram().read_bytes(at, &mut here);
            other.bench.cpu.ram().read_bytes(at, &mut there);
            here != there
        })
    }
}

/// Bytes that are compared at a time.
const BLOCK: usize = 1 << 16;

/// True if the byte at `offset` in [`World::contents`] is the low one of a page table's entry.
pub fn is_entry(offset: usize) -> bool {
    offset / PAGE as usize >= PAGES.len() && offset.is_multiple_of(8)
}

/// The name of the byte at `offset` in [`World::contents`].
pub fn place_name(offset: usize) -> String {
    let (number, rest) = (offset / PAGE as usize, offset as u64 % PAGE);
    match PAGES.get(number) {
        Some(page) => format!("[{:#x}]", page + rest),
        None => {
            let table = TABLES.get(number - PAGES.len()).copied().unwrap_or(0);
            let linear = ((table - PT + rest) / 8) << 12;
            format!("entry of page {linear:#x} byte {}", rest % 8)
        }
    }
}

/// Offset in [`World::contents`] of the byte at linear address `linear`, if it is in one of
/// [`PAGES`].
pub fn offset_of(linear: u64) -> Option<usize> {
    let physical = physical(linear);
    let number = PAGES.iter().position(|page| *page == physical & !(PAGE - 1))?;
    Some(number * PAGE as usize + (physical & (PAGE - 1)) as usize)
}

/// The physical address of linear address `linear`.
pub fn physical(linear: u64) -> u64 {
    let low = linear & 0xff_ffff;
    match low & !(PAGE - 1) {
        A_AGAIN => low - A_AGAIN + A,
        CODE_AGAIN => low - CODE_AGAIN + CODE,
        _ => low,
    }
}
