//! How one local APIC is addressed, in one word that senders read without its lock.

use super::message::Destination;

/// The mode that IA32_APIC_BASE selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApicMode {
    /// Globally disabled: not on the bus.
    Disabled,
    XApic,
    X2Apic,
}

/// What senders must know about a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) mode: ApicMode,
    /// The ID in the current mode.
    pub(super) id: u32,
    /// LDR bits 31:24 (xAPIC).
    pub(super) logical: u8,
    /// DFR selects the cluster model (xAPIC).
    pub(super) is_cluster: bool,
    /// SVR bit 8: fixed interrupts are accepted.
    pub(super) is_enabled: bool,
    /// PPR, which decides among the destinations of a lowest-priority message.
    pub(super) priority: u8,
}

/// LDR of an x2APIC: the cluster is ID bits 31:4, the member one of 16 bits.
pub(super) fn x2apic_ldr(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 0xF)
}

impl Address {
    pub(super) fn pack(self) -> u64 {
        u64::from(self.id)
            | u64::from(self.logical) << 32
            | u64::from(self.priority) << 40
            | u64::from(self.is_cluster) << 48
            | u64::from(self.is_enabled) << 49
            | (self.mode as u64) << 50
    }

    pub(super) fn unpack(word: u64) -> Self {
        Self {
            mode: match word >> 50 {
                0 => ApicMode::Disabled,
                1 => ApicMode::XApic,
                _ => ApicMode::X2Apic,
            },
            id: word as u32,
            logical: (word >> 32) as u8,
            priority: (word >> 40) as u8,
            is_cluster: word >> 48 & 1 != 0,
            is_enabled: word >> 49 & 1 != 0,
        }
    }

    /// True if the APIC of CPU `cpu` with this address is among `destination`.
    pub(super) fn is_meant(self, cpu: u32, destination: Destination) -> bool {
        self.mode != ApicMode::Disabled
            && match destination {
                Destination::Physical(id) => self.id == id,
                Destination::Logical8(mda) => self.is_logical8(mda),
                Destination::Logical32(mda) => self.is_logical32(mda),
                Destination::All => true,
                Destination::AllBut { sender } => cpu != sender,
                Destination::Only { sender } => cpu == sender,
            }
    }

    /// SDM Vol. 3A, "Logical Destination Mode".
    fn is_logical8(self, mda: u8) -> bool {
        match (self.mode, self.is_cluster) {
            // An 8-bit broadcast must reach everyone; any other value names cluster 0.
            (ApicMode::X2Apic, _) => mda == 0xFF || self.is_logical32(mda.into()),
            (_, false) => self.logical & mda != 0,
            (_, true) => {
                mda == 0xFF || mda >> 4 == self.logical >> 4 && self.logical & mda & 0xF != 0
            }
        }
    }

    fn is_logical32(self, mda: u32) -> bool {
        if self.mode != ApicMode::X2Apic {
            return u8::try_from(mda).is_ok_and(|mda| self.is_logical8(mda));
        }
        let ldr = x2apic_ldr(self.id);
        ldr >> 16 == mda >> 16 && ldr & mda & 0xFFFF != 0
    }
}
