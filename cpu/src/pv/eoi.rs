//! PV EOI: an interrupt that nothing waits behind is ended by clearing a bit in memory.
//!
//! When such an interrupt is delivered the bit is set and the feature *armed*: the local APIC then
//! signals every new request, deliverable or not. At the next request, at the next access to the
//! APIC and when the CPU stops running, the bit tells: clear, and the interrupt is ended as by a
//! write to EOI; still set, and the bit is taken back, so that the guest ends it by the register.

use memory::Width;

use super::ENABLED;
use crate::Cpu;
use crate::exception::{Exception, Exec};

/// WRMSR to MSR_KVM_EOI_EN: bit 0 enables, bit 1 is reserved, the rest is the address.
pub(crate) fn write_eoi_enable(cpu: &mut Cpu, _: u32, value: u64) -> Exec {
    const RESERVED: u64 = 1 << 1;
    if value & RESERVED != 0 {
        return Err(Exception::GP0);
    }
    cpu.sync_pv_eoi();
    cpu.state.msrs.kvm.pv_eoi = value;
    Ok(())
}

impl Cpu {
    fn pv_eoi_address(&self) -> u64 {
        self.state.msrs.kvm.pv_eoi & !3
    }

    /// Called when `vector` was acknowledged and is about to be delivered.
    pub(crate) fn before_interrupt(&mut self, vector: u8) {
        let is_enabled = self.state.msrs.kvm.pv_eoi & ENABLED != 0;
        if !is_enabled || !self.is_shared_memory(self.pv_eoi_address()) {
            return;
        }
        // Armed first: a request that comes after the look at the APIC finds it so.
        self.env.lapic.set_pv_eoi_armed(true);
        if self.env.lapic.silent_eoi_vector() == Some(vector) {
            self.pv.eoi_is_armed = true;
            self.write_shared(self.pv_eoi_address(), Width::Byte, 1);
        } else {
            self.env.lapic.set_pv_eoi_armed(false);
        }
    }

    /// Catches up with what the guest did to its bit. Call before anything that looks at, or
    /// changes, what is in service.
    #[inline]
    pub(crate) fn sync_pv_eoi(&mut self) {
        if self.pv.eoi_is_armed {
            self.disarm_pv_eoi();
        }
    }

    #[cold]
    fn disarm_pv_eoi(&mut self) {
        self.pv.eoi_is_armed = false;
        self.env.lapic.set_pv_eoi_armed(false);
        let address = self.pv_eoi_address();
        if self.read_shared(address, Width::Byte) & 1 == 0 {
            self.env.lapic.eoi();
        } else {
            self.write_shared(address, Width::Byte, 0);
        }
    }
}
