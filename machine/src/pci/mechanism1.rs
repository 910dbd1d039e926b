//! Configuration mechanism 1: CONFIG_ADDRESS at CF8h, CONFIG_DATA at CFCh.
//!
//! Source: PCI Local Bus Specification 3.0, "Software Generation of Configuration Transactions".
//! Only a doubleword access reaches CONFIG_ADDRESS; narrower ones are plain I/O, of which CF9h has
//! a device: the reset control register.

use std::sync::{Arc, Mutex};

use memory::{Device, IoError, Width};

use super::DevFn;
use super::bus::PciBus;
use crate::chip::{Chip, RestoreError, decode, encode};
use crate::guard::lock;

const ENABLE: u32 = 1 << 31;
/// Reserved bits read as 0.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
const CONFIG_DATA: u64 = 4;
const RESET_CONTROL: u64 = 1;
/// Ports of the two registers.
pub const PORT_COUNT: u32 = 8;
const NAME: &str = "pci-mechanism1";
const VERSION: u16 = 1;

/// CONFIG_ADDRESS and CONFIG_DATA, as the device behind ports CF8h to CFFh.
pub struct Mechanism1 {
    bus: Arc<PciBus>,
    /// RST_CNT at CF9h, of one port.
    reset_control: Arc<dyn Device>,
    address: Mutex<u32>,
}

impl Mechanism1 {
    /// The registers in front of `bus`, with `reset_control` at CF9h.
    pub fn new(bus: Arc<PciBus>, reset_control: Arc<dyn Device>) -> Arc<Self> {
        Arc::new(Self { bus, reset_control, address: Mutex::new(0) })
    }

    /// Bus, function and register that CONFIG_DATA at `offset` is now, if it is enabled.
    fn selected(&self, offset: u64) -> Option<(u8, DevFn, u16)> {
        let address = *lock(&self.address);
        let [register, at, bus, _] = address.to_le_bytes();
        let register = u16::from(register & 0xfc) + (offset & 3) as u16;
        (address & ENABLE != 0).then_some((bus, DevFn(at), register))
    }
}

/// CONFIG_DATA accesses stay inside its doubleword.
fn check_data(offset: u64, width: Width) -> Result<(), IoError> {
    match (offset & 3) + width.bytes() {
        0..=4 => Ok(()),
        _ => Err(IoError::Width),
    }
}

impl Device for Mechanism1 {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        match (offset, width) {
            (0, Width::Dword) => Ok(u64::from(*lock(&self.address))),
            (RESET_CONTROL, Width::Byte) => self.reset_control.read(0, width),
            (0..CONFIG_DATA, Width::Byte) => Err(IoError::NoRegister),
            (0..CONFIG_DATA, _) => Err(IoError::Width),
            _ => {
                check_data(offset, width)?;
                let found = self.selected(offset);
                let value = found.map(|(bus, at, reg)| self.bus.read(bus, at, reg, width));
                Ok(u64::from(value.unwrap_or(u32::MAX)) & width.mask())
            }
        }
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        match (offset, width) {
            (0, Width::Dword) => *lock(&self.address) = value as u32 & ADDRESS_BITS,
            (RESET_CONTROL, Width::Byte) => return self.reset_control.write(0, width, value),
            (0..CONFIG_DATA, Width::Byte) => return Err(IoError::NoRegister),
            (0..CONFIG_DATA, _) => return Err(IoError::Width),
            _ => {
                check_data(offset, width)?;
                if let Some((bus, at, register)) = self.selected(offset) {
                    self.bus.write(bus, at, register, width, value as u32);
                }
            }
        }
        Ok(())
    }
}

impl Chip for Mechanism1 {
    fn name(&self) -> &str {
        NAME
    }

    fn reset(&self) {
        *lock(&self.address) = 0;
    }

    fn save(&self) -> Vec<u8> {
        encode(VERSION, &*lock(&self.address))
    }

    fn restore(&self, saved: &[u8]) -> Result<(), RestoreError> {
        let address: u32 = decode(NAME, VERSION, saved)?;
        if address & !ADDRESS_BITS != 0 {
            return Err(RestoreError::Value { chip: NAME, field: "CONFIG_ADDRESS" });
        }
        *lock(&self.address) = address;
        Ok(())
    }
}
