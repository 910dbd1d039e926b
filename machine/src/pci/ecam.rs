//! Enhanced configuration access mechanism: configuration space as memory, 4 KiB a function.
//!
//! Source: PCI Express Base Specification, "PCI Express Enhanced Configuration Access Mechanism
//! (ECAM)".

use std::sync::{Arc, Weak};

use memory::{Device, IoError, Width};

use super::DevFn;
use super::bus::PciBus;

/// The memory-mapped window on the configuration space of buses 0 to 255.
pub struct Ecam {
    /// Weak, for the host bridge on this bus keeps the window.
    bus: Weak<PciBus>,
}

impl Ecam {
    /// A window on `bus`.
    pub fn new(bus: &Arc<PciBus>) -> Arc<Self> {
        Arc::new(Self { bus: Arc::downgrade(bus) })
    }

    fn bus(&self) -> Result<Arc<PciBus>, IoError> {
        self.bus.upgrade().ok_or(IoError::NoRegister)
    }
}

/// Bus, function and register of an offset in the window.
fn split(offset: u64, width: Width) -> Result<(u8, DevFn, u16), IoError> {
    if (offset & 3) + width.bytes() > 4 {
        return Err(IoError::Width);
    }
    let bus = u8::try_from(offset >> 20).map_err(|_| IoError::NoRegister)?;
    Ok((bus, DevFn((offset >> 12) as u8), (offset & 0xfff) as u16))
}

impl Device for Ecam {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let (bus, at, register) = split(offset, width)?;
        Ok(u64::from(self.bus()?.read(bus, at, register, width)))
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        let (bus, at, register) = split(offset, width)?;
        self.bus()?.write(bus, at, register, width, value as u32);
        Ok(())
    }
}
