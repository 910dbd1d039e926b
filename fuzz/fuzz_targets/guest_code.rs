//! Random bytes as guest code: `cargo fuzz run --features libfuzzer guest_code`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::guest_code(input));
