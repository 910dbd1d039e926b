//! Small programs run by the translator, checked against the interpreter.
#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use cpu::engine::{Vcpu, VmExit};
use cpu::testing::{Bench, CODE, DATA};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::{JitCpu, Options};

/// Runs `program` (which ends in HLT) on both engines from the same state, and compares.
fn check(program: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut assembler = CodeAssembler::new(64).expect("64-bit");
    program(&mut assembler).expect("a program");
    assembler.hlt().expect("room");
    let code = assembler.assemble(CODE).expect("code");
    compare(Bench::long64(), &code);
}

/// Runs `code` (which ends in HLT) on both engines from the state of `bench`, and compares.
fn compare(mut bench: Bench, code: &[u8]) {
    for number in [0usize, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15] {
        bench.cpu.state.gpr[number] = 0x0101_0101_0101_0101 * (number as u64 + 1);
    }
    bench.put_code_at(CODE, code);
    let state = bench.cpu.state.clone();
    let mut jit = JitCpu::new(bench.cpu.env.clone(), &Options::default()).expect("a translator");
    jit.set_state(state.clone());
    assert!(matches!(jit.run(u64::MAX), VmExit::Halt { .. }));
    let jit_data: [u8; 256] = bench.peek(DATA);
    bench.poke(DATA, &[0; 4096]);
    bench.cpu.set_state(state);
    assert!(matches!(bench.cpu.run(u64::MAX), VmExit::Halt { .. }));
    let data: [u8; 256] = bench.peek(DATA);
    assert_eq!(
        jit.state().gpr.map(|r| format!("{r:#x}")),
        bench.cpu.state.gpr.map(|r| format!("{r:#x}"))
    );
    assert_eq!(jit.state().rflags, bench.cpu.state.rflags);
    assert_eq!(jit.state().rip, bench.cpu.state.rip);
    assert!(jit.state().fpu.zmm == bench.cpu.state.fpu.zmm);
    assert!(jit.state().fpu.x87 == bench.cpu.state.fpu.x87);
    assert_eq!(jit_data, data);
}

#[test]
fn registers() {
    check(|a| {
        a.add(rax, rbx)?;
        a.mov(r13, r14)?;
        a.lea(r15, qword_ptr(r13 + r14 * 4 + 7))?;
        a.xor(r8d, r13d)?;
        a.mov(ah, bl)?;
        a.imul_3(rcx, r15, 77)
    });
}

#[test]
fn memory_and_loops() {
    check(|a| {
        let mut top = a.create_label();
        a.mov(rdi, DATA)?;
        a.mov(rcx, 20u64)?;
        a.xor(eax, eax)?;
        a.set_label(&mut top)?;
        a.mov(qword_ptr(rdi), rcx)?;
        a.add(rax, qword_ptr(rdi))?;
        a.adc(r14, qword_ptr(rdi))?;
        a.push(rax)?;
        a.pop(r15)?;
        a.lea(rdi, qword_ptr(rdi + 8))?;
        a.dec(rcx)?;
        a.jne(top)
    });
}

#[test]
fn calls() {
    check(|a| {
        let mut function = a.create_label();
        let mut end = a.create_label();
        let mut top = a.create_label();
        a.mov(rcx, 10u64)?;
        a.set_label(&mut top)?;
        a.call(function)?;
        a.dec(rcx)?;
        a.jne(top)?;
        a.jmp(end)?;
        a.set_label(&mut function)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.sub(rsp, 32)?;
        a.mov(qword_ptr(rbp - 8), rcx)?;
        a.add(rdx, qword_ptr(rbp - 8))?;
        a.leave()?;
        a.ret()?;
        a.set_label(&mut end)?;
        a.nop()
    });
}

#[test]
fn vectors() {
    check(|a| {
        a.mov(rdi, DATA)?;
        a.cvtsi2sd(xmm0, ecx)?;
        a.sqrtsd(xmm1, xmm0)?;
        a.mulsd(xmm1, xmm0)?;
        a.movsd_2(qword_ptr(rdi), xmm1)?;
        a.fld(qword_ptr(rdi))?;
        a.fld1()?;
        a.faddp(st1, st0)?;
        a.fst(qword_ptr(rdi + 8))?;
        a.vpaddd(ymm3, ymm1, ymmword_ptr(rdi))?;
        a.pushfq()?;
        a.pop(rax)
    });
}

#[test]
fn sources_in_the_context_stay() {
    check(|a| {
        a.mulx(rdi, rcx, r14)?;
        a.mulx(r14d, r13d, r15d)?;
        a.mulx(r13, rax, r13)
    });
}

#[test]
fn an_alias_of_32_bit_mode() {
    // AND AL, 0E8h; CMP byte [DATA], 7; HLT
    let code = [0x82, 0xe0, 0xe8, 0x82, 0x3d, 0, 0, 0x20, 0, 7, 0xf4];
    compare(Bench::protected32(), &code);
}
