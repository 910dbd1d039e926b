//! A debugger's breakpoints and watchpoints by the processor's debug registers, of which there are
//! four, beside the guest's own: the debugger's are in registers that the guest has not enabled,
//! and a hit is told to whose it is. If the guest enables so many that they do not all fit, its own
//! wait until the debugger's go.
//!
//! Known departure: KVM tells nobody that a guest writes a debug register while a debugger has some
//! (`dr_interception`). It is noticed at the next exit, and takes effect then.
//!
//! Single steps, also those off a breakpoint, are the interpreter's and not KVM's
//! (KVM_GUESTDBG_SINGLESTEP): that sets TF in the guest's flags, where PUSHF and SYSCALL show it,
//! and steps into the handlers of interrupts, since KVM_GUESTDBG_BLOCKIRQ is not everywhere.
//! Breakpoints are no INT3s (KVM_GUESTDBG_USE_SW_BP): the guest would read the patched bytes.

use cpu::Cpu;
use cpu::debug::{DR6_BD, DR6_BS, DR6_BT};
use cpu::debugger::{DebugStop, Debugger, WatchHit, WatchKind, Watchpoint};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug};
use kvm_ioctls::VcpuFd;

use crate::KvmError;
use crate::debug_probe::debug_registers;

/// Debug registers that hold an address.
const SLOTS: usize = 4;
/// DR7: what always reads as one, and exact breakpoints.
const DR7_BASE: u64 = 1 << 10 | 1 << 9;
/// DR7: the local and the global enable of register 0, and R/W and LEN of register 0.
const ENABLES: u64 = 0b11;
const FIELDS: u64 = 0xf << 16;
const TOO_MANY: &str = "KVM has four debug registers, and these breakpoints and watchpoints take \
    more; take --accel jit, which has no limit";
const TAKEN: &str = "of KVM's four debug registers the guest uses some itself, and these \
    breakpoints and watchpoints take more than are left; take --accel jit, which has no limit";
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

/// Whether KVM can stop the guest wherever the debugger of `cpu` wants; why not.
pub fn check_debug_points(cpu: &Cpu) -> Result<(), &'static str> {
    let slots = slots(cpu.debugger())?;
    if slots.is_empty() {
        return Ok(());
    }
    let found = debug_registers();
    let stops = |slot: &Slot| match slot.watchpoint {
        Some(_) => found.stop_at_data,
        None => found.stop_at_code,
    };
    if !slots.iter().all(stops) {
        return Err(NO_HARDWARE);
    }
    if Placed::new(&slots, cpu.state.dr).has_displaced { Err(TAKEN) } else { Ok(()) }
}

/// The debug registers as the processor has them while a debugger has some.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placed {
    /// The debugger's, by register.
    slots: [Option<Slot>; SLOTS],
    /// The guest's DR0 to DR7.
    guests: [u64; 8],
    /// Some that the guest has enabled are the debugger's all the same.
    has_displaced: bool,
}

impl Placed {
    /// Room for `slots` beside what is enabled in the guest's registers, if there is enough.
    pub(crate) fn new(slots: &[Slot], guests: [u64; 8]) -> Self {
        let is_enabled = |number: &usize| guests[7] >> (2 * number) & ENABLES != 0;
        let (taken, free): (Vec<usize>, Vec<usize>) = (0..SLOTS).partition(is_enabled);
        let mut placed =
            Self { slots: [None; SLOTS], guests, has_displaced: slots.len() > free.len() };
        for (slot, number) in slots.iter().zip(free.into_iter().chain(taken)) {
            placed.slots[number] = Some(*slot);
        }
        placed
    }

    /// What the processor is to have in register `number`.
    fn address(&self, number: usize) -> u64 {
        self.slots[number].map_or(self.guests[number], |slot| slot.address)
    }

    /// DR7: the guest's, but for the debugger's registers.
    pub(crate) fn dr7(&self) -> u64 {
        let slots =
            (0..).zip(&self.slots).filter_map(|(number, slot)| Some((number, slot.as_ref()?)));
        slots.fold(self.guests[7] | DR7_BASE, |dr7, (number, slot)| {
            let kept = dr7 & !(ENABLES << (2 * number) | FIELDS << (4 * number));
            kept | 2 << (2 * number) | (slot.kind | slot.length << 2) << (16 + 4 * number)
        })
    }

    /// The bits of `dr6` that tell of the debugger's registers.
    pub(crate) fn debuggers_hits(&self, dr6: u64) -> u64 {
        dr6 & self.bits(|number| self.slots[number].is_some())
    }

    /// The bits of `dr6` that tell of what is the guest's. A breakpoint before an instruction comes
    /// again as long as that is not executed: it waits if the debugger stops there too.
    pub(crate) fn guests_hits(&self, dr6: u64) -> u64 {
        let dr7 = self.guests[7];
        let is_own = |n: usize| self.slots[n].is_none() && dr7 >> (2 * n) & ENABLES != 0;
        let is_fault = |n: usize| dr7 >> (16 + 4 * n) & 3 == EXECUTE;
        let is_debuggers = |n: usize| self.slots[n].is_some_and(|slot| slot.kind == EXECUTE);
        let traps = DR6_BS | DR6_BT | self.bits(|n| is_own(n) && !is_fault(n));
        let faults = DR6_BD | self.bits(|n| is_own(n) && is_fault(n));
        let is_at_breakpoint = dr6 & self.bits(is_debuggers) != 0;
        dr6 & if is_at_breakpoint { traps } else { traps | faults }
    }

    fn bits(&self, is_meant: impl Fn(usize) -> bool) -> u64 {
        (0..SLOTS).filter(|&number| is_meant(number)).fold(0, |bits, number| bits | 1 << number)
    }

    /// Has KVM stop the guest accordingly.
    pub(crate) fn put(&self, fd: &VcpuFd) -> Result<(), KvmError> {
        let mut wanted = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP,
            ..Default::default()
        };
        for number in 0..SLOTS {
            wanted.arch.debugreg[number] = self.address(number);
        }
        wanted.arch.debugreg[7] = self.dr7();
        set(fd, &wanted)
    }
}

fn set(fd: &VcpuFd, wanted: &kvm_guest_debug) -> Result<(), KvmError> {
    fd.set_guest_debug(wanted).map_err(KvmError::of("KVM_SET_GUEST_DEBUG"))
}

/// Tells KVM what the debugger of `cpu` wants; `placed` is what it was told before.
pub(crate) fn put(fd: &VcpuFd, cpu: &Cpu, placed: &mut Option<Placed>) -> Result<(), KvmError> {
    // What does not fit was refused when it was set.
    let slots = slots(cpu.debugger()).unwrap_or_default();
    if !slots.is_empty() {
        return replace(fd, cpu, placed, Placed::new(&slots, cpu.state.dr));
    }
    match placed.take() {
        Some(_) => set(fd, &kvm_guest_debug::default()),
        None => Ok(()),
    }
}

/// Looks whether the guest, whose state KVM has, has changed its debug registers, if the debugger
/// has some.
pub(crate) fn follow(fd: &VcpuFd, cpu: &Cpu, placed: &mut Option<Placed>) -> Result<(), KvmError> {
    let Some(before) = placed else { return Ok(()) };
    let found = fd.get_debug_regs().map_err(KvmError::of("KVM_GET_DEBUGREGS"))?;
    let [db0, db1, db2, db3] = found.db;
    let guests = [db0, db1, db2, db3, 0, 0, found.dr6, found.dr7];
    // DR6 is the guest's alone.
    if guests[..4] == before.guests[..4] && guests[7] == before.guests[7] {
        return Ok(());
    }
    let slots: Vec<Slot> = before.slots.iter().flatten().copied().collect();
    replace(fd, cpu, placed, Placed::new(&slots, guests))
}

fn replace(
    fd: &VcpuFd,
    cpu: &Cpu,
    placed: &mut Option<Placed>,
    wanted: Placed,
) -> Result<(), KvmError> {
    if wanted.has_displaced && placed.as_ref().is_none_or(|placed| !placed.has_displaced) {
        log::warn!(
            target: "kvm::exit",
            "CPU {}: the guest's own breakpoints wait, for a debugger has their registers",
            cpu.env.index
        );
    }
    wanted.put(fd)?;
    *placed = Some(wanted);
    Ok(())
}

/// Notes the debugger's watchpoint that stopped the guest, by DR6. Its breakpoint is found at the
/// next boundary, since RIP is at it.
pub(crate) fn note(cpu: &mut Cpu, placed: &Placed, dr6: u64) {
    let met = (0..).zip(&placed.slots).filter(|(number, _)| dr6 >> number & 1 != 0);
    let mut watched =
        met.filter_map(|(_, slot)| slot.as_ref().and_then(|slot| Some((slot, slot.watchpoint?))));
    if let Some((slot, watchpoint)) = watched.next() {
        let hit = WatchHit { watchpoint, address: slot.address, old: None };
        cpu.note_debug_stop(DebugStop::Watchpoint(hit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(start: u64) -> Slot {
        let watchpoint = Watchpoint { start, length: 8, kind: WatchKind::Write };
        Slot { address: start, kind: WRITE, length: 2, watchpoint: Some(watchpoint) }
    }

    fn execute(address: u64) -> Slot {
        Slot { address, kind: EXECUTE, length: 0, watchpoint: None }
    }

    /// The guest's registers, of which those of `enables` in DR7 are on, and watch writes of bytes.
    fn guests(enables: u64) -> [u64; 8] {
        [0x10, 0x11, 0x12, 0x13, 0, 0, 0, 0x1111_0400 | enables]
    }

    #[test]
    fn dr7_has_a_field_for_each_slot() {
        let placed = Placed::new(&[execute(0xfff0), watch(0x1000)], [0; 8]);
        assert_eq!(placed.dr7(), DR7_BASE | 0b1010 | 0b1001 << 20);
        assert!(!placed.has_displaced);
    }

    #[test]
    fn what_the_guest_has_enabled_stays() {
        // Its registers 0 and 2; those of the debugger are 1 and 3.
        let placed = Placed::new(&[execute(0xfff0), watch(0x1000)], guests(0b01_0010));
        assert_eq!([0, 1, 2, 3].map(|n| placed.address(n)), [0x10, 0xfff0, 0x12, 0x1000]);
        assert_eq!(placed.dr7(), DR7_BASE | 0b1001_1010 | 0x9101_0000);
        assert!(!placed.has_displaced);
        assert_eq!(placed.debuggers_hits(0xf), 0b1010);
        assert_eq!(placed.guests_hits(DR6_BS | DR6_BD | 0b1101), DR6_BS | DR6_BD | 0b0101);
    }

    #[test]
    fn where_both_stop_before_an_instruction_the_guest_does_when_it_is_executed() {
        let mut guests = guests(0b0010);
        guests[7] &= !(0xf << 16);
        let placed = Placed::new(&[execute(0x10)], guests);
        assert_eq!(placed.guests_hits(0b0001), 0b0001);
        assert_eq!(placed.guests_hits(DR6_BS | 0b0011), DR6_BS);
    }

    #[test]
    fn the_debugger_goes_before_the_guest_where_both_do_not_fit() {
        let slots = [1, 2, 3].map(execute);
        let placed = Placed::new(&slots, guests(0b1010));
        assert!(placed.has_displaced);
        assert_eq!([0, 1, 2, 3].map(|n| placed.address(n)), [3, 0x11, 1, 2]);
        assert_eq!(placed.guests_hits(0xf), 0b0010);
    }
}
