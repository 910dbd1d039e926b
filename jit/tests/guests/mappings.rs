//! Page tables that change under translated code: random sequences of changes, each with a flush
//! that suffices for it, and of reads, writes and calls through what is mapped.

use cpu::engine::Vcpu;
use cpu::state::{State, cr0, cr4};
use cpu::testing::random::Random;
use cpu::testing::{Bench, CODE, IDT, STACK, page, selector};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::Options;

use crate::{assemble, bench, run, translator};

/// The window that is mapped anew all the time, and its large page.
const WINDOW: u64 = 0x4000_0000;
const LARGE: u64 = WINDOW + 0x20_0000;
/// Two address spaces: their roots (with PCIDs 1 and 2) and tables.
const ROOTS: [u64; 2] = [0x1000, 0x1_7000];
const PDPTS: [u64; 2] = [0x2000, 0x1_8000];
const PDS: [u64; 2] = [0x1_4000, 0x1_9000];
const TABLES: [u64; 2] = [0x1_5000, 0x1_a000];
/// The table that takes turns with the large page; of both.
const SMALL: u64 = 0x1_6000;
const PD: u64 = 0x3000;
const OPEN: u64 = page::PRESENT | page::WRITABLE;
const GLOBAL: u64 = 1 << 8;
const PAGE_SIZE: u64 = 1 << 7;
const NO_FLUSH: u64 = 1 << 63;
/// What can be mapped: pages with a word and a function each.
const PAGES: u64 = 0x60_0000;
const PAGE_COUNT: u64 = 8;
const LARGE_PAGES: [u64; 2] = [0x60_0000, 0x80_0000];
const SLOTS: u64 = 4;
const HANDLER: u64 = 0x13_0000;
const DESCRIPTOR: u64 = 0x1_b000;

/// What a script remembers while it is made.
struct Script {
    random: Random,
    root: usize,
    entries: [[u64; SLOTS as usize]; 2],
    large: [u64; 2],
}

type Asm<'a> = &'a mut CodeAssembler;

impl Script {
    fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            root: 0,
            entries: [[0; SLOTS as usize]; 2],
            large: [0; 2],
        }
    }

    fn step(&mut self, a: Asm<'_>) -> Result<(), IcedError> {
        match self.random.below(10) {
            0..=1 => self.map_small(a),
            2 => self.map_large(a),
            3 => self.switch(a),
            _ => self.access(a),
        }
    }

    fn map_small(&mut self, a: Asm<'_>) -> Result<(), IcedError> {
        let root = if self.random.chance(70) { self.root } else { 1 - self.root };
        let slot = self.random.below(SLOTS);
        let page = PAGES + 0x1000 * self.random.below(PAGE_COUNT);
        let bits = match self.random.below(8) {
            0 => 0,
            1 => page::PRESENT,
            2 => OPEN | page::NX,
            3 => OPEN | GLOBAL,
            _ => OPEN,
        };
        let entry = if bits == 0 { 0 } else { page | bits };
        let old = std::mem::replace(&mut self.entries[root][slot as usize], entry);
        self.store(a, TABLES[root] + 8 * slot, entry)?;
        let is_global = (old | entry) & GLOBAL != 0;
        self.flush(a, root, WINDOW + 0x1000 * slot, is_global)
    }

    fn map_large(&mut self, a: Asm<'_>) -> Result<(), IcedError> {
        let root = if self.random.chance(70) { self.root } else { 1 - self.root };
        let entry = match self.random.below(5) {
            0 => 0,
            1 | 2 => SMALL | OPEN,
            3 => self.random.pick(&LARGE_PAGES) | OPEN | PAGE_SIZE | GLOBAL,
            _ => self.random.pick(&LARGE_PAGES) | OPEN | PAGE_SIZE,
        };
        let old = std::mem::replace(&mut self.large[root], entry);
        self.store(a, PDS[root] + 8, entry)?;
        // The small table's entries are many translations: their one page would not do.
        let is_many = old & PAGE_SIZE == 0;
        let is_global = (old | entry) & GLOBAL != 0 && entry & PAGE_SIZE | old & PAGE_SIZE != 0;
        if is_many || is_global {
            return self.flush_everything(a);
        }
        let address = LARGE + 0x1000 * self.random.below(512);
        self.flush(a, root, address, false)
    }

    fn store(&mut self, a: Asm<'_>, address: u64, value: u64) -> Result<(), IcedError> {
        a.mov(rdi, address)?;
        a.mov(rsi, value)?;
        a.mov(qword_ptr(rdi), rsi)
    }

    /// A flush that suffices for the page at `address` of address space `root`.
    fn flush(
        &mut self,
        a: Asm<'_>,
        root: usize,
        address: u64,
        is_global: bool,
    ) -> Result<(), IcedError> {
        let is_current = root == self.root;
        match self.random.below(6) {
            0 | 1 if is_current => {
                a.mov(rdi, address)?;
                a.invlpg(byte_ptr(rdi))
            }
            2 if !is_global && is_current => {
                a.mov(rsi, ROOTS[root] | (root as u64 + 1))?;
                a.mov(cr3, rsi)
            }
            3 if !is_global => self.invpcid(a, 0, root as u64 + 1, address),
            4 if !is_global => {
                let kind = self.random.pick(&[1, 3]);
                self.invpcid(a, kind, root as u64 + 1, 0)
            }
            _ => self.flush_everything(a),
        }
    }

    fn flush_everything(&mut self, a: Asm<'_>) -> Result<(), IcedError> {
        if self.random.chance(50) {
            return self.invpcid(a, 2, 0, 0);
        }
        a.mov(rsi, cr4)?;
        a.mov(rdi, rsi)?;
        a.xor(rdi, cr4::PGE as i32)?;
        a.mov(cr4, rdi)?;
        a.mov(cr4, rsi)
    }

    fn invpcid(&mut self, a: Asm<'_>, kind: u64, pcid: u64, address: u64) -> Result<(), IcedError> {
        self.store(a, DESCRIPTOR, pcid)?;
        self.store(a, DESCRIPTOR + 8, address)?;
        a.mov(rsi, kind)?;
        a.mov(rdi, DESCRIPTOR)?;
        a.invpcid(rsi, xmmword_ptr(rdi))
    }

    fn switch(&mut self, a: Asm<'_>) -> Result<(), IcedError> {
        self.root = 1 - self.root;
        let flags = if self.random.chance(70) { NO_FLUSH } else { 0 };
        a.mov(rsi, ROOTS[self.root] | (self.root as u64 + 1) | flags)?;
        a.mov(cr3, rsi)
    }

    /// A read, a write or a call; a fault goes on behind it.
    fn access(&mut self, a: Asm<'_>) -> Result<(), IcedError> {
        let mut behind = a.create_label();
        let address = if self.random.chance(60) {
            WINDOW + 0x1000 * self.random.below(SLOTS)
        } else {
            LARGE + 0x1000 * self.random.below(PAGE_COUNT)
        };
        a.mov(rdi, address)?;
        a.lea(r15, ptr(behind))?;
        a.mov(r14, rsp)?;
        match self.random.below(5) {
            0 => a.add(qword_ptr(rdi + 8 * self.random.below(8) as i32), rbx)?,
            1 | 2 => {
                a.lea(rdi, qword_ptr(rdi + 0x800))?;
                a.call(rdi)?;
            }
            3 => {
                // Two in one page, which may share a check.
                a.add(rax, qword_ptr(rdi))?;
                a.sub(rax, qword_ptr(rdi + 8))?;
            }
            _ => a.add(rax, qword_ptr(rdi + 8 * self.random.below(8) as i32))?,
        }
        a.set_label(&mut behind)?;
        a.rol(rax, 7)
    }
}

/// The page fault's handler: notes what it was, and goes on where R15 and R14 say.
fn handler(a: Asm<'_>) -> Result<(), IcedError> {
    a.pop(r11)?;
    a.rol(r12, 5)?;
    a.xor(r12, r11)?;
    a.mov(r11, cr2)?;
    a.rol(r12, 9)?;
    a.xor(r12, r11)?;
    a.mov(qword_ptr(rsp), r15)?;
    a.mov(qword_ptr(rsp + 24), r14)?;
    a.iretq()
}

fn guest(seed: u64) -> Bench {
    let mut bench = bench();
    for root in 0..2 {
        bench.poke(ROOTS[root], &(PDPTS[root] | OPEN).to_le_bytes());
        bench.poke(PDPTS[root], &(PD | OPEN).to_le_bytes());
        bench.poke(PDPTS[root] + 8, &(PDS[root] | OPEN).to_le_bytes());
        bench.poke(PDS[root], &(TABLES[root] | OPEN).to_le_bytes());
    }
    for number in 0..512u64 {
        let entry = (PAGES + 0x1000 * (PAGE_COUNT - 1 - number % PAGE_COUNT)) | OPEN;
        bench.poke(SMALL + 8 * number, &entry.to_le_bytes());
    }
    for place in LARGE_PAGES {
        for number in 0..PAGE_COUNT {
            let at = place + 0x1000 * number;
            let words: Vec<u8> =
                (0..8).flat_map(|word: u64| (at * 0x10_0001 + word * word).to_le_bytes()).collect();
            bench.poke(at, &words);
            let code = assemble(at + 0x800, |a| {
                a.lea(rax, qword_ptr(rax + rax * 2 + (number as i32 + (place >> 20) as i32)))?;
                a.ret()
            });
            bench.poke(at + 0x800, &code);
        }
    }
    let low =
        HANDLER & 0xffff | u64::from(selector::CODE64) << 16 | 0x8e << 40 | (HANDLER >> 16) << 48;
    bench.poke(IDT + 16 * 14, &low.to_le_bytes());
    bench.poke(HANDLER, &assemble(HANDLER, handler));
    bench.put_code_at(CODE, &program(seed));
    let state = &mut bench.cpu.state;
    state.cr0 |= cr0::WP;
    state.cr3 = ROOTS[0] | 1;
    state.cr4 |= cr4::PCIDE | cr4::PGE;
    state.gpr[3] = 0x1234_5678;
    state.gpr[4] = STACK;
    bench.control_changed();
    bench
}

/// A script in a loop, which begins with nothing mapped.
fn program(seed: u64) -> Vec<u8> {
    assemble(CODE, |a| {
        let mut script = Script::new(seed);
        let mut top = a.create_label();
        a.mov(r13d, 3)?;
        a.set_label(&mut top)?;
        for root in 0..2 {
            for slot in 0..SLOTS {
                script.store(a, TABLES[root] + 8 * slot, 0)?;
            }
            script.store(a, PDS[root] + 8, 0)?;
        }
        a.mov(rsi, ROOTS[0] | 1)?;
        a.mov(cr3, rsi)?;
        script.invpcid(a, 2, 0, 0)?;
        for _ in 0..60 {
            script.step(a)?;
        }
        a.dec(r13d)?;
        a.jne(top)?;
        a.hlt()
    })
}

fn outcome(bench: &Bench, state: &State) -> (Vec<String>, Vec<u8>) {
    let gpr = state.gpr.iter().map(|value| format!("{value:#x}")).collect();
    let mut words = vec![0; 64 * 2 * PAGE_COUNT as usize];
    for (number, chunk) in (0..).zip(words.chunks_exact_mut(64)) {
        let place = LARGE_PAGES[number / PAGE_COUNT as usize];
        let at = place + 0x1000 * (number as u64 % PAGE_COUNT);
        bench.cpu.ram().read_bytes(at, chunk);
    }
    (gpr, words)
}

#[test]
fn mappings_change_under_code() {
    let counting = Options { counting: true, ..Options::default() };
    let one_by_one = Options { block_size: 1, ..Options::default() };
    let all = [Options::default(), counting, one_by_one];
    for seed in 0..100 {
        let mut interpreted = guest(seed);
        let exit = interpreted.cpu.run(100_000);
        assert!(matches!(exit, cpu::engine::VmExit::Halt { .. }), "seed {seed}: {exit:?}");
        let expected = outcome(&interpreted, &interpreted.cpu.state);
        for options in [&all[0], &all[1 + seed as usize % 2]] {
            let bench = guest(seed);
            let mut jit = translator(&bench, options);
            run(&mut jit);
            assert!(outcome(&bench, jit.state()) == expected, "seed {seed}, {options:?}");
        }
    }
}
