//! The registers of one local APIC and what they do; no lock, no clock, no bus.

use serde::{Deserialize, Serialize};

use super::address::{Address, ApicMode, x2apic_ldr};
use super::lvt::{LVT_COUNT, LVT_LEVEL, LVT_MASKED, LVT_REMOTE_IRR, LvtEntry};
use super::message::{DeliveryMode, Message, TriggerMode};
use super::timer::{ApicTimer, Rates};
use super::vector_set::VectorSet;
use super::{GeneralProtection, LocalApicKind};

/// IA32_APIC_BASE bits.
pub(super) const BASE_BSP: u64 = 1 << 8;
pub(super) const BASE_EXTD: u64 = 1 << 10;
pub(super) const BASE_EN: u64 = 1 << 11;
/// Where the registers are after reset.
pub(super) const BASE_ADDRESS: u64 = 0xFEE0_0000;

/// Spurious-interrupt vector register bits.
pub(super) const SVR_ENABLE: u32 = 1 << 8;
const SVR_EOI_SUPPRESSION: u32 = 1 << 12;
pub(super) const SVR_BITS: u32 = 0x13FF;
const SVR_RESET: u32 = 0xFF;

/// Destination format register: the model is in bits 31:28, the rest reads as ones.
const DFR_ONES: u32 = 0x0FFF_FFFF;
const DFR_FLAT: u32 = 0xF;

/// Error status register bits.
pub(super) const ESR_SEND_ILLEGAL_VECTOR: u8 = 1 << 5;
pub(super) const ESR_RECEIVE_ILLEGAL_VECTOR: u8 = 1 << 6;
pub(super) const ESR_ILLEGAL_REGISTER: u8 = 1 << 7;
const ESR_BITS: u8 = ESR_SEND_ILLEGAL_VECTOR | ESR_RECEIVE_ILLEGAL_VECTOR | ESR_ILLEGAL_REGISTER;

/// ICR bits that keep what was written: all but delivery status and the reserved ones.
pub(super) const ICR_LOW_BITS: u32 = 0x000C_CFFF;
/// ICR bits 63:56 in xAPIC mode.
pub(super) const ICR_HIGH_XAPIC: u32 = 0xFF00_0000;

/// What an operation asks for once the lock is gone.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) message: Option<Message>,
    /// The vector whose EOI goes to the I/O APICs.
    pub(super) end_of_interrupt: Option<u8>,
    pub(super) nmi: bool,
    pub(super) init: bool,
    pub(super) startup: Option<u8>,
    /// An interrupt went into IRR, deliverable or not.
    pub(super) requested: bool,
}

/// What the CPU takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    Nothing,
    Vector(u8),
    /// Ask the 8259A pair.
    ExtInt,
}

/// All registers, as they are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ApicState {
    pub(super) base: u64,
    /// The ID in the current mode.
    pub(super) id: u32,
    pub(super) tpr: u8,
    /// LDR bits 31:24.
    pub(super) logical: u8,
    /// DFR bits 31:28.
    pub(super) model: u8,
    pub(super) svr: u32,
    pub(super) isr: VectorSet,
    pub(super) tmr: VectorSet,
    pub(super) irr: VectorSet,
    pub(super) esr: u8,
    /// Errors since ESR was last written.
    pub(super) errors: u8,
    pub(super) icr_low: u32,
    pub(super) icr_high: u32,
    pub(super) lvt: [u32; LVT_COUNT],
    pub(super) timer: ApicTimer,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    /// An ExtINT message that was not acknowledged yet.
    extint_message: bool,
}

impl ApicState {
    pub(super) fn power_up(kind: &LocalApicKind) -> Self {
        let bsp = if kind.cpu == 0 { BASE_BSP } else { 0 };
        Self {
            base: BASE_ADDRESS | BASE_EN | bsp,
            id: kind.id & 0xFF,
            tpr: 0,
            logical: 0,
            model: DFR_FLAT as u8,
            svr: SVR_RESET,
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            irr: VectorSet::default(),
            esr: 0,
            errors: 0,
            icr_low: 0,
            icr_high: 0,
            lvt: [LVT_MASKED; LVT_COUNT],
            timer: ApicTimer::default(),
            lint: [false; 2],
            extint_message: false,
        }
    }

    /// All registers but IA32_APIC_BASE, the pins and the TSC go to their reset values.
    /// The ID stays if `keeps_id` (INIT); else it is the hardware's again.
    pub(super) fn reset_registers(&mut self, kind: &LocalApicKind, keeps_id: bool) {
        let mut timer = self.timer.clone();
        timer.reset();
        let mut fresh = Self { base: self.base, lint: self.lint, timer, ..Self::power_up(kind) };
        fresh.id = match self.mode() {
            ApicMode::X2Apic => kind.id,
            _ if keeps_id => self.id,
            _ => fresh.id,
        };
        *self = fresh;
    }

    /// Everything but the pins and the TSC goes to its state after power-up.
    pub(super) fn reset_all(&mut self, kind: &LocalApicKind) {
        self.base = Self::power_up(kind).base;
        self.reset_registers(kind, false);
    }

    pub(super) fn mode(&self) -> ApicMode {
        mode_of(self.base).unwrap_or(ApicMode::Disabled)
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.svr & SVR_ENABLE != 0
    }

    pub(super) fn address(&self) -> Address {
        Address {
            mode: self.mode(),
            id: self.id,
            logical: self.logical,
            is_cluster: u32::from(self.model) != DFR_FLAT,
            is_enabled: self.is_software_enabled(),
            priority: self.ppr(),
        }
    }

    pub(super) fn lvt(&self, entry: LvtEntry) -> u32 {
        self.lvt[entry as usize]
    }

    pub(super) fn ldr(&self) -> u32 {
        match self.mode() {
            ApicMode::X2Apic => x2apic_ldr(self.id),
            _ => u32::from(self.logical) << 24,
        }
    }

    pub(super) fn dfr(&self) -> u32 {
        u32::from(self.model) << 28 | DFR_ONES
    }

    /// SDM Vol. 3A, "Task and Processor Priorities".
    pub(super) fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= in_service >> 4 { self.tpr } else { in_service & 0xF0 }
    }

    /// SDM Vol. 3A, "Arbitration Priority Register".
    pub(super) fn apr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) >> 4;
        let requested = self.irr.highest().unwrap_or(0) >> 4;
        let task = self.tpr >> 4;
        if task >= requested && task > in_service {
            self.tpr
        } else {
            task.max(in_service).max(requested) << 4
        }
    }

    /// Changes IA32_APIC_BASE (SDM Vol. 3A, "x2APIC State Transitions").
    pub(super) fn set_base(
        &mut self,
        value: u64,
        kind: &LocalApicKind,
    ) -> Result<(), GeneralProtection> {
        let extd = if kind.has_x2apic { BASE_EXTD } else { 0 };
        let address_bits = (1u64 << kind.physical_address_bits.min(52)).wrapping_sub(1) & !0xFFF;
        if value & !(address_bits | BASE_BSP | BASE_EN | extd) != 0 {
            return Err(GeneralProtection);
        }
        let (old, new) = (self.mode(), mode_of(value).ok_or(GeneralProtection)?);
        match (old, new) {
            (ApicMode::Disabled, ApicMode::X2Apic) | (ApicMode::X2Apic, ApicMode::XApic) => {
                return Err(GeneralProtection);
            }
            _ => self.base = value,
        }
        match (old, new) {
            (ApicMode::XApic, ApicMode::X2Apic) => {
                self.id = kind.id;
                self.icr_high = 0;
            }
            (ApicMode::XApic | ApicMode::X2Apic, ApicMode::Disabled) => {
                self.reset_registers(kind, false);
            }
            _ => {}
        }
        Ok(())
    }

    /// True if the 8259A pair's output reaches the CPU and is high. A globally disabled APIC is
    /// not there: LINT0 is the CPU's INTR pin.
    fn is_extint_pending(&self) -> bool {
        let lvt = self.lvt(LvtEntry::Lint0);
        let is_wired = self.mode() == ApicMode::Disabled
            || lvt & LVT_MASKED == 0 && LvtEntry::Lint0.delivery(lvt) == Some(DeliveryMode::ExtInt);
        self.extint_message || is_wired && self.lint[0]
    }

    /// The requested vector that beats the processor priority.
    fn deliverable_vector(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.mode() != ApicMode::Disabled && vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    pub(super) fn is_deliverable(&self) -> bool {
        self.is_extint_pending() || self.deliverable_vector().is_some()
    }

    /// The CPU takes what is deliverable, ExtINT before vectors.
    pub(super) fn acknowledge(&mut self) -> Acknowledged {
        if self.is_extint_pending() {
            self.extint_message = false;
            return Acknowledged::ExtInt;
        }
        let Some(vector) = self.deliverable_vector() else { return Acknowledged::Nothing };
        self.irr.remove(vector);
        self.isr.insert(vector);
        Acknowledged::Vector(vector)
    }

    /// EOI: ends the interrupt of the highest priority.
    pub(super) fn end_of_interrupt(&mut self, effects: &mut Effects) {
        let Some(vector) = self.isr.highest() else { return };
        self.isr.remove(vector);
        if !self.tmr.contains(vector) {
            return;
        }
        let lint0 = self.lvt(LvtEntry::Lint0);
        if lint0 & LVT_REMOTE_IRR != 0 && lint0 & 0xFF == u32::from(vector) {
            self.lvt[LvtEntry::Lint0 as usize] = lint0 & !LVT_REMOTE_IRR;
            self.sample_lint0_level(effects);
        }
        if self.svr & SVR_EOI_SUPPRESSION == 0 {
            effects.end_of_interrupt = Some(vector);
        }
    }

    /// The vector whose EOI the CPU side may leave to the guest's memory (PV EOI): it is the only
    /// one in service, nothing waits for its end, and no I/O APIC does.
    pub(super) fn skippable_eoi(&self) -> Option<u8> {
        let vector = self.isr.highest()?;
        let is_alone = self.isr.len() == 1 && self.irr.is_empty();
        (is_alone && !self.tmr.contains(vector)).then_some(vector)
    }

    /// A message arrives. False if it is not taken.
    pub(super) fn accept(
        &mut self,
        delivery: DeliveryMode,
        vector: u8,
        trigger: TriggerMode,
        effects: &mut Effects,
    ) -> bool {
        match delivery {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                return self.request(vector, trigger, effects);
            }
            DeliveryMode::Smi => {}
            DeliveryMode::Nmi => effects.nmi = true,
            DeliveryMode::Init => effects.init = true,
            DeliveryMode::StartUp => effects.startup = Some(vector),
            DeliveryMode::ExtInt => self.extint_message = true,
        }
        true
    }

    fn request(&mut self, vector: u8, trigger: TriggerMode, effects: &mut Effects) -> bool {
        if !self.is_software_enabled() {
            return false;
        }
        if vector < 16 {
            self.report_error(ESR_RECEIVE_ILLEGAL_VECTOR, effects);
            return false;
        }
        self.irr.insert(vector);
        self.tmr.assign(vector, trigger == TriggerMode::Level);
        effects.requested = true;
        true
    }

    /// Notes an error. An error entry with an illegal vector comes back here once, and ends
    /// because the bit is set by then.
    pub(super) fn report_error(&mut self, error: u8, effects: &mut Effects) {
        if self.errors & error == 0 {
            self.errors |= error;
            self.raise(LvtEntry::Error, effects);
        }
    }

    /// Replaces what ESR shows.
    pub(super) fn set_esr(&mut self, value: u8) {
        self.esr = value & ESR_BITS;
    }

    /// A local source raises its interrupt.
    pub(super) fn raise(&mut self, entry: LvtEntry, effects: &mut Effects) {
        let lvt = self.lvt(entry);
        if lvt & LVT_MASKED != 0 || self.mode() == ApicMode::Disabled {
            return;
        }
        // SDM Vol. 3B, "Generating an Interrupt on Overflow": the entry masks itself.
        if entry == LvtEntry::PerformanceMonitoring {
            self.lvt[entry as usize] |= LVT_MASKED;
        }
        match entry.delivery(lvt) {
            // A pin in this mode is followed by its level; elsewhere the mode is reserved.
            Some(DeliveryMode::ExtInt | DeliveryMode::StartUp) | None => {}
            Some(mode) => {
                self.accept(mode, lvt as u8, TriggerMode::Edge, effects);
            }
        }
    }

    /// Pin LINT0 or LINT1 is now at `level`.
    pub(super) fn set_lint(&mut self, pin: LvtEntry, level: bool, effects: &mut Effects) {
        let index = usize::from(pin == LvtEntry::Lint1);
        let is_rising = level && !self.lint[index];
        self.lint[index] = level;
        if pin == LvtEntry::Lint0 && self.is_lint0_level() {
            self.sample_lint0_level(effects);
        } else if is_rising && self.mode() == ApicMode::Disabled {
            // A globally disabled APIC is not there: LINT1 is the CPU's NMI pin.
            effects.nmi |= pin == LvtEntry::Lint1;
        } else if is_rising {
            self.raise(pin, effects);
        }
    }

    /// The same while the registers are away.
    pub(super) fn note_lint(&mut self, pin: LvtEntry, level: bool) {
        self.lint[usize::from(pin == LvtEntry::Lint1)] = level;
    }

    /// True if the 8259A pair's output is high, or an ExtINT message came, whatever LINT0 says.
    pub(super) fn has_extint(&self) -> bool {
        self.extint_message || self.lint[0]
    }

    /// Forgets the ExtINT message, which the CPU takes.
    pub(super) fn take_extint(&mut self) {
        self.extint_message = false;
    }

    fn is_lint0_level(&self) -> bool {
        let lvt = self.lvt(LvtEntry::Lint0);
        lvt & LVT_LEVEL != 0 && LvtEntry::Lint0.delivery(lvt) == Some(DeliveryMode::Fixed)
    }

    fn sample_lint0_level(&mut self, effects: &mut Effects) {
        let lvt = self.lvt(LvtEntry::Lint0);
        let is_idle = lvt & (LVT_MASKED | LVT_REMOTE_IRR) == 0;
        if self.lint[0]
            && is_idle
            && self.is_lint0_level()
            && self.mode() != ApicMode::Disabled
            && self.request(lvt as u8, TriggerMode::Level, effects)
        {
            self.lvt[LvtEntry::Lint0 as usize] |= LVT_REMOTE_IRR;
        }
    }

    /// Writes an LVT entry, its reserved bits already dropped or refused.
    pub(super) fn set_lvt(&mut self, entry: LvtEntry, value: u32, effects: &mut Effects) {
        let old = self.lvt(entry);
        let mut new = value & entry.writable() | old & LVT_REMOTE_IRR;
        if !self.is_software_enabled() {
            new |= LVT_MASKED;
        }
        if new & LVT_LEVEL == 0 {
            new &= !LVT_REMOTE_IRR;
        }
        self.lvt[entry as usize] = new;
        match entry {
            LvtEntry::Timer => self.timer.change_mode(old, new),
            LvtEntry::Lint0 => self.sample_lint0_level(effects),
            _ => {}
        }
    }

    /// Writes SVR; software disable masks every LVT entry.
    pub(super) fn set_svr(&mut self, value: u32) {
        self.svr = value & SVR_BITS;
        if !self.is_software_enabled() {
            self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
        }
    }

    /// Catches the timer up with `now_ns`.
    pub(super) fn advance_timer(&mut self, now_ns: u64, rates: Rates, effects: &mut Effects) {
        if self.timer.advance(self.lvt(LvtEntry::Timer), now_ns, rates) {
            self.raise(LvtEntry::Timer, effects);
        }
    }

    /// The field of a saved state that no local APIC of this kind can have.
    pub(super) fn impossible_field(&self, kind: &LocalApicKind) -> Option<&'static str> {
        let mut probe = Self::power_up(kind);
        let is_base_possible = match mode_of(self.base) {
            Some(ApicMode::X2Apic) => probe.set_base(self.base, kind).is_ok() && self.id == kind.id,
            Some(_) => probe.set_base(self.base, kind).is_ok() && self.id <= 0xFF,
            None => false,
        };
        let lvt_ok = LvtEntry::ALL.iter().all(|&e| self.lvt(e) & !e.defined() == 0);
        let icr_ok = self.icr_low & !ICR_LOW_BITS == 0
            && (self.mode() == ApicMode::X2Apic || self.icr_high & !ICR_HIGH_XAPIC == 0);
        let vectors = [&self.irr, &self.isr, &self.tmr];
        [
            (is_base_possible, "base"),
            (u32::from(self.model) <= DFR_FLAT, "model"),
            (self.svr & !SVR_BITS == 0, "svr"),
            (!vectors.iter().any(|set| set.has_illegal()), "irr"),
            ((self.esr | self.errors) & !ESR_BITS == 0, "esr"),
            (icr_ok, "icr"),
            (lvt_ok, "lvt"),
            (self.timer.is_valid(), "timer"),
        ]
        .into_iter()
        .find_map(|(is_possible, field)| (!is_possible).then_some(field))
    }
}

/// The mode that `base` selects; `None` for EXTD without EN.
pub(super) fn mode_of(base: u64) -> Option<ApicMode> {
    match (base & BASE_EN != 0, base & BASE_EXTD != 0) {
        (false, false) => Some(ApicMode::Disabled),
        (true, false) => Some(ApicMode::XApic),
        (true, true) => Some(ApicMode::X2Apic),
        (false, true) => None,
    }
}
