//! Whether debug registers stop guests on this host. KVM takes KVM_SET_GUEST_DEBUG everywhere, but
//! one without hardware under it, which emulates a processor, may stop at code alone or at nothing:
//! the guest runs past its breakpoints. A debugger that waits for ever is worse than one that is
//! told.

use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug, kvm_regs,
};
use kvm_ioctls::VcpuFd;
use memory::{GuestPhysical, PhysicalSpace, Ram, RegionKind};

use crate::KvmError;
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
/// The MOV, and what is behind it.
const STORE: u64 = CODE + 1;
const BEHIND_STORE: u64 = CODE + 4;
/// DR7: exact, breakpoint 0 on code, breakpoint 1 on the write of a byte.
const STOP_AT_CODE: u64 = 1 << 10 | 1 << 9 | 2;
const STOP_AT_WRITE: u64 = 1 << 10 | 1 << 9 | 2 << 2 | 1 << 20;

/// What they stop at on this host, at nothing where there is no KVM; asked once.
pub fn debug_registers() -> DebugRegisters {
    static FOUND: OnceLock<DebugRegisters> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let stops = |dr7| stops(dr7).unwrap_or_default();
        DebugRegisters { stop_at_code: stops(STOP_AT_CODE), stop_at_data: stops(STOP_AT_WRITE) }
    })
}

/// True if a guest stops as `dr7` says, and where it should.
fn stops(dr7: u64) -> Result<bool, KvmError> {
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
    set_up(&fd, dr7)?;
    let page = RunPage::of(&mut fd);
    // A few instructions of a guest that has no interrupts: it leaves by itself.
    fd.run().map(drop).map_err(KvmError::of("KVM_RUN"))?;
    let rip = fd.get_regs().map_err(KvmError::of("KVM_GET_REGS"))?.rip;
    let expected = if dr7 == STOP_AT_CODE { STORE } else { BEHIND_STORE };
    Ok(page.reason() == KVM_EXIT_DEBUG && rip == expected)
}

fn set_up(fd: &VcpuFd, dr7: u64) -> Result<(), KvmError> {
    let mut sregs = fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs).map_err(KvmError::of("KVM_SET_SREGS"))?;
    let regs = kvm_regs { rip: CODE, rflags: 2, ..Default::default() };
    fd.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))?;
    let mut wanted = kvm_guest_debug {
        control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
        ..Default::default()
    };
    wanted.arch.debugreg[..2].copy_from_slice(&[STORE, DATA]);
    wanted.arch.debugreg[7] = dr7;
    fd.set_guest_debug(&wanted).map_err(KvmError::of("KVM_SET_GUEST_DEBUG"))
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
        for (dr7, rip) in [(STOP_AT_CODE, STORE), (STOP_AT_WRITE, BEHIND_STORE)] {
            let mut bench = Bench::real16();
            bench.put_code_at(CODE, &PROGRAM);
            bench.cpu.state.rip = CODE;
            (bench.cpu.state.dr[0], bench.cpu.state.dr[1]) = (STORE, DATA);
            bench.cpu.state.dr[7] = dr7;
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
