//! Random saved states for every chip: `cargo fuzz run --features libfuzzer restore`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::restore(input));
