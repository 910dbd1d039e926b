//! Why an image could not be loaded.

/// Why an image could not be loaded. Each message stands for itself behind the file's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// None of the known formats.
    #[error(
        "not a kernel: neither a Linux bzImage, nor an ELF file, nor a Multiboot image \
         ({size} bytes)"
    )]
    NotAKernel {
        /// The file's size in bytes.
        size: u64,
    },
    /// The file ends before what it promises.
    #[error("the file is truncated: {what} needs {needed} bytes, the file has {size}")]
    Truncated {
        /// The part that is cut off.
        what: &'static str,
        /// Bytes the file should have at least.
        needed: u64,
        /// Bytes it has.
        size: u64,
    },
    /// A field of the image has a value that cannot be.
    #[error("the image is damaged: {field} is {value:#x}")]
    Field {
        /// The field's name in its specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A bzImage with a boot protocol older than is supported.
    #[error(
        "Linux boot protocol {}.{:02} is too old, 2.02 is the least",
        version >> 8, version & 0xff
    )]
    OldProtocol {
        /// Version field of the setup header.
        version: u16,
    },
    /// A zImage, which loads below 1 MiB.
    #[error("a zImage (loaded low) is not supported, only a bzImage")]
    ZImage,
    /// An ELF file that says nowhere how to start it.
    #[error(
        "an ELF file without a PVH entry note or Multiboot header \
         (Linux needs CONFIG_PVH=y, or use its bzImage)"
    )]
    ElfWithoutEntry,
    /// An ELF file for another processor, or no executable.
    #[error("the ELF file is not an x86 executable: {field} is {value:#x}")]
    ForeignElf {
        /// The field's name in the ELF specification.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Multiboot 1 has no 64-bit form.
    #[error("a 64-bit ELF file cannot be a Multiboot image; convert it with objcopy -O elf32-i386")]
    Multiboot64,
    /// A Multiboot header asks for something this loader does not do.
    #[error("the Multiboot header asks for features {flags:#x}, which are not supported")]
    MultibootFlags {
        /// The required-feature bits that are not supported.
        flags: u32,
    },
    /// Something must be at an address where there is no free memory.
    #[error("{what} needs {bytes:#x} bytes at {address:#x}, where there is no free memory")]
    NoRoom {
        /// What is to be loaded.
        what: &'static str,
        /// Where.
        address: u64,
        /// How much.
        bytes: u64,
    },
    /// The kernel does not fit into memory anywhere.
    #[error("memory is too small: the kernel needs {needed:#x} bytes, {available:#x} are free")]
    MemoryTooSmall {
        /// Bytes the kernel needs.
        needed: u64,
        /// Bytes in the largest free range it could go to.
        available: u64,
    },
    /// The initrd does not fit into memory beside the kernel.
    #[error("the initrd of {bytes:#x} bytes does not fit into memory, {available:#x} are free")]
    InitrdTooLarge {
        /// Size of the initrd.
        bytes: u64,
        /// Bytes in the largest free range it could go to.
        available: u64,
    },
    /// Linux takes one initrd.
    #[error("{count} initrds were given, Linux takes one")]
    ManyInitrds {
        /// How many were given.
        count: usize,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {bytes} bytes, the kernel takes {limit}")]
    CommandLine {
        /// Length without the final NUL.
        bytes: u64,
        /// Greatest length without the final NUL.
        limit: u64,
    },
    /// A command line ends at its first NUL.
    #[error("the command line has a NUL character in it")]
    CommandLineNul,
    /// A ROM of a size that cannot be mapped.
    #[error("a ROM image has 1 byte to 16 MiB, this one has {size} bytes")]
    RomSize {
        /// The file's size in bytes.
        size: u64,
    },
    /// The board was made without room for this ROM.
    #[error("the board has room for a ROM of {room:#x} bytes, this one needs {needed:#x}")]
    RomRoom {
        /// Bytes the ROM needs, in whole pages.
        needed: u64,
        /// Bytes the board was made with.
        room: u64,
    },
}
