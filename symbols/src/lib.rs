//! Names and source lines of a guest's addresses.
//!
//! A [`Module`] is one image's symbols, [`Symbols`] are all modules of a guest: from an address to
//! name and offset, from a name to an address. Modules come out of an ELF file ([`elf`]), out of a
//! `System.map` or a saved `/proc/kallsyms` ([`system_map`]), and out of the memory of a running
//! Linux kernel ([`kallsyms`]), where address space randomization has put it. [`lines`] knows the
//! source lines of an ELF file with DWARF, inlined functions included. [`orc`] reads the tables by
//! which Linux unwinds its own stacks, for kernels that keep no frame pointers.
//!
//! Files and guest memory are hostile: whatever they say is read with bounds on time and memory,
//! and what cannot be is an error. Nothing here knows an emulator; memory is read by a closure that
//! the caller gives.
//!
//! Known departures: names of C++ stay mangled; compressed DWARF sections, split DWARF and the
//! symbols of a guest's loadable modules are not read.
#![forbid(unsafe_code)]

pub mod elf;
mod error;
pub mod kallsyms;
pub mod lines;
mod memory;
pub mod orc;
pub mod system_map;
mod table;

pub use error::SymbolError;
pub use memory::Reader;
pub use table::{Builder, Module, Place, Symbol, Symbols};
