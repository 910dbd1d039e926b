//! KVM's paravirtual features, in software.

/// What the guest has set up.
pub(crate) struct Paravirtual;

impl Paravirtual {
    pub(crate) fn new() -> Self {
        Self
    }
}
impl crate::Cpu {
    /// Called before an interrupt is delivered to the guest (PV EOI).
    pub(crate) fn before_interrupt(&mut self, _vector: u8) {}
    /// VMCALL and VMMCALL.
    pub(crate) fn hypercall(&mut self) -> crate::exception::Exec {
        Ok(())
    }
}
