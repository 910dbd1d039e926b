//! PAM: what answers from C0000h to FFFFFh, ROM or the RAM behind it.
//!
//! Sources: Intel 440FX (82441FX) datasheet, "PAM - Programmable Attribute Map Registers"; Intel 3
//! Series Express Chipset datasheet, "PAM0". Thirteen segments, each with a read enable (RAM
//! answers reads) and a write enable (RAM takes writes); what is not enabled goes to the ROM, of
//! which only E0000h to FFFFFh is there.
//!
//! Known departure: changing a segment leaves a moment in which nothing answers; firmware does it
//! with one processor running from elsewhere.

use std::sync::Arc;

use memory::{Device, GuestPhysical, IoError, PhysicalSpace, Ram, RegionKind, Width};

use crate::layout::{self, RamPlan};

/// Number of PAM registers.
pub const REGISTER_COUNT: usize = 7;
/// Bits that exist: PAM0 has only its upper half.
pub const WRITABLE: [u8; REGISTER_COUNT] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];
const SEGMENT_COUNT: usize = 13;
const READ_ENABLE: u8 = 1;
const WRITE_ENABLE: u8 = 2;
const SMALL_SEGMENT: u64 = 16 << 10;

/// First address and size of segment `index`, and where its attributes are: register and shift.
const fn segment(index: usize) -> (u64, u64, usize, u32) {
    if index == 0 {
        return (layout::BIOS_AREA_BASE, 64 << 10, 0, 4);
    }
    let base = layout::SHADOW_BASE + (index as u64 - 1) * SMALL_SEGMENT;
    (base, SMALL_SEGMENT, index.div_ceil(2), if index % 2 == 1 { 0 } else { 4 })
}

/// Reads come from the ROM, if there is one, and writes go to the RAM behind it.
struct WriteThrough {
    ram: Arc<Ram>,
    rom_offset: Option<u64>,
    ram_offset: u64,
}

impl Device for WriteThrough {
    fn read(&self, offset: u64, width: Width) -> Result<u64, IoError> {
        let mut bytes = [0xff; 8];
        if let (Some(rom), Some(part)) = (self.rom_offset, bytes.get_mut(..width.bytes() as usize))
        {
            self.ram.read_bytes(rom + offset, part);
        }
        Ok(u64::from_le_bytes(bytes) & width.mask())
    }

    fn write(&self, offset: u64, width: Width, value: u64) -> Result<(), IoError> {
        let bytes = value.to_le_bytes();
        if let Some(part) = bytes.get(..width.bytes() as usize) {
            self.ram.write_bytes(self.ram_offset + offset, part);
        }
        Ok(())
    }
}

/// What a segment is now.
#[derive(Clone, Copy, Default)]
struct Segment {
    /// Attributes it was mapped for, `None` before the first [`ShadowArea::apply`].
    attributes: Option<u8>,
    /// A range of ours is in the map; a BAR that the guest put there is not.
    is_mapped: bool,
}

/// The segments and what each is mapped to now.
pub struct ShadowArea {
    space: Arc<PhysicalSpace>,
    plan: RamPlan,
    segments: [Segment; SEGMENT_COUNT],
}

impl ShadowArea {
    /// The area in `space`, of a machine laid out by `plan`; nothing is mapped yet.
    pub fn new(space: Arc<PhysicalSpace>, plan: RamPlan) -> Self {
        Self { space, plan, segments: [Segment::default(); SEGMENT_COUNT] }
    }

    /// Maps every segment as the PAM registers say.
    pub fn apply(&mut self, registers: [u8; REGISTER_COUNT]) {
        for index in 0..SEGMENT_COUNT {
            let (base, bytes, register, shift) = segment(index);
            let value = registers.get(register).copied().unwrap_or(0);
            let attributes = value >> shift & (READ_ENABLE | WRITE_ENABLE);
            let kind = self.kind(base, bytes, attributes);
            let Some(segment) = self.segments.get_mut(index) else { return };
            if segment.attributes == Some(attributes) {
                continue;
            }
            if segment.is_mapped {
                self.space.unmap(GuestPhysical(base));
            }
            let result = kind.map(|kind| self.space.map(GuestPhysical(base), bytes, kind));
            if let Some(Err(error)) = &result {
                log::debug!(target: "guest_error", "PAM: {error}");
            }
            let is_mapped = matches!(result, Some(Ok(())));
            *segment = Segment { attributes: Some(attributes), is_mapped };
        }
    }

    /// What answers in the segment at `base`; low RAM has the same offset as address.
    fn kind(&self, base: u64, bytes: u64, attributes: u8) -> Option<RegionKind> {
        let rom = self.rom_offset(base, bytes);
        match (attributes & READ_ENABLE != 0, attributes & WRITE_ENABLE != 0) {
            (true, true) => Some(RegionKind::Ram(base)),
            (true, false) => Some(RegionKind::Rom(base)),
            (false, false) => rom.map(RegionKind::Rom),
            (false, true) => Some(RegionKind::Device(Arc::new(WriteThrough {
                ram: Arc::clone(self.space.ram()),
                rom_offset: rom,
                ram_offset: base,
            }))),
        }
    }

    /// The offset in RAM of the ROM's byte that appears at `base`, if all of the segment is ROM.
    fn rom_offset(&self, base: u64, bytes: u64) -> Option<u64> {
        let rom_end = self.plan.memory_bytes + self.plan.rom_bytes;
        let before_end = layout::HIGH_MEMORY_BASE - base;
        let is_rom = base >= layout::ROM_ALIAS_BASE && before_end <= self.plan.rom_bytes;
        // A ROM smaller than the alias repeats, as the flash chip's unconnected address lines make
        // it do, so that F0000h is the last 64 KiB of anything.
        let repeated = self.plan.rom_bytes != 0
            && base >= layout::ROM_ALIAS_BASE
            && self.plan.rom_bytes.is_multiple_of(bytes);
        match (is_rom, repeated) {
            (true, _) => Some(rom_end - before_end),
            (false, true) => Some(rom_end - (before_end - 1) % self.plan.rom_bytes - 1),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_RAM: [u8; 7] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];

    fn area(rom_bytes: u64) -> (Arc<PhysicalSpace>, ShadowArea) {
        let plan = RamPlan { memory_bytes: 2 << 20, rom_bytes };
        let ram = Arc::new(Ram::new(plan.total_bytes()).unwrap());
        // Every ROM byte is its distance in KiB from the end.
        for kib in 0..rom_bytes >> 10 {
            let value = ((rom_bytes >> 10) - kib) as u8;
            ram.fill(plan.memory_bytes + (kib << 10), value, 1024);
        }
        let space = Arc::new(PhysicalSpace::new(ram));
        (Arc::clone(&space), ShadowArea::new(space, plan))
    }

    fn byte(space: &PhysicalSpace, address: u64) -> u64 {
        space.read(GuestPhysical(address), Width::Byte)
    }

    #[test]
    fn segments_tile_the_area() {
        let mut segments: Vec<_> = (0..SEGMENT_COUNT).map(segment).collect();
        segments.sort_unstable();
        let mut next = layout::SHADOW_BASE;
        for &(base, bytes, register, _) in &segments {
            assert_eq!(base, next);
            assert!(register < REGISTER_COUNT);
            next = base + bytes;
        }
        assert_eq!(next, layout::HIGH_MEMORY_BASE);
        assert_eq!((segment(12).2, segment(12).3), (6, 4));
    }

    #[test]
    fn rom_answers_after_reset_and_ram_when_shadowed() {
        let (space, mut area) = area(256 << 10);
        area.apply([0; 7]);
        assert_eq!(byte(&space, 0xf_ffff), 1);
        assert_eq!(byte(&space, 0xe_0000), 128);
        assert_eq!(byte(&space, 0xd_ffff), 0xff);
        space.write(GuestPhysical(0xf_ffff), Width::Byte, 0x77);
        assert_eq!(byte(&space, 0xf_ffff), 1);
        // Firmware copies itself: reads from ROM, writes to RAM, then all RAM, then read-only.
        area.apply([0x20, 0, 0, 0, 0, 0, 0]);
        space.write(GuestPhysical(0xf_fff0), Width::Qword, 0x1122_3344_5566_7788);
        assert_eq!(space.read(GuestPhysical(0xf_fff0), Width::Dword), 0x0101_0101);
        area.apply(ALL_RAM);
        assert_eq!(space.read(GuestPhysical(0xf_fff0), Width::Qword), 0x1122_3344_5566_7788);
        area.apply([0x10, 0, 0, 0, 0, 0, 0]);
        space.write(GuestPhysical(0xf_fff0), Width::Byte, 0);
        assert_eq!(byte(&space, 0xf_fff0), 0x88);
        area.apply([0; 7]);
        assert_eq!(byte(&space, 0xf_fff0), 1);
    }

    #[test]
    fn a_small_rom_repeats_below_1_mib() {
        let (space, mut area) = area(64 << 10);
        area.apply([0; 7]);
        assert_eq!((byte(&space, 0xf_ffff), byte(&space, 0xe_ffff)), (1, 1));
        assert_eq!((byte(&space, 0xf_0000), byte(&space, 0xe_0000)), (64, 64));
        assert_eq!(byte(&space, 0xc_0000), 0xff);
    }
}
