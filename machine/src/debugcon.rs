//! The debug console of Bochs and QEMU: one port that prints what is written to it.
//!
//! Models `isa-debugcon`: reading gives E9h, by which a guest knows that the port is there, and a
//! written byte goes to the back-end. Source: QEMU documentation, "Invocation", `-debugcon`.
//! Known departures: none.

use std::sync::Arc;

use memory::{Device, IoError, Width};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::serial_backend::SerialBackend;

/// The port where guests look for it.
pub const DEBUGCON_PORT: u16 = 0xe9;
/// What reading the port gives.
const PRESENT: u64 = 0xe9;
const VERSION: u16 = 1;

/// A debug console. One byte-wide register; it has no state.
pub struct Debugcon {
    output: Arc<dyn SerialBackend>,
}

impl Debugcon {
    /// A console that prints to `output`.
    pub fn new(output: Arc<dyn SerialBackend>) -> Arc<Self> {
        Arc::new(Self { output })
    }
}

impl Device for Debugcon {
    fn read(&self, _offset: u64, width: Width) -> Result<u64, IoError> {
        if width == Width::Byte { Ok(PRESENT) } else { Err(IoError::Width) }
    }

    fn write(&self, _offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        self.output.write(&[value as u8]);
        Ok(())
    }
}

impl Chip for Debugcon {
    fn name(&self) -> &str {
        "debugcon"
    }

    fn reset(&self) {}

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        decode("debugcon", VERSION, saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::Sent;

    #[test]
    fn prints_bytes_and_reads_as_present() {
        let sent = Arc::new(Sent::default());
        let console = Debugcon::new(sent.clone());
        for byte in *b"hi" {
            assert_eq!(console.write(0, Width::Byte, u64::from(byte)), Ok(()));
        }
        assert_eq!(console.read(0, Width::Byte), Ok(0xe9));
        assert_eq!(sent.bytes(), b"hi");
    }

    #[test]
    fn takes_any_access() {
        crate::device_fuzz::check_chip(|_| {
            let chip = Debugcon::new(Arc::new(Sent::default()));
            (Arc::clone(&chip), vec![(chip as Arc<dyn Device>, 1)])
        });
    }
}
