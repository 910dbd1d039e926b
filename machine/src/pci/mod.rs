//! PCI: configuration space, base address registers, interrupts, and the bridges of the board.
//!
//! A function of the bus is a [`PciFunction`]: something with configuration registers. Endpoints
//! are built from [`endpoint::EndpointSpec`], which says what a data sheet's first page would; the
//! bridges ([`host_bridge`], [`isa_bridge`]) are functions of their own. [`bus::PciBus`] finds a
//! function by its number; guests reach it through configuration mechanism 1 ([`mechanism1`]) and
//! through ECAM ([`ecam`]).
//!
//! Lock order: a function's lock, then the locks inside [`memory::PhysicalSpace`] and
//! [`memory::PortSpace`], which call nobody. Lines and messages go out with no lock held.
//!
//! Known departures: one bus, no bridges to others; no hot plug, no power management capability.

pub mod assign;
pub mod bar;
pub mod bus;
pub mod config_space;
pub mod ecam;
pub mod endpoint;
pub mod host_bridge;
pub mod isa_bridge;
pub mod mechanism1;
pub mod msi;
pub mod msix;
pub mod pam;
pub mod pirq;
pub mod testdev;

use memory::Width;

use crate::chip::Chip;
use bar::BarSnapshot;

/// Device and function number on bus 0: device in bits 7..3, function in bits 2..0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevFn(pub u8);

impl DevFn {
    /// Function `function` of device `device`; bits beyond 5 and 3 are dropped.
    pub const fn new(device: u8, function: u8) -> Self {
        Self((device & 0x1f) << 3 | function & 7)
    }

    /// The device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

/// A function as the bus sees it.
pub trait PciFunction: Chip {
    /// Reads configuration registers; `offset` is below 4096, and the access does not cross a
    /// doubleword.
    fn config_read(&self, offset: u16, width: Width) -> u32;
    /// Writes configuration registers; `offset` as for reads.
    fn config_write(&self, offset: u16, width: Width, value: u32);
    /// What it decodes.
    fn bars(&self) -> Vec<BarSnapshot> {
        Vec::new()
    }
}

/// Takes message-signalled interrupts: memory writes to the local APICs' range. Called with no lock
/// of the sender held.
pub trait MessageSink: Send + Sync {
    /// A function wrote `data` to `address`.
    fn message(&self, address: u64, data: u32);
}

#[cfg(test)]
mod tests;
