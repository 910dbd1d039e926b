//! The configuration registers of one function: bytes, and what writes may do to them.
//!
//! Source: PCI Local Bus Specification 3.0, "Configuration Space Organization" and "Capabilities
//! List".

use memory::Width;

/// Vendor ID.
pub const VENDOR_ID: u16 = 0x00;
/// Device ID.
pub const DEVICE_ID: u16 = 0x02;
/// Command.
pub const COMMAND: u16 = 0x04;
/// Status.
pub const STATUS: u16 = 0x06;
/// Revision ID, then programming interface, subclass and base class.
pub const REVISION_ID: u16 = 0x08;
/// Cache line size.
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Latency timer.
pub const LATENCY_TIMER: u16 = 0x0d;
/// Header type.
pub const HEADER_TYPE: u16 = 0x0e;
/// First base address register.
pub const BAR0: u16 = 0x10;
/// Subsystem vendor ID, then subsystem ID.
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Offset of the first capability.
pub const CAPABILITIES: u16 = 0x34;
/// Interrupt line: what software noted there.
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin: 1 is INTA#.
pub const INTERRUPT_PIN: u16 = 0x3d;

/// Command: responds to I/O.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: responds to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may write to memory, messages included.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command: may not assert its INTx# pin.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status: asserts INTx#, whether disabled or not.
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: has a capabilities list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Parity error response and SERR# enable: kept, without effect.
const COMMAND_ERRORS: u16 = 1 << 6 | 1 << 8;
const COMMAND_WRITABLE: u16 =
    COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE | COMMAND_ERRORS;
/// Status bits that a write of 1 clears.
const STATUS_CLEARED: u16 = 0xf900;

/// Size of a conventional function's configuration space in bytes.
pub const CONVENTIONAL_BYTES: usize = 256;
/// First capability: behind the header.
const FIRST_CAPABILITY: u16 = 0x40;

/// What a function is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: [u16; 2],
    /// Interrupt pin: 0 for none, 1 for INTA# to 4 for INTD#.
    pub interrupt_pin: u8,
    /// True for function 0 of a device that has others.
    pub is_multifunction: bool,
}

/// Configuration registers with their write rules.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// Bits that software sets and clears.
    writable: Vec<u8>,
    /// Bits that software clears by writing 1.
    cleared: Vec<u8>,
    /// Bits that the device itself sets and clears.
    volatile: Vec<u8>,
    /// Values after reset.
    initial: Vec<u8>,
    /// The byte that points to the next capability.
    last_pointer: u16,
    next_capability: u16,
}

impl ConfigSpace {
    /// The registers of a conventional function with a type 0 header.
    pub fn new(identity: &Identity) -> Self {
        let zeroes = || vec![0; CONVENTIONAL_BYTES];
        let mut this = Self {
            bytes: zeroes(),
            writable: zeroes(),
            cleared: zeroes(),
            volatile: zeroes(),
            initial: zeroes(),
            last_pointer: CAPABILITIES,
            next_capability: FIRST_CAPABILITY,
        };
        this.preset(VENDOR_ID, &identity.vendor.to_le_bytes());
        this.preset(DEVICE_ID, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        this.preset(REVISION_ID, &[identity.revision, interface, sub, base]);
        this.preset(HEADER_TYPE, &[if identity.is_multifunction { 0x80 } else { 0 }]);
        let [vendor, subsystem] = identity.subsystem.map(u16::to_le_bytes);
        this.preset(SUBSYSTEM_VENDOR_ID, &[vendor, subsystem].concat());
        this.preset(INTERRUPT_PIN, &[identity.interrupt_pin]);
        this.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        this.allow(CACHE_LINE_SIZE, &[0xff]);
        this.allow(LATENCY_TIMER, &[0xff]);
        this.allow(INTERRUPT_LINE, &[0xff]);
        put(&mut this.cleared, STATUS, &STATUS_CLEARED.to_le_bytes());
        this.note_volatile(STATUS, &STATUS_INTERRUPT.to_le_bytes());
        this
    }

    /// Sets registers now and after every reset.
    pub fn preset(&mut self, offset: u16, bytes: &[u8]) {
        put(&mut self.bytes, offset, bytes);
        put(&mut self.initial, offset, bytes);
    }

    /// Lets software write the bits set in `mask`.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        put(&mut self.writable, offset, mask);
    }

    /// Says that the device itself sets and clears the bits of `mask`.
    pub fn note_volatile(&mut self, offset: u16, mask: &[u8]) {
        put(&mut self.volatile, offset, mask);
    }

    /// Appends a capability: its ID, what follows the next-pointer, and which of that is writable.
    /// Returns its offset, or `None` if the space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let at = self.next_capability;
        let end = usize::from(at) + 2 + body.len();
        if end > CONVENTIONAL_BYTES {
            return None;
        }
        self.preset(at, &[id, 0]);
        self.preset(at + 2, body);
        self.allow(at + 2, writable);
        let pointer = self.last_pointer;
        self.preset(pointer, &[at as u8]);
        self.preset(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_pointer = at + 1;
        self.next_capability = end.next_multiple_of(4) as u16;
        Some(at)
    }

    /// Reads; what lies behind the space reads as all ones.
    pub fn read(&self, offset: u16, width: Width) -> u32 {
        (0..width.bytes() as u16)
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(self.u8(offset.wrapping_add(byte))))
    }

    /// Writes as software does, within the write rules.
    pub fn write(&mut self, offset: u16, width: Width, value: u32) {
        let bytes = value.to_le_bytes();
        for (index, &new) in bytes.iter().take(width.bytes() as usize).enumerate() {
            let at = usize::from(offset) + index;
            let (Some(byte), Some(&writable), Some(&cleared)) =
                (self.bytes.get_mut(at), self.writable.get(at), self.cleared.get(at))
            else {
                return;
            };
            *byte = (*byte & !writable | new & writable) & !(new & cleared);
        }
    }

    /// A byte, or FFh behind the space.
    pub fn u8(&self, offset: u16) -> u8 {
        self.bytes.get(usize::from(offset)).copied().unwrap_or(0xff)
    }

    /// A word.
    pub fn u16(&self, offset: u16) -> u16 {
        self.read(offset, Width::Word) as u16
    }

    /// A doubleword.
    pub fn u32(&self, offset: u16) -> u32 {
        self.read(offset, Width::Dword)
    }

    /// Sets registers as the device does, without write rules and until the next reset.
    pub fn set(&mut self, offset: u16, bytes: &[u8]) {
        put(&mut self.bytes, offset, bytes);
    }

    /// Sets or clears bits of the status register as the device does.
    pub fn set_status(&mut self, bits: u16, level: bool) {
        let old = self.u16(STATUS);
        let new = if level { old | bits } else { old & !bits };
        self.set(STATUS, &new.to_le_bytes());
    }

    /// Puts every register to its value after reset.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.initial);
    }

    /// The registers, for saving.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// True if `saved` differs from the registers after reset only where software or the device
    /// itself can have changed them.
    pub fn accepts(&self, saved: &[u8]) -> bool {
        let rules = self.writable.iter().zip(&self.cleared).zip(&self.volatile);
        let fixed = rules.map(|((writable, cleared), volatile)| !(writable | cleared | volatile));
        saved.len() == self.initial.len()
            && saved
                .iter()
                .zip(&self.initial)
                .zip(fixed)
                .all(|((new, old), fixed)| (new ^ old) & fixed == 0)
    }

    /// Takes registers that [`ConfigSpace::accepts`] accepted.
    pub fn restore(&mut self, saved: &[u8]) {
        put(&mut self.bytes, 0, saved);
    }
}

/// Copies `bytes` into `to` at `offset`; what does not fit is dropped.
fn put(to: &mut [u8], offset: u16, bytes: &[u8]) {
    let start = usize::from(offset);
    if let Some(field) = to.get_mut(start..start + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: [2, 0, 0],
            subsystem: [0x1af4, 7],
            interrupt_pin: 1,
            is_multifunction: false,
        })
    }

    #[test]
    fn identity_reads_back_and_resists_writes() {
        let mut space = space();
        for offset in (0..256).step_by(4) {
            space.write(offset, Width::Dword, u32::MAX);
        }
        assert_eq!(space.u32(VENDOR_ID), 0x1041_1af4);
        assert_eq!(space.u32(REVISION_ID), 0x0200_0001);
        assert_eq!(space.u16(COMMAND), COMMAND_WRITABLE);
        assert_eq!(space.u16(STATUS), 0);
        assert_eq!(space.u32(SUBSYSTEM_VENDOR_ID), 0x0007_1af4);
        assert_eq!(space.u16(INTERRUPT_LINE), 0x01ff);
        assert_eq!(space.read(256, Width::Dword), u32::MAX);
        space.reset();
        assert_eq!((space.u16(COMMAND), space.u8(INTERRUPT_LINE)), (0, 0));
    }

    #[test]
    fn status_errors_clear_by_writing_ones() {
        let mut space = space();
        space.set_status(0x2000, true);
        space.write(STATUS, Width::Word, 0);
        assert_eq!(space.u16(STATUS), 0x2000);
        space.write(STATUS, Width::Word, 0x2000);
        assert_eq!(space.u16(STATUS), 0);
    }

    #[test]
    fn capabilities_are_a_list_until_the_space_is_full() {
        let mut space = space();
        let first = space.add_capability(5, &[0; 5], &[]).unwrap();
        let second = space.add_capability(0x11, &[0x12, 0x34], &[0xff]).unwrap();
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(space.u8(CAPABILITIES), 0x40);
        assert_eq!((space.u16(first), space.u16(second)), (0x4805, 0x0011));
        assert_eq!(space.u16(STATUS) & STATUS_CAPABILITIES, STATUS_CAPABILITIES);
        space.write(second + 2, Width::Word, 0);
        assert_eq!(space.u16(second + 2), 0x3400);
        assert_eq!(space.add_capability(9, &[0; 200], &[]), None);
    }

    #[test]
    fn saved_registers_are_refused_where_no_write_can_have_reached() {
        let mut space = space();
        space.write(COMMAND, Width::Word, 7);
        let mut saved = space.bytes().to_vec();
        assert!(space.accepts(&saved));
        saved[0] ^= 1;
        assert!(!space.accepts(&saved));
        assert!(!space.accepts(&[0; 255]));
    }
}
