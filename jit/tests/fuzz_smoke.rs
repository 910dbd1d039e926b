//! A short run of the `jit_code` fuzz target, always with the same inputs first.

#[path = "../../fuzz/src/jit_code.rs"]
mod jit_code;

use std::time::{Duration, Instant};

use cpu::testing::fuzz::generate::Random;

/// Inputs that are run however slow the host is, and the time after which no more are.
const INPUTS_MIN: u64 = 300;
const TIME: Duration = Duration::from_secs(10);

#[test]
fn random_guests_break_nothing() {
    let started = Instant::now();
    let mut seed = 0;
    while seed < INPUTS_MIN || started.elapsed() < TIME {
        let input = jit_code::generate(&mut Random(seed));
        let outcome = std::panic::catch_unwind(|| jit_code::run(&input));
        assert!(matches!(outcome, Ok(Ok(()))), "seed {seed}: {outcome:?}\n{input:02x?}");
        seed += 1;
    }
    println!("{seed} inputs");
}
