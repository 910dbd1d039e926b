//! The A20 gate: one latch that the keyboard controller and port 92h both drive.
//!
//! On a real board the two are ORed, so software that switches the gate off has to know both. Here
//! the last writer decides and both show the result, which every known way of switching the gate
//! off and on again works with (known departure). The gate is open after reset, as on any board
//! whose firmware has run.

use std::sync::Arc;

use memory::PhysicalSpace;

use crate::chip::{Chip, RestoreError, decode, encode};

const VERSION: u16 = 1;

/// The gate on address line 20 of a guest-physical space.
pub struct A20Gate {
    space: Arc<PhysicalSpace>,
}

impl A20Gate {
    /// The gate of `space`.
    pub fn new(space: Arc<PhysicalSpace>) -> Arc<Self> {
        Arc::new(Self { space })
    }

    /// Lets address line 20 pass, or holds it low.
    pub fn set(&self, is_open: bool) {
        self.space.mask_a20(!is_open);
    }

    /// True if address line 20 passes.
    pub fn is_open(&self) -> bool {
        self.space.is_a20_enabled()
    }
}

impl Chip for A20Gate {
    fn name(&self) -> &str {
        "a20"
    }

    fn reset(&self) {
        self.set(true);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &self.is_open())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        self.set(decode("a20", VERSION, saved)?);
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use memory::Ram;

    /// A gate on a small space of its own.
    pub(crate) fn gate() -> Arc<A20Gate> {
        let ram = Arc::new(Ram::new(1 << 16).expect("64 KiB of RAM"));
        A20Gate::new(Arc::new(PhysicalSpace::new(ram)))
    }

    #[test]
    fn reset_opens_the_gate_and_the_state_survives_saving() {
        let gate = gate();
        gate.set(false);
        let saved = gate.save();
        gate.reset();
        assert!(gate.is_open());
        assert_eq!(gate.restore(&saved), Ok(()));
        assert!(!gate.is_open());
    }
}
