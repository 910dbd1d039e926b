//! One instruction of each kind on the host's units.

use crate::run;
use cpu::exception::Exception;
use cpu::testing::{Bench, DATA, noted_operand};
use iced_x86::code_asm::*;

#[test]
fn paddd_adds_and_keeps_the_upper_part() {
    let mut bench = Bench::long64();
    bench.cpu.state.fpu.zmm[1] = [3; 64];
    bench.cpu.state.fpu.zmm[2] = [4; 64];
    run(&mut bench, |a| a.paddd(xmm1, xmm2)).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[1][..16], [7; 16]);
    assert_eq!(bench.cpu.state.fpu.zmm[1][16..], [3; 48]);
}

#[test]
fn vpaddd_from_memory_clears_the_upper_part() {
    let mut bench = Bench::long64();
    bench.cpu.state.fpu.zmm[1] = [3; 64];
    bench.cpu.state.fpu.zmm[9] = [9; 64];
    bench.cpu.state.gpr[12] = DATA + 0xff8;
    bench.poke(DATA + 0xff8, &[5; 32]);
    run(&mut bench, |a| a.vpaddd(ymm9, ymm1, ymmword_ptr(r12))).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[9][..32], [8; 32]);
    let above = crate::vector_bytes() - 32;
    assert_eq!(bench.cpu.state.fpu.zmm[9][32..32 + above], [0; 32][..above]);
}

#[test]
fn comisd_sets_flags_and_movd_reaches_renamed_registers() {
    let mut bench = Bench::long64();
    bench.cpu.state.rflags |= 0x8d5;
    bench.cpu.state.fpu.zmm[0][..8].copy_from_slice(&1.0f64.to_le_bytes());
    bench.cpu.state.fpu.zmm[1][..8].copy_from_slice(&2.0f64.to_le_bytes());
    run(&mut bench, |a| a.comisd(xmm0, xmm1)).unwrap();
    assert_eq!(bench.cpu.state.rflags & 0x8d5, 1);
    run(&mut bench, |a| a.movd(esp, xmm1)).unwrap();
    assert_eq!(bench.cpu.state.gpr[4], 0);
    bench.cpu.state.gpr[4] = 0x1234;
    bench.cpu.state.gpr[5] = 0x99;
    run(&mut bench, |a| a.movq(xmm3, rsp)).unwrap();
    assert_eq!(bench.cpu.state.fpu.zmm[3][..8], 0x1234u64.to_le_bytes());
}

#[test]
fn unmasked_division_by_zero_is_an_exception() {
    let mut bench = Bench::long64();
    bench.cpu.state.fpu.zmm[0][..8].copy_from_slice(&1.0f64.to_le_bytes());
    bench.cpu.state.fpu.mxcsr = 0x1f80 & !(1 << 9);
    let before = bench.cpu.state.fpu.clone();
    assert_eq!(run(&mut bench, |a| a.divsd(xmm0, xmm1)), Err(Exception::XM));
    assert_eq!(bench.cpu.state.fpu.zmm, before.zmm);
    assert_eq!(bench.cpu.state.fpu.mxcsr, before.mxcsr | 4);
    bench.cpu.state.fpu.mxcsr = 0x1f80;
    run(&mut bench, |a| a.divsd(xmm0, xmm1)).unwrap();
    assert_eq!(bench.cpu.state.fpu.mxcsr, 0x1f84);
}

#[test]
fn x87_pushes_and_stores() {
    let mut bench = Bench::long64();
    bench.cpu.state.gpr[3] = DATA;
    run(&mut bench, |a| a.fldpi()).unwrap();
    assert_eq!(bench.cpu.state.fpu.fsw >> 11 & 7, 7);
    run(&mut bench, |a| a.fstp(qword_ptr(rbx))).unwrap();
    assert_eq!(f64::from_le_bytes(bench.peek(DATA)), std::f64::consts::PI);
    assert_eq!(bench.cpu.state.fpu.ftw, 0);
    assert_eq!(bench.cpu.state.fpu.fop, 0x51b);
    assert_eq!(bench.cpu.state.fpu.fdp, noted_operand(DATA));
}
