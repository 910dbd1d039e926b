//! The coprocessor error latch of a PC: FERR# to IRQ 13, and IGNNE# through port F0h.
//!
//! Source: SDM Vol. 1, "MS-DOS Compatibility Sub-mode" (appendix "Guidelines for Writing SIMD
//! Floating-Point Exception Handlers" and its x87 neighbour): with CR0.NE = 0 an unmasked x87
//! exception raises FERR#, which the board turns into IRQ 13; the handler writes port F0h, which
//! drops the interrupt and asserts IGNNE# until FERR# falls.
//!
//! Known departures: one latch for all CPUs, as on boards of the time, where only CPU 0 had one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memory::{Device, IoError, Width};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::line::InterruptLine;

/// Where the latch is cleared.
pub const COPROCESSOR_PORT: u16 = 0xf0;
/// Number of ports: F1h was the coprocessor's reset.
pub const COPROCESSOR_PORT_COUNT: u32 = 2;

const NAME: &str = "coprocessor-error";
const VERSION: u16 = 1;

/// The latch.
pub struct CoprocessorError {
    irq13: InterruptLine,
    is_raised: AtomicBool,
    is_ignored: AtomicBool,
}

impl CoprocessorError {
    /// A latch that drives `irq13`.
    pub fn new(irq13: InterruptLine) -> Arc<Self> {
        let (is_raised, is_ignored) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { irq13, is_raised, is_ignored })
    }

    /// The CPU's FERR# output. Falling ends IGNNE#.
    pub fn set_ferr(&self, level: bool) {
        self.set(level, if level { self.is_ignored() } else { false });
    }

    /// The CPU's IGNNE# input.
    pub fn is_ignored(&self) -> bool {
        self.is_ignored.load(Ordering::Acquire)
    }

    fn set(&self, raised: bool, ignored: bool) {
        self.is_raised.store(raised, Ordering::Release);
        self.is_ignored.store(ignored, Ordering::Release);
        self.irq13.set(raised);
    }
}

impl Device for CoprocessorError {
    fn read(&self, _offset: u64, _width: Width) -> Result<u64, IoError> {
        Err(IoError::NoRegister)
    }

    /// Whatever is written to F0h drops IRQ 13 and asserts IGNNE#; F1h does nothing any more.
    fn write(&self, offset: u64, width: Width, _value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        if offset == 0 {
            self.set(false, true);
        }
        Ok(())
    }
}

impl Chip for CoprocessorError {
    fn name(&self) -> &str {
        NAME
    }

    fn reset(&self) {
        self.set(false, false);
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &(self.is_raised.load(Ordering::Acquire), self.is_ignored()))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let (raised, ignored) = decode::<(bool, bool)>(NAME, VERSION, saved)?;
        self.set(raised, ignored);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::Recorder;

    #[test]
    fn port_f0_drops_the_interrupt_and_ignores_errors_until_ferr_falls() {
        let levels = Recorder::new();
        let latch = CoprocessorError::new(levels.line(0));
        latch.set_ferr(true);
        assert!(levels.level(0) && !latch.is_ignored());
        assert_eq!(latch.write(0, Width::Byte, 0), Ok(()));
        assert!(!levels.level(0) && latch.is_ignored());
        latch.set_ferr(false);
        assert!(!latch.is_ignored());
    }

    #[test]
    fn a_saved_latch_comes_back() {
        let levels = Recorder::new();
        let latch = CoprocessorError::new(levels.line(0));
        latch.set_ferr(true);
        let saved = latch.save();
        latch.reset();
        assert!(!levels.level(0));
        assert_eq!(latch.restore(&saved), Ok(()));
        assert!(levels.level(0));
        assert!(latch.restore(&saved[1..]).is_err());
    }
}
