//! A raw boot ROM that ends at 4 GiB.
//!
//! The last 128 KiB also appear below 1 MiB, because that is where real-mode code can reach them.
//! Which of ROM and RAM answers there is the host bridge's affair (PAM): after a reset it is the
//! ROM, and firmware that wants to write there copies itself to the RAM behind. The file's size is
//! rounded up to a page by filling its *start* with FFh, as erased flash, so that the reset vector
//! stays at the end.

use memory::{GuestPhysical, MapError, PAGE_SIZE, PhysicalSpace, RegionKind};

use super::LoadError;
use crate::layout::{self, RamPlan};

/// Bytes of [`memory::Ram`] that a ROM image of `size` bytes needs.
pub fn needed_bytes(size: u64) -> Result<u64, LoadError> {
    if size == 0 || size > layout::ROM_BYTES_MAX {
        return Err(LoadError::RomSize { size });
    }
    Ok(size.next_multiple_of(PAGE_SIZE))
}

/// Copies `image` to the ROM space of `plan`, the end of the image to the end of the space.
pub fn load(image: &[u8], plan: &RamPlan, space: &PhysicalSpace) -> Result<(), LoadError> {
    let needed = needed_bytes(image.len() as u64)?;
    let room = plan.rom_bytes;
    let padding =
        room.checked_sub(image.len() as u64).ok_or(LoadError::RomRoom { needed, room })?;
    let erased = vec![0xff; padding as usize];
    space.ram().write_bytes(plan.memory_bytes, &erased);
    space.ram().write_bytes(plan.memory_bytes + padding, image);
    Ok(())
}

/// Maps the ROM space of `plan` so that it ends at 4 GiB.
pub fn map(plan: &RamPlan, space: &PhysicalSpace) -> Result<(), MapError> {
    if plan.rom_bytes == 0 {
        return Ok(());
    }
    let base = layout::ABOVE_4G - plan.rom_bytes;
    space.map(GuestPhysical(base), plan.rom_bytes, RegionKind::Rom(plan.memory_bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use memory::{Ram, Width};

    use super::*;

    #[test]
    fn the_end_of_the_image_is_the_end_of_the_address_space() {
        for size in [1, 16, 4095, 4096, 64 << 10, 200_000] {
            let rom_bytes = needed_bytes(size).unwrap();
            let plan = RamPlan { memory_bytes: 2 << 20, rom_bytes };
            let space = PhysicalSpace::new(Arc::new(Ram::new(plan.total_bytes()).unwrap()));
            map(&plan, &space).unwrap();
            load(&vec![0x5a; size as usize], &plan, &space).unwrap();
            assert_eq!(space.read(GuestPhysical(0xffff_ffff), Width::Byte), 0x5a);
            assert_eq!(space.read(GuestPhysical((1 << 32) - size), Width::Byte), 0x5a);
            if size % PAGE_SIZE != 0 {
                assert_eq!(space.read(GuestPhysical((1 << 32) - size - 1), Width::Byte), 0xff);
            }
        }
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert_eq!(needed_bytes(0), Err(LoadError::RomSize { size: 0 }));
        assert_eq!(needed_bytes(16 << 20), Ok(16 << 20));
        let size = (16 << 20) + 1;
        assert_eq!(needed_bytes(size), Err(LoadError::RomSize { size }));
        let plan = RamPlan { memory_bytes: 2 << 20, rom_bytes: 4096 };
        let space = PhysicalSpace::new(Arc::new(Ram::new(plan.total_bytes()).unwrap()));
        let error = load(&[0; 5000], &plan, &space);
        assert_eq!(error, Err(LoadError::RomRoom { needed: 8192, room: 4096 }));
    }
}
