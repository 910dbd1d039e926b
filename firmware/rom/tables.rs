//! Descriptor tables and interrupt tables, made from the assembled stages' handlers.

use crate::rom::image::Image;
use crate::rom::layout::{
    GDT, GDT_TEMPLATE, GDTR, IDT32, IDT64, IDTR32, IDTR64, IVT_TEMPLATE, ROM_BASE, ROM_SEGMENT,
    SMALL_SEGMENT, TSS, selector, vector,
};
use crate::rom::real_mode::UNEXPECTED;
use crate::rom::stage::{Assembled, Gate};
use crate::rom::trap::exception;

/// Bytes of the GDT.
pub const GDT_BYTES: usize = selector::BEYOND as usize;
/// Bytes of the real-mode interrupt vector table.
pub const IVT_BYTES: usize = 256 * 4;

/// Segment access bytes (SDM Vol. 3A, "Segment Descriptors"). Accessed is set throughout: no
/// processor then writes the table.
mod access {
    /// Present, code or data.
    pub const SEGMENT: u8 = 0x91;
    /// Data: writable. Code: readable.
    pub const READ_WRITE: u8 = 0x02;
    /// Code.
    pub const CODE: u8 = 0x08;
    /// DPL 3.
    pub const USER: u8 = 0x60;
    /// Present, 64-bit TSS, available.
    pub const TSS: u8 = 0x89;
    /// P.
    pub const PRESENT: u8 = 0x80;
}

/// Flags nibble: G, D/B, L.
mod flags {
    pub const BYTES_16: u8 = 0;
    pub const PAGES_32: u8 = 0xC;
    pub const PAGES_64: u8 = 0xA;
    pub const BYTES_32: u8 = 0x4;
}

/// Gate types (SDM Vol. 3A, "System Segment Descriptor Types"): a 32-bit or 64-bit interrupt gate.
const INTERRUPT_GATE: u8 = 0xE;

/// Places all tables of the built-in guest.
pub fn place(
    image: &mut Image,
    real: &Assembled,
    protected: &Assembled,
    long: &Assembled,
) -> Result<(), String> {
    place_gdt(image)?;
    image.place(IVT_TEMPLATE, &ivt(&real.gates)?)?;
    let idt32 = idt(&protected.gates, usize::from(exception::COUNT), gate32)?;
    image.place(IDTR32, &pseudo_descriptor(ROM_BASE + IDT32 as u32, idt32.len()))?;
    image.place(IDT32, &idt32)?;
    place_idt64(image, long)
}

/// Places the GDT's template and pseudo-descriptor.
pub fn place_gdt(image: &mut Image) -> Result<(), String> {
    image.place(GDTR, &pseudo_descriptor(GDT, GDT_BYTES))?;
    image.place(GDT_TEMPLATE, &gdt())
}

/// Places the 64-bit stage's IDT and its pseudo-descriptor.
pub fn place_idt64(image: &mut Image, long: &Assembled) -> Result<(), String> {
    let idt64 = idt(&long.gates, vector::IDT64_ENTRIES, gate64)?;
    image.place(IDTR64, &pseudo_descriptor(ROM_BASE + IDT64 as u32, idt64.len()))?;
    image.place(IDT64, &idt64)
}

/// Limit and base as LGDT and LIDT of every width read them: a 64-bit base with zeros above.
fn pseudo_descriptor(base: u32, bytes: usize) -> [u8; 10] {
    let mut descriptor = [0; 10];
    descriptor[..2].copy_from_slice(&(bytes as u16 - 1).to_le_bytes());
    descriptor[2..6].copy_from_slice(&base.to_le_bytes());
    descriptor
}

/// A descriptor with a 20-bit `limit` in the unit that `flags` says.
fn descriptor(base: u32, limit: u32, access: u8, flags: u8) -> u64 {
    let (base, limit) = (u64::from(base), u64::from(limit));
    limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xF) << 48
        | u64::from(flags) << 52
        | (base >> 24) << 56
}

fn gdt() -> [u8; GDT_BYTES] {
    const DATA: u8 = access::SEGMENT | access::READ_WRITE;
    const CODE: u8 = DATA | access::CODE;
    let rows: [(u16, u64); 13] = [
        (selector::CODE16, descriptor(ROM_BASE, 0xFFFF, CODE, flags::BYTES_16)),
        (selector::DATA16, descriptor(0, 0xFFFF, DATA, flags::BYTES_16)),
        (selector::CODE32, descriptor(0, 0xF_FFFF, CODE, flags::PAGES_32)),
        (selector::DATA32, descriptor(0, 0xF_FFFF, DATA, flags::PAGES_32)),
        (selector::SMALL, descriptor(SMALL_SEGMENT, 0xFF, DATA, flags::BYTES_32)),
        (selector::CODE64, descriptor(0, 0xF_FFFF, CODE, flags::PAGES_64)),
        (selector::DATA64, descriptor(0, 0xF_FFFF, DATA, flags::PAGES_32)),
        (selector::USER_CODE32, descriptor(0, 0xF_FFFF, CODE | access::USER, flags::PAGES_32)),
        (selector::USER_DATA, descriptor(0, 0xF_FFFF, DATA | access::USER, flags::PAGES_32)),
        (selector::USER_CODE64, descriptor(0, 0xF_FFFF, CODE | access::USER, flags::PAGES_64)),
        (selector::TSS, descriptor(TSS, 103, access::TSS, flags::BYTES_16)),
        // The upper half of the TSS's base.
        (selector::TSS + 8, 0),
        (selector::ABSENT, descriptor(0, 0xFFFF, DATA & !access::PRESENT, flags::BYTES_16)),
    ];
    let mut table = [0; GDT_BYTES];
    for (selector, descriptor) in rows {
        let at = usize::from(selector);
        table[at..at + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    table
}

/// The real-mode table; vectors without a handler get the one of [`UNEXPECTED`].
fn ivt(gates: &[Gate]) -> Result<Vec<u8>, String> {
    let find = |vector| gates.iter().find(|gate| gate.vector == vector);
    let unexpected = find(UNEXPECTED).ok_or("real mode has no default handler")?;
    let vectors = (0..=255).map(|vector| find(vector).unwrap_or(unexpected));
    let entries = vectors.flat_map(|gate| {
        let [low, high] = (gate.entry as u16).to_le_bytes();
        let [segment_low, segment_high] = ROM_SEGMENT.to_le_bytes();
        [low, high, segment_low, segment_high]
    });
    Ok(entries.collect())
}

/// An IDT of `entries`; those without a handler are not present.
fn idt<const BYTES: usize>(
    gates: &[Gate],
    entries: usize,
    encode: fn(&Gate) -> [u8; BYTES],
) -> Result<Vec<u8>, String> {
    let mut table = vec![0; entries * BYTES];
    for gate in gates {
        let at = usize::from(gate.vector) * BYTES;
        let entry = table.get_mut(at..at + BYTES);
        let entry = entry.ok_or_else(|| format!("vector {:#x} is beyond the IDT", gate.vector))?;
        entry.copy_from_slice(&encode(gate));
    }
    Ok(table)
}

fn gate32(gate: &Gate) -> [u8; 8] {
    gate_low(gate, selector::CODE32).to_le_bytes()
}

fn gate64(gate: &Gate) -> [u8; 16] {
    let high = u128::from(gate.entry >> 32);
    (u128::from(gate_low(gate, selector::CODE64)) | high << 64).to_le_bytes()
}

fn gate_low(gate: &Gate, selector: u16) -> u64 {
    let kind = access::PRESENT | gate.dpl << 5 | INTERRUPT_GATE;
    gate.entry & 0xFFFF
        | u64::from(selector) << 16
        | u64::from(kind) << 40
        | (gate.entry >> 16 & 0xFFFF) << 48
}
