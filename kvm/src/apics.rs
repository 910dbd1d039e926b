//! The kernel's local APICs, one beside each CPU (KVM_CAP_SPLIT_IRQCHIP): registers, timers, IPIs
//! and HLT make no exits any more. PIC, I/O APIC and HPET stay the machine's; what they send comes
//! here as a message.
//!
//! Problem: the interpreter, which executes what KVM cannot and what a debugger steps over, must
//! find a CPU's registers complete, and the kernel has no call that changes one of them. While they
//! are out, interrupts that other CPUs send by themselves would be lost with what the kernel has.
//! Strategy: all CPUs of the machine stand still meanwhile ([`Traffic`]). It is rare.

use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cpu::events::Doorbell;
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS, KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_QUIRK_LINT0_REENABLED, kvm_msi,
};
use kvm_ioctls::{Cap, VmFd};

use crate::KvmError;
use crate::kick::Kick;
use crate::routes;
use crate::vm::enable_cap;

/// Where an MSI is written to, and what of the address and the data says what.
const MSI_ADDRESS: u32 = 0xfee0_0000;
const LOGICAL: u32 = 1 << 2;
const LEVEL_ASSERTED: u32 = 1 << 15 | 1 << 14;

/// An interrupt message of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The APIC ID, 0xff for all, or the logical destination.
    pub destination: u32,
    /// The destination is a logical one.
    pub is_logical: bool,
    /// The delivery mode, as in bits 10 to 8 of the interrupt command register.
    pub delivery: u8,
    /// The vector.
    pub vector: u8,
    /// Level-triggered.
    pub is_level: bool,
}

impl Message {
    /// The address and the data as an MSI has them, with the destination's upper bits where
    /// KVM_X2APIC_API_USE_32BIT_IDS puts them.
    pub(crate) fn msi(&self) -> (u32, u32, u32) {
        let logical = if self.is_logical { LOGICAL } else { 0 };
        let low = MSI_ADDRESS | (self.destination & 0xff) << 12 | logical;
        let level = if self.is_level { LEVEL_ASSERTED } else { 0 };
        let data = u32::from(self.vector) | u32::from(self.delivery & 7) << 8 | level;
        (low, self.destination & !0xff, data)
    }

    /// Has the kernel deliver it. False if nobody took it.
    pub(crate) fn send(&self, fd: &VmFd) -> bool {
        let (address_lo, address_hi, data) = self.msi();
        let msi = kvm_msi { address_lo, address_hi, data, ..Default::default() };
        fd.signal_msi(msi).is_ok_and(|taken| taken > 0)
    }
}

/// Has the virtual machine `fd`, which has no CPU yet, make them with local APICs.
pub(crate) fn enable(fd: &VmFd) -> Result<(), KvmError> {
    enable_cap(fd, Cap::SplitIrqchip as u32, routes::ENDS.into())
        .map_err(KvmError::of("KVM_CAP_SPLIT_IRQCHIP"))?;
    enable_cap(fd, Cap::X2ApicApi as u32, KVM_X2APIC_API_USE_32BIT_IDS.into())
        .map_err(KvmError::of("KVM_CAP_X2APIC_API"))?;
    // LINT0 is masked behind INIT, as on every processor. An old kernel cannot be told.
    let _ = enable_cap(fd, KVM_CAP_DISABLE_QUIRKS, KVM_X86_QUIRK_LINT0_REENABLED.into());
    Ok(())
}

/// Which CPUs of a machine may be in the guest.
#[derive(Default)]
pub(crate) struct Traffic {
    /// Held for reading by a CPU that is in the guest, or about to be.
    inside: RwLock<()>,
    /// How many want all others out.
    stops: AtomicU32,
    kicks: Mutex<Vec<Arc<Kick>>>,
}

/// No CPU is in the guest as long as this lives.
pub(crate) struct Stopped<'a> {
    traffic: &'a Traffic,
    _all_outside: RwLockWriteGuard<'a, ()>,
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.traffic.stops.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Traffic {
    /// Another CPU, and how to get it out.
    pub(crate) fn add(&self, kick: &Arc<Kick>) {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(kick));
    }

    /// Waits until CPUs may be in the guest. The caller then says by [`Kick::enter`] that it is,
    /// and looks at [`Traffic::is_stopped`] behind that.
    pub(crate) fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.inside.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if a CPU that is about to enter the guest must not.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stops.load(Ordering::SeqCst) != 0
    }

    /// Gets all CPUs out of the guest. The caller is out.
    pub(crate) fn stop(&self) -> Stopped<'_> {
        self.stops.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let kicks = self.kicks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        kicks.iter().for_each(|kick| kick.ring());
        let all_outside = self.inside.write().unwrap_or_else(PoisonError::into_inner);
        Stopped { traffic: self, _all_outside: all_outside }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_an_msi() {
        let fixed = Message {
            destination: 3,
            is_logical: false,
            delivery: 0,
            vector: 0x41,
            is_level: false,
        };
        assert_eq!(fixed.msi(), (0xfee0_3000, 0, 0x41));
        let lowest = Message { destination: 0x1ff, is_logical: true, delivery: 1, ..fixed };
        assert_eq!(lowest.msi(), (0xfeef_f004, 0x100, 0x141));
        assert_eq!(Message { is_level: true, ..fixed }.msi(), (0xfee0_3000, 0, 0xc041));
    }

    #[test]
    fn who_stops_the_traffic_is_alone_until_it_flows_again() {
        let traffic = Traffic::default();
        std::thread::scope(|scope| {
            let stopped = traffic.stop();
            assert!(traffic.is_stopped());
            let other = scope.spawn(|| drop(traffic.enter()));
            assert!(!other.is_finished());
            drop(stopped);
            other.join().expect("it enters");
        });
        assert!(!traffic.is_stopped());
    }
}
