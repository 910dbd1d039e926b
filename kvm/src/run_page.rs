//! The page that a CPU shares with the kernel: why it left the guest, and what it wants to know.
// UNSAFETY: reads and writes a mapping that the kernel writes during KVM_RUN, and the union in it
// by the exit's reason.
#![expect(unsafe_code, reason = "unsafe island 4: the page shared with the kernel")]

use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_EXIT_IO_IN, kvm_run};
use kvm_ioctls::VcpuFd;

/// The shared page of one CPU. Whoever has it has the [`VcpuFd`] that it is of too.
pub(crate) struct RunPage(*mut kvm_run);

// SAFETY: the page is reached by its owner alone, and but for `immediate_exit`, which is atomic,
// between two calls of KVM_RUN.
unsafe impl Send for RunPage {}

/// Port accesses: `count` of `size` bytes at the same port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortExit {
    pub(crate) is_in: bool,
    pub(crate) size: usize,
    pub(crate) port: u16,
}

/// An access to what is no memory.
pub(crate) struct MmioExit<'a> {
    pub(crate) address: u64,
    pub(crate) is_write: bool,
    pub(crate) data: &'a mut [u8],
}

/// RDMSR or WRMSR of an MSR that KVM does not have.
pub(crate) struct MsrExit<'a> {
    pub(crate) number: u32,
    pub(crate) value: &'a mut u64,
    /// To be set if the instruction is #GP.
    pub(crate) error: &'a mut u8,
}

impl RunPage {
    /// The page of `fd`.
    pub(crate) fn of(fd: &mut VcpuFd) -> Self {
        Self(fd.get_kvm_run())
    }

    fn page(&self) -> &kvm_run {
        // SAFETY: the page is mapped as long as the `VcpuFd`, which the owner keeps beside it; the
        // kernel writes to it in KVM_RUN only, which borrows nothing of it.
        unsafe { &*self.0 }
    }

    fn page_mut(&mut self) -> &mut kvm_run {
        // SAFETY: as for `page`.
        unsafe { &mut *self.0 }
    }

    /// `immediate_exit`, for the signal handler.
    pub(crate) fn immediate_exit(&self) -> *const AtomicU8 {
        // SAFETY: the field is inside of the page; no reference to it is made.
        unsafe { (&raw const (*self.0).immediate_exit).cast() }
    }

    /// Has the next KVM_RUN only finish the last exit, or enter the guest too.
    pub(crate) fn set_immediate_exit(&mut self, is_wanted: bool) {
        // SAFETY: the pointer is valid, see `immediate_exit`.
        unsafe { (*self.immediate_exit()).store(u8::from(is_wanted), Ordering::Relaxed) };
    }

    /// KVM_EXIT_*.
    pub(crate) fn reason(&self) -> u32 {
        self.page().exit_reason
    }

    /// True if the guest takes an interrupt now.
    pub(crate) fn takes_interrupts(&self) -> bool {
        self.page().ready_for_interrupt_injection != 0 && self.page().if_flag != 0
    }

    /// The guest is elsewhere than at the last exit.
    pub(crate) fn forget_interruptibility(&mut self) {
        self.page_mut().ready_for_interrupt_injection = 0;
    }

    /// Has KVM_RUN return as soon as the guest takes interrupts.
    pub(crate) fn request_interrupt_window(&mut self, is_wanted: bool) {
        self.page_mut().request_interrupt_window = u8::from(is_wanted);
    }

    /// CR8 and IA32_APIC_BASE behind an exit.
    pub(crate) fn apic(&self) -> (u8, u64) {
        (self.page().cr8 as u8 & 15, self.page().apic_base)
    }

    /// Writes CR8 for the next KVM_RUN.
    pub(crate) fn set_cr8(&mut self, value: u8) {
        self.page_mut().cr8 = u64::from(value);
    }

    /// What KVM_EXIT_IO is about, and its data.
    pub(crate) fn port(&mut self) -> (PortExit, &mut [u8]) {
        // SAFETY: 1. the exit is KVM_EXIT_IO, of which this is the member, and every bit pattern a
        // value of it; 2. the kernel puts the data at this offset into the mapping of the CPU, and
        // their bytes in the page for them.
        unsafe {
            let io = (*self.0).__bindgen_anon_1.io;
            let bytes = io.count as usize * usize::from(io.size);
            let data = self.0.cast::<u8>().add(io.data_offset as usize);
            let exit = PortExit {
                is_in: u32::from(io.direction) == KVM_EXIT_IO_IN,
                size: usize::from(io.size).max(1),
                port: io.port,
            };
            (exit, std::slice::from_raw_parts_mut(data, bytes))
        }
    }

    /// What KVM_EXIT_MMIO is about.
    pub(crate) fn mmio(&mut self) -> MmioExit<'_> {
        // SAFETY: the exit is KVM_EXIT_MMIO, of which this is the member, and every bit pattern a
        // value of it.
        let mmio = unsafe { &mut self.page_mut().__bindgen_anon_1.mmio };
        let length = (mmio.len as usize).min(mmio.data.len());
        MmioExit {
            address: mmio.phys_addr,
            is_write: mmio.is_write != 0,
            data: &mut mmio.data[..length],
        }
    }

    /// What KVM_EXIT_X86_RDMSR or _WRMSR is about.
    pub(crate) fn msr(&mut self) -> MsrExit<'_> {
        // SAFETY: the exit is one of the two, of which this is the member, and every bit pattern a
        // value of it.
        let msr = unsafe { &mut self.page_mut().__bindgen_anon_1.msr };
        MsrExit { number: msr.index, value: &mut msr.data, error: &mut msr.error }
    }

    /// What KVM_EXIT_IOAPIC_EOI is about: the vector.
    pub(crate) fn ended_vector(&self) -> u8 {
        // SAFETY: the exit is KVM_EXIT_IOAPIC_EOI, of which this is the member, and every bit
        // pattern a value of it.
        unsafe { self.page().__bindgen_anon_1.eoi.vector }
    }

    /// True if the next KVM_RUN is to finish the last exit only.
    pub(crate) fn is_immediate_exit(&self) -> bool {
        // SAFETY: the pointer is valid, see `immediate_exit`.
        unsafe { (*self.immediate_exit()).load(Ordering::Relaxed) != 0 }
    }

    /// What KVM_EXIT_DEBUG is about: DR6.
    pub(crate) fn debug_status(&self) -> u64 {
        // SAFETY: the exit is KVM_EXIT_DEBUG, of which this is the member, and every bit pattern a
        // value of it.
        unsafe { self.page().__bindgen_anon_1.debug.arch.dr6 }
    }

    /// Why KVM_EXIT_INTERNAL_ERROR or _FAIL_ENTRY: KVM's number.
    pub(crate) fn failure(&self) -> u64 {
        // SAFETY: both members begin with a number, and every bit pattern is one.
        unsafe { self.page().__bindgen_anon_1.hw.hardware_exit_reason }
    }
}
