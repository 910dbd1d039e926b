//! Which exception an instruction raises, and what it leaves of its accesses.

use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA, PT};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::Options;

use crate::{HANDLERS, assemble, compare, run, translator, with_program};

const RCX: usize = 1;
const RDI: usize = 7;
/// A page that nothing has touched.
const UNTOUCHED: u64 = 0x1f_0000;
const ACCESSED_OR_DIRTY: u8 = 0x60;
const MF: u64 = 16;
const XM: u64 = 19;
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

/// Nobody but a handler wants the flags of the addition: they are computed once more for it, since
/// the check of the access has taken EFLAGS.
#[test]
fn the_engines_agree_about_flags_where_a_pending_exception_stops_an_access() {
    let bench = with_pending_exception(|a| {
        a.add(al, 0x9fu32)?;
        a.fadd(dword_ptr(rdi))?;
        a.cmp(eax, 1)
    });
    let options = Options { cross_check: true, ..Options::default() };
    let mut jit = translator(&bench, &options);
    run(&mut jit);
    assert_eq!(jit.state().rip, HANDLERS + 16 * MF + HALT);
    assert_eq!(jit.statistics().mismatches(), 0);
}

/// CVTPS2PI goes to MMX operation before it raises #XM: nothing that the engines differ in.
#[test]
fn the_engines_agree_about_a_conversion_to_mmx_that_raises_an_exception() {
    const PRECISION_MASK: u32 = 1 << 12;
    let mut bench = with_program(|a| {
        a.fld1()?;
        a.mov(eax, 1)?;
        a.cvtps2pi(mm1, xmm2)
    });
    bench.cpu.state.fpu.mxcsr &= !PRECISION_MASK;
    bench.cpu.state.fpu.zmm[2][..4].copy_from_slice(&1.5f32.to_le_bytes());
    let options = Options { cross_check: true, ..Options::default() };
    let mut jit = translator(&bench, &options);
    run(&mut jit);
    assert_eq!(jit.state().rip, HANDLERS + 16 * XM + HALT);
    assert_eq!(jit.statistics().mismatches(), 0);
}

#[test]
fn a_conversion_from_memory_does_not_wait_for_the_x87_unit() {
    let bench = with_pending_exception(|a| a.cvtpi2ps(xmm3, qword_ptr(rdi)));
    let (rip, is_untouched) = outcome(&bench, &Options::default());
    assert!(rip > CODE && rip < CODE + 0x100, "{rip:#x}");
    assert!(!is_untouched);
}

/// Bytes of an operand that go on at offset 0 of a segment whose base is not 0.
#[test]
fn an_access_over_the_end_of_a_4_gib_segment_is_general_protection() {
    for (displacement, is_over) in [(0xffff_fffdu32, true), (0xffff_fffc, false)] {
        let address = displacement.to_le_bytes();
        // mov ecx, fs:[displacement]; mov ecx, fs:[eax]; hlt
        let code: [&[u8]; 4] = [&[0x64, 0x8b, 0x0d], &address, &[0x64, 0x8b, 0x08], &[0xf4]];
        for skipped in [0, 2] {
            let mut bench = Bench::protected32();
            let code = if skipped == 0 { code.concat() } else { code[skipped..].concat() };
            bench.put_code_at(CODE, &code);
            bench.cpu.state.segments[4].base = DATA + 0x123;
            bench.cpu.state.gpr[0] = u64::from(displacement);
            let mut jit = translator(&bench, &Options::default());
            let exit = jit.run(1000);
            assert_eq!(exit == VmExit::Shutdown, is_over, "{displacement:#x}, {exit:?}");
            assert_eq!(exit, bench.cpu.run(1000));
            assert_eq!(jit.state().rip, bench.cpu.state.rip);
        }
    }
}

/// A block of one instruction that ends short of a page that is not there.
#[test]
fn an_instruction_near_the_end_of_a_page_needs_no_second_one() {
    let last = CODE + 0xff8;
    let state = compare(|| {
        let mut bench = with_program(|a| {
            let (mut top, mut done) = (a.create_label(), a.create_label());
            a.mov(ecx, 5)?;
            a.set_label(&mut top)?;
            a.dec(ecx)?;
            a.je(done)?;
            a.jmp(last)?;
            a.set_label(&mut done)?;
            a.hlt()
        });
        bench.poke(last, &assemble(last, |a| a.jmp(CODE + 5)));
        bench.protect(CODE + 0x1000, 0);
        bench
    });
    assert_eq!(state.gpr[RCX], 0);
}

/// VEX.vvvv[3], VEX.B and the top bit of a register in an immediate say nothing outside 64-bit
/// mode: VSQRTSD XMM6, XMM3, XMM6 and VBLENDVPD XMM6, XMM4, XMM3, XMM6.
#[test]
fn bits_of_registers_that_the_mode_lacks_are_ignored() {
    if !std::arch::is_x86_feature_detected!("avx") {
        return;
    }
    let roots = [[0xe1, 0x63], [0xe1, 0x23], [0xc1, 0x63], [0xc1, 0x23]]
        .map(|[b, vvvv]| vec![0xc4, b, vvvv, 0x51, 0xf6, 0xf4]);
    let blends = [0x60, 0xe0].map(|register| vec![0xc4, 0xe3, 0x59, 0x4b, 0xf3, register, 0xf4]);
    for code in roots.into_iter().chain(blends) {
        let mut bench = Bench::protected32();
        bench.put_code_at(CODE, &code);
        bench.cpu.state.fpu.zmm[3][..16].fill(0x51);
        bench.cpu.state.fpu.zmm[6][..16].fill(0xc0);
        let mut jit = translator(&bench, &Options::default());
        assert_eq!(jit.run(1000), bench.cpu.run(1000));
        assert_eq!(jit.state().fpu.zmm[6], bench.cpu.state.fpu.zmm[6], "{code:x?}");
        assert_eq!(jit.state().fpu.zmm[6][8..16], [0x51; 8], "{code:x?}");
    }
}
