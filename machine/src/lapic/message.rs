//! What travels between APICs: who is meant, and what is to be done there.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::pic8259::PicPair;

/// How the destination takes the message; the encoding of ICR, LVT, REDTBL and MSI data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    Fixed = 0,
    /// The vector, at the one destination that runs at the lowest priority.
    LowestPriority = 1,
    /// System management interrupt; accepted and ignored, there is no SMM.
    Smi = 2,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// Initialises the CPU, which then waits for a start-up IPI.
    Init = 5,
    /// Start-up IPI: execution starts at `vector << 12`.
    StartUp = 6,
    /// The 8259A pair supplies the vector.
    ExtInt = 7,
}

impl DeliveryMode {
    /// The mode in bits 10:8 of `bits`; `None` for the reserved encoding 3.
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits >> 8 & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// True if the message's vector is the interrupt's.
    pub fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Edge or level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerMode {
    /// The message stands for itself.
    Edge,
    /// The EOI is broadcast to the I/O APICs.
    Level,
}

/// Who a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The local APIC with this ID.
    Physical(u32),
    /// The members of a logical destination in 8 bits: xAPIC's, the I/O APIC's, an MSI's.
    Logical8(u8),
    /// The members of a logical destination of x2APIC: cluster in bits 31:16, members below.
    Logical32(u32),
    /// Every local APIC.
    All,
    /// Every local APIC but that of CPU `sender` (its index, not its ID).
    AllBut {
        /// The index of the CPU that sends.
        sender: u32,
    },
    /// Only the local APIC of CPU `sender`.
    Only {
        /// The index of the CPU that sends.
        sender: u32,
    },
}

/// The broadcast ID of 8-bit destinations.
const BROADCAST_8: u32 = 0xFF;

impl Destination {
    /// The destination that an I/O APIC entry or an MSI names. IDs above 255 come from the
    /// extended destination ID; they are physical.
    pub fn from_bus(id: u32, is_logical: bool) -> Self {
        match (is_logical, u8::try_from(id)) {
            (false, _) if id == BROADCAST_8 => Self::All,
            (true, Ok(mda)) => Self::Logical8(mda),
            _ => Self::Physical(id),
        }
    }

    /// The destination that an x2APIC's ICR names in its bits 63:32.
    pub(super) fn from_x2apic(id: u32, is_logical: bool) -> Self {
        match (id, is_logical) {
            (u32::MAX, _) => Self::All,
            (_, true) => Self::Logical32(id),
            (_, false) => Self::Physical(id),
        }
    }
}

/// An interrupt message on the APICs' bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who it is for.
    pub destination: Destination,
    /// What it does there.
    pub delivery: DeliveryMode,
    /// The vector, or the start-up page.
    pub vector: u8,
    /// Whether the EOI is broadcast.
    pub trigger: TriggerMode,
}

/// Takes interrupt messages: the bus of the local APICs.
pub trait MessageSink: Send + Sync {
    /// Delivers `message`; false if nobody took it. Called with no chip lock held.
    fn deliver(&self, message: Message) -> bool;
    /// What [`EoiSink::awaited`] says may have changed. Called with no chip lock held.
    fn awaited_changed(&self) {}
}

/// An eventfd, and the message that a write to it sends.
#[derive(Clone, Debug)]
pub struct WatchedEvent {
    /// The eventfd. Whoever sends the message takes its count.
    pub event: Arc<OwnedFd>,
    /// The message.
    pub message: Message,
}

/// An engine's own local APICs, while all registers are with them. [`crate::lapic::ApicBus`] sends
/// them what is for CPUs, and never an ExtINT: that is the CPU's to ask the chip for.
pub trait ApicBorrower: Send + Sync {
    /// Delivers `message`, which names its destination without its sender; false if nobody took it.
    fn deliver(&self, message: Message) -> bool;
    /// From now on [`crate::lapic::LocalApic::broadcast_eoi`] is to be called at the end of these
    /// messages' interrupts; at the end of others it may be.
    fn await_ends(&self, messages: &[Message]);
    /// From now on the engine sends what these events ask for, none of which is an ExtINT, and no
    /// others: what those were written before is delivered when this returns, or still in their
    /// counts. Tells of each whether it does, of none if it never does.
    fn watch(&self, _events: &[WatchedEvent]) -> Vec<bool> {
        Vec::new()
    }
}

/// Learns of the end of level-triggered interrupts: an I/O APIC.
pub trait EoiSink: Send + Sync {
    /// A local APIC ended level-triggered `vector`. Called with no chip lock held.
    fn end_of_interrupt(&self, vector: u8);
    /// The level-triggered messages that it may send or has sent.
    fn awaited(&self) -> Vec<Message> {
        Vec::new()
    }
}

/// Supplies the vector of an ExtINT: the 8259A pair.
pub trait ExtIntSource: Send + Sync {
    /// The two INTA cycles; a spurious vector if nothing is pending. Called with no lock held.
    fn acknowledge(&self) -> u8;
}

impl ExtIntSource for PicPair {
    fn acknowledge(&self) -> u8 {
        Self::acknowledge(self)
    }
}
