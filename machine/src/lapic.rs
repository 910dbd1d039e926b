//! The local APIC, one for each CPU, and the bus that joins them.
//!
//! Sources: Intel SDM Vol. 3A, "Advanced Programmable Interrupt Controller (APIC)"; Vol. 4 for the
//! MSRs. [`ApicBus`] makes all [`LocalApic`]s, carries IPIs, MSIs and I/O APIC messages between
//! them, and takes EOIs of level-triggered interrupts to the I/O APICs. A CPU's thread talks to its
//! [`LocalApic`]; whoever makes something deliverable calls [`crate::signals::CpuSignals`].
//!
//! An engine with local APICs of its own borrows the registers of all of them while its CPUs run
//! ([`ApicBus::lend_to`]); the chips then keep the pins, and the bus sends there what is for CPUs.
//!
//! Parts: `state` is the chip (registers and rules), `access` its registers as xAPIC and x2APIC
//! show them, `timer` its timer, `image` its registers on their way, `local` the chip with its
//! lock, clock and wires, `bus` the rest of the system, `interrupt_event` eventfds that interrupt.
//!
//! Lock order: an APIC's lock is a leaf. What an operation asks for is collected under it
//! (`Effects`) and done after it is dropped.
//!
//! Known departures from hardware:
//! - SMIs are accepted and dropped: there is no system management mode.
//! - The APIC ID register is writable in xAPIC mode, as on the processors before x2APIC.
//! - An acknowledged interrupt is never spurious: what a raised TPR makes undeliverable is simply
//!   not offered any more.
//! - ExtINT goes before vectors; hardware leaves the order to the core.
//! - The timer's input frequency is what the constructor says, and must be CPUID.15H:ECX.

mod access;
mod address;
mod bus;
mod event_reader;
mod icr;
mod image;
mod interrupt_event;
mod local;
mod lvt;
mod message;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod timer;
mod vector_set;

pub use bus::{ApicBus, LINT0_PIN, LINT1_PIN};
pub use image::ApicImage;
pub use interrupt_event::InterruptEvent;
pub use local::{LocalApic, ResetKind};
pub use lvt::LvtEntry;
pub use message::{
    ApicBorrower, DeliveryMode, Destination, EoiSink, ExtIntSource, Message, MessageSink,
    TriggerMode, WatchedEvent,
};
pub use snapshot::LapicSnapshot;
use timer::Rates;

/// An access that the architecture answers with #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("general protection")]
pub struct GeneralProtection;

/// What a machine's local APICs are.
#[derive(Clone, Debug)]
pub struct ApicConfig {
    /// The initial APIC ID of every CPU, in the order of the CPUs.
    pub ids: Vec<u32>,
    /// Ticks of the TSC a second.
    pub tsc_hz: u64,
    /// Ticks of the timer's clock a second, before its divider; CPUID.15H:ECX and the hypervisor's
    /// timing leaf say the same.
    pub timer_hz: u64,
    /// MAXPHYADDR; IA32_APIC_BASE bits above it are reserved.
    pub physical_address_bits: u8,
    /// CPUID.01H:ECX.x2APIC.
    pub has_x2apic: bool,
}

/// What one local APIC is; never changes.
#[derive(Clone, Copy, Debug)]
struct LocalApicKind {
    cpu: u32,
    id: u32,
    rates: Rates,
    physical_address_bits: u8,
    has_x2apic: bool,
}
