//! What a gdb that lies sends, up to where the `gdbstub` crate takes over: the packet layer and the
//! bytecode of conditions.
//!
//! The command is no library, so its two files are compiled here once more; neither knows a CPU.

#[path = "../../src/gdb/agent.rs"]
mod agent;
#[path = "../../src/gdb/guard.rs"]
#[expect(dead_code, reason = "replies are not looked at")]
mod guard;

use agent::{AgentExpression, World};
use cpu::testing::random::Random;
use guard::{Guard, PACKET_BYTES, Verdict};

/// Registers are their numbers, and memory ends.
struct Fake;

impl World for Fake {
    fn register(&mut self, number: u16) -> Option<u64> {
        (number < 200).then_some(number.into())
    }

    fn memory(&mut self, address: u64, bytes: &mut [u8]) -> bool {
        bytes.fill(address as u8);
        address < 1 << 32
    }
}

/// Takes `input` as a client's bytes, and as an expression.
pub fn run(input: &[u8]) -> Result<(), &'static str> {
    let mut guard = Guard::default();
    for &byte in input {
        match guard.take(byte) {
            Verdict::Breakpoint(options) if options.len() > PACKET_BYTES => {
                return Err("a packet grows without bound");
            }
            Verdict::Pass | Verdict::Refuse | Verdict::Breakpoint(_) => {}
        }
    }
    if let Ok(expression) = AgentExpression::check(input, |number| number < 256) {
        // Whatever comes of it comes soon.
        let _ = expression.evaluate(&mut Fake);
    }
    Ok(())
}

/// Bytes that are operators, or the beginning of packets, as often as not.
pub fn generate(random: &mut Random) -> Vec<u8> {
    let heads: [&[u8]; 5] = [b"$Z0,1000,1;X", b"$m0,", b"$Z1,", b"$", b""];
    let mut bytes = random.pick(&heads).to_vec();
    let count = random.below(100);
    bytes.extend((0..count).map(|_| match random.below(4) {
        0 => random.byte(),
        1 => random.pick(b"#$,;X0123456789abcdef"),
        _ => random.byte() % 0x35,
    }));
    bytes.push(0x27);
    bytes
}
