//! The interpreter, by kind of code: integer code, memory, strings, SIMD, page walks, decoding.
//!
//! Each bench is a loop of guest code that runs for ever; a measurement runs a fixed number of
//! guest instructions of it, so criterion's elements per second are guest instructions per second.
#![expect(clippy::unwrap_used, reason = "code that does not assemble measures nothing")]

use std::time::Duration;

use cpu::engine::Vcpu;
use cpu::testing::{Bench, CODE, DATA};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Guest instructions in one measurement.
const INSTRUCTIONS: u64 = 100_000;
/// Bytes that a REP moves at a time.
const STRING_BYTES: u64 = 4096;

/// A bench in 64-bit mode with `body` looped at [`CODE`], RSI and RDI at [`DATA`].
fn looped(body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Bench {
    let mut assembler = CodeAssembler::new(64).unwrap();
    let mut top = assembler.create_label();
    assembler.set_label(&mut top).unwrap();
    body(&mut assembler).unwrap();
    assembler.jmp(top).unwrap();
    let mut bench = Bench::long64();
    bench.put_code_at(CODE, &assembler.assemble(CODE).unwrap());
    let state = &mut bench.cpu.state;
    (state.gpr[6], state.gpr[7], state.gpr[1]) = (DATA, DATA + 0x1000, u64::MAX);
    bench
}

/// Measures `body` in guest instructions a second.
fn rate(
    criterion: &mut Criterion,
    name: &str,
    body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) {
    let mut bench = looped(body);
    let mut group = criterion.benchmark_group("interpreter");
    group.throughput(Throughput::Elements(INSTRUCTIONS));
    group.bench_function(name, |bencher| bencher.iter(|| bench.cpu.run(INSTRUCTIONS)));
    group.finish();
}

fn integer(criterion: &mut Criterion) {
    rate(criterion, "integer", |a| {
        a.add(rax, rcx)?;
        a.mov(rdx, rax)?;
        a.shl(rdx, 7)?;
        a.xor(rax, rdx)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 9)?;
        a.xor(rax, rdx)?;
        a.lea(rbx, rax + rcx * 2 + 5)?;
        a.test(rbx, rbx)?;
        a.cmovs(rbx, rcx)?;
        a.dec(rcx)
    });
    rate(criterion, "multiply_divide", |a| {
        a.mov(rax, rcx)?;
        a.imul_3(rbx, rax, 12345)?;
        a.xor(edx, edx)?;
        a.mov(r8d, 1000)?;
        a.div(r8)?;
        a.dec(rcx)
    });
}

fn memory(criterion: &mut Criterion) {
    rate(criterion, "loads_and_stores", |a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.add(rax, qword_ptr(rsi + 64))?;
        a.mov(qword_ptr(rdi + 8), rax)?;
        a.add(dword_ptr(rdi + 32), 1)?;
        a.movzx(ecx, byte_ptr(rsi + 3))
    });
    rate(criterion, "push_pop_call", |a| {
        let mut over = a.create_label();
        let mut function = a.create_label();
        a.call(function)?;
        a.jmp(over)?;
        a.set_label(&mut function)?;
        a.push(rax)?;
        a.push(rbx)?;
        a.pop(rbx)?;
        a.pop(rax)?;
        a.ret()?;
        a.set_label(&mut over)?;
        a.zero_bytes()
    });
    rate(criterion, "locked", |a| {
        a.lock().add(qword_ptr(rsi), rax)?;
        a.lock().xadd(qword_ptr(rsi), rax)?;
        a.lock().cmpxchg(qword_ptr(rsi + 8), rcx)
    });
}

/// REP MOVSB of a page: bytes a second.
fn strings(criterion: &mut Criterion) {
    let mut bench = looped(|a| {
        a.mov(esi, DATA as u32)?;
        a.mov(edi, DATA as u32 + 0x1000)?;
        a.mov(ecx, STRING_BYTES as u32)?;
        a.rep().movsb()
    });
    let mut group = criterion.benchmark_group("interpreter");
    // Five instructions a round with the jump.
    group.throughput(Throughput::Bytes(STRING_BYTES));
    group.bench_function("rep_movsb", |bencher| bencher.iter(|| bench.cpu.run(5)));
    group.finish();
}

/// What a thunk costs: the host does the arithmetic.
fn native(criterion: &mut Criterion) {
    rate(criterion, "sse_registers", |a| {
        a.paddd(xmm0, xmm1)?;
        a.mulps(xmm2, xmm3)
    });
    rate(criterion, "sse_memory", |a| {
        a.movdqu(xmm0, xmmword_ptr(rsi))?;
        a.movdqu(xmmword_ptr(rdi), xmm0)
    });
    if std::arch::is_x86_feature_detected!("avx2") {
        rate(criterion, "avx_registers", |a| {
            a.vpaddd(ymm0, ymm1, ymm2)?;
            a.vmulpd(ymm3, ymm4, ymm5)
        });
    }
    rate(criterion, "x87", |a| {
        a.fld1()?;
        a.fadd_2(st0, st0)?;
        a.fstp(st0)
    });
}

/// A page walk for every other instruction: the page's translation is dropped each time.
fn walks(criterion: &mut Criterion) {
    rate(criterion, "page_walks", |a| {
        a.invlpg(byte_ptr(rsi))?;
        a.mov(rax, qword_ptr(rsi))
    });
}

/// Code that is written between runs, so that its block is decoded anew each time.
fn decoding(criterion: &mut Criterion) {
    const NOPS: usize = 16;
    let mut bench = looped(|a| (0..NOPS).try_for_each(|_| a.mov(rax, rbx)));
    let mut immediate = 0_u8;
    let mut group = criterion.benchmark_group("interpreter");
    group.throughput(Throughput::Elements(NOPS as u64 + 1));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            immediate ^= 1;
            // ModRM of the first MOV: from RBX, or from RCX.
            bench.poke(CODE + 2, &[0xd8 ^ immediate << 4]);
            bench.cpu.run(NOPS as u64 + 1)
        });
    });
    group.finish();
}

fn short() -> Criterion {
    let times = (Duration::from_millis(500), Duration::from_secs(2));
    Criterion::default().warm_up_time(times.0).measurement_time(times.1).sample_size(20)
}

criterion_group! {
    name = benches;
    config = short();
    targets = integer, memory, strings, native, walks, decoding
}
criterion_main!(benches);
