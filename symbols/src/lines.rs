//! Source lines of an ELF file with DWARF.
//!
//! Sections are read whole and once; units are taken apart when an address of theirs is asked for.
//! Addresses are the file's own: who has moved the file's module subtracts its slide.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use addr2line::Context;
use gimli::{Dwarf, EndianArcSlice, RunTimeEndian, Section, SectionId};
use object::{CompressionFormat, Object, ObjectSection, ReadCache, ReadRef};

use crate::SymbolError;

/// Bytes of all DWARF sections at most.
const BYTES_MAX: u64 = 2 << 30;
/// Functions that are inlined in each other at one address, at most.
const FRAMES_MAX: usize = 64;

/// A function at a place of the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFrame {
    /// Its name.
    pub function: Option<String>,
    /// Where in it.
    pub line: Option<SourceLine>,
}

/// A place in the source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceLine {
    /// The file as the compiler has it.
    pub file: String,
    /// The line, from 1.
    pub line: u32,
}

/// Code that is of one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineRange<'a> {
    /// Its first byte.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
    /// The file as the compiler has it.
    pub file: &'a str,
    /// The line, from 1.
    pub line: u32,
}

type Bytes = EndianArcSlice<RunTimeEndian>;

/// The source lines of one file.
pub struct Lines {
    context: Context<Bytes>,
}

impl Lines {
    /// Reads the DWARF of the file at `path`.
    pub fn open(path: &Path) -> Result<Self, SymbolError> {
        let file = File::open(path).map_err(SymbolError::Read)?;
        let cache = ReadCache::new(file);
        Self::read(&cache)
    }

    /// Reads the DWARF of an ELF file.
    pub fn read<'a>(data: impl ReadRef<'a>) -> Result<Self, SymbolError> {
        let damaged = |error: object::Error| SymbolError::Elf(error.to_string());
        let file = object::File::parse(data).map_err(damaged)?;
        let endian = match file.is_little_endian() {
            true => RunTimeEndian::Little,
            false => RunTimeEndian::Big,
        };
        let mut bytes = 0;
        let mut load = |id: SectionId| {
            let section = file.section_by_name(id.name());
            let is_compressed = match &section {
                Some(section) => {
                    let range = section.compressed_file_range().map_err(damaged)?;
                    range.format != CompressionFormat::None
                }
                None => false,
            };
            if is_compressed {
                return Err(SymbolError::Compressed);
            }
            bytes += section.as_ref().map_or(0, |section| section.size().min(BYTES_MAX + 1));
            if bytes > BYTES_MAX {
                return Err(SymbolError::TooLarge);
            }
            let data = section.map(|section| section.data().map_err(damaged)).transpose()?;
            let data = data.unwrap_or_default();
            Ok(Bytes::new(Arc::from(data), endian))
        };
        let dwarf = Dwarf::load(&mut load)?;
        if dwarf.debug_info.reader().is_empty() {
            return Err(SymbolError::NoLines);
        }
        let damaged = |error: gimli::Error| SymbolError::Elf(error.to_string());
        Ok(Self { context: Context::from_dwarf(dwarf).map_err(damaged)? })
    }

    /// What is at an address: the innermost function that is inlined there first, the function that
    /// has the code last. What is damaged is as if it were not there.
    pub fn frames(&self, address: u64) -> Vec<SourceFrame> {
        let mut found = Vec::new();
        let Ok(mut frames) = self.context.find_frames(address).skip_all_loads() else {
            return found;
        };
        while found.len() < FRAMES_MAX
            && let Ok(Some(frame)) = frames.next()
        {
            let function = frame.function.as_ref().and_then(|name| name.raw_name().ok());
            found.push(SourceFrame {
                function: function.map(|name| crate::elf::readable(&name).into_owned()),
                line: frame.location.and_then(|location| {
                    Some(SourceLine { file: location.file?.to_owned(), line: location.line? })
                }),
            });
        }
        found
    }

    /// The line of the code at an address.
    pub fn line(&self, address: u64) -> Option<SourceLine> {
        let location = self.context.find_location(address).ok()??;
        Some(SourceLine { file: location.file?.to_owned(), line: location.line? })
    }

    /// The code from `low` to before `high` with its lines, by address.
    pub fn ranges(&self, low: u64, high: u64) -> impl Iterator<Item = LineRange<'_>> {
        let ranges = self.context.find_location_range(low, high).into_iter().flatten();
        ranges.filter_map(|(address, size, location)| {
            let (file, line) = (location.file?, location.line.filter(|&line| line != 0)?);
            Some(LineRange { address, size, file, line })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code whose lines are looked for.
    #[inline(never)]
    fn outer(value: u64) -> u64 {
        std::hint::black_box(inner(std::hint::black_box(value))) + 1
    }

    #[inline(always)]
    fn inner(value: u64) -> u64 {
        std::hint::black_box(value).wrapping_mul(3)
    }

    #[test]
    fn this_test_has_names_and_lines() {
        assert_eq!(outer(1), 4);
        let path = std::env::current_exe().expect("it runs");
        let module = crate::elf::open("test", &path).expect("it has symbols");
        let symbol = module
            .symbols()
            .find(|symbol| symbol.name.ends_with("lines::tests::outer"))
            .expect("it is not inlined");
        assert!(symbol.is_code() && symbol.size != 0);
        let lines = Lines::open(&path).expect("it has lines");
        let here = "symbols/src/lines.rs";
        let line = lines.line(symbol.address).expect("it has a line");
        assert!(line.file.ends_with(here), "{line:?}");
        let inlined = (symbol.address..symbol.address + symbol.size)
            .map(|address| lines.frames(address))
            .find(|frames| frames.iter().any(|frame| frame.function.as_deref() == Some("inner")))
            .expect("the inlined function is known");
        let outermost = inlined.last().and_then(|frame| frame.function.as_deref());
        assert_eq!(outermost, Some("outer"));
        let ranges: Vec<_> = lines
            .ranges(symbol.address, symbol.address + symbol.size)
            .map(|range| range.line)
            .collect();
        assert!(ranges.contains(&line.line), "{ranges:?}");
    }
}
