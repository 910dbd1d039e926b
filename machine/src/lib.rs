//! The chips of a PC, its tables and its loaders.
//!
//! One chip, one file: registers and state machine first, attachment to bus, line and timer behind.
//! No engine is named here; what the chips need of the CPUs is [`signals::CpuSignals`]. All chips
//! take their time from one [`clock::Clock`] and their wake-ups from one [`timers::Timers`].
#![forbid(unsafe_code)]

pub mod a20;
pub mod acpi;
pub mod acpi_pm;
#[doc(hidden)]
pub mod board_fuzz;
pub mod cf9;
pub mod chip;
pub mod clock;
pub mod coprocessor_error;
pub mod deadline;
pub mod debug_exit;
pub mod debugcon;
#[doc(hidden)]
pub mod device_fuzz;
pub mod dma8237;
pub mod e820;
pub mod fw_cfg;
mod guard;
pub mod host_time;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod isa_routing;
pub mod lapic;
pub mod layout;
pub mod line;
pub mod loader;
pub mod msi;
pub mod output_pin;
pub mod pc;
pub mod pc_testdev;
pub mod pci;
pub mod pic8259;
pub mod pit8254;
pub mod port92;
pub mod rtc;
pub mod serial_backend;
pub mod signals;
pub mod smbios;
#[cfg(test)]
mod test_lines;
pub mod timers;
pub mod uart16550;
