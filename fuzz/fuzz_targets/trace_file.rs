//! Random bytes as traces: `cargo fuzz run --features libfuzzer trace_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::trace_file(input));
