//! A short run of the `jit_code` fuzz target, always with the same inputs first.

#[path = "../../fuzz/src/jit_code.rs"]
mod jit_code;

/// Inputs that are run however slow the host is.
const INPUTS_MIN: u64 = 300;

#[test]
fn random_guests_break_nothing() {
    cpu::testing::fuzz::smoke(INPUTS_MIN, jit_code::generate, jit_code::run);
}
