//! A small guest whose addresses are known, and its symbols.
//!
//! From the reset vector it goes to flat 32-bit code, which the translator translates, and counts
//! there for ever: a word in memory and ECX go up once a round of [`NOPS`] instructions that do
//! nothing. A second processor may be woken, which counts in code and in a word of its own.

use std::fs;
use std::path::PathBuf;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Where the counter is.
pub const COUNTER: u64 = 0x600;
const APIC_ID: u64 = 0xfee0_0020;
const APIC_COMMAND: u64 = 0xfee0_0300;
/// The top of the loop, at which the counter is incremented.
pub const TOP: u64 = 0xf_0400;
/// The first of the instructions that do nothing.
pub const FIRST_NOP: u64 = TOP + 7;
/// The second processor's counter.
pub const SECOND_COUNTER: u64 = 0x604;
/// The top of its loop.
pub const SECOND_TOP: u64 = 0xf_0800;
/// How many instructions of a loop do nothing.
pub const NOPS: u64 = 201;

/// The ROM's file, of the guest that wakes nobody.
pub fn rom(name: &str) -> PathBuf {
    write(name, &start(&[]).unwrap())
}

/// The same of the guest that has the second processor count too.
pub fn pair(name: &str) -> PathBuf {
    // INIT and a start-up IPI to all others: at 0xf0000, where this one began too.
    write(name, &start(&[0x000c_4500, 0x000c_46f0]).unwrap())
}

fn write(name: &str, start: &[u8]) -> PathBuf {
    let mut image = vec![0; 0x1_0000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0xfff0, &[0xea, 0, 0, 0, 0xf0]);
    #[rustfmt::skip]
    put(0, &[
        0xfa,                                     // cli
        0x2e, 0x66, 0x0f, 0x01, 0x16, 0x00, 0x02, // lgdt cs:[0x200]
        0x0f, 0x20, 0xc0,                         // mov eax, cr0
        0x0c, 0x01,                               // or al, 1
        0x0f, 0x22, 0xc0,                         // mov cr0, eax
        0x66, 0xea, 0x00, 0x01, 0x0f, 0, 8, 0,    // jmp 8:0xf0100
    ]);
    put(0x200, &[0x17, 0, 0x08, 0x02, 0x0f, 0]);
    put(0x210, &0x00cf_9b00_0000_ffffu64.to_le_bytes());
    put(0x218, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    put(0x100, start);
    put(0x400, &count(TOP, COUNTER).unwrap());
    put(0x800, &count(SECOND_TOP, SECOND_COUNTER).unwrap());
    let path = crate::path(name);
    fs::write(&path, image).unwrap();
    path
}

fn start(commands: &[i32]) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(eax, 0x10)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.mov(ss, eax)?;
    a.mov(esp, 0x9000)?;
    a.xor(ecx, ecx)?;
    a.test(dword_ptr(APIC_ID), 0xff00_0000u32 as i32)?;
    let mut is_second = a.create_label();
    a.jnz(is_second)?;
    for &command in commands {
        a.mov(dword_ptr(APIC_COMMAND), command)?;
    }
    a.mov(eax, TOP as i32)?;
    a.jmp(eax)?;
    a.set_label(&mut is_second)?;
    a.mov(eax, SECOND_TOP as i32)?;
    a.jmp(eax)?;
    a.assemble(0xf_0100)
}

fn count(at: u64, counter: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.inc(ecx)?;
    a.mov(dword_ptr(counter), ecx)?;
    (0..NOPS).try_for_each(|_| a.nop())?;
    a.jmp(top)?;
    a.assemble(at)
}

/// An ELF file with the symbols `counter` and `loop_top`.
pub fn symbols(name: &str) -> PathBuf {
    let strings = b"\0loop_top\0counter\0.text\0.symtab\0.strtab\0";
    let (symbols_at, strings_at, sections_at) = (64u64, 64 + 72, 256u64);
    let mut file = vec![0; 1024];
    let mut put = |at: u64, bytes: &[u8]| {
        file[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    let half = |value: u16| value.to_le_bytes();
    let word = |value: u32| value.to_le_bytes();
    let long = |value: u64| value.to_le_bytes();
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    put(16, &[half(2), half(62)].concat());
    put(20, &word(1));
    put(24, &long(TOP));
    put(40, &long(sections_at));
    put(52, &[half(64), half(56), half(0), half(64), half(4), half(3)].concat());
    // Symbol 0 is none; then a global function in section 1, and a global object at an address.
    let symbol = |name: u32, info: u8, section: u16, value: u64, size: u64| {
        [&word(name)[..], &[info, 0], &half(section), &long(value), &long(size)].concat()
    };
    put(symbols_at + 24, &symbol(1, 0x12, 1, TOP, 0x100));
    put(symbols_at + 48, &symbol(10, 0x11, 0xfff1, COUNTER, 4));
    put(strings_at, strings);
    let section = |name: u32, kind: u32, flags: u64, numbers: [u64; 3], link: u32, entry: u64| {
        let [address, offset, size] = numbers;
        let head = [&word(name)[..], &word(kind), &long(flags), &long(address)].concat();
        let tail = [&word(link)[..], &word(1), &long(1), &long(entry)].concat();
        [head, long(offset).to_vec(), long(size).to_vec(), tail].concat()
    };
    put(sections_at + 64, &section(18, 8, 6, [TOP, 0, 0x100], 0, 0));
    put(sections_at + 128, &section(24, 2, 0, [0, symbols_at, 72], 3, 24));
    put(sections_at + 192, &section(32, 3, 0, [0, strings_at, strings.len() as u64], 0, 0));
    let path = crate::path(name);
    fs::write(&path, file).unwrap();
    path
}
