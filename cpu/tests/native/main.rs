//! SIMD, x87 and state images: the thunks against the bare host, and the tables that no host
//! instruction decides.
#![expect(clippy::unwrap_used, reason = "a failure in here is a failed test")]

mod differential;
mod forms;
mod memory;
mod random;
mod state;
mod units;

use cpu::exception::Exec;
use cpu::testing::{Bench, CODE};
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;

/// True on hosts with the AVX-512 that the tests name registers and forms of; else says so.
fn host_has_avx512() -> bool {
    let has = std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512vl");
    if !has {
        println!("SKIPPED: this host has no AVX-512");
    }
    has
}

/// How many forms a test must meet at least: `count` with AVX-512, a quarter of it without.
fn least(count: usize) -> usize {
    if host_has_avx512() { count } else { count / 4 }
}

/// Executes the one instruction that `build` assembles for code of `bits` bits.
fn run_in(
    bench: &mut Bench,
    bits: u32,
    build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Exec {
    let mut assembler = CodeAssembler::new(bits).unwrap();
    build(&mut assembler).unwrap();
    bench.execute(&assembler.assemble(CODE).unwrap())
}

/// Executes the one 64-bit instruction that `build` assembles.
fn run(bench: &mut Bench, build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Exec {
    run_in(bench, 64, build)
}

/// Bytes of a vector register that the host has: what lies above is nobody's on a host without
/// AVX-512, and thunks leave it alone.
fn vector_bytes() -> usize {
    if std::arch::is_x86_feature_detected!("avx512f") { 64 } else { 32 }
}
