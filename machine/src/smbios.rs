//! SMBIOS: what the machine is made of, for inventory tools and the kernel's boot log.
//!
//! Source: DMTF DSP0134, System Management BIOS Reference Specification 3.0, "SMBIOS structure
//! table entry point" and "Structure definitions". Both entry points are there, of 2.8 for old
//! readers and of 3.0; they share one structure table, right behind them.

use crate::layout::{self, RamPlan};

/// What the structures say of the machine.
#[derive(Clone, Copy, Debug)]
pub struct SmbiosConfig {
    /// Its memory.
    pub plan: RamPlan,
    /// Its CPUs, shown as cores of one socket.
    pub cpu_count: u32,
}

/// Structure handles, by what refers to what: the type in the upper byte.
mod handle {
    pub const BIOS: u16 = 0x0000;
    pub const SYSTEM: u16 = 0x0100;
    pub const CHASSIS: u16 = 0x0300;
    pub const PROCESSOR: u16 = 0x0400;
    pub const MEMORY_ARRAY: u16 = 0x1000;
    pub const MEMORY_DEVICE: u16 = 0x1100;
    pub const MAPPED_ADDRESS: u16 = 0x1300;
    pub const BOOT_STATUS: u16 = 0x2000;
    pub const END: u16 = 0x7f00;
    /// Cache handles: not provided.
    pub const NONE: u16 = 0xffff;
    /// Error information handles: not provided.
    pub const NO_ERRORS: u16 = 0xfffe;
}

const UNKNOWN_WIDTH: u16 = 0xffff;
const ENTRY_2_1_BYTES: usize = 0x1f;
const ENTRY_3_0_BYTES: usize = 0x18;
/// The structure table's distance from [`layout::SMBIOS_BASE`].
const TABLE_OFFSET: u64 = 0x40;
const ENTRY_3_0_OFFSET: usize = 0x20;
const VENDOR: &str = "Volvelle";

/// The structure table while it grows.
#[derive(Default)]
struct Table {
    bytes: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Table {
    /// Appends a structure: the formatted area behind the header, then its strings.
    fn add(&mut self, handle: u16, formatted: &[u8], strings: &[&str]) {
        let start = self.bytes.len();
        let kind = (handle >> 8) as u8;
        self.bytes.extend([kind, (4 + formatted.len()) as u8]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(formatted);
        for string in strings {
            self.bytes.extend(string.as_bytes());
            self.bytes.push(0);
        }
        // The string set ends with an empty one; an empty set is two zeroes.
        self.bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.count += 1;
        self.largest = self.largest.max((self.bytes.len() - start) as u16);
    }
}

/// Both entry points and the structure table, to be written to [`layout::SMBIOS_BASE`].
pub fn build(config: &SmbiosConfig) -> Vec<u8> {
    let mut table = Table::default();
    add_identity(&mut table);
    add_processor(&mut table, config.cpu_count);
    add_memory(&mut table, &config.plan);
    table.add(handle::BOOT_STATUS, &[0; 7], &[]);
    table.add(handle::END, &[], &[]);
    let mut bytes = entry_2_8(&table);
    bytes.resize(ENTRY_3_0_OFFSET, 0);
    bytes.extend(entry_3_0(&table));
    bytes.resize(TABLE_OFFSET as usize, 0);
    bytes.extend(table.bytes);
    bytes
}

/// Types 0, 1 and 3: firmware, system, enclosure.
fn add_identity(table: &mut Table) {
    const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
    const IS_VIRTUAL_MACHINE: u8 = 1 << 4;
    const WAKE_UP_POWER_SWITCH: u8 = 6;
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const UNKNOWN: u8 = 2;
    let mut bios = vec![1, 2];
    bios.extend(0xf000_u16.to_le_bytes());
    bios.extend([3, 0]);
    bios.extend(CHARACTERISTICS_NOT_SUPPORTED.to_le_bytes());
    bios.extend([0, IS_VIRTUAL_MACHINE, 0, 1, 0xff, 0xff]);
    let version = env!("CARGO_PKG_VERSION");
    table.add(handle::BIOS, &bios, &[VENDOR, version, "01/01/2026"]);

    let mut system = vec![1, 2, 3, 0];
    // A UUID of all zeroes is "not present".
    system.extend([0; 16]);
    system.extend([WAKE_UP_POWER_SWITCH, 0, 0]);
    table.add(handle::SYSTEM, &system, &[VENDOR, "Volvelle PC", version]);

    let mut chassis = vec![1, OTHER, 0, 0, 0, SAFE, SAFE, SAFE, UNKNOWN];
    chassis.extend([0; 9]);
    table.add(handle::CHASSIS, &chassis, &[VENDOR]);
}

/// Type 4: one socket with all CPUs.
fn add_processor(table: &mut Table, cpu_count: u32) {
    const CENTRAL_PROCESSOR: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const IS_64BIT: u16 = 1 << 2;
    let count = cpu_count.min(0xffff) as u16;
    let byte_count = count.min(0xff) as u8;
    let mut processor = vec![1, CENTRAL_PROCESSOR, OTHER, 2];
    // Processor ID: CPUID has it. Then version, voltage, clock and speeds: unknown.
    processor.extend([0; 8]);
    processor.extend([0; 8]);
    processor.extend([POPULATED_ENABLED, OTHER]);
    processor.extend([handle::NONE; 3].map(u16::to_le_bytes).concat());
    processor.extend([0, 0, 0, byte_count, byte_count, byte_count]);
    processor.extend([IS_64BIT, OTHER.into(), count, count, count].map(u16::to_le_bytes).concat());
    table.add(handle::PROCESSOR, &processor, &["CPU 0", VENDOR]);
}

/// Types 16, 17 and 19: the memory array, its one device, and where that is mapped.
fn add_memory(table: &mut Table, plan: &RamPlan) {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_CORRECTION: u8 = 3;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const OTHER_DETAIL: u16 = 1 << 1;
    /// From here on sizes are in the extended field.
    const SIZE_IS_EXTENDED: u64 = 0x7fff;
    let kib = (plan.memory_bytes >> 10).min(0x7fff_ffff) as u32;
    let mut array = vec![SYSTEM_BOARD, SYSTEM_MEMORY, NO_CORRECTION];
    array.extend(kib.to_le_bytes());
    array.extend(handle::NO_ERRORS.to_le_bytes());
    array.extend(1u16.to_le_bytes());
    array.extend(0u64.to_le_bytes());
    table.add(handle::MEMORY_ARRAY, &array, &[]);

    let mib = plan.memory_bytes >> 20;
    let extended = if mib >= SIZE_IS_EXTENDED { mib as u32 } else { 0 };
    let words = [
        handle::MEMORY_ARRAY,
        handle::NO_ERRORS,
        UNKNOWN_WIDTH,
        UNKNOWN_WIDTH,
        mib.min(SIZE_IS_EXTENDED) as u16,
    ];
    let mut device = words.map(u16::to_le_bytes).concat();
    device.extend([DIMM, 0, 1, 0, RAM]);
    device.extend(OTHER_DETAIL.to_le_bytes());
    device.extend([0, 0, 2, 0, 0, 0, 0]);
    device.extend(extended.to_le_bytes());
    device.extend([0; 8]);
    table.add(handle::MEMORY_DEVICE, &device, &["DIMM 0", VENDOR]);

    let ranges = [(0, plan.low_ram_end()), (layout::ABOVE_4G, plan.ram_end())];
    for (index, (start, end)) in (0u16..).zip(ranges).filter(|(_, (start, end))| start < end) {
        table.add(handle::MAPPED_ADDRESS + index, &mapped_address(start, end), &[]);
    }
}

/// Type 19's formatted area for `start..end`.
fn mapped_address(start: u64, end: u64) -> Vec<u8> {
    // KiB in 32 bits reach beyond the most memory there can be; the extended fields stay 0.
    let kib = ((start >> 10) as u32, ((end - 1) >> 10) as u32);
    let mut mapped = [kib.0, kib.1].map(u32::to_le_bytes).concat();
    mapped.extend(handle::MEMORY_ARRAY.to_le_bytes());
    mapped.push(1);
    mapped.extend([0; 16]);
    mapped
}

fn set_checksum(bytes: &mut [u8], offset: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(offset) {
        *checksum = 0u8.wrapping_sub(sum);
    }
}

/// The 32-bit entry point, of version 2.8.
fn entry_2_8(table: &Table) -> Vec<u8> {
    const INTERMEDIATE: usize = 0x10;
    let address = (layout::SMBIOS_BASE + TABLE_OFFSET) as u32;
    let mut bytes = b"_SM_\0".to_vec();
    bytes.extend([ENTRY_2_1_BYTES as u8, 2, 8]);
    bytes.extend(table.largest.to_le_bytes());
    bytes.extend([0; 6]);
    bytes.extend(b"_DMI_\0");
    bytes.extend((table.bytes.len() as u16).to_le_bytes());
    bytes.extend(address.to_le_bytes());
    bytes.extend(table.count.to_le_bytes());
    bytes.push(0x28);
    if let Some(intermediate) = bytes.get_mut(INTERMEDIATE..) {
        set_checksum(intermediate, 5);
    }
    set_checksum(&mut bytes, 4);
    bytes
}

/// The 64-bit entry point, of version 3.0.
fn entry_3_0(table: &Table) -> Vec<u8> {
    let mut bytes = b"_SM3_\0".to_vec();
    bytes.extend([ENTRY_3_0_BYTES as u8, 3, 0, 0, 1, 0]);
    bytes.extend((table.bytes.len() as u32).to_le_bytes());
    bytes.extend((layout::SMBIOS_BASE + TABLE_OFFSET).to_le_bytes());
    set_checksum(&mut bytes, 5);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(memory_bytes: u64, cpu_count: u32) -> Vec<u8> {
        build(&SmbiosConfig { plan: RamPlan { memory_bytes, rom_bytes: 0 }, cpu_count })
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Type, formatted area and strings of every structure.
    fn structures(mut table: &[u8]) -> Vec<(u8, &[u8], Vec<String>)> {
        let mut found = Vec::new();
        while let [kind, length, ..] = *table {
            let (formatted, rest) = table.split_at(length.into());
            let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = rest[..end].split(|&byte| byte == 0);
            let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap());
            found.push((kind, formatted, strings.filter(|s| !s.is_empty()).collect()));
            table = &rest[end + 2..];
        }
        found
    }

    #[test]
    fn entry_points_sum_to_zero_and_lead_to_the_table() {
        let image = image(256 << 20, 2);
        let (old, new) = (&image[..0x1f], &image[0x20..0x38]);
        assert_eq!((&old[..4], sum(old), sum(&old[0x10..])), (&b"_SM_"[..], 0, 0));
        assert_eq!((&new[..5], sum(new)), (&b"_SM3_"[..], 0));
        let table = &image[0x40..];
        assert_eq!(usize::from(u16::from_le_bytes([old[0x16], old[0x17]])), table.len());
        assert_eq!(u32::from_le_bytes(new[12..16].try_into().unwrap()) as usize, table.len());
        let address = u32::from_le_bytes(old[0x18..0x1c].try_into().unwrap());
        assert_eq!(u64::from(address), layout::SMBIOS_BASE + 0x40);
        assert_eq!(layout::SMBIOS_BASE % 16, 0);
        let count = u16::from_le_bytes([old[0x1c], old[0x1d]]);
        assert_eq!(usize::from(count), structures(table).len());
    }

    #[test]
    fn structures_have_their_types_lengths_and_strings() {
        let small = image(256 << 20, 2);
        let found: Vec<_> =
            structures(&small[0x40..]).iter().map(|s| (s.0, s.1.len(), s.2.len())).collect();
        #[rustfmt::skip]
        assert_eq!(found, [
            (0, 0x18, 3), (1, 0x1b, 3), (3, 0x16, 1), (4, 0x30, 2), (16, 0x17, 0), (17, 0x28, 2),
            (19, 0x1f, 0), (32, 0x0b, 0), (127, 4, 0),
        ]);
    }

    #[test]
    fn memory_sizes_use_the_extended_fields_when_large() {
        let small = image(256 << 20, 1);
        let device = structures(&small[0x40..])[5].1.to_vec();
        assert_eq!((&device[12..14], &device[28..32]), (&[0, 1][..], &[0; 4][..]));
        let large = image(64 << 30, 1);
        let all = structures(&large[0x40..]);
        assert_eq!((&all[5].1[12..14], &all[5].1[28..32]), (&[0xff, 0x7f][..], &[0, 0, 1, 0][..]));
        let ranges: Vec<_> =
            all.iter().filter(|s| s.0 == 19).map(|s| s.1[4..12].to_vec()).collect();
        let kib = |word: &[u8]| u32::from_le_bytes(word.try_into().unwrap());
        assert_eq!((kib(&ranges[0][..4]), kib(&ranges[0][4..])), (0, 0x2f_ffff));
        assert_eq!((kib(&ranges[1][..4]), kib(&ranges[1][4..])), (4 << 20, (65 << 20) - 1));
    }
}
