//! Which exception an instruction raises, and what it leaves of its accesses.

use cpu::engine::Vcpu;
use cpu::testing::{Bench, CODE, DATA};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::Options;

use crate::{HANDLERS, run, translator, with_program};

const RDI: usize = 7;
const PT: u64 = 0x4000;
/// A page that nothing has touched.
const UNTOUCHED: u64 = 0x1f_0000;
const ACCESSED_OR_DIRTY: u8 = 0x60;
const MF: u64 = 16;
const HALT: u64 = 1;

/// Divides 1 by 0 with the exception unmasked, so that it waits, and goes on with `last`.
fn with_pending_exception(last: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    let mut bench = with_program(|a| {
        a.mov(rax, DATA)?;
        a.mov(word_ptr(rax), 0x37b)?;
        a.fldcw(word_ptr(rax))?;
        a.fld1()?;
        a.fldz()?;
        a.fdivp(st1, st0)?;
        last(a)?;
        a.hlt()
    });
    bench.cpu.state.gpr[RDI] = UNTOUCHED;
    bench
}

/// Where `bench` halts on the translator, and whether [`UNTOUCHED`] is so still.
fn outcome(bench: &Bench, options: &Options) -> (u64, bool) {
    let mut jit = translator(bench, options);
    run(&mut jit);
    let [entry] = bench.peek::<1>(PT + 8 * (UNTOUCHED >> 12));
    (jit.state().rip, entry & ACCESSED_OR_DIRTY == 0)
}

#[test]
fn a_pending_x87_exception_comes_before_the_access() {
    type Program = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let programs: [Program; 4] = [
        |a| a.fstp(qword_ptr(rdi)),
        |a| a.fadd(dword_ptr(rdi)),
        |a| a.movntq(qword_ptr(rdi), mm7),
        |a| a.fbstp(tbyte_ptr(rdi)),
    ];
    let one_by_one = Options { block_size: 1, ..Options::default() };
    for (number, program) in programs.into_iter().enumerate() {
        for options in [Options::default(), one_by_one.clone()] {
            let bench = with_pending_exception(program);
            let expected = (HANDLERS + 16 * MF + HALT, true);
            assert_eq!(outcome(&bench, &options), expected, "program {number}");
        }
    }
}

#[test]
fn a_conversion_from_memory_does_not_wait_for_the_x87_unit() {
    let bench = with_pending_exception(|a| a.cvtpi2ps(xmm3, qword_ptr(rdi)));
    let (rip, is_untouched) = outcome(&bench, &Options::default());
    assert!(rip > CODE && rip < CODE + 0x100, "{rip:#x}");
    assert!(!is_untouched);
}
