//! A short run of the `guest_code` fuzz target, always with the same inputs first.

use cpu::engine::{Vcpu, VmExit};
use cpu::testing::fuzz::generate::guest;
use cpu::testing::fuzz::{guest_code, smoke};
use cpu::testing::{Bench, CODE, IDT};

/// Inputs that are run however slow the host is.
const INPUTS_MIN: u64 = 500;

#[test]
fn random_guests_break_nothing() {
    smoke(INPUTS_MIN, guest, guest_code);
}

#[test]
fn a_guest_of_nothing_but_exceptions_gives_its_thread_back() {
    const UD2: [u8; 2] = [0x0f, 0x0b];
    let mut bench = Bench::protected32();
    // An interrupt gate for #UD, to a handler that raises it again.
    let gate = CODE & 0xffff | 0x08 << 16 | 0x10 << 16 | 0x8e00 << 32 | (CODE >> 16) << 48;
    bench.poke(IDT + 6 * 8, &gate.to_le_bytes());
    bench.put_code_at(CODE, &UD2);
    assert_eq!(bench.cpu.run(10), VmExit::Budget);
    assert_eq!(bench.cpu.retired(), 0);
}
