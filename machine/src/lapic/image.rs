//! The registers of a local APIC on their way to an engine that has one of its own, and back.
//!
//! What has no register stays with the chip: the levels of its pins, errors that ESR does not show
//! yet, an ExtINT message that was not acknowledged. While the registers are away the chip keeps
//! an old copy of those that nothing else moves (IA32_APIC_BASE, the task priority); it has no
//! interrupt to give, and its timer stands still.

use super::access::{Context, register as r};
use super::address::ApicMode;
use super::lvt::LvtEntry;
use super::state::{ApicState, ICR_HIGH_XAPIC, ICR_LOW_BITS, SVR_BITS, mode_of};
use super::vector_set::VectorSet;

/// How many registers there are, used or not.
const REGISTERS: usize = 64;

/// All that a local APIC's registers hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicImage {
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The registers by their numbers, which are their offsets in xAPIC's page divided by 16. In
    /// x2APIC mode the ID has all its bits, and the destination of the ICR is in its high half.
    pub registers: [u32; REGISTERS],
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
}

impl ApicImage {
    fn register(&self, number: u32) -> u32 {
        self.registers.get(number as usize).copied().unwrap_or(0)
    }

    fn vectors(&self, first: u32) -> VectorSet {
        VectorSet::of_words(|index| self.register(first + index))
    }
}

impl ApicState {
    /// What the registers hold now.
    pub(super) fn image(&self, context: Context<'_>) -> ApicImage {
        let value = |number| match number {
            r::ID if self.mode() == ApicMode::X2Apic => self.id,
            r::ID => self.id << 24,
            r::APR => self.apr().into(),
            r::DFR => self.dfr(),
            r::ICR_LOW => self.icr_low,
            r::ICR_HIGH => self.icr_high,
            _ => self.read_shared(number, context).unwrap_or(0),
        };
        ApicImage {
            base: self.base,
            registers: std::array::from_fn(|number| value(number as u32)),
            tsc_deadline: self.timer.tsc_deadline(),
        }
    }

    /// The registers are somewhere else now.
    pub(super) fn leave(&mut self) {
        (self.irr, self.isr, self.tmr) = Default::default();
        self.timer.stop();
    }

    /// The registers come back. What no register can hold is dropped.
    pub(super) fn take_image(&mut self, image: &ApicImage, context: Context<'_>) {
        if mode_of(image.base).is_some() {
            self.base = image.base;
        }
        let is_x2apic = self.mode() == ApicMode::X2Apic;
        self.id = if is_x2apic { context.kind.id } else { image.register(r::ID) >> 24 };
        self.tpr = image.register(r::TPR) as u8;
        self.logical = (image.register(r::LDR) >> 24) as u8;
        self.model = (image.register(r::DFR) >> 28) as u8;
        self.svr = image.register(r::SVR) & SVR_BITS;
        (self.isr, self.tmr, self.irr) =
            (image.vectors(r::ISR), image.vectors(r::TMR), image.vectors(r::IRR));
        self.set_esr(image.register(r::ESR) as u8);
        self.icr_low = image.register(r::ICR_LOW) & ICR_LOW_BITS;
        let icr_high = image.register(r::ICR_HIGH);
        self.icr_high = if is_x2apic { icr_high } else { icr_high & ICR_HIGH_XAPIC };
        for (number, entry) in (r::LVT_TIMER..).zip(LvtEntry::ALL) {
            self.lvt[entry as usize] = image.register(number) & entry.kept();
        }
        let lvt = self.lvt(LvtEntry::Timer);
        let [initial, current, divide] =
            [r::INITIAL_COUNT, r::CURRENT_COUNT, r::DIVIDE].map(|number| image.register(number));
        self.timer.load(lvt, (initial, current, divide), image.tsc_deadline, context.now_ns);
    }
}
