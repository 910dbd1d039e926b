//! The reset control register (CF9h) of Intel chipsets.
//!
//! Source: Intel ICH9 datasheet, "RST_CNT - Reset Control Register". A write that takes RST_CPU
//! from 0 to 1 resets; SYS_RST and FULL_RST say how thoroughly.
//! Known departures: every kind of reset resets the whole machine.
//!
//! CF9h lies inside the doubleword of PCI's CONFIG_ADDRESS (CF8h), which only doubleword accesses
//! reach: the PCI host bridge hands byte accesses at its offset 1 to this device.

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};

use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;
use crate::signals::{PowerEvent, PowerSink};

const SYS_RST: u8 = 1 << 1;
const RST_CPU: u8 = 1 << 2;
const FULL_RST: u8 = 1 << 3;
const VERSION: u16 = 1;

/// RST_CNT.
pub struct Cf9 {
    register: Mutex<u8>,
    power: Arc<dyn PowerSink>,
}

impl Cf9 {
    /// The register, telling `power` of resets.
    pub fn new(power: Arc<dyn PowerSink>) -> Arc<Self> {
        Arc::new(Self { register: Mutex::new(0), power })
    }
}

impl Device for Cf9 {
    fn read(&self, _offset: u64, width: Width) -> Result<u64, IoError> {
        if width == Width::Byte {
            Ok(u64::from(*lock(&self.register)))
        } else {
            Err(IoError::Width)
        }
    }

    fn write(&self, _offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let now = value as u8 & (SYS_RST | RST_CPU | FULL_RST);
        let before = std::mem::replace(&mut *lock(&self.register), now);
        if now & !before & RST_CPU != 0 {
            self.power.power(PowerEvent::Reset);
        }
        Ok(())
    }
}

impl Chip for Cf9 {
    fn name(&self) -> &str {
        "cf9"
    }

    fn reset(&self) {
        *lock(&self.register) = 0;
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.register))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let register: u8 = decode("cf9", VERSION, saved)?;
        if register & !(SYS_RST | RST_CPU | FULL_RST) != 0 {
            return Err(RestoreError::Value { chip: "cf9", field: "register" });
        }
        *lock(&self.register) = register;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_lines::PowerLog;

    #[test]
    fn a_rising_rst_cpu_resets_once() {
        let power = Arc::new(PowerLog::default());
        let port = Cf9::new(power.clone());
        for (value, resets) in [(2, 0), (6, 1), (6, 1), (0, 1), (0x0e, 2)] {
            assert_eq!(port.write(0, Width::Byte, value), Ok(()));
            assert_eq!(power.events().len(), resets, "after writing {value:#x}");
        }
        assert_eq!(port.read(0, Width::Byte), Ok(0x0e));
    }

    #[test]
    fn takes_any_access() {
        crate::device_fuzz::check_chip(|_| {
            let port = Cf9::new(Arc::new(PowerLog::default()));
            (Arc::clone(&port), vec![(port as Arc<dyn Device>, 1)])
        });
    }
}
