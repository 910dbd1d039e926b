//! The tables that are plain data: root pointers, FADT, FACS, MADT, HPET, MCFG.
//!
//! Source: ACPI 6.5, "ACPI Software Programming Model"; IA-PC HPET Specification 1.0a, "The ACPI
//! 2.0 HPET Description Table"; PCI Firmware Specification 3.3, "MCFG Table Description".

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::AcpiConfig;
use crate::acpi_pm::{ACPI_DISABLE, ACPI_ENABLE, SMI_CMD_PORT};
use crate::hpet::HPET_ID;
use crate::layout;

const OEM_ID: [u8; 6] = *b"VOLVEL";
const OEM_TABLE_ID: [u8; 8] = *b"VOLVELLE";
const OEM_REVISION: u32 = 1;
const CREATOR_ID: [u8; 4] = *b"VLVL";
const CREATOR_REVISION: u32 = 1;
/// Offset of the checksum in a table header.
const CHECKSUM_OFFSET: usize = 9;

/// A table: header, `body`, and a checksum that makes the sum of all bytes 0.
pub(super) fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend(signature);
    bytes.extend((36 + body.len() as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(OEM_ID);
    bytes.extend(OEM_TABLE_ID);
    bytes.extend(OEM_REVISION.to_le_bytes());
    bytes.extend(CREATOR_ID);
    bytes.extend(CREATOR_REVISION.to_le_bytes());
    bytes.extend(body);
    set_checksum(&mut bytes, CHECKSUM_OFFSET);
    bytes
}

fn set_checksum(bytes: &mut [u8], offset: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(offset) {
        *checksum = checksum.wrapping_sub(sum);
    }
}

/// The root pointer, with both checksums.
pub(super) fn rsdp(rsdt: u64, xsdt: u64) -> Vec<u8> {
    const FIRST_PART: usize = 20;
    let mut bytes = b"RSD PTR \0".to_vec();
    bytes.extend(OEM_ID);
    bytes.push(2);
    bytes.extend((rsdt as u32).to_le_bytes());
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    if let Some(first_part) = bytes.get_mut(..FIRST_PART) {
        set_checksum(first_part, 8);
    }
    set_checksum(&mut bytes, 32);
    bytes
}

/// The RSDT: 32-bit table addresses, for operating systems that know no XSDT.
pub(super) fn rsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|&at| (at as u32).to_le_bytes()).collect();
    table(b"RSDT", 1, &body)
}

/// The XSDT: 64-bit table addresses.
pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let body: Vec<u8> = tables.iter().flat_map(|at| at.to_le_bytes()).collect();
    table(b"XSDT", 1, &body)
}

/// The FACS: where the operating system leaves its waking vector.
pub(super) fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let version = 2;
    for (offset, field) in [(0, *b"FACS"), (4, 64u32.to_le_bytes()), (32, [version, 0, 0, 0])] {
        if let Some(to) = bytes.get_mut(offset..offset + 4) {
            to.copy_from_slice(&field);
        }
    }
    bytes
}

/// A block of I/O ports as both of its descriptions: ports and generic address.
fn ports(offset: u16, bytes: u8, access: AccessSize) -> (u32, GAS) {
    let port = layout::PM_BASE + offset;
    (port.into(), GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into()))
}

/// The FADT.
pub(super) fn fadt(dsdt: u64, facs: u64) -> Vec<u8> {
    /// There are devices on ISA, an i8042 among them, and no VGA to probe for.
    const LEGACY_DEVICES: u16 = 1 << 0;
    const HAS_8042: u16 = 1 << 1;
    const NO_VGA: u16 = 1 << 2;
    /// Beyond these latencies (microseconds) a C state does not exist.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    const RTC_CENTURY: u8 = 0x32;
    let (event, x_event) = ports(0, 4, AccessSize::WordAccess);
    let (control, x_control) = ports(layout::PM1_CONTROL_OFFSET, 2, AccessSize::WordAccess);
    let (timer, x_timer) = ports(layout::PM_TIMER_OFFSET, 4, AccessSize::DwordAccess);
    let (gpe0, x_gpe0) = ports(layout::GPE0_OFFSET, layout::GPE0_BYTES, AccessSize::ByteAccess);
    let reset_port = u64::from(layout::RESET_CONTROL_PORT);
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.creator_id = CREATOR_ID;
    fadt.creator_revision = CREATOR_REVISION.to_le_bytes();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (layout::IRQ_SCI as u16).into();
    fadt.smi_cmd = u32::from(SMI_CMD_PORT).into();
    (fadt.acpi_enable, fadt.acpi_disable) = (ACPI_ENABLE, ACPI_DISABLE);
    (fadt.pm1a_evt_blk, fadt.pm1a_cnt_blk) = (event.into(), control.into());
    (fadt.pm_tmr_blk, fadt.gpe0_blk) = (timer.into(), gpe0.into());
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.gpe0_blk_len = layout::GPE0_BYTES;
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    fadt.century = RTC_CENTURY;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | HAS_8042 | NO_VGA).into();
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, reset_port);
    fadt.reset_value = 0x06;
    (fadt.x_pm1a_evt_blk, fadt.x_pm1a_cnt_blk) = (x_event, x_control);
    (fadt.x_pm_tmr_blk, fadt.x_gpe0_blk) = (x_timer, x_gpe0);
    let mut bytes = Vec::new();
    fadt.finalize().to_aml_bytes(&mut bytes);
    bytes
}

/// The MADT: processors, the I/O APIC, and where ISA interrupts are not what they seem.
pub(super) fn madt(config: &AcpiConfig) -> Vec<u8> {
    const PCAT_COMPAT: u32 = 1;
    const ENABLED: u32 = 1;
    /// Identifiers from here on need the x2APIC structures.
    const FIRST_X2APIC_ID: u32 = 255;
    /// Polarity active high, level-triggered.
    const HIGH_LEVEL: u16 = 0b1101;
    let mut body = (layout::LAPIC_BASE as u32).to_le_bytes().to_vec();
    body.extend(PCAT_COMPAT.to_le_bytes());
    for cpu in 0..config.cpu_count {
        if cpu < FIRST_X2APIC_ID {
            body.extend([0, 8, cpu as u8, cpu as u8]);
            body.extend(ENABLED.to_le_bytes());
        } else {
            body.extend([9, 16, 0, 0]);
            body.extend([cpu, ENABLED, cpu].map(u32::to_le_bytes).concat());
        }
    }
    body.extend([1, 12, 0, 0]);
    body.extend([layout::IOAPIC_BASE as u32, 0].map(u32::to_le_bytes).concat());
    let mut source_override = |irq: u32, gsi: u32, flags: u16| {
        body.extend([2, 10, 0, irq as u8]);
        body.extend(gsi.to_le_bytes());
        body.extend(flags.to_le_bytes());
    };
    source_override(layout::IRQ_PIT, layout::GSI_PIT, 0);
    // The SCI, and the interrupts that PCI links may use.
    let level = layout::PCI_LINK_IRQS | 1 << layout::IRQ_SCI;
    (0..16)
        .filter(|irq| level >> irq & 1 != 0)
        .for_each(|irq| source_override(irq, irq, HIGH_LEVEL));
    // NMI is at LINT1 of every processor.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    if config.cpu_count > FIRST_X2APIC_ID {
        body.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table(b"APIC", 5, &body)
}

/// The HPET table.
pub(super) fn hpet() -> Vec<u8> {
    /// The shortest periodic interval that loses no tick, in HPET ticks.
    const MIN_TICK: u16 = 100;
    let address =
        GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, layout::HPET_BASE);
    let mut body = HPET_ID.to_le_bytes().to_vec();
    address.to_aml_bytes(&mut body);
    body.push(0);
    body.extend(MIN_TICK.to_le_bytes());
    body.push(0);
    table(b"HPET", 1, &body)
}

/// The MCFG: where ECAM is.
pub(super) fn mcfg() -> Vec<u8> {
    let mut body = vec![0; 8];
    body.extend(layout::ECAM_BASE.to_le_bytes());
    body.extend([0, 0, 0, 255, 0, 0, 0, 0]);
    table(b"MCFG", 1, &body)
}
