//! KVM's paravirtual interface, in software: what a guest that finds KVM's signature in CPUID may
//! use. Each feature is complete or not offered.
//!
//! [`clock`] is kvmclock, `eoi` the end of interrupt without a register access, `steal` the page
//! that tells a guest when its CPU did not run, and with it the flush of TLBs of CPUs that do not
//! run; `hypercall` is VMCALL and VMMCALL.
//!
//! Source: Linux, Documentation/virt/kvm/x86/{cpuid,msr,hypercalls}.rst.
//!
//! Known departures: only RAM can hold a shared structure; one elsewhere is never written.

pub mod clock;
mod eoi;
mod hypercall;
mod steal;

pub(crate) use clock::{system_time_written, wall_clock_written};
pub(crate) use eoi::write_eoi_enable;
pub(crate) use steal::steal_time_written;

use memory::{GuestPhysical, PageKind, Width};

use crate::Cpu;

/// Bit 0 of an address written to one of the MSRs: the feature is on.
const ENABLED: u64 = 1;

/// What is not in the MSRs.
#[derive(Debug, Default)]
pub(crate) struct Paravirtual {
    /// The guest may end the interrupt in service by clearing its bit in memory.
    eoi_is_armed: bool,
    /// A kick came while the CPU was not halted: the next HLT ends at once.
    is_kicked: bool,
}

impl Paravirtual {
    pub(crate) fn new() -> Self {
        Self::default()
    }
}

impl Cpu {
    /// True if `physical` is in RAM.
    fn is_shared_memory(&self, physical: u64) -> bool {
        matches!(self.env.space.page(GuestPhysical(physical)), PageKind::Ram(_))
    }

    /// Reads a naturally aligned scalar of a shared structure; zero if it is not in RAM.
    fn read_shared(&self, physical: u64, width: Width) -> u64 {
        if self.is_shared_memory(physical) {
            self.env.space.read(GuestPhysical(physical), width)
        } else {
            0
        }
    }

    /// Writes a naturally aligned scalar of a shared structure.
    fn write_shared(&self, physical: u64, width: Width, value: u64) {
        if self.is_shared_memory(physical) {
            self.env.space.write(GuestPhysical(physical), width, value);
        }
    }

    /// Writes a structure of doublewords under its version counter, `version` doublewords from its
    /// start: odd while the rest is being written. x86 keeps the order of stores.
    fn write_versioned(&self, physical: u64, version: u64, words: &[(u64, u32)]) {
        let counter = physical.wrapping_add(4 * version);
        let odd = self.read_shared(counter, Width::Dword) | 1;
        self.write_shared(counter, Width::Dword, odd);
        for &(index, word) in words {
            self.write_shared(physical.wrapping_add(4 * index), Width::Dword, word.into());
        }
        self.write_shared(counter, Width::Dword, odd.wrapping_add(1) & 0xffff_ffff);
    }

    /// A kick came (KVM_HC_KICK_CPU). It is kept until the next HLT, because it may have come
    /// between a guest's last look and its HLT.
    pub(crate) fn kicked(&mut self) {
        self.pv.is_kicked = true;
    }

    /// True if a kick waits for this HLT.
    pub(crate) fn take_kick(&mut self) -> bool {
        std::mem::take(&mut self.pv.is_kicked)
    }

    /// The owner's thread starts to run the guest.
    pub(crate) fn enter_guest(&mut self) {
        self.enter_recorded();
        self.end_preemption();
    }

    /// The owner's thread stops running the guest, for a while or for good.
    pub(crate) fn leave_guest(&mut self) {
        self.sync_pv_eoi();
        self.begin_preemption();
    }
}
