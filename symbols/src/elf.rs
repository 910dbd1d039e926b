//! The symbols of an ELF file, of 32 or 64 bits.
//!
//! Both tables are read, that of the linker and that of dynamic loading. Only what is asked for is
//! read of a file, which for a kernel with DWARF is a small part.

use std::fs::File;
use std::path::Path;

use object::elf;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{Endianness, FileKind, ReadCache, ReadRef};

use crate::table::NAME_MAX;
use crate::{Builder, Module, SymbolError};

/// The tables of symbols; there is at most one of each (gABI, "Sections"). More, which may share
/// their bytes, could hold a reader up for as long as they like.
const TABLES: [elf::SectionType; 2] = [elf::SHT_SYMTAB, elf::SHT_DYNSYM];
/// Program headers that are looked at.
const SEGMENTS_MAX: usize = 1024;

/// True if the file starts as ELF files do.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(&elf::ELFMAG)
}

/// Reads the symbols of the file at `path` as the module `name`.
pub fn open(name: &str, path: &Path) -> Result<Module, SymbolError> {
    let file = File::open(path).map_err(SymbolError::Read)?;
    let cache = ReadCache::new(file);
    read(name, &cache)
}

/// Reads the symbols of an ELF file as the module `name`.
pub fn read<'a>(name: &str, data: impl ReadRef<'a>) -> Result<Module, SymbolError> {
    match FileKind::parse(data).map_err(damaged)? {
        FileKind::Elf32 => read_class::<elf::FileHeader32<Endianness>, _>(name, data),
        FileKind::Elf64 => read_class::<elf::FileHeader64<Endianness>, _>(name, data),
        _ => Err(SymbolError::Elf("it is of another format".into())),
    }
}

fn damaged(error: object::Error) -> SymbolError {
    SymbolError::Elf(error.to_string())
}

fn read_class<'a, Elf, R>(name: &str, data: R) -> Result<Module, SymbolError>
where
    Elf: FileHeader<Endian = Endianness>,
    R: ReadRef<'a>,
{
    let header = Elf::parse(data).map_err(damaged)?;
    let endian = header.endian().map_err(damaged)?;
    let sections = header.sections(endian, data).map_err(damaged)?;
    let mut builder = Builder::new(name);
    // A kernel module is an object file: each of its sections counts from 0, and where the kernel
    // has put them is known by section. The file is taken to be its code.
    let is_object = header.e_type(endian) == elf::ET_REL;
    let text = sections.section_by_name(endian, b".text").map(|(index, _)| index.0);
    let is_told = |row: &Elf::Sym| !is_object || text == Some(usize::from(row.st_shndx(endian).0));
    let table = |kind| sections.iter().find(|section| section.sh_type(endian) == kind);
    for section in TABLES.into_iter().filter_map(table) {
        let rows = section.data_as_array::<Elf::Sym, _>(endian, data).map_err(damaged)?;
        let strings = sections.section(section.link(endian)).map_err(damaged)?;
        let strings = strings.data(endian, data).map_err(damaged)?;
        let flags_of = |index: elf::SymbolSection| {
            let section = sections.section(object::SectionIndex(usize::from(index.0)));
            section.map_or(elf::SectionFlags(0), |section| section.sh_flags(endian))
        };
        for row in rows.iter().filter(|row| is_told(row)) {
            add::<Elf>(&mut builder, row, endian, strings, &flags_of)?;
        }
    }
    if builder.is_empty() {
        return Err(SymbolError::Stripped);
    }
    let mut module = builder.finish();
    let segments = header.program_headers(endian, data).map_err(damaged)?;
    let mut loaded = segments.iter().take(SEGMENTS_MAX);
    let first = loaded.find(|segment| segment.p_type(endian) == elf::PT_LOAD);
    // A loader places whole pages.
    let first = first.map(|segment| segment.p_vaddr(endian).into() & !0xfff);
    module.set_first(if is_object { Some(0) } else { first });
    Ok(module)
}

/// Adds a row of the symbol table, if it is a place that has a name.
fn add<Elf: FileHeader<Endian = Endianness>>(
    builder: &mut Builder,
    row: &Elf::Sym,
    endian: Endianness,
    strings: &[u8],
    flags_of: &dyn Fn(elf::SymbolSection) -> elf::SectionFlags,
) -> Result<(), SymbolError> {
    let is_place = matches!(
        row.st_type(),
        elf::STT_NOTYPE | elf::STT_OBJECT | elf::STT_FUNC | elf::STT_GNU_IFUNC
    );
    let index = row.st_shndx(endian);
    if !is_place || index == elf::SHN_UNDEF {
        return Ok(());
    }
    let name = strings.get(row.st_name(endian) as usize..).unwrap_or_default();
    let name = name.get(..name.len().min(NAME_MAX + 1)).unwrap_or_default();
    let Some(end) = name.iter().position(|&byte| byte == 0) else { return Ok(()) };
    let Ok(name) = std::str::from_utf8(name.get(..end).unwrap_or_default()) else { return Ok(()) };
    let has = |flag: elf::SectionFlags| flags_of(index).0 & flag.0 != 0;
    let is_code =
        matches!(row.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC) || has(elf::SHF_EXECINSTR);
    let letter = match index {
        elf::SHN_ABS => 'a',
        _ if is_code => 't',
        _ if has(elf::SHF_WRITE) => 'd',
        _ => 'r',
    };
    let is_local = row.st_bind() == elf::STB_LOCAL;
    let letter = if is_local && letter != 'a' { letter } else { letter.to_ascii_uppercase() };
    builder.push(row.st_value(endian).into(), row.st_size(endian).into(), letter, &readable(name))
}

/// A name of Rust as people write it; other names as they are.
pub(crate) fn readable(name: &str) -> std::borrow::Cow<'_, str> {
    /// Takes so much of a name as is allowed, for a few bytes of a mangled name can stand for many.
    struct Bounded(String);
    impl std::fmt::Write for Bounded {
        fn write_str(&mut self, part: &str) -> std::fmt::Result {
            if self.0.len() + part.len() > NAME_MAX {
                return Err(std::fmt::Error);
            }
            self.0.push_str(part);
            Ok(())
        }
    }
    let Ok(demangled) = rustc_demangle::try_demangle(name) else { return name.into() };
    let mut out = Bounded(String::new());
    match std::fmt::write(&mut out, format_args!("{demangled:#}")) {
        Ok(()) => out.0.into(),
        Err(_) => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this() -> Vec<u8> {
        let path = std::env::current_exe().expect("it runs");
        std::fs::read(path).expect("it is a file")
    }

    #[test]
    fn names_of_rust_are_readable_and_no_name_grows_without_bound() {
        assert_eq!(
            readable("_ZN4core3fmt5Write9write_fmt17h0123456789abcdefE"),
            "core::fmt::Write::write_fmt"
        );
        assert_eq!(readable("do_sys_open"), "do_sys_open");
        // Each part stands for the one before, twice.
        let mut mangled = String::from("_RM");
        for _ in 0..60 {
            mangled.push_str("TB0_B0_");
        }
        assert!(readable(&mangled).len() <= NAME_MAX.max(mangled.len()));
    }

    /// Compilers may make any other function a part of its only caller.
    #[inline(never)]
    fn never_inlined() -> u32 {
        std::hint::black_box(7)
    }

    #[test]
    fn this_program_has_symbols_where_it_says() {
        assert_eq!(never_inlined(), 7);
        let data = this();
        let module = read("test", &*data).expect("it has symbols");
        assert!(module.symbols().any(|symbol| symbol.name.contains("never_inlined")));
        let mut moved = module.clone();
        moved.set_base(0x7000_0000_0000);
        assert_eq!(moved.slide(), 0x7000_0000_0000, "a program is loaded from its address 0 on");
        let symbol = module.symbols().find(|symbol| symbol.is_code()).expect("there is code");
        assert!(moved.at(symbol.address + 0x7000_0000_0000).is_some());
    }

    /// An object file with functions at 0x10 in `.text` and at 0 in `.init.text`.
    fn object_file() -> Vec<u8> {
        const STRINGS: &[u8] = b"\0.text\0.init.text\0probe\0setup\0";
        let words = |values: &[u64]| -> Vec<u8> {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        // Where the symbols, the strings and the section headers are.
        let (symbols, strings, headers) = (64, 64 + 3 * 24, 64 + 3 * 24 + 32);
        let mut data = b"\x7fELF\x02\x01\x01".to_vec();
        data.resize(16, 0);
        // Type 1 is ET_REL, machine 62 x86-64; 5 section headers of 64 bytes, the 4th has names.
        data.extend(words(&[1 | 62 << 16 | 1 << 32, 0, 0, headers, 64 << 32]));
        data.extend(words(&[64 << 16 | 5 << 32 | 4 << 48]));
        // Functions (2) that are global (1), in sections 1 and 2.
        data.extend(words(&[0, 0, 0]));
        data.extend(words(&[18 | 0x12 << 32 | 1 << 48, 0x10, 0x20]));
        data.extend(words(&[24 | 0x12 << 32 | 2 << 48, 0, 0x20]));
        data.extend(STRINGS);
        data.resize(headers as usize, 0);
        let executable = elf::SHF_ALLOC.0 | elf::SHF_EXECINSTR.0;
        data.extend(words(&[0; 8]));
        data.extend(words(&[1 | 1 << 32, executable, 0, 0, 0, 0, 0, 0]));
        data.extend(words(&[7 | 1 << 32, executable, 0, 0, 0, 0, 0, 0]));
        data.extend(words(&[2 << 32, 0, 0, symbols, 3 * 24, 4, 8, 24]));
        data.extend(words(&[3 << 32, 0, 0, strings, STRINGS.len() as u64, 0, 1, 0]));
        data
    }

    #[test]
    fn a_kernel_module_is_where_its_code_is() {
        let mut module = read("m.ko", &*object_file()).expect("it has symbols");
        module.set_base(0xffff_ffff_c000_0000);
        let name = |address| module.at(address).map(|place| place.to_string());
        assert_eq!(name(0xffff_ffff_c000_0014).as_deref(), Some("probe+0x4"));
        assert!(module.find("setup").is_none(), "it is in another section");
    }

    #[test]
    fn what_is_cut_off_or_damaged_is_an_error_or_less() {
        let data = this();
        for length in [0, 3, 4, 16, 63, 64, 1000, data.len() / 2, data.len() - 1] {
            let _ = read("cut", &data[..length]);
        }
        for at in (0..4096).step_by(7) {
            let mut damaged = data[..(64 << 10).min(data.len())].to_vec();
            damaged[at] ^= 0xff;
            let _ = read("damaged", &*damaged);
        }
        assert!(matches!(read("text", &b"hello"[..]), Err(SymbolError::Elf(_))));
    }
}
