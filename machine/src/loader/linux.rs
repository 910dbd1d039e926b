//! What both ways into Linux share: flat descriptors, identity paging, and where an initrd goes.

use super::{LoadError, TableRegister, Target};
use crate::layout::boot;

/// Writable, present.
const PAGE_TABLE: u64 = 0x3;
/// Writable, present, 2 MiB page.
const LARGE_PAGE: u64 = 0x83;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const PAGE_BYTES: u64 = memory::PAGE_SIZE;

/// Width of the code segment that a kernel is entered in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CodeSize {
    Bits32,
    Bits64,
}

/// Writes the GDT of the Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot
/// Protocol"): `__BOOT_CS` is 10h, `__BOOT_DS` is 18h; behind them a task-state segment.
pub(super) fn write_gdt(target: &Target<'_>, size: CodeSize) -> Result<TableRegister, LoadError> {
    let code = match size {
        CodeSize::Bits32 => 0x00cf_9b00_0000_ffff_u64,
        CodeSize::Bits64 => 0x00af_9b00_0000_ffff,
    };
    let entries = [0, 0, code, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067, 0];
    let bytes: Vec<u8> = entries.into_iter().flat_map(u64::to_le_bytes).collect();
    target.write(boot::GDT, &bytes)?;
    Ok(TableRegister { base: boot::GDT, limit: (entries.len() * 8 - 1) as u16 })
}

/// Writes page tables that map the first 4 GiB to themselves with 2 MiB pages, which every
/// processor with long mode has; returns CR3. The kernel, `boot_params` and the command line all
/// lie below 4 GiB; the kernel maps more for itself.
pub(super) fn write_identity_map(target: &Target<'_>) -> Result<u64, LoadError> {
    const DIRECTORIES: u64 = 4;
    let pdpt = boot::PAGE_TABLES + PAGE_BYTES;
    let first_directory = pdpt + PAGE_BYTES;
    let mut words = vec![0u64; 512 * (2 + DIRECTORIES as usize)];
    let (upper, directories) = words.split_at_mut(1024);
    upper[0] = pdpt | PAGE_TABLE;
    for (index, entry) in (0..DIRECTORIES).zip(&mut upper[512..]) {
        *entry = (first_directory + index * PAGE_BYTES) | PAGE_TABLE;
    }
    for (index, entry) in (0u64..).zip(directories) {
        *entry = (index * LARGE_PAGE_BYTES) | LARGE_PAGE;
    }
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
    target.write(boot::PAGE_TABLES, &bytes)?;
    Ok(boot::PAGE_TABLES)
}

/// Writes `initrd` to the highest free pages between `min` and `max`, as boot loaders do, because
/// the kernel decompresses itself at the low end. Returns its address.
pub(super) fn write_initrd(
    target: &Target<'_>,
    initrd: &[u8],
    min: u64,
    max: u64,
) -> Result<u64, LoadError> {
    let bytes = initrd.len() as u64;
    let address = target.map.highest(bytes, PAGE_BYTES, min, max).ok_or_else(|| {
        LoadError::InitrdTooLarge { bytes, available: target.map.largest(min, max) }
    })?;
    target.write(address, initrd)?;
    Ok(address)
}
