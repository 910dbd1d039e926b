//! The registers of a CPU's local APIC between the machine's chip and the kernel's.
//!
//! What the kernel has no place for is kept here while it has the rest ([`Kept`]).
//!
//! Known departure: while the kernel has the registers, the 8259A pair's output is an ExtINT or
//! nothing. A pin that rises under another delivery mode of LVT LINT0 (fixed, NMI, SMI, INIT),
//! which the kernel has no call for, is not seen; the entry itself moves as it is.

use std::sync::Arc;
use std::time::Duration;

use cpu::Cpu;
use cpu::platform::LapicImage;
use cpu::state::{Activity, State, rflags};
use kvm_bindings::{kvm_lapic_state, kvm_regs};

use crate::{KvmCpu, KvmError, msrs, registers};

/// Register numbers.
const TPR: usize = 0x08;
pub(crate) const SVR: usize = 0x0f;
const ISR: usize = 0x10;
const IRR: usize = 0x20;
const LVT_TIMER: usize = 0x32;
const LVT_LINT1: usize = 0x36;
const INITIAL_COUNT: usize = 0x38;
const CURRENT_COUNT: usize = 0x39;
/// SVR after reset, and with the APIC enabled.
pub(crate) const SVR_ENABLED: u32 = 0x1ff;
/// LVT: masked, and the delivery mode, which is NMI at 4.
const MASKED: u32 = 1 << 16;
const DELIVERY: u32 = 7 << 8;
const NMI: u32 = 4 << 8;
/// LVT timer: the mode, which is one-shot at 0.
const TIMER_MODE: u32 = 3 << 17;
const TSC_DEADLINE_MODE: u32 = 2 << 17;

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;

fn bytes_of(number: usize) -> std::ops::Range<usize> {
    16 * number..16 * number + 4
}

fn register(page: &kvm_lapic_state, number: usize) -> u32 {
    let bytes = page.regs.get(bytes_of(number)).unwrap_or_default();
    bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte as u8))
}

/// Writes register `number` of `page`.
pub(crate) fn set_register(page: &mut kvm_lapic_state, number: usize, value: u32) {
    let bytes = page.regs.get_mut(bytes_of(number)).unwrap_or_default();
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = from as _;
    }
}

/// True if interrupt `vector` waits.
pub(crate) fn is_requested(page: &kvm_lapic_state, vector: u8) -> bool {
    has_vector(page, IRR, vector)
}

/// True if interrupt `vector` was delivered and has not ended.
pub(crate) fn is_in_service(page: &kvm_lapic_state, vector: u8) -> bool {
    has_vector(page, ISR, vector)
}

/// Bit `vector` of the eight registers from `first` on.
fn has_vector(page: &kvm_lapic_state, first: usize, vector: u8) -> bool {
    register(page, first + usize::from(vector >> 5)) >> (vector & 31) & 1 != 0
}

fn has_deadline_mode(page: &kvm_lapic_state) -> bool {
    register(page, LVT_TIMER) & TIMER_MODE == TSC_DEADLINE_MODE
}

/// True if the timer stands at 0 and no interrupt of it waits: it was delivered once and for all,
/// or the kernel has not yet come to request it.
fn may_have_just_expired(page: &kvm_lapic_state) -> bool {
    let lvt = register(page, LVT_TIMER);
    lvt & MASKED == 0
        && !has_deadline_mode(page)
        && register(page, INITIAL_COUNT) != 0
        && register(page, CURRENT_COUNT) == 0
        && !is_requested(page, lvt as u8)
}

/// The page of `image`, and what of it the kernel cannot hold.
fn page(image: &LapicImage) -> (kvm_lapic_state, Kept) {
    let mut page = kvm_lapic_state::default();
    for (number, &value) in image.registers.iter().enumerate() {
        set_register(&mut page, number, value);
    }
    let mut kept = Kept {
        task_priority: register(&page, TPR),
        initial_count: 0,
        has_deadline_mode: has_deadline_mode(&page),
    };
    let is_one_shot = register(&page, LVT_TIMER) & TIMER_MODE == 0;
    if is_one_shot && register(&page, CURRENT_COUNT) == 0 {
        kept.initial_count = register(&page, INITIAL_COUNT);
        set_register(&mut page, INITIAL_COUNT, 0);
    }
    (page, kept)
}

/// What the kernel cannot hold of the registers that it has, and what it makes of them.
///
/// Bits 3 to 0 of the task priority are lost whenever CR8 is moved: with KVM_SET_SREGS, and on
/// AMD's processors at every exit. The initial count of a timer that has run down for good would
/// start it again. As long as the guest has changed neither, they are what they were; a guest that
/// writes the same priority with these bits zero, or stops a timer that stands, is taken for one
/// that has not.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept {
    task_priority: u32,
    initial_count: u32,
    /// The kernel's timer is in that mode.
    has_deadline_mode: bool,
}

impl Kept {
    fn restore(self, page: &mut kvm_lapic_state) {
        if register(page, TPR) == self.task_priority & 0xf0 {
            set_register(page, TPR, self.task_priority);
        }
        if register(page, INITIAL_COUNT) == 0 {
            set_register(page, INITIAL_COUNT, self.initial_count);
        }
    }
}

impl KvmCpu {
    /// The kernel's local APIC takes over the registers, if the virtual machine has them. Called
    /// with all CPUs stopped, and messages held back.
    pub fn borrow_apic(&mut self) -> Result<(), KvmError> {
        if !self.vm.has_apics() || self.has_apic {
            return Ok(());
        }
        self.cpu.take_posted_signals();
        self.lend_apic()
    }

    /// The machine's local APIC has the registers again. Called as [`KvmCpu::borrow_apic`].
    pub fn return_apic(&mut self) -> Result<(), KvmError> {
        if !self.has_apic {
            return Ok(());
        }
        if self.is_inside {
            self.fetch()?;
        } else if self.cpu.state.activity != Activity::Shutdown {
            self.collect_signals()?;
        }
        self.take_apic_back()
    }

    /// Takes the INITs, start-up IPIs and NMIs that have come from CPUs that stopped later. The
    /// kernel takes no interrupt meanwhile: a debugger may have seen where the CPU stands.
    fn collect_signals(&mut self) -> Result<(), KvmError> {
        let State { rip, rflags: before, .. } = self.cpu.state;
        self.cpu.state.rflags &= !rflags::IF;
        let closed = (rip, self.cpu.state.rflags);
        self.put()?;
        self.fetch()?;
        // Not so behind an INIT.
        if (self.cpu.state.rip, self.cpu.state.rflags) == closed {
            self.cpu.state.rflags = before;
        }
        Ok(())
    }

    /// Does something with the CPU that may be about its local APIC. The state is out.
    pub(crate) fn alone<R>(&mut self, act: impl FnOnce(&mut Cpu) -> R) -> Result<R, KvmError> {
        if !self.has_apic {
            return Ok(act(&mut self.cpu));
        }
        let vm = Arc::clone(&self.vm);
        let lapic = Arc::clone(&self.cpu.env.lapic);
        let _stopped = vm.traffic().stop();
        if let Some(lending) = lapic.lending() {
            lending.hold_messages();
        }
        let outcome = self.take_apic_back().and_then(|()| {
            let result = act(&mut self.cpu);
            self.lend_apic().map(|()| result)
        });
        if let Some(lending) = lapic.lending() {
            lending.release_messages();
        }
        outcome
    }

    fn lend_apic(&mut self) -> Result<(), KvmError> {
        let lapic = Arc::clone(&self.cpu.env.lapic);
        let Some(lending) = lapic.lending() else { return Ok(()) };
        let image = lending.lend();
        self.has_apic = true;
        self.put_tsc()?;
        msrs::write(&self.fd, APIC_BASE, image.base)?;
        let (page, kept) = page(&image);
        self.fd.set_lapic(&page).map_err(KvmError::of("KVM_SET_LAPIC"))?;
        if kept.has_deadline_mode != self.kept.has_deadline_mode {
            // The kernel clears the initial count when it finds the other mode.
            self.fd.set_lapic(&page).map_err(KvmError::of("KVM_SET_LAPIC"))?;
        }
        self.kept = kept;
        if kept.has_deadline_mode {
            msrs::write(&self.fd, TSC_DEADLINE, image.tsc_deadline)?;
        }
        Ok(())
    }

    /// The state is out already.
    fn take_apic_back(&mut self) -> Result<(), KvmError> {
        let lapic = Arc::clone(&self.cpu.env.lapic);
        let Some(lending) = lapic.lending() else { return Ok(()) };
        let mut page = self.apic_page()?;
        if may_have_just_expired(&page) {
            self.let_timer_expire()?;
            page = self.apic_page()?;
        }
        self.kept.restore(&mut page);
        let is_deadline = has_deadline_mode(&page);
        self.kept.has_deadline_mode = is_deadline;
        let image = LapicImage {
            base: self.fd.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?.apic_base,
            registers: std::array::from_fn(|number| register(&page, number)),
            tsc_deadline: if is_deadline { msrs::read(&self.fd, TSC_DEADLINE)? } else { 0 },
        };
        self.has_apic = false;
        lending.take_back(&image);
        Ok(())
    }

    /// Has the kernel request the interrupt of a timer that has run down. It does when a timer of
    /// its own runs, which on a busy host is late, and on the processor that was in the guest last.
    fn let_timer_expire(&mut self) -> Result<(), KvmError> {
        // What the kernel has of the guest is old, and must neither take the interrupt nor sleep:
        // on its way to a guest that runs the timer comes to this processor.
        let closed = kvm_regs { rflags: rflags::FIXED, ..Default::default() };
        self.fd.set_regs(&closed).map_err(KvmError::of("KVM_SET_REGS"))?;
        if self.cpu.state.activity != Activity::WaitForSipi {
            registers::put_activity(&self.fd, Activity::Active)?;
        }
        self.finish()?;
        // A processor's timers run in their order: behind this one the other has.
        std::thread::sleep(Duration::from_nanos(1));
        self.finish()
    }

    fn apic_page(&self) -> Result<kvm_lapic_state, KvmError> {
        self.fd.get_lapic().map_err(KvmError::of("KVM_GET_LAPIC"))
    }

    /// Drops the NMIs that LINT1's entry does not let through.
    pub(crate) fn filter_lint1(&mut self) -> Result<(), KvmError> {
        let events = Arc::clone(&self.cpu.env.events);
        let count = events.take_nmis();
        if count != 0 && register(&self.apic_page()?, LVT_LINT1) & (MASKED | DELIVERY) == NMI {
            (0..count).for_each(|_| events.post_nmi());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(lvt: u32, initial: u32, current: u32) -> LapicImage {
        let mut registers = [0; 64];
        (registers[LVT_TIMER], registers[INITIAL_COUNT], registers[CURRENT_COUNT]) =
            (lvt, initial, current);
        LapicImage { base: 0, registers, tsc_deadline: 0 }
    }

    #[test]
    fn a_count_that_has_run_down_is_none() {
        let initial = |image| {
            let (mut page, kept) = page(&image);
            let there = register(&page, INITIAL_COUNT);
            kept.restore(&mut page);
            (there, register(&page, INITIAL_COUNT))
        };
        assert_eq!(initial(image(0x31, 500, 20)), (500, 500));
        assert_eq!(initial(image(0x31, 500, 0)), (0, 500));
        assert_eq!(initial(image(1 << 17 | 0x31, 500, 0)), (500, 500));
    }

    #[test]
    fn a_task_priority_that_the_guest_changed_is_the_guests() {
        let kept = Kept { task_priority: 0x45, ..Kept::default() };
        for (there, back) in [(0x40, 0x45), (0x45, 0x45), (0x50, 0x50), (0x43, 0x43), (0, 0)] {
            let mut page = kvm_lapic_state::default();
            set_register(&mut page, TPR, there);
            kept.restore(&mut page);
            assert_eq!(register(&page, TPR), back);
        }
    }

    #[test]
    fn an_expired_timer_without_a_request_is_looked_at_twice() {
        let mut page = kvm_lapic_state::default();
        set_register(&mut page, LVT_TIMER, 0x31);
        assert!(!may_have_just_expired(&page));
        set_register(&mut page, INITIAL_COUNT, 7);
        assert!(may_have_just_expired(&page));
        set_register(&mut page, IRR + 1, 1 << 0x11);
        assert!(is_requested(&page, 0x31) && !may_have_just_expired(&page));
        set_register(&mut page, LVT_TIMER, 1 << 17 | 0x32);
        assert!(may_have_just_expired(&page));
        set_register(&mut page, LVT_TIMER, MASKED | 0x32);
        assert!(!may_have_just_expired(&page));
    }
}
