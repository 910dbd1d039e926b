//! Every address and interrupt number of the board, in one place.
//!
//! Guest-physical memory of the default (`q35`) form:
//!
//! ```text
//! 0000_0000..000A_0000  RAM; BIOS data area at 0x400, EBDA in the last KiB
//! 000A_0000..000C_0000  nothing (a VGA frame buffer would be here)
//! 000C_0000..0010_0000  ROM or RAM behind it, as the host bridge's PAM registers say
//! 0010_0000..C000_0000  RAM, as much as there is; its last 128 KiB hold the ACPI tables
//! C000_0000..E000_0000  PCI memory window
//! E000_0000..F000_0000  PCI Express configuration space (ECAM), q35 only; PCI window on `pc`
//! F000_0000..FEC0_0000  PCI memory window
//! FEC0_0000             I/O APIC
//! FED0_0000             HPET
//! FEE0_0000             local APICs (and MSI)
//! FF00_0000..1_0000_0000  boot ROM, at the top
//! 1_0000_0000..         the RAM that did not fit below, then the 64-bit PCI window
//! ```
//!
//! Offsets into [`memory::Ram`] are another matter: RAM fills them from 0 without holes, the boot
//! ROM follows ([`RamPlan`]).

use memory::PAGE_SIZE;

/// The least memory a board can be made with, in bytes.
pub const MEMORY_MIN: u64 = 2 << 20;
/// The most memory a board can be made with, in bytes: all of it lies below 2^40 with the PCI
/// window, so that processors with 40 physical address bits reach everything.
pub const MEMORY_MAX: u64 = 512 << 30;

/// The most CPUs: what the ACPI tables' range has room for, and fw_cfg's 16 bits.
pub const CPUS_MAX: u32 = 1024;

/// First byte that is not conventional memory.
pub const CONVENTIONAL_END: u64 = 0x000a_0000;
/// Extended BIOS data area: 1 KiB at the end of conventional memory.
pub const EBDA_BASE: u64 = 0x0009_fc00;
/// BIOS data area: real-mode segment of the EBDA (word).
pub const BDA_EBDA_SEGMENT: u64 = 0x040e;
/// BIOS data area: conventional memory in KiB (word).
pub const BDA_MEMORY_KIB: u64 = 0x0413;
/// BIOS data area: I/O port of the first serial port (word).
pub const BDA_COM1_PORT: u64 = 0x0400;
/// First byte of the expansion ROM and shadow area, governed by PAM.
pub const SHADOW_BASE: u64 = 0x000c_0000;
/// What the boot ROM's last 128 KiB appear at below 1 MiB.
pub const ROM_ALIAS_BASE: u64 = 0x000e_0000;
/// Where operating systems look for the RSDP and the SMBIOS entry point.
pub const BIOS_AREA_BASE: u64 = 0x000f_0000;
/// RSDP, in the BIOS area, 16-byte aligned.
pub const RSDP_BASE: u64 = 0x000f_0000;
/// SMBIOS entry points, in the BIOS area, 16-byte aligned; the structures follow.
pub const SMBIOS_BASE: u64 = 0x000f_1000;
/// First byte above conventional and shadow memory.
pub const HIGH_MEMORY_BASE: u64 = 0x0010_0000;

/// RAM below 4 GiB ends here at the latest; the rest goes to [`ABOVE_4G`].
pub const LOW_RAM_LIMIT: u64 = 0xc000_0000;
/// Where RAM goes on that did not fit below [`LOW_RAM_LIMIT`].
pub const ABOVE_4G: u64 = 0x1_0000_0000;
/// Bytes at the end of low RAM that hold the ACPI tables; the last page is the FACS, which the
/// operating system writes to.
pub const ACPI_AREA_BYTES: u64 = 128 << 10;

/// First byte of the PCI memory window below 4 GiB.
pub const PCI_WINDOW_BASE: u64 = 0xc000_0000;
/// First byte behind the PCI memory window below 4 GiB.
pub const PCI_WINDOW_END: u64 = 0xfec0_0000;
/// PCI Express configuration space: 1 MiB for each of 256 buses.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Size of the PCI Express configuration space in bytes.
pub const ECAM_BYTES: u64 = 256 << 20;
/// Size and alignment of the 64-bit PCI memory window, which follows RAM.
pub const PCI_WINDOW_64_BYTES: u64 = 64 << 30;

/// I/O APIC registers.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// HPET registers.
pub const HPET_BASE: u64 = 0xfed0_0000;
/// Local APIC registers after reset; also the address range of MSI writes.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Size of the local APIC page in bytes.
pub const LAPIC_BYTES: u64 = PAGE_SIZE;
/// The largest boot ROM, which then fills FF00_0000..1_0000_0000.
pub const ROM_BYTES_MAX: u64 = 16 << 20;
/// How much of the boot ROM's end appears below 1 MiB.
pub const ROM_ALIAS_BYTES: u64 = 128 << 10;

/// ACPI power-management block: PM1a event at +0, PM1a control at +4, PM timer at +8, GPE0 at +20h.
pub const PM_BASE: u16 = 0x0600;
/// Offset of the PM1a control register in the block.
pub const PM1_CONTROL_OFFSET: u16 = 4;
/// Offset of the PM timer in the block.
pub const PM_TIMER_OFFSET: u16 = 8;
/// Offset of the GPE0 block in the block.
pub const GPE0_OFFSET: u16 = 0x20;
/// Bytes of the GPE0 block: status, then enable.
pub const GPE0_BYTES: u8 = 16;
/// Ports of the whole block.
pub const PM_BYTES: u16 = 128;
/// Bytes of it that a PIIX4 has (82371AB data sheet, "PMBA"), which end behind the GPE0 block.
pub const PIIX4_PM_BYTES: u8 = 64;

/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Second serial port.
pub const COM2_PORT: u16 = 0x2f8;
/// PCI configuration mechanism 1: CONFIG_ADDRESS, then CONFIG_DATA.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// Reset control register, inside CONFIG_ADDRESS's ports.
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

/// ISA interrupt of the 8254's channel 0. On the I/O APIC it is pin 2.
pub const IRQ_PIT: u32 = 0;
/// I/O APIC pin of the 8254's channel 0, as the MADT's override says.
pub const GSI_PIT: u32 = 2;
/// ISA interrupt of the keyboard.
pub const IRQ_KEYBOARD: u32 = 1;
/// ISA interrupt of the first serial port.
pub const IRQ_COM1: u32 = 4;
/// ISA interrupt of the second serial port.
pub const IRQ_COM2: u32 = 3;
/// ISA interrupt of the real-time clock.
pub const IRQ_RTC: u32 = 8;
/// ACPI system control interrupt: level-triggered, active high.
pub const IRQ_SCI: u32 = 9;
/// ISA interrupt of the mouse.
pub const IRQ_MOUSE: u32 = 12;
/// Coprocessor error (FERR#), for CR0.NE = 0.
pub const IRQ_FERR: u32 = 13;
/// Interrupts that PCI interrupt links may use in PIC mode, as a mask.
pub const PCI_LINK_IRQS: u16 = 1 << 5 | 1 << 10 | 1 << 11;
/// First I/O APIC pin of PIRQA..PIRQH, q35 only.
pub const GSI_PIRQ_BASE: u32 = 16;
/// Pins of the I/O APIC.
pub const IOAPIC_PINS: u32 = 24;

/// Where loaders put what a kernel is started with; all below the first image that is loaded.
pub mod boot {
    /// GDT with the flat segments of the Linux boot protocol.
    pub const GDT: u64 = 0x1000;
    /// PVH start information, its module list and memory map.
    pub const START_INFO: u64 = 0x6000;
    /// Linux `boot_params`, the "zero page".
    pub const BOOT_PARAMS: u64 = 0x7000;
    /// PML4, PDPT and four page directories: the first 4 GiB, identity-mapped.
    pub const PAGE_TABLES: u64 = 0x8000;
    /// Top of a small stack, for entries that use one before they have their own.
    pub const STACK_TOP: u64 = 0x1_8000;
    /// Command line, NUL-terminated.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// The longest command line, with its NUL.
    pub const COMMAND_LINE_BYTES: u64 = 0x1_0000;
}

/// Which PC the board is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Q35 memory controller hub with ICH9: PCI Express configuration space, MSI-capable.
    #[default]
    Q35,
    /// i440FX with PIIX3: the classic PCI machine.
    Pc,
}

/// How RAM is laid out in guest-physical space and in the [`memory::Ram`] behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamPlan {
    /// All RAM, in bytes; a multiple of a page.
    pub memory_bytes: u64,
    /// Space for a boot ROM behind it, in bytes; a multiple of a page.
    pub rom_bytes: u64,
}

impl RamPlan {
    /// The size of the [`memory::Ram`] to make, in bytes.
    pub const fn total_bytes(&self) -> u64 {
        self.memory_bytes + self.rom_bytes
    }

    /// First guest-physical address behind the RAM below 4 GiB.
    pub const fn low_ram_end(&self) -> u64 {
        if self.memory_bytes < LOW_RAM_LIMIT { self.memory_bytes } else { LOW_RAM_LIMIT }
    }

    /// Bytes of RAM above 4 GiB.
    pub const fn high_ram_bytes(&self) -> u64 {
        self.memory_bytes - self.low_ram_end()
    }

    /// First guest-physical address behind all RAM.
    pub const fn ram_end(&self) -> u64 {
        match self.high_ram_bytes() {
            0 => self.low_ram_end(),
            high => ABOVE_4G + high,
        }
    }

    /// First address of the 64-bit PCI window, aligned to its size.
    pub const fn pci_window_64(&self) -> u64 {
        (ABOVE_4G + self.high_ram_bytes()).next_multiple_of(PCI_WINDOW_64_BYTES)
    }

    /// First address of the ACPI tables.
    pub const fn acpi_base(&self) -> u64 {
        self.low_ram_end() - ACPI_AREA_BYTES
    }

    /// Address of the FACS, in a page of its own.
    pub const fn facs(&self) -> u64 {
        self.low_ram_end() - PAGE_SIZE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_at_the_pci_window() {
        // memory, low end, high bytes, end
        let rows = [
            (2 << 20, 2 << 20, 0, 2 << 20),
            (LOW_RAM_LIMIT, LOW_RAM_LIMIT, 0, LOW_RAM_LIMIT),
            (LOW_RAM_LIMIT + PAGE_SIZE, LOW_RAM_LIMIT, PAGE_SIZE, ABOVE_4G + PAGE_SIZE),
            (8 << 30, LOW_RAM_LIMIT, 5 << 30, ABOVE_4G + (5 << 30)),
        ];
        for (memory_bytes, low, high, end) in rows {
            let plan = RamPlan { memory_bytes, rom_bytes: 0 };
            assert_eq!(
                (plan.low_ram_end(), plan.high_ram_bytes(), plan.ram_end()),
                (low, high, end)
            );
            assert!(plan.pci_window_64() >= plan.ram_end());
            assert_eq!(plan.pci_window_64() % PCI_WINDOW_64_BYTES, 0);
        }
        let most = RamPlan { memory_bytes: MEMORY_MAX, rom_bytes: 0 };
        assert!(most.pci_window_64() + PCI_WINDOW_64_BYTES <= 1 << 40);
    }
}
