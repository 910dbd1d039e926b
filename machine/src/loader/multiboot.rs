//! Multiboot 1 kernels: ELF32, or any file whose header says where it goes.
//!
//! Source: Multiboot Specification 0.6.96, "OS image format", "Machine state" and "Boot information
//! format". Modules and boot information go behind the kernel, where kernels that use the memory
//! from their end on still read them first.

use super::bytes::Bytes;
use super::elf::{self, Elf};
use super::{BootState, FlatRegisters, Kernel, LoadError, Module, Target};
use crate::layout;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header is in the first so many bytes, on a 4-byte boundary.
const SEARCH_BYTES: u64 = 8192;
/// Header flags below bit 16 that are requirements: page-aligned modules and memory sizes, both
/// always provided, and the video mode, of which there is none to report.
const REQUIRED_KNOWN: u32 = 0x7;
const REQUIRED: u32 = 0xffff;
/// The header's address fields are valid.
const AOUT_KLUDGE: u32 = 1 << 16;

/// Bits of the boot information's flags.
mod info_flags {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}
const INFO_BYTES: u64 = 88;
const LOADER_NAME: &str = "Volvelle";
/// Modules beyond this many are a mistake of the caller's.
const MODULES_MAX: usize = 64;

/// The header's place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    offset: u64,
    flags: u32,
}

/// Finds the Multiboot header, by magic and checksum.
pub(super) fn find_header(image: &[u8]) -> Option<Header> {
    let image = Bytes::new(image, "the Multiboot header");
    (0..SEARCH_BYTES.min(image.len())).step_by(4).find_map(|offset| {
        let word = |index: u64| image.u32(offset + 4 * index).ok();
        let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        (magic == HEADER_MAGIC && sum == 0).then_some(Header { offset, flags })
    })
}

/// Loads a Multiboot kernel with its modules and command line.
pub fn load(kernel: &Kernel, target: &Target<'_>) -> Result<BootState, LoadError> {
    let header = find_header(&kernel.image)
        .ok_or(LoadError::NotAKernel { size: kernel.image.len() as u64 })?;
    let unknown = header.flags & REQUIRED & !REQUIRED_KNOWN;
    if unknown != 0 {
        return Err(LoadError::MultibootFlags { flags: unknown });
    }
    let (entry, end) = if header.flags & AOUT_KLUDGE != 0 {
        load_by_addresses(&kernel.image, header, target)?
    } else {
        load_elf(&kernel.image, target)?
    };
    let info = Placer { target, next: end }.place(kernel)?;
    let registers = FlatRegisters { rax: LOADER_MAGIC.into(), rbx: info, ..Default::default() };
    Ok(BootState::Protected32 { entry, registers, gdt: None })
}

fn load_elf(image: &[u8], target: &Target<'_>) -> Result<(u32, u64), LoadError> {
    if !elf::is_elf(image) {
        return Err(LoadError::NotAKernel { size: image.len() as u64 });
    }
    let elf = Elf::parse(image)?;
    if elf.is_64bit() {
        return Err(LoadError::Multiboot64);
    }
    let end = elf.load(target)?;
    // An ELF32 entry has 32 bits.
    Ok((elf.entry() as u32, end))
}

/// Loads by the header's own address fields. Returns the entry and the first address behind.
fn load_by_addresses(
    image: &[u8],
    header: Header,
    target: &Target<'_>,
) -> Result<(u32, u64), LoadError> {
    let bytes = Bytes::new(image, "the Multiboot header");
    let field = |index: u64| bytes.u32(header.offset + 12 + 4 * index).map(u64::from);
    let (header_addr, load_addr, load_end, bss_end) = (field(0)?, field(1)?, field(2)?, field(3)?);
    let bad = |field, value| LoadError::Field { field, value };
    let before = header_addr.checked_sub(load_addr).ok_or(bad("load_addr", load_addr))?;
    let start = header.offset.checked_sub(before).ok_or(bad("load_addr", load_addr))?;
    // 0 stands for "to the end of the file" and "no bss".
    let file_bytes = match load_end {
        0 => bytes.len().saturating_sub(start),
        end => end.checked_sub(load_addr).ok_or(bad("load_end_addr", end))?,
    };
    let data = bytes.named("the text and data").slice(start, file_bytes)?;
    let memory_bytes = match bss_end {
        0 => file_bytes,
        end => end
            .checked_sub(load_addr)
            .filter(|&bytes| bytes >= file_bytes)
            .ok_or(bad("bss_end_addr", end))?,
    };
    target.write_zero_filled("the text and data", load_addr, data, memory_bytes)?;
    Ok((bytes.u32(header.offset + 28)?, load_addr + memory_bytes))
}

/// Puts things behind each other into free memory behind the kernel.
struct Placer<'a> {
    target: &'a Target<'a>,
    next: u64,
}

impl Placer<'_> {
    /// Places modules, strings and memory map, and then the boot information; returns its address.
    fn place(&mut self, kernel: &Kernel) -> Result<u64, LoadError> {
        if kernel.modules.len() > MODULES_MAX {
            return Err(LoadError::ManyInitrds { count: kernel.modules.len() });
        }
        let modules = self.modules(&kernel.modules)?;
        // The first word of the line is the kernel's name, as every Multiboot loader passes it.
        let line = format!("{} {}", kernel.name, kernel.command_line);
        let command_line = self.string(line.trim_end_matches(' '))?;
        let loader_name = self.string(LOADER_NAME)?;
        let map = self.memory_map();
        let map_at = self.put(&map, 8)?;

        let mut words = [0u32; INFO_BYTES as usize / 4];
        words[0] = info_flags::MEMORY
            | info_flags::COMMAND_LINE
            | info_flags::MODULES
            | info_flags::MEMORY_MAP
            | info_flags::LOADER_NAME;
        (words[1], words[2]) = self.memory_sizes();
        words[4] = command_line;
        words[5] = kernel.modules.len() as u32;
        words[6] = modules;
        words[11] = map.len() as u32;
        words[12] = map_at;
        words[16] = loader_name;
        self.put(&words.map(u32::to_le_bytes).concat(), 16).map(u64::from)
    }

    /// Copies `data` to the next free place; all of them are below 4 GiB.
    fn put(&mut self, data: &[u8], align: u64) -> Result<u32, LoadError> {
        let bytes = data.len() as u64;
        let map = self.target.map;
        let address = map.lowest(bytes, align, self.next, layout::ABOVE_4G).ok_or_else(|| {
            LoadError::InitrdTooLarge { bytes, available: map.largest(self.next, layout::ABOVE_4G) }
        })?;
        self.target.write(address, data)?;
        self.next = address + bytes;
        // `lowest` found it to end at or below 4 GiB, and nothing usable begins right there.
        Ok(address as u32)
    }

    fn string(&mut self, text: &str) -> Result<u32, LoadError> {
        if text.contains('\0') {
            return Err(LoadError::CommandLineNul);
        }
        self.put(&[text.as_bytes(), &[0]].concat(), 1)
    }

    /// Places every module on a page of its own, then their list; returns the list's address.
    fn modules(&mut self, modules: &[Module]) -> Result<u32, LoadError> {
        let mut list = Vec::new();
        for module in modules {
            let start = self.put(&module.data, memory::PAGE_SIZE)?;
            let line = self.string(&module.command_line)?;
            let end = start + module.data.len() as u32;
            list.extend([start, end, line, 0].map(u32::to_le_bytes).concat());
        }
        self.put(&list, 16)
    }

    /// KiB of memory from 0, and from 1 MiB up to the first hole.
    fn memory_sizes(&self) -> (u32, u32) {
        let upper = self.target.map.usable().find(|e| e.base == layout::HIGH_MEMORY_BASE);
        let upper_bytes = upper.map_or(0, |entry| entry.bytes);
        ((layout::EBDA_BASE >> 10) as u32, (upper_bytes >> 10) as u32)
    }

    fn memory_map(&self) -> Vec<u8> {
        let mut map = Vec::new();
        for entry in self.target.map.entries() {
            map.extend(20u32.to_le_bytes());
            map.extend(entry.base.to_le_bytes());
            map.extend(entry.bytes.to_le_bytes());
            // Multiboot took its memory types from E820.
            map.extend((entry.kind as u32).to_le_bytes());
        }
        map
    }
}
