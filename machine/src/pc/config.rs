//! What a board is made from, and why it cannot be.

use std::sync::Arc;

use memory::{MapError, RamError};

use crate::acpi::TablesTooLarge;
use crate::layout::{self, Form, RamPlan};
use crate::loader::LoadError;
use crate::pc_testdev::FlushHook;
use crate::serial_backend::SerialBackend;

/// Where isa-debug-exit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExitPorts {
    /// First port; QEMU's default is 501h, kvm-unit-tests use F4h.
    pub first: u16,
    /// Number of ports; QEMU's default is 2, kvm-unit-tests use 4.
    pub count: u32,
}

/// What a board is made from.
#[derive(Clone)]
pub struct PcConfig {
    /// Which PC.
    pub form: Form,
    /// RAM in bytes, a multiple of 4096.
    pub memory_bytes: u64,
    /// Space for a boot ROM in bytes ([`crate::loader::rom::needed_bytes`]), 0 for none.
    pub rom_bytes: u64,
    /// Number of CPUs; their APIC IDs are 0, 1, 2, ...
    pub cpu_count: u32,
    /// Ticks of the TSC a second.
    pub tsc_hz: u64,
    /// Ticks of the local APIC timers' clock a second.
    pub lapic_timer_hz: u64,
    /// MAXPHYADDR of the CPUs.
    pub physical_address_bits: u8,
    /// The CPUs have x2APIC mode.
    pub has_x2apic: bool,
    /// The board has an 8254 (and port 61h, which gates it).
    pub has_pit: bool,
    /// Where the serial ports' output goes: COM1, then COM2.
    pub serial: Vec<Arc<dyn SerialBackend>>,
    /// The debug console's port and where its output goes.
    pub debugcon: Option<(u16, Arc<dyn SerialBackend>)>,
    /// isa-debug-exit.
    pub debug_exit: Option<DebugExitPorts>,
    /// pc-testdev, and what its page flush calls.
    pub pc_testdev: Option<Option<FlushHook>>,
    /// pci-testdev.
    pub has_pci_testdev: bool,
}

impl PcConfig {
    /// A q35 board with nothing plugged in.
    pub fn new(memory_bytes: u64, cpu_count: u32) -> Self {
        Self {
            form: Form::Q35,
            memory_bytes,
            rom_bytes: 0,
            cpu_count,
            tsc_hz: 1_000_000_000,
            lapic_timer_hz: 1_000_000_000,
            physical_address_bits: 40,
            has_x2apic: true,
            has_pit: true,
            serial: Vec::new(),
            debugcon: None,
            debug_exit: None,
            pc_testdev: None,
            has_pci_testdev: false,
        }
    }

    /// How its memory is laid out.
    pub fn plan(&self) -> RamPlan {
        RamPlan { memory_bytes: self.memory_bytes, rom_bytes: self.rom_bytes }
    }

    pub(super) fn check(&self) -> Result<(), PcError> {
        let (memory, rom) = (self.memory_bytes, self.rom_bytes);
        if memory < layout::MEMORY_MIN {
            return Err(PcError::MemoryTooSmall { memory });
        }
        if memory > layout::MEMORY_MAX {
            return Err(PcError::MemoryTooLarge { memory });
        }
        if !memory.is_multiple_of(memory::PAGE_SIZE) {
            return Err(PcError::MemoryPages { memory });
        }
        if rom > layout::ROM_BYTES_MAX || !rom.is_multiple_of(memory::PAGE_SIZE) {
            return Err(LoadError::RomSize { size: rom }.into());
        }
        if self.cpu_count == 0 || self.cpu_count > layout::CPUS_MAX {
            return Err(PcError::CpuCount { count: self.cpu_count });
        }
        Ok(())
    }
}

/// Why a board cannot be made, or a guest not be put into it.
#[derive(Debug, thiserror::Error)]
pub enum PcError {
    /// Less memory than a PC can do with.
    #[error("memory of {memory:#x} bytes is too small, {:#x} is the least", layout::MEMORY_MIN)]
    MemoryTooSmall {
        /// Bytes asked for.
        memory: u64,
    },
    /// More memory than the layout has addresses for.
    #[error("memory of {memory:#x} bytes is too large, {:#x} is the most", layout::MEMORY_MAX)]
    MemoryTooLarge {
        /// Bytes asked for.
        memory: u64,
    },
    /// A part of a page.
    #[error("memory of {memory:#x} bytes is not a multiple of 4096")]
    MemoryPages {
        /// Bytes asked for.
        memory: u64,
    },
    /// No CPU, or too many.
    #[error("{count} CPUs: a machine has 1 to {}", layout::CPUS_MAX)]
    CpuCount {
        /// CPUs asked for.
        count: u32,
    },
    /// The host does not give the memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Two devices are at the same address or port.
    #[error("devices overlap")]
    Map(#[from] MapError),
    /// The ACPI tables do not fit.
    #[error(transparent)]
    Tables(#[from] TablesTooLarge),
    /// The guest cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
}
