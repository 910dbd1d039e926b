//! Whether debug registers stop guests on this host. KVM takes KVM_SET_GUEST_DEBUG everywhere, but
//! one without hardware under it, which emulates a processor, may stop at code alone or at nothing:
//! the guest runs past its breakpoints. A debugger that waits for ever is worse than one that is
//! told.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{KVM_EXIT_DEBUG, kvm_regs};
use kvm_ioctls::VcpuFd;
use memory::{GuestPhysical, PhysicalSpace, Ram, RegionKind};

use crate::KvmError;
use crate::debugging::{EXECUTE, Placed, Slot, WRITE};
use crate::run_page::RunPage;
use crate::slots::Slots;
use crate::vm::{create_vcpu, create_vm, open};

/// What debug registers stop at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugRegisters {
    /// Instructions.
    pub stop_at_code: bool,
    /// Writes and accesses of data.
    pub stop_at_data: bool,
}

const RAM_BYTES: u64 = 0x4000;
const CODE: u64 = 0x1000;
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
    let kvm = open()?;
    let ram = Ram::new(RAM_BYTES).map_err(|_| KvmError::Lacks("memory for a guest"))?;
    ram.write_bytes(CODE, &PROGRAM);
    let space = PhysicalSpace::new(Arc::new(ram));
    space
        .map(GuestPhysical(0), RAM_BYTES, RegionKind::Ram(0))
        .map_err(|_| KvmError::Lacks("a place for a guest's memory"))?;
    let vm = create_vm(&kvm)?;
    Slots::default().update(&vm, &space);
    let mut fd = create_vcpu(&vm, 0)?;
    set_up(&fd)?;
    Placed::new(&[slot], [0; 8]).put(&fd)?;
    let page = RunPage::of(&mut fd);
    run(&mut fd)?;
    let found = fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?.rip;
    Ok(page.reason() == KVM_EXIT_DEBUG && found == rip)
}

/// Runs a few instructions of a guest that has no interrupts: it leaves by itself. A signal to this
/// thread is no answer, and answers are kept.
fn run(fd: &mut VcpuFd) -> Result<(), KvmError> {
    loop {
        match fd.run().map(drop) {
            Err(error) if error.errno() == libc::EINTR => {}
            outcome => return outcome.map_err(KvmError::of("KVM_RUN")),
        }
    }
}

fn set_up(fd: &VcpuFd) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))
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
