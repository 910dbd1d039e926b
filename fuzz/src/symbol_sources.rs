//! Files and kernels with names: ELF files with DWARF, `System.map`, and a guest's memory.
//!
//! Whatever they say, a reader ends with names or with an error.

use symbols::kallsyms::sample;
use symbols::lines::Lines;
use symbols::orc::{self, Orc, Registers};
use symbols::{Symbols, elf, kallsyms, system_map};

/// Sections of an ELF file that are made of the input, with their types.
const SECTIONS: [(&str, u32); 8] = [
    (".symtab", 2),
    (".strtab", 3),
    (".debug_info", 1),
    (".debug_abbrev", 1),
    (".debug_line", 1),
    (".debug_str", 1),
    (".debug_ranges", 1),
    (".debug_rnglists", 1),
];

/// Reads the input as each of the sources.
pub fn run(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    match kind & 3 {
        0 => text(rest),
        1 => file(rest),
        2 => file(&elf_of(rest)),
        _ => memory(rest),
    }
}

fn text(input: &[u8]) {
    if let Ok(module) = system_map::read("map", &mut &*input) {
        let mut again = Vec::new();
        module.write_system_map(&mut again).expect("a Vec takes all");
        let again = system_map::read("map", &mut &*again).expect("it is what was written");
        assert_eq!(module.len(), again.len());
    }
}

fn file(input: &[u8]) {
    if let Ok(module) = elf::read("elf", input) {
        let mut symbols = Symbols::default();
        let (start, end) = module.range();
        symbols.add(module);
        for address in [start, end, end.wrapping_sub(1), 0, u64::MAX] {
            let _ = symbols.at(address).map(|place| place.to_string());
        }
    }
    if let Ok(lines) = Lines::read(input) {
        for address in [0, 1, 0x1000, u64::MAX] {
            let _ = lines.frames(address);
        }
        let _ = lines.ranges(0, u64::MAX).take(100_000).count();
    }
}

/// An ELF file whose sections are parts of the input, each with its length before it.
fn elf_of(input: &[u8]) -> Vec<u8> {
    let mut rest = input;
    let mut names = vec![0];
    let mut data = Vec::new();
    let mut headers = vec![0; 64];
    for (number, (name, kind)) in SECTIONS.iter().enumerate() {
        let length = rest.first().map_or(0, |&byte| usize::from(byte) * 4).min(rest.len());
        let (part, behind) = rest.split_at(length);
        rest = behind;
        // Symbols are 24 bytes each, and their strings are the next section.
        let part = if number == 0 { &part[..part.len() / 24 * 24] } else { part };
        let link = if number == 0 { 2 } else { 0 };
        section(&mut headers, names.len(), *kind, 64 + data.len(), part.len(), link);
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        data.extend_from_slice(part);
    }
    section(&mut headers, 0, 3, 64 + data.len(), names.len(), 0);
    data.extend(names);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    elf.extend([0; 16]);
    elf.extend((64 + data.len() as u64).to_le_bytes());
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 0, 0, 64, 0]);
    elf.extend((headers.len() as u16 / 64).to_le_bytes());
    elf.extend((SECTIONS.len() as u16 + 1).to_le_bytes());
    elf.extend(data);
    elf.extend(headers);
    elf
}

fn section(out: &mut Vec<u8>, name: usize, kind: u32, at: usize, length: usize, link: u32) {
    out.extend((name as u32).to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend([0; 16]);
    out.extend((at as u64).to_le_bytes());
    out.extend((length as u64).to_le_bytes());
    out.extend(link.to_le_bytes());
    out.extend([0; 12]);
    out.extend(if kind == 2 { 24u64 } else { 0 }.to_le_bytes());
}

/// A kernel with some of its bytes changed, and a stack in it.
fn memory(input: &[u8]) {
    let Some((&form, changes)) = input.split_first() else { return };
    let forms: Vec<_> = sample::forms().collect();
    let mut tables = sample::tables(forms[usize::from(form) % forms.len()]);
    for change in changes.chunks_exact(3) {
        // Most of it is names: the low bits choose which part of the whole.
        let at = usize::from(change[0]) << 8 | usize::from(change[1]);
        let at = at * tables.len() >> 16;
        tables[at] = change[2];
    }
    let mut read = sample::reader(&tables);
    if let Ok(kernel) = kallsyms::find(sample::BASE, &mut read) {
        let _ = kernel.symbols.at(sample::BASE + 0x100).map(|place| place.to_string());
    }
    stack(&tables, changes);
}

/// Tables of a kernel's stacks that are anything.
fn stack(bytes: &[u8], input: &[u8]) {
    let mut builder = symbols::Builder::new("vmlinux");
    for (name, at) in [
        ("_stext", 0),
        ("_etext", 1 << 24),
        ("__start_orc_unwind_ip", 0x140_0000),
        ("__stop_orc_unwind_ip", 0x140_1000),
        ("__start_orc_unwind", 0x140_1000),
    ] {
        builder.push(sample::BASE + at, 0, 'T', name).expect("there is room");
    }
    let mut read = sample::reader(bytes);
    let registers = Registers {
        rip: sample::BASE + u64::from(input.first().copied().unwrap_or(0)),
        rsp: sample::BASE + 0x140_2000,
        rbp: sample::BASE + 0x140_2100,
        ..Registers::default()
    };
    if let Some(orc) = Orc::read(&builder.finish(), &mut read) {
        assert!(orc.unwind(registers, 64, &mut read).len() <= 64);
    }
    assert!(orc::by_frame_pointers(registers, 64, &mut read).len() <= 64);
}
