//! The memory map that a BIOS would report by INT 15h, AX=E820h.

use crate::layout::{self, Form, RamPlan};

/// What a range of memory is to an operating system (ACPI 6.5, "System Address Map Interfaces").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Free for use.
    Usable = 1,
    /// Never to be used.
    Reserved = 2,
    /// Free for use once the ACPI tables were read.
    AcpiReclaim = 3,
    /// To be kept over sleep.
    AcpiNvs = 4,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First guest-physical address.
    pub base: u64,
    /// Size in bytes; never 0.
    pub bytes: u64,
    /// What the range is.
    pub kind: E820Kind,
}

impl E820Entry {
    /// First address behind the range.
    pub const fn end(&self) -> u64 {
        self.base + self.bytes
    }
}

/// The whole map, sorted by address, without overlaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct E820Map(Vec<E820Entry>);

impl E820Map {
    /// The map of a board of `form` with its memory laid out by `plan`.
    pub fn new(form: Form, plan: &RamPlan) -> Self {
        let ecam = if form == Form::Q35 { layout::ECAM_BYTES } else { 0 };
        let low_usable = plan.acpi_base() - layout::HIGH_MEMORY_BASE;
        let tables = layout::ACPI_AREA_BYTES - memory::PAGE_SIZE;
        let ebda = layout::CONVENTIONAL_END - layout::EBDA_BASE;
        let bios = layout::HIGH_MEMORY_BASE - layout::BIOS_AREA_BASE;
        #[rustfmt::skip]
        let rows = [
            (0,                        layout::EBDA_BASE,      E820Kind::Usable),
            (layout::EBDA_BASE,        ebda,                   E820Kind::Reserved),
            (layout::BIOS_AREA_BASE,   bios,                   E820Kind::Reserved),
            (layout::HIGH_MEMORY_BASE, low_usable,             E820Kind::Usable),
            (plan.acpi_base(),         tables,                 E820Kind::AcpiReclaim),
            (plan.facs(),              memory::PAGE_SIZE,      E820Kind::AcpiNvs),
            (layout::ECAM_BASE,        ecam,                   E820Kind::Reserved),
            (layout::ABOVE_4G,         plan.high_ram_bytes(),  E820Kind::Usable),
        ];
        let entries = rows
            .into_iter()
            .filter(|&(_, bytes, _)| bytes != 0)
            .map(|(base, bytes, kind)| E820Entry { base, bytes, kind });
        Self(entries.collect())
    }

    /// The ranges, lowest first.
    pub fn entries(&self) -> &[E820Entry] {
        &self.0
    }

    /// The ranges that are free for use, lowest first.
    pub fn usable(&self) -> impl DoubleEndedIterator<Item = &E820Entry> {
        self.0.iter().filter(|entry| entry.kind == E820Kind::Usable)
    }

    /// True if all `bytes` from `base` are free for use.
    pub fn is_usable(&self, base: u64, bytes: u64) -> bool {
        let Some(end) = base.checked_add(bytes) else { return false };
        self.usable().any(|entry| base >= entry.base && end <= entry.end())
    }

    /// The lowest free place of `bytes` at or above `min` that ends at or below `max`, aligned to
    /// `align` (a power of two).
    pub fn lowest(&self, bytes: u64, align: u64, min: u64, max: u64) -> Option<u64> {
        self.usable().find_map(|entry| {
            let base = entry.base.max(min).checked_next_multiple_of(align)?;
            (base.checked_add(bytes)? <= entry.end().min(max)).then_some(base)
        })
    }

    /// The highest free place of `bytes` at or above `min` that ends at or below `max`, aligned
    /// down to `align` (a power of two).
    pub fn highest(&self, bytes: u64, align: u64, min: u64, max: u64) -> Option<u64> {
        self.usable().rev().find_map(|entry| {
            let base = entry.end().min(max).checked_sub(bytes)? & !(align - 1);
            (base >= entry.base.max(min)).then_some(base)
        })
    }

    /// The most bytes that one free range between `min` and `max` has.
    pub fn largest(&self, min: u64, max: u64) -> u64 {
        let room = |entry: &E820Entry| entry.end().min(max).saturating_sub(entry.base.max(min));
        self.usable().map(room).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(memory_bytes: u64) -> E820Map {
        E820Map::new(Form::Q35, &RamPlan { memory_bytes, rom_bytes: 0 })
    }

    #[test]
    fn ranges_are_sorted_apart_and_cover_all_ram() {
        for memory_bytes in [layout::MEMORY_MIN, 128 << 20, 3 << 30, 4 << 30, layout::MEMORY_MAX] {
            let map = map(memory_bytes);
            for pair in map.entries().windows(2) {
                assert!(pair[0].end() <= pair[1].base, "{pair:x?}");
            }
            let ram: u64 =
                map.entries().iter().filter(|e| e.base != layout::ECAM_BASE).map(|e| e.bytes).sum();
            // The hole 0xA0000..0xF0000 is the only RAM that no range names.
            assert_eq!(ram + 0x5_0000, memory_bytes);
        }
    }

    #[test]
    fn places_are_found_from_below_and_above() {
        let map = map(128 << 20);
        assert_eq!(map.lowest(0x1000, 0x1000, 0, u64::MAX), Some(0));
        assert_eq!(map.lowest(0xa_0000, 0x1000, 0, u64::MAX), Some(0x10_0000));
        assert_eq!(map.lowest(0x1000, 0x20_0000, 0x10_0001, u64::MAX), Some(0x20_0000));
        assert_eq!(map.highest(0x1001, 0x1000, 0, u64::MAX), Some((128 << 20) - 0x2_2000));
        assert_eq!(map.highest(0x1000, 0x1000, 0, 0x20_0000), Some(0x1f_f000));
        assert_eq!(map.highest(128 << 20, 0x1000, 0, u64::MAX), None);
        assert_eq!(map.lowest(u64::MAX, 0x1000, 0x1000, u64::MAX), None);
        assert!(map.is_usable(0, 0x9_fc00));
        assert!(!map.is_usable(0, 0x9_fc01));
        assert!(!map.is_usable(u64::MAX, 2));
    }

    #[test]
    fn the_classic_machine_has_no_ecam() {
        let plan = RamPlan { memory_bytes: 64 << 20, rom_bytes: 0 };
        let pc = E820Map::new(Form::Pc, &plan);
        assert!(pc.entries().iter().all(|e| e.base != layout::ECAM_BASE));
    }
}
