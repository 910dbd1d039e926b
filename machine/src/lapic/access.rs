//! Register access: xAPIC's memory-mapped registers and x2APIC's MSRs.
//!
//! Both number the registers alike: an offset divided by 16 in the one, an MSR less 800H in the
//! other (SDM Vol. 3A, "Local APIC Register Address Map" and "x2APIC Register Address Space").

use super::address::ApicMode;
use super::icr::{InterprocessorInterrupt, decode_icr};
use super::lvt::LvtEntry;
use super::message::{DeliveryMode, Destination, Message, TriggerMode};
use super::state::{
    ApicState, ESR_ILLEGAL_REGISTER, ESR_SEND_ILLEGAL_VECTOR, Effects, ICR_HIGH_XAPIC,
    ICR_LOW_BITS, SVR_BITS,
};
use super::timer::{DCR_BITS, Rates};
use super::{GeneralProtection, LocalApicKind};

/// Version 14H with six LVT entries, as KVM's own: a guest finds the same under every engine.
pub(super) const VERSION: u32 = 0x0005_0014;
/// The version register's bit for EOI-broadcast suppression, which comes with x2APIC.
pub(super) const VERSION_EOI_SUPPRESSION: u32 = 1 << 24;

/// Register numbers.
pub(super) mod register {
    pub(in crate::lapic) const ID: u32 = 0x02;
    pub(in crate::lapic) const VERSION: u32 = 0x03;
    pub(in crate::lapic) const TPR: u32 = 0x08;
    pub(in crate::lapic) const APR: u32 = 0x09;
    pub(in crate::lapic) const PPR: u32 = 0x0A;
    pub(in crate::lapic) const EOI: u32 = 0x0B;
    pub(in crate::lapic) const RRD: u32 = 0x0C;
    pub(in crate::lapic) const LDR: u32 = 0x0D;
    pub(in crate::lapic) const DFR: u32 = 0x0E;
    pub(in crate::lapic) const SVR: u32 = 0x0F;
    pub(in crate::lapic) const ISR: u32 = 0x10;
    pub(in crate::lapic) const TMR: u32 = 0x18;
    pub(in crate::lapic) const IRR: u32 = 0x20;
    pub(in crate::lapic) const IRR_END: u32 = 0x27;
    pub(in crate::lapic) const ESR: u32 = 0x28;
    pub(in crate::lapic) const ICR_LOW: u32 = 0x30;
    pub(in crate::lapic) const ICR_HIGH: u32 = 0x31;
    pub(in crate::lapic) const LVT_TIMER: u32 = 0x32;
    pub(in crate::lapic) const LVT_THERMAL: u32 = 0x33;
    pub(in crate::lapic) const LVT_PERFORMANCE: u32 = 0x34;
    pub(in crate::lapic) const LVT_LINT0: u32 = 0x35;
    pub(in crate::lapic) const LVT_LINT1: u32 = 0x36;
    pub(in crate::lapic) const LVT_ERROR: u32 = 0x37;
    pub(in crate::lapic) const INITIAL_COUNT: u32 = 0x38;
    pub(in crate::lapic) const CURRENT_COUNT: u32 = 0x39;
    pub(in crate::lapic) const DIVIDE: u32 = 0x3E;
    pub(in crate::lapic) const SELF_IPI: u32 = 0x3F;
}
use register as r;

fn lvt_entry(number: u32) -> Option<LvtEntry> {
    match number {
        r::LVT_TIMER => Some(LvtEntry::Timer),
        r::LVT_THERMAL => Some(LvtEntry::Thermal),
        r::LVT_PERFORMANCE => Some(LvtEntry::PerformanceMonitoring),
        r::LVT_LINT0 => Some(LvtEntry::Lint0),
        r::LVT_LINT1 => Some(LvtEntry::Lint1),
        r::LVT_ERROR => Some(LvtEntry::Error),
        _ => None,
    }
}

/// Registers that depend on guest time.
pub(super) fn is_timer_register(number: u32) -> bool {
    matches!(number, r::LVT_TIMER | r::INITIAL_COUNT | r::CURRENT_COUNT | r::DIVIDE)
}

/// When and where an access happens.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) kind: &'a LocalApicKind,
    pub(super) now_ns: u64,
}

impl Context<'_> {
    fn rates(&self) -> Rates {
        self.kind.rates
    }
}

impl ApicState {
    /// Reads a register that both modes have; `None` if there is none of this number.
    pub(super) fn read_shared(&self, number: u32, context: Context<'_>) -> Option<u32> {
        if let Some(entry) = lvt_entry(number) {
            return Some(self.lvt(entry));
        }
        Some(match number {
            r::VERSION if context.kind.has_x2apic => VERSION | VERSION_EOI_SUPPRESSION,
            r::VERSION => VERSION,
            r::TPR => self.tpr.into(),
            r::PPR => self.ppr().into(),
            r::LDR => self.ldr(),
            r::SVR => self.svr,
            r::ISR..r::TMR => self.isr.word(number - r::ISR),
            r::TMR..r::IRR => self.tmr.word(number - r::TMR),
            r::IRR..=r::IRR_END => self.irr.word(number - r::IRR),
            r::ESR => self.esr.into(),
            r::INITIAL_COUNT => self.timer.initial(),
            r::CURRENT_COUNT => {
                self.timer.current(self.lvt(LvtEntry::Timer), context.now_ns, context.rates())
            }
            r::DIVIDE => self.timer.divide_register(),
            _ => return None,
        })
    }

    /// Reads an xAPIC register. Reserved ones read as zero and are an error.
    pub(super) fn read_xapic(
        &mut self,
        number: u32,
        context: Context<'_>,
        effects: &mut Effects,
    ) -> u32 {
        match number {
            r::ID => self.id << 24,
            r::APR => self.apr().into(),
            r::DFR => self.dfr(),
            r::ICR_LOW => self.icr_low,
            r::ICR_HIGH => self.icr_high,
            // Write-only, and the remote read that no processor since the P6 has.
            r::EOI | r::RRD => 0,
            _ => self.read_shared(number, context).unwrap_or_else(|| {
                self.report_error(ESR_ILLEGAL_REGISTER, effects);
                0
            }),
        }
    }

    /// Reads an x2APIC register.
    pub(super) fn read_x2apic(&self, number: u32, context: Context<'_>) -> Option<u64> {
        match number {
            r::ID => Some(self.id.into()),
            r::ICR_LOW => Some(u64::from(self.icr_high) << 32 | u64::from(self.icr_low)),
            _ => self.read_shared(number, context).map(u64::from),
        }
    }

    /// Writes a register that both modes have; false if there is none of this number that can be
    /// written. Reserved bits are dropped.
    fn write_shared(
        &mut self,
        number: u32,
        value: u32,
        context: Context<'_>,
        effects: &mut Effects,
    ) -> bool {
        if let Some(entry) = lvt_entry(number) {
            if entry == LvtEntry::Timer {
                let old = self.lvt(entry);
                self.timer.rebase(old, value, context.now_ns, context.rates());
            }
            self.set_lvt(entry, value, effects);
            return true;
        }
        let lvt = self.lvt(LvtEntry::Timer);
        match number {
            r::TPR => self.tpr = value as u8,
            r::EOI => self.end_of_interrupt(effects),
            r::SVR => self.set_svr(value),
            // SDM Vol. 3A, "Error Handling": a write shows the errors found since the last one.
            r::ESR => self.esr = std::mem::take(&mut self.errors),
            r::INITIAL_COUNT => self.timer.set_initial(value, lvt, context.now_ns),
            r::DIVIDE => self.timer.set_divide(value, lvt, context.now_ns, context.rates()),
            _ => return false,
        }
        true
    }

    /// Writes an xAPIC register. Writes to reserved ones are an error, to read-only ones nothing.
    pub(super) fn write_xapic(
        &mut self,
        number: u32,
        value: u32,
        context: Context<'_>,
        effects: &mut Effects,
    ) {
        match number {
            r::ID => self.id = value >> 24,
            r::LDR => self.logical = (value >> 24) as u8,
            r::DFR => self.model = (value >> 28) as u8,
            r::ICR_HIGH => self.icr_high = value & ICR_HIGH_XAPIC,
            r::ICR_LOW => self.send(value, context, effects),
            _ if self.write_shared(number, value, context, effects) => {}
            r::APR | r::PPR | r::RRD | r::CURRENT_COUNT | r::VERSION => {}
            r::ISR..=r::IRR_END => {}
            _ => self.report_error(ESR_ILLEGAL_REGISTER, effects),
        }
    }

    /// Writes an x2APIC register.
    pub(super) fn write_x2apic(
        &mut self,
        number: u32,
        value: u64,
        context: Context<'_>,
        effects: &mut Effects,
    ) -> Result<(), GeneralProtection> {
        if value & !x2apic_defined_bits(number) != 0 {
            return Err(GeneralProtection);
        }
        let low = value as u32;
        match number {
            r::ICR_LOW => {
                self.icr_high = (value >> 32) as u32;
                self.send(low, context, effects);
            }
            r::SELF_IPI => self.send_self_ipi(low as u8, context, effects),
            _ if self.write_shared(number, low, context, effects) => {}
            _ => return Err(GeneralProtection),
        }
        Ok(())
    }

    /// A write of the ICR's low half sends the IPI.
    fn send(&mut self, low: u32, context: Context<'_>, effects: &mut Effects) {
        self.icr_low = low & ICR_LOW_BITS;
        let destination = match self.mode() {
            ApicMode::X2Apic => Destination::from_x2apic(self.icr_high, low & 1 << 11 != 0),
            _ => Destination::from_bus(self.icr_high >> 24, low & 1 << 11 != 0),
        };
        match decode_icr(low, destination, context.kind.cpu) {
            InterprocessorInterrupt::Send(message) => effects.message = Some(message),
            InterprocessorInterrupt::IllegalVector => {
                self.report_error(ESR_SEND_ILLEGAL_VECTOR, effects);
            }
            InterprocessorInterrupt::Nothing => {}
        }
    }

    fn send_self_ipi(&mut self, vector: u8, context: Context<'_>, effects: &mut Effects) {
        if vector < 16 {
            return self.report_error(ESR_SEND_ILLEGAL_VECTOR, effects);
        }
        effects.message = Some(Message {
            destination: Destination::Only { sender: context.kind.cpu },
            delivery: DeliveryMode::Fixed,
            vector,
            trigger: TriggerMode::Edge,
        });
    }
}

/// Bits of an x2APIC register that may be written as one; any other is #GP.
fn x2apic_defined_bits(number: u32) -> u64 {
    if let Some(entry) = lvt_entry(number) {
        return entry.defined().into();
    }
    match number {
        r::TPR | r::SELF_IPI => 0xFF,
        r::SVR => SVR_BITS.into(),
        r::ICR_LOW => 0xFFFF_FFFF_0000_0000 | u64::from(ICR_LOW_BITS),
        r::INITIAL_COUNT => u32::MAX.into(),
        r::DIVIDE => DCR_BITS.into(),
        // EOI and ESR take only zero; the rest cannot be written at all.
        _ => 0,
    }
}
