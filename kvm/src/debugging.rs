//! A debugger's breakpoints and watchpoints by the processor's debug registers, of which there are
//! four. The guest's own are KVM's to keep apart, and wait while these are in use.
//!
//! Single steps, also those off a breakpoint, are the interpreter's and not KVM's
//! (KVM_GUESTDBG_SINGLESTEP): that sets TF in the guest's flags, where PUSHF and SYSCALL show it,
//! and steps into the handlers of interrupts, since KVM_GUESTDBG_BLOCKIRQ is not everywhere.
//! Breakpoints are no INT3s (KVM_GUESTDBG_USE_SW_BP): the guest would read the patched bytes.

use cpu::Cpu;
use cpu::debugger::{DebugStop, Debugger, WatchHit, WatchKind, Watchpoint};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug};
use kvm_ioctls::VcpuFd;

use crate::KvmError;
use crate::debug_probe::debug_registers;

/// Debug registers that hold an address.
const SLOTS: usize = 4;
/// DR7: what always reads as one, and exact breakpoints.
const DR7_BASE: u64 = 1 << 10 | 1 << 9;
const TOO_MANY: &str = "KVM has four debug registers, and these breakpoints and watchpoints take \
    more; take --accel jit, which has no limit";
const READS_ALONE: &str = "no debug register stops at reads alone: watch reads and writes \
    (awatch), or take --accel jit";
const NO_HARDWARE: &str = "this host's KVM runs past breakpoints or watchpoints of this kind, for \
    it has no hardware under it; take --accel jit";
const PHYSICAL: &str = "KVM stops at linear addresses; breakpoints on physical ones want the \
    translator, --accel jit";
const CATCHING: &str = "KVM does not tell of events inside of the guest; catching them wants the \
    translator, --accel jit";

/// One debug register: an address, and R/W and LEN as DR7 has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) address: u64,
    pub(crate) kind: u64,
    pub(crate) length: u64,
    pub(crate) watchpoint: Option<Watchpoint>,
}

/// R/W of DR7.
pub(crate) const EXECUTE: u64 = 0;
pub(crate) const WRITE: u64 = 1;
const ACCESS: u64 = 3;

/// The debug registers for what `debugger` wants, or why they do not do.
pub(crate) fn slots(debugger: &Debugger) -> Result<Vec<Slot>, &'static str> {
    if debugger.breakpoints().has_physical() {
        return Err(PHYSICAL);
    }
    if !debugger.catchpoints().is_empty() {
        return Err(CATCHING);
    }
    let execute = |address: u64| Slot { address, kind: EXECUTE, length: 0, watchpoint: None };
    let mut slots: Vec<Slot> =
        debugger.breakpoints().linear().into_iter().take(SLOTS + 1).map(execute).collect();
    for &watchpoint in debugger.watchpoints() {
        let kind = match watchpoint.kind {
            WatchKind::Write => WRITE,
            WatchKind::Access => ACCESS,
            WatchKind::Read => return Err(READS_ALONE),
        };
        let (mut address, mut left) = (watchpoint.start, watchpoint.length);
        while left != 0 && slots.len() <= SLOTS {
            // A register covers 1, 2, 4 or 8 bytes, and is aligned to them.
            let bytes = [8, 4, 2, 1].into_iter().find(|&b| b <= left && address % b == 0);
            let (bytes, length) = match bytes {
                Some(8) => (8, 2),
                Some(4) => (4, 3),
                Some(2) => (2, 1),
                _ => (1, 0),
            };
            slots.push(Slot { address, kind, length, watchpoint: Some(watchpoint) });
            (address, left) = (address.wrapping_add(bytes), left - bytes);
        }
    }
    if slots.len() > SLOTS { Err(TOO_MANY) } else { Ok(slots) }
}

/// Whether KVM can stop a guest at all that `debugger` wants; why not.
pub fn check_debug_points(debugger: &Debugger) -> Result<(), &'static str> {
    let slots = slots(debugger)?;
    if slots.is_empty() {
        return Ok(());
    }
    let found = debug_registers();
    let stops = |slot: &Slot| match slot.watchpoint {
        Some(_) => found.stop_at_data,
        None => found.stop_at_code,
    };
    if slots.iter().all(stops) { Ok(()) } else { Err(NO_HARDWARE) }
}

/// Tells KVM what the debugger of `cpu` wants; `is_on` is whether it was told anything before.
pub(crate) fn put(fd: &VcpuFd, cpu: &Cpu, is_on: &mut bool) -> Result<(), KvmError> {
    // What does not fit was refused when it was set.
    let slots = slots(cpu.debugger()).unwrap_or_default();
    if slots.is_empty() && !*is_on {
        return Ok(());
    }
    stop_at(fd, &slots)?;
    *is_on = !slots.is_empty();
    Ok(())
}

/// Has KVM stop the guest at `slots` and nowhere else.
pub(crate) fn stop_at(fd: &VcpuFd, slots: &[Slot]) -> Result<(), KvmError> {
    let mut wanted = kvm_guest_debug::default();
    if !slots.is_empty() {
        wanted.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        for (number, slot) in slots.iter().enumerate() {
            wanted.arch.debugreg[number % SLOTS] = slot.address;
        }
        wanted.arch.debugreg[7] = dr7(slots);
    }
    fd.set_guest_debug(&wanted).map_err(KvmError::of("KVM_SET_GUEST_DEBUG"))
}

/// DR7 that has a debugger's exact breakpoints at `slots`.
pub(crate) fn dr7(slots: &[Slot]) -> u64 {
    slots.iter().enumerate().fold(DR7_BASE, |dr7, (number, slot)| {
        let field = (slot.kind | slot.length << 2) << (16 + 4 * number);
        dr7 | 2 << (2 * number) | field
    })
}

/// Notes the watchpoint that stopped the guest, by DR6. A breakpoint is found at the next boundary,
/// since RIP is at it.
pub(crate) fn note(cpu: &mut Cpu, dr6: u64) {
    let slots = slots(cpu.debugger()).unwrap_or_default();
    let met = slots.iter().enumerate().filter(|(number, _)| dr6 >> number & 1 != 0);
    if let Some((slot, watchpoint)) = met.filter_map(|(_, s)| Some((s, s.watchpoint?))).next() {
        let hit = WatchHit { watchpoint, address: slot.address, old: None };
        cpu.note_debug_stop(DebugStop::Watchpoint(hit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dr7_has_a_field_for_each_slot() {
        let watchpoint = Watchpoint { start: 0x1000, length: 8, kind: WatchKind::Write };
        let slots = [
            Slot { address: 0xfff0, kind: 0, length: 0, watchpoint: None },
            Slot { address: 0x1000, kind: 1, length: 2, watchpoint: Some(watchpoint) },
        ];
        assert_eq!(dr7(&slots), DR7_BASE | 0b1010 | 0b1001 << 20);
    }
}
