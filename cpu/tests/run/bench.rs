//! What the tests of the loop share: handlers that leave a mark, and a look at the frame.

use cpu::state::gpr;
use cpu::testing::{Bench, CODE, IDT, selector};

/// Where the handler of vector `v` is: `HANDLERS + 16 * v`.
pub const HANDLERS: u64 = 0x18_0000;

/// Installs a handler that puts `vector` into R15B and halts.
pub fn install_handler(bench: &Bench, vector: u64) {
    let at = HANDLERS + 16 * vector;
    // mov r15b, vector; hlt
    bench.poke(at, &[0x41, 0xb7, vector as u8, 0xf4]);
    let low = at & 0xffff | u64::from(selector::CODE64) << 16 | 0x8e << 40 | (at >> 16) << 48;
    bench.poke(IDT + 16 * vector, &low.to_le_bytes());
    bench.poke(IDT + 16 * vector + 8, &(at >> 32).to_le_bytes());
}

/// A 64-bit bench with handlers for #DB, NMI and vectors 0x20 and 0x21, and `code` at RIP.
pub fn bench(code: &[u8]) -> Bench {
    let mut bench = Bench::long64();
    for vector in [1, 2, 6, 0x20, 0x21] {
        install_handler(&bench, vector);
    }
    bench.put_code_at(CODE, code);
    bench
}

/// The vector whose handler ran last; 0 for none.
pub fn vector(bench: &Bench) -> u64 {
    bench.cpu.state.gpr[15] & 0xff
}

/// RIP and RFLAGS of the interrupt frame at the stack pointer.
pub fn frame(bench: &Bench) -> (u64, u64) {
    let at = bench.cpu.state.gpr[gpr::RSP];
    let word = |n: u64| u64::from_le_bytes(bench.peek(at + 8 * n));
    (word(0), word(2))
}
