//! `isa-debug-exit`: a port that ends the virtual machine.
//!
//! A write of `value` ends the process with status `value << 1 | 1`, which test suites turn into
//! pass or fail. Source: QEMU documentation, "isa-debug-exit". Known departures: none.

use std::sync::Arc;

use memory::{Device, IoError, Width};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::signals::{PowerEvent, PowerSink};

const VERSION: u16 = 1;

/// The exit port. Up to four bytes wide; the board says where.
pub struct DebugExit {
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// A port that tells `power` of each write.
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { power })
    }
}

impl Device for DebugExit {
    fn read(&self, _offset: u64, _width: Width) -> Result<u64, IoError> {
        Ok(0)
    }

    fn write(&self, _offset: u64, _width: Width, value: u64) -> Result<(), IoError> {
        self.power.power(PowerEvent::DebugExit(value as u32));
        Ok(())
    }
}

impl Chip for DebugExit {
    fn name(&self) -> &str {
        "debug_exit"
    }

    fn reset(&self) {}

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        decode("debug_exit", VERSION, saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::PowerLog;

    #[test]
    fn every_width_exits_with_the_value_written() {
        let power = Arc::new(PowerLog::default());
        let port = DebugExit::new(power.clone());
        for (width, value) in [(Width::Byte, 0x10), (Width::Word, 0x1234), (Width::Dword, 3)] {
            assert_eq!(port.write(0, width, value), Ok(()));
        }
        let exits = [0x10, 0x1234, 3].map(PowerEvent::DebugExit);
        assert_eq!(power.events(), exits);
        assert_eq!(port.read(0, Width::Byte), Ok(0));
    }
}
