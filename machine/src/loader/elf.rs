//! ELF executables of both classes, as far as a kernel loader needs them.
//!
//! Source: System V ABI, "ELF Header" and "Program Header"; the x86 processor supplements.

use super::bytes::Bytes;
use super::{LoadError, Target};

const MAGIC: &[u8] = b"\x7fELF";
const ELFCLASS32: u8 = 1;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;

/// A loadable segment.
pub(super) const PT_LOAD: u32 = 1;
/// A segment of notes.
pub(super) const PT_NOTE: u32 = 4;

/// A program header, whatever the class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub kind: u32,
    pub offset: u64,
    pub physical: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
    pub align: u64,
}

/// An ELF file whose headers were checked.
pub(super) struct Elf<'a> {
    image: Bytes<'a>,
    is_64bit: bool,
    entry: u64,
    segments: Vec<Segment>,
}

/// A note: who defines it, its type, and what it says.
pub(super) struct Note<'a> {
    pub name: &'a [u8],
    pub kind: u32,
    pub description: &'a [u8],
}

/// True if `image` is an ELF file of any kind.
pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(MAGIC)
}

impl<'a> Elf<'a> {
    pub(super) fn parse(image: &'a [u8]) -> Result<Self, LoadError> {
        let image = Bytes::new(image, "the ELF header");
        let is_64bit = match image.u8(4)? {
            ELFCLASS32 => false,
            ELFCLASS64 => true,
            class => return Err(foreign("EI_CLASS", class.into())),
        };
        match (image.u8(5)?, image.u16(16)?, image.u16(18)?) {
            (ELFDATA2LSB, ET_EXEC | ET_DYN, EM_386 | EM_X86_64) => {}
            (ELFDATA2LSB, ET_EXEC | ET_DYN, machine) => {
                return Err(foreign("e_machine", machine.into()));
            }
            (ELFDATA2LSB, kind, _) => return Err(foreign("e_type", kind.into())),
            (order, ..) => return Err(foreign("EI_DATA", order.into())),
        }
        let (entry, table, size_at) = if is_64bit {
            (image.u64(24)?, image.u64(32)?, 54)
        } else {
            (image.u32(24)?.into(), image.u32(28)?.into(), 42)
        };
        let (size, count) = (image.u16(size_at)?, image.u16(size_at + 2)?);
        let mut this = Self { image, is_64bit, entry, segments: Vec::new() };
        this.parse_segments(table, size.into(), count)?;
        Ok(this)
    }

    fn parse_segments(&mut self, table: u64, size: u64, count: u16) -> Result<(), LoadError> {
        let least = if self.is_64bit { 56 } else { 32 };
        if count != 0 && size < least {
            return Err(LoadError::Field { field: "e_phentsize", value: size });
        }
        let headers = self.image.named("the program headers");
        headers.slice(table, size.saturating_mul(count.into()))?;
        for index in 0..u64::from(count) {
            let at = table + index * size;
            let segment = if self.is_64bit {
                Segment {
                    kind: headers.u32(at)?,
                    offset: headers.u64(at + 8)?,
                    physical: headers.u64(at + 24)?,
                    file_bytes: headers.u64(at + 32)?,
                    memory_bytes: headers.u64(at + 40)?,
                    align: headers.u64(at + 48)?,
                }
            } else {
                Segment {
                    kind: headers.u32(at)?,
                    offset: headers.u32(at + 4)?.into(),
                    physical: headers.u32(at + 12)?.into(),
                    file_bytes: headers.u32(at + 16)?.into(),
                    memory_bytes: headers.u32(at + 20)?.into(),
                    align: headers.u32(at + 28)?.into(),
                }
            };
            self.segments.push(segment);
        }
        Ok(())
    }

    pub(super) fn is_64bit(&self) -> bool {
        self.is_64bit
    }

    /// `e_entry`.
    pub(super) fn entry(&self) -> u64 {
        self.entry
    }

    /// The segments of `kind`, in file order.
    pub(super) fn segments(&self, kind: u32) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.kind == kind)
    }

    /// Finds the first note that `wanted` takes.
    pub(super) fn find_note<T>(
        &self,
        wanted: impl Fn(&Note<'_>) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        for segment in self.segments(PT_NOTE) {
            let data = self.image.named("the notes").slice(segment.offset, segment.file_bytes)?;
            let mut rest = Bytes::new(data, "a note");
            // Notes of 8-byte alignment exist (.note.gnu.property); each takes at least 12 bytes.
            let align = if segment.align == 8 { 8 } else { 4 };
            while rest.len() >= 12 {
                let (note, next) = parse_note(rest, align)?;
                if let Some(found) = wanted(&note) {
                    return Ok(Some(found));
                }
                rest = next;
            }
        }
        Ok(None)
    }

    /// Loads every segment to its physical address. Returns the first address behind all of them.
    pub(super) fn load(&self, target: &Target<'_>) -> Result<u64, LoadError> {
        let mut segments: Vec<&Segment> =
            self.segments(PT_LOAD).filter(|segment| segment.memory_bytes != 0).collect();
        // Sorted, so that segments that overlap are found: without them, what is written is at most
        // what memory has, however many segments the file lists.
        segments.sort_by_key(|segment| segment.physical);
        let mut end = 0;
        for segment in segments {
            if segment.physical < end {
                return Err(LoadError::Field { field: "p_paddr", value: segment.physical });
            }
            if segment.file_bytes > segment.memory_bytes {
                return Err(LoadError::Field { field: "p_filesz", value: segment.file_bytes });
            }
            let image = self.image.named("a segment");
            let data = image.slice(segment.offset, segment.file_bytes)?;
            let bytes = segment.memory_bytes;
            target.write_zero_filled("a segment", segment.physical, data, bytes)?;
            end = segment.physical.saturating_add(bytes);
        }
        if end == 0 { Err(LoadError::Field { field: "e_phnum", value: 0 }) } else { Ok(end) }
    }
}

fn foreign(field: &'static str, value: u64) -> LoadError {
    LoadError::ForeignElf { field, value }
}

/// Splits the first note off `bytes`.
fn parse_note(bytes: Bytes<'_>, align: u64) -> Result<(Note<'_>, Bytes<'_>), LoadError> {
    let (name_bytes, bytes_of_description) = (u64::from(bytes.u32(0)?), u64::from(bytes.u32(4)?));
    let description_at = (12 + name_bytes).next_multiple_of(align);
    let note = Note {
        name: bytes.slice(12, name_bytes)?,
        kind: bytes.u32(8)?,
        description: bytes.slice(description_at, bytes_of_description)?,
    };
    // The last note need not be padded.
    let end = (description_at + bytes_of_description).next_multiple_of(align).min(bytes.len());
    let rest = bytes.slice(end, bytes.len() - end)?;
    Ok((note, Bytes::new(rest, "a note")))
}
