//! Steal time, and PV TLB flush on top of it.
//!
//! `kvm_steal_time` is 64 bytes: steal in nanoseconds, a version, flags, and a byte `preempted`
//! that says the CPU does not run. To flush the TLB of such a CPU another one sets a bit there
//! instead of sending an IPI; it is honoured before the CPU executes anything.

use memory::Width;

use super::ENABLED;
use crate::Cpu;
use crate::cpuid::Feature;

const STEAL: u64 = 0;
/// In doublewords.
const VERSION: u64 = 2;
const PREEMPTED: u64 = 16;
/// `preempted`: the CPU does not run.
const IS_PREEMPTED: u8 = 1;
/// `preempted`: flush the TLB before it runs again.
const FLUSH_TLB: u8 = 1 << 1;

/// WRMSR to MSR_KVM_STEAL_TIME. The address is a multiple of 64; bits 5 to 1 are reserved.
pub(crate) fn steal_time_written(cpu: &mut Cpu) {
    cpu.end_preemption();
}

impl Cpu {
    fn steal_time_page(&self) -> Option<u64> {
        let value = self.state.msrs.kvm.steal_time;
        (value & ENABLED != 0).then_some(value & !0x3f).filter(|&page| self.is_shared_memory(page))
    }

    /// Marks the CPU as one that does not run.
    pub(super) fn begin_preemption(&mut self) {
        if let Some(page) = self.steal_time_page() {
            self.exchange_preempted(page, IS_PREEMPTED);
        }
    }

    /// Marks the CPU as running, flushes if it was asked to, and tells the time lost.
    pub(super) fn end_preemption(&mut self) {
        let Some(page) = self.steal_time_page() else { return };
        let was = self.exchange_preempted(page, 0);
        if was & FLUSH_TLB != 0 && self.env.cpuid.has(Feature::KvmPvTlbFlush) {
            self.flush_translations();
        }
        let steal = self.env.platform.steal_ns(self.env.index);
        if self.read_shared(page + STEAL, Width::Qword) != steal {
            self.write_versioned(page, VERSION, &[(0, steal as u32), (1, (steal >> 32) as u32)]);
        }
    }

    /// Replaces `preempted` and gives what it was, as one atomic step: another CPU may be setting
    /// the flush bit. It tries as often as a guest that fights for the byte can be let to.
    fn exchange_preempted(&self, page: u64, new: u8) -> u8 {
        const TRIES: u32 = 100;
        let Some(offset) = self.ram_page(page + PREEMPTED) else {
            // A20 is masked or the map has changed; nobody relies on the byte then.
            let old = self.read_shared(page + PREEMPTED, Width::Byte) as u8;
            self.write_shared(page + PREEMPTED, Width::Byte, new.into());
            return old;
        };
        let mut old = self.ram.load::<u8>(offset);
        for _ in 0..TRIES {
            match self.ram.compare_exchange(offset, old, new) {
                Ok(_) => return old,
                Err(found) => old = found,
            }
        }
        FLUSH_TLB
    }
}
