//! Linux bzImage: the boot protocol's 64-bit entry, or its 32-bit entry for kernels without one.
//!
//! Source: Linux, Documentation/arch/x86/boot.rst ("The Real-Mode Kernel Header", "32-bit Boot
//! Protocol", "64-bit Boot Protocol") and zero-page.rst. The image's real-mode code is not run: its
//! setup header is copied to `boot_params`, and what the real-mode code would have asked the BIOS
//! for (memory map, RSDP) is filled in.

use super::bytes::Bytes;
use super::linux::{self, CodeSize};
use super::{BootState, FlatRegisters, Kernel, LoadError, Target};
use crate::e820::E820Map;
use crate::layout::{self, boot};

/// Offsets in the image, which are also those in `boot_params`.
mod header {
    pub const SETUP_SECTS: u64 = 0x1f1;
    pub const SYSSIZE: u64 = 0x1f4;
    pub const VID_MODE: u64 = 0x1fa;
    pub const BOOT_FLAG: u64 = 0x1fe;
    /// Second byte of a short jump over the header: the header ends so many bytes behind it.
    pub const JUMP: u64 = 0x201;
    pub const HEADER: u64 = 0x202;
    pub const VERSION: u64 = 0x206;
    pub const TYPE_OF_LOADER: u64 = 0x210;
    pub const LOADFLAGS: u64 = 0x211;
    pub const CODE32_START: u64 = 0x214;
    pub const RAMDISK_IMAGE: u64 = 0x218;
    pub const RAMDISK_SIZE: u64 = 0x21c;
    pub const CMD_LINE_PTR: u64 = 0x228;
    pub const INITRD_ADDR_MAX: u64 = 0x22c;
    pub const KERNEL_ALIGNMENT: u64 = 0x230;
    pub const RELOCATABLE_KERNEL: u64 = 0x234;
    pub const XLOADFLAGS: u64 = 0x236;
    pub const CMDLINE_SIZE: u64 = 0x238;
    pub const PREF_ADDRESS: u64 = 0x258;
    pub const INIT_SIZE: u64 = 0x260;
    /// The header may grow up to here; behind it `boot_params` has fields of its own.
    pub const END_MAX: u64 = 0x290;
}

/// Offsets that only `boot_params` has.
mod params {
    pub const EXT_MEM_K: u64 = 0x002;
    pub const ACPI_RSDP_ADDR: u64 = 0x070;
    pub const EXT_RAMDISK_IMAGE: u64 = 0x0c0;
    pub const EXT_RAMDISK_SIZE: u64 = 0x0c4;
    pub const EXT_CMD_LINE_PTR: u64 = 0x0c8;
    pub const ALT_MEM_K: u64 = 0x1e0;
    pub const E820_ENTRIES: u64 = 0x1e8;
    pub const E820_TABLE: u64 = 0x2d0;
    pub const E820_ENTRY_BYTES: u64 = 20;
    pub const E820_ENTRIES_MAX: usize = 128;
    pub const BYTES: usize = 4096;
}

const HDRS: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
const SECTOR_BYTES: u64 = 512;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
/// The 64-bit entry, from where the protected-mode kernel was loaded.
const ENTRY_64_OFFSET: u64 = 0x200;
const VID_MODE_NORMAL: u16 = 0xffff;

/// What the loader needs of the setup header, with the defaults of older protocols filled in.
#[derive(Clone, Copy, Debug)]
struct SetupHeader {
    version: u16,
    /// Image offset of the protected-mode kernel.
    kernel_offset: u64,
    /// Size of the protected-mode kernel in bytes.
    kernel_bytes: u64,
    /// Offset behind the header, in the image and in `boot_params`.
    header_end: u64,
    loadflags: u8,
    xloadflags: u16,
    initrd_addr_max: u64,
    cmdline_size: u64,
    /// The alignment a relocatable kernel wants, or `None` if it must be at its fixed address.
    relocatable: Option<u64>,
    pref_address: u64,
    /// Memory the kernel needs from where it is loaded, until it reads the memory map.
    init_size: u64,
}

/// True if `image` has a Linux setup header.
pub fn is_bzimage(image: &[u8]) -> bool {
    let image = Bytes::new(image, "the Linux setup header");
    image.u32(header::HEADER) == Ok(HDRS) && image.u16(header::BOOT_FLAG) == Ok(BOOT_FLAG)
}

impl SetupHeader {
    fn parse(image: Bytes<'_>) -> Result<Self, LoadError> {
        let version = image.u16(header::VERSION)?;
        if version < 0x202 {
            return Err(LoadError::OldProtocol { version });
        }
        let header_end = header::HEADER + u64::from(image.u8(header::JUMP)?);
        let loadflags = image.u8(header::LOADFLAGS)?;
        if loadflags & LOADED_HIGH == 0 {
            return Err(LoadError::ZImage);
        }
        // 0 means 4, for kernels older than any that boots here, but the protocol says so.
        let sectors = match image.u8(header::SETUP_SECTS)? {
            0 => 4,
            count => u64::from(count),
        };
        let mut this = Self {
            version,
            kernel_offset: (sectors + 1) * SECTOR_BYTES,
            kernel_bytes: u64::from(image.u32(header::SYSSIZE)?) * 16,
            header_end: header_end.min(header::END_MAX),
            loadflags,
            xloadflags: 0,
            initrd_addr_max: 0x37ff_ffff,
            cmdline_size: 255,
            relocatable: None,
            pref_address: layout::HIGH_MEMORY_BASE,
            init_size: 0,
        };
        this.parse_newer_fields(image)?;
        Ok(this)
    }

    fn parse_newer_fields(&mut self, image: Bytes<'_>) -> Result<(), LoadError> {
        if self.version >= 0x203 {
            self.initrd_addr_max = u64::from(image.u32(header::INITRD_ADDR_MAX)?);
        }
        if self.version >= 0x205 && image.u8(header::RELOCATABLE_KERNEL)? != 0 {
            self.relocatable = Some(self.parse_alignment(image)?);
        }
        if self.version >= 0x206 {
            self.cmdline_size = u64::from(image.u32(header::CMDLINE_SIZE)?);
        }
        if self.version >= 0x20a {
            self.pref_address = image.u64(header::PREF_ADDRESS)?;
            self.init_size = u64::from(image.u32(header::INIT_SIZE)?);
        }
        if self.version >= 0x20c {
            self.xloadflags = image.u16(header::XLOADFLAGS)?;
        }
        Ok(())
    }

    fn parse_alignment(&self, image: Bytes<'_>) -> Result<u64, LoadError> {
        let value = u64::from(image.u32(header::KERNEL_ALIGNMENT)?);
        if value.is_power_of_two() {
            Ok(value.max(memory::PAGE_SIZE))
        } else {
            Err(LoadError::Field { field: "kernel_alignment", value })
        }
    }

    /// The protected-mode kernel in the image.
    fn kernel<'a>(&self, image: Bytes<'a>) -> Result<&'a [u8], LoadError> {
        if self.kernel_bytes == 0 {
            return Err(LoadError::Field { field: "syssize", value: 0 });
        }
        image.named("the protected-mode kernel").slice(self.kernel_offset, self.kernel_bytes)
    }

    /// Memory the kernel needs from its load address, at least its own size.
    fn needed(&self) -> u64 {
        self.init_size.max(self.kernel_bytes)
    }

    /// Where the kernel goes: its preferred address, or the lowest aligned one that has room.
    fn place(&self, map: &E820Map) -> Result<u64, LoadError> {
        let (needed, min, max) = (self.needed(), layout::HIGH_MEMORY_BASE, layout::LOW_RAM_LIMIT);
        let is_below_4g = self.pref_address >= min
            && self.pref_address.checked_add(needed).is_some_and(|end| end <= max);
        if is_below_4g && map.is_usable(self.pref_address, needed) {
            return Ok(self.pref_address);
        }
        self.relocatable
            .and_then(|align| map.lowest(needed, align, min, max))
            .ok_or_else(|| LoadError::MemoryTooSmall { needed, available: map.largest(min, max) })
    }

    /// The highest end an initrd may have. All of it lies below 4 GiB unless the kernel can have it
    /// above.
    fn initrd_end_max(&self) -> u64 {
        if self.xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 {
            u64::MAX
        } else {
            self.initrd_addr_max.saturating_add(1).min(layout::ABOVE_4G)
        }
    }

    fn place_initrd(
        &self,
        target: &Target<'_>,
        initrd: &[u8],
        kernel_end: u64,
    ) -> Result<u64, LoadError> {
        // Below the classic limit first: older code in the kernel's way knows nothing higher.
        let classic = self.initrd_addr_max.saturating_add(1).min(layout::ABOVE_4G);
        linux::write_initrd(target, initrd, kernel_end, classic)
            .or_else(|_| linux::write_initrd(target, initrd, kernel_end, self.initrd_end_max()))
    }
}

/// `boot_params` while it is filled in. Offsets are constants of this file, all inside the page.
struct ZeroPage([u8; params::BYTES]);

impl ZeroPage {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        if let Some(field) = self.0.get_mut(start..start + bytes.len()) {
            field.copy_from_slice(bytes);
        }
    }

    /// Splits a 64-bit value over a field and its extension for the upper half.
    fn put_split(&mut self, low: u64, high: u64, value: u64) {
        self.put(low, &(value as u32).to_le_bytes());
        self.put(high, &((value >> 32) as u32).to_le_bytes());
    }

    fn put_e820(&mut self, map: &E820Map) {
        let entries = map.entries().iter().take(params::E820_ENTRIES_MAX);
        self.put(params::E820_ENTRIES, &[entries.len() as u8]);
        for (index, entry) in (0u64..).zip(entries) {
            let at = params::E820_TABLE + index * params::E820_ENTRY_BYTES;
            self.put(at, &entry.base.to_le_bytes());
            self.put(at + 8, &entry.bytes.to_le_bytes());
            self.put(at + 16, &(entry.kind as u32).to_le_bytes());
        }
    }

    fn put_memory_sizes(&mut self, map: &E820Map) {
        let low_end = map.usable().take_while(|e| e.base < layout::ABOVE_4G).map(|e| e.end()).max();
        let kib = low_end.unwrap_or(0).saturating_sub(layout::HIGH_MEMORY_BASE) >> 10;
        self.put(params::EXT_MEM_K, &(kib.min(0xffff) as u16).to_le_bytes());
        self.put(params::ALT_MEM_K, &(kib as u32).to_le_bytes());
    }
}

/// Loads a bzImage with its initrd and command line.
pub fn load(kernel: &Kernel, target: &Target<'_>) -> Result<BootState, LoadError> {
    let image = Bytes::new(&kernel.image, "the Linux setup header");
    let setup = SetupHeader::parse(image)?;
    let code = setup.kernel(image)?;
    let initrd = kernel.initrd()?;
    let address = setup.place(target.map)?;
    let command_line = target.write_command_line(&kernel.command_line, setup.cmdline_size)?;
    target.write(address, code)?;

    let mut page = ZeroPage([0; params::BYTES]);
    let header_bytes = setup.header_end - header::SETUP_SECTS;
    page.put(header::SETUP_SECTS, image.slice(header::SETUP_SECTS, header_bytes)?);
    page.put(header::VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    page.put(header::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    page.put(header::LOADFLAGS, &[setup.loadflags]);
    page.put(header::CODE32_START, &(address as u32).to_le_bytes());
    page.put_split(header::CMD_LINE_PTR, params::EXT_CMD_LINE_PTR, command_line);
    if let Some(initrd) = initrd.filter(|initrd| !initrd.is_empty()) {
        let at = setup.place_initrd(target, initrd, address + setup.needed())?;
        page.put_split(header::RAMDISK_IMAGE, params::EXT_RAMDISK_IMAGE, at);
        page.put_split(header::RAMDISK_SIZE, params::EXT_RAMDISK_SIZE, initrd.len() as u64);
    }
    page.put_memory_sizes(target.map);
    page.put_e820(target.map);
    if setup.version >= 0x20e {
        page.put(params::ACPI_RSDP_ADDR, &target.rsdp.to_le_bytes());
    }
    target.write(boot::BOOT_PARAMS, &page.0)?;
    enter(&setup, address, target)
}

fn enter(setup: &SetupHeader, address: u64, target: &Target<'_>) -> Result<BootState, LoadError> {
    let registers =
        FlatRegisters { rsi: boot::BOOT_PARAMS, rsp: boot::STACK_TOP, ..Default::default() };
    if setup.xloadflags & XLF_KERNEL_64 == 0 {
        let gdt = Some(linux::write_gdt(target, CodeSize::Bits32)?);
        // `place` keeps the kernel below 4 GiB.
        return Ok(BootState::Protected32 { entry: address as u32, registers, gdt });
    }
    Ok(BootState::Long64 {
        entry: address + ENTRY_64_OFFSET,
        registers,
        cr3: linux::write_identity_map(target)?,
        gdt: linux::write_gdt(target, CodeSize::Bits64)?,
    })
}
