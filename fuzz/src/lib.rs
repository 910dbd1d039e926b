//! The fuzz targets, each a function of bytes that panics on what must not happen.
//!
//! `fuzz_targets/` gives them to libFuzzer, `random.rs` drives them by chance alone, and the
//! crates' own tests run them for a few seconds. What they do is beside what they test:
//! `cpu::testing::fuzz`, [`gdb_packets`](mod@gdb_packets), [`jit_code`](mod@jit_code),
//! `machine::board_fuzz`, `machine::device_fuzz`, `trace::testing`.
#![forbid(unsafe_code)]

pub mod gdb_packets;
pub mod jit_code;
pub mod symbol_sources;

use std::fmt::Debug;

/// Random bytes as guest code in every mode.
pub fn guest_code(input: &[u8]) {
    report(cpu::testing::fuzz::guest_code(input));
}

/// Random bytes as guest code on the translator, in every mode.
pub fn jit_code(input: &[u8]) {
    report(jit_code::run(input));
}

/// Random accesses to every chip of a board.
pub fn chips(input: &[u8]) {
    report(machine::board_fuzz::accesses(input));
}

/// Random bytes as kernel and ROM images.
pub fn loaders(input: &[u8]) {
    report(machine::board_fuzz::kernel_image(input));
}

/// Random saved states for every chip, and accesses to what comes of it.
pub fn restore(input: &[u8]) {
    report(machine::board_fuzz::restored(input));
}

/// Random bytes of a gdb that lies.
pub fn gdb_packets(input: &[u8]) {
    report(gdb_packets::run(input));
}

/// Random bytes as traces. That they are none is no failure.
pub fn trace_file(input: &[u8]) {
    drop(trace::testing::read(input));
}

fn report<E: Debug>(outcome: Result<(), E>) {
    if let Err(failure) = outcome {
        panic!("{failure:?}");
    }
}
