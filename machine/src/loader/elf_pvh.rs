//! ELF kernels with a PVH entry, such as Linux's `vmlinux`.
//!
//! Source: Xen, docs/misc/pvh.pandoc ("x86/HVM direct boot ABI") and
//! xen/include/public/arch-x86/hvm/start_info.h: the kernel is entered at the address in its
//! `XEN_ELFNOTE_PHYS32_ENTRY` note, in 32-bit protected mode without paging, with EBX pointing to
//! `hvm_start_info`.

use super::bytes::Bytes;
use super::elf::{Elf, Note};
use super::linux::{self, CodeSize};
use super::{BootState, FlatRegisters, Kernel, LoadError, Target};
use crate::layout::{self, boot};

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const XEN_HVM_START_MAGIC_VALUE: u32 = 0x336e_c578;
/// The first version with a memory map.
const START_INFO_VERSION: u32 = 1;

const MODULE_LIST: u64 = boot::START_INFO + 64;
const MEMORY_MAP: u64 = boot::START_INFO + 128;
/// As Linux's default: vmlinux says nowhere how long a command line it takes.
const COMMAND_LINE_MAX: u64 = 2047;

/// The address in the PVH entry note, if there is one.
pub(super) fn entry(elf: &Elf<'_>) -> Result<Option<u32>, LoadError> {
    elf.find_note(|note: &Note<'_>| {
        let is_entry = note.name == b"Xen\0" && note.kind == XEN_ELFNOTE_PHYS32_ENTRY;
        is_entry.then(|| Bytes::new(note.description, "the PVH entry note").u32(0))
    })?
    .transpose()
}

/// Loads an ELF kernel with its initrd and command line.
pub fn load(kernel: &Kernel, target: &Target<'_>) -> Result<BootState, LoadError> {
    let elf = Elf::parse(&kernel.image)?;
    let entry = entry(&elf)?.ok_or(LoadError::ElfWithoutEntry)?;
    let initrd = kernel.initrd()?;
    let end = elf.load(target)?;
    let command_line = target.write_command_line(&kernel.command_line, COMMAND_LINE_MAX)?;
    let initrd = match initrd.filter(|initrd| !initrd.is_empty()) {
        Some(data) => {
            let min = end.max(layout::HIGH_MEMORY_BASE);
            let at = linux::write_initrd(target, data, min, layout::ABOVE_4G)?;
            Some((at, data.len() as u64))
        }
        None => None,
    };
    write_start_info(target, command_line, initrd)?;
    let gdt = Some(linux::write_gdt(target, CodeSize::Bits32)?);
    let registers = FlatRegisters { rbx: boot::START_INFO, ..Default::default() };
    Ok(BootState::Protected32 { entry, registers, gdt })
}

/// Writes `hvm_start_info`, its module list and its memory map.
fn write_start_info(
    target: &Target<'_>,
    command_line: u64,
    initrd: Option<(u64, u64)>,
) -> Result<(), LoadError> {
    let entries = target.map.entries();
    let mut info = Vec::with_capacity(56);
    info.extend(XEN_HVM_START_MAGIC_VALUE.to_le_bytes());
    info.extend(START_INFO_VERSION.to_le_bytes());
    info.extend(0u32.to_le_bytes());
    info.extend(u32::from(initrd.is_some()).to_le_bytes());
    info.extend(initrd.map_or(0, |_| MODULE_LIST).to_le_bytes());
    info.extend(command_line.to_le_bytes());
    info.extend(target.rsdp.to_le_bytes());
    info.extend(MEMORY_MAP.to_le_bytes());
    info.extend((entries.len() as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    target.write(boot::START_INFO, &info)?;
    if let Some((address, bytes)) = initrd {
        let words = [address, bytes, 0, 0];
        target.write(MODULE_LIST, &words.map(u64::to_le_bytes).concat())?;
    }
    let mut map = Vec::new();
    for entry in entries {
        map.extend(entry.base.to_le_bytes());
        map.extend(entry.bytes.to_le_bytes());
        map.extend((entry.kind as u32).to_le_bytes());
        map.extend(0u32.to_le_bytes());
    }
    target.write(MEMORY_MAP, &map)
}
