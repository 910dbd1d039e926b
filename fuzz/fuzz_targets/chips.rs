//! Random accesses to the whole board: `cargo fuzz run --features libfuzzer chips`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::chips(input));
