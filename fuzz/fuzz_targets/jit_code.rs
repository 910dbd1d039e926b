//! Random bytes as guest code on the translator: `cargo fuzz run --features libfuzzer jit_code`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::jit_code(input));
