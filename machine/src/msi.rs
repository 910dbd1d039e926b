//! Message-signalled interrupts: a write of `data` to an address in FEE0_0000H to FEEF_FFFFH.
//!
//! Sources: Intel SDM Vol. 3A, "Message Signalled Interrupts"; the extended destination ID of
//! Linux's "KVM-specific MSRs and features" (`KVM_FEATURE_MSI_EXT_DEST_ID`): address bits 11:5 are
//! destination bits 14:8.

use std::sync::Arc;

use memory::{Device, IoError, Width};

use crate::lapic::{DeliveryMode, Destination, Message, MessageSink, TriggerMode};
use crate::pci::{self, MessageSink as _};

/// The first address of the window.
pub const MSI_WINDOW_BASE: u64 = 0xFEE0_0000;
/// The size of the window in bytes.
pub const MSI_WINDOW_BYTES: u64 = 0x10_0000;

const ADDRESS_DESTINATION_LOGICAL: u64 = 1 << 2;
const ADDRESS_REDIRECTION_HINT: u64 = 1 << 3;
const DATA_LEVEL_ASSERT: u32 = 1 << 14;
const DATA_TRIGGER_LEVEL: u32 = 1 << 15;

/// The message that a write of `data` to `address` is; `None` if it is none: another address, a
/// reserved delivery mode, or the de-assertion of a level, which no local APIC knows.
pub fn decode_msi(address: u64, data: u32) -> Option<Message> {
    let offset = address.checked_sub(MSI_WINDOW_BASE).filter(|&o| o < MSI_WINDOW_BYTES)?;
    let id = (offset >> 12) as u32 | (((offset >> 5 & 0x7F) as u32) << 8);
    let is_level = data & DATA_TRIGGER_LEVEL != 0;
    if is_level && data & DATA_LEVEL_ASSERT == 0 {
        return None;
    }
    let delivery = match DeliveryMode::from_bits(data)? {
        // The hint lets the bus choose among the destinations.
        DeliveryMode::Fixed if offset & ADDRESS_REDIRECTION_HINT != 0 => {
            DeliveryMode::LowestPriority
        }
        // A start-up message is an IPI's alone.
        DeliveryMode::StartUp => return None,
        other => other,
    };
    Some(Message {
        destination: Destination::from_bus(id, offset & ADDRESS_DESTINATION_LOGICAL != 0),
        delivery,
        vector: data as u8,
        trigger: if is_level { TriggerMode::Level } else { TriggerMode::Edge },
    })
}

/// The window as a device, for DMA writes and for CPUs whose local APIC does not claim the page,
/// and as what PCI functions send their messages to.
pub struct MsiWindow {
    sink: Arc<dyn MessageSink>,
}

impl MsiWindow {
    /// A window that delivers to `sink`.
    pub fn new(sink: Arc<dyn MessageSink>) -> Self {
        Self { sink }
    }
}

impl Device for MsiWindow {
    fn read(&self, _offset: u64, _width: Width) -> Result<u64, IoError> {
        Err(IoError::NoRegister)
    }

    /// An aligned dword is a message; other writes are nothing's.
    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Dword || offset & 3 != 0 {
            return Err(IoError::NoRegister);
        }
        self.message(MSI_WINDOW_BASE.wrapping_add(offset), value as u32);
        Ok(())
    }
}

impl pci::MessageSink for MsiWindow {
    fn message(&self, address: u64, data: u32) {
        if let Some(message) = decode_msi(address, data) {
            self.sink.deliver(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(address: u64, data: u32, destination: Destination, delivery: DeliveryMode) {
        let message = decode_msi(address, data).expect("a message");
        assert_eq!((message.destination, message.delivery), (destination, delivery));
        assert_eq!(message.vector, data as u8);
        let is_level = data & DATA_TRIGGER_LEVEL != 0;
        assert_eq!(message.trigger == TriggerMode::Level, is_level);
    }

    #[test]
    #[rustfmt::skip]
    fn address_and_data_decode_by_the_manual() {
        check(0xFEE0_0000, 0x0031, Destination::Physical(0), DeliveryMode::Fixed);
        check(0xFEE0_5000, 0xC031, Destination::Physical(5), DeliveryMode::Fixed);
        check(0xFEEF_F000, 0x0040, Destination::All, DeliveryMode::Fixed);
        check(0xFEE0_3004, 0x0040, Destination::Logical8(3), DeliveryMode::Fixed);
        check(0xFEE0_300C, 0x0040, Destination::Logical8(3), DeliveryMode::LowestPriority);
        check(0xFEE0_3004, 0x0140, Destination::Logical8(3), DeliveryMode::LowestPriority);
        check(0xFEE0_1000, 0x0400, Destination::Physical(1), DeliveryMode::Nmi);
        check(0xFEE0_1000, 0x0500, Destination::Physical(1), DeliveryMode::Init);
        check(0xFEE0_1000, 0x0700, Destination::Physical(1), DeliveryMode::ExtInt);
        check(0xFEE0_1020, 0x0031, Destination::Physical(0x101), DeliveryMode::Fixed);
        check(0xFEEF_FFE0, 0x0031, Destination::Physical(0x7FFF), DeliveryMode::Fixed);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (address, data) in [
            (0xFED0_0000, 0x31),
            (0xFEF0_0000, 0x31),
            (0xFEE0_0000, 0x0331),
            (0xFEE0_0000, 0x0631),
            (0xFEE0_0000, 0x8031),
        ] {
            assert_eq!(decode_msi(address, data), None, "{address:#x} {data:#x}");
        }
    }
}
