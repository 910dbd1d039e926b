//! Loaders: guest images into guest memory, and the state that CPU 0 starts in.
//!
//! Four formats, told apart by what is in the file: Linux bzImage ([`bzimage`]), ELF with a PVH
//! entry note ([`elf_pvh`]), Multiboot 1 ([`multiboot`]), and a raw ROM ([`rom`]), which only the
//! caller can tell. Images are hostile input: every field is read with bounds through
//! [`bytes::Bytes`], every address is checked against the memory map before anything is written,
//! and sizes are only trusted once they fit.
//!
//! What the CPU has to look like comes back as plain data, [`BootState`]; this crate knows no CPU.

mod bytes;
mod elf;
mod error;
mod linux;
mod state;

pub mod bzimage;
pub mod elf_pvh;
pub mod multiboot;
pub mod rom;

use memory::{GuestPhysical, PhysicalSpace};

use crate::e820::E820Map;

pub use error::LoadError;
pub use state::{BootState, FlatRegisters, TableRegister};

/// A file for the guest beside its kernel: Linux's initrd, or a Multiboot module.
#[derive(Clone, Debug, Default)]
pub struct Module {
    /// The file's bytes.
    pub data: Vec<u8>,
    /// Its command line; Multiboot guests see it.
    pub command_line: String,
}

/// A kernel to start, and what to start it with.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// The kernel file's bytes.
    pub image: Vec<u8>,
    /// What Multiboot guests see as the first word of the command line: the file's name.
    pub name: String,
    /// The command line.
    pub command_line: String,
    /// An initrd for Linux; any number of modules for Multiboot.
    pub modules: Vec<Module>,
}

/// What the machine boots.
#[derive(Clone, Debug)]
pub enum BootSource {
    /// A kernel, loaded straight into memory.
    Kernel(Kernel),
    /// A raw ROM image that ends at 4 GiB, started at the reset vector.
    Rom(Vec<u8>),
}

/// Guest memory as the loaders see it.
pub struct Target<'a> {
    /// Where the bytes go.
    pub space: &'a PhysicalSpace,
    /// Which of it is free.
    pub map: &'a E820Map,
    /// Guest-physical address of the ACPI RSDP.
    pub rsdp: u64,
}

/// The format of a kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Linux bzImage.
    BzImage,
    /// ELF with a PVH entry note.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// Tells the format of `image`, in the order a boot loader tries them.
pub fn detect(image: &[u8]) -> Result<Format, LoadError> {
    if image.is_empty() {
        return Err(LoadError::Empty);
    }
    if bzimage::is_bzimage(image) {
        return Ok(Format::BzImage);
    }
    if !elf::is_elf(image) {
        return multiboot::find_header(image)
            .map(|_| Format::Multiboot)
            .ok_or(LoadError::NotAKernel { size: image.len() as u64 });
    }
    let elf = elf::Elf::parse(image)?;
    if elf_pvh::entry(&elf)?.is_some() {
        Ok(Format::Pvh)
    } else if multiboot::find_header(image).is_none() {
        Err(LoadError::ElfWithoutEntry)
    } else if elf.is_64bit() {
        Err(LoadError::Multiboot64)
    } else {
        Ok(Format::Multiboot)
    }
}

/// Loads `kernel`, whatever its format.
pub fn load(kernel: &Kernel, target: &Target<'_>) -> Result<BootState, LoadError> {
    match detect(&kernel.image)? {
        Format::BzImage => bzimage::load(kernel, target),
        Format::Pvh => elf_pvh::load(kernel, target),
        Format::Multiboot => multiboot::load(kernel, target),
    }
}

impl Target<'_> {
    /// Writes `data`, which must land in RAM.
    fn write(&self, address: u64, data: &[u8]) -> Result<(), LoadError> {
        self.space.dma_write(GuestPhysical(address), data).map_err(|_| LoadError::NoRoom {
            what: "boot data",
            address,
            bytes: data.len() as u64,
        })
    }

    /// Writes `data` and then zeroes up to `bytes`; all of it must be free memory.
    fn write_zero_filled(
        &self,
        what: &'static str,
        address: u64,
        data: &[u8],
        bytes: u64,
    ) -> Result<(), LoadError> {
        const ZEROES: [u8; 4096] = [0; 4096];
        let bytes = bytes.max(data.len() as u64);
        if !self.map.is_usable(address, bytes) {
            return Err(LoadError::NoRoom { what, address, bytes });
        }
        self.write(address, data)?;
        let mut at = address + data.len() as u64;
        let end = address + bytes;
        while at < end {
            let count = (end - at).min(ZEROES.len() as u64);
            self.write(at, &ZEROES[..count as usize])?;
            at += count;
        }
        Ok(())
    }

    /// Writes the NUL-terminated command line to its place.
    fn write_command_line(&self, line: &str, limit: u64) -> Result<u64, LoadError> {
        let address = crate::layout::boot::COMMAND_LINE;
        let limit = limit.min(crate::layout::boot::COMMAND_LINE_BYTES - 1);
        let bytes = line.len() as u64;
        if bytes > limit {
            return Err(LoadError::CommandLine { bytes, limit });
        }
        if line.contains('\0') {
            return Err(LoadError::CommandLineNul);
        }
        self.write(address, line.as_bytes())?;
        self.write(address + bytes, &[0])?;
        Ok(address)
    }
}

impl Kernel {
    /// The one initrd that Linux takes.
    fn initrd(&self) -> Result<Option<&[u8]>, LoadError> {
        match self.modules.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(&only.data)),
            more => Err(LoadError::ManyInitrds { count: more.len() }),
        }
    }
}

#[cfg(test)]
pub(crate) mod test_machine;
#[cfg(test)]
mod tests;
