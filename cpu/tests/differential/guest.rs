//! One instruction in the interpreter.

use cpu::testing::{Bench, page};

use crate::state::{
    CODE_BYTES, CODE_START, Fault, GS_BASE, Input, Memory, Mode, Output, PAGE, PAGES, Registers,
};

const INT3: u8 = 0xcc;
const GS: usize = 5;

/// A bench at CPL 3 for each mode, with the pages of [`PAGES`] and code, and no others.
pub struct Guest {
    bits64: Bench,
    bits32: Bench,
}

impl Guest {
    pub fn new() -> Self {
        let mut bits64 = Bench::long64();
        bits64.cpu.state.segments[GS].base = GS_BASE;
        Self { bits64: prepared(bits64), bits32: prepared(Bench::compatibility32()) }
    }

    /// Executes the instruction.
    pub fn run(&mut self, input: &Input) -> Output {
        let bench = match input.mode {
            Mode::Bits64 => &mut self.bits64,
            Mode::Bits32 => &mut self.bits32,
        };
        for (index, (linear, _)) in PAGES.iter().enumerate() {
            bench.poke(*linear, input.memory.page(index));
        }
        let Registers { gpr, rip, rflags } = input.registers.clone();
        bench.put_code_at(rip, &input.code);
        bench.cpu.state.gpr = gpr;
        bench.cpu.state.rflags = rflags;
        let fault = step(bench);
        bench.poke(rip, &[INT3; 16]);
        let mut memory = Memory::zeroed();
        for (index, (linear, _)) in PAGES.iter().enumerate() {
            memory.page_mut(index).copy_from_slice(&bench.peek::<{ PAGE as usize }>(*linear));
        }
        let state = &bench.cpu.state;
        let registers = Registers { gpr: state.gpr, rip: state.rip, rflags: state.rflags };
        Output { registers, fault, memory }
    }
}

/// Steps until the instruction is left: a REP may take several turns.
fn step(bench: &mut Bench) -> Option<Fault> {
    const TURNS: u32 = 100;
    let start = bench.cpu.state.rip;
    for _ in 0..TURNS {
        if let Err(exception) = bench.step() {
            let is_page_fault = exception.vector as u8 == 14;
            return Some(Fault {
                vector: exception.vector as u8,
                error_code: exception.error_code.unwrap_or(0),
                address: if is_page_fault { bench.cpu.state.cr2 } else { 0 },
            });
        }
        if bench.cpu.state.rip != start {
            break;
        }
    }
    None
}

fn prepared(mut bench: Bench) -> Bench {
    bench.set_cpl(3);
    for linear in (0..cpu::testing::RAM_BYTES).step_by(PAGE as usize) {
        let open = page::PRESENT | page::USER;
        let is_code = (CODE_START..CODE_START + CODE_BYTES).contains(&linear);
        let data = PAGES.iter().find(|(page, _)| *page == linear);
        let bits = match data {
            Some((_, true)) => open | page::WRITABLE | page::NX,
            Some((_, false)) => open | page::NX,
            None if is_code => open | page::WRITABLE,
            None => 0,
        };
        bench.protect(linear, bits);
    }
    bench.poke(CODE_START, &vec![INT3; CODE_BYTES as usize]);
    bench
}
