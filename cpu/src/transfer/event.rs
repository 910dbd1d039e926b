//! Delivery of exceptions and interrupts: what happens around the gate.
//!
//! Sources: SDM Vol. 3A, "Interrupt and Exception Handling"; double faults: "Interrupt 8-Double
//! Fault Exception (#DF)"; RF: "Instruction-Breakpoint Exception Condition".

use trace::InterruptSource;

use crate::Cpu;
use crate::debug::{DR6_BD, DR7_GD};
use crate::debugger::Caught;
use crate::descriptor::Selector;
use crate::exception::{Exception, Exec, Vector};
use crate::mode::OperatingMode;
use crate::state::{Activity, rflags};

/// The bit of an error code that says: while delivering an event from outside the program.
const EXT: u16 = 1;
/// The bit of an error code that says: a gate of the IDT.
const IDT: u16 = 2;
/// The longest chain of faults in delivering faults is #AC, #PF, #GP, #DF, shutdown; more cannot
/// be.
const MAX_NESTING: u32 = 8;

/// Instructions that raise an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Software {
    /// INT n: the gate's DPL and, in virtual-8086 mode, IOPL and redirection decide.
    IntN,
    /// INT3 and INTO: the gate's DPL decides.
    Int3OrInto,
    /// INT1: as from hardware.
    Int1,
}

/// An event on its way through a gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    pub(crate) error_code: Option<u16>,
    /// The gate's DPL is checked.
    pub(crate) is_software: bool,
    /// RFLAGS as it is pushed.
    pub(crate) rflags: u64,
    /// RIP as it is pushed.
    pub(crate) return_rip: u64,
}

impl Event {
    /// The error code of faults that concern the event's own gate.
    pub(crate) fn gate_code(&self) -> u16 {
        u16::from(self.vector) * 8 + IDT
    }
}

/// The classes of the double-fault table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

impl Class {
    fn of(vector: Vector) -> Self {
        match vector {
            Vector::DivideError
            | Vector::InvalidTss
            | Vector::SegmentNotPresent
            | Vector::StackFault
            | Vector::GeneralProtection => Self::Contributory,
            Vector::PageFault => Self::PageFault,
            Vector::DoubleFault => Self::DoubleFault,
            _ => Self::Benign,
        }
    }
}

/// What becomes of `second`, raised while `first` was delivered; `None` is shutdown.
fn combine(first: Vector, second: Exception) -> Option<Exception> {
    const DOUBLE_FAULT: Exception = Exception::with_code(Vector::DoubleFault, 0);
    let second_class = Class::of(second.vector);
    match (Class::of(first), second_class) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => None,
        (Class::Contributory, Class::Contributory) => Some(DOUBLE_FAULT),
        (Class::PageFault, Class::Contributory | Class::PageFault) => Some(DOUBLE_FAULT),
        _ => Some(second),
    }
}

/// `exception` with EXT set, if its error code has that bit.
fn external(exception: Exception) -> Exception {
    let has_ext = matches!(
        exception.vector,
        Vector::InvalidTss
            | Vector::SegmentNotPresent
            | Vector::StackFault
            | Vector::GeneralProtection
    );
    let error_code = exception.error_code.map(|code| if has_ext { code | EXT } else { code });
    Exception { error_code, ..exception }
}

impl Cpu {
    /// Delivers an exception raised by the instruction at RIP; nested faults become double faults
    /// and a triple fault shuts the CPU down.
    pub(crate) fn deliver_exception(&mut self, exception: Exception) {
        let mut current = exception;
        let rip = self.state.rip;
        for _ in 0..MAX_NESTING {
            self.catch_exception(current, rip);
            log::trace!(target: "cpu::exception", "{current:x?} at {:#x}", self.state.rip);
            self.record_exception(current);
            let event = self.exception_event(current);
            let Err(nested) = self.deliver(&event) else { return };
            match combine(current.vector, external(nested)) {
                Some(next) => current = next,
                None => break,
            }
        }
        log::debug!(target: "cpu::exception", "triple fault at {:#x}", self.state.rip);
        self.state.activity = Activity::Shutdown;
        self.break_block = true;
        self.catch(|| Caught::TripleFault { rip });
    }

    /// Delivers a maskable interrupt.
    pub(crate) fn deliver_interrupt(&mut self, vector: u8) {
        self.record_interrupt(vector, InterruptSource::External);
        self.deliver_external(vector);
    }

    /// Delivers an NMI. The caller has blocked further ones.
    pub(crate) fn deliver_nmi(&mut self) {
        self.record_interrupt(Vector::Nmi as u8, InterruptSource::NonMaskable);
        self.deliver_external(Vector::Nmi as u8);
    }

    fn deliver_external(&mut self, vector: u8) {
        let event = Event {
            vector,
            error_code: None,
            is_software: false,
            rflags: self.state.rflags,
            return_rip: self.state.rip,
        };
        self.catch(|| Caught::Interrupt { vector, rip: event.return_rip });
        if let Err(fault) = self.deliver(&event) {
            self.deliver_exception(external(fault));
        }
    }

    /// INT n, INT3, INTO and INT1, from inside the instruction. A fault is the instruction's.
    pub(crate) fn software_interrupt(&mut self, vector: u8, kind: Software) -> Exec {
        let rip = self.state.rip;
        let event = Event {
            vector,
            error_code: None,
            is_software: kind != Software::Int1,
            rflags: self.state.rflags,
            return_rip: self.next_rip,
        };
        let is_v86_int =
            kind == Software::IntN && self.mode.operating == OperatingMode::Virtual8086;
        let is_done = is_v86_int && self.virtual_8086_interrupt(&event)?;
        if !is_done {
            let delivered = self.deliver(&event);
            delivered.map_err(|fault| if event.is_software { fault } else { external(fault) })?;
        }
        self.catch_software(vector, kind, rip);
        self.record_interrupt(vector, InterruptSource::Software);
        if kind == Software::Int1 && self.pending_dr6 != 0 {
            // What waited behind MOV SS is part of this #DB.
            self.record_debug_conditions();
        }
        // The handler's first instruction is not stepped: its TF is clear.
        self.suppress_step = true;
        self.break_block = true;
        Ok(())
    }

    /// Stops at INT n, an interrupt, or at the others, exceptions.
    fn catch_software(&mut self, vector: u8, kind: Software, rip: u64) {
        self.catch(|| match kind {
            Software::IntN => Caught::Interrupt { vector, rip },
            _ => Caught::Exception { vector, error_code: None, rip },
        });
    }

    /// The event of an exception at RIP. A debug exception leaves its conditions in DR6 and opens
    /// the debug registers (SDM Vol. 3B, "Debug Status Register (DR6)").
    fn exception_event(&mut self, exception: Exception) -> Event {
        let mut image = self.state.rflags;
        if exception.vector == Vector::Debug {
            image |= self.record_debug_conditions();
        } else {
            // What the instruction would have trapped for is lost with it.
            self.pending_dr6 = 0;
        }
        if exception.sets_resume_flag() {
            image |= rflags::RF;
        }
        Event {
            vector: exception.vector as u8,
            error_code: exception.error_code,
            is_software: false,
            rflags: image,
            return_rip: self.state.rip,
        }
    }

    /// Moves the pending debug conditions into DR6; gives RF for the pushed flags.
    fn record_debug_conditions(&mut self) -> u64 {
        const HITS: u64 = 0xf;
        let pending = std::mem::take(&mut self.pending_dr6);
        self.state.dr[6] = self.state.dr[6] & !HITS | pending;
        if self.state.dr[7] & DR7_GD != 0 {
            self.state.dr[7] &= !DR7_GD;
            self.mode_changed();
        }
        // Of the debug faults, general detect pushes RF = 1 and instruction breakpoints do not.
        if pending & DR6_BD != 0 { rflags::RF } else { 0 }
    }

    /// Takes `event` through its gate. On a fault no register has changed.
    fn deliver(&mut self, event: &Event) -> Exec {
        match self.mode.operating {
            OperatingMode::Real => self.real_interrupt(event),
            OperatingMode::Virtual8086 | OperatingMode::Protected => self.legacy_gate(event),
            OperatingMode::Compatibility | OperatingMode::Long64 => self.long_gate(event),
        }?;
        // A single-step trap behind HLT ends the halt as an interrupt does.
        self.state.activity = Activity::Active;
        Ok(())
    }

    /// The IDT descriptor's address for `event`, whose descriptors have `bytes` bytes.
    pub(crate) fn idt_address(&self, event: &Event, bytes: u64) -> Exec<u64> {
        let offset = u64::from(event.vector) * bytes;
        if offset + bytes - 1 > u64::from(self.state.idtr.limit) {
            return Err(Exception::gp(event.gate_code()));
        }
        Ok(self.state.idtr.base.wrapping_add(offset))
    }

    /// The flags with which a handler starts, behind an interrupt gate or a trap gate.
    pub(crate) fn handler_flags(&self, is_interrupt_gate: bool) -> u64 {
        let cleared = rflags::TF | rflags::NT | rflags::VM | rflags::RF;
        let interrupt = if is_interrupt_gate { rflags::IF } else { 0 };
        self.state.rflags & !(cleared | interrupt)
    }

    /// The selector of the current CS, as frames hold it.
    pub(crate) fn code_selector(&self) -> Selector {
        Selector(self.state.segments[crate::state::seg::CS].selector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM Vol. 3A, table "Conditions for Generating a Double Fault".
    #[test]
    fn nested_faults_combine_as_the_table_says() {
        const DF: Option<Exception> = Some(Exception::with_code(Vector::DoubleFault, 0));
        let (gp, pf, ac) = (Exception::gp(8), Exception::pf(2), Exception::AC);
        let rows = [
            (Vector::Breakpoint, gp, Some(gp)),
            (Vector::Breakpoint, pf, Some(pf)),
            (Vector::DivideError, gp, DF),
            (Vector::InvalidTss, Exception::ts(8), DF),
            (Vector::SegmentNotPresent, Exception::np(8), DF),
            (Vector::StackFault, Exception::DE, DF),
            (Vector::GeneralProtection, pf, Some(pf)),
            (Vector::GeneralProtection, ac, Some(ac)),
            (Vector::PageFault, gp, DF),
            (Vector::PageFault, pf, DF),
            (Vector::PageFault, Exception::UD, Some(Exception::UD)),
            (Vector::DoubleFault, gp, None),
            (Vector::DoubleFault, pf, None),
            (Vector::DoubleFault, ac, Some(ac)),
        ];
        for (first, second, expected) in rows {
            assert_eq!(combine(first, second), expected, "{first:?} then {second:?}");
        }
    }

    #[test]
    fn ext_goes_into_selector_error_codes_only() {
        assert_eq!(external(Exception::gp(0x10)), Exception::gp(0x11));
        assert_eq!(external(Exception::ts(0)), Exception::ts(1));
        assert_eq!(external(Exception::pf(2)), Exception::pf(2));
        assert_eq!(external(Exception::UD), Exception::UD);
    }
}
