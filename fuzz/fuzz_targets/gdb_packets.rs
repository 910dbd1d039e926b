//! Random bytes of a gdb that lies: `cargo fuzz run --features libfuzzer gdb_packets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| volvelle_fuzz::gdb_packets(input));
