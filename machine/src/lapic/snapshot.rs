//! A local APIC's registers, for who looks at the machine from outside.

use super::lvt::LvtEntry;
use super::state::ApicState;
use super::timer::Rates;

/// The registers of one local APIC. Reading them changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapicSnapshot {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The APIC ID in the current mode.
    pub id: u32,
    /// Task priority.
    pub tpr: u8,
    /// Processor priority.
    pub ppr: u8,
    /// Logical destination.
    pub ldr: u32,
    /// Destination format.
    pub dfr: u32,
    /// The spurious-interrupt vector register.
    pub svr: u32,
    /// Error status.
    pub esr: u8,
    /// The last interrupt command.
    pub icr: u64,
    /// Vectors in service.
    pub isr: Vec<u8>,
    /// Vectors that are requested.
    pub irr: Vec<u8>,
    /// Of both, those that came level-triggered.
    pub tmr: Vec<u8>,
    /// The local vector table, in its order.
    pub lvt: Vec<(LvtEntry, u32)>,
    /// The timer's initial count.
    pub timer_initial: u32,
    /// The timer's divide register.
    pub timer_divide: u32,
    /// Guest time at which the timer interrupts next.
    pub timer_deadline_ns: Option<u64>,
}

impl ApicState {
    pub(super) fn snapshot(&self, now_ns: u64, rates: Rates) -> LapicSnapshot {
        LapicSnapshot {
            base: self.base,
            id: self.id,
            tpr: self.tpr,
            ppr: self.ppr(),
            ldr: self.ldr(),
            dfr: self.dfr(),
            svr: self.svr,
            esr: self.esr,
            icr: u64::from(self.icr_high) << 32 | u64::from(self.icr_low),
            isr: self.isr.iter().collect(),
            irr: self.irr.iter().collect(),
            tmr: self.tmr.iter().collect(),
            lvt: LvtEntry::ALL.iter().map(|&entry| (entry, self.lvt(entry))).collect(),
            timer_initial: self.timer.initial(),
            timer_divide: self.timer.divide_register(),
            timer_deadline_ns: self.timer.deadline_ns(self.lvt(LvtEntry::Timer), now_ns, rates),
        }
    }
}
