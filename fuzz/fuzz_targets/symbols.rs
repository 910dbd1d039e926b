//! Random files and kernels with names: `cargo fuzz run --features libfuzzer symbols`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::symbol_sources::run(input));
