//! Random bytes as kernels: `cargo fuzz run --features libfuzzer loaders`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::loaders(input));
