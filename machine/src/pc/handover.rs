//! What firmware leaves behind for an operating system: chips set up, tables in memory. For guests
//! that are loaded without firmware, and again after they wake.

use memory::{GuestPhysical, Width};

use super::{Pc, PcError, bios};
use crate::acpi::{self, AcpiConfig};
use crate::e820::E820Kind;
use crate::fw_cfg::key;
use crate::layout;
use crate::loader::{BootState, FlatRegisters, LoadError};
use crate::pci::assign::assign_bars;
use crate::rtc::Rtc;
use crate::smbios::{self, SmbiosConfig};

/// CMOS: why the CPU was reset.
const CMOS_SHUTDOWN_STATUS: u8 = 0x0f;
/// Shutdown status for firmware: resume from S3.
const SHUTDOWN_RESUME: u8 = 0xfe;
/// CMOS: a coprocessor is there.
const CMOS_EQUIPMENT: (u8, u8) = (0x14, 0x02);
/// CMOS: number of CPUs less one, as SeaBIOS reads it.
const CMOS_CPUS: u8 = 0x5f;

/// Offsets in the FACS.
const FACS_WAKING_VECTOR: u64 = 12;
const FACS_X_WAKING_VECTOR: u64 = 24;

/// The 8259A pair as BIOSes initialise it: vectors 08h and 70h, all masked but the timer's tick;
/// PCI's interrupts and the SCI are level-triggered.
const PIC_SET_UP: [(u16, u8); 12] = [
    (0x20, 0x11),
    (0xa0, 0x11),
    (0x21, 0x08),
    (0xa1, 0x70),
    (0x21, 0x04),
    (0xa1, 0x02),
    (0x21, 0x01),
    (0xa1, 0x01),
    (0x21, 0xfe),
    (0xa1, 0xff),
    (0x4d0, layout::PCI_LINK_IRQS as u8),
    (0x4d1, (layout::PCI_LINK_IRQS >> 8) as u8 | 1 << (layout::IRQ_SCI - 8)),
];

/// The 8254's channel 0 as BIOSes start it: a square wave of 65536 ticks, 18.2 times a second.
const PIT_SET_UP: [(u16, u8); 3] = [(0x43, 0x36), (0x40, 0), (0x40, 0)];

/// Tells firmware, through CMOS and fw_cfg, what the machine has.
pub(super) fn describe_to_firmware(pc: &Pc) {
    let (plan, cpus) = (pc.plan, pc.config.cpu_count);
    pc.rtc.set_memory_size(plan.low_ram_end(), plan.high_ram_bytes());
    pc.rtc.set_cmos(CMOS_EQUIPMENT.0, CMOS_EQUIPMENT.1);
    pc.rtc.set_cmos(CMOS_CPUS, (cpus - 1).min(0xff) as u8);
    let fw_cfg = &pc.fw_cfg;
    fw_cfg.set_u64(key::RAM_SIZE, plan.memory_bytes);
    fw_cfg.set_u16(key::NB_CPUS, cpus as u16);
    fw_cfg.set_u16(key::MAX_CPUS, cpus as u16);
    fw_cfg.set_u16(key::NOGRAPHIC, 1);
    fw_cfg.set_u32(key::IRQ0_OVERRIDE, 1);
    let ram = [(0, plan.low_ram_end()), (layout::ABOVE_4G, plan.high_ram_bytes())];
    let mut map: Vec<u8> = Vec::new();
    for (base, bytes) in ram.into_iter().filter(|&(_, bytes)| bytes != 0) {
        map.extend([base, bytes].map(u64::to_le_bytes).concat());
        map.extend((E820Kind::Usable as u32).to_le_bytes());
    }
    if let Err(error) = fw_cfg.add_file("etc/e820", map) {
        log::warn!(target: "dev::fw_cfg", "etc/e820: {error}");
    }
}

/// Sets up the chips as firmware does before it starts an operating system.
pub(super) fn set_up(pc: &Pc) {
    pc.host_bridge.set_up_as_firmware();
    pc.isa_bridge.set_up_as_firmware();
    let pit = if pc.config.has_pit { &PIT_SET_UP[..] } else { &[] };
    // The 8254 first: its output rises with the mode, and ICW1 forgets that edge.
    for &(port, value) in pit.iter().chain(&PIC_SET_UP) {
        pc.ports.write(port, Width::Byte, value.into());
    }
    assign_bars(&pc.pci);
    pc.apics.apics().iter().for_each(|apic| apic.set_virtual_wire());
}

/// Writes the interrupt vectors, the BIOS data area, the ACPI tables and the SMBIOS structures.
pub(super) fn write_tables(pc: &Pc) -> Result<(), PcError> {
    let com1 = if pc.serial.is_empty() { 0 } else { layout::COM1_PORT };
    let words = [
        (layout::BDA_COM1_PORT, com1),
        (layout::BDA_EBDA_SEGMENT, (layout::EBDA_BASE >> 4) as u16),
        (layout::BDA_MEMORY_KIB, (layout::EBDA_BASE >> 10) as u16),
        // The EBDA's first byte is its size in KiB.
        (layout::EBDA_BASE, 1),
    ];
    for (address, bytes) in bios::contents() {
        write(pc, "the BIOS's interrupt vectors", address, &bytes)?;
    }
    for (address, word) in words {
        write(pc, "the BIOS data area", address, &word.to_le_bytes())?;
    }
    let config = AcpiConfig {
        form: pc.config.form,
        plan: pc.plan,
        cpu_count: pc.config.cpu_count,
        serial_ports: pc.serial.len() as u8,
        has_fw_cfg: true,
    };
    for table in acpi::build(&config)? {
        write(pc, "the ACPI tables", table.address, &table.bytes)?;
    }
    let smbios = SmbiosConfig { plan: pc.plan, cpu_count: pc.config.cpu_count };
    write(pc, "the SMBIOS structures", layout::SMBIOS_BASE, &smbios::build(&smbios))
}

fn write(pc: &Pc, what: &'static str, address: u64, data: &[u8]) -> Result<(), PcError> {
    let bytes = data.len() as u64;
    pc.space
        .dma_write(GuestPhysical(address), data)
        .map_err(|_| LoadError::NoRoom { what, address, bytes }.into())
}

/// Leaves word for firmware that the next reset is a resume.
pub(super) fn note_resume_for_firmware(rtc: &Rtc) {
    rtc.set_cmos(CMOS_SHUTDOWN_STATUS, SHUTDOWN_RESUME);
}

/// Where the operating system asked to be resumed (ACPI 6.5, "Firmware ACPI Control Structure"):
/// the 64-bit vector in protected mode, else the 32-bit one in real mode.
pub(super) fn waking_vector(pc: &Pc) -> Option<BootState> {
    let facs = pc.plan.facs();
    let real_mode = pc.space.read(GuestPhysical(facs + FACS_WAKING_VECTOR), Width::Dword);
    let protected = pc.space.read(GuestPhysical(facs + FACS_X_WAKING_VECTOR), Width::Qword);
    if protected != 0 {
        let entry = u32::try_from(protected).ok()?;
        let registers = FlatRegisters::default();
        return Some(BootState::Protected32 { entry, registers, gdt: None });
    }
    let segment = u16::try_from(real_mode >> 4).ok()?;
    let offset = (real_mode & 0xf) as u16;
    (real_mode != 0).then_some(BootState::RealMode { segment, offset })
}
