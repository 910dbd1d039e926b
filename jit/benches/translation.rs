//! What it takes to translate code, by guest instruction.
//!
//! The guest executes functions one after the other, each once: almost all of the time is that of
//! making blocks, with what comes with one (the page's lookup, the way out of translated code and
//! in). Criterion's elements per second are guest instructions per second.
#![expect(clippy::unwrap_used, reason = "code that does not assemble measures nothing")]

use std::sync::Arc;

use cpu::engine::Vcpu;
use cpu::testing::{Bench, CODE, DATA};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use jit::{JitCpu, Options};

/// Functions that are executed.
const FUNCTIONS: u32 = 200;

/// What compilers make of a small function: a frame, loads and stores, comparisons, a way around.
fn function(a: &mut CodeAssembler, number: u32) -> Result<(), IcedError> {
    let (mut small, mut end) = (a.create_label(), a.create_label());
    a.push(rbp)?;
    a.mov(rbp, rsp)?;
    a.sub(rsp, 0x20)?;
    a.mov(qword_ptr(rbp - 8), rdi)?;
    a.mov(eax, dword_ptr(rdi + 8 * (number % 16)))?;
    a.lea(edx, dword_ptr(rax + 4 * rax + number))?;
    a.test(edx, edx)?;
    a.je(small)?;
    a.movzx(ecx, byte_ptr(rdi + 0x100))?;
    a.add(edx, ecx)?;
    a.mov(dword_ptr(rdi + 0x200), edx)?;
    a.movsd_2(xmm0, qword_ptr(rdi + 0x40))?;
    a.addsd(xmm0, xmm1)?;
    a.movsd_2(qword_ptr(rdi + 0x48), xmm0)?;
    a.jmp(end)?;
    a.set_label(&mut small)?;
    a.xor(eax, eax)?;
    a.set_label(&mut end)?;
    a.mov(rdi, qword_ptr(rbp - 8))?;
    a.cmp(eax, number)?;
    a.setb(al)?;
    a.leave()?;
    a.ret()
}

/// A bench whose program calls all functions and halts.
fn bench() -> Bench {
    let mut a = CodeAssembler::new(64).unwrap();
    let mut labels: Vec<CodeLabel> = (0..FUNCTIONS).map(|_| a.create_label()).collect();
    for label in &labels {
        a.call(*label).unwrap();
    }
    a.hlt().unwrap();
    for (number, label) in (0..).zip(&mut labels) {
        a.set_label(label).unwrap();
        function(&mut a, number).unwrap();
    }
    let mut bench = Bench::long64();
    bench.put_code_at(CODE, &a.assemble(CODE).unwrap());
    bench.poke(DATA, &[1; 0x1000]);
    bench.cpu.state.gpr[7] = DATA;
    bench
}

/// A translator that has translated nothing yet.
fn translator(bench: &Bench) -> JitCpu {
    let mut env = bench.cpu.env.clone();
    env.events = Arc::default();
    let options = Options { cache_bytes: 4 << 20, ..Options::default() };
    let mut jit = JitCpu::new(env, &options).unwrap();
    jit.set_state(bench.cpu.state.clone());
    jit
}

fn translation(criterion: &mut Criterion) {
    let bench = bench();
    let mut once = translator(&bench);
    once.run(u64::MAX);
    println!("{}", once.statistics());
    let mut group = criterion.benchmark_group("translator");
    group.throughput(Throughput::Elements(once.statistics().translated_instructions()));
    group.bench_function("translation", |bencher| {
        bencher.iter_batched_ref(
            || translator(&bench),
            |jit| jit.run(u64::MAX),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, translation);
criterion_main!(benches);
