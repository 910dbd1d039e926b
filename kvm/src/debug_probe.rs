//! Whether debug registers stop guests on this host. KVM takes KVM_SET_GUEST_DEBUG everywhere, but
//! one without hardware under it, which emulates a processor, may stop at code alone or at nothing:
//! the guest runs past its breakpoints. A debugger that waits for ever is worse than one that is
//! told.

use std::sync::OnceLock;

use kvm_bindings::KVM_EXIT_DEBUG;

use crate::KvmError;
use crate::debugging::{EXECUTE, Placed, Slot, WRITE};
use crate::small_guest::{CODE, SmallGuest};
use crate::vm::open;

/// What debug registers stop at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// Instructions.
    pub stop_at_code: bool,
    /// Writes and accesses of data.
    pub stop_at_data: bool,
}

const DATA: u64 = 0x2000;
/// Of real mode: `NOP; MOV [2000h], AL; NOP; OUT 80h, AL; HLT`.
const PROGRAM: [u8; 8] = [0x90, 0xa2, 0x00, 0x20, 0x90, 0xe6, 0x80, 0xf4];
/// Before the MOV, and behind its write of a byte.
const AT_CODE: Slot = Slot { address: CODE + 1, kind: EXECUTE, length: 0, watchpoint: None };
const AT_WRITE: Slot = Slot { address: DATA, kind: WRITE, length: 0, watchpoint: None };
/// Where the guest stops for them.
const STORE: u64 = CODE + 1;
const BEHIND_STORE: u64 = CODE + 4;

/// What they stop at on this host, at nothing where there is no KVM; asked once.
pub fn debug_registers() -> DebugRegisters {
    static FOUND: OnceLock<DebugRegisters> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let stops = |slot, rip| stops(slot, rip).unwrap_or_default();
        DebugRegisters {
            stop_at_code: stops(AT_CODE, STORE),
            stop_at_data: stops(AT_WRITE, BEHIND_STORE),
        }
    })
}

/// True if a guest stops for `slot`, and at `rip` as it should.
fn stops(slot: Slot, rip: u64) -> Result<bool, KvmError> {
    let mut guest = SmallGuest::new(&open()?, &[(CODE, &PROGRAM)], |_| Ok(()))?;
    Placed::new(&[slot], [0; 8]).put(&guest.fd)?;
    let reason = guest.run()?;
    let found = guest.fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?.rip;
    Ok(reason == KVM_EXIT_DEBUG && found == rip)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_question_is_answered_on_every_host() {
        let found = debug_registers();
        assert_eq!(found, debug_registers());
        let _ = writeln!(std::io::stderr(), "\ndebug registers on this host: {found:?}");
    }

    /// The same instructions on the interpreter, which stops at both.
    #[test]
    fn the_guest_does_what_is_asked_about() {
        use cpu::engine::{Vcpu, VmExit};
        use cpu::testing::Bench;
        for (slot, rip) in [(AT_CODE, STORE), (AT_WRITE, BEHIND_STORE)] {
            let mut bench = Bench::real16();
            bench.put_code_at(CODE, &PROGRAM);
            bench.cpu.state.rip = CODE;
            bench.cpu.state.dr[0] = slot.address;
            bench.cpu.state.dr[7] = Placed::new(&[slot], [0; 8]).dr7();
            bench.control_changed();
            // #DB goes through vector 1 of the low table, which is zeros: to address 0.
            let reached = (0..8).find_map(|_| {
                assert_ne!(bench.cpu.run(1), VmExit::Failed);
                let state = &bench.cpu.state;
                let frame = u64::from(u16::from_le_bytes(bench.peek(state.gpr[4])));
                (state.rip < CODE).then_some(frame)
            });
            assert_eq!(reached, Some(rip));
        }
    }
}
